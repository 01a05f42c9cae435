"""C4, flatter while worse: falls of known size are seen, noise is not."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from tests.support.noise import KEPT, KINDS, LEVEL, NOISY, RUNS, Bare, bare, noise
from tests.support.records import EPOCHS, TIME, cell, record, verdict

UP_AND_DOWN = np.r_[0.5, 0.6, 0.7, 0.8, np.linspace(0.78, 0.4, 8)]


@pytest.mark.parametrize(
    ("slope", "expected"), [(-1, Verdict.REPRODUCED), (1, Verdict.CONTRARY), (0, Verdict.NOT_SEEN)]
)
def test_flatter_while_worse(slope, expected):
    curves = {
        "query_accuracy": UP_AND_DOWN,
        "valid_accuracy": UP_AND_DOWN,
        "hessian_norm": np.exp(slope * TIME),
    }
    runs = cell(curves, algorithm="fomaml", train_classes=10)
    assert verdict(runs, "C4", algorithm="fomaml") == expected
    assert verdict(runs[:2], "C4", algorithm="fomaml") == Verdict.TOO_FEW


LEVEL_AFTER = np.r_[UP_AND_DOWN[:4], np.full(8, 0.7)]


@pytest.mark.parametrize(
    ("valid", "test"),
    [
        (LEVEL_AFTER, LEVEL_AFTER),
        (UP_AND_DOWN, TIME),
        (UP_AND_DOWN, LEVEL_AFTER),
        (LEVEL_AFTER, UP_AND_DOWN),
    ],
    ids=[
        "level after the best",
        "test still rises",
        "a fall in validation alone",
        "a fall in test alone",
    ],
)
def test_without_a_fall_of_accuracy_there_is_no_case(valid, test):
    curves = {"query_accuracy": test, "valid_accuracy": valid, "hessian_norm": np.exp(-TIME)}
    assert verdict(cell(curves, wobble=0.001), "C4") == Verdict.NO_CASE


def test_a_norm_that_falls_to_0_has_no_ratio():
    curves = {
        "query_accuracy": UP_AND_DOWN,
        "valid_accuracy": UP_AND_DOWN,
        "hessian_norm": np.r_[np.ones(11), 0.0],
    }
    assert verdict(cell(curves), "C4") == Verdict.NO_RATIO


@pytest.mark.parametrize(("epochs", "expected"), [(6, Verdict.TOO_SHORT), (7, Verdict.REPRODUCED)])
def test_the_second_half_must_have_four_epochs(epochs, expected):
    curves = {
        "query_accuracy": 1 - TIME / 2,
        "valid_accuracy": 1 - TIME / 2,
        "hessian_norm": np.exp(-TIME),
    }
    runs = [run.upto(epochs) for run in cell(curves, wobble=0.001)]
    assert verdict(runs, "C4") == expected
    assert verdict(runs[:2], "C4") == Verdict.TOO_FEW


def test_a_fall_is_that_of_the_second_half():
    """By hand: lines through epochs 7 to 12; what comes before does not count."""
    test, valid = (np.r_[0.1, np.ones(5), np.linspace(0.9, end, 6)] for end in (0.5, 0.6))
    curves = {"query_accuracy": test, "valid_accuracy": valid, "hessian_norm": np.exp(-2 * TIME)}
    curves["hessian_norm"][:6] = 1e6
    (row,) = (
        row
        for row in rules.judge(cell(curves, wobble=1e-6))
        if (row.claim, row.variant) == ("C4", "")
    )
    assert row.effect == pytest.approx(-2 * 5 / 12, abs=1e-4)
    assert f"epochs 7 to 12; {rules.RUNS_ALONE}: accuracy -40.00 points (" in row.detail
    assert "on meta-validation tasks -30.00 points (" in row.detail


@pytest.mark.parametrize("loosest", range(3))
def test_the_finding_that_is_least_sure_sets_p(loosest):
    """Each p by scipy, of three runs' lines: both accuracies, the log Hessian norm; the largest."""
    changes = [(-0.2, -0.21, -0.19), (-0.3, -0.31, -0.29), (-2.0, -2.1, -1.9)]
    changes[loosest] = tuple(2 * changes[loosest][0] * share for share in (0.25, 0.5, 0.75))
    runs = []
    for seed in range(3):
        test, valid, log = (np.r_[np.zeros(6), by[seed] * np.arange(6) / 5] for by in changes)
        curves = {
            "query_accuracy": 0.9 + test,
            "valid_accuracy": 0.9 + valid,
            "hessian_norm": np.exp(log),
        }
        runs.append(record(seed, curves, wobble=0.0))
    (row,) = (row for row in rules.judge(runs) if (row.claim, row.variant) == ("C4", ""))
    assert row.p == pytest.approx(max(stats.ttest_1samp(values, 0).pvalue for values in changes))
    assert row.p == pytest.approx(
        stats.ttest_1samp(changes[loosest], 0).pvalue
    ) and row.effect == pytest.approx(-2.0)


