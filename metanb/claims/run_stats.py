"""The statistics of the claims' rules: effects of curves and of groups of runs, with intervals.

Functions take arrays and return numbers. A curve is a measure after each epoch, from epoch 1 on:
the untrained network is left out.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

_FAR = 1e6  # a ratio that is possible at this distance has no end
QUARTER_OF = 4  # a curve's early and late part are its first and last quarter, one epoch at least


class Interval(NamedTuple):
    """A mean over runs, its 95 % interval, and the two-sided p-value of a mean of 0."""

    mean: float
    low: float
    high: float
    p: float

    def describe(self, number: str = ".2f", unit: str = "") -> str:
        """The mean, its unit and the interval in a format: "+0.27 points (-0.27 to +0.68)"."""
        mean = f"{self.mean:{number}} {unit}".rstrip()
        return f"{mean} ({self.low:{number}} to {self.high:{number}})"


NO_EFFECT = Interval(math.nan, -math.inf, math.inf, 1.0)  # where there is nothing to compare


def interval(
    values: Iterable[float], against: float = 0.0, level: float = 0.95, shared: Iterable[float] = ()
) -> Interval:
    """Mean, 95 % interval and p-value of runs' values, by Student's t.

    Runs that are measured on the same tasks share the error of having drawn these tasks and no
    others. Their spread does not show that error. Where `shared` gives it, the interval is the
    wider of two, and p the larger of two. The first is over runs alone. It is right where runs have
    nothing in common. The second adds the mean square of `shared` to the squared standard error,
    with Welch's and Satterthwaite's degrees of freedom. It is right where runs have all of that
    error in common.

    Below two values, or where one of them or an error is not finite, the interval is infinite and p
    is 1.

    Args:
        values: one per run.
        against: the mean that p tests, in place of 0.
        level: the interval's level, in place of 95 %.
        shared: the standard error over tasks of each value.

    Example:
        >>> gains = interval([1.0, 2.0, 3.0])
        >>> print(f"{gains.describe()}, p = {gains.p:.3f}")
        2.00 (-0.48 to 4.48), p = 0.074
    """
    values = np.asarray(list(values), dtype=float)
    shared = np.asarray(list(shared), dtype=float)
    mean = float(values.mean()) if len(values) else np.nan
    freedom = len(values) - 1
    if freedom < 1 or not np.isfinite([*values, *shared]).all():
        return Interval(mean, -np.inf, np.inf, 1.0)

    # the variance of the mean over runs alone, and with the error over tasks
    runs_alone = float(values.var(ddof=1) / len(values))
    with_tasks = runs_alone + float((shared**2).mean() if len(shared) else 0)
    if with_tasks == 0:
        return Interval(mean, mean, mean, float(mean == against))

    # with the error over tasks, which is taken as known, freedom grows (Welch, Satterthwaite)
    more_freedom = freedom * (with_tasks / runs_alone) ** 2 if runs_alone else np.inf

    # the wider interval and the larger p
    half_width = 0.0
    p = 0.0
    for variance, degrees in ((runs_alone, freedom), (with_tasks, more_freedom)):
        if variance:
            error = np.sqrt(variance)
            quantile = special.stdtrit(degrees, (1 + level) / 2)
            half_width = max(half_width, float(quantile * error))
            p = max(p, _two_sided((mean - against) / error, degrees))
    return Interval(mean, mean - half_width, mean + half_width, p)


def ratio_interval(
    values: np.ndarray, base: np.ndarray, errors: np.ndarray, base_errors: np.ndarray
) -> Interval:
    """The ratio of two means over pairs of runs, and its 95 % interval by Fieller's theorem.

    A ratio r is in the interval if the one of `values - r base` holds 0, which takes the error of
    the base into account. Where the base is not seen to lie above 0, the ratio is no share of it:
    then the interval is infinite. p is not defined and NaN.

    Args:
        values: one per pair.
        base: one per pair.
        errors: the standard error over tasks of each value.
        base_errors: likewise of the base's.

    Example:
        >>> import numpy as np
        >>> none = np.zeros(3)
        >>> half = ratio_interval(np.array([0.9, 1.0, 1.1]), np.array([2.1, 2.0, 1.9]), none, none)
        >>> print(half.describe())
        0.50 (0.33 to 0.71)
    """

    def room(ratio: float) -> float:
        """How far 0 lies inside the interval of `values - ratio base`; below 0: outside."""
        effect = interval(values - ratio * base, shared=np.hypot(errors, ratio * base_errors))
        return min(-effect.low, effect.high)

    def find_end(inside: float, outside: float) -> float:
        """The end of the interval between a ratio that is possible and one that is far away."""
        if room(outside) >= 0:
            return math.inf if outside > inside else -math.inf
        if room(inside) <= 0:  # values without any error: by rounding alone
            return inside
        return float(optimize.brentq(room, inside, outside))

    mean = float(values.mean() / base.mean()) if base.mean() else math.inf
    if interval(base, shared=base_errors).low <= 0:
        return Interval(mean, -math.inf, math.inf, math.nan)
    far = _FAR * max(1.0, abs(mean))
    return Interval(mean, find_end(mean, mean - far), find_end(mean, mean + far), math.nan)


def late_mean(curve: np.ndarray) -> float:
    """A curve's mean over its last quarter."""
    return float(np.asarray(curve, dtype=float)[-_quarter(curve) :].mean())


