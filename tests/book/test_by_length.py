"""Verdicts by length, on made-up runs that turn where the test says."""

import by_length
import numpy as np
import pytest

from tests.support.records import EPOCHS, at_paper_settings

# It is level, and then higher.
LOSS = np.r_[np.ones(4), np.linspace(2, 5, EPOCHS - 4)]


@pytest.fixture(autouse=True)
def short_lengths(monkeypatch):
    monkeypatch.setattr(by_length, "LENGTHS", (2_000, 4_000, 6_000))


def test_a_claim_that_turns_is_shown_with_its_lengths():
    text = by_length.verdicts_by_length(at_paper_settings({"support_loss": LOSS}, epochs=12))
    assert "judged at 2,000, 4,000 and 6,000 iterations, as far as it went. These turn:" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| C2 |"))
    turns = "not reproduced at 2,000; reversed from 4,000 to 6,000"
    assert line == f"| C2 | Omniglot 5-way 1-shot, MAML | {turns} |"
    assert not any(line.startswith("| C3 |") for line in text.splitlines())
    assert "verdicts are the same at each length. Each" in text


def test_a_length_that_a_cell_has_not_reached_has_no_verdict():
    whole = at_paper_settings({"support_loss": LOSS}, epochs=12)
    short = at_paper_settings({"support_loss": LOSS}, epochs=9, algorithm="fomaml")
    text = by_length.verdicts_by_length(whole + short)
    assert "judged at 2,000, 4,000, 4,500 and 6,000 iterations" in text
    turns = "not reproduced at 2,000; reversed from 4,000 to 4,500"
    assert f"| C2 | Omniglot 5-way 1-shot, first-order MAML | {turns} |" in text
    too_short = [run.upto(4) for run in short]
    assert by_length.verdicts_by_length(too_short).startswith("No three runs of a cell")
