"""Effects of curves and runs against scipy, least squares, closed forms, brute force, and noise."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metanb.claims import run_stats

EPOCHS = 12


def noise(rng, cells, runs, rho=0.0):
    """Stationary autoregressive noise of variance 1, [cells, runs, epochs]."""
    e = rng.normal(size=(cells, runs, EPOCHS))
    for t in range(1, EPOCHS):
        e[..., t] = rho * e[..., t - 1] + np.sqrt(1 - rho**2) * e[..., t]
    return e


def at_most(hits, level):
    """Whether a rate is at most `level`, within four binomial standard errors."""
    return np.mean(hits) <= level + 4 * np.sqrt(level * (1 - level) / len(hits))


@pytest.mark.parametrize(("against", "level"), [(0.0, 0.95), (0.3, 0.99)])
def test_interval_is_scipys(against, level):
    values = np.random.default_rng(0).normal(size=5)
    interval = run_stats.interval(values, against, level)
    expected = stats.ttest_1samp(values, against)
    bounds = expected.confidence_interval(level)
    assert interval == pytest.approx((values.mean(), bounds.low, bounds.high, expected.pvalue))


def test_interval_of_one_value_and_of_equal_values():
    assert run_stats.interval([1.0]) == (1.0, -np.inf, np.inf, 1.0)
    assert run_stats.interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 0.0)
    assert run_stats.interval([2.0, 2.0], against=2.0).p == 1.0


@pytest.mark.parametrize(
    ("values", "shared"),
    [([1.0, np.nan, 2.0], []), ([1.0, np.inf], []), ([1.0, 2.0], [0.1, np.nan])],
)
def test_what_is_not_finite_leaves_everything_possible(values, shared):
    effect = run_stats.interval(values, shared=shared)
    assert effect[1:] == (-np.inf, np.inf, 1.0)


def test_a_ratio_has_fiellers_interval():
    """Over runs alone, in closed form: the roots of a quadratic in the ratio."""
    rng = np.random.default_rng(3)
    base = 2 + 0.3 * rng.normal(size=6)
    values = 0.6 * base + 0.2 * rng.normal(size=6)
    none = np.zeros(6)
    ratio = run_stats.ratio_interval(values, base, none, none)
    cov = np.cov(values, base) / 6
    t2 = stats.t.ppf(0.975, 5) ** 2
    a = base.mean() ** 2 - t2 * cov[1, 1]
    b = -2 * (values.mean() * base.mean() - t2 * cov[0, 1])
    c = values.mean() ** 2 - t2 * cov[0, 0]
    assert ratio.mean == pytest.approx(values.mean() / base.mean())
    assert ratio[1:3] == pytest.approx(sorted(np.roots([a, b, c])), rel=1e-9)
    wider = run_stats.ratio_interval(values, base, none + 0.2, none + 0.2)
    assert wider.low < ratio.low and wider.high > ratio.high


def test_a_ratio_to_what_may_be_0_has_no_bounds():
    none = np.zeros(3)
    ratio = run_stats.ratio_interval(none + 0.01, np.array([0.01, 0.2, 0.5]), none, none)
    assert ratio[1:3] == (-np.inf, np.inf)
    base = np.array([0.9, 1.0, 1.1])  # above 0 over these runs, not over other tasks
    assert run_stats.ratio_interval(base, base, none, none)[1:3] == pytest.approx((1, 1))
    assert run_stats.ratio_interval(base, base, none, none + 1)[1:3] == (-np.inf, np.inf)


def test_interval_with_a_shared_error_is_the_wider_of_two():
    """By scipy: over runs alone, and with the error in the variance and Satterthwaite's freedom."""
    values, shared = np.random.default_rng(1).normal(size=4), np.array([0.1, 0.2, 0.3, 0.4])
    alone = stats.ttest_1samp(values, 0.5).confidence_interval(0.95)
    for scale in (1e-3, 1.0, 3.0, 100.0):
        squares = values.var(ddof=1) / 4, ((scale * shared) ** 2).mean()
        freedom = sum(squares) ** 2 / (squares[0] ** 2 / 3)
        half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(squares))
        p = 2 * stats.t.sf(abs(values.mean() - 0.5) / np.sqrt(sum(squares)), freedom)
        interval = run_stats.interval(values, 0.5, shared=scale * shared)
        assert interval.high - interval.mean == pytest.approx(max(half, alone.high - values.mean()))
        assert interval.low + interval.high == pytest.approx(2 * interval.mean)
        assert interval.p == pytest.approx(max(p, stats.ttest_1samp(values, 0.5).pvalue))
    assert run_stats.interval(values, shared=np.zeros(4)) == run_stats.interval(values)
    equal = run_stats.interval([2.0, 2.0], shared=[3.0, 3.0])  # the runs have all of it in common
    assert equal[:3] == pytest.approx(
        (2, 2 - 3 * stats.norm.ppf(0.975), 2 + 3 * stats.norm.ppf(0.975))
    )
    assert equal.p == pytest.approx(2 * stats.norm.sf(2 / 3))
    assert run_stats.interval([1.0], shared=[0.1]) == (1.0, -np.inf, np.inf, 1.0)


