"""Predictions of interventions: each outcome on made-up runs, and how often noise gets one."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metanb.claims import predictions, rules
from metanb.claims.predictions import (
    PREDICTIONS,
    Expectation,
    Outcome,
    compare_interventions,
    describe_predictions,
    effect_of,
    judge_predictions,
    judge_predictions_apart,
    outcome_by_interval,
    prediction_table,
    predictions_as_json,
    predictions_in_lines,
)
from metanb.claims.run_stats import interval
from metanb.grids.definitions import quick_grid
from metanb.grids.interventions import BY_NAME, ON_20_WAYS, find_intervention, intervention_runs
from metanb.labels import MEASURES
from metanb.runs.records import PROVENANCE, read_records, write_record
from metanb.settings import preset
from tests.support.command_line import call
from tests.support.interventions import SEEDS, made_up
from tests.support.paths import ROOT


def outcome(records, name, measure, algorithm="fomaml"):
    (row,) = (
        row
        for row in judge_predictions(records)
        if (row.prediction.intervention, row.prediction.measure) == (name, measure)
        and row.algorithm == algorithm
    )
    return row


BASE = [0.48, 0.52, 0.5, 0.49, 0.51]


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.0, Outcome.PREDICTED),
        (0.02, Outcome.PREDICTED),
        (-0.029, Outcome.OPEN),
        (0.05, Outcome.REFUTED),
        (-0.05, Outcome.REFUTED),
    ],
)
def test_accuracy_that_stays(gain, expected):
    """The base varies by points between seeds; the gain by a tenth of a point."""
    gains = np.array(BASE) + gain + np.array([0.001, -0.001, 0.0, 0.001, -0.001])
    runs = made_up("base", final_accuracy=BASE) + made_up("zero head", final_accuracy=gains)
    row = outcome(runs, "zero head", "final_accuracy")
    assert (row.outcome, row.runs) == (expected, 5)
    assert row.effect == pytest.approx(100 * gain)
    assert (row.before, row.after) == pytest.approx((0.5, 0.5 + gain))


def test_the_error_over_tasks_makes_it_open():
    runs = made_up("base") + made_up("zero head")
    assert outcome(runs, "zero head", "final_accuracy").outcome == Outcome.PREDICTED
    runs = made_up("base", sem=0.02) + made_up("zero head", sem=0.02)
    row = outcome(runs, "zero head", "final_accuracy")
    assert (row.outcome, row.over_runs_alone) == (Outcome.OPEN, Outcome.PREDICTED)


@pytest.mark.parametrize(
    ("left", "expected"), [(0.02, Outcome.PREDICTED), (0.49, Outcome.OPEN), (0.9, Outcome.REFUTED)]
)
def test_coherence_that_collapses(left, expected):
    name = "centred head at meta-test"
    wobble = np.array([0.01, -0.01, 0.0, 0.02, -0.02])
    base = made_up("base", trajectory_coherence=BASE)
    changed = made_up(name, trajectory_coherence=left * np.array(BASE) + wobble)
    row = outcome(base + changed, name, "trajectory_coherence")
    assert row.outcome == expected and row.effect == pytest.approx(left)


@pytest.mark.parametrize(
    ("change", "expected"), [(-0.1, Outcome.PREDICTED), (0.1, Outcome.REFUTED), (0.0, Outcome.OPEN)]
)
def test_a_norm_that_falls(change, expected):
    base = made_up("base", hessian_norm=BASE)
    wobble = np.array([0.01, -0.01, 0.0, 0.02, -0.02])
    flat = made_up("sharpness-aware", hessian_norm=np.array(BASE) + change + wobble)
    assert outcome(base + flat, "sharpness-aware", "hessian_norm").outcome == expected


@pytest.mark.parametrize(
    ("slope", "expected"),
    [
        (-1.0, Outcome.PREDICTED),
        (-1.49, Outcome.OPEN),
        (0.0, Outcome.REFUTED),
        (-2.0, Outcome.REFUTED),
    ],
)
def test_a_norm_that_follows_the_step_size(slope, expected):
    sizes = {"base": 0.4} | {f"inner step {x:g}": x for x in (0.05, 0.1, 0.2, 0.8)}
    factors = np.exp([0.05, -0.05, 0.0, 0.02, -0.02])
    runs = []
    for name, size in sizes.items():
        # the slope differs a little from seed to seed
        runs += made_up(name, hessian_norm=3 * size ** (slope * factors))
    row = outcome(runs, "base", "hessian_norm")
    assert (row.outcome, row.runs) == (expected, 5)
    assert row.effect == pytest.approx(slope * factors.mean(), abs=1e-9)
    # a seed without one of the sizes says nothing
    fewer = [run for run in runs if (run.settings.seed, run.settings.inner_lr) != (4, 0.2)]
    assert outcome(fewer, "base", "hessian_norm").runs == 4


@pytest.mark.parametrize("base", [-0.2, 0.0, [-0.3, 0.1, 0.2, -0.1, 0.1]])
def test_less_than_half_of_what_is_not_above_0_is_open(base):
    """From a mean cosine of -0.2 to 0.5 the ratio is below a half, and nothing collapsed."""
    runs = made_up("base", trajectory_coherence=base)
    runs += made_up("zero head", trajectory_coherence=[0.4, 0.5, 0.6, 0.5, 0.5])
    (row,) = [
        row for row in judge_predictions(runs) if row.prediction.measure == "trajectory_coherence"
    ]
    assert row.outcome == Outcome.OPEN and "no bounds: the base may be 0 or less" in row.change


def test_two_pairs_are_too_few():
    runs = made_up("base") + made_up("zero head", seeds=[1, 4, 7])
    assert outcome(runs, "zero head", "final_accuracy").outcome == Outcome.TOO_FEW


def test_noise_rarely_counts_as_predicted_or_refuted():
    """Nothing happens: a rise is seen in 2.5 %, accuracy never leaves the margin."""
    rng = np.random.default_rng(0)
    counts = {expected: Counter() for expected in Expectation}
    n = 4000
    for noise in rng.normal(size=(n, 5)):
        for expected, scale, mean in (
            (Expectation.RISES, 1.0, 0.0),
            (Expectation.FALLS, 1.0, 0.0),
            (Expectation.STAYS, 2.0, 0.0),  # points
            (Expectation.FOLLOWS, 0.2, 0.0),
        ):
            effect = interval(mean + scale * noise)
            counts[expected][outcome_by_interval(expected, effect, 5)] += 1
    for expected in (Expectation.RISES, Expectation.FALLS):
        for seen in (Outcome.PREDICTED, Outcome.REFUTED):
            assert counts[expected][seen] / n == pytest.approx(0.025, abs=0.008)
    assert counts[Expectation.STAYS][Outcome.REFUTED] / n < 0.025
    assert counts[Expectation.FOLLOWS][Outcome.PREDICTED] / n < 0.005


@pytest.mark.parametrize(("runs", "spread"), [(3, 0.7), (3, 0.3), (5, 0.08)])
def test_a_half_that_noise_makes_less_rarely_counts_as_less(runs, spread):
    """The true ratio is a half; the base varies between seeds, too."""
    rng = np.random.default_rng(1)
    outcomes = Counter()
    n = 1000
    for _ in range(n):
        ends = [
            np.stack([mean * (1 + spread * rng.normal(size=runs)), np.zeros(runs)], axis=1)
            for mean in (0.5, 1.0)
        ]
        effect = effect_of(Expectation.COLLAPSES, *ends)
        outcomes[outcome_by_interval(Expectation.COLLAPSES, effect, runs)] += 1
    level = 0.025 + 3 * (0.025 * 0.975 / n) ** 0.5
    assert max(outcomes[Outcome.PREDICTED], outcomes[Outcome.REFUTED]) / n < level


def test_the_ledger_names_the_outcomes_that_the_mended_interval_changed(monkeypatch):
    """On the committed records, with the earlier interval, which took the base's mean as known."""
    recorded = read_records(ROOT / "results")

    def outcomes():
        return {
            (*row.comparison, row.prediction.measure): row.outcome
            for row in judge_predictions(recorded)
            if row.prediction.expected == Expectation.COLLAPSES
        }

    def earlier(values, base, errors, _):
        return interval(values / base.mean(), shared=errors / base.mean())

    now = outcomes()
    monkeypatch.setattr(predictions, "ratio_interval", earlier)
    changed = {key: (then, now[key]) for key, then in outcomes().items() if then != now[key]}
    assert set(changed.values()) == {(Outcome.PREDICTED, Outcome.OPEN)}
    assert len(changed) == 2 and all(
        "zero head" in key and "20-way 1-shot" in key for key in changed
    )
    assert (
        "Two outcomes turned from *as predicted* to *cannot tell*"
        in (ROOT / "book" / "ledger.md").read_text()
    )


