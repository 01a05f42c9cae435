"""Claims: synthetic records of known effect give each verdict; pure noise rarely gives one."""

import json
import math
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from metanb.claims import cells as cells_module
from metanb.claims import paper as paper_claims
from metanb.claims import rules, verdicts
from metanb.claims.cells import group_into_cells, late_values
from metanb.claims.run_stats import correlation_power, holm, interval
from metanb.claims.verdicts import Unit, Verdict
from metanb.runs.records import Record, RecordError
from metanb.settings import Settings, preset

EPOCHS = 12
TIME = np.arange(1, EPOCHS + 1) / EPOCHS
QUICK = preset("quick", "omniglot")
UNTRAINED = {"query_accuracy": 0.2}
MEASURES = (
    "hessian_norm adaptive_sharpness support_loss_before support_loss distance body_norm "
    "query_accuracy valid_accuracy trajectory_coherence gradient_coherence relative_move"
).split()


def record(seed, curves=None, wobble=0.01, errors=None, **settings):
    """A run with the curves given for epochs 1 to 12, and about 1 elsewhere.

    Epoch 0 is far off, and must not count but for UNTRAINED. `errors` are those over tasks, by
    measure, else 0.
    """
    settings = preset("quick", "omniglot", seed=seed, **settings)
    rng = np.random.default_rng([seed, int(settings.id[-8:], 16)])
    rows = []
    for measure in MEASURES:
        values = np.asarray((curves or {}).get(measure, np.ones(EPOCHS)), dtype=float)
        values = np.r_[
            UNTRAINED.get(measure, 1000.0), values * np.exp(wobble * rng.normal(size=EPOCHS))
        ]
        columns = {
            "iteration": 0,
            "measure": measure,
            "mean": values,
            "sem": (errors or {}).get(measure, 0.0),
        }
        rows.append(pd.DataFrame({"epoch": range(EPOCHS + 1), **columns}))
    return Record(settings, pd.concat(rows), {}, Path(settings.id))


def cell(curves, seeds=range(3), **settings):
    return [record(seed, curves, **settings) for seed in seeds]


def verdict(runs, claim, variant="", algorithm="maml"):
    (row,) = (
        r
        for r in rules.judge(runs)
        if (r.claim, r.variant, r.algorithm) == (claim, variant, algorithm)
    )
    return row.verdict


CURVES = [
    ("C1", "", "hessian_norm", -1),
    ("C1", rules.SCALE_FREE, "adaptive_sharpness", -1),
    ("C2", "", "support_loss", -1),
    ("C3", "", "distance", 1),
    ("C3", rules.RELATIVE, "distance", 1),
]


@pytest.mark.parametrize(("claim", "variant", "measure", "direction"), CURVES)
def test_trends(claim, variant, measure, direction):
    as_claimed, opposite = ({measure: np.exp(sign * direction * TIME)} for sign in (1, -1))
    assert verdict(cell(as_claimed), claim, variant) == Verdict.REPRODUCED
    assert verdict(cell(opposite), claim, variant) == Verdict.CONTRARY
    mixed = [*cell(as_claimed, [0]), *cell(opposite, [1]), *cell({}, [2])]
    assert verdict(mixed, claim, variant) == Verdict.NOT_SEEN
    assert verdict(cell(as_claimed, [0, 1]), claim, variant) == Verdict.TOO_FEW


def test_weights_that_grow_with_the_distance_undo_it():
    runs = cell({"distance": np.exp(TIME), "body_norm": np.exp(2 * TIME)})
    assert verdict(runs, "C3") == Verdict.REPRODUCED
    assert verdict(runs, "C3", rules.RELATIVE) == Verdict.CONTRARY


PEAK = np.r_[1, 2, 3, 2, 1, np.ones(7)]


@pytest.mark.parametrize(
    ("hessian_norm", "first_epoch", "expected"),
    [
        (PEAK, 150, Verdict.REPRODUCED),
        (PEAK, 50, Verdict.REPRODUCED),
        (np.exp(-TIME), 50, Verdict.NOT_SEEN),
        (np.exp(-TIME), 51, Verdict.TOO_COARSE),  # it may have come and gone
        (np.ones(EPOCHS), 150, Verdict.TOO_COARSE),
        (np.r_[np.ones(8), 3, 3, 1, 1], 25, Verdict.NOT_SEEN),  # late
    ],
)
def test_first_peak(hessian_norm, first_epoch, expected):
    options = {"epoch_iterations": first_epoch, "iterations": 100 * first_epoch}
    runs = cell({"hessian_norm": hessian_norm}, **options)
    (row,) = (row for row in rules.judge(runs) if row.variant == "first peak")
    assert (
        row.verdict == expected
        and row.detail == f"epoch 1 is measured after {first_epoch} iterations"
    )
    assert verdict(runs[:2], "C1", "first peak") == Verdict.TOO_FEW


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
        (DOWN, True, 5, Verdict.PARTLY),  # runs say the opposite
        # across runs by chance only, r = 0.2, of too few to tell
        (WEAK, True, 5, Verdict.POWERLESS),
        (UP, True, 4, Verdict.POWERLESS),  # too few to compare across runs at all
        (WEAK, True, 10, Verdict.PARTLY),  # enough runs, and not seen across them
        (UP, False, 5, Verdict.PARTLY),  # a shared trend only
        (WEAK, False, 4, Verdict.PARTLY),
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
    assert verdict(falling, "C5") == Verdict.CONTRARY
    assert verdict(cell({"query_accuracy": TIME}), "C5") == Verdict.NOT_SEEN


