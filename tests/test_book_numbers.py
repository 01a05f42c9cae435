"""The numbers of the book's prose, on synthetic records whose verdicts are known."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metanb import claims, verdicts
from tests.test_claims import TIME, cell, record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book" / "_ext"))
import book_numbers


def test_headline_counts_the_verdicts_of_the_papers_form():
    rows = claims.ledger(cell({"hessian_norm": np.exp(-TIME)}) + cell({}, algorithm="fomaml"))
    c1 = [row for row in rows if row.claim == "C1"]
    assert book_numbers.headline(c1) == "**reproduced** in 1 of 2; **not reproduced** in 1 of 2"
    assert book_numbers.headline(c1, "first peak") == "**not reproduced** in 2 of 2"
    assert book_numbers.headline([replace(row, verdict=verdicts.TOO_FEW) for row in c1]) == "not yet run"
    assert "not testable" in book_numbers.headline([replace(row, verdict=verdicts.TOO_LATE) for row in c1])


def test_ledger_table_has_a_line_for_each_row_that_says_something():
    rows = [row for row in claims.ledger(cell({}) + cell({}, [0, 1], algorithm="fomaml")) if row.claim == "C1"]
    rows = [
        *rows,
        *(replace(row, verdict=verdicts.TOO_LATE) for row in rows[:3]),
    ]  # three forms, one of them the paper's
    lines = book_numbers.ledger_table(rows).splitlines()[2:]
    assert len(lines) == 3 + 1 and all(
        line.count("|") == 8 and "| quick |" in line and "](#c1)" in line for line in lines
    )
    assert book_numbers.ledger_table(rows[3:6]) == "No run is recorded yet."  # two runs only


def large(seed, accuracy, epochs):
    run = record(seed, {}, filters=64, meta_batch=32, iterations=60_000, epoch_iterations=500, final_tasks=600)
    run = run.upto(epochs)
    final = {"epoch": epochs, "iteration": 500 * epochs, "measure": "final_accuracy"}
    final |= {"mean": accuracy, "sem": 0.01 * (1 + seed), "n": 600}
    return replace(run, measures=pd.concat([run.measures, pd.DataFrame([final])]))


@pytest.mark.parametrize(("epochs", "reached"), [((10, 10), "5,000"), ((10, 8), "4,000 to 5,000")])
def test_accuracy_stands_beside_the_published_one(epochs, reached):
    runs = [large(seed, 0.98 + 0.01 * seed, epochs[seed]) for seed in range(2)]
    (line,) = book_numbers.accuracy_table(runs + cell({})).splitlines()[2:]
    assert line == f"| Omniglot, 5-way 1-shot | MAML | {reached} | 98.5 % (98.0 to 99.0) | ± 3.9 | 2 | 600 | 98.7 % |"
    (line,) = book_numbers.accuracy_table(runs[:1]).splitlines()[2:]
    assert "| 98.0 % | ± 2.0 | 1 | 600 |" in line
    assert book_numbers.accuracy_table(cell({})) == "No run at the paper's scale is recorded yet."
    assert (
        book_numbers.runs_by_scale(runs + cell({}))
        == "3 runs at `quick` scale; 2 runs at `paper` scale, 2 of them stopped early"
    )


def test_best_peer_is_the_fastest_whose_gradient_is_right():
    rows = [("metanb", "U1", 10.0, 1e-14), ("slow", "U1", 40.0, 0.0), ("right", "U1", 25.0, 1e-13),
            ("wrong", "U1", 5.0, 1e-3), ("metanb", "U4", 8.0, 0.0), ("slow", "U4", 12.0, 0.0)]  # fmt: skip
    timings = pd.DataFrame(rows, columns=["candidate", "unit", "ms", "error64"])
    timings = pd.concat([timings.assign(order="second"), timings.assign(order="first", ms=1.0)])
    assert book_numbers.against_best_peer(timings, "second") == "2.50 (U1), 1.50 (U4)"


def test_hours_are_those_of_sixty_thousand_meta_gradients():
    rows = [{"candidate": "metanb", "unit": unit, "order": order, "ms": 600.0}
            for unit in ("U1", "U3", "U4") for order in ("second", "first")]  # fmt: skip
    lines = book_numbers.hours_table(pd.DataFrame(rows)).splitlines()[2:]
    assert [line.split("|")[2:4] for line in lines] == [[" 10 ", " 10 "]] * 3


def test_what_has_a_verdict_at_the_papers_scale_is_told_from_what_has_none():
    runs = [large(seed, 0.9, epochs) for seed, epochs in enumerate((10, 10, 8))]
    few, short = runs[:2], [run.upto(2) for run in runs]
    for chosen in (few, short):  # too few runs, too few epochs
        rows = claims.ledger(chosen)
        assert book_numbers.paper_reach(chosen, rows) == "of which none has a verdict yet"
        missing = book_numbers.paper_missing(chosen, rows)
        assert "Omniglot 5-way 1-shot (MAML, first-order MAML, finetuning)" in missing
        assert missing.count("the regulariser") == 1
    rows = claims.ledger(runs)
    assert book_numbers.paper_reach(runs, rows) == "trained for 4,000 to 5,000 of 60,000 iterations"
    assert "Omniglot 5-way 1-shot (first-order MAML, finetuning)" in book_numbers.paper_missing(runs, rows)