def late_error(errors: np.ndarray) -> float:
    """An upper bound on the standard error over tasks of `late_mean`.

    It is the mean of the epochs' standard errors.
    """
    return late_mean(errors)


def trend(curve: np.ndarray) -> float:
    """Log ratio of a curve's mean over its last quarter to that over its first quarter.

    Raises:
        ValueError: fewer than four epochs, or means that are not positive and finite.

    Example:
        >>> import numpy as np
        >>> curve = np.array([8.0, 4.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0])
        >>> round(trend(curve), 3)  # the log of 1.5 over 6
        -1.386
    """
    first = float(np.asarray(curve, dtype=float)[: _quarter(curve)].mean())
    last = late_mean(curve)
    if not (0 < first < math.inf and 0 < last < math.inf):
        raise ValueError(f"a log ratio needs positive means, these are {first:g} and {last:g}")
    return float(np.log(last / first))


def trend_error(curve: np.ndarray, errors: np.ndarray) -> float:
    """An upper bound on the standard error over tasks of `trend`, by those of the epochs' means.

    A quarter's error is at most the mean of its epochs' errors. The error of the difference of two
    quarters' logs is the root of the sum of squares, if the quarters' errors are independent. They
    are of the same tasks, and a task that is high early tends to be high late: then the error is
    smaller. How much smaller, the means do not tell.
    """
    first = np.asarray(curve, dtype=float)[: _quarter(curve)].mean()
    first_error = np.asarray(errors, dtype=float)[: _quarter(errors)].mean()
    return float(np.hypot(late_error(errors) / late_mean(curve), first_error / first))


def first_peak(curves: np.ndarray, errors: np.ndarray | None = None) -> Interval:
    """The greatest log ratio of an epoch of the first half to epoch 1, mean over runs.

    The highest of several epochs is above the first by noise alone. Leaving out the run that is
    judged does not help, because the runs' choices then depend on each other. So the interval and p
    are Bonferroni's for the number of epochs to choose from, 2 to half: the chance that noise puts
    the interval above 0 is at most 2.5 %.

    Args:
        curves: positive values, [runs, epochs].
        errors: standard errors over tasks of the curves, [runs, epochs], see `interval`.

    Raises:
        ValueError: fewer than four epochs.
    """
    curves = np.asarray(curves, dtype=float)
    half = curves.shape[1] // 2
    if half < 2:
        raise ValueError(
            f"a first peak needs at least 4 epochs, these curves have {curves.shape[1]}: "
            "measure more often"
        )
    logs = np.log(curves[:, :half])
    log_errors = np.zeros_like(logs) if errors is None else errors[:, :half] / curves[:, :half]

    # one interval for each epoch to choose from, wide enough for the choice
    rises = logs[:, 1:] - logs[:, :1]
    rise_errors = np.hypot(log_errors[:, 1:], log_errors[:, :1])
    epochs = half - 1
    intervals = [
        interval(rise, level=1 - 0.05 / epochs, shared=error)
        for rise, error in zip(rises.T, rise_errors.T, strict=True)
    ]
    highest = max(intervals, key=lambda rise: rise.mean)
    return highest._replace(p=min(1.0, highest.p * epochs))


def fitted_change(curve: np.ndarray) -> float:
    """How much a curve changes from its start to its end: least-squares slope times length."""
    return float(_slope_weights(len(curve)) @ np.asarray(curve, dtype=float))


def fitted_change_error(errors: np.ndarray) -> float:
    """An upper bound on the standard error over tasks of `fitted_change`, by those of the epochs.

    As in `trend_error`, with the curve's halves for the quarters.
    """
    parts = _slope_weights(len(errors)) * np.asarray(errors, dtype=float)
    return float(np.hypot(parts[parts > 0].sum(), parts[parts < 0].sum()))