def test_the_power_of_the_runs_that_there_are_is_told():
    for n, share in ((5, 41), (10, 87)):
        (row,) = (
            r
            for r in rules.judge(follow_each_other("trajectory_coherence", WEAK, n=n))
            if r.claim == "C5"
        )
        assert row.detail.endswith(f"so many runs show a true r of 0.8 in {share} % of cases")


@pytest.mark.parametrize(("n", "least"), [(3, 1.0), (5, 0.5), (10, 0.0)])
def test_runs_too_few_to_show_a_strong_correlation_do_not_speak_against_it(n, least):
    """Accuracy does go with coherence, over epochs and, at r = 0.8, across runs.

    The verdict is not *partly* for want of runs.
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
    assert counts[Verdict.PARTLY] <= 25 * (n == 10)
    if n > 3:  # as often as the power says, within four standard errors
        power = correlation_power(n, rules.STRONG)
        assert counts[Verdict.REPRODUCED] / 100 == pytest.approx(
            power, abs=4 * math.sqrt(power * (1 - power) / 100)
        )


def coherent(level, fit=0.5, accuracy=0.6, **settings):
    """Runs of this trajectory coherence; adaptation takes the support loss from 1 to `fit`."""
    curves = {"trajectory_coherence": level, "support_loss": fit, "query_accuracy": accuracy}
    return cell({measure: np.full(EPOCHS, value) for measure, value in curves.items()}, **settings)


def beside_maml(runs):
    (row,) = (row for row in rules.judge(runs) if row.variant == "fresh head, beside MAML")
    return row


def test_orthogonality():
    def judged(ours, theirs, **baseline):
        return beside_maml(coherent(ours, algorithm="finetune", **baseline) + theirs).verdict

    assert judged(0.01, coherent(0.3)) == Verdict.REPRODUCED
    assert judged(0.01, coherent(0.01)) == Verdict.PARTLY
    assert judged(0.01, coherent(0.03)) == Verdict.PARTLY  # apart, and near 0 all the same
    assert judged(0.2, coherent(0.3)) == Verdict.CONTRARY
    assert judged(0.05, coherent(0.3)) == Verdict.NOT_SEEN
    assert judged(0.01, []) == Verdict.TOO_FEW
    assert judged(0.01, coherent(0.3)[:2]) == Verdict.TOO_FEW


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(
    "baseline", [{"fit": 10.0}, {"fit": 1.0}, {"accuracy": 0.1}, {"accuracy": 0.2}], ids=str
)
def test_orthogonality_of_a_baseline_that_does_not_work_is_not_testable(level, baseline):
    """Either adaptation does not lower the support loss, or meta-training does not raise accuracy.

    The untrained network's accuracy is 0.2.
    """
    row = beside_maml(
        coherent(level, algorithm="finetune", wobble=1e-4, **baseline) + coherent(0.3)
    )
    assert row.verdict == Verdict.NO_BASELINE and not row.verdict.is_judged
    assert f"support loss from 1.00 to {baseline.get('fit', 0.5):.2f}; its accuracy " in row.detail
    assert row.detail.endswith("%, untrained 20.0 %")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.009, 0.010, 0.011), (0.01, 0.2, 0.3), Verdict.PARTLY),  # higher, but not for sure
        ((0.0, 0.04, 0.08), (0.89, 0.9, 0.91), Verdict.NOT_SEEN),
        ((0.009, 0.010, 0.011), (0.2, 0.3, 0.4), Verdict.REPRODUCED),
        ((0.0, 0.01, 0.02), (0.89, 0.9, 0.91), Verdict.REPRODUCED),
    ],
)
def test_orthogonal_has_the_larger_p_of_what_it_rests_on(ours, theirs, expected):
    """Each p by scipy: finetuning is below 0.05; for *reproduced*, meta-training is above it."""
    runs = []
    for algorithm, levels in (("finetune", ours), ("maml", theirs)):
        for seed, level in enumerate(levels):
            curves = {
                "trajectory_coherence": np.full(EPOCHS, level),
                "support_loss": np.full(EPOCHS, 0.5),
            }
            runs.append(record(seed, curves, wobble=0.0, algorithm=algorithm))
    p = [stats.ttest_1samp(values, 0.05).pvalue for values in (ours, theirs)]
    row = beside_maml(runs)
    assert row.verdict == expected
    assert row.p == pytest.approx(max(p) if expected == Verdict.REPRODUCED else p[0])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(0.0, 0.01), (0.0, rules.ORTHOGONAL)], ids=["near 0", "at the bound"]
)
def test_noise_does_not_set_finetuning_apart(ours, theirs):
    """Finetuning is near 0, and meta-training is near 0 or at the bound.

    The verdict is *reproduced* in 2.5 % of cells at most.
    """
    rng, names = np.random.default_rng(6), []
    with bare():
        for _ in range(CELLS):
            runs = {"finetune": [], "maml": []}
            for algorithm, level in (("finetune", ours), ("maml", theirs)):
                for seed in range(RUNS):
                    curves = {"trajectory_coherence": level + 0.002 * noise(rng, 0.5, 1)[0]}
                    curves |= {
                        "support_loss_before": np.ones(EPOCHS),
                        "support_loss": 0.5 + 0.1 * rng.random(EPOCHS),
                    }
                    curves |= {"query_accuracy": 0.6 + 0.1 * rng.random(EPOCHS)}
                    runs[algorithm].append(
                        Bare(replace(QUICK, seed=seed, algorithm=algorithm), curves)
                    )
            names.append(rules._judge_orthogonality(runs["finetune"], runs["maml"], "maml").verdict)
    assert set(names) <= {Verdict.REPRODUCED, Verdict.PARTLY}
    assert names.count(Verdict.REPRODUCED) / CELLS < LEVEL + ERRORS


def test_every_test_head_is_set_beside_meta_training():
    runs = (
        coherent(0.01, algorithm="finetune", test_head="zero")
        + coherent(0.3)
        + coherent(0.4, algorithm="fomaml")
    )
    for name in ("MAML", "first-order MAML"):
        assert verdict(runs, "C7", f"zero head, beside {name}", "finetune") == Verdict.REPRODUCED


def test_orthogonal_compares_with_the_same_settings_only():
    runs = coherent(0.01, algorithm="finetune") + coherent(0.3, filters=16)
    assert verdict(runs, "C7", "fresh head, beside MAML", "finetune") == Verdict.TOO_FEW


@pytest.mark.parametrize(
    ("gain", "expected"),
    [(0.02, Verdict.REPRODUCED), (-0.02, Verdict.CONTRARY), (0.0, Verdict.NOT_SEEN)],
)
def test_gain_by_a_regulariser(gain, expected):
    rng = np.random.default_rng(0)
    base, with_it = [], []
    for seed in range(5):
        level = np.full(EPOCHS, 0.5 + 0.1 * seed)  # seeds differ far more than the gain: pairs tell
        base.append(record(seed, {"query_accuracy": level}, wobble=0.0))
        shifted = level + gain + 0.004 * rng.normal()
        with_it.append(
            record(seed, {"query_accuracy": shifted}, wobble=0.0, regulariser="adapted", gamma=1.0)
        )
    assert verdict(base + with_it, "C8", "adapted, γ = 1") == expected
    rows = [row for row in rules.judge(base[1:] + with_it) if row.claim == "C8"]
    assert [row.runs for row in rows] == [4]  # the one without a partner does not count
    assert [row.verdict for row in rules.judge(with_it) if row.claim == "C8"] == [Verdict.TOO_FEW]
    if gain == 0.02:
        (row,) = (row for row in rules.judge(base + with_it) if row.claim == "C8")
        assert row.effect == pytest.approx(2.0, abs=0.5) and row.change.endswith("points")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((-1, 0, 4), Verdict.UNCLEAR),
        ((-0.4, 0, 0.4), Verdict.NOT_SEEN),
        ((3, 3.1, 3.2), Verdict.REPRODUCED),
    ],
)
def test_an_interval_that_holds_no_gain_and_the_papers_tells_nothing(gains, expected):
    runs = []
    for seed, gain in enumerate(gains):
        runs.append(record(seed, {"query_accuracy": np.full(EPOCHS, 0.5)}, wobble=0.0))
        options = {"wobble": 0.0, "regulariser": "adapted", "gamma": 1.0}
        runs.append(record(seed, {"query_accuracy": np.full(EPOCHS, 0.5 + gain / 100)}, **options))
    assert verdict(runs, "C8", "adapted, γ = 1") == expected


def measured_once(run, accuracy, error):
    """The run with this accuracy on 600 further tasks after its last epoch."""
    last = {
        "epoch": run.epochs,
        "iteration": 0,
        "measure": "final_accuracy",
        "mean": accuracy,
        "sem": error,
    }
    return replace(run, measures=pd.concat([run.measures, pd.DataFrame([last])]))


def further_pairs(late, further, epochs=EPOCHS, error=0.0):
    """Pairs of runs, `late` points apart on the meta-test tasks, `further` on 600 others."""
    runs = []
    for seed, gains_with in enumerate(zip(late, further, strict=True)):
        for gains, options in (
            ((0, 0), {}),
            (gains_with, {"regulariser": "adapted", "gamma": 1.0}),
        ):
            curves = {"query_accuracy": np.full(EPOCHS, 0.5 + gains[0] / 100)}
            run = record(seed, curves, wobble=0.0, final_tasks=600, **options).upto(epochs)
            runs.append(measured_once(run, 0.5 + gains[1] / 100, error))
    return runs


def c8(runs):
    (row,) = (row for row in rules.judge(runs) if row.claim == "C8")
    return row


def test_a_gain_is_judged_on_the_further_tasks_where_all_runs_of_all_pairs_have_them():
    runs = further_pairs((-1, 0, 1), (1.9, 2.0, 2.1))
    row = c8(runs)
    assert row.verdict == Verdict.REPRODUCED and row.effect == pytest.approx(2.0)
    assert row.detail.startswith("accuracy on 600 tasks after the last epoch")
    assert row.p == pytest.approx(stats.ttest_1samp((1.9, 2.0, 2.1), 0).pvalue)
    lacking = replace(
        runs[0], measures=runs[0].measures[runs[0].measures.measure != "final_accuracy"]
    )
    row = c8([lacking, *runs[1:]])
    assert row.effect == pytest.approx(0.0, abs=1e-9) and row.verdict == Verdict.UNCLEAR
    assert row.detail.startswith("accuracy on 60 tasks, late in meta-training")


def test_further_tasks_of_another_epoch_do_not_count():
    """A longer run was measured at its own end, and pairs are compared at the epoch all reached."""
    runs = further_pairs((0, 0, 0.1), (1.9, 2.0, 2.1), epochs=8)
    longer = further_pairs((0, 0, 0.1), (1.9, 2.0, 2.1))
    row = c8([longer[0], *runs[1:]])
    assert row.effect == pytest.approx(0.1 / 3) and "60 tasks" in row.detail


def test_more_tasks_show_the_papers_gain_more_often():
    """Runs of the paper's gain: 60 tasks leave 1.5 points of noise in a pair, 600 leave 0.5."""
    rng, counts = np.random.default_rng(8), Counter()
    with bare():
        for _ in range(CELLS):
            for further in (0, 1):
                cells_of = []
                for gain in (paper_claims.PAPER_GAIN, 0.0):
                    runs = []
                    for seed in range(RUNS):
                        late, end = (
                            0.5 + (gain + rng.normal(scale=s / math.sqrt(2))) / 100
                            for s in (1.5, 0.5)
                        )
                        curves = {
                            "query_accuracy": np.full(EPOCHS, late),
                            "relative_move": np.ones(EPOCHS),
                        }
                        runs.append(
                            Bare(
                                replace(QUICK, seed=seed),
                                curves,
                                final=(end, 0.0) if further else None,
                            )
                        )
                    cells_of.append(runs)
                counts[further] += rules._judge_regulariser(*cells_of).verdict == Verdict.REPRODUCED
    assert counts[1] / CELLS > 0.9 and counts[0] / CELLS < 0.5


