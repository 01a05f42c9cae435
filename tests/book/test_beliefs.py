"""What a reader may believe, on synthetic records whose verdicts are known.

Curves are chosen so that one conclusion is right and another wrong.
"""

from dataclasses import replace

import beliefs
import claim_results
import committed
import numpy as np
import pytest

from metanb.claims import companions, predictions, rules
from metanb.claims.companions import Role
from metanb.claims.paper import PAPER_GAIN
from metanb.claims.predictions import Expectation, Outcome, Prediction, PredictionRow
from tests.support.records import FALLS, TIME, cell


@pytest.mark.parametrize(("scale_free", "seldom"), [(np.ones(12), True), (FALLS, False)])
def test_flatness_says_where_the_scale_free_measure_seldom_falls(scale_free, seldom):
    rows = rules.judge(cell({"hessian_norm": FALLS, "adaptive_sharpness": scale_free}))
    text = beliefs.belief_in_flatness(rows)
    assert "In the smaller version the Hessian norm falls in 1 of 1 cells" in text
    assert ("less than half as often" in text) == seldom
    assert "paper's settings" not in text
    assert beliefs.belief_in_flatness([]) == ""


def test_accuracy_that_falls_is_a_case_and_accuracy_that_rises_is_none():
    falling = 0.5 - 0.2 * TIME
    curves = {"query_accuracy": falling, "valid_accuracy": falling, "hessian_norm": FALLS}
    text = beliefs.belief_in_worse(rules.judge(cell(curves, wobble=0.001)))
    assert "Accuracy is seen to fall in 1 of 1 cells, none of them at the paper's settings." in text
    assert (
        "the Hessian norm goes on falling in 1 of 1, and the scale-free measure in 0 of 1." in text
    )
    both = rules.judge(cell(curves | {"adaptive_sharpness": FALLS}, wobble=0.001))
    assert beliefs.belief_in_worse(both).endswith("a flatter solution is not a better one.")
    rising = rules.judge(cell({"query_accuracy": 0.5 + 0.2 * TIME}))
    assert beliefs.belief_in_worse(rising).endswith("so nothing here tests it.")


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
    assert beliefs.belief_in_gain([row]).endswith(f"{conclusion}.")
    assert beliefs.belief_in_gain([replace(row, setting="5-way 1-shot")]) == ""


def test_what_moves_while_accuracy_stays_is_said_to_be_no_cause():
    """On the committed records: as chapter 8 has it, and nothing where nothing moves."""
    roles = beliefs.main_roles(committed.committed_runs())
    assert [role.measure for role in roles] == [m for m in companions.SUBJECTS for _ in range(2)]
    first_order = [role for role in roles if role.algorithm == "fomaml"]
    told = beliefs.belief_in_causes(first_order)
    assert "under first-order MAML" in told and "under MAML" not in told
    for role in first_order:
        is_ruled_out = role.role in (Role.COMPANION, Role.NEITHER)
        assert (companions.SUBJECTS[role.measure] in told) == is_ruled_out
    moving = [replace(role, role=Role.OPEN) for role in roles]
    assert beliefs.belief_in_causes(moving) == ""


def outcome(measure, expected, result):
    prediction = Prediction("zero head", measure, expected)
    place = {"algorithm": "fomaml", "dataset": "omniglot", "setting": "5-way 1-shot"}
    numbers = {"before": 1.0, "after": 1.0, "effect": -1.0, "low": -2.0, "high": 0.0, "runs": 3}
    results = {"outcome": result, "over_runs_alone": result}
    return PredictionRow(prediction, scale="quick", ids=("a",), **place, **numbers, **results)


def test_only_interventions_that_take_coherence_away_count():
    taken = outcome("trajectory_coherence", Expectation.COLLAPSES, Outcome.PREDICTED)
    stays = outcome("final_accuracy", Expectation.STAYS, Outcome.PREDICTED)
    assert claim_results.accuracy_without([taken, stays], "trajectory_coherence") == [stays]
    kept = replace(taken, outcome=Outcome.OPEN)
    assert claim_results.accuracy_without([kept, stays], "trajectory_coherence") == []
    text = claim_results.without_coherence([taken, stays], "trajectory_coherence")
    assert "takes most of this coherence away from first-order MAML changes accuracy" in text
    assert "-1.0 points (-2.0 to +0.0) by the zero head" in text
    assert claim_results.without_coherence([kept, stays], "trajectory_coherence") == ""
    rows = rules.judge(cell({"query_accuracy": TIME, "trajectory_coherence": TIME}))
    belief = beliefs.belief_in_coherence(rows, [taken, stays])
    margin = f"within ± {predictions.MARGIN:g} points"
    assert f"accuracy stays {margin} under the zero head." in belief
    falls = replace(stays, outcome=Outcome.REFUTED)
    belief = beliefs.belief_in_coherence(rows, [taken, falls])
    assert f"accuracy does not stay {margin} under the zero head." in belief


def test_interventions_are_named_with_their_settings_where_these_differ():
    small = outcome("final_accuracy", Expectation.STAYS, Outcome.PREDICTED)
    large = replace(small, setting="20-way 1-shot", outcome=Outcome.REFUTED)
    assert claim_results.name_interventions([small]) == {small: "the zero head"}
    taken = outcome("trajectory_coherence", Expectation.COLLAPSES, Outcome.PREDICTED)
    text = beliefs.accuracy_without_coherence(
        [small, large, taken, replace(taken, setting="20-way 1-shot")]
    )
    assert "points under the zero head (Omniglot, 5-way 1-shot), and not under" in text
    assert "under the zero head (Omniglot, 20-way 1-shot) ([why" in text
