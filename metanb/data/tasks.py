"""Few-shot tasks: a seed draws their classes, images and labels from any image set."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from metanb.data.image_sets import DataError, ImageSet


@dataclass(frozen=True)
class Tasks:
    """A batch of T tasks of N classes (ways), with K support and Q query images per class.

    K are the shots, Q the queries. The label of a class is its place in a random order of the
    task's classes. Images come label by label.
    """

    support_x: torch.Tensor  #: [T, N*K, C, H, W] float32 in [0, 1]
    support_y: torch.Tensor  #: [T, N*K] int64, 0..N-1
    query_x: torch.Tensor  #: [T, N*Q, C, H, W] float32 in [0, 1]
    query_y: torch.Tensor  #: [T, N*Q] int64, 0..N-1

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, part: slice) -> "Tasks":
        """Select tasks, as views; by a slice alone, so that the task dimension stays."""
        if not isinstance(part, slice):
            raise TypeError(f"tasks[{part!r}]: give a slice, such as tasks[0:1]")
        return Tasks(*(tensor[part] for tensor in self.tensors()))

    def to(self, device: torch.device | str) -> "Tasks":
        """Copy the tasks to another device."""
        return Tasks(*(tensor.to(device) for tensor in self.tensors()))

    def split(self, size: int) -> list["Tasks"]:
        """Split into chunks of `size` tasks, in order; the last one may be smaller."""
        if size < 1:
            raise ValueError(f"size {size}: at least 1 task per chunk")
        return [self[start : start + size] for start in range(0, len(self), size)]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Support images and labels, query images and labels."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Draw:
    """The images of some tasks, or of a mini-batch, as numbers: the pixels may be on any device.

    An image's number is its class times the images per class, plus its place in the class.
    """

    #: [T, n] int64 image numbers: a task's support images, then its query images
    images: np.ndarray
    #: [T, n] int64: the label of each image in its task; in a mini-batch its class
    labels: np.ndarray


def draw_tasks(
    images: ImageSet, n_tasks: int, ways: int, shots: int, queries: int, rng: np.random.Generator
) -> Draw:
    """Draw the images of T tasks, [T, N*K + N*Q]; arguments and errors as for `sample_tasks`."""
    counts = {"n_tasks": n_tasks, "ways": ways, "shots": shots, "queries": queries}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} {count}: at least 1")
    n_classes, per_class = images.images.shape[:2]
    counts_of_classes = np.array(images.counts)
    drawn = shots + queries
    if ways > n_classes:
        raise DataError(
            f"{ways} ways of {images.name} {images.split}, which has {n_classes} classes; "
            "ask for fewer"
        )
    smallest = int(counts_of_classes.argmin())
    if drawn > counts_of_classes[smallest]:
        raise DataError(
            f"{shots} shots + {queries} queries of {images.name} {images.split}, which has "
            f"{counts_of_classes[smallest]} images of class {images.classes[smallest]}; ask for "
            "fewer"
        )
    # The classes of each task, [T, N]: the label of classes[t, j] is j.
    uniform = rng.random((n_tasks, ways * (1 + drawn)))
    classes = _draw_without_replacement(uniform[:, :ways], n_classes)
    # K + Q images of each class, as numbers, [T, N, K + Q].
    sizes = counts_of_classes[classes].reshape(-1)
    members = _draw_without_replacement(uniform[:, ways:].reshape(-1, drawn), sizes)
    members = members.reshape(n_tasks, ways, drawn)
    numbers = classes[:, :, None].astype(np.int64) * per_class + members
    # First the support images of all classes, then the query images; both label by label.
    support = numbers[:, :, :shots].reshape(n_tasks, -1)
    query = numbers[:, :, shots:].reshape(n_tasks, -1)
    support_labels = np.repeat(np.arange(ways), shots)
    query_labels = np.repeat(np.arange(ways), queries)
    labels = np.tile(np.concatenate([support_labels, query_labels]), (n_tasks, 1))
    return Draw(np.concatenate([support, query], axis=1), labels)


def draw_images(images: ImageSet, n: int, rng: np.random.Generator) -> Draw:
    """Draw the images of one mini-batch, [1, n], with replacement: a class, then one of its images.

    All randomness is one `rng.random((n, 2))`.
    """
    uniform = rng.random((n, 2))
    n_classes, per_class = images.images.shape[:2]
    classes = (uniform[:, 0] * n_classes).astype(np.int64)
    members = (uniform[:, 1] * np.array(images.counts)[classes]).astype(np.int64)
    return Draw((classes * per_class + members)[None], classes[None])


def sample_tasks(
    images: ImageSet, n_tasks: int, ways: int, shots: int, queries: int, rng: np.random.Generator
) -> Tasks:
    """Draw tasks without replacement: all classes of a task differ, and all images of a class.

    Hence support and query sets are disjoint. All randomness is one `rng.random((n_tasks, ...))`,
    a task's numbers side by side. So equally seeded generators give the same tasks, and a call for
    fewer tasks gives the first tasks of a call for more. A fixed set of meta-test tasks is
    `sample_tasks(test, 60, ..., np.random.default_rng([seed, stream]))`.

    Args:
        images: the set to draw from.
        n_tasks: T.
        ways: N, classes per task.
        shots: K, support images per class.
        queries: Q, query images per class.
        rng: the generator.

    Raises:
        DataError: the set has fewer than `ways` classes, or fewer than `shots + queries` images per
            class.
        ValueError: a count below 1.

    Example:
        >>> pixels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4, 1, 1, 1)
        >>> images = ImageSet("dots", "train", pixels, tuple("abcdef"), digest="")
        >>> tasks = sample_tasks(images, 2, 3, 1, 2, np.random.default_rng(0))
        >>> tasks.support_x.shape, tasks.query_x.shape
        (torch.Size([2, 3, 1, 1, 1]), torch.Size([2, 6, 1, 1, 1]))
        >>> tasks.query_y[0]
        tensor([0, 0, 1, 1, 2, 2])
    """
    draw = draw_tasks(images, n_tasks, ways, shots, queries, rng)
    pixels = scale_pixels(drawn_pixels(images, draw))
    return split_into_tasks(pixels, torch.from_numpy(draw.labels), ways * shots)


def drawn_pixels(images: ImageSet, draw: Draw) -> torch.Tensor:
    """The images of a draw, uint8 [T, n, C, H, W]."""
    classes, members = np.divmod(draw.images, images.images.shape[1])
    return torch.from_numpy(images.images[classes, members])


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Scale images for networks: uint8 -> float32 in [0, 1].

    It is a true division on a GPU, too, so every device gives the same bits.
    """
    return pixels.to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def split_into_tasks(x: torch.Tensor, labels: torch.Tensor, n_support: int) -> Tasks:
    """Split images x [T, n, C, H, W] and labels [T, n] into support and query sets.

    The first `n_support` images of each task are its support set.
    """
    return Tasks(
        support_x=x[:, :n_support].contiguous(),
        support_y=labels[:, :n_support].contiguous(),
        query_x=x[:, n_support:].contiguous(),
        query_y=labels[:, n_support:].contiguous(),
    )


def _draw_without_replacement(uniform: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Draw k numbers of 0..n-1 per row, [rows, k], every ordered outcome equally likely.

    A row takes k steps of a Fisher-Yates shuffle. They are written out, since the streams of
    numpy's own `choice` and `permuted` may change between versions: a seed in a record must give
    the same tasks for good.

    Args:
        uniform: numbers in [0, 1), [rows, k].
        n: how many numbers to draw from; or how many for each row, [rows].
    """
    k = uniform.shape[1]
    rows = np.arange(len(uniform))
    pool = np.tile(np.arange(np.max(n), dtype=np.int32), (len(uniform), 1))
    for i in range(k):
        # Swap place i with a random place from i on.
        j = i + (uniform[:, i] * (n - i)).astype(np.int32)
        pool[:, i], pool[rows, j] = pool[rows, j], pool[:, i].copy()
    return pool[:, :k]
