"""The numbers of the book's prose, on synthetic records whose verdicts are known."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from metanb.figures import ledger
from metanb.grids import definitions, hours
from metanb.grids.definitions import Planned
from metanb.settings import preset
from tests.support.fresh_process import require_no_torch
from tests.support.paths import ROOT
from tests.support.records import TIME, cell, record, timed

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import book_numbers


def test_headline_counts_the_verdicts_of_the_papers_form():
    rows = rules.judge(cell({"hessian_norm": np.exp(-TIME)}) + cell({}, algorithm="fomaml"))
    c1 = [row for row in rows if row.claim == "C1"]
    assert book_numbers.headline(c1) == "**reproduced** in 1 of 2; **not reproduced** in 1 of 2"
    assert book_numbers.headline(c1, "first peak") == "not testable in any run so far"
    more = [*c1, *(replace(row, verdict=Verdict.NO_CASE) for row in c1 if not row.variant)]
    assert book_numbers.headline(more).endswith(
        "; **not reproduced** in 1 of 2; not testable in 2 more"
    )
    assert (
        book_numbers.headline([replace(row, verdict=Verdict.TOO_FEW) for row in c1])
        == "not yet run"
    )
    assert "not testable" in book_numbers.headline(
        [replace(row, verdict=Verdict.TOO_SHORT) for row in c1]
    )


def test_ledger_table_has_a_line_for_each_row_that_says_something():
    rows = [
        row
        for row in rules.judge(cell({}) + cell({}, [0, 1], algorithm="fomaml"))
        if row.claim == "C1"
    ]
    rows = [
        *rows,
        *(replace(row, verdict=Verdict.TOO_SHORT) for row in rows[:3]),
    ]  # three forms, one of them the paper's, one not testable to begin with
    html = BeautifulSoup(book_numbers.ledger_table(rows), "html.parser")
    assert html.summary.get_text() == "2 verdicts: 2 not reproduced; 1 not testable"
    heads = [head.get_text() for head in html.select("thead th")]
    labels = "".join(f"--label-{i}:'{name}';" for i, name in enumerate(heads, 1))
    assert html.table["style"] == labels.removesuffix(";")
    lines = html.select("tbody tr")
    assert len(lines) == 2 + 1
    for line in lines:
        cells = line.find_all("td")
        assert len(cells) == len(heads) == 6
        assert cells[1].small.get_text() == "quick settings"
        assert line["data-verdict"] in cells[2].get_text()
        assert line.select_one("svg.metanb-mark") and cells[2].a["href"].endswith("#c1")
        assert (line["data-dataset"], line["data-algorithm"]) == ("Omniglot", "MAML")
        assert cells[4].a["href"] == f"runs.html#{rows[0].ids[0]}"
    assert book_numbers.ledger_table(rows[3:6]) == "No run is recorded yet."  # two runs only


def test_ledger_says_how_far_runs_have_got_and_puts_the_papers_settings_first():
    runs = cell({}) + [large(seed, 0.9, 10) for seed in range(3)]
    rows = [row for row in rules.judge(runs) if row.claim == "C2"]
    html = BeautifulSoup(book_numbers.ledger_table(rows), "html.parser")
    cells = [small.get_text() for small in html.select("td:nth-child(2) small")]
    assert cells == ["paper settings, 5,000 of 60,000 iterations", "quick settings"]


def test_verdicts_are_counted_by_their_words():
    (row,) = (row for row in rules.judge(cell({})) if row.claim == "C2")
    verdicts = [Verdict.UNCLEAR, Verdict.TREND_ONLY, Verdict.POWERLESS, Verdict.TREND_ONLY]
    rows = [replace(row, verdict=verdict) for verdict in verdicts]
    assert book_numbers.count_verdicts(rows) == "4 verdicts: 2 trend only, 2 cannot tell"
    assert book_numbers.count_verdicts(rows[:1]) == "1 verdict: 1 cannot tell"
    untestable = [replace(row, verdict=Verdict.NO_CASE), replace(row, verdict=Verdict.TOO_FEW)]
    assert book_numbers.count_verdicts(untestable) == "0 verdicts; 1 not testable"


def test_each_verdict_is_explained_beside_its_mark():
    assert list(book_numbers.VERDICT_MEANINGS) == [
        name for name, _ in dict.fromkeys(ledger.MARKS.values())
    ]
    shown = book_numbers.verdict_words()
    for name in book_numbers.VERDICT_MEANINGS:
        assert f"</svg> {name}\n: " in shown
    verdicts = {verdict for verdict in Verdict if verdict not in (Verdict.TOO_FEW, Verdict.SMOKE)}
    assert all(verdict.startswith(ledger.MARKS[verdict][0]) for verdict in verdicts)


def test_meta_training_beside_finetuning_is_what_the_rule_measured():
    """Its numbers stand in the row's small print, too."""
    runs = (
        cell({"trajectory_coherence": np.full(12, 0.3)})
        + cell({"trajectory_coherence": np.full(12, 0.2)}, range(4), algorithm="fomaml")
        + cell(
            {
                "trajectory_coherence": np.full(12, 0.001),
                "support_loss": np.full(12, 0.1),
                "query_accuracy": np.full(12, 0.6),
            },
            algorithm="finetune",
        )
    )
    rows = [row for row in rules.judge(runs) if row.claim == "C7"]
    beside = book_numbers.meta_training_rows(runs, rows)
    assert [row.algorithm for row in beside] == ["maml", "fomaml"]
    for row, partner in zip(rows, beside, strict=True):
        assert f": {partner.effect:.3f} ({partner.low:.3f} to {partner.high:.3f});" in row.detail
    figure = ledger.claim_forest("C7", rows, beside)
    assert list(figure.data.algorithm) == ["MAML", "first-order MAML", "finetuning"]
    assert list(figure.data.runs) == [3, 4, 3]