TREND = {  # rows whose interval has the error over tasks, and the measure that has it
    ("C1", ""): "hessian_norm",
    ("C1", rules.SCALE_FREE): "adaptive_sharpness",
    ("C1", "first peak"): "hessian_norm",
    ("C2", ""): "support_loss",
    ("C3", ""): "distance",
    ("C3", rules.RELATIVE): "distance",
    ("C4", ""): "hessian_norm",
    ("C4", rules.SCALE_FREE): "adaptive_sharpness",
}


@pytest.mark.parametrize(("claim", "variant"), TREND)
def test_an_error_over_tasks_that_explains_an_effect_undoes_it(claim, variant):
    """Each effect is a log ratio of at most about 1, the same in all runs; errors are 0.02 or 3."""
    measure = TREND[claim, variant]
    rising = np.r_[1, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1] if variant == "first peak" else np.exp(TIME)
    values = rising if claim == "C3" or variant == "first peak" else 1 / rising
    falls = {accuracy: 1 - TIME / 2 for accuracy in ("query_accuracy", "valid_accuracy")}
    rows = {}
    for error in (0.02, 3.0):
        errors = {measure: np.r_[0.0, error * values]}
        runs = [record(seed, falls | {measure: values}, errors=errors) for seed in range(3)]
        (rows[error],) = (
            row for row in rules.judge(runs) if (row.claim, row.variant) == (claim, variant)
        )
    assert rows[0.02].verdict == Verdict.REPRODUCED
    assert rows[3.0].verdict in (Verdict.NOT_SEEN, Verdict.TOO_COARSE)
    assert (
        rows[0.02].effect == pytest.approx(rows[3.0].effect) and rows[0.02].p < 0.05 < rows[3.0].p
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.001, 0.001, Verdict.REPRODUCED),
        (0.001, 0.2, Verdict.PARTLY),
        (0.1, 0.001, Verdict.NOT_SEEN),
    ],
)
def test_coherences_carry_their_errors_over_tasks(ours, theirs, expected):
    """Finetuning is at 0.01, meta-training at 0.3: either may be 0.05 by the choice of tasks."""
    runs = []
    for error, coherence, algorithm in ((ours, 0.01, "finetune"), (theirs, 0.3, "maml")):
        curves = {
            "trajectory_coherence": np.full(EPOCHS, coherence),
            "support_loss": np.full(EPOCHS, 0.5),
        }
        errors = {"trajectory_coherence": error}
        runs += [record(seed, curves, errors=errors, algorithm=algorithm) for seed in range(3)]
    assert beside_maml(runs).verdict == expected