def test_interventions_are_no_cells_of_the_claims():
    runs = made_up("base") + made_up("zero head")
    assert rules.judge(runs) == []
    assert all(find_intervention(run.settings) for run in runs)
    assert find_intervention(preset("quick", "omniglot", inner_head="zero")) is None
    # images of one's own: the run is identified by their content, too
    (own,) = intervention_runs("quick", "birds", 5, 1, [2], "maml", BY_NAME["zero head"])
    scale, intervention = find_intervention(replace(own, content="3x28x28-0123456789abcdef"))
    assert (scale, intervention.name) == ("quick", "zero head")


def test_the_grid_has_every_intervention_that_is_predicted():
    planned = [run.settings for run in quick_grid() if run.group == "interventions"]
    names = Counter((s.ways, find_intervention(s)[1].name) for s in planned)
    assert {name: n for (ways, name), n in names.items() if ways == 5} == dict.fromkeys(
        BY_NAME, 2 * len(SEEDS)
    )
    asked = ("base", *ON_20_WAYS)
    assert {name: n for (ways, name), n in names.items() if ways == 20} == dict.fromkeys(asked, 3)
    assert {p.intervention for p in PREDICTIONS} == set(BY_NAME)
    for prediction in PREDICTIONS:
        assert prediction.measure in {"final_accuracy", *MEASURES}
    assert len(set(PREDICTIONS)) == len(PREDICTIONS)