def test_verdicts_that_the_change_of_rules_turned_stand_beside_those_of_then():
    """One row of C2 is turned; a later seed changes nothing, and a longer run is not compared."""
    runs = cell({"support_loss": np.exp(-TIME)}) + [
        run.upto(8) for run in cell({}, algorithm="fomaml")
    ]
    rows = [row for row in rules.judge(runs) if row.claim == "C2"]
    columns = {
        "claim": "C2",
        "variant": "",
        "runs": [" ".join(row.ids) for row in rows],
        "verdict": "not reproduced",
    }
    before = pd.DataFrame(columns | {"reached": [row.reached for row in rows]})

    def changed(runs, before):
        """The summary, and the cells of the rows."""
        html = BeautifulSoup(book_numbers.rules_changed(runs, before), "html.parser")
        lines = [[cell.get_text() for cell in line("td")] for line in html.select("tbody tr")]
        return html.summary.get_text(), lines

    summary, lines = changed([*runs, record(7, {})], before)
    assert summary == "1 of 2 verdicts changed."
    where = "MAML, Omniglot 5-way 1-shot, quick"
    assert lines == [["C2", "not reproduced", "reproduced", "1", where]]
    longer = runs[:3] + cell({}, algorithm="fomaml")
    assert changed(longer, before)[0] == "1 of 1 verdicts changed."
    c4 = next(row for row in rules.judge(runs[:3]) if row.claim == "C4")
    untestable = before.assign(
        claim="C4", verdict="not testable: too few epochs after the best"
    ).iloc[:1]
    assert c4.verdict == Verdict.NO_CASE and before.runs[0] == " ".join(c4.ids)
    summary, lines = changed(runs, untestable)
    assert lines == [] and summary == (
        "0 of 1 verdicts changed. 1 more are not testable as before, for another reason."
    )


