"""What the claims' rules are made of: effects of curves and of groups of runs, with intervals. Arrays in, numbers out.

A curve is a measure after each epoch, from epoch 1 on: the untrained network is left out.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats

QUARTER_OF = 4  # a curve's early and late part are its first and last quarter, one epoch at least


class Interval(NamedTuple):
    """A mean over runs, its 95 % interval, and the two-sided p-value of a mean of 0."""

    mean: float
    low: float
    high: float
    p: float


def interval(
    values: Iterable[float], against: float = 0.0, level: float = 0.95, shared: Iterable[float] = ()
) -> Interval:
    """Mean, 95 % interval and p-value of runs' values; below two values the interval is infinite and p is 1.

    By Student's t. Runs that are measured on the same tasks share the error of having drawn these
    and no others, which their spread does not show. Where `shared` tells that error, the interval
    is the wider of two, and p the larger: that over runs alone, and one whose squared standard
    error has the mean square of `shared` besides, with Welch's and Satterthwaite's degrees of
    freedom. The first is right where runs have nothing in common, the second where they share all
    of that error.

    Args:
        values: one a run.
        against: the mean that p tests, in place of 0.
        level: the interval's, in place of 95 %.
        shared: of each value, the standard error over tasks.
    """
    values, shared = np.asarray(list(values), dtype=float), np.asarray(list(shared), dtype=float)
    mean, freedom = float(values.mean()), len(values) - 1
    if not freedom:
        return Interval(mean, -np.inf, np.inf, 1.0)
    alone = float(values.var(ddof=1) / len(values))
    both = alone + float((shared**2).mean() if len(shared) else 0)
    if both == 0:
        return Interval(mean, mean, mean, float(mean == against))
    half, p = 0.0, 0.0
    for variance, degrees in (
        (alone, freedom),
        (both, freedom * (both / alone) ** 2 if alone else np.inf),
    ):
        if variance:
            half = max(half, float(special.stdtrit(degrees, (1 + level) / 2) * np.sqrt(variance)))
            p = max(p, _two_sided((mean - against) / np.sqrt(variance), degrees))
    return Interval(mean, mean - half, mean + half, p)


def late_mean(curve: np.ndarray) -> float:
    """A curve's mean over its last quarter."""
    return float(np.asarray(curve, dtype=float)[-_quarter(curve) :].mean())


def late_error(errors: np.ndarray) -> float:
    """The standard error over tasks of `late`, at most, by those of the epochs: their mean."""
    return late_mean(errors)


def trend(curve: np.ndarray) -> float:
    """Log ratio of a curve's mean over its last quarter to that over its first quarter.

    Raises ValueError for fewer than four epochs or means that are not positive.
    """
    first, last = float(np.asarray(curve, dtype=float)[: _quarter(curve)].mean()), late_mean(curve)
    if not (first > 0 and last > 0):
        raise ValueError(f"a log ratio needs positive means, these are {first:g} and {last:g}")
    return float(np.log(last / first))


def trend_error(curve: np.ndarray, errors: np.ndarray) -> float:
    """The standard error over tasks of `trend`, at most, by those of the epochs' means.

    A quarter's error is at most the mean of its epochs' errors. That of the difference of two
    quarters' logs is the root of the sum of squares, if the quarters' errors are independent. They
    are of the same tasks, and a task that is high early is rather high late: then it is less. How
    much less, the means do not tell.
    """
    early, first = (
        np.asarray(values, dtype=float)[: _quarter(values)].mean() for values in (errors, curve)
    )
    return float(np.hypot(late_error(errors) / late_mean(curve), early / first))


def first_peak(curves: np.ndarray, errors: np.ndarray | None = None) -> Interval:
    """The greatest log ratio of an epoch of the first half to epoch 1, mean over runs: curves [runs, epochs].

    `errors`, of the same shape, are the standard errors over tasks of the curves, see `interval`.

    The highest of several epochs is above the first by noise alone, and leaving the run out that is
    judged does not help, for the runs' choices then lean on each other. So the interval and p are
    Bonferroni's for the number of epochs to choose from, 2 to half: the chance that noise puts the
    interval above 0 is at most 2.5 %. Raises ValueError for fewer than four epochs.
    """
    logs = np.log(np.asarray(curves, dtype=float))
    relative = np.zeros_like(logs) if errors is None else errors / np.asarray(curves, dtype=float)
    half = logs.shape[1] // 2
    if half < 2:
        raise ValueError(
            f"a first peak needs at least 4 epochs, these curves have {logs.shape[1]}: measure more often"
        )
    rises = logs[:, 1:half] - logs[:, :1]
    shared = np.hypot(relative[:, 1:half], relative[:, :1])
    tests = half - 1
    found = [
        interval(column, level=1 - 0.05 / tests, shared=error)
        for column, error in zip(rises.T, shared.T, strict=True)
    ]
    best = max(found, key=lambda one: one.mean)
    return best._replace(p=min(1.0, best.p * tests))