def test_the_table_says_what_was_predicted_and_what_came():
    runs = made_up("base", final_accuracy=0.8) + made_up("zero head", final_accuracy=0.79)
    table = prediction_table(judge_predictions(runs))
    (line,) = table[table.predicted == "accuracy stays"].to_dict("records")
    assert prediction_table([]).empty and list(prediction_table([])) == list(table)
    assert line == {
        "intervention": "zero head",
        "algorithm": "first-order MAML",
        "data": "Omniglot, 5-way 1-shot, quick",
        "predicted": "accuracy stays",
        "before, after": "80.0 %, 79.0 %",
        "effect, 95 % interval": "-1.0 points (-1.0 to -1.0)",
        "pairs": "5",
        "outcome": "as predicted",
    }


def test_interventions_are_compared_at_the_same_seeds():
    """The base of another seed does not count; by hand: gains of 1, 2 and 3 points."""
    base = made_up("base", seeds=range(4), final_accuracy=[0.5, 0.6, 0.7, 0.1], hessian_norm=2.0)
    zero = made_up(
        "zero head", seeds=range(3), final_accuracy=[0.51, 0.62, 0.73], hessian_norm=[1.0, 2.0, 3.0]
    )
    table = compare_interventions(base + zero, ["hessian_norm"])
    assert table.intervention.tolist() == ["base", "zero head"] and table.pairs.tolist() == [4, 3]
    assert table.gain.tolist() == pytest.approx([0, 2])
    half_width = 4.302653 / np.sqrt(3)  # Student's t with 2 degrees of freedom
    assert table.loc[1, ["low", "high"]].tolist() == pytest.approx([2 - half_width, 2 + half_width])
    assert table.hessian_norm.tolist() == pytest.approx([2, 2])
    assert compare_interventions(zero).empty


def test_an_intervention_without_a_base_of_its_seed_is_left_out():
    base = made_up("base", seeds=[0])
    others = made_up("zero head", seeds=[0]) + made_up("shared head", seeds=[1])
    judged = {row.prediction.intervention for row in judge_predictions(base + others)}
    assert judged == {"zero head"}


