"""The findings of the first page: true of the committed records, and refused when they are not.

Evidence: measures.csv.gz of the records, read here without metanb's own readers;
and records that are changed until a finding is false.
"""

import re
from dataclasses import replace

import landing
import numpy as np
import pandas as pd
import pytest

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from metanb.runs.records import read_records
from metanb.settings import preset
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def evidence():
    records = read_records(ROOT / "results")
    rows = [row for row in rules.judge(records) if row.dataset != "glyphs"]
    return landing.Evidence(records, rows)


def test_every_finding_holds_and_has_numbers(evidence):
    text = landing.list_findings(evidence)
    lines = text.splitlines()
    assert len(lines) == len(landing.FINDINGS)
    assert all(re.match(r"1\. \*\*[^*]+\.\*\* .*\d", line) for line in lines)
    assert "nan" not in text and "–" not in text


def test_readme_says_the_same(evidence):
    readme = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"<!-- findings:[^>]*-->\n(.*?)\n<!-- end", readme, re.DOTALL)
    assert shown == landing.list_findings(evidence), (
        "put what `python book/_ext/landing.py` prints into README.md"
    )


def test_coherence_of_first_order_maml_is_that_of_its_files(evidence):
    """The mean over seeds of the last quarter of the epochs."""
    late = []
    for seed in range(5):
        folder = ROOT / "results" / preset("quick", "omniglot", algorithm="fomaml", seed=seed).id
        table = pd.read_csv(folder / "measures.csv.gz")
        values = table[table.measure == "trajectory_coherence"].sort_values("epoch")["mean"]
        late.append(values.to_numpy()[-3:].mean())  # a quarter of 12 epochs
    text = landing.find_agreement(evidence).text
    assert f"late trajectory coherence is {np.mean(late):.2f} (" in text


@pytest.mark.parametrize(
    ("find", "claim", "form", "verdict"),
    [
        (landing.find_flatness, "C1", "", Verdict.NOT_SEEN),
        (landing.find_flatness, "C1", rules.SCALE_FREE, Verdict.REPRODUCED),
        (landing.find_worse, "C4", "", Verdict.NOT_SEEN),
        (landing.find_coherence, "C5", "", Verdict.REPRODUCED),
        (landing.find_regulariser, "C8", "", Verdict.REPRODUCED),
        (landing.find_baseline, "C7", "", Verdict.NOT_SEEN),
        (landing.find_baseline, "C7", "", Verdict.NOT_SET_APART),
        (landing.find_baseline, "C7", "", Verdict.REPRODUCED),
    ],
)
def test_a_finding_that_the_verdicts_contradict_does_not_hold(evidence, find, claim, form, verdict):
    assert find(evidence).holds
    rows = [
        replace(row, verdict=verdict)
        if row.claim == claim
        and (row.variant == form if form else row.as_in_paper)
        and row.verdict.is_judged
        else row
        for row in evidence.rows
    ]
    assert not find(landing.Evidence(evidence.records, rows)).holds


# all but the one that rests on runs alone
ON_VERDICTS = [find for find in landing.FINDINGS if find is not landing.find_agreement]


@pytest.mark.parametrize("find", ON_VERDICTS)
def test_a_finding_without_verdicts_does_not_hold(evidence, find):
    assert not find(landing.Evidence(evidence.records, [])).holds


def test_coherence_is_said_to_fall_at_full_length_only_where_accuracy_does_not(evidence):
    (whole,) = (
        row
        for row in evidence.rows
        if (row.claim, row.scale, row.reached) == ("C5", "paper", "")
        and row.verdict == Verdict.OPPOSITE_TREND
    )
    for claim, change in (("C5", {"iterations": 5_000}), ("C4", {"verdict": Verdict.REPRODUCED})):
        rows = [
            replace(row, **change) if (row.claim, row.ids) == (claim, whole.ids) else row
            for row in evidence.rows
        ]
        assert not landing.find_coherence(landing.Evidence(evidence.records, rows)).holds


def test_the_build_stops_with_the_findings_words(evidence, monkeypatch):
    false = landing.Finding("**Nothing is found.** In 0 of 0 settings.", holds=False)
    monkeypatch.setattr(landing, "FINDINGS", (lambda evidence: false,))
    with pytest.raises(landing.FindingError, match="no longer support .*Nothing is found"):
        landing.list_findings(evidence)


def test_a_finding_that_the_runs_contradict_does_not_hold(evidence):
    """Taking the common answer out of the head is made to cost ten points of accuracy."""
    records = []
    for run in evidence.records:
        if run.settings.test_head == "centred":
            measures = run.measures.copy()
            measures.loc[measures.measure == "final_accuracy", "mean"] -= 0.1
            run = replace(run, measures=measures)
        records.append(run)
    assert landing.find_agreement(evidence).holds
    assert not landing.find_agreement(landing.Evidence(records, evidence.rows)).holds
