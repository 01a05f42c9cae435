"""C8, the gain by a regulariser: pairs of known gain, on few tasks and on many."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from metanb.claims import paper as paper_claims
from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from tests.support.noise import CELLS, RUNS, Bare, bare
from tests.support.records import EPOCHS, QUICK, record, verdict


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
        # an algorithm of one's own need not record the move
        without_move = [
            replace(run, measures=run.measures[run.measures.measure != "relative_move"])
            for run in with_it
        ]
        (bare_row,) = (row for row in rules.judge(base + without_move) if row.claim == "C8")
        assert bare_row == replace(row, detail=row.detail.partition("; relative move")[0])


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


def test_the_error_over_few_tasks_hides_the_papers_gain():
    """By the spread of runs alone a gain of 1.33 points is ruled out; with 0.9 points each not."""
    for error, expected in ((0.0, Verdict.NOT_SEEN), (0.009, Verdict.UNCLEAR)):
        runs = []
        for seed, gain in enumerate((-0.4, 0, 0.4)):
            for points, options in ((0, {}), (gain, {"regulariser": "adapted", "gamma": 1.0})):
                curves = {"query_accuracy": np.full(EPOCHS, 0.5 + points / 100)}
                errors = {"query_accuracy": error}
                runs.append(record(seed, curves, wobble=0.0, errors=errors, **options))
        (row,) = (row for row in rules.judge(runs) if row.claim == "C8")
        assert row.verdict == expected
    half = 100 * error * np.sqrt(2) * stats.norm.ppf(0.975)
    assert half < row.high < 1.2 * half


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


def test_a_gain_on_further_tasks_carries_their_error():
    """By hand: each pair's error is that of two runs, 1.5 points times the root of 2."""
    gains = (2.0, 2.1, 1.9)
    row = c8(further_pairs((0, 0, 0), gains, error=0.015))
    both = np.var(gains, ddof=1) / 3 + 2 * 1.5**2
    freedom = 2 * (both / (np.var(gains, ddof=1) / 3)) ** 2
    assert row.high - row.effect == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(both))
    assert row.verdict == Verdict.UNCLEAR and rules.RUNS_ALONE not in row.detail