def large(seed, accuracy, epochs):
    run = record(
        seed,
        {},
        filters=64,
        meta_batch=32,
        iterations=60_000,
        epoch_iterations=500,
        final_tasks=600,
    )
    run = run.upto(epochs)
    final = {"epoch": epochs, "iteration": 500 * epochs, "measure": "final_accuracy"}
    final |= {"mean": accuracy, "sem": 0.01 * (1 + seed), "n": 600}
    return replace(run, measures=pd.concat([run.measures, pd.DataFrame([final])]))


@pytest.mark.parametrize(("epochs", "reached"), [((10, 10), "5,000"), ((10, 8), "4,000 to 5,000")])
def test_accuracy_stands_beside_the_published_one(epochs, reached):
    runs = [large(seed, 0.98 + 0.01 * seed, epochs[seed]) for seed in range(2)]
    (line,) = book_numbers.accuracy_table(runs + cell({})).splitlines()[2:]
    accuracy = "98.5 % (98.0 to 99.0) | ± 3.9 | 2 | 600 | – | 98.7 ± 0.4 %"
    assert line == f"| Omniglot, 5-way 1-shot | MAML | {reached} | {accuracy} |"
    theirs = runs[0].measures.tail(1).assign(measure="final_accuracy_finn", mean=0.99, sem=0.001)
    runs[0] = replace(runs[0], measures=pd.concat([runs[0].measures, theirs]))
    assert book_numbers.accuracy_as_published(runs) == "99.0 ± 0.2 %, 1 of 2 runs"
    (line,) = book_numbers.accuracy_table(runs[:1]).splitlines()[2:]
    assert "| 98.0 % | ± 2.0 | 1 | 600 |" in line
    assert book_numbers.accuracy_table(cell({})) == "No run at the paper's scale is recorded yet."
    assert (
        book_numbers.runs_by_scale(runs + cell({}))
        == "3 runs at `quick` scale; 2 runs at `paper` scale, 2 of them stopped early"
    )


def test_the_cost_of_the_paper_by_device(monkeypatch):
    """Two runs of an hour share a GPU, one takes an hour of a core; the grid is their settings."""
    maml = preset("paper", "omniglot", 20)
    fomaml = replace(maml, algorithm="fomaml")
    settings = [replace(plain, seed=seed) for plain in (maml, fomaml) for seed in range(4)]
    planned = [Planned("a", run) for run in settings]
    monkeypatch.setattr(definitions, "paper_grid", lambda: planned)
    runs = [timed(replace(maml, seed=seed), 3600.0, "NVIDIA H200") for seed in range(2)]
    lines = book_numbers.cost_table([*runs, timed(fomaml, 3600.0, "AMD EPYC (AVX2)")]).splitlines()
    assert lines[0].split("|")[-3:-1] == [" All 8 runs ", " Hours of the device "]
    rows = {line.split("|")[1].split("<")[0].strip(): line.split("|")[2:-1] for line in lines[2:]}
    assert list(rows) == [*hours.BANDWIDTH, hours.CORE]
    h200, consumer, core = (
        [value.strip() for value in rows[kind]]
        for kind in ("NVIDIA H200", "NVIDIA GeForce RTX 4090", hours.CORE)
    )
    assert h200[:3] == ["2", "30 min", "unknown"] and h200[3].startswith("≈ ")
    assert h200[4:] == [
        "over 2.0 h<br><small>4 of the 8 runs left were never timed</small>",
        "over 2",
    ]
    scaled = hours.format_minutes(30 * 4.8 / 1.01)
    assert consumer[:3] == ["2", f"≈ {scaled}", "unknown"] and consumer[5] == "over 10"
    assert core[0] == "1" and core[1].startswith("≈ ") and "unknown" not in "".join(core)
    assert core[4].startswith("≈ ") and core[5].startswith("≈ ")  # of one setting none was timed
    nothing = book_numbers.cost_table([]).splitlines()[2].split("|")[2:-1]
    assert {value.strip() for value in nothing} == {"unknown"}


