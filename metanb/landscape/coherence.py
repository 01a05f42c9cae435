"""Coherence of trajectories and of gradients: inner products over pairs of tasks."""

import math

from torch import Tensor

from metanb.landscape.task_stats import Stat, summarise


def coherence(vectors: Tensor) -> Tensor:
    """Each task's mean inner product with the others: vectors [T, P] -> c [T] float64.

    c_i is the mean over j != i of v_i . v_j. The mean of c is the mean over all pairs i != j,
    (norm(sum v)^2 - sum norm(v)^2) / (T (T - 1)). Raises ValueError for T < 2.
    """
    if vectors.dim() != 2 or len(vectors) < 2:
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}: coherence is over pairs, give 2 or more rows"
        )
    vectors = vectors.detach().double()
    return (vectors @ vectors.sum(0) - vectors.square().sum(1)) / (len(vectors) - 1)


def trajectory_coherence(displacements: Tensor, part: slice = slice(None)) -> tuple[Stat, int]:
    """Mean cosine between displacements theta~_i - theta_s [T, P] of different tasks, and the number of tasks dropped.

    A task that did not move has no direction: it is dropped. Raises ValueError if fewer than 2
    moved.

    With `part`, only those columns' share of the cosines: shares over columns that make up the
    whole sum to the whole.
    """
    norms = displacements.detach().double().norm(dim=1, keepdim=True)
    moved = norms[:, 0] != 0  # NaN stays
    if (n := int(moved.sum())) < 2:
        raise ValueError(
            f"{n} of {len(displacements)} tasks moved: trajectory coherence is over pairs, it needs 2"
        )
    return _pairwise((displacements.double()[moved] / norms[moved])[:, part]), len(
        displacements
    ) - n


def gradient_coherence(gradients: Tensor) -> Stat:
    """Mean inner product, not cosine, between the tasks' gradients at theta_s, [T, P].

    Raises ValueError for T < 2.
    """
    return _pairwise(gradients)


def _pairwise(vectors: Tensor) -> Stat:
    """Statistics of each task's mean inner product c_i with the others; sem is the jackknife's, over tasks.

    Without task i the mean C over pairs is (n C - 2 c_i) / (n - 2), so the jackknife's standard
    error sqrt((n - 1) / n sum (C_without_i - C)^2) is std(c) / sqrt(n) times 2 (n - 1) / (n - 2).
    """
    plain = summarise(coherence(vectors))
    n = plain.n
    sem = plain.sem * 2 * (n - 1) / (n - 2) if n > 2 else math.nan
    return Stat(plain.mean, plain.median, plain.std, sem, n)