def drawn(rng, draws, errors, together):
    """Errors of means over tasks, [draws, epochs]: one per half, the halves correlated."""
    halves = rng.multivariate_normal([0, 0], [[1, together], [together, 1]], size=draws)
    return np.repeat(halves, len(errors) // 2, axis=1) * errors


@pytest.mark.parametrize("together", [0.0, 0.5])
def test_errors_over_tasks_are_those_of_simulated_curves_or_more(together):
    """The bound is the error where early and late errors are independent; else it is above it."""
    rng, errors = np.random.default_rng(4), np.linspace(0.01, 0.02, 8)
    curve = np.linspace(1.0, 3.0, 8)
    curves = curve + drawn(rng, 4000, errors, together)
    for effect, bound in (
        (run_stats.trend, run_stats.trend_error(curve, errors)),
        (run_stats.fitted_change, run_stats.fitted_change_error(errors)),
    ):
        spread = np.std([effect(c) for c in curves])
        if together:
            assert spread < 0.95 * bound
        else:
            assert spread == pytest.approx(bound, rel=0.05)
    assert run_stats.late_error(errors) == pytest.approx(errors[-2:].mean())
    assert np.std([run_stats.late_mean(c) for c in curves]) == pytest.approx(
        run_stats.late_error(errors), rel=0.05
    )


def shared_tasks(rng, cells, runs, share, tasks=60):
    """Means over tasks and their errors, each [cells, runs, epochs].

    `share` of the variance is common to all runs.
    Half of the rest is that of a run on a task, half that of a run on all of them.
    """
    common = noise(rng, cells, tasks, 0.5)[:, None]
    own = noise(rng, cells * runs, tasks, 0.5).reshape(cells, runs, tasks, EPOCHS)
    whole = noise(rng, cells, runs, 0.5) / np.sqrt(tasks)
    values = 1 + 0.3 * (
        np.sqrt(share) * common + np.sqrt((1 - share) / 2) * (own + whole[:, :, None])
    )
    return values.mean(axis=2), values.std(axis=2, ddof=1) / np.sqrt(tasks)


EFFECTS = {
    "trend": lambda curve, errors: (run_stats.trend(curve), run_stats.trend_error(curve, errors)),
    "change": lambda curve, errors: (
        run_stats.fitted_change(np.log(curve)),
        run_stats.fitted_change_error(errors / curve),
    ),
    "late": lambda curve, errors: (run_stats.late_mean(curve) - 1, run_stats.late_error(errors)),
}


def with_errors(effect, means, errors):
    """The effect of each run and its error over tasks, [cells, runs, 2]."""
    flat = [
        effect(*run)
        for run in zip(means.reshape(-1, EPOCHS), errors.reshape(-1, EPOCHS), strict=True)
    ]
    return np.array(flat).reshape(*means.shape[:2], 2)


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_shared_tasks_do_not_pass_for_an_effect(runs, share):
    """Only the drawn tasks make changes: each side has at most 2.5 %, over runs alone far more."""
    means, errors = shared_tasks(np.random.default_rng(11), 400, runs, share)
    for name, effect in EFFECTS.items():
        pairs = np.array(
            [
                [effect(c, e) for c, e in zip(*cell, strict=True)]
                for cell in zip(means, errors, strict=True)
            ]
        )
        with_tasks = [run_stats.interval(cell[:, 0], shared=cell[:, 1]) for cell in pairs]
        alone = [run_stats.interval(cell[:, 0]) for cell in pairs]
        for side in (1, -1):
            hits = [side * i.mean > 0 and i.low * i.high > 0 for i in with_tasks]
            assert at_most(hits, 0.025), name
        if share == 0.5:
            assert np.mean([i.low * i.high > 0 for i in alone]) > 0.05 + 0.05, name
    peaks = [run_stats.first_peak(*cell).low > 0 for cell in zip(means, errors, strict=True)]
    assert at_most(peaks, 0.025)


def test_an_effect_is_seen_all_the_same():
    """A fall by a tenth, with errors over tasks of a twenty-fifth, is seen in most cells."""
    means, errors = shared_tasks(np.random.default_rng(12), 200, 5, 0.5)
    means, errors = (values * np.linspace(1.0, 0.75, EPOCHS) for values in (means, errors))
    for name in ("trend", "change"):
        pairs = with_errors(EFFECTS[name], means, errors)
        falls = [run_stats.interval(cell[:, 0], shared=cell[:, 1]).high < 0 for cell in pairs]
        assert np.mean(falls) > 0.8


def test_trend_and_late_in_closed_form():
    # quarters of two: (8+4)/2 = 6, (2+1)/2 = 1.5
    curve = np.array([8.0, 4.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0])
    assert run_stats.late_mean(curve) == 1.5
    assert run_stats.trend(curve) == pytest.approx(np.log(1.5 / 6.0))
    with pytest.raises(ValueError, match="4 epochs"):
        run_stats.trend(curve[:3])
    with pytest.raises(ValueError, match="positive"):
        run_stats.trend(-curve)


def test_change_is_numpys_line():
    curve = np.random.default_rng(0).normal(size=9)
    assert run_stats.fitted_change(curve) == pytest.approx(
        8 * np.polyfit(np.arange(9), curve, 1)[0]
    )
    assert run_stats.fitted_change([1.0, 2.0, 3.0]) == pytest.approx(2.0)


def test_correlation_is_numpys():
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    r, p = run_stats.correlation(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert p == pytest.approx(2 * stats.t.sf(abs(r) * np.sqrt(18 / (1 - r**2)), 18))
    assert run_stats.correlation(x, np.ones(20)) == (0.0, 1.0)
    assert run_stats.correlation(x, 2 * x) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert run_stats.correlation(x[:2], y[:2]) == tuple(stats.pearsonr(x[:2], y[:2]))
    assert run_stats.correlation(x[:5], y[:5]) == pytest.approx(tuple(stats.pearsonr(x[:5], y[:5])))


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("r", [0.5, 0.8, 0.9])
def test_power_is_the_share_of_simulated_groups_of_runs_in_which_the_correlation_is_seen(runs, r):
    x, e = np.random.default_rng(3).normal(size=(2, 20_000, runs))
    y = r * x + np.sqrt(1 - r**2) * e
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    seen_r = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    t = seen_r * np.sqrt((runs - 2) / (1 - seen_r**2))
    power = run_stats.correlation_power(runs, r)
    simulated = np.mean(t > stats.t.ppf(0.975, runs - 2))
    assert power == pytest.approx(simulated, abs=4 * np.sqrt(power * (1 - power) / 20_000))


def test_power_without_a_correlation_is_the_level_and_two_runs_have_none():
    assert run_stats.correlation_power(7, 0.0) == pytest.approx(0.025)
    assert run_stats.correlation_power(2, 0.9) == 0.0


def test_detrended_is_the_residual_of_least_squares():
    curve, t = np.random.default_rng(0).normal(size=EPOCHS), np.log(np.arange(1, EPOCHS + 1))
    design = np.stack([np.ones(EPOCHS), t, t**2], 1)
    expected = curve - design @ np.linalg.lstsq(design, curve, rcond=None)[0]
    assert run_stats.detrend(curve) == pytest.approx(expected, abs=1e-10)
    assert run_stats.detrend(3 - t + 2 * t**2) == pytest.approx(0.0, abs=1e-10)


def test_mean_correlation_is_taken_of_fishers_z():
    mean = run_stats.mean_correlation([0.5, 0.7, 0.9])
    z = np.arctanh([0.5, 0.7, 0.9])
    bounds = stats.ttest_1samp(z, 0).confidence_interval(0.95)
    assert mean[:3] == pytest.approx(np.tanh([z.mean(), bounds.low, bounds.high]))
    assert run_stats.mean_correlation([1.0, 1.0]).mean == pytest.approx(1.0)


@pytest.mark.parametrize("r", [1.0, -1.0])
def test_one_run_of_a_perfect_correlation_leaves_the_interval_finite(r):
    mean = run_stats.mean_correlation([r, 0.0, 0.0])
    assert 0.9 < r * mean.mean < 1  # a third of artanh(1 - 1e-9) is 3.6
    assert -1 < mean.low < mean.mean < mean.high < 1 and 0 < mean.p < 1


@pytest.mark.parametrize("transform", [np.asarray, np.diff, lambda curve: curve[EPOCHS // 2 :]])
def test_curves_are_correlated_run_by_run(transform):
    pairs = list(noise(np.random.default_rng(1), 3, 2))
    z = np.arctanh([stats.pearsonr(transform(x), transform(y)).statistic for x, y in pairs])
    bounds = stats.ttest_1samp(z, 0).confidence_interval(0.95)
    r = run_stats.correlate_over_epochs(pairs, transform)
    assert r[:3] == pytest.approx(np.tanh([z.mean(), bounds.low, bounds.high]))
    assert r.describe(".1f") == f"{r.mean:.1f} ({r.low:.1f} to {r.high:.1f})"
    assert r.describe("+.1f", "m") == f"{r.mean:+.1f} m ({r.low:+.1f} to {r.high:+.1f})"


def test_own_steps_are_those_beyond_the_mean_over_runs():
    """Their interval is that of independent runs times the root of (n - 1) / (n - 2)."""
    pairs = list(noise(np.random.default_rng(1), 4, 2))
    own = np.diff(np.array(pairs) - np.mean(pairs, axis=0))
    z = np.arctanh([stats.pearsonr(*both).statistic for both in own])
    half = stats.t.ppf(0.975, 3) * stats.sem(z) * np.sqrt(3 / 2)
    r = run_stats.correlate_own_steps(pairs)
    assert r[:3] == pytest.approx(np.tanh([z.mean(), z.mean() - half, z.mean() + half]))
    assert r.p == pytest.approx(2 * stats.t.sf(abs(z.mean()) / (half / stats.t.ppf(0.975, 3)), 3))


def test_without_runs_any_correlation_is_possible():
    assert run_stats.correlate_over_epochs([])[1:] == (-1.0, 1.0, 1.0)
    for runs in (0, 2):  # what two runs have of their own is equal and opposite
        pairs = list(noise(np.random.default_rng(1), runs, 2))
        assert run_stats.correlate_own_steps(pairs)[1:] == (-1.0, 1.0, 1.0)


def test_holm_is_the_step_down_procedure():
    """By definition: the adjusted p is the least level at which the procedure rejects."""

    def rejected(p, level):
        out = np.zeros(len(p), dtype=bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] * (len(p) - step) > level:
                break
            out[i] = True
        return out

    p = np.random.default_rng(0).random(7) ** 3
    adjusted = run_stats.holm(p)
    for level in np.linspace(0.001, 0.999, 200):
        assert ((adjusted <= level) == rejected(p, level)).all()
    assert len(run_stats.holm([])) == 0


def test_first_peak_finds_a_peak_that_runs_share():
    curve = np.array([1, 2, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1.0])
    curves = curve * np.exp(0.05 * np.random.default_rng(0).normal(size=(4, EPOCHS)))
    peak = run_stats.first_peak(curves)
    assert peak.mean == pytest.approx(np.log(4), abs=0.1)
    rises = np.log(curves[:, 2] / curves[:, 0])  # five epochs to choose from: 2 to 6
    expected = stats.ttest_1samp(rises, 0)
    bounds = expected.confidence_interval(0.99)
    assert peak[1:] == pytest.approx((bounds.low, bounds.high, 5 * expected.pvalue))


def test_first_peak_needs_four_epochs():
    curves = np.array([[1.0, 2.0, 1.0, 1.0], [1.0, 3.0, 1.0, 1.0], [1.0, 2.5, 1.0, 1.0]])
    rises = np.log(curves[:, 1])  # one epoch to choose from: no correction
    bounds = stats.ttest_1samp(rises, 0).confidence_interval(0.95)
    assert run_stats.first_peak(curves)[1:3] == pytest.approx((bounds.low, bounds.high))
    with pytest.raises(ValueError, match="4 epochs"):
        run_stats.first_peak(curves[:, :3])


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_noise_has_a_first_peak_as_rarely_as_its_level_says(runs, rho):
    cells = np.exp(0.2 * noise(np.random.default_rng(1), 600, runs, rho))
    assert at_most([run_stats.first_peak(cell).low > 0 for cell in cells], 0.025)


def test_forty_epochs_have_a_first_peak_as_rarely_and_five_runs_show_one():
    """As many epochs as runs of the beginning have: 19 to choose from."""
    rng = np.random.default_rng(3)
    logs = 0.2 * np.cumsum(rng.normal(size=(400, 5, 40)), axis=2) / 3  # walks, the worst kind
    assert at_most([run_stats.first_peak(cell).low > 0 for cell in np.exp(logs)], 0.025)
    peak = np.exp(-((np.arange(40) - 8) ** 2) / 20)  # at epoch 9, by seven tenths
    logs = np.log(1.7) * peak + 0.1 * rng.normal(size=(400, 5, 40))
    assert np.mean([run_stats.first_peak(cell).low > 0 for cell in np.exp(logs)]) > 0.8


@pytest.mark.parametrize("runs", [3, 5])
def test_noise_has_a_trend_as_often_as_its_level_says(runs):
    cells = np.exp(0.2 * noise(np.random.default_rng(2), 1500, runs))
    intervals = [run_stats.interval(run_stats.trend(curve) for curve in cell) for cell in cells]
    for hits in ([i.low > 0 for i in intervals], [i.high < 0 for i in intervals]):
        assert at_most(hits, 0.025) and np.mean(hits) > 0.005


def test_effects_know_nothing_of_claims():
    """The statistics cannot tell which result is hoped for: they import nothing of metanb."""
    tree = ast.parse(Path(run_stats.__file__).read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    assert not [name for name in names if name.startswith("metanb")]


def test_an_interval_of_nothing_is_infinite():
    nothing = run_stats.interval([])
    assert np.isnan(nothing.mean) and nothing[1:] == (-np.inf, np.inf, 1.0)
