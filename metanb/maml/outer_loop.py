"""The outer loop: one gradient of MAML (Finn et al.

2017), regularised or not, or of the finetuning baseline.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metanb.data.tasks import Tasks
from metanb.maml.inner_loop import adapt, flatten, logits, losses
from metanb.maml.network import ConvNet
from metanb.settings import IMAGE_SHAPES, Settings


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
    """Add the gradient of the mean query loss after adaptation to the `.grad` of what theta_s is made of.

    That is the net's parameters; or `theta` [S, P], the weights of S runs side by side. Their tasks
    come run after run, S times T of them, and each run's gradient is that of its own mean over its
    own tasks: runs do not mix.

    The tasks of each run go through in chunks of `chunk` at a time, each chunk's graph freed before
    the next is built: the sum is the same up to rounding, the memory is that of one chunk. A
    regulariser needs the mean direction of the whole meta-batch, so it takes a first pass, without
    a graph.

    With u_i = theta~_i - theta_s, r_i = norm(u_i), d_i = u_i / r_i, d_mu the mean of d_i over the
    meta-batch, a constant, and Omega_i = -d_i . d_mu, the outer loss of task i is L(D'_i;
    theta^_i), and `regulariser` says what theta^_i is:

        none      theta~_i
        adapted   theta~_i - gamma grad Omega_i by theta~_i, which is -(d_mu - (d_i . d_mu) d_i) / r_i (our reading)
        through   theta~_i - gamma grad Omega_i by theta_s, through the inner loop, to third derivatives
        random    as `adapted`, along another direction e in place of d_mu, the same for the whole batch, but as far as
                  `adapted` would go: a control, with e drawn at random
        outer     theta~_i; the outer loss of task i is L(D'_i; theta~_i) + gamma Omega_i

    In first order u_i counts as a constant; then `through` and `outer` would change nothing.

    Args:
        net: the network; its parameters are theta_s unless `theta` is given.
        tasks: S*T tasks, the meta-batches of the S runs one after the other.
        lr: inner step size.
        steps: inner steps.
        first_order: first-order MAML.
        adapt_norm: whether batch norm's scale and shift take part in the inner loop.
        chunk: tasks of each run at a time.
        regulariser: see above.
        gamma: its strength.
        other: e, [S, P], each of length 1: for `random` alone.
        theta: [S, P], differentiable; None: the net's parameters, of one run.

    Raises:
        ValueError: the tasks are not as many for each run.
    """
    runs = 1 if theta is None else len(theta)
    if len(tasks) % runs:
        raise ValueError(f"{len(tasks)} tasks for {runs} runs: give as many for each")
    per_run = len(tasks) // runs
    options = {"adapt_norm": adapt_norm}
    weights = flatten(net).unsqueeze(0) if theta is None else theta
    direction = weights.new_zeros(runs, 0)  # without a regulariser nothing points anywhere
    if regulariser != "none":
        direction = _mean_direction(net, weights, tasks, lr, steps, chunk, **options)
    query_losses_of, moves_of = [], []
    for chosen in _chunks(per_run, chunk):
        part = _of_each_run(tasks, runs, chosen)
        # In each chunk anew, so that its graph ends there and is freed.
        weights = flatten(net).unsqueeze(0) if theta is None else theta
        start, along = _for_tasks(weights, len(part)), _shared(direction, len(part))
        adapted = adapt(net, part, lr, steps, first_order=first_order, start=start, **options)
        moved, penalty = adapted, torch.zeros((), device=start.device)
        if regulariser in ("adapted", "random"):
            moved = pulled(adapted, start, along, gamma)
            if regulariser == "random":
                assert other is not None  # the caller draws it
                step = moved - adapted
                elsewhere = pulled(adapted, start, _shared(other, len(part)), gamma) - adapted
                moved = adapted + _length(step) * _moved(step) * _unit(elsewhere)
        elif regulariser == "through":
            (slope,) = torch.autograd.grad(
                omega(adapted, start, along).sum(), start, create_graph=True
            )
            moved = adapted - gamma * slope
        elif regulariser == "outer":
            penalty = gamma * omega(adapted, start, along)
        query_losses = losses(net, moved, part.query_x, part.query_y)
        ((query_losses + penalty).sum() / per_run).backward()
        with torch.no_grad():
            relative = (moved - adapted).norm(dim=1) / _length(adapted - start)[:, 0]
        query_losses_of.append(query_losses.detach().view(runs, -1))
        moves_of.append(relative.view(runs, -1))
    return Outcome(*(torch.cat(values, dim=1).flatten() for values in (query_losses_of, moves_of)))


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


def omega(adapted: Tensor, start: Tensor, direction: Tensor) -> Tensor:
    """Omega_i = -d_i . direction, [T], of adapted parameters and starts [T, P]; 0 for a task that did not move.

    `direction` is [P], or [T, P] where it is not the same for all.
    """
    return -_along(_unit(adapted - start), direction)


def pulled(adapted: Tensor, start: Tensor, direction: Tensor, gamma: float) -> Tensor:
    """theta^_i = theta~_i - gamma grad Omega_i, [T, P], the gradient by theta~_i and `direction` a constant.

    With u = theta~_i - theta_s and r = norm(u), that is theta~_i + (gamma / r) (direction - (d_i .
    direction) d_i). A task that did not move stays where it is. `direction` is [P], or [T, P] where
    it is not the same for all.
    """
    u = adapted - start
    r = _length(u)
    d = u / r
    across = direction - _along(d, direction).unsqueeze(1) * d
    return adapted + torch.where(_moved(u), gamma / r * across, 0.0)


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
    _, height, width = IMAGE_SHAPES[settings.dataset]
    pixels = settings.ways * (settings.shots + settings.queries) * height * width
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
            directions.append(_unit(adapted - start).unflatten(0, (runs, -1)))
        return torch.cat(directions, dim=1).mean(1)


def _along(rows: Tensor, direction: Tensor) -> Tensor:
    """Inner products [T] of rows [T, P] with one direction [P], or with one each, [T, P]."""
    return rows @ direction if direction.dim() == 1 else (rows * direction).sum(1)


def _length(u: Tensor) -> Tensor:
    """Norms [T, 1] of u [T, P], 1 for a row of zeros: a norm has no derivative there."""
    squares = u.square().sum(1, keepdim=True)
    return torch.where(squares > 0, squares, 1.0).sqrt()


def _moved(u: Tensor) -> Tensor:
    """Whether rows [T, 1] of u [T, P] are other than zeros, whose `_length` is 1."""
    return u.detach().abs().amax(1, keepdim=True) > 0


def _unit(u: Tensor) -> Tensor:
    return u / _length(u)
