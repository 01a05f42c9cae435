"""The ledger's tables and counts, on synthetic records whose verdicts are known."""

from dataclasses import replace

import ledger_page
import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from metanb.claims import rules
from metanb.claims.predictions import Outcome, judge_predictions
from metanb.claims.verdicts import Verdict
from metanb.figures import forest, ledger
from tests.support.interventions import made_up
from tests.support.records import TIME, cell, record, stopped_run


def test_headline_counts_the_verdicts_of_the_papers_form():
    rows = rules.judge(cell({"hessian_norm": np.exp(-TIME)}) + cell({}, algorithm="fomaml"))
    c1 = [row for row in rows if row.claim == "C1"]
    assert ledger_page.headline(c1) == "**reproduced** in 1 of 2; **not reproduced** in 1 of 2"
    assert ledger_page.headline(c1, "first peak") == "not testable in any run so far"
    more = [*c1, *(replace(row, verdict=Verdict.NO_CASE) for row in c1 if not row.variant)]
    assert ledger_page.headline(more).endswith(
        "; **not reproduced** in 1 of 2; not testable in 2 more"
    )
    assert (
        ledger_page.headline([replace(row, verdict=Verdict.TOO_FEW) for row in c1]) == "not yet run"
    )
    assert "not testable" in ledger_page.headline(
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
    html = BeautifulSoup(ledger_page.ledger_table(rows), "html.parser")
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
    assert ledger_page.ledger_table(rows[3:6]) == "No run is recorded yet."  # two runs only


def test_ledger_says_how_far_runs_have_got_and_puts_the_papers_settings_first():
    runs = cell({}) + [stopped_run(seed, 0.9, 10) for seed in range(3)]
    rows = [row for row in rules.judge(runs) if row.claim == "C2"]
    html = BeautifulSoup(ledger_page.ledger_table(rows), "html.parser")
    cells = [small.get_text() for small in html.select("td:nth-child(2) small")]
    assert cells == ["paper settings, 5,000 of 60,000 iterations", "quick settings"]


def test_verdicts_are_counted_by_their_words():
    (row,) = (row for row in rules.judge(cell({})) if row.claim == "C2")
    verdicts = [Verdict.UNCLEAR, Verdict.TREND_ONLY, Verdict.POWERLESS, Verdict.TREND_ONLY]
    rows = [replace(row, verdict=verdict) for verdict in verdicts]
    assert ledger_page.count_verdicts(rows) == "4 verdicts: 2 trend only, 2 cannot tell"
    assert ledger_page.count_verdicts(rows[:1]) == "1 verdict: 1 cannot tell"
    untestable = [replace(row, verdict=Verdict.NO_CASE), replace(row, verdict=Verdict.TOO_FEW)]
    assert ledger_page.count_verdicts(untestable) == "0 verdicts; 1 not testable"


def test_what_runs_alone_would_tell_of_predictions_is_said():
    runs = made_up("base", hessian_norm=1.0, sem=0.0) + made_up("sharpness-aware", hessian_norm=1.2)
    (row,) = (row for row in judge_predictions(runs) if row.prediction.measure == "hessian_norm")
    assert row.over_runs_alone == Outcome.REFUTED
    told = ledger_page.predictions_over_runs_alone([replace(row, outcome=Outcome.OPEN)])
    assert told == (
        "Over runs alone, on these very tasks, these would be 1 *not as predicted*: "
        "*sharpness-aware* under first-order MAML (Hessian norm at adapted solutions falls)."
    )
    same = replace(row, over_runs_alone=row.outcome)
    assert ledger_page.predictions_over_runs_alone([same]).endswith("no outcome would be another.")


def test_each_verdict_is_explained_beside_its_mark():
    assert list(ledger_page.VERDICT_MEANINGS) == [
        name for name, _ in dict.fromkeys(ledger.MARKS.values())
    ]
    shown = ledger_page.verdict_words()
    for name in ledger_page.VERDICT_MEANINGS:
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
    beside = ledger_page.meta_training_rows(runs, rows)
    assert [row.algorithm for row in beside] == ["maml", "fomaml"]
    for row, partner in zip(rows, beside, strict=True):
        assert f": {partner.effect:.3f} ({partner.low:.3f} to {partner.high:.3f});" in row.detail
    figure = forest.draw_claim("C7", rows, beside)
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
        html = BeautifulSoup(ledger_page.rules_changed(runs, before), "html.parser")
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