def test_a_gain_on_further_tasks_carries_their_error():
    """By hand: each pair's error is that of two runs, 1.5 points times the root of 2."""
    gains = (2.0, 2.1, 1.9)
    row = c8(further_pairs((0, 0, 0), gains, error=0.015))
    both = np.var(gains, ddof=1) / 3 + 2 * 1.5**2
    freedom = 2 * (both / (np.var(gains, ddof=1) / 3)) ** 2
    assert row.high - row.effect == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(both))
    assert row.verdict == Verdict.UNCLEAR and rules.RUNS_ALONE not in row.detail


def test_rows_say_where_the_error_over_tasks_is_not_in():
    rows = rules.judge(everything())
    assert {row.claim for row in rows if rules.RUNS_ALONE in row.detail} == {"C4", "C5", "C6", "C8"}
    assert all(
        rules.RUNS_ALONE in row.detail for row in rows if row.claim in ("C4", "C5", "C6", "C8")
    )


def test_stopped_runs_are_judged_where_three_have_got_to():
    """By hand: of runs that reached 12, 8, 6 and 5 epochs three reach 6; the fourth is left out."""
    whole = [
        record(seed, {"support_loss": np.exp(-TIME * (1 + seed))}, wobble=0.0) for seed in range(4)
    ]
    runs = [run.upto(epochs) for run, epochs in zip(whole, (12, 8, 6, 5), strict=True)]
    (row,) = (row for row in rules.judge(runs) if row.claim == "C2")
    assert row.runs == 3 and row.ids == tuple(run.settings.id for run in runs[:3])
    assert (row.scale, row.reached) == ("quick", "900 of 1,800 iterations")
    assert row.effect == pytest.approx(np.mean([-5 / 12 * (1 + seed) for seed in range(3)]))
    assert rules.judge([run.upto(3) for run in whole]) == []  # no quarter to speak of


