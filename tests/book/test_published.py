"""Accuracies beside published ones, on synthetic records."""

from dataclasses import replace

import numpy as np
import pandas as pd
import published
import pytest
import reach

from metanb.claims import rules
from tests.support.records import cell, stopped_run


@pytest.mark.parametrize(("epochs", "reached"), [((10, 10), "5,000"), ((10, 8), "4,000 to 5,000")])
def test_accuracy_stands_beside_the_published_one(epochs, reached):
    runs = [stopped_run(seed, 0.98 + 0.01 * seed, epochs[seed]) for seed in range(2)]
    (line,) = published.accuracy_table(runs + cell({})).splitlines()[2:]
    accuracy = "98.5 % (98.0 to 99.0) | ± 3.9 | 2 | 600 | – | 98.7 ± 0.4 %"
    assert line == f"| Omniglot, 5-way 1-shot | MAML | {reached} | {accuracy} |"
    theirs = runs[0].measures.tail(1).assign(measure="final_accuracy_finn", mean=0.99, sem=0.001)
    runs[0] = replace(runs[0], measures=pd.concat([runs[0].measures, theirs]))
    assert published.accuracy_as_published(runs) == "99.0 ± 0.2 %, 1 of 2 runs"
    (line,) = published.accuracy_table(runs[:1]).splitlines()[2:]
    assert "| 98.0 % | ± 2.0 | 1 | 600 |" in line
    assert published.accuracy_table(cell({})) == "No run at the paper's scale is recorded yet."
    assert (
        reach.runs_by_scale(runs + cell({}))
        == "3 runs at `quick` scale; 2 runs at `paper` scale, 2 of them stopped early"
    )


def test_gains_stand_beside_the_papers():
    base = cell({"query_accuracy": np.full(12, 0.80)}, ways=20, wobble=0)
    with_it = cell(
        {"query_accuracy": np.full(12, 0.81)}, ways=20, regulariser="adapted", gamma=0.1, wobble=0
    )
    runs = base + with_it
    lines = published.gain_table(runs, rules.judge(runs)).splitlines()[2:]
    assert len(lines) == 2 and "94.05 % | 95.38 % | +1.33 points" in lines[0]
    assert "MAML, in the smaller version | whole | 0.1 | 80.00 % | 81.00 % | +1.00" in lines[1]
