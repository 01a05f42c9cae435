"""Verdicts in words, on synthetic records whose verdicts are known."""

from dataclasses import replace

import claim_results

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from tests.support.records import FALLS, at_paper_settings, cell


def test_verdicts_are_counted_in_words():
    rows = [row for row in rules.judge(cell({"support_loss": FALLS})) if row.claim == "C2"]
    assert claim_results.verdicts_in_words(rows) == "**reproduced** in the one cell"
    assert claim_results.verdicts_in_words(rows * 2) == "**reproduced** in all 2 cells"
    powerless = replace(rows[0], verdict=Verdict.POWERLESS)
    assert (
        claim_results.verdicts_in_words([*rows, *rows, powerless])
        == "**reproduced** in 2, **cannot tell** in 1, of 3 cells"
    )
    assert (
        claim_results.verdicts_in_words([replace(rows[0], verdict=Verdict.TOO_FEW)])
        == "not yet run"
    )


def test_a_claim_has_its_control_beside_it():
    runs = cell({"hessian_norm": FALLS}) + at_paper_settings({"hessian_norm": FALLS})
    lines = claim_results.claim_results(rules.judge(runs), []).splitlines()
    assert len(lines) == 8 and lines[0].startswith("- **C1**, adapted solutions become flatter. ")
    paper, control = lines[0].split(
        "By a measure that rescaling the convolutions does not change, "
    )
    assert "At the paper's settings: **reproduced** in the one cell; in the smaller" in paper
    assert "at the paper's settings: **not reproduced** in the one cell" in control
    assert lines[7].endswith("Not yet run.")
