"""The outer loop: one gradient of MAML, regularised or not, or of the finetuning baseline.

MAML is that of Finn et al. (ICML 2017).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metanb.data.tasks import Tasks
from metanb.labels import DATASETS
from metanb.maml.inner_loop import adapt, flatten, logits, losses
from metanb.maml.network import ConvNet
from metanb.maml.regulariser import READINGS, length, unit
from metanb.settings import Settings


class Outcome(NamedTuple):
    """Values of one meta-gradient, by task, run after run; detached."""

    #: [S*T] query losses where the outer loss takes them: at theta~_i, or at theta^_i
    losses: Tensor
    #: [S*T] norm(theta^_i - theta~_i) / norm(theta~_i - theta_s); 0 where no regulariser moves
    moves: Tensor


def meta_gradient(
    net: ConvNet,
    tasks: Tasks,
    lr: float,
    steps: int,
    *,
    first_order: bool,
    adapt_norm: bool,
    chunk: int,
    regulariser: str = "none",
    gamma: float = 0.0,
    other: Tensor | None = None,
    theta: Tensor | None = None,
) -> Outcome:
    """Add the gradient of the mean query loss after adaptation to the `.grad` of theta_s.

    theta_s are the net's parameters; or `theta` [S, P], the weights of S runs side by side. Then
    there are S*T tasks, run after run, and each run's gradient is that of the mean over its own
    tasks: runs do not mix.

    The tasks of each run are computed in chunks, and each chunk's graph is freed before the next is
    built. The sum is the same up to rounding, and the memory is that of one chunk. A regulariser
    needs the mean direction of the whole meta-batch, so it takes a first pass, without a graph.

    Args:
        net: the network; its parameters are theta_s unless `theta` is given.
        tasks: S*T tasks, the meta-batches of the S runs one after the other.
        lr: inner step size.
        steps: inner steps.
        first_order: first-order MAML.
        adapt_norm: whether batch norm's scale and shift take part in the inner loop.
        chunk: tasks of each run at a time.
        regulariser: a key of `metanb.maml.regulariser.READINGS`; that module defines them.
        gamma: its strength.
        other: e, [S, P], each of length 1; only `random` uses it.
        theta: [S, P], differentiable; None: the net's parameters, of one run.

    Raises:
        ValueError: the number of tasks is not a multiple of the number of runs.

    Example:
        >>> import torch
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> x, y = torch.rand(3, 2, 1, 8, 8), torch.arange(2).expand(3, 2)
        >>> tasks = Tasks(x, y, x.flip(3), y)  # the query images are the mirrored support images
        >>> options = {"first_order": False, "adapt_norm": True, "chunk": 2}
        >>> outcome = meta_gradient(net, tasks, lr=0.4, steps=1, **options)
        >>> outcome.losses.shape, net.head.weight.grad.shape
        (torch.Size([3]), torch.Size([2, 4]))
    """
    runs = 1 if theta is None else len(theta)
    if len(tasks) % runs:
        raise ValueError(f"{len(tasks)} tasks for {runs} runs: give as many for each")
    tasks_per_run = len(tasks) // runs
    options = {"adapt_norm": adapt_norm}
    regularise = READINGS[regulariser]

    # First pass, for a regulariser alone: d_mu of each run's whole meta-batch.
    weights = flatten(net).unsqueeze(0) if theta is None else theta
    mean_direction = weights.new_zeros(runs, 0)
    if regulariser != "none":
        mean_direction = _mean_direction(net, weights, tasks, lr, steps, chunk, **options)

    query_losses_by_chunk, moves_by_chunk = [], []
    for columns in _chunks(tasks_per_run, chunk):
        part = _select_tasks(tasks, runs, columns)
        # Expand the weights in each chunk anew, so that its graph ends there and is freed.
        weights = flatten(net).unsqueeze(0) if theta is None else theta
        start = _repeat_for_tasks(weights, len(part))
        # Inner loop: theta~_i.
        adapted = adapt(net, part, lr, steps, first_order=first_order, start=start, **options)
        # Regulariser: theta^_i, or a penalty.
        mean = _directions_for_tasks(mean_direction, len(part))
        random = None if other is None else _directions_for_tasks(other, len(part))
        moved, penalty = regularise(adapted, start, mean, random, gamma)
        # Outer loss of the chunk, divided so that the chunks' gradients sum to that of the mean.
        query_losses = losses(net, moved, part.query_x, part.query_y)
        ((query_losses + penalty).sum() / tasks_per_run).backward()
        with torch.no_grad():
            relative_moves = (moved - adapted).norm(dim=1) / length(adapted - start)[:, 0]
        query_losses_by_chunk.append(query_losses.detach().view(runs, -1))
        moves_by_chunk.append(relative_moves.view(runs, -1))
    return Outcome(
        torch.cat(query_losses_by_chunk, dim=1).flatten(),
        torch.cat(moves_by_chunk, dim=1).flatten(),
    )


def supervised_gradient(net: ConvNet, x: Tensor, y: Tensor, theta: Tensor | None = None) -> Tensor:
    """Add the gradient of one mini-batch's mean cross-entropy to the net's `.grad`s.

    This is the pretraining of the finetuning baseline; the head has an output for every meta-train
    class. With `theta` [S, P], the weights of S runs side by side, each run has a mini-batch of its
    own, and the gradient is added to the `.grad` of the leaf that `theta` comes from.

    Args:
        net: the network.
        x: [n, C, H, W], or [S, n, C, H, W] with `theta`.
        y: [n] classes, or [S, n].
        theta: [S, P], differentiable; None: the net's parameters.

    Returns:
        The loss, detached; or the S losses.
    """
    if theta is None:
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss.detach()
    outputs = logits(net, theta, x)
    losses_by_run = torch.stack(
        [F.cross_entropy(output, classes) for output, classes in zip(outputs, y, strict=True)]
    )
    losses_by_run.sum().backward()
    return losses_by_run.detach()


def chunk_size(settings: Settings, device: torch.device) -> int:
    """Return how many tasks to compute at once: on a GPU all, on a CPU a power of two.

    Small chunks cost time per chunk and make small matrix products. Large ones leave the
    processor's cache. Between them is a flat optimum near a million pixels. The rule does not
    measure times, so that a seed gives the same bits each time.
    """
    if device.type != "cpu":
        return settings.meta_batch
    side = DATASETS[settings.dataset].side
    pixels = settings.ways * (settings.shots + settings.queries) * side**2
    return min(settings.meta_batch, 2 ** int(math.log2(max(1.0, 2**20 / pixels))))


def _mean_direction(
    net: ConvNet, theta: Tensor, tasks: Tasks, lr: float, steps: int, chunk: int, adapt_norm: bool
) -> Tensor:
    """d_mu of each run's whole meta-batch, [S, P], without a graph."""
    runs = len(theta)
    theta = theta.detach()
    directions = []
    with torch.no_grad():
        for columns in _chunks(len(tasks) // runs, chunk):
            part = _select_tasks(tasks, runs, columns)
            start = _repeat_for_tasks(theta, len(part))
            adapted = adapt(
                net, part, lr, steps, first_order=True, adapt_norm=adapt_norm, start=start
            )
            directions.append(unit(adapted - start).unflatten(0, (runs, -1)))
        return torch.cat(directions, dim=1).mean(1)


def _chunks(tasks_per_run: int, chunk: int) -> list[slice]:
    """Each run's tasks in chunks, the last one perhaps smaller."""
    firsts = range(0, tasks_per_run, chunk)
    return [slice(first, min(first + chunk, tasks_per_run)) for first in firsts]


def _select_tasks(tasks: Tasks, runs: int, columns: slice) -> Tasks:
    """Some of the tasks of each run, run after run."""
    if runs == 1:
        return tasks[columns]
    return Tasks(*(x.unflatten(0, (runs, -1))[:, columns].flatten(0, 1) for x in tasks.tensors()))


def _repeat_for_tasks(rows: Tensor, n_tasks: int) -> Tensor:
    """Each run's row of [S, P] for each of its tasks, [n_tasks, P]; a view where S is 1."""
    runs, size = rows.shape
    return rows.unsqueeze(1).expand(runs, n_tasks // runs, size).reshape(n_tasks, size)


def _directions_for_tasks(directions: Tensor, n_tasks: int) -> Tensor:
    """Each run's direction of [S, P] for each of its tasks, [n_tasks, P]; where S is 1, [P]."""
    return directions[0] if len(directions) == 1 else _repeat_for_tasks(directions, n_tasks)
