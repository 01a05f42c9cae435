"""What changes the outer loss: one function for each reading of the paper's regulariser.

For task i let u_i = theta~_i - theta_s, r_i = norm(u_i) and d_i = u_i / r_i. The mean of the d_i
over the meta-batch is d_mu, a constant. By our sources the paper (its section 5) defines Omega_i =
-d_i . d_mu and takes the outer loss at theta^_i = theta~_i - gamma grad Omega_i. They do not say
with respect to which parameters the gradient is taken. So there are several readings, by the name
of the setting `regulariser`:

    none      theta^_i = theta~_i
    adapted   the gradient by theta~_i, -(d_mu - (d_i . d_mu) d_i) / r_i (our reading)
    through   the gradient by theta_s, through the inner loop, to third derivatives
    random    a control: as `adapted`, with a random direction e in place of d_mu, the same e for
              the whole batch, and a move of the same length as that of `adapted`
    outer     theta^_i = theta~_i, and gamma Omega_i is added to the outer loss of task i

In first order u_i counts as a constant; then `through` and `outer` change nothing.

Two further ways to more agreement are other authors'; theta^_i = theta~_i in both:

    agreement  task i has the weight w_i = u_i . sum_j u_j, divided so that the weights' sizes sum
               to 1 (Eshratifar et al. 2018); gamma goes from equal weights, 0, to these, 1
    within     -gamma cos(g_i, g'_i) is added to the outer loss, where g_i and g'_i are the
               gradients of the support and the query loss at theta_s (after Nichol et al. 2018,
               whose product g_i . g'_i has no bound: rewarded, gradients grow and accuracy is lost)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """T tasks of a meta-batch after the inner loop, as the readings take them."""

    adapted: Tensor  #: [T, P] theta~_i
    start: Tensor  #: [T, P] theta_s of each task
    #: what the reading knows of the whole meta-batch, see `mean_direction` and
    #: `agreement_direction`: [P], or [T, P] where tasks belong to several runs
    mean: Tensor
    random: Tensor | None  #: e, of the same shape as `mean`; only `random` uses it
    gamma: float  #: the strength
    support_loss: Callable[[Tensor], Tensor]  #: parameters [T, P] -> losses [T]
    query_loss: Callable[[Tensor], Tensor]  #: the same


class Regularised(NamedTuple):
    """Where the outer loss of T tasks is taken, their weights, and the penalty that is added."""

    params: Tensor  #: [T, P] theta^_i
    penalty: Tensor  #: [T], or [] where it is 0 for all
    weight: Tensor  #: [T], or [] where it is 1 for all


Reading = Callable[[Chunk], Regularised]


def leave(chunk: Chunk) -> Regularised:
    """Return the adapted parameters as they are (`none`)."""
    return _at(chunk.adapted)


def move_along_mean(chunk: Chunk) -> Regularised:
    """Move along the gradient of Omega_i by theta~_i (`adapted`)."""
    return _at(pull(chunk.adapted, chunk.start, chunk.mean, chunk.gamma))


def move_along_random(chunk: Chunk) -> Regularised:
    """Move along a random direction, as far as `move_along_mean` does (`random`)."""
    assert chunk.random is not None  # the caller draws it
    adapted = chunk.adapted
    step = pull(adapted, chunk.start, chunk.mean, chunk.gamma) - adapted
    random_step = pull(adapted, chunk.start, chunk.random, chunk.gamma) - adapted
    # The length of `step`, the direction of `random_step`; no move where `step` is zero.
    return _at(adapted + length(step) * is_moved(step) * unit(random_step))


def move_through_inner_loop(chunk: Chunk) -> Regularised:
    """Move along the gradient of Omega_i by theta_s, through the inner loop (`through`)."""
    total = omega(chunk.adapted, chunk.start, chunk.mean).sum()
    (slope,) = torch.autograd.grad(total, chunk.start, create_graph=True)
    return _at(chunk.adapted - chunk.gamma * slope)


def penalise(chunk: Chunk) -> Regularised:
    """Add gamma Omega_i to the outer loss (`outer`)."""
    penalty = chunk.gamma * omega(chunk.adapted, chunk.start, chunk.mean)
    return _at(chunk.adapted)._replace(penalty=penalty)


def weigh_by_agreement(chunk: Chunk) -> Regularised:
    """Weigh tasks by how far their displacements agree with the meta-batch's (`agreement`)."""
    displacement = (chunk.adapted - chunk.start).detach()
    agreement = _inner_products(displacement, chunk.mean)
    return _at(chunk.adapted)._replace(weight=1 + chunk.gamma * (agreement - 1))


def reward_cosine(chunk: Chunk) -> Regularised:
    """Subtract gamma times the cosine of a task's two gradients at theta_s (`within`)."""
    support, query = (
        unit(torch.autograd.grad(loss(chunk.start).sum(), chunk.start, create_graph=True)[0])
        for loss in (chunk.support_loss, chunk.query_loss)
    )
    penalty = -chunk.gamma * _inner_products(support, query)
    return _at(chunk.adapted)._replace(penalty=penalty)


def _at(params: Tensor) -> Regularised:
    """The outer loss at these parameters, equal weights, no penalty."""
    return Regularised(params, params.new_zeros(()), params.new_ones(()))


READINGS: dict[str, Reading] = {
    "none": leave,
    "adapted": move_along_mean,
    "through": move_through_inner_loop,
    "outer": penalise,
    "random": move_along_random,
    "agreement": weigh_by_agreement,
    "within": reward_cosine,
}


def mean_direction(displacements: Tensor) -> Tensor:
    """Compute d_mu of S runs from the displacements of their meta-batches, [S, T, P]: [S, P]."""
    return unit(displacements.flatten(0, 1)).view_as(displacements).mean(1)


def agreement_direction(displacements: Tensor) -> Tensor:
    """Compute the vector whose inner product with u_i is T w_i: [S, T, P] -> [S, P].

    w_i are the weights of `agreement`: u_i . sum_j u_j, divided by the sum of their sizes. Where
    all are 0, so is the vector.
    """
    total = displacements.sum(1)
    sizes = (displacements @ total.unsqueeze(-1)).abs().mean((1, 2))
    return total / torch.where(sizes > 0, sizes, 1.0).unsqueeze(-1)


# What a reading needs to know of the whole meta-batch, from its displacements.
FIRST_PASS: dict[str, Callable[[Tensor], Tensor]] = {
    "adapted": mean_direction,
    "through": mean_direction,
    "outer": mean_direction,
    "random": mean_direction,
    "agreement": agreement_direction,
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
