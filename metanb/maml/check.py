"""What the inner loop asks of a network of one's own: above all, that it keeps tasks apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.maml.inner_loop import Adapts, Loss, adapt, flatten, logits
from metanb.maml.per_task import NetworkError

_RANDOM = (
    "{} answers one task in two ways: it draws random numbers, as dropout does in training mode; "
    "call .eval() on it"
)


def check_outputs(net: nn.Module, image_shape: tuple[int, ...], outputs: int) -> None:
    """Try a network that was built for a run: are its outputs as many as it was asked for?

    Args:
        net: the untrained network.
        image_shape: channels, height, width.
        outputs: of the head.

    Raises:
        NetworkError: outputs are of another number, not finite, or drawn at random; the network
            changes a buffer, which no checkpoint would hold; or it has `takes_tasks = True` and
            answers otherwise without the task dimension.

    Example:
        >>> check_outputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), (1, 2, 2), 5)
    """
    name = type(net).__name__
    images = torch.rand(1, 4, *image_shape)
    weights = flatten(net).detach()[None]
    buffers = _copy_buffers(net)
    with torch.no_grad():
        answer, again = (logits(net, weights, images)[0] for _ in range(2))
    if answer.shape != (4, outputs):
        raise NetworkError(
            f"{name} gives outputs of shape {list(answer.shape)} for 4 images: it needs "
            f"[4, {outputs}], the number of outputs that its builder is called with"
        )
    _require_finite(name, answer)
    if not torch.equal(answer, again):
        raise NetworkError(_RANDOM.format(name))
    _require_same_without_tasks(net, images[0])
    _require_unchanged(net, buffers)


def _require_same_without_tasks(net: nn.Module, images: Tensor) -> None:
    """Raise NetworkError if a network that takes tasks does not take one batch of images as well.

    Finetuning trains it in that form, and the size of its layers is measured there.

    Args:
        net: the network; only one with `takes_tasks = True` is tried.
        images: [B, ...].
    """
    if not getattr(net, "takes_tasks", False):
        return
    name = type(net).__name__
    remedy = (
        "with takes_tasks = True it also has to take its own weights and images [B, ...]: count "
        "dimensions from the last, or leave takes_tasks out"
    )
    with _explained(f"{name} takes tasks, but not images alone", remedy), torch.no_grad():
        answer = logits(net, flatten(net)[None], images[None])[0]
        plain = net(images)
    tolerance = torch.finfo(answer.dtype).eps ** 0.5 * float(answer.abs().max())
    if plain.shape != answer.shape or not float((plain - answer).abs().max()) <= tolerance:
        raise NetworkError(f"{name} answers images alone otherwise than as one task; {remedy}")


@contextmanager
def _explained(problem: str, remedy: str) -> Iterator[None]:
    """Turn torch's error in the block, such as one of shapes, into a NetworkError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise NetworkError(f"{problem} ({reason}); {remedy}") from error


def _copy_buffers(net: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's buffers, by name, without the sparse ones."""
    buffers = net.named_buffers()
    return {name: b.detach().clone() for name, b in buffers if b.layout == torch.strided}


def _require_unchanged(net: nn.Module, before: dict[str, Tensor]) -> None:
    """Raise NetworkError if a buffer is not what it was."""
    now = dict(net.named_buffers())
    for name, old in before.items():
        if name not in now or not same_values(now[name], old):
            raise NetworkError(
                f"{type(net).__name__} changes its buffer {name!r} in forward, which all tasks "
                "would share and no checkpoint holds: keep it constant in training, or call "
                ".eval() on its layer"
            )


def same_values(tensor: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors have one shape and equal values; a NaN is equal to a NaN."""
    if tensor.shape != other.shape:
        return False
    return bool(((tensor == other) | ((tensor != tensor) & (other != other))).all())


def _require_finite(name: str, answer: Tensor) -> None:
    if not answer.isfinite().all():
        raise NetworkError(
            f"{name} gives outputs that are not finite: look for a division or a log"
        )


def check_network(
    net: nn.Module,
    tasks: Tasks,
    lr: float = 0.01,
    steps: int = 1,
    *,
    adapts: Adapts = "all",
    inner_loss: Loss = "mean",
) -> float:
    """Adapt tasks together and apart, and return how far the results differ.

    Args:
        net: the network.
        tasks: two tasks or more. A wrong broadcast over images hides unless there are as many of
            them as a task has images.
        lr: step size of the inner loop.
        steps: inner steps.
        adapts: what adapts, as in `adapt`.
        inner_loss: as in `adapt`.

    Returns:
        The largest relative difference of the query outputs: about the rounding error.

    Raises:
        NetworkError: tasks mix; outputs are not finite; the network answers at random, changes a
            buffer, or has `takes_tasks = True` and answers otherwise without the task dimension; or
            it cannot adapt, see `adapt`.
        ValueError: fewer than two tasks.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x, y = torch.rand(2, 6, 4), torch.arange(6).remainder(2).expand(2, 6)
        >>> check_network(net, Tasks(x, y, x, y)) < 1e-5
        True
    """
    if len(tasks) < 2:
        raise ValueError(f"{len(tasks)} tasks: give two, to adapt them together and apart")

    def answer(part: Tasks) -> Tensor:
        adapted = adapt(net, part, lr, steps, adapts=adapts, inner_loss=inner_loss).detach()
        with torch.no_grad():
            return logits(net, adapted, part.query_x)

    buffers = _copy_buffers(net)
    apart = torch.cat([answer(tasks[i : i + 1]) for i in range(len(tasks))])
    name = type(net).__name__
    remedy = (
        "with takes_tasks = True each task's weights [T, ...] may meet its own images [T, B, ...] "
        "alone: look for a broadcast over images, or leave takes_tasks out"
    )
    with _explained(f"{name} takes one task, but not several", remedy):
        together = answer(tasks)
    scale = float(apart.abs().max().clamp_min(torch.finfo(apart.dtype).tiny))
    tolerance = torch.finfo(apart.dtype).eps ** 0.5
    _require_finite(name, apart)
    if float((answer(tasks[0:1]) - apart[:1]).abs().max()) > tolerance * scale:
        raise NetworkError(_RANDOM.format(name))
    _require_same_without_tasks(net, tasks.query_x[0])
    _require_unchanged(net, buffers)
    difference = float((together - apart).abs().max()) / scale
    if not difference <= tolerance:
        raise NetworkError(
            f"{name} mixes tasks: adapted together and apart, outputs differ by {difference:.2g} "
            f"of their size; {remedy}"
        )
    return difference