def test_what_runs_took_on_a_gpu_is_told_with_their_share():
    maml = preset("paper", "omniglot", 20)
    runs = [timed(replace(maml, seed=seed), 3600.0, "NVIDIA H200", 10) for seed in range(2)]
    (line,) = book_numbers.gpu_table(runs).splitlines()[2:]
    assert line.endswith(
        "| NVIDIA H200 | 2 | 5,000 | 60 min | a process each | 2.0 | 30 min | 6.0 h |"
    )
    for run, together in zip(runs, (2, "3, 2"), strict=True):
        run.provenance["together"] = together
    assert "| as one batch | 2.0 |" in book_numbers.gpu_table(runs)
    assert len(book_numbers.gpu_table([timed(maml, 60.0, "AMD EPYC")]).splitlines()) == 2


def test_a_whole_run_is_a_share_of_a_gpu_and_others_time_is_a_multiple():
    """Three seeds in a batch, an hour for a tenth of the iterations: 200 minutes each."""
    maml = preset("paper", "omniglot")
    runs = [timed(replace(maml, seed=seed), 3600.0, "NVIDIA H200", 12) for seed in range(3)]
    assert book_numbers.whole_run_values(runs) == {
        "whole_run": "3.3 h",
        "whole_run_together": "3",
        "whole_run_gpu": "H200",
        "whole_run_times": "4 to 5",  # 720 and 960 minutes over 200
    }


def test_best_peer_is_the_fastest_whose_gradient_is_right():
    rows = [
        ("metanb", "U1", 10.0, 1e-14),
        ("slow", "U1", 40.0, 0.0),
        ("right", "U1", 25.0, 1e-13),
        ("wrong", "U1", 5.0, 1e-3),
        ("metanb", "U4", 8.0, 0.0),
        ("slow", "U4", 12.0, 0.0),
    ]
    timings = pd.DataFrame(rows, columns=["candidate", "unit", "ms", "error64"])
    timings = pd.concat([timings.assign(order="second"), timings.assign(order="first", ms=1.0)])
    assert book_numbers.speedup_over_best_peer(timings, "second") == "2.50 (U1), 1.50 (U4)"


def test_what_has_a_verdict_at_the_papers_scale_is_told_from_what_has_none():
    runs = [large(seed, 0.9, epochs) for seed, epochs in enumerate((10, 10, 8))]
    too_few = runs[:2]
    too_short = [run.upto(2) for run in runs]
    for unjudged in (too_few, too_short):
        rows = rules.judge(unjudged)
        assert book_numbers.paper_reach(unjudged, rows) == "of which none has a verdict yet"
        missing = book_numbers.paper_missing(unjudged, rows)
        assert "Omniglot 5-way 1-shot (MAML, first-order MAML, finetuning, MAML with" in missing
        assert missing.count("the regulariser") == 1
    rows = rules.judge(runs)
    assert book_numbers.paper_reach(runs, rows) == "trained for 4,000 to 5,000 of 60,000 iterations"
    missing = book_numbers.paper_missing(runs, rows)
    summed = ", ".join(
        f"{name} with the sum as inner loss" for name in ("MAML", "first-order MAML", "finetuning")
    )
    assert f"Omniglot 5-way 1-shot (first-order MAML, finetuning, {summed})" in missing


def test_number_pages_load_no_torch_and_have_every_number():
    """All that they put into the book, in a process of its own."""
    code = (
        "sys.path.insert(0, sys.argv[1]); import book_numbers, explorer, findings; "
        "values = findings.substitutions(); assert all(values.values()), values; "
        "book_numbers.substitutions(); "
        "recorded = book_numbers.committed_runs(); book_numbers.runs_page(recorded); "
        "explorer.curves_of_cells(recorded)"
    )
    require_no_torch(code, ROOT / "book" / "_ext")