def test_a_regulariser_is_compared_at_the_epoch_that_both_have_reached():
    base = [
        record(s, {"query_accuracy": np.r_[np.full(6, 0.5), np.full(6, 0.9)]}, wobble=0.0)
        for s in range(3)
    ]
    options = {"wobble": 0.0, "regulariser": "adapted", "gamma": 1.0}
    with_it = [
        record(s, {"query_accuracy": np.full(EPOCHS, 0.6)}, **options).upto(6) for s in range(3)
    ]
    (row,) = (row for row in rules.judge(base + with_it) if row.claim == "C8")
    assert row.effect == pytest.approx(10.0)


def test_more_runs_never_undo_pairs():
    """Three pairs to epoch 8; a fourth, longer run without the regulariser changes nothing."""
    options = {"regulariser": "adapted", "gamma": 1.0}
    with_it = [
        record(s, {"query_accuracy": np.full(EPOCHS, 0.6)}, **options).upto(8) for s in range(3)
    ]
    base = [record(s, {}).upto(epochs) for s, epochs in enumerate((12, 12, 8, 12))]
    ledgers = [
        [row for row in rules.judge([*with_it, *without]) if row.claim == "C8"]
        for without in (base[:3], base)
    ]
    assert ledgers[0][0].runs == 3
    assert [replace(rows[0], p_holm=0.0) for rows in ledgers] == [
        replace(ledgers[0][0], p_holm=0.0)
    ] * 2


