"""The outer loop: one gradient of MAML (Finn et al. 2017), regularised or not, or of the finetuning baseline."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metanb.adapt import adapt, flatten, losses
from metanb.nets import ConvNet
from metanb.settings import IMAGE_SHAPES, Settings
from metanb.tasks import Tasks


class Outcome(NamedTuple):
    """What one meta-gradient saw, by task; detached."""

    losses: Tensor  #: [T] query losses where the outer loss takes them: at theta~_i, or at theta^_i
    moves: Tensor  #: [T] norm(theta^_i - theta~_i) / norm(theta~_i - theta_s); 0 where no regulariser moves


def meta_gradient(
    net: ConvNet, tasks: Tasks, lr: float, steps: int, *, first_order: bool, adapt_norm: bool, chunk: int,
    regulariser: str = "none", gamma: float = 0.0, other: Tensor | None = None,
) -> Outcome:  # fmt: skip
    """Add to the `.grad` of the net's parameters the gradient of the mean query loss after adaptation.

    The tasks go through in chunks of `chunk` at a time, each chunk's graph freed before the next is built: the sum is
    the same up to rounding, the memory is that of one chunk. A regulariser needs the mean direction of the whole batch,
    so it takes a first pass, without a graph.

    With u_i = theta~_i - theta_s, r_i = norm(u_i), d_i = u_i / r_i, d_mu the mean of d_i over the batch, a constant,
    and Omega_i = -d_i . d_mu, the outer loss of task i is L(D'_i; theta^_i), and `regulariser` says what theta^_i is:

        none      theta~_i
        adapted   theta~_i - gamma grad Omega_i by theta~_i, which is -(d_mu - (d_i . d_mu) d_i) / r_i (our reading)
        through   theta~_i - gamma grad Omega_i by theta_s, through the inner loop, to third derivatives
        random    as `adapted`, along another direction e in place of d_mu, the same for the whole batch, but as far as
                  `adapted` would go: a control, with e drawn at random
        outer     theta~_i; the outer loss of task i is L(D'_i; theta~_i) + gamma Omega_i

    In first order u_i counts as a constant; then `through` and `outer` would change nothing.

    Args:
        net: the network; its parameters are theta_s.
        tasks: T tasks, the meta-batch.
        lr: inner step size.
        steps: inner steps.
        first_order: first-order MAML.
        adapt_norm: whether batch norm's scale and shift take part in the inner loop.
        chunk: tasks at a time.
        regulariser: see above.
        gamma: its strength.
        other: e, [P], of length 1: for `random` alone.
    """
    options = {"adapt_norm": adapt_norm}
    direction = torch.zeros(())  # without a regulariser nothing points anywhere
    if regulariser != "none":
        direction = _mean_direction(net, tasks, lr, steps, chunk, **options)
    found = []
    for part in tasks.split(chunk):
        start = flatten(net).expand(len(part), -1)
        adapted = adapt(net, part, lr, steps, first_order=first_order, start=start, **options)
        moved, penalty = adapted, torch.zeros(())
        if regulariser in ("adapted", "random"):
            moved = pulled(adapted, start, direction, gamma)
            if regulariser == "random":
                assert other is not None  # the caller draws it
                step = moved - adapted
                moved = adapted + _length(step) * _moved(step) * _unit(pulled(adapted, start, other, gamma) - adapted)
        elif regulariser == "through":
            (slope,) = torch.autograd.grad(omega(adapted, start, direction).sum(), start, create_graph=True)
            moved = adapted - gamma * slope
        elif regulariser == "outer":
            penalty = gamma * omega(adapted, start, direction)
        query_losses = losses(net, moved, part.query_x, part.query_y)
        ((query_losses + penalty).sum() / len(tasks)).backward()
        with torch.no_grad():
            relative = (moved - adapted).norm(dim=1) / _length(adapted - start)[:, 0]
        found.append((query_losses.detach(), relative))
    return Outcome(*(torch.cat(values) for values in zip(*found, strict=True)))


def omega(adapted: Tensor, start: Tensor, direction: Tensor) -> Tensor:
    """Omega_i = -d_i . direction, [T], of adapted parameters and starts [T, P]; 0 for a task that did not move."""
    return -(_unit(adapted - start) @ direction)


def pulled(adapted: Tensor, start: Tensor, direction: Tensor, gamma: float) -> Tensor:
    """theta^_i = theta~_i - gamma grad Omega_i, [T, P], the gradient by theta~_i and `direction` a constant.

    With u = theta~_i - theta_s and r = norm(u), that is theta~_i + (gamma / r) (direction - (d_i . direction) d_i). A
    task that did not move stays where it is.
    """
    u = adapted - start
    r = _length(u)
    d = u / r
    across = direction - (d @ direction).unsqueeze(1) * d
    return adapted + torch.where(_moved(u), gamma / r * across, 0.0)


def supervised_gradient(net: ConvNet, x: Tensor, y: Tensor) -> Tensor:
    """Finetuning's pretraining: add the gradient of the mean cross-entropy of one mini-batch; returns it, detached.

    The head has an output for every meta-train class; x [n, C, H, W], y [n].
    """
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    return loss.detach()


def chunk_size(settings: Settings, device: torch.device) -> int:
    """How many tasks go through the network at once: on a GPU all, on a CPU a power of two.

    Few tasks leave a fixed cost a chunk and small matrix products, many leave the processor's cache; between is a flat
    optimum near a million pixels. A rule rather than a timing, so that a seed gives the same bits each time.
    """
    if device.type != "cpu":
        return settings.meta_batch
    _, height, width = IMAGE_SHAPES[settings.dataset]
    pixels = settings.ways * (settings.shots + settings.queries) * height * width
    return min(settings.meta_batch, 2 ** int(math.log2(max(1.0, 2**20 / pixels))))


def _mean_direction(net: ConvNet, tasks: Tasks, lr: float, steps: int, chunk: int, adapt_norm: bool) -> Tensor:
    """d_mu [P] of the whole batch, without a graph."""
    with torch.no_grad():
        theta = flatten(net)
        directions = [
            _unit(adapt(net, part, lr, steps, first_order=True, adapt_norm=adapt_norm) - theta)
            for part in tasks.split(chunk)
        ]
        return torch.cat(directions).mean(0)


def _length(u: Tensor) -> Tensor:
    """Norms [T, 1] of u [T, P], 1 for a row of zeros: a norm has no derivative there."""
    squares = u.square().sum(1, keepdim=True)
    return torch.where(squares > 0, squares, 1.0).sqrt()


def _moved(u: Tensor) -> Tensor:
    """Whether rows [T, 1] of u [T, P] are other than zeros, whose `_length` is 1."""
    return u.detach().abs().amax(1, keepdim=True) > 0


def _unit(u: Tensor) -> Tensor:
    return u / _length(u)
