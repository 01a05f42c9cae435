"""The outer loop: one gradient of MAML, regularised or not, or of the finetuning baseline.

MAML is that of Finn et al. (ICML 2017).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.maml.inner_loop import Adapts, Loss, adapt, flatten, logits, losses, starting_head
from metanb.maml.regulariser import FIRST_PASS, READINGS, Chunk, length
from metanb.settings import Settings


class Outcome(NamedTuple):
    """Values of one meta-gradient, by task, run after run; detached."""

    #: [S*T] query losses where the outer loss takes them: at theta~_i, or at theta^_i
    losses: Tensor
    #: [S*T] norm(theta^_i - theta~_i) / norm(theta~_i - theta_s); 0 where no regulariser moves
    moves: Tensor


def meta_gradient(
    net: nn.Module,
    tasks: Tasks,
    lr: float | Tensor,
    steps: int,
    *,
    first_order: bool,
    chunk: int,
    adapts: Adapts = "all",
    inner_loss: Loss = "mean",
    inner_head: str = "learnt",
    regulariser: str = "none",
    gamma: float = 0.0,
    direction: Tensor | None = None,
    theta: Tensor | None = None,
) -> Outcome:
    """Add the gradient of the mean query loss after adaptation to the `.grad` of theta_s.

    theta_s are the net's parameters; or `theta` [S, P], the weights of S runs side by side. Then
    there are S*T tasks, run after run, and each run's gradient is that of the mean over its own
    tasks: runs do not mix.

    The tasks of each run are computed in chunks, and each chunk's graph is freed before the next is
    built. The sum is the same up to rounding, and the memory is that of one chunk. A regulariser
    that needs to know the whole meta-batch takes a first pass, without a graph.

    Args:
        net: the network; its parameters are theta_s unless `theta` is given.
        tasks: S*T tasks, the meta-batches of the S runs one after the other.
        lr: inner step size.
        steps: inner steps.
        first_order: first-order MAML.
        chunk: tasks of each run at a time.
        adapts: which parameters the inner loop adapts, see `select_parameters`.
        inner_loss: of the support set, see `task_losses`. The query loss is the mean
            cross-entropy, or the function if this is one.
        inner_head: the head that each inner loop starts from, see `starting_head`.
        regulariser: a key of `metanb.maml.regulariser.READINGS`; that module defines them.
        gamma: its strength.
        direction: e, [S, P], each of length 1; only `random` uses it.
        theta: [S, P], differentiable; None: the net's parameters, of one run.

    Raises:
        ValueError: the number of tasks is not a multiple of the number of runs; an unknown
            regulariser, or one without its strength or direction; and as `adapt` does.

    Example:
        >>> import torch
        >>> from metanb.maml.network import ConvNet
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> x, y = torch.rand(3, 2, 1, 8, 8), torch.arange(2).expand(3, 2)
        >>> tasks = Tasks(x, y, x.flip(3), y)  # the query images are the mirrored support images
        >>> outcome = meta_gradient(net, tasks, lr=0.4, steps=1, first_order=False, chunk=2)
        >>> outcome.losses.shape, net.head.weight.grad.shape
        (torch.Size([3]), torch.Size([2, 4]))
    """
    runs = 1 if theta is None else len(theta)
    if len(tasks) % runs:
        raise ValueError(f"{len(tasks)} tasks for {runs} runs: give as many for each")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: at least 1 task at a time")
    _check_regulariser(regulariser, gamma, direction, first_order)
    tasks_per_run = len(tasks) // runs
    regularise = READINGS[regulariser]
    learns = _which_learn(net, tasks.support_x.device)
    if direction is not None and learns is not None:
        direction = torch.where(learns, direction, 0.0)

    def adapt_chunk(part: Tasks, start: Tensor, first_order: bool) -> Tensor:
        options: dict[str, Any] = {"adapts": adapts, "inner_loss": inner_loss, "start": start}
        return adapt(net, part, lr, steps, first_order=first_order, **options)

    def expand_weights() -> Tensor:
        """The weights where the inner loop starts, [S, P], in a graph of their own."""
        weights = flatten(net).unsqueeze(0) if theta is None else _without_frozen(net, theta)
        return starting_head(net, weights, inner_head)

    # First pass, for a regulariser that has to know the whole meta-batch of each run.
    weights = expand_weights()
    mean_direction = weights.new_zeros(runs, 0)
    if summarise := FIRST_PASS.get(regulariser):
        mean_direction = summarise(_displacements(weights, tasks, chunk, adapt_chunk))

    outer_loss = inner_loss if callable(inner_loss) else "mean"
    query_losses_by_chunk, moves_by_chunk = [], []
    for columns in _chunks(tasks_per_run, chunk):
        part = _select_tasks(tasks, runs, columns)
        # Expand the weights in each chunk anew, so that its graph ends there and is freed.
        start = _repeat_for_tasks(expand_weights(), len(part))
        # Inner loop: theta~_i.
        adapted = adapt_chunk(part, start, first_order)
        # Regulariser: theta^_i, a penalty, or a weight.
        support_loss, query_loss = (
            _without_slope(partial(losses, net, x=x, y=y, loss=outer_loss), learns)
            for x, y in ((part.support_x, part.support_y), (part.query_x, part.query_y))
        )
        moved, penalty, weight = regularise(
            Chunk(
                adapted,
                start,
                _directions_for_tasks(mean_direction, len(part)),
                None if direction is None else _directions_for_tasks(direction, len(part)),
                gamma,
                support_loss,
                query_loss,
            )
        )
        if learns is not None:
            moved = torch.where(learns, moved, adapted)  # no regulariser moves what is frozen
        # Outer loss of the chunk, divided so that the chunks' gradients sum to that of the mean.
        query_losses = query_loss(moved)
        ((weight * query_losses + penalty).sum() / tasks_per_run).backward()
        with torch.no_grad():
            relative_moves = (moved - adapted).norm(dim=1) / length(adapted - start)[:, 0]
        query_losses_by_chunk.append(query_losses.detach().view(runs, -1))
        moves_by_chunk.append(relative_moves.view(runs, -1))
    return Outcome(
        torch.cat(query_losses_by_chunk, dim=1).flatten(),
        torch.cat(moves_by_chunk, dim=1).flatten(),
    )


def supervised_gradient(
    net: nn.Module, x: Tensor, y: Tensor, theta: Tensor | None = None
) -> Tensor:
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
    outputs = logits(net, _without_frozen(net, theta), x)
    losses_by_run = torch.stack(
        [F.cross_entropy(output, classes) for output, classes in zip(outputs, y, strict=True)]
    )
    losses_by_run.sum().backward()
    return losses_by_run.detach()


def chunk_size(settings: Settings, sides: Sequence[int], device: torch.device) -> int:
    """Return how many tasks to compute at once: on a GPU all, on a CPU a power of two.

    `sides` are the images' height and width.

    Small chunks cost time per chunk and make small matrix products. Large ones leave the
    processor's cache. Between them is a flat optimum near a million pixels. The rule does not
    measure times, so that a seed gives the same bits each time.
    """
    if device.type != "cpu":
        return settings.meta_batch
    pixels = settings.ways * (settings.shots + settings.queries) * math.prod(sides)
    return min(settings.meta_batch, 2 ** int(math.log2(max(1.0, 2**20 / pixels))))


def _check_regulariser(
    regulariser: str, gamma: float, direction: Tensor | None, first_order: bool
) -> None:
    """Raise ValueError for a regulariser that is unknown, or that would have no effect."""
    if regulariser not in READINGS:
        raise ValueError(f"regulariser is {regulariser!r}: use one of {', '.join(READINGS)}")
    if (regulariser == "none") != (gamma == 0) or not 0 <= gamma < math.inf:
        raise ValueError(
            f"regulariser is {regulariser!r} with gamma {gamma}: give a regulariser and a gamma "
            "above 0"
        )
    if regulariser == "random" and direction is None:
        raise ValueError("regulariser is 'random' without a direction: give direction, [S, P]")
    if first_order and regulariser in ("through", "outer"):
        raise ValueError(
            f"regulariser is {regulariser!r}, which has no effect in first order: use 'adapted' or "
            "'random'"
        )


def _without_frozen(net: nn.Module, theta: Tensor) -> Tensor:
    """Theta [S, P], differentiable by the parameters that are not frozen alone."""
    learns = _which_learn(net, theta.device)
    return theta if learns is None else torch.where(learns, theta, theta.detach())


def _which_learn(net: nn.Module, device: torch.device) -> Tensor | None:
    """Which of the net's parameters are not frozen, [P]; None: all of them."""
    if all(p.requires_grad for p in net.parameters()):
        return None
    learns = [torch.full((p.numel(),), p.requires_grad) for p in net.parameters()]
    return torch.cat(learns).to(device)


def _without_slope(
    loss: Callable[[Tensor], Tensor], learns: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """The loss, whose gradient is 0 by the parameters that are frozen."""
    if learns is None:
        return loss
    return lambda params: loss(torch.where(learns, params, params.detach()))


def _displacements(
    weights: Tensor, tasks: Tasks, chunk: int, adapt_chunk: Callable[[Tasks, Tensor, bool], Tensor]
) -> Tensor:
    """theta~_i - theta_s of each run's whole meta-batch, [S, T, P], without a graph.

    `adapt_chunk` adapts tasks from their starts, in first order if its last argument is true.
    """
    runs = len(weights)
    weights = weights.detach()
    displacements = []
    with torch.no_grad():
        for columns in _chunks(len(tasks) // runs, chunk):
            part = _select_tasks(tasks, runs, columns)
            start = _repeat_for_tasks(weights, len(part))
            displacement = adapt_chunk(part, start, True) - start
            displacements.append(displacement.unflatten(0, (runs, -1)))
        return torch.cat(displacements, dim=1)


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