def test_a_short_run_leaves_the_others_of_its_cell():
    runs = [run.upto(epochs) for run, epochs in zip(cell({}), (12, 12, 3), strict=True)]
    rows = rules.judge(runs)
    assert len(rows) > 5 and {(row.runs, row.verdict) for row in rows} == {(2, Verdict.TOO_FEW)}


def test_orthogonality_is_compared_at_the_epoch_that_both_have_reached():
    rising = {
        "trajectory_coherence": np.r_[np.full(6, 0.01), np.full(6, 0.4)],
        "support_loss": np.full(EPOCHS, 0.5),
    }
    ours = [run.upto(6) for run in cell(rising, algorithm="finetune")]
    assert (
        verdict(ours + cell(rising), "C7", "fresh head, beside MAML", "finetune") == Verdict.PARTLY
    )


def test_curves_with_gaps_or_without_numbers_are_refused_by_name():
    runs = cell({})
    whole = runs[0].measures
    holes = whole[~((whole.measure == "distance") & (whole.epoch == 1))]
    wrong = whole.assign(
        **{"mean": whole["mean"].where(~((whole.measure == "distance") & (whole.epoch == 7)))}
    )
    missing = whole[whole.measure != "distance"]
    for measures in (holes, wrong, missing):
        with pytest.raises(
            RecordError, match=rf"distance.*{runs[0].settings.id}.*delete the folder"
        ):
            rules.judge([replace(runs[0], measures=measures), *runs[1:]])


def test_cells_that_differ_are_told_apart():
    rows = rules.judge(cell({}) + cell({}, inner_lr=0.1, meta_batch=2))
    assert {row.apart for row in rows} == {"", "inner_lr=0.1, meta_batch=2"}
    assert "(inner_lr=0.1, meta_batch=2)" in verdicts.verdict_table(rows).to_string()


def everything(seeds=range(3)):
    return [
        run
        for seed in seeds
        for run in (
            record(seed),
            record(seed, algorithm="fomaml"),
            record(seed, algorithm="finetune"),
            record(seed, regulariser="outer", gamma=2.0),
            record(seed, algorithm="fomaml", train_classes=10, class_seed=seed),
        )
    ]


def test_cells_differ_by_seeds_alone():
    cells = group_into_cells(everything())
    assert [len(runs) for runs in cells] == [3] * 5
    assert [[run.settings.seed for run in runs] for runs in cells] == [[0, 1, 2]] * 5


def test_order_of_records_does_not_matter():
    runs = everything()
    shuffled = [runs[i] for i in np.random.default_rng(0).permutation(len(runs))]
    assert verdicts.rows_as_json(rules.judge(shuffled)) == verdicts.rows_as_json(rules.judge(runs))


def test_all_claims_are_judged_and_holms_p_is_of_the_judged_rows():
    rows = rules.judge(everything())
    assert {row.claim for row in rows} == {claim.name for claim in paper_claims.CLAIMS}
    judged = [row for row in rows if row.verdict.is_judged]
    assert [row.p_holm for row in judged] == pytest.approx(holm([row.p for row in judged]))
    assert all(math.isnan(row.p_holm) for row in rows if row not in judged)
    assert all(row.scale == "quick" for row in rows)
    (few,) = (r for r in rows if r.claim == "C2" and "10 classes" in r.setting)
    assert few.setting == "5-way 1-shot, 10 classes" and len(few.ids) == 3


def test_table_and_json():
    rows = rules.judge([*everything(), *cell({}, [7], ways=20, regulariser="adapted", gamma=1.0)])
    shown = verdicts.verdict_table(rows)
    assert len(shown) == len(rows) and list(shown.verdict) == [row.verdict for row in rows]
    read = json.loads(verdicts.rows_as_json(rows))
    assert [entry["claim"] for entry in read] == [row.claim for row in rows]
    (lonely,) = (
        entry for entry in read if entry["setting"] == "20-way 1-shot" and entry["claim"] == "C8"
    )
    assert (
        lonely["effect"] is None and lonely["runs"] == 0 and lonely["paper"] == "94.05 % to 95.38 %"
    )
    assert list(shown) == [
        "claim",
        "data",
        "algorithm",
        "scale",
        "effect",
        "95 % interval",
        "runs",
        "verdict",
        "paper",
    ]
    assert set(verdicts.verdict_table(rows, corrected=True)) - set(shown) == {"p, Holm"}
    trend = next(row for row in rows if row.claim == "C1")
    assert (
        trend.change
        == f"× {np.exp(trend.effect):.2f} ({np.exp(trend.low):.2f} to {np.exp(trend.high):.2f})"
    )


