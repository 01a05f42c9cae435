"""The ledger at a glance: a mark for each verdict, in the paper's order, and words for lengths.

Evidence: synthetic records whose verdicts are known.
"""

import re
from dataclasses import replace

import pytest

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from metanb.figures import ledger

PAGES = {f"C{number}": f"page.html#c{number}" for number in range(1, 9)}


@pytest.fixture(scope="module")
def html(rows):
    return ledger.overview(rows, PAGES, "ledger.html")


def test_overview_has_a_mark_for_each_verdict_on_the_papers_form(rows, html):
    shown = [row for row in rows if row.as_in_paper and row.verdict in ledger.MARKS]
    marks = re.findall(r'<a href="ledger.html#([\w-]+)" title="([^"]*)"', html)
    assert sorted(anchor for anchor, _ in marks) == sorted(row.anchor for row in shown)
    titles = dict(marks)
    for row in shown:
        name, _ = ledger.mark_of(row, rows)
        expected = f"{row.name}, {name}: {row.change}, 3 runs"
        assert titles[row.anchor].startswith(expected), row.anchor
    assert len(shown) >= 12
    assert sum("γ = 0.1" in title or "γ = 0.3" in title for _, title in marks) == 2  # side by side
    assert all(page in html for page in PAGES.values())
    legend = html.split("metanb-legend")[1]
    assert all(ledger.mark_of(row, rows)[0] in legend for row in shown)


def test_overview_begins_with_the_papers_settings_and_ends_with_glyphs(html):
    heads = re.findall(r'<th colspan="10"[^>]*>([^<]*)<', html)
    assert heads == [
        "Paper settings, 1/10 length",
        "Quick settings",
        "Quick settings on data that the paper does not use",
    ]
    text = re.sub("</?span>", "", html)
    settings = re.findall(r'<th rowspan="(\d)"[^>]*>([^<]*)<', text)
    omniglot = "Omniglot 5-way 1-shot"
    assert settings == [
        ("2", omniglot),
        ("2", omniglot),
        ("1", f"{omniglot}, zero first head"),
        ("1", "Glyphs 5-way 1-shot"),
    ]
    # each line has a cell per claim, and MAML stands before first-order MAML
    lines = re.findall(r"<tr>(?:<th rowspan[^>]*>[^<]*</th>)?<th scope=\"row\">.*?</tr>", text)
    assert [line.count("<td>") for line in lines] == [8] * 6
    algorithms = re.findall(r'abbr title="([^"]*)"', html)
    assert algorithms == ["MAML", "first-order MAML"] * 2 + ["MAML"] * 2


def test_the_longest_runs_of_a_scale_come_first(rows):
    row = next(row for row in rows if row.scale == "paper")
    ordered = ledger.sort_rows(replace(row, iterations=n) for n in (5_000, 60_000, 33_500))
    assert [ledger.describe_length(row) for row in ordered] == [
        "full length",
        "56 % of the length",
        "1/12 length",
    ]


def test_a_claim_that_its_control_does_not_bear_out_has_half_a_mark(rows, html):
    c1 = {
        (row.scale, row.algorithm): row
        for row in rows
        if row.claim == "C1" and row.as_in_paper and row.verdict == Verdict.REPRODUCED
    }
    assert len(c1) == 3
    names = {key: ledger.mark_of(row, rows)[0] for key, row in c1.items()}
    assert names == {
        ("quick", "fomaml"): "only without allowing for the size of the weights",
        ("paper", "maml"): "only without allowing for the size of the weights",
        ("paper", "fomaml"): "reproduced",
    }
    assert "only without allowing for the size of the weights" in html.split("metanb-legend")[1]
    for key, row in c1.items():
        title = re.search(f'#{row.anchor}" title="([^"]*)"', html)[1]
        assert ("; scale-free: not reproduced, × " in title) == (key != ("paper", "fomaml"))
    # a control that was not judged takes nothing away
    others = [row for row in rows if row.variant != rules.SCALE_FREE]
    assert ledger.mark_of(c1["paper", "maml"], others)[0] == "reproduced"


@pytest.mark.parametrize(
    ("iterations", "words"),
    [
        (60_000, "full length"),
        (5_000, "1/12 length"),
        (30_000, "1/2 length"),
        (7_000, "12 % of the length"),
    ],
)
def test_length_of_runs_in_words(rows, iterations, words):
    row = next(row for row in rows if row.full_iterations == 60_000)
    assert ledger.describe_length(replace(row, iterations=iterations)) == words
