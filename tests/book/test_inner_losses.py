"""Two inner losses beside each other, on synthetic records whose verdicts are known."""

import sys

from metanb.claims import rules
from tests.support.paths import ROOT
from tests.support.records import FALLS, TIME, cell

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import beliefs
import inner_losses


def test_verdicts_of_two_inner_losses_are_compared():
    """With the sum, flatness is gone and accuracy is 10 points lower."""
    rises = 0.5 + 0.2 * TIME
    mean = cell({"hessian_norm": FALLS, "query_accuracy": rises}, range(5), wobble=0.001)
    changed = {"hessian_norm": 1 / FALLS, "query_accuracy": rises - 0.1}
    summed = cell(changed, range(3), wobble=0.001, inner_loss="sum")
    alone = cell({"hessian_norm": FALLS}, ways=20)
    runs = mean + summed + alone
    rows = [row for row in rules.judge(runs) if row.claim in ("C1", "C2")]
    pairs = inner_losses.pair_inner_losses(runs, rows)
    assert all(len(a.ids) == 5 and len(b.ids) == 3 and a.name == b.name for a, b in pairs)
    text = beliefs.belief_in_inner_loss(pairs)
    assert "leaves 1 of 2 verdicts as they are, and changes some of C1 (" in text
    lines = inner_losses.inner_loss_table(pairs).splitlines()
    assert lines[2] == (
        "| C1 | **reproduced** in the one cell | **reversed** in the one cell | 0 of 1 |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| C1", "| C1, control", "| C2"]
    accuracy = inner_losses.inner_loss_accuracy(runs, pairs)
    assert accuracy == "under MAML by -10.0 points (means over 3 seeds per cell)"
    assert beliefs.belief_in_inner_loss([]) == ""