def test_scales_stand_one_below_the_other():
    large = cell(
        {"support_loss": np.exp(-TIME)}, filters=64, iterations=60_000, epoch_iterations=500
    )
    rows = [
        row
        for row in rules.judge([*cell({}), *(run.upto(8) for run in large)])
        if row.claim == "C2"
    ]
    shown = verdicts.verdicts_by_scale([rows[0], replace(rows[0], algorithm="fomaml"), rows[1]])
    assert list(shown.index) == [
        ("C2", "MAML", "quick"),
        ("C2", "MAML", "paper (4,000)"),
        ("C2", "first-order MAML", "quick"),
    ]
    assert list(shown.verdict) == [Verdict.NOT_SEEN, Verdict.REPRODUCED, Verdict.NOT_SEEN]
    assert shown["95 % interval"].iloc[1] == rows[1].change


@pytest.mark.parametrize(
    ("unit", "shown"),
    [
        (Unit.LOG_RATIO, "× 2.00 (1.00 to 4.00)"),
        (Unit.POINTS, "+0.69 (+0.00 to +1.39) points"),
        (Unit.CORRELATION, "0.693 (0.000 to 1.386)"),
        (Unit.COSINE, "0.693 (0.000 to 1.386)"),
    ],
)
def test_effects_are_shown_in_their_unit(unit, shown):
    row = replace(
        rules.judge(cell({}))[0],
        effect=math.log(2),
        low=0.0,
        high=math.log(4),
        unit=unit,
        detail="so",
    )
    assert row.change == shown
    assert row.sentence.startswith("**C1; MAML, Omniglot 5-way 1-shot: not reproduced.** ")
    assert row.sentence.endswith(f" {shown}; so.")
    none = replace(row, effect=math.nan)
    assert (
        none.change == "–"
        and none.sentence == "**C1; MAML, Omniglot 5-way 1-shot: not reproduced**; so."
    )
    bound = 1.0 if unit == Unit.CORRELATION else math.inf
    single = replace(row, runs=1, low=-bound, high=bound)
    assert single.change == re.sub(r"\(.*\)", "(no interval)", shown)


class Bare(NamedTuple):
    """What the rules read of a record, as arrays."""

    settings: Settings
    curves: dict  # by measure, the means of epochs 1 to 12
    epochs: int = EPOCHS
    finished: bool = True
    final: tuple[float, float] | None = None  # accuracy on further tasks, and its error
    # by measure, those of its epochs over tasks; 0 if not given
    errors: dict = MappingProxyType({})

    def upto(self, _):
        """All of it: no run was stopped."""
        return self


@contextmanager
def bare():
    """Lets the rules read runs that are Bare.

    What depends on settings alone is cached: it would take most of the time.
    """
    with pytest.MonkeyPatch.context() as patch:

        def read(run, measure, column="mean"):
            return (
                run.curves[measure]
                if column == "mean"
                else run.errors.get(measure, np.zeros(EPOCHS))
            )

        for module in (rules, cells_module):
            patch.setattr(module, "curve", read)
        patch.setattr(rules, "final_accuracy", lambda run: run.final)
        patch.setattr(rules, "untrained", lambda run, measure: UNTRAINED[measure])
        for name in ("scale_of", "differences_from_scale"):
            patch.setattr(rules, name, cache(getattr(rules, name)))
        patch.setattr(Settings, "unseeded", property(cache(Settings.unseeded.fget)))
        yield


CELLS, RUNS, LEVEL = 200, 5, 0.025
NOISY = 200  # cells of each kind of noise, for one rule
WALK = 1.0  # each epoch leans on the one before with all its weight
KINDS = {"white": 0.0, "autoregressive 0.5": 0.5, "autoregressive 0.9": 0.9, "random walk": WALK}


def noise(rng, rho, *shape):
    """Noise of mean 0 over epochs, [*shape, EPOCHS].

    Its variance is 1: in every epoch where it is stationary, in the last where it is a random walk.
    """
    e = rng.normal(size=(*shape, EPOCHS))
    if rho == WALK:
        return e.cumsum(axis=-1) / math.sqrt(EPOCHS)
    for t in range(1, EPOCHS):
        e[..., t] = rho * e[..., t - 1] + math.sqrt(1 - rho**2) * e[..., t]
    return e


KEPT = [
    (seed, replace(QUICK, seed=seed, **options))
    for options in ({}, {"algorithm": "finetune"}, {"regulariser": "adapted", "gamma": 1.0})
    for seed in range(RUNS)
]