def test_lines_for_a_terminal_and_json_for_machines():
    """The rule that takes all step sizes waits for them where one is there."""
    runs = made_up("base", final_accuracy=0.8) + made_up("zero head", final_accuracy=0.79)
    rows = judge_predictions(runs + made_up("inner step 0.1"))
    assert rows[:-2] == judge_predictions(runs)
    text = predictions_in_lines(rows)
    assert text.startswith("Omniglot, 5-way 1-shot, first-order MAML, quick\n")
    assert max(map(len, text.splitlines())) <= 80
    assert "zero head: accuracy stays: as predicted; -1.0 points" in text
    objects = {
        (each["intervention"], each["measure"]): each
        for each in json.loads(predictions_as_json(rows))
    }
    assert objects["zero head", "final_accuracy"]["effect"] == pytest.approx(-1)
    follows = objects["base", "hessian_norm"]
    assert follows["effect"] is None and follows["outcome"] == Outcome.TOO_FEW


def test_the_command_prints_them(capsys, monkeypatch, tmp_path):
    code, out, err = call(capsys, monkeypatch, "predictions", "--records", tmp_path)
    assert code == 1 and "metanb grid quick --only interventions" in err
    origin = dict.fromkeys(PROVENANCE, "")
    for run in made_up("base") + made_up("zero head"):
        write_record(run.settings, run.measures.to_dict("records"), origin, tmp_path)
    code, out, err = call(capsys, monkeypatch, "predictions", "--records", tmp_path)
    assert code == 0 and "zero head: accuracy stays: as predicted" in out
    code, out, err = call(capsys, monkeypatch, "claims", "--records", tmp_path)
    assert "runs of interventions (10): metanb predictions judges them" in err


def test_ones_own_runs_and_smoke_runs_change_no_row_of_the_book():
    """By hand: three seeds of the book's, as predicted; two of one's own, which are not."""
    book = made_up("base", seeds=range(3)) + made_up("zero head", seeds=range(3))
    own = made_up("base", seeds=[3, 4]) + made_up("zero head", seeds=[3, 4], final_accuracy=0.9)
    smoke = [
        replace(run, settings=settings)
        for name in ("base", "zero head")
        for run, settings in zip(
            made_up(name, seeds=range(3)),
            intervention_runs("smoke", "omniglot", 5, 1, range(3), "fomaml", BY_NAME[name]),
            strict=True,
        )
    ]
    assert judge_predictions_apart(book, []) == (judge_predictions(book), [])
    assert judge_predictions_apart(book, book + smoke) == (judge_predictions(book), [])
    by_book, with_own = judge_predictions_apart(book + smoke, own + smoke)
    assert by_book == judge_predictions(book)
    accuracy = [row for row in with_own if row.prediction.measure == "final_accuracy"]
    assert [(row.runs, row.outcome) for row in accuracy] == [(5, Outcome.OPEN)]
    objects = json.loads(predictions_as_json(by_book, with_own))
    assert [each["own"] for each in objects] == [False] * len(by_book) + [True] * len(with_own)


def test_a_sentence_counts_the_outcomes_kind_by_kind():
    """By hand: coherence halves twice as predicted, accuracy stays once and falls once."""
    runs = made_up("base", trajectory_coherence=0.2, gradient_coherence=0.2)
    for name, accuracy in (("zero head", 0.5), ("shared head", 0.3)):
        runs += made_up(
            name, trajectory_coherence=0.01, gradient_coherence=0.01, final_accuracy=accuracy
        )
    assert describe_predictions(judge_predictions(runs)) == (
        "**The predictions**, 6 of them: 5 as predicted, 1 not as predicted. "
        "Kind by kind, as predicted: "
        "trajectory coherence falls to less than half: 2 of 2; "
        "gradient coherence falls to less than half: 2 of 2; accuracy stays: 1 of 2."
    )


@pytest.mark.parametrize(("coherence", "shows_nothing"), [(0.2, True), (0.4, False)])
def test_that_accuracy_stays_shows_nothing_where_nothing_is_moved(coherence, shows_nothing):
    """Agreement weights are meant to raise trajectory coherence, which is 0.2."""
    runs = made_up("base", trajectory_coherence=0.2, final_accuracy=0.5)
    changed = coherence + 0.01 * np.array([-2, -1, 0, 1, 2])
    runs += made_up("agreement weights", trajectory_coherence=changed, final_accuracy=0.5)
    text = describe_predictions(judge_predictions(runs))
    assert "accuracy stays: 1 of 1" in text
    assert ("1 of those as predicted shows nothing: accuracy stays" in text) == shows_nothing