def correlation(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """Pearson's r of two series and its two-sided p-value; 0 and 1 if one does not vary.

    Example:
        >>> r, p = correlation([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0])
        >>> print(f"r = {r:.2f}, p = {p:.2f}")
        r = 0.80, p = 0.20
    """
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
    """The chance that `runs` pairs of a true correlation r > 0 show a positive one with p < 0.05.

    p is two-sided. The chance is exact for a bivariate normal: given the first value of each pair,
    the test's t is a noncentral one. Its noncentrality is r / sqrt(1 - r^2) times the root of the
    first values' sum of squares, a chi-squared of `runs` - 1 degrees of freedom. Fewer than three
    runs allow no test: the chance is 0.
    """
    if runs < 3:
        return 0.0
    limit = special.stdtrit(runs - 2, 0.975)
    slope = r / np.sqrt(1 - r**2)

    def power_at_quantile(share: float) -> float:
        squares = special.chdtri(runs - 1, 1 - share)
        return float(1 - special.nctdtr(runs - 2, slope * np.sqrt(squares), limit))

    # the mean over the chi-squared, by Gauss and Legendre over its quantiles
    nodes, weights = np.polynomial.legendre.leggauss(60)
    terms = (
        weight / 2 * power_at_quantile((1 + node) / 2)
        for node, weight in zip(nodes, weights, strict=True)
    )
    return float(sum(terms))


def detrend(curve: np.ndarray) -> np.ndarray:
    """A curve's residuals from a quadratic in log epoch, [epochs]."""
    curve = np.asarray(curve, dtype=float)
    log_epoch = np.log(np.arange(1, len(curve) + 1))
    return curve - np.polynomial.Polynomial.fit(log_epoch, curve, 2)(log_epoch)


def mean_correlation(correlations: Sequence[float]) -> Interval:
    """Mean and 95 % interval of runs' correlations, on the scale of Fisher's z = artanh r."""
    return _back_from_fisher(interval(_fisher(correlations)))


def correlate_over_epochs(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Interval:
    """The correlation of two curves over epochs, mean over runs.

    Args:
        pairs: the two curves of each run, of equal length.
        transform: what is done to either curve first: `numpy.diff` leaves its changes from one
            epoch to the next.

    Example:
        >>> import numpy as np
        >>> pair = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
        >>> round(correlate_over_epochs([pair, pair]).mean, 2)
        0.8
        >>> round(correlate_over_epochs([pair, pair], lambda curve: curve[:2]).mean, 2)
        1.0
    """
    return mean_correlation([correlation(transform(x), transform(y))[0] for x, y in pairs])


def correlate_own_steps(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Interval:
    """The correlation of two curves' own steps from epoch to epoch, mean over runs.

    Curves that rise and then level off have correlated steps, although nothing else ties them to
    each other: one run's accuracy then goes with another run's coherence as well as with its own.
    So the mean curve over the runs is subtracted from each curve first. What it leaves sums to 0
    over the n runs in each epoch, and therefore two runs' correlations are themselves correlated,
    by 1 / (n - 1)^2. The squared standard error of their mean is (n - 1) / (n - 2) times that of
    independent values with the same spread.

    Args:
        pairs: the two curves of each run, all of equal length. Below three runs the interval is
            infinite.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> shared = 1 - np.exp(-np.arange(12.0))  # rises, then levels off
        >>> pairs = [tuple(shared + 0.01 * rng.normal(size=(2, 12))) for _ in range(5)]
        >>> print(correlate_over_epochs(pairs, np.diff).describe())
        1.00 (0.99 to 1.00)
        >>> print(correlate_own_steps(pairs).describe())
        0.07 (-0.61 to 0.69)
    """
    own = [[curve - np.mean(both, axis=0) for curve in both] for both in zip(*pairs, strict=True)]
    z = _fisher([correlation(np.diff(x), np.diff(y))[0] for x, y in zip(*own, strict=True)])
    if len(z) < 3:
        return Interval(float(np.tanh(interval(z).mean)), -1.0, 1.0, 1.0)
    widened = z.mean() + (z - z.mean()) * math.sqrt((len(z) - 1) / (len(z) - 2))
    return _back_from_fisher(interval(widened))


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's corrected p-values, in the order of `p`.

    Among those that are at most 0.05, the chance that even one is only noise is at most 5 %.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    raised = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return raised[np.argsort(order)]


def _fisher(correlations: Sequence[float]) -> np.ndarray:
    """Fisher's z = artanh r of correlations; of +-1 it stays finite."""
    return np.arctanh(np.clip(correlations, -1 + 1e-9, 1 - 1e-9))


def _back_from_fisher(z: Interval) -> Interval:
    """The interval of r from that of z."""
    mean, low, high = (float(np.tanh(value)) for value in z[:3])
    return Interval(mean, low, high, z.p)


def _slope_weights(epochs: int) -> np.ndarray:
    """The weight of each epoch in `fitted_change`, [epochs]."""
    centred = np.arange(epochs) - (epochs - 1) / 2
    return centred / (centred @ centred) * (epochs - 1)


def _two_sided(t: float, freedom: float) -> float:
    """The chance that Student's t is at least as far from 0."""
    return float(2 * special.stdtr(freedom, -abs(t)))


def _quarter(curve: np.ndarray) -> int:
    """The number of epochs in a quarter of a curve."""
    if len(curve) < QUARTER_OF:
        raise ValueError(
            f"a trend needs at least {QUARTER_OF} epochs, this curve has {len(curve)}: "
            "measure more often"
        )
    return len(curve) // QUARTER_OF
