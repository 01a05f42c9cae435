"""The coherence regulariser of the paper (its section 5), one function for each reading of it.

For task i let u_i = theta~_i - theta_s, r_i = norm(u_i) and d_i = u_i / r_i. The mean of the d_i
over the meta-batch is d_mu, a constant. The paper defines Omega_i = -d_i . d_mu and takes the outer
loss at theta^_i = theta~_i - gamma grad Omega_i. The text does not say by which parameters the
gradient is. So there are several readings, by the name of the setting `regulariser`:

    none      theta^_i = theta~_i
    adapted   the gradient by theta~_i, -(d_mu - (d_i . d_mu) d_i) / r_i (our reading)
    through   the gradient by theta_s, through the inner loop, to third derivatives
    random    a control: as `adapted`, with a random direction e in place of d_mu, the same e for
              the whole batch, and a move of the same length as that of `adapted`
    outer     theta^_i = theta~_i, and gamma Omega_i is added to the outer loss of task i

In first order u_i counts as a constant; then `through` and `outer` change nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Regularised(NamedTuple):
    """Where the outer loss of T tasks is taken, and the penalty that is added to it."""

    params: Tensor  #: [T, P] theta^_i
    penalty: Tensor  #: [T], or [] where it is 0 for all


# adapted, start, d_mu, e, gamma -> Regularised; see `move_along_mean` for the arguments.
Reading = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Regularised]


def leave(
    adapted: Tensor, start: Tensor, mean: Tensor, random: Tensor | None, gamma: float
) -> Regularised:
    """Return the adapted parameters as they are (`none`).

    Arguments are those of `move_along_mean`.
    """
    return Regularised(adapted, start.new_zeros(()))


def move_along_mean(
    adapted: Tensor, start: Tensor, mean: Tensor, random: Tensor | None, gamma: float
) -> Regularised:
    """Move along the gradient of Omega_i by theta~_i (`adapted`).

    Args:
        adapted: theta~_i, [T, P].
        start: theta_s of each task, [T, P].
        mean: d_mu, [P], or [T, P] where tasks belong to several runs.
        random: e, of the same shape; only `random` uses it.
        gamma: strength.
    """
    return Regularised(pull(adapted, start, mean, gamma), start.new_zeros(()))


def move_along_random(
    adapted: Tensor, start: Tensor, mean: Tensor, random: Tensor | None, gamma: float
) -> Regularised:
    """Move along a random direction, as far as `move_along_mean` does (`random`).

    Arguments are those of `move_along_mean`.
    """
    assert random is not None  # the caller draws it
    step = pull(adapted, start, mean, gamma) - adapted
    random_step = pull(adapted, start, random, gamma) - adapted
    # The length of `step`, the direction of `random_step`; no move where `step` is zero.
    moved = adapted + length(step) * is_moved(step) * unit(random_step)
    return Regularised(moved, start.new_zeros(()))


def move_through_inner_loop(
    adapted: Tensor, start: Tensor, mean: Tensor, random: Tensor | None, gamma: float
) -> Regularised:
    """Move along the gradient of Omega_i by theta_s, through the inner loop (`through`).

    Arguments are those of `move_along_mean`.
    """
    (slope,) = torch.autograd.grad(omega(adapted, start, mean).sum(), start, create_graph=True)
    return Regularised(adapted - gamma * slope, start.new_zeros(()))


def penalise(
    adapted: Tensor, start: Tensor, mean: Tensor, random: Tensor | None, gamma: float
) -> Regularised:
    """Add gamma Omega_i to the outer loss (`outer`).

    Arguments are those of `move_along_mean`.
    """
    return Regularised(adapted, gamma * omega(adapted, start, mean))


READINGS: dict[str, Reading] = {
    "none": leave,
    "adapted": move_along_mean,
    "through": move_through_inner_loop,
    "outer": penalise,
    "random": move_along_random,
}


def omega(adapted: Tensor, start: Tensor, direction: Tensor) -> Tensor:
    """Compute Omega_i = -d_i . direction, [T]; it is 0 for a task that did not move.

    Args:
        adapted: theta~_i, [T, P].
        start: theta_s of each task, [T, P].
        direction: [P], or [T, P] where it is not the same for all tasks.
    """
    return -_inner_products(unit(adapted - start), direction)


def pull(adapted: Tensor, start: Tensor, direction: Tensor, gamma: float) -> Tensor:
    """Compute theta~_i - gamma grad Omega_i, [T, P], where the gradient is by theta~_i.

    That is theta~_i + (gamma / r_i) (direction - (d_i . direction) d_i). The bracket is the
    direction's part at right angles to d_i. A task that did not move stays where it is. Arguments
    are those of `omega`, and the strength `gamma`.
    """
    displacement = adapted - start
    r = length(displacement)
    d = displacement / r
    across = direction - _inner_products(d, direction).unsqueeze(1) * d
    return adapted + torch.where(is_moved(displacement), gamma / r * across, 0.0)


def length(rows: Tensor) -> Tensor:
    """Return the norms [T, 1] of rows [T, P]; 1 for a row of zeros, where it has no derivative."""
    squares = rows.square().sum(1, keepdim=True)
    return torch.where(squares > 0, squares, 1.0).sqrt()


def is_moved(rows: Tensor) -> Tensor:
    """Return whether rows of [T, P] differ from zeros, [T, 1]."""
    return rows.detach().abs().amax(1, keepdim=True) > 0


def unit(rows: Tensor) -> Tensor:
    """Divide rows [T, P] by their lengths; a row of zeros stays a row of zeros."""
    return rows / length(rows)


def _inner_products(rows: Tensor, direction: Tensor) -> Tensor:
    """Inner products [T] of rows [T, P] with one direction [P], or with one per row, [T, P]."""
    return rows @ direction if direction.dim() == 1 else (rows * direction).sum(1)
