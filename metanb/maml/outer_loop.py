"""The outer loop: one gradient of MAML (Finn et al.

2017), regularised or not, or of the finetuning baseline.
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
    """What one meta-gradient saw, by task, run after run; detached."""

    losses: (
        Tensor  #: [S*T] query losses where the outer loss takes them: at theta~_i, or at theta^_i
    )
    moves: Tensor  #: [S*T] norm(theta^_i - theta~_i) / norm(theta~_i - theta_s); 0 where no regulariser moves


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

    theta_s are the net's parameters; or `theta` [S, P], the weights of S runs side by side. Their
    tasks come run after run, S times T of them. Each run's gradient is that of the mean over its
    own tasks: runs do not mix.

    The tasks of each run go through in chunks, each chunk's graph freed before the next is built.
    The sum is the same up to rounding, and the memory is that of one chunk. A regulariser needs the
    mean direction of the whole meta-batch, so it takes a first pass, without a graph.

    Args:
        net: the network; its parameters are theta_s unless `theta` is given.
        tasks: S*T tasks, the meta-batches of the S runs one after the other.
        lr: inner step size.
        steps: inner steps.
        first_order: first-order MAML.
        adapt_norm: whether batch norm's scale and shift take part in the inner loop.
        chunk: tasks of each run at a time.
        regulariser: a key of `metanb.maml.regulariser.READINGS`, where their definitions stand.
        gamma: its strength.
        other: e, [S, P], each of length 1: for `random` alone.
        theta: [S, P], differentiable; None: the net's parameters, of one run.

    Raises:
        ValueError: the tasks are not as many for each run.

    Example:
        >>> import numpy as np, torch
        >>> from metanb.data import image_sets, tasks
        >>> from metanb.maml.network import ConvNet
        >>> _ = torch.manual_seed(0)
        >>> images = image_sets.ImageSet(
        ...     "noise", "train", np.random.default_rng(0).integers(0, 256, (9, 4, 1, 28, 28), "uint8"),
        ...     tuple("abcdefghi"), "")
        >>> batch = tasks.sample_tasks(images, 4, 5, 1, 1, np.random.default_rng(0))
        >>> net = ConvNet((1, 28, 28), 5, filters=8)
        >>> outcome = meta_gradient(net, batch, 0.4, 1, first_order=False, adapt_norm=True, chunk=2)
        >>> outcome.losses.shape, net.head.weight.grad.shape
        (torch.Size([4]), torch.Size([5, 8]))
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
        part = _of_each_run(tasks, runs, columns)
        # Expand the weights in each chunk anew, so that its graph ends there and is freed.
        weights = flatten(net).unsqueeze(0) if theta is None else theta
        start = _for_tasks(weights, len(part))
        # Inner loop: theta~_i.
        adapted = adapt(net, part, lr, steps, first_order=first_order, start=start, **options)
        # Regulariser: theta^_i, or a penalty.
        mean = _shared(mean_direction, len(part))
        random = None if other is None else _shared(other, len(part))
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


def _chunks(per_run: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, per_run)) for first in range(0, per_run, chunk)]


def _of_each_run(tasks: Tasks, runs: int, chosen: slice) -> Tasks:
    """Some of the tasks of each run, run after run."""
    if runs == 1:
        return tasks[chosen]
    return Tasks(*(x.unflatten(0, (runs, -1))[:, chosen].flatten(0, 1) for x in tasks.tensors()))


def _for_tasks(rows: Tensor, n_tasks: int) -> Tensor:
    """Each run's row, [S, P], for each of its tasks, [n_tasks, P]; a view where there is one run."""
    runs, size = rows.shape
    return rows.unsqueeze(1).expand(runs, n_tasks // runs, size).reshape(n_tasks, size)


def supervised_gradient(net: ConvNet, x: Tensor, y: Tensor, theta: Tensor | None = None) -> Tensor:
    """Finetuning's pretraining: add the gradient of the mean cross-entropy of one mini-batch to the net's `.grad`s.

    The head has an output for every meta-train class. With `theta` [S, P], the weights of S runs
    side by side, each has a mini-batch of its own, and the gradient goes to what `theta` is made
    of.

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
    each = torch.stack(
        [F.cross_entropy(output, classes) for output, classes in zip(outputs, y, strict=True)]
    )
    each.sum().backward()
    return each.detach()


def chunk_size(settings: Settings, device: torch.device) -> int:
    """How many tasks go through the network at once: on a GPU all, on a CPU a power of two.

    Few tasks leave a fixed cost a chunk and small matrix products, many leave the processor's
    cache; between is a flat optimum near a million pixels. A rule rather than a timing, so that a
    seed gives the same bits each time.
    """
    if device.type != "cpu":
        return settings.meta_batch
    side = DATASETS[settings.dataset].side
    pixels = settings.ways * (settings.shots + settings.queries) * side**2
    return min(settings.meta_batch, 2 ** int(math.log2(max(1.0, 2**20 / pixels))))


def _shared(directions: Tensor, n_tasks: int) -> Tensor:
    """Each run's direction, [S, P], for each of its tasks; of one run [P], the same for all."""
    return directions[0] if len(directions) == 1 else _for_tasks(directions, n_tasks)


def _mean_direction(
    net: ConvNet, theta: Tensor, tasks: Tasks, lr: float, steps: int, chunk: int, adapt_norm: bool
) -> Tensor:
    """d_mu of each run's whole meta-batch, [S, P], without a graph."""
    runs, theta = len(theta), theta.detach()
    directions = []
    with torch.no_grad():
        for chosen in _chunks(len(tasks) // runs, chunk):
            part = _of_each_run(tasks, runs, chosen)
            start = _for_tasks(theta, len(part))
            adapted = adapt(
                net, part, lr, steps, first_order=True, adapt_norm=adapt_norm, start=start
            )
            directions.append(unit(adapted - start).unflatten(0, (runs, -1)))
        return torch.cat(directions, dim=1).mean(1)
