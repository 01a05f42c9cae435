"""Two inner losses beside each other, on synthetic records whose verdicts are known."""

import beliefs
import inner_losses
import numpy as np

from metanb.claims import rules
from tests.support.records import FALLS, TIME, at_paper_settings, cell


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
    changed = sum(line.endswith("| 0 of 1 |") for line in lines[2:])
    assert inner_losses.count_changes(pairs) == (
        f"{changed} of these 3 verdicts change, 0 of them from or to *not testable*"
    )
    accuracy = inner_losses.inner_loss_accuracy(runs, pairs)
    assert accuracy == "under MAML by -10.0 points (means over 3 seeds per cell)"
    assert beliefs.belief_in_inner_loss([]) == ""


def test_a_cell_of_one_run_is_compared_with_its_own_seed_and_in_no_verdict():
    """A run with the sum that stops after 8 epochs, beside three with the mean that have 10."""
    mean = at_paper_settings({"hessian_norm": FALLS}, wobble=0)
    curves = {"adaptive_sharpness": 1 / FALLS, "query_accuracy": np.full(12, 0.5)}
    summed = at_paper_settings(curves, [1], epochs=8, wobble=0, inner_loss="sum")
    runs = mean + summed
    assert inner_losses.pair_inner_losses(runs, rules.judge(runs)) == []
    factor = np.exp(-2 * 6 / 12)  # epochs 7 and 8 over epochs 1 and 2
    lines = inner_losses.inner_losses_at_length(runs).splitlines()[4:]
    assert lines == [
        f"| MAML, seed 1 | mean | 4,000 | 100.0 % | × {factor:.2f} | × 1.00 |",
        f"| MAML, seed 1 | sum | 4,000 | 50.0 % | × 1.00 | × {1 / factor:.2f} |",
    ]
    assert inner_losses.inner_losses_at_length(mean).startswith("No run at the paper's settings")