# parts of accuracy's variance: the run's own on both sets; that of the tasks of a set, in all runs
SHARED = {
    "apart": (0.0, 0.0),
    "one network": (1.0, 0.0),
    "half the network's": (0.5, 0.0),
    "30 % the tasks'": (0.5, 0.3),
    "50 % the tasks'": (0.5, 0.5),
}


@pytest.mark.parametrize(("network", "tasks"), SHARED.values(), ids=SHARED)
def test_noise_does_not_get_worse(network, tasks):
    """The Hessian norm does fall, and accuracy is noise of all kinds.

    Accuracy is said to fall in 2.5 % of cells, 5 % at most.
    """
    rng, counts = np.random.default_rng(9), Counter()
    with bare():
        for rho in KINDS.values():
            for _ in range(NOISY):
                both = noise(rng, rho, RUNS)  # what the network does on either set
                sets = [
                    math.sqrt(1 - tasks)
                    * (math.sqrt(network) * both + math.sqrt(1 - network) * noise(rng, rho, RUNS))
                    + math.sqrt(tasks) * noise(rng, rho, 1)
                    for _ in range(2)
                ]
                runs = []
                for (_, settings), test, valid in zip(KEPT, *sets, strict=False):
                    curves = {
                        "query_accuracy": 0.7 + 0.02 * test,
                        "valid_accuracy": 0.7 + 0.02 * valid,
                    }
                    runs.append(
                        Bare(
                            settings,
                            curves | {"hessian_norm": np.exp(-5 * TIME + 0.01 * rng.random(12))},
                        )
                    )
                counts[rho] += (
                    rules._judge_flatter_while_worse(runs, "hessian_norm", "").verdict
                    == Verdict.REPRODUCED
                )
    level = 0.05 if tasks else LEVEL
    for rho in KINDS.values():
        assert counts[rho] / NOISY < level + 4 * math.sqrt(level * (1 - level) / NOISY), rho


def test_a_fall_under_shared_tasks_is_seen():
    """By 8 points in the second half, where tasks and runs leave 2 in an epoch: in most cells."""
    rng = np.random.default_rng(10)
    falls = 0
    with bare():
        for _ in range(NOISY):
            sets = [
                0.1 * np.minimum(0, 0.5 - TIME) * 1.6 + 0.02 * noise(rng, 0.5, RUNS)
                for _ in range(2)
            ]
            runs = [
                Bare(
                    settings,
                    {
                        "query_accuracy": 0.7 + test,
                        "valid_accuracy": 0.7 + valid,
                        "hessian_norm": np.exp(-TIME + 0.05 * rng.normal(size=EPOCHS)),
                    },
                )
                for (_, settings), test, valid in zip(KEPT, *sets, strict=False)
            ]
            falls += (
                rules._judge_flatter_while_worse(runs, "hessian_norm", "").verdict
                == Verdict.REPRODUCED
            )
    assert falls / NOISY > 0.8
