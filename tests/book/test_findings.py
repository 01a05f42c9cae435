"""What the page "Discussion and limits" computes, on synthetic records whose verdicts are known.

Evidence: curves that are chosen so that one conclusion is right and another wrong; a simulation of
correlations; prices of runs whose times are given.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from metanb.claims import predictions, rules
from metanb.claims.companions import Role
from metanb.claims.paper import PAPER_GAIN
from metanb.claims.predictions import Expectation, Outcome, Prediction, PredictionRow
from metanb.claims.run_stats import correlation_power
from metanb.claims.verdicts import Verdict
from metanb.grids.hours import Timings
from metanb.settings import preset
from tests.support.paths import ROOT
from tests.support.records import TIME, cell, timed

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import findings

FALLS = np.exp(-2 * TIME)
PAPER = {
    "filters": 64,
    "meta_batch": 32,
    "iterations": 60_000,
    "epoch_iterations": 500,
    "final_tasks": 600,
}


def at_paper_settings(curves, seeds=range(3), epochs=10, **settings):
    """Runs at the paper's settings that were stopped after some epochs."""
    runs = cell(curves, seeds, **PAPER, **settings)
    return [run.upto(epochs) for run in runs]


def test_verdicts_are_counted_in_words():
    rows = [row for row in rules.judge(cell({"support_loss": FALLS})) if row.claim == "C2"]
    assert findings.verdicts_in_words(rows) == "**reproduced** in the one cell"
    assert findings.verdicts_in_words(rows * 2) == "**reproduced** in all 2 cells"
    powerless = replace(rows[0], verdict=Verdict.POWERLESS)
    assert (
        findings.verdicts_in_words([*rows, *rows, powerless])
        == "**reproduced** in 2, **cannot tell** in 1, of 3 cells"
    )
    assert findings.verdicts_in_words([replace(rows[0], verdict=Verdict.TOO_FEW)]) == "not yet run"


@pytest.mark.parametrize(("scale_free", "explained"), [(np.ones(12), True), (FALLS, False)])
def test_growing_weights_explain_flatness_where_the_scale_free_measure_stays(scale_free, explained):
    rows = rules.judge(cell({"hessian_norm": FALLS, "adaptive_sharpness": scale_free}))
    text = findings.belief_in_flatness(rows)
    assert "In the smaller version the Hessian norm falls in 1 of 1 cells" in text
    assert ("growing weights may be why" in text) == explained
    assert "paper's settings" not in text
    assert findings.belief_in_flatness([]) == ""


def test_a_claim_has_its_control_beside_it():
    runs = cell({"hessian_norm": FALLS}) + at_paper_settings({"hessian_norm": FALLS})
    lines = findings.claim_results(rules.judge(runs), []).splitlines()
    assert len(lines) == 8 and lines[0].startswith("- **C1**, adapted solutions become flatter. ")
    paper, control = lines[0].split("By a measure that rescaling the weights cannot change, ")
    assert "At the paper's settings: **reproduced** in the one cell; in the smaller" in paper
    assert "at the paper's settings: **not reproduced** in the one cell" in control
    assert lines[7].endswith("Not yet run.")


def test_accuracy_that_falls_is_a_case_and_accuracy_that_rises_is_none():
    falling = 0.5 - 0.2 * TIME
    curves = {"query_accuracy": falling, "valid_accuracy": falling, "hessian_norm": FALLS}
    text = findings.belief_in_worse(rules.judge(cell(curves, wobble=0.001)))
    assert "Accuracy falls in 1 of 1 cells, none of them at the paper's settings." in text
    assert "the Hessian norm falls on in 1 of 1, the scale-free measure in 0 of 1." in text
    both = rules.judge(cell(curves | {"adaptive_sharpness": FALLS}, wobble=0.001))
    assert findings.belief_in_worse(both).endswith("a flatter solution is not a better one.")
    rising = rules.judge(cell({"query_accuracy": 0.5 + 0.2 * TIME}))
    assert findings.belief_in_worse(rising).endswith("so nothing here tests it.")


@pytest.mark.parametrize(
    ("low", "high", "conclusion"),
    [
        (0.2, 2.0, "which is a gain"),
        (-1.0, PAPER_GAIN - 0.1, "which is less than the paper's"),
        (-1.0, 2.0, "which includes both no gain and the paper's"),
    ],
)
def test_a_gain_is_compared_with_the_papers(low, high, conclusion):
    base = cell({}, ways=20)
    with_it = cell({}, ways=20, regulariser="adapted", gamma=0.1)
    (row,) = (row for row in rules.judge(base + with_it) if row.claim == "C8")
    row = replace(row, low=low, high=high)
    assert findings.belief_in_gain([row]).endswith(f"{conclusion}.")
    assert findings.belief_in_gain([replace(row, setting="5-way 1-shot")]) == ""


