"""Figures of the ledger: every row that is judged is drawn, at its numbers, with its words.

Evidence: synthetic records whose effects are known, and the ledger's rows themselves.
"""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from metanb.figures import ledger as summary
from metanb.settings import preset
from tests.support.records import TIME, cell, record

PAGES = {f"C{number}": f"page.html#c{number}" for number in range(1, 9)}
LARGE = {"filters": 64, "iterations": 60_000, "epoch_iterations": 500}  # stopped at 6,000


def alt_text(figure):
    return re.search('aria-label="([^"]*)"', figure.svg)[1]


def test_forest_shows_every_row_with_its_interval():
    base = [record(s, {"query_accuracy": np.full(12, 0.5)}, wobble=0.0) for s in range(3)]
    gained = [
        record(
            s,
            {"query_accuracy": np.full(12, 0.51 + 0.001 * s)},
            wobble=0.0,
            regulariser="outer",
            gamma=2.0,
        )
        for s in range(3)
    ]
    rows = [row for row in rules.judge(base + gained) if row.claim == "C8"]
    lonely = [row for row in rules.judge(gained) if row.claim == "C8"]
    figure = summary.forest(rows + lonely, "c8", "See the gain.", "points", paper=1.33)
    assert "MAML, 5-way 1-shot: outer, γ = 2: +1.10 (+0.85 to +1.35)" in alt_text(figure)
    assert "dotted: the paper's, +1.33" in figure.caption
    assert list(figure.data.runs) == [3, 0]  # a row without pairs keeps its place, undrawn


def test_one_wide_interval_does_not_squeeze_the_others():
    base = [record(s, {"query_accuracy": np.full(12, 0.5)}, wobble=0.0) for s in range(3)]
    gained = [
        record(s, {"query_accuracy": np.full(12, 0.51)}, wobble=0.0, regulariser="outer", gamma=2.0)
        for s in range(3)
    ]
    (row,) = (row for row in rules.judge(base + gained) if row.claim == "C8")
    rows = [replace(row, effect=0.1, low=-1.0, high=1.0)] * 3

    def ticks(rows):
        svg = summary.forest(rows, "c8", "c", "points", paper=1.33).svg
        return [
            float(tick.replace("\N{MINUS SIGN}", "-"))
            for tick in re.findall(r">([-\N{MINUS SIGN}]?\d+\.?\d*)<", svg)
        ]

    wide = ticks([*rows, replace(row, effect=0.1, low=-90.0, high=90.0)])
    assert max(map(abs, wide)) < 4 and len(wide) >= 3  # the axis is the others'
    assert (
        summary.forest(
            [replace(row, effect=np.nan)], "c8", "c", "points", paper=1.33
        ).data.runs.size
        == 1
    )


@pytest.fixture(scope="module")
def rows():
    """The ledger of small and large runs, where the Hessian norm falls by its scale alone."""
    flatter = {"hessian_norm": np.exp(-TIME)}
    return rules.judge(
        cell({})
        + cell(flatter, algorithm="fomaml")
        + [
            replace(run, settings=preset("quick", "glyphs", seed=run.settings.seed))
            for run in cell({}, wobble=0.02)
        ]
        + cell({}, head_init="zero")
        + cell(flatter, **LARGE)
        + cell(
            {"hessian_norm": np.exp(-TIME), "adaptive_sharpness": np.exp(-2 * TIME)},
            algorithm="fomaml",
            **LARGE,
        )
        + [
            run
            for gamma in (0.1, 0.3)
            for run in cell(
                {"query_accuracy": 0.5 + 0.1 * TIME}, regulariser="adapted", gamma=gamma, **LARGE
            )
        ]
    )


@pytest.fixture(scope="module")
def html(rows):
    return summary.overview(rows, PAGES, "ledger.html")


def test_overview_has_a_mark_for_each_verdict_on_the_papers_form(rows, html):
    shown = [row for row in rows if row.as_in_paper and row.verdict in summary.MARKS]
    marks = re.findall(r'<a href="ledger.html#([\w-]+)" title="([^"]*)"', html)
    assert sorted(anchor for anchor, _ in marks) == sorted(row.anchor for row in shown)
    titles = dict(marks)
    for row in shown:
        name, _ = summary.mark_of(row, rows)
        expected = f"{row.name}, {name}: {row.change}, 3 runs"
        assert titles[row.anchor].startswith(expected), row.anchor
    assert len(shown) >= 12
    assert sum("γ = 0.1" in title or "γ = 0.3" in title for _, title in marks) == 2  # side by side
    assert all(page in html for page in PAGES.values())
    legend = html.split("metanb-legend")[1]
    assert all(summary.mark_of(row, rows)[0] in legend for row in shown)


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
    ordered = summary.sort_rows(replace(row, iterations=n) for n in (5_000, 60_000, 33_500))
    assert [summary.describe_length(row) for row in ordered] == [
        "full length",
        "56% of the length",
        "1/12 length",
    ]