def noisy_ledger(rng, rho):
    """MAML, finetuning and a regulariser over RUNS seeds, all of one distribution, uncorrelated.

    Accuracy's noise is in half shared by validation and test. One measure does change: adaptive
    sharpness falls, so C4's scale-free verdict hangs on accuracy alone.
    """
    runs = []
    for _, settings in KEPT:
        shared, *noises = noise(rng, rho, 1 + len(MEASURES))
        curves = {
            measure: np.exp(0.2 * values) for measure, values in zip(MEASURES, noises, strict=True)
        }
        curves["adaptive_sharpness"] *= np.exp(-5 * TIME)
        for measure in ("query_accuracy", "valid_accuracy"):
            curves[measure] = 0.7 + 0.02 * (shared + 5 * np.log(curves[measure]))
        curves["support_loss"] *= 0.1  # adaptation works
        curves["trajectory_coherence"] = rules.ORTHOGONAL + 0.1 * np.log(
            curves["trajectory_coherence"]
        )
        runs.append(Bare(settings, curves))
    return rules.judge(runs)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def rates(request):
    """How often each verdict comes, by claim and variant, over ledgers of noise."""
    rng, counts = np.random.default_rng(5), {}
    with bare():
        for _ in range(CELLS):
            for row in noisy_ledger(rng, request.param):
                counts.setdefault((row.claim, row.variant), Counter())[row.verdict] += 1
    return counts


# Some ninety rates are checked: within this many standard errors all of them pass with 99 % if the
# rules are right.
ERRORS = 4 * math.sqrt(LEVEL * (1 - LEVEL) / CELLS)
SEEN = (Verdict.REPRODUCED, Verdict.PARTLY, Verdict.POWERLESS)
# by claim and variant: the verdicts that noise gets at the nominal rate, each set on its own
RULES = {
    ("C1", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C1", "first peak"): [SEEN],
    ("C2", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C3", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C3", rules.RELATIVE): [SEEN, (Verdict.CONTRARY,)],
    ("C4", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C4", rules.SCALE_FREE): [SEEN, (Verdict.CONTRARY,)],
    ("C5", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C6", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C7", "fresh head, beside MAML"): [SEEN, (Verdict.CONTRARY,)],
    ("C8", "adapted, γ = 1"): [SEEN, (Verdict.CONTRARY,)],
}


@pytest.mark.parametrize(("claim", "variant"), RULES)
def test_noise_gets_a_verdict_as_rarely_as_its_level_says(rates, claim, variant):
    counts = rates[claim, variant]
    assert counts.total() == CELLS
    for names in RULES[claim, variant]:
        assert sum(counts[name] for name in names) / CELLS < LEVEL + ERRORS, names


def test_noise_is_judged_and_what_is_no_noise_is_seen(rates):
    """The rules do see: the one measure that falls, in every ledger; chance, in some."""
    assert rates["C1", rules.SCALE_FREE] == {Verdict.REPRODUCED: CELLS}
    for key in (("C1", ""), ("C5", ""), ("C8", "adapted, γ = 1"), ("C3", rules.RELATIVE)):
        assert (
            sum(count for name, count in rates[key].items() if name in (*SEEN, Verdict.CONTRARY))
            > 0
        ), key
    for claim in ("C5", "C6"):  # asks for three findings at once
        assert rates[claim, ""][Verdict.REPRODUCED] < 0.02 * CELLS


def test_changed_verdicts_are_those_that_differ():
    rows = [row for row in rules.judge([record(s, {}) for s in range(3)]) if row.claim == "C1"]
    later = [replace(row, scale="paper", reached="5,000 of 60,000 iterations") for row in rows]
    assert verdicts.changed_verdicts(rows, later) == "No verdict is another one there."
    later[0] = replace(later[0], verdict=Verdict.REPRODUCED)
    assert rows[0].verdict == Verdict.NOT_SEEN
    line = "- C1, MAML: not reproduced at quick scale, **reproduced** at paper (5,000) scale."
    assert verdicts.changed_verdicts(rows, later) == line


def test_few_epochs_are_not_detrended():
    runs = cell({"query_accuracy": 0.5 + 0.1 * TIME, "trajectory_coherence": TIME})
    rows = {
        n: next(row for row in rules.judge([run.upto(n) for run in runs]) if row.claim == "C5")
        for n in (5, 6)
    }
    assert "too few epochs to detrend: 5" in rows[5].detail and "detrended r" not in rows[5].detail
    assert "detrended r = " in rows[6].detail


@pytest.mark.parametrize("direction", [-1, 1])
def test_an_effect_that_is_no_number_shows_nothing(direction):
    assert rules.verdict_by_interval(interval([math.nan] * 3), 3, direction) == Verdict.NOT_SEEN


def test_late_values_are_means_over_the_last_quarter_of_each_run():
    runs = [
        record(seed, {"distance": seed + np.arange(1, EPOCHS + 1)}, wobble=0) for seed in (0, 5)
    ]
    assert late_values(runs, "distance") == pytest.approx([11, 16])  # epochs 10, 11 and 12
    assert len(late_values([], "distance")) == 0
