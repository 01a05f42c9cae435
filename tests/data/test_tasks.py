"""Tasks: images that carry their own class and index as pixels, an oracle, chi-square tests.

The oracle is Fisher and Yates's shuffle in plain Python, one task at a time, on the same stream of
numbers; the chi-square tests rest on counting all ordered outcomes, which are equally likely. One
hash is a known answer.
"""

import hashlib
import itertools
import time
from collections import Counter

import numpy as np
import pytest
import torch

from metanb.data.image_sets import DataError, ImageSet
from metanb.data.tasks import Tasks, draw_images, drawn_pixels, sample_tasks


def signed(classes: int, per_class: int, channels: int = 1) -> ImageSet:
    """Images of 2x2 pixels: class (high and low byte), index, and 255."""
    images = np.empty((classes, per_class, channels, 2, 2), dtype=np.uint8)
    images[..., 0, 0] = (np.arange(classes) // 256)[:, None, None]
    images[..., 0, 1] = (np.arange(classes) % 256)[:, None, None]
    images[..., 1, 0] = np.arange(per_class)[None, :, None]
    images[..., 1, 1] = 255
    return ImageSet("signed", "train", images, tuple(map(str, range(classes))), "0" * 16)


def read(x: torch.Tensor) -> np.ndarray:
    """Class and index of images [..., C, 2, 2], as [..., 2]."""
    bytes_ = (x[..., 0, :, :] * 255).round().long().numpy()
    return np.stack([bytes_[..., 0, 0] * 256 + bytes_[..., 0, 1], bytes_[..., 1, 0]], axis=-1)


def fingerprint(tasks: Tasks) -> str:
    tensors = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_types_and_scale(channels: int) -> None:
    tasks = sample_tasks(signed(300, 20, channels), 7, 5, 2, 3, np.random.default_rng(0))
    assert len(tasks) == 7
    assert tasks.support_x.shape == (7, 10, channels, 2, 2)
    assert tasks.query_x.shape == (7, 15, channels, 2, 2)
    assert tasks.support_y.shape == (7, 10) and tasks.query_y.shape == (7, 15)
    assert tasks.support_x.dtype == tasks.query_x.dtype == torch.float32
    assert tasks.support_y.dtype == tasks.query_y.dtype == torch.int64
    assert (tasks.support_x[..., 1, 1] == 1).all() and tasks.query_x.min() == 0
    assert tasks.support_x.is_contiguous() and tasks.query_x.is_contiguous()
    # the pixel 100 becomes float32(100) / 255 exactly, in every channel
    hundred = ImageSet(
        "flat", "train", np.full((2, 2, channels, 1, 1), 100, np.uint8), ("a", "b"), "0" * 16
    )
    flat = sample_tasks(hundred, 1, 2, 1, 1, np.random.default_rng(0))
    expected = torch.tensor(100.0) / 255
    assert (flat.support_x == expected).all() and (flat.query_x == expected).all()


@pytest.mark.parametrize(
    ("classes", "per_class", "ways", "shots", "queries"),
    [(4112, 20, 5, 1, 1), (20, 16, 20, 1, 15), (64, 40, 5, 5, 15)],
)
def test_each_task_by_the_class_and_index_of_its_images(
    classes: int, per_class: int, ways: int, shots: int, queries: int
) -> None:
    tasks = sample_tasks(
        signed(classes, per_class), 50, ways, shots, queries, np.random.default_rng(1)
    )
    for t in range(50):
        support = read(tasks.support_x[t])
        query = read(tasks.query_x[t])
        assert not set(map(tuple, support)) & set(map(tuple, query))  # disjoint
        assert len(set(map(tuple, support))) == ways * shots  # no image twice
        assert len(set(map(tuple, query))) == ways * queries
        of_label = {}
        labels = torch.cat([tasks.support_y[t], tasks.query_y[t]]).tolist()
        for (class_, _), label in zip([*support, *query], labels, strict=True):
            # one class per label, in support and query alike
            assert of_label.setdefault(label, class_) == class_
        assert sorted(of_label) == list(range(ways)) and len(set(of_label.values())) == ways
        assert set(Counter(tasks.support_y[t].tolist()).values()) == {shots}
        assert set(Counter(tasks.query_y[t].tolist()).values()) == {queries}


def test_against_a_plain_shuffle_of_the_same_numbers() -> None:
    classes, per_class, ways, shots, queries, n_tasks = 30, 8, 6, 2, 3, 20
    tasks = sample_tasks(
        signed(classes, per_class), n_tasks, ways, shots, queries, np.random.default_rng([3, 1, 4])
    )
    numbers = iter(np.random.default_rng([3, 1, 4]).random(10_000).tolist())

    def shuffle(n: int, k: int) -> list[int]:
        deck = list(range(n))
        for i in range(k):
            j = i + int(next(numbers) * (n - i))
            deck[i], deck[j] = deck[j], deck[i]
        return deck[:k]

    for t in range(n_tasks):
        order = shuffle(classes, ways)
        pairs = [(class_, shuffle(per_class, shots + queries)) for class_ in order]
        assert read(tasks.support_x[t]).tolist() == [[c, i] for c, d in pairs for i in d[:shots]]
        assert read(tasks.query_x[t]).tolist() == [[c, i] for c, d in pairs for i in d[shots:]]
        assert tasks.support_y[t].tolist() == [label for label in range(ways) for _ in range(shots)]
        assert tasks.query_y[t].tolist() == [label for label in range(ways) for _ in range(queries)]


def chi_square(counts: Counter, outcomes: list[tuple[int, ...]]) -> float:
    """The statistic of equally likely outcomes.

    It exceeds 49.73 (24 outcomes) or 43.82 (20 outcomes) with probability 1e-3.
    """
    assert set(counts) == set(outcomes)
    expected = counts.total() / len(outcomes)
    return sum((counts[outcome] - expected) ** 2 for outcome in outcomes) / expected


def test_labels_are_a_uniform_permutation_of_uniform_classes() -> None:
    tasks = sample_tasks(signed(4, 2), 12_000, 3, 1, 1, np.random.default_rng(5))
    by_label = torch.gather(
        torch.from_numpy(read(tasks.support_x)[..., 0]), 1, tasks.support_y.argsort(1)
    )
    counts = Counter(map(tuple, by_label.tolist()))
    assert chi_square(counts, list(itertools.permutations(range(4), 3))) < 49.73


def test_images_are_uniform_ordered_pairs() -> None:
    tasks = sample_tasks(signed(2, 5), 5_000, 2, 1, 1, np.random.default_rng(6))
    indices = [read(x)[..., 1] for x in (tasks.support_x, tasks.query_x)]
    pairs = np.stack(indices, axis=-1).reshape(-1, 2)
    counts = Counter(map(tuple, pairs.tolist()))
    assert chi_square(counts, list(itertools.permutations(range(5), 2))) < 43.82


def test_a_seed_names_the_tasks_for_good() -> None:
    """Known answer: records name their tasks by a seed, so no later version may draw others."""
    first, again, second = (
        sample_tasks(signed(40, 20), 8, 5, 1, 3, np.random.default_rng([seed, 2]))
        for seed in (0, 0, 1)
    )
    assert fingerprint(first) == fingerprint(again) != fingerprint(second)
    assert fingerprint(first)[:16] == "71c0697f6979a476"


def test_fewer_tasks_are_the_first_of_more() -> None:
    few, many = (
        sample_tasks(signed(40, 20), n, 5, 1, 3, np.random.default_rng(7)) for n in (10, 25)
    )
    assert fingerprint(few) == fingerprint(many[:10])


def test_read_only_and_mapped_images(tmp_path) -> None:
    plain = signed(10, 6)
    np.save(tmp_path / "images.npy", plain.images)
    mapped = ImageSet(
        "m", "test", np.load(tmp_path / "images.npy", mmap_mode="r"), plain.classes, plain.digest
    )
    tasks = sample_tasks(mapped, 5, 5, 1, 2, np.random.default_rng(0))
    expected = sample_tasks(plain, 5, 5, 1, 2, np.random.default_rng(0))
    assert fingerprint(tasks) == fingerprint(expected)
    tasks.support_x.zero_()  # a copy: the set is not touched
    assert (mapped.images == plain.images).all()


def test_slices_and_chunks() -> None:
    tasks = sample_tasks(signed(40, 20), 7, 5, 1, 3, np.random.default_rng(8))
    chunks = tasks.split(3)
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    for name in ("support_x", "support_y", "query_x", "query_y"):
        whole = getattr(tasks, name)
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), whole)
        assert torch.equal(getattr(tasks[2:4], name), whole[2:4])
        assert getattr(tasks.to("meta"), name).device.type == "meta"
    with pytest.raises(TypeError, match=r"tasks\[3\]: give a slice"):
        tasks[3]
    with pytest.raises(ValueError, match="size 0: at least 1"):
        tasks.split(0)


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((1, 5, 1, 1), DataError, "5 ways of signed train, which has 4 classes"),
        (
            (1, 4, 2, 2),
            DataError,
            r"2 shots \+ 2 queries of signed train, which has 3 images of class 0",
        ),
        ((0, 4, 1, 1), ValueError, "n_tasks 0: at least 1"),
        ((1, 0, 1, 1), ValueError, "ways 0: at least 1"),
        ((1, 4, 0, 1), ValueError, "shots 0: at least 1"),
        ((1, 4, 1, 0), ValueError, "queries 0: at least 1"),
    ],
)
def test_what_cannot_be_drawn(
    args: tuple[int, int, int, int], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        sample_tasks(signed(4, 3), *args, np.random.default_rng(0))


def test_sampling_is_not_the_bottleneck() -> None:
    """The paper's meta-batch (32 tasks, 5 ways of 4,112 classes at 28x28) takes under 20 ms.

    An iteration of meta-training takes 200.
    """
    pixels = np.zeros((4112, 20, 1, 28, 28), np.uint8)
    omniglot = ImageSet("blank", "train", pixels, tuple(map(str, range(4112))), "0" * 16)
    times = []
    for i in range(20):
        start = time.perf_counter()
        sample_tasks(omniglot, 32, 5, 1, 1, np.random.default_rng(i))
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.02


def test_a_mini_batch_holds_images_of_its_classes_all_equally_often():
    """Chi-square over 20,000 draws of 24 images."""
    # the pixel tells class and image
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4, 1, 1, 1)
    pool = ImageSet("toy", "train", pixels, tuple("abcdef"), "0")
    draw = draw_images(pool, 20_000, np.random.default_rng(0))
    numbers = drawn_pixels(pool, draw).flatten().long()
    assert torch.equal(numbers // 4, torch.from_numpy(draw.labels[0]))
    counts = np.bincount(numbers, minlength=24)
    # 23 degrees of freedom, p = 0.001
    assert ((counts - 20_000 / 24) ** 2 / (20_000 / 24)).sum() < 49.7
    # a seed names the images for good: pair by pair
    uniform = np.random.default_rng(0).random((20_000, 2)).tolist()
    assert numbers.tolist() == [int(a * 6) * 4 + int(b * 4) for a, b in uniform]
