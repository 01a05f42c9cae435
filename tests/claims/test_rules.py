"""All rules together: errors over tasks, stopped runs, cells, tables; records of known effect."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from metanb.claims import paper as paper_claims
from metanb.claims import rules, verdicts
from metanb.claims.cells import group_into_cells, late_values, value_after
from metanb.claims.run_stats import holm, interval
from metanb.claims.verdicts import Unit, Verdict
from metanb.runs.records import RecordError
from tests.support.records import EPOCHS, TIME, cell, record, verdict

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


def test_rows_say_where_the_error_over_tasks_is_not_in():
    rows = rules.judge(everything())
    assert {row.claim for row in rows if rules.RUNS_ALONE in row.detail} == {"C4", "C5", "C6"}
    assert all(rules.RUNS_ALONE in row.detail for row in rows if row.claim in ("C4", "C5", "C6"))


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
    name = verdict(ours + cell(rising), "C7", "fresh head, beside MAML", "finetune")
    assert name == Verdict.NOT_SET_APART


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


def test_each_claim_is_judged_on_the_cells_that_it_is_about():
    """C1 to C6 on plain meta-training, C7 on finetuning, C8 on what has a regulariser."""
    kinds = {
        run.settings.id: (run.settings.algorithm, run.settings.regulariser) for run in everything()
    }
    rows = rules.judge(everything())
    judged = {(row.claim, *kinds[row.ids[0]]) for row in rows}
    plain = [
        (f"C{number}", algorithm, "none")
        for number in range(1, 7)
        for algorithm in ("maml", "fomaml")
    ]
    assert {row.beside for row in rows if row.claim == "C7"} == {"MAML", "first-order MAML"}
    assert {row.beside for row in rows if row.claim != "C7"} == {""}
    assert judged == {*plain, ("C7", "finetune", "none"), ("C8", "maml", "outer")}


def test_a_run_that_is_there_twice_is_one_run():
    runs = cell({"support_loss": np.exp(-TIME)})
    rows = rules.judge([runs[0]] * 5)
    assert {(row.runs, row.verdict, row.p) for row in rows} == {(1, Verdict.TOO_FEW, 1.0)}
    assert rules.judge([run.upto(6) for run in runs] + runs) == rules.judge(runs)  # the furthest


SMOKE = {"filters": 16, "iterations": 60, "epoch_iterations": 10}


def test_smoke_runs_are_never_judged():
    """Their effects are as those of any run; no verdict, and no part in Holm's correction."""
    curves = {"support_loss": np.exp(-TIME)}
    runs, smoke = cell(curves), cell(curves, **SMOKE)
    rows = [row for row in rules.judge(smoke) if row.claim == "C2"]
    assert [(row.scale, row.verdict, row.runs) for row in rows] == [("smoke", Verdict.SMOKE, 3)]
    assert rows[0].effect == pytest.approx(-9 / 12, abs=0.02) and math.isnan(rows[0].p_holm)
    assert {row.verdict for row in rules.judge(smoke)} == {Verdict.SMOKE}
    assert [row for row in rules.judge(runs + smoke) if row.scale != "smoke"] == rules.judge(runs)


def test_ones_own_runs_change_no_row_of_the_book():
    """By hand: a fourth seed of the book's first cell, and a cell of one's own."""
    curves = {"support_loss": np.exp(-TIME)}
    book = cell(curves) + cell({}, algorithm="fomaml")
    own = [record(3, curves), *cell(curves, ways=20)]
    rows = rules.judge_apart(book, own)
    by_book = [row for row in rows if not row.own]
    assert by_book == rules.judge(book)
    with_own = [row for row in rows if row.own]
    assert {(row.setting, row.algorithm, row.runs, len(row.own)) for row in with_own} == {
        ("5-way 1-shot", "maml", 4, 1),
        ("20-way 1-shot", "maml", 3, 3),
    }
    judged = [row for row in with_own if row.verdict.is_judged]
    assert [row.p_holm for row in judged] == pytest.approx(holm([row.p for row in judged]))
    assert {row.own for row in with_own if row.runs == 4} == {(own[0].settings.id,)}


def test_ones_own_record_counts_where_it_goes_further_than_the_books():
    book = [run.upto(6) for run in cell({})]
    assert rules.judge_apart(book, book) == rules.judge(book)
    rows = rules.judge_apart(book, [run.upto(9) for run in cell({})])
    assert [row for row in rows if not row.own] == rules.judge(book)
    assert {row.reached for row in rows if row.own} == {"1,350 of 1,800 iterations"}


def test_a_control_with_own_runs_counts_as_own():
    """C8's rows compare two cells; one's own are those without the regulariser."""
    book = cell({}, regulariser="adapted", gamma=1.0)
    rows = [row for row in rules.judge_apart(book, cell({})) if row.claim == "C8"]
    assert [(row.runs, len(row.own)) for row in rows] == [(0, 0), (3, 3)]


