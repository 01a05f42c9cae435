"""The trends C1 to C3: synthetic records of known effect give each verdict."""

import numpy as np
import pytest

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from metanb.grids.definitions import BEGINNING
from tests.support.records import EPOCHS, TIME, cell, verdict

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


@pytest.mark.parametrize(
    ("claim", "variant", "measure"),
    [("C2", "", "support_loss"), ("C3", rules.RELATIVE, "body_norm")],
)
def test_a_measure_of_0_has_no_ratio_and_stops_no_other_row(claim, variant, measure):
    """As late losses of a network that is certain, or the body of one that is all head."""
    zero = np.r_[np.ones(6), np.zeros(6)] if measure == "support_loss" else np.zeros(12)
    runs = [*cell({}, [0, 1]), *cell({measure: zero}, [2])]
    (row,) = (row for row in rules.judge(runs) if (row.claim, row.variant) == (claim, variant))
    assert row.verdict == Verdict.NO_RATIO and not row.verdict.is_judged
    assert row.detail == f"{measure} of {runs[2].settings.id}" and row.change == "–"
    assert verdict(runs, "C1") == Verdict.NOT_SEEN


@pytest.mark.parametrize("at", [0, 4])
def test_a_first_peak_over_0_or_of_0_has_no_ratio(at):
    """Where the norm of a run is 0 later than in the first half, a first peak can be judged."""
    beginning = {"epoch_iterations": 25, "iterations": 2500}
    norm = np.where(np.arange(EPOCHS) == at, 0.0, 1.0)
    assert verdict(cell({"hessian_norm": norm}, **beginning), "C1", "first peak") == (
        Verdict.NO_RATIO
    )
    norm = np.where(np.arange(EPOCHS) == 8, 0.0, 1.0)
    assert verdict(cell({"hessian_norm": norm}, **beginning), "C1", "first peak") == (
        Verdict.NOT_SEEN
    )


def test_an_error_over_tasks_that_is_unknown_leaves_everything_possible():
    """Two tasks give no error of a coherence."""
    runs = cell({"hessian_norm": np.exp(-TIME)}, errors={"hessian_norm": np.nan})
    (row,) = (row for row in rules.judge(runs) if (row.claim, row.variant) == ("C1", ""))
    assert row.verdict == Verdict.NOT_SEEN and (row.low, row.high) == (-np.inf, np.inf)


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


def test_the_beginning_is_judged_for_its_first_peak_alone():
    runs = cell({"hessian_norm": PEAK}, **BEGINNING)
    (row,) = rules.judge(runs)
    assert (row.claim, row.variant, row.verdict) == ("C1", "first peak", Verdict.REPRODUCED)
    assert (row.scale, row.apart, row.reached) == ("quick", "", "300 of 1,800 iterations")
    plain = [row.claim for row in rules.judge(cell({}))]
    both = [row.claim for row in rules.judge([*runs, *cell({})])]
    assert both == sorted([*plain, "C1"])