def test_a_claim_that_its_control_does_not_bear_out_has_half_a_mark(rows, html):
    c1 = {
        (row.scale, row.algorithm): row
        for row in rows
        if row.claim == "C1" and row.as_in_paper and row.verdict == Verdict.REPRODUCED
    }
    assert len(c1) == 3
    names = {key: summary.mark_of(row, rows)[0] for key, row in c1.items()}
    assert names == {
        ("quick", "fomaml"): "only without the control",
        ("paper", "maml"): "only without the control",
        ("paper", "fomaml"): "reproduced",
    }
    assert "only without the control" in html.split("metanb-legend")[1]
    for key, row in c1.items():
        title = re.search(f'#{row.anchor}" title="([^"]*)"', html)[1]
        assert ("; scale-free: not reproduced, × " in title) == (key != ("paper", "fomaml"))
    # a control that was not judged takes nothing away
    others = [row for row in rows if row.variant != rules.SCALE_FREE]
    assert summary.mark_of(c1["paper", "maml"], others)[0] == "reproduced"


@pytest.mark.parametrize(
    ("iterations", "words"),
    [
        (60_000, "full length"),
        (5_000, "1/12 length"),
        (30_000, "1/2 length"),
        (7_000, "12% of the length"),
    ],
)
def test_length_of_runs_in_words(rows, iterations, words):
    row = next(row for row in rows if row.full_iterations == 60_000)
    assert summary.describe_length(replace(row, iterations=iterations)) == words


@pytest.mark.parametrize("claim", ["C1", "C2", "C3"])
def test_claim_forest_draws_each_judged_row_as_a_factor(rows, claim):
    figure = summary.claim_forest(claim, rows)
    forms = ("", summary.CONTROLS.get(claim))
    expected = [row for row in rows if row.claim == claim and row.variant in forms]
    drawn = {(row.algorithm, row.form, row.effect) for row in figure.data.itertuples()}
    assert len(figure.data) == len(expected) == len(drawn)
    alt = alt_text(figure)
    for row in expected:
        assert row.change in alt
        (runs,) = figure.data[np.isclose(figure.data.effect, math.exp(row.effect), rtol=1e-9)].runs
        assert runs == row.runs
    assert figure.data.scale.iloc[0] == "Paper settings, 1/10 length"
    assert figure.data.setting.iloc[-1].startswith("Glyphs")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    assert sum("n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}3" in text for text in texts) == 4
    assert {"MAML", "first-order MAML"} <= set(texts)
    assert ("open: " in figure.caption) == (claim in summary.CONTROLS)


def test_dots_stand_at_their_factors(rows):
    """The pixels of the ticks give the scale of the axis, and by it those of the dots."""
    figure = summary.claim_forest("C1", rows)
    (axis,) = figure.canvas.axes
    ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
    assert all(math.isclose(place, math.log(float(label.get_text()))) for place, label in ticks)
    markers = [
        line for line in axis.lines if line.get_marker() in "os" and len(line.get_xdata()) == 1
    ]
    drawn = Counter(round(math.exp(line.get_xdata()[0]), 6) for line in markers)
    assert drawn == Counter(round(effect, 6) for effect in figure.data.effect)
    is_open = {line.get_fillstyle() == "none": 0 for line in markers}
    assert set(is_open) == {True, False}
    # the shaded side is the one that the claim expects: below a factor of 1
    (band,) = axis.patches
    start, end = sorted((band.get_x(), band.get_x() + band.get_width()))
    assert start < -1 and end == 0


def test_the_papers_gain_is_dotted(rows):
    figure = summary.claim_forest("C8", rows)
    assert "dotted: the paper's gain, +1.33" in figure.caption
    assert "pairs of runs" in figure.caption and "points" in alt_text(figure)
    settings = set(figure.data.setting)
    assert settings == {f"Omniglot 5-way 1-shot, adapted, γ = {gamma}" for gamma in (0.1, 0.3)}


def test_rows_that_cannot_be_tested_are_counted_and_not_drawn(rows):
    assert summary.claim_forest("C4", rows) is None  # accuracy falls nowhere
    (row,) = [
        row
        for row in rows
        if (row.claim, row.scale, row.algorithm, row.variant) == ("C4", "quick", "maml", "")
        and row.dataset == "omniglot"
        and "zero" not in row.setting
    ]
    untestable = sum(row.claim == "C4" and row.as_in_paper for row in rows)
    figure = summary.claim_forest("C4", [*rows, replace(row, verdict=Verdict.REPRODUCED)])
    assert len(figure.data) == 1
    assert f"Not drawn: {untestable} rows where the claim cannot be tested." in figure.caption


def test_an_interval_that_goes_on_ends_in_an_arrow(rows):
    c2 = [row for row in rows if row.claim == "C2"]
    assert "an arrow" not in summary.claim_forest("C2", c2).caption
    wide = summary.claim_forest("C2", [replace(c2[0], low=-90.0, high=90.0), *c2[1:]])
    assert "an arrow: the interval goes on" in wide.caption
    (axis,) = wide.canvas.axes
    assert max(map(abs, axis.get_xlim())) < 5  # the axis is the others'


def test_a_label_is_short_enough_for_a_phone(rows):
    long = [replace(row, setting=f"{row.setting}, with quite a few words about it") for row in rows]
    figure = summary.claim_forest("C3", long)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    assert max(map(len, texts)) <= 50
    assert float(re.search('width="(\\d+)"', figure.svg)[1]) < 480  # pixels


def test_a_claim_is_drawn_twice_to_the_same_bytes(rows):
    first, second = (summary.claim_forest("C5", rows)._repr_html_() for _ in range(2))
    assert first == second and first.count("<figure") == 1