def test_verdicts_of_two_inner_losses_are_compared():
    """With the sum, flatness is gone and accuracy is 10 points lower."""
    rises = 0.5 + 0.2 * TIME
    mean = cell({"hessian_norm": FALLS, "query_accuracy": rises}, range(5), wobble=0.001)
    changed = {"hessian_norm": 1 / FALLS, "query_accuracy": rises - 0.1}
    summed = cell(changed, range(3), wobble=0.001, inner_loss="sum")
    alone = cell({"hessian_norm": FALLS}, ways=20)
    runs = mean + summed + alone
    rows = [row for row in rules.judge(runs) if row.claim in ("C1", "C2")]
    pairs = findings.pair_inner_losses(runs, rows)
    assert all(len(a.ids) == 5 and len(b.ids) == 3 and a.name == b.name for a, b in pairs)
    text = findings.belief_in_inner_loss(pairs)
    assert "leaves 1 of 2 verdicts as they are, and changes some of C1 (" in text
    lines = findings.inner_loss_table(pairs).splitlines()
    assert lines[2] == (
        "| C1 | **reproduced** in the one cell | **reversed** in the one cell | 0 of 1 |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| C1", "| C1, control", "| C2"]
    accuracy = findings.inner_loss_accuracy(runs, pairs)
    assert accuracy == "under MAML by -10.0 points (means over 3 seeds per cell)"
    assert findings.belief_in_inner_loss([]) == ""


def outcome(measure, expected, result):
    prediction = Prediction("zero head", measure, expected)
    place = {"algorithm": "fomaml", "dataset": "omniglot", "setting": "5-way 1-shot"}
    numbers = {"before": 1.0, "after": 1.0, "effect": -1.0, "low": -2.0, "high": 0.0, "runs": 3}
    return PredictionRow(prediction, scale="quick", outcome=result, ids=("a",), **place, **numbers)


def test_only_interventions_that_take_coherence_away_count():
    taken = outcome("trajectory_coherence", Expectation.COLLAPSES, Outcome.PREDICTED)
    stays = outcome("final_accuracy", Expectation.STAYS, Outcome.PREDICTED)
    assert findings.accuracy_without([taken, stays], "trajectory_coherence") == [stays]
    kept = replace(taken, outcome=Outcome.OPEN)
    assert findings.accuracy_without([kept, stays], "trajectory_coherence") == []
    text = findings.without_coherence([taken, stays], "trajectory_coherence")
    assert "takes most of this coherence away from first-order MAML changes accuracy" in text
    assert "-1.0 points (-2.0 to +0.0) by the zero head" in text
    assert findings.without_coherence([kept, stays], "trajectory_coherence") == ""
    rows = rules.judge(cell({"query_accuracy": TIME, "trajectory_coherence": TIME}))
    belief = findings.belief_in_coherence(rows, [taken, stays])
    margin = f"within ± {predictions.MARGIN:g} points"
    assert f"accuracy stays {margin} under the zero head." in belief
    falls = replace(stays, outcome=Outcome.REFUTED)
    belief = findings.belief_in_coherence(rows, [taken, falls])
    assert f"accuracy does not stay {margin} under the zero head." in belief


def test_interventions_are_named_with_their_settings_where_these_differ():
    small = outcome("final_accuracy", Expectation.STAYS, Outcome.PREDICTED)
    large = replace(small, setting="20-way 1-shot", outcome=Outcome.REFUTED)
    assert findings.name_interventions([small]) == {small: "the zero head"}
    taken = outcome("trajectory_coherence", Expectation.COLLAPSES, Outcome.PREDICTED)
    text = findings.accuracy_without_coherence(
        [small, large, taken, replace(taken, setting="20-way 1-shot")]
    )
    assert "points under the zero head (Omniglot, 5-way 1-shot), and not under" in text
    assert "under the zero head (Omniglot, 20-way 1-shot) ([why" in text


