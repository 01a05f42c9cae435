"""C5 and C6, accuracy beside coherence: correlations of known size, their power, and noise."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metanb.claims import paper as paper_claims
from metanb.claims import rules
from metanb.claims.run_stats import correlate_over_epochs, correlate_own_steps, correlation_power
from metanb.claims.verdicts import Verdict
from tests.support.noise import ERRORS, KINDS, LEVEL, NOISY, Bare, bare, noise
from tests.support.records import EPOCHS, QUICK, TIME, cell, record, verdict


def follow_each_other(measure, across, together=True, n=5):
    """Runs whose accuracies are 0, 0.2, 0.4 and so on higher, coherences higher by `across`.

    Both rise with training. Their swings about that are the same where they go `together`.
    """
    runs = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        accuracy = 0.5 + 0.3 * TIME + 0.03 * rng.normal(size=EPOCHS)
        apart = 0.5 + 0.3 * TIME + 0.03 * rng.normal(size=EPOCHS)
        coherence = accuracy if together else apart
        curves = {"query_accuracy": accuracy + 0.2 * seed, measure: coherence + across[seed]}
        runs.append(record(seed, curves, wobble=1e-4))
    return runs


UP, DOWN, WEAK = (
    0.2 * np.arange(10),
    0.2 * np.arange(10)[::-1],
    np.tile([0.2, 0.0, 0.8, 0.0, 0.4], 2),
)


@pytest.mark.parametrize(
    ("claim", "measure"), [("C5", "trajectory_coherence"), ("C6", "gradient_coherence")]
)
@pytest.mark.parametrize(
    ("across", "together", "n", "expected"),
    [
        (UP, True, 5, Verdict.REPRODUCED),
        (UP, True, 10, Verdict.REPRODUCED),
        (DOWN, True, 5, Verdict.WITHIN_RUNS),  # runs say the opposite
        # across runs by chance only, r = 0.2, of too few to tell
        (WEAK, True, 5, Verdict.POWERLESS),
        (UP, True, 4, Verdict.POWERLESS),  # too few to compare across runs at all
        (WEAK, True, 10, Verdict.WITHIN_RUNS),  # enough runs, and not seen across them
        (UP, False, 5, Verdict.TREND_ONLY),  # a shared trend only
        (WEAK, False, 4, Verdict.TREND_ONLY),
        (UP, True, 2, Verdict.TOO_FEW),
    ],
)
def test_correlation_of_accuracy_and_coherence(claim, measure, across, together, n, expected):
    (row,) = (
        row
        for row in rules.judge(follow_each_other(measure, across, together, n))
        if row.claim == claim
    )
    assert row.verdict == expected
    assert ("too few runs to compare across them" in row.detail) == (n < rules.ACROSS)


def test_what_falls_while_accuracy_rises_is_the_opposite_and_what_does_neither_is_not_seen():
    falling = [
        record(s, {"query_accuracy": TIME, "trajectory_coherence": 2 - TIME}) for s in range(3)
    ]
    assert verdict(falling, "C5") == Verdict.OPPOSITE_TREND
    mirrored = []
    for seed in range(3):
        accuracy = TIME + 0.03 * np.random.default_rng(seed).normal(size=EPOCHS)
        curves = {"query_accuracy": accuracy, "trajectory_coherence": 2 - accuracy}
        mirrored.append(record(seed, curves, wobble=1e-4))
    assert verdict(mirrored, "C5") == Verdict.CONTRARY
    assert verdict(cell({"query_accuracy": TIME}), "C5") == Verdict.NOT_SEEN


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("rho", KINDS.values(), ids=KINDS)
def test_curves_that_level_off_together_share_a_trend_and_no_more(rho, n):
    """Accuracy rises and coherence falls or rises, each with noise of its own; then both level off.

    Plain first differences correlate in nearly every cell. Own ones do as rarely as the level says.
    """
    rng = np.random.default_rng(3)
    trend = 1 - np.exp(-np.arange(EPOCHS) / 2)
    plain = 0
    above, below = 0, 0
    for _ in range(NOISY):
        accuracy = 0.6 * trend + 0.02 * noise(rng, rho, n)
        coherence = 0.2 * trend + 0.007 * noise(rng, rho, n)
        pairs = list(zip(accuracy, coherence, strict=True))
        plain += correlate_over_epochs(pairs, np.diff).low > 0
        own = correlate_own_steps(pairs)
        above += own.low > 0
        below += own.high < 0
    assert plain > 0.6 * NOISY
    assert max(above, below) / NOISY < LEVEL + ERRORS


def test_own_steps_that_go_together_are_seen_within_a_shared_trend():
    pairs = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        swings, apart = rng.normal(size=(2, EPOCHS))
        trend = 1 - np.exp(-np.arange(EPOCHS) / 2)
        pairs.append((trend + 0.02 * swings, 2 * trend + 0.02 * (swings + apart)))
    assert correlate_own_steps(pairs).low > 0.3


def test_the_power_of_the_runs_that_there_are_is_told():
    for n, share in ((5, 41), (10, 87)):
        (row,) = (
            r
            for r in rules.judge(follow_each_other("trajectory_coherence", WEAK, n=n))
            if r.claim == "C5"
        )
        assert row.detail.endswith(f"a true r of 0.8 is seen in {share} % of cases")


@pytest.mark.parametrize(("n", "least"), [(3, 1.0), (5, 0.5), (10, 0.0)])
def test_runs_too_few_to_show_a_strong_correlation_do_not_speak_against_it(n, least):
    """Accuracy does go with coherence, over epochs and, at r = 0.8, across runs.

    The verdict is not *within runs only* for want of runs.
    """
    rng, counts = np.random.default_rng(7), Counter()
    with bare():
        for _ in range(100):
            levels = rng.multivariate_normal([0, 0], [[1, rules.STRONG], [rules.STRONG, 1]], size=n)
            runs = []
            for seed, (a, c) in enumerate(levels):
                swing = noise(rng, 0.5, 1)[0]
                curves = {
                    "query_accuracy": a + 0.1 * swing,
                    "trajectory_coherence": c + 0.1 * swing,
                }
                runs.append(Bare(replace(QUICK, seed=seed), curves))
            counts[rules._judge_correlation(paper_claims.BY_NAME["C5"], runs).verdict] += 1
    assert counts[Verdict.POWERLESS] >= 100 * least
    assert counts[Verdict.WITHIN_RUNS] <= 25 * (n == 10)
    if n > 3:  # as often as the power says, within four standard errors
        power = correlation_power(n, rules.STRONG)
        assert counts[Verdict.REPRODUCED] / 100 == pytest.approx(
            power, abs=4 * math.sqrt(power * (1 - power) / 100)
        )