def test_the_ledger_by_cell():
    """At most 80 columns; one heading per cell; the worst fit first; one's own have their own."""
    own = cell({"support_loss": np.exp(-TIME)}, range(3, 5))
    far = cell({}, inner_lr=0.05, meta_batch=2, inner_steps=3, test_steps=4, queries=7, outer_lr=1)
    rows = rules.judge_apart([*everything(), *far], own)
    lines = verdicts.verdicts_by_cell(rows).splitlines()
    assert max(map(len, lines)) <= 80
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert "Omniglot, 5-way 1-shot, MAML, quick" in headings
    assert "Omniglot, 5-way 1-shot, MAML, quick; yours: 2 of 5 runs" in headings
    assert len(headings) == len(set(headings))
    assert len([line for line in lines if re.match(r"  \S", line)]) == len(rows)

    chosen = {
        name: replace(rows[0], verdict=verdict, claim=name)
        for name, verdict in [
            ("untested", Verdict.NO_CASE),
            ("good", Verdict.REPRODUCED),
            ("fair", Verdict.TREND_ONLY),
            ("poor", Verdict.NOT_SEEN),
            ("worst", Verdict.CONTRARY),
        ]
    }
    shown = verdicts.verdicts_by_cell(chosen.values())
    assert re.findall(r"^  (\w+):", shown, re.MULTILINE) == [
        "worst",
        "poor",
        "fair",
        "good",
        "untested",
    ]
    assert f"good: reproduced; {rows[0].change}, 3 runs, Holm's p" in shown
    assert "Holm" not in shown.splitlines()[-1]  # not judged
    assert sorted(verdicts._WORST_FIRST) == sorted(Verdict)


def test_table_and_json():
    rows = rules.judge([*everything(), *cell({}, [7], ways=20, regulariser="adapted", gamma=1.0)])
    shown = verdicts.verdict_table(rows)
    assert len(shown) == len(rows) and list(shown.verdict) == [row.verdict for row in rows]
    read = json.loads(verdicts.rows_as_json(rows))
    for name in ("claim", "reached", "iterations"):
        assert [entry[name] for entry in read] == [getattr(row, name) for row in rows]
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
        rules.judge(cell({}))[0], effect=math.log(2), low=0.0, high=math.log(4), unit=unit
    )
    assert row.change == shown
    assert replace(row, effect=math.nan).change == "–"
    bound = 1.0 if unit == Unit.CORRELATION else math.inf
    single = replace(row, runs=1, low=-bound, high=bound)
    assert single.change == re.sub(r"\(.*\)", "(no interval)", shown)


def test_an_end_beside_no_effect_does_not_read_as_no_effect():
    (row,) = (row for row in rules.judge([record(s, {}) for s in range(3)]) if row.name == "C2")
    row = replace(row, effect=np.log(0.87), low=np.log(0.76), high=np.log(0.9982))
    assert row.change == "× 0.87 (0.76 to 0.998)"
    assert replace(row, high=np.log(0.99999999)).change.endswith("to 1.00)")
    points = replace(row, unit=verdicts.Unit.POINTS, effect=0.9, low=0.0004, high=1.8)
    assert points.change == "+0.90 (+0.0004 to +1.80) points"
    cosine = replace(row, unit=verdicts.Unit.COSINE, effect=0.0, low=-0.1, high=0.0)
    assert cosine.change == "0.000 (-0.100 to 0.000)"


def test_changed_verdicts_are_those_that_differ():
    rows = [row for row in rules.judge([record(s, {}) for s in range(3)]) if row.claim == "C1"]
    stopped = {"scale": "paper", "iterations": 5_000, "full_iterations": 60_000}
    later = [replace(row, **stopped) for row in rows]
    assert verdicts.changed_verdicts(rows, later) == "All 3 verdicts are the same."
    later[0] = replace(later[0], verdict=Verdict.REPRODUCED)
    assert rows[0].verdict == Verdict.NOT_SEEN
    later_scale = "paper settings, 5,000 of 60,000 iterations"
    line = f"- C1, MAML: not reproduced (quick), **reproduced** ({later_scale})."
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


def test_a_measure_that_an_epoch_lacks_is_named():
    """As one of a plugin's that came later than the run's first epochs."""
    run = record(0)
    lacks = (run.measures.measure == "distance") & (run.measures.epoch == 3)
    run = replace(run, measures=run.measures[~lacks])
    assert value_after(run, 4, "distance") > 0
    with pytest.raises(RecordError, match=f"^distance of {run.path} has no value after epoch 3: "):
        value_after(run, 3, "distance")
