"""Coherence of trajectories and of gradients: inner products over pairs of tasks."""

import math

from torch import Tensor

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
        ValueError: fewer than 2 tasks moved.

    Example:
        >>> import torch
        >>> displacements = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> stat, n_dropped = trajectory_coherence(displacements)
        >>> round(stat.mean, 3), stat.n, n_dropped  # cos 45 degrees
        (0.707, 2, 1)
    """
    norms = displacements.detach().double().norm(dim=1, keepdim=True)
    is_moved = norms[:, 0] != 0  # true for NaN, which shows in the result
    n_moved = int(is_moved.sum())
    if n_moved < 2:
        raise ValueError(
            f"{n_moved} of {len(displacements)} tasks moved: "
            "trajectory coherence is over pairs, it needs 2"
        )
    directions = displacements.double()[is_moved] / norms[is_moved]
    return _summarise_pairs(directions[:, part]), len(displacements) - n_moved


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


def _summarise_pairs(vectors: Tensor) -> Stat:
    """Statistics of each task's mean inner product c_i; sem is the jackknife's, over tasks.

    Without task i the mean C over pairs is (n C - 2 c_i) / (n - 2), so the jackknife's standard
    error sqrt((n - 1) / n sum (C_without_i - C)^2) is std(c) / sqrt(n) times 2 (n - 1) / (n - 2).
    """
    plain = summarise(coherence(vectors))
    n = plain.n
    sem = plain.sem * 2 * (n - 1) / (n - 2) if n > 2 else math.nan
    return Stat(plain.mean, plain.median, plain.std, sem, n)
