"""Coherence of trajectories and of gradients: inner products over pairs of tasks."""

import math

import torch
from torch import Tensor

from metanb.landscape.lanczos import LandscapeError
from metanb.landscape.task_stats import Stat, summarise


def coherence(vectors: Tensor) -> Tensor:
    """Compute each task's mean inner product with the other tasks: [T, P] -> c [T] float64.

    c_i is the mean over j != i of v_i . v_j. The mean of c is the mean over all pairs i != j,
    (norm(sum v)^2 - sum norm(v)^2) / (T (T - 1)).

    Raises:
        ValueError: T < 2.
    """
    if vectors.dim() != 2 or len(vectors) < 2:
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}: "
            "coherence is over pairs, give 2 or more rows"
        )
    vectors = vectors.detach().double()
    return (vectors @ vectors.sum(0) - vectors.square().sum(1)) / (len(vectors) - 1)


def trajectory_coherence(displacements: Tensor, part: slice = slice(None)) -> tuple[Stat, int]:
    """Compute the mean cosine between displacements of different tasks, and count dropped tasks.

    A task that did not move has no direction: it is dropped.

    Args:
        displacements: theta~_i - theta_s, [T, P].
        part: the columns whose share of the cosines is computed. Shares over columns that make up
            the whole sum to the whole.

    Raises:
        metanb.landscape.lanczos.LandscapeError: fewer than 2 tasks moved.

    Example:
        >>> import torch
        >>> displacements = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> stat, n_dropped = trajectory_coherence(displacements)
        >>> round(stat.mean, 3), stat.n, n_dropped  # cos 45 degrees
        (0.707, 2, 1)
    """
    directions = _directions(displacements)
    return _summarise_pairs(directions[:, part]), len(displacements) - len(directions)


def effective_rank(displacements: Tensor) -> Stat:
    """Compute in how many directions tasks move: the effective rank of their unit displacements.

    It is the exponential of the entropy of the singular values, divided by their sum (Roy and
    Vetterli, EUSIPCO 2007): 1 where all tasks move along one line, and the number of tasks where no
    two move alike. It grows with the number of tasks, so compare values of equally many. A task
    that did not move is dropped. The median is the mean, and sem is the jackknife's over tasks; of
    two tasks it is NaN, as leaving out one leaves rank 1. A NaN makes all NaN.

    Args:
        displacements: theta~_i - theta_s, [T, P].

    Raises:
        metanb.landscape.lanczos.LandscapeError: fewer than 2 tasks moved.

    Example:
        >>> import torch
        >>> round(effective_rank(torch.eye(3)).mean, 3)
        3.0
        >>> round(effective_rank(torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])).mean, 3)
        1.0
    """
    directions = _directions(displacements)
    gram = directions @ directions.T
    n = len(gram)
    if not gram.isfinite().all():
        return Stat(math.nan, math.nan, math.nan, math.nan, n)
    rank = float(_rank_of_gram(gram))
    if n == 2:
        return Stat(rank, rank, math.nan, math.nan, n)
    # Leave out each task in turn: its row and column of the Gram matrix.
    ranks = torch.stack([_rank_of_gram(_without_row(gram, i)) for i in range(n)])
    sem = float(((n - 1) / n * (ranks - ranks.mean()).square().sum()).sqrt())
    return Stat(rank, rank, sem * math.sqrt(n), sem, n)


def _without_row(gram: Tensor, i: int) -> Tensor:
    keep = torch.arange(len(gram), device=gram.device) != i
    return gram[keep][:, keep]


def _rank_of_gram(gram: Tensor) -> Tensor:
    """The effective rank of rows whose inner products are given, [] float64."""
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return torch.special.entr(singular / singular.sum()).sum().exp()


def gradient_coherence(gradients: Tensor) -> Stat:
    """Compute the mean inner product (not cosine) of different tasks' gradients at theta_s.

    Args:
        gradients: [T, P].

    Raises:
        ValueError: T < 2.

    Example:
        >>> import torch
        >>> gradient_coherence(torch.tensor([[2.0, 0.0], [1.0, 1.0]])).mean
        2.0
    """
    return _summarise_pairs(gradients)


def _directions(displacements: Tensor) -> Tensor:
    """The unit displacements of the tasks that moved, float64; LandscapeError if < 2 did."""
    norms = displacements.detach().double().norm(dim=1, keepdim=True)
    is_moved = norms[:, 0] != 0  # true for NaN, which shows in the result
    n_moved = int(is_moved.sum())
    if n_moved < 2:
        raise LandscapeError(
            f"{n_moved} of {len(displacements)} tasks moved: trajectory coherence is over pairs, "
            "it needs 2"
        )
    return displacements.detach().double()[is_moved] / norms[is_moved]


def _summarise_pairs(vectors: Tensor) -> Stat:
    """Statistics of each task's mean inner product c_i; sem is the jackknife's, over tasks.

    Without task i the mean C over pairs is (n C - 2 c_i) / (n - 2), so the jackknife's standard
    error sqrt((n - 1) / n sum (C_without_i - C)^2) is std(c) / sqrt(n) times 2 (n - 1) / (n - 2).
    """
    plain = summarise(coherence(vectors))
    n = plain.n
    sem = plain.sem * 2 * (n - 1) / (n - 2) if n > 2 else math.nan
    return Stat(plain.mean, plain.median, plain.std, sem, n)