def fitted_change(curve: np.ndarray) -> float:
    """Least-squares slope of a curve times its length: how much it changes from its start to its end, in its unit."""
    return float(_slope(len(curve)) @ np.asarray(curve, dtype=float))


def fitted_change_error(errors: np.ndarray) -> float:
    """The standard error over tasks of `change`, at most, by those of the epochs.

    As in `trend_error`, with the curve's halves for the quarters.
    """
    parts = _slope(len(errors)) * np.asarray(errors, dtype=float)
    return float(np.hypot(parts[parts > 0].sum(), parts[parts < 0].sum()))


def correlation(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """Pearson's r of two series and its two-sided p-value; 0 and 1 if one does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 1.0
    a, b = (np.asarray(series, dtype=float) - np.mean(series) for series in (x, y))
    r = float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))
    freedom = len(x) - 2
    if freedom == 0 or abs(r) == 1:
        return r, float(freedom == 0)
    return r, _two_sided(r * np.sqrt(freedom / (1 - r**2)), freedom)


@cache
def correlation_power(runs: int, r: float) -> float:
    """The chance that `runs` pairs of a true correlation r > 0 show one above 0 with a two-sided p below 0.05.

    Exact for a bivariate normal: given the first of each pair, the test's t is a noncentral one,
    whose noncentrality is r / sqrt(1 - r^2) times the root of the first's sum of squares, a
    chi-squared of `runs` - 1 degrees of freedom. 0 for fewer than three runs, which allow no test.
    """
    if runs < 3:
        return 0.0
    limit, slope = stats.t.ppf(0.975, runs - 2), r / np.sqrt(1 - r**2)

    def seen(share: float) -> float:
        squares = stats.chi2.ppf(share, runs - 1)
        return float(stats.nct.sf(limit, runs - 2, slope * np.sqrt(squares)))

    # the mean over the chi-squared, by Gauss and Legendre over its quantiles
    places, weights = np.polynomial.legendre.leggauss(60)
    return float(sum(w / 2 * seen((1 + x) / 2) for x, w in zip(places, weights, strict=True)))


def detrend(curve: np.ndarray) -> np.ndarray:
    """What a quadratic in log epoch leaves of a curve."""
    curve = np.asarray(curve, dtype=float)
    log_epoch = np.log(np.arange(1, len(curve) + 1))
    return curve - np.polynomial.Polynomial.fit(log_epoch, curve, 2)(log_epoch)


def mean_correlation(correlations: Sequence[float]) -> Interval:
    """Mean and 95 % interval of runs' correlations, taken of Fisher's z = artanh r and turned back."""
    found = interval(np.arctanh(np.clip(correlations, -1 + 1e-9, 1 - 1e-9)))
    mean, low, high = (float(np.tanh(z)) for z in found[:3])
    return Interval(mean, low, high, found.p)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's corrected p-values: of those at most 0.05, the chance that even one is only noise is at most 5 %."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    raised = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return raised[np.argsort(order)]


def _slope(epochs: int) -> np.ndarray:
    """What each epoch counts in `change`."""
    place = np.arange(epochs) - (epochs - 1) / 2
    return place / (place @ place) * (epochs - 1)


def _two_sided(t: float, freedom: float) -> float:
    """The chance of Student's t at least as far from 0."""
    return float(2 * special.stdtr(freedom, -abs(t)))


def _quarter(curve: np.ndarray) -> int:
    if len(curve) < QUARTER_OF:
        raise ValueError(
            f"a trend needs at least {QUARTER_OF} epochs, this curve has {len(curve)}: measure more often"
        )
    return len(curve) // QUARTER_OF
