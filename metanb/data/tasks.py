"""Few-shot tasks: which classes, which images, which labels, drawn from any image set by a seed."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from metanb.data.image_sets import DataError, ImageSet


@dataclass(frozen=True)
class Tasks:
    """A batch of T tasks of N classes ("ways"), with K support and Q query images a class ("shots", "queries").

    A class's label is its place in a random order of the task's classes; images come label by
    label.
    """

    support_x: torch.Tensor  #: [T, N*K, C, H, W] float32 in [0, 1]
    support_y: torch.Tensor  #: [T, N*K] int64, 0..N-1
    query_x: torch.Tensor  #: [T, N*Q, C, H, W] float32 in [0, 1]
    query_y: torch.Tensor  #: [T, N*Q] int64, 0..N-1

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, part: slice) -> "Tasks":
        """Some of the tasks, as views; a slice only, so that the task dimension stays."""
        if not isinstance(part, slice):
            raise TypeError(f"tasks[{part!r}]: give a slice, such as tasks[0:1]")
        return Tasks(*(tensor[part] for tensor in self.tensors()))

    def to(self, device: torch.device | str) -> "Tasks":
        """The tasks on another device."""
        return Tasks(*(tensor.to(device) for tensor in self.tensors()))

    def split(self, size: int) -> list["Tasks"]:
        """Chunks of `size` tasks, in order, the last one perhaps smaller."""
        if size < 1:
            raise ValueError(f"size {size}: at least 1 task a chunk")
        return [self[start : start + size] for start in range(0, len(self), size)]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Support images and labels, query images and labels."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Draw:
    """Which images some tasks, or a mini-batch, are made of: numbers, so that the images may lie on another device.

    An image's number is its class times the images per class, plus its place in the class.
    """

    images: (
        np.ndarray
    )  #: [T, n] int64 image numbers: a task's support images, then its query images
    labels: np.ndarray  #: [T, n] int64: an image's label in its task; in a mini-batch its class


def draw_tasks(
    images: ImageSet, n_tasks: int, ways: int, shots: int, queries: int, rng: np.random.Generator
) -> Draw:
    """The images of T tasks, [T, N*K + N*Q]; arguments and errors are those of `sample_tasks`."""
    for name, value in (
        ("n_tasks", n_tasks),
        ("ways", ways),
        ("shots", shots),
        ("queries", queries),
    ):
        if value < 1:
            raise ValueError(f"{name} {value}: at least 1")
    n_classes, per_class = images.images.shape[:2]
    drawn = shots + queries
    if ways > n_classes:
        raise DataError(
            f"{ways} ways of {images.name} {images.split}, which has {n_classes} classes; ask for fewer"
        )
    if drawn > per_class:
        raise DataError(
            f"{shots} shots + {queries} queries of {images.name} {images.split}, which has {per_class} images a class; "
            "ask for fewer"
        )
    uniform = rng.random((n_tasks, ways * (1 + drawn)))
    classes = _draw(uniform[:, :ways], n_classes)  # [T, N]: the label of classes[t, j] is j
    members = _draw(uniform[:, ways:].reshape(-1, drawn), per_class).reshape(n_tasks, ways, drawn)
    numbers = classes[:, :, None].astype(np.int64) * per_class + members  # [T, N, K + Q]
    support, query = (part.reshape(n_tasks, -1) for part in np.split(numbers, [shots], axis=2))
    labels = np.concatenate(
        [np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)]
    )
    return Draw(np.concatenate([support, query], axis=1), np.tile(labels, (n_tasks, 1)))


def draw_images(images: ImageSet, n: int, rng: np.random.Generator) -> Draw:
    """The images of one mini-batch, [1, n], with replacement, all alike likely, from one `rng.random((n, 2))`."""
    counts = np.array(images.images.shape[:2])
    classes, members = (rng.random((n, 2)) * counts).astype(np.int64).T
    return Draw((classes * counts[1] + members)[None], classes[None])


def sample_tasks(
    images: ImageSet, n_tasks: int, ways: int, shots: int, queries: int, rng: np.random.Generator
) -> Tasks:
    """Draw tasks; within a task no class, and within a class no image comes twice: support and query are disjoint.

    All randomness is one `rng.random((n_tasks, ...))`, a task's numbers side by side. So equally
    seeded generators give the same tasks, and of two such calls the one for fewer tasks gives the
    first of the other's. A fixed set of meta-test tasks is `sample_tasks(test, 60, ...,
    np.random.default_rng([seed, stream]))`.

    Args:
        images: the set to draw from.
        n_tasks: T.
        ways: N, classes a task.
        shots: K, support images a class.
        queries: Q, query images a class.
        rng: the generator.

    Raises:
        DataError: the set has fewer than `ways` classes, or fewer than `shots + queries` images a
            class.
        ValueError: a count below 1.
    """
    draw = draw_tasks(images, n_tasks, ways, shots, queries, rng)
    pixels = scale_pixels(drawn_pixels(images, draw))
    return split_into_tasks(pixels, torch.from_numpy(draw.labels), ways * shots)


def drawn_pixels(images: ImageSet, draw: Draw) -> torch.Tensor:
    """The images of a draw, uint8 [T, n, C, H, W]."""
    classes, members = np.divmod(draw.images, images.images.shape[1])
    return torch.from_numpy(images.images[classes, members])


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Images as networks read them: uint8 -> float32 in [0, 1].

    On a GPU, too, a true division: the same bits.
    """
    return pixels.to(torch.float32).div_(torch.full((), 255.0, device=pixels.device))


def split_into_tasks(x: torch.Tensor, labels: torch.Tensor, n_support: int) -> Tasks:
    """Tasks of images x [T, n, C, H, W] and labels [T, n], of which the first `n_support` are the support set."""
    parts = (
        z[:, place]
        for place in (slice(None, n_support), slice(n_support, None))
        for z in (x, labels)
    )
    return Tasks(*(part.contiguous() for part in parts))


def _draw(uniform: np.ndarray, n: int) -> np.ndarray:
    """Draws of k from 0..n-1 without replacement, every ordered outcome equally likely: k Fisher-Yates steps a row.

    Written out, since the streams of numpy's own `choice` and `permuted` may change between
    versions: a seed in a record should go on naming the same tasks.

    Args:
        uniform: numbers in [0, 1), [rows, k].
        n: what to draw from.
    """
    rows = np.arange(len(uniform))
    pool = np.tile(np.arange(n, dtype=np.int32), (len(uniform), 1))
    for i in range(uniform.shape[1]):
        j = i + (uniform[:, i] * (n - i)).astype(np.int32)
        here = pool[:, i].copy()
        pool[:, i] = pool[rows, j]
        pool[rows, j] = here
    return pool[:, : uniform.shape[1]]