def test_what_moves_while_accuracy_stays_is_said_to_be_no_cause():
    """On the committed records: as chapter 8 has it, and nothing where nothing moves."""
    roles = findings.main_roles(findings.committed_runs())
    assert [role.measure for role in roles] == [m for m in findings.SUBJECTS for _ in range(2)]
    of_maml = [role for role in roles if role.algorithm == "maml"]
    told = findings.belief_in_causes(of_maml)
    assert "under MAML" in told and "first-order" not in told
    for role in of_maml:
        is_ruled_out = role.role in (Role.COMPANION, Role.NEITHER)
        assert (findings.SUBJECTS[role.measure] in told) == is_ruled_out
    moving = [replace(role, role=Role.OPEN) for role in roles]
    assert findings.belief_in_causes(moving) == ""


def test_lengths_and_seeds_are_counted():
    runs = at_paper_settings({}) + at_paper_settings({}, algorithm="fomaml", epochs=8)
    text = findings.lengths(runs)
    assert text.startswith("none of 6 runs at the paper's settings are whole, 60,000 iterations; ")
    assert text.endswith("the others stop at 4,000 to 5,000")
    few = findings.seeds(rules.judge(runs))
    power = 100 * correlation_power(3, rules.STRONG)
    assert few.startswith("3 runs at the paper's settings") and f"in {power:.0f} % of cases" in few


def test_a_norm_that_rises_once_is_not_monotone():
    falling = at_paper_settings({"hessian_norm": FALLS}, [0, 1], wobble=0)
    once = FALLS.copy()
    once[5] = once[4] * 1.1
    (rising,) = at_paper_settings({"hessian_norm": once}, [2], wobble=0)
    text = findings.monotone([*falling, rising])
    assert (
        text == "in 2 of 3 runs the norm falls after every epoch; it falls after 96 % of all epochs"
    )


def test_accuracy_that_rises_in_the_second_half_is_counted():
    runs = at_paper_settings({"query_accuracy": TIME}) + at_paper_settings({}, algorithm="fomaml")
    assert findings.still_rising(runs) == "1 of 2"


def test_so_many_runs_show_a_strong_correlation_often_enough():
    """Simulated pairs of normal values, with the number of runs that the table asks for."""
    runs = findings.seeds_for_power()
    rng = np.random.default_rng(0)
    seen = []
    for n in (runs, runs - 1):
        x, noise = rng.normal(size=(2, 4000, n))
        y = rules.STRONG * x + np.sqrt(1 - rules.STRONG**2) * noise
        r, p = stats.pearsonr(x, y, axis=1)
        seen.append(((r > 0) & (p < 0.05)).mean())
    assert seen[0] > rules.POWER - 0.02 and seen[1] < rules.POWER + 0.02


def test_what_was_stopped_is_priced_from_its_start():
    settings = [preset("paper", "omniglot", 20, seed=seed) for seed in range(2)]
    whole, stopped = (
        timed(run, 3600.0, "NVIDIA H200", epochs)
        for run, epochs in zip(settings, (120, 60), strict=True)
    )
    stopped = replace(
        stopped,
        provenance=stopped.provenance
        | {"started": "2026-02-01T00:00:00+00:00", "finished": "2026-02-01T01:00:00+00:00"},
    )  # alone on the GPU, at half the pace
    timings = Timings([whole, stopped])
    both = findings.prices(timings, settings, [])[0]
    left = findings.prices(timings, settings, [whole])[0]
    assert (both, left) == ("3.0", "1.5")  # 1.5 hours a run on average


def test_machines_are_told_by_their_kind():
    names = ("AMD EPYC (AVX2)", "NVIDIA H200", "NVIDIA H200, AMD EPYC (AVX2)", "Intel(R) Xeon(R)")
    runs = [
        replace(run, provenance=run.provenance | {"device": name})
        for run, name in zip(cell({}, range(4)), names, strict=True)
    ]
    assert findings.devices(runs) == (
        "in the smaller version 2 runs on CPUs, 1 runs on an NVIDIA H200, "
        "1 runs partly on CPUs and partly on an NVIDIA H200"
    )


def test_gains_stand_beside_the_papers():
    base = cell({"query_accuracy": np.full(12, 0.80)}, ways=20, wobble=0)
    with_it = cell(
        {"query_accuracy": np.full(12, 0.81)}, ways=20, regulariser="adapted", gamma=0.1, wobble=0
    )
    runs = base + with_it
    lines = findings.gain_table(runs, rules.judge(runs)).splitlines()[2:]
    assert len(lines) == 2 and "94.05 % | 95.38 % | +1.33 points" in lines[0]
    assert "MAML, in the smaller version | whole | 0.1 | 80.00 % | 81.00 % | +1.00" in lines[1]
