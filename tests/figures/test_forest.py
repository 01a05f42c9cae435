"""Forest plots: every row that is judged is drawn, at its numbers, with its words.

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
from metanb.figures import forest, ledger
from tests.support.records import record


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
    figure = forest.draw_effects(rows + lonely, "c8", "See the gain.", "points", paper=1.33)
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
        svg = forest.draw_effects(rows, "c8", "c", "points", paper=1.33).svg
        return [
            float(tick.replace("\N{MINUS SIGN}", "-"))
            for tick in re.findall(r">([-\N{MINUS SIGN}]?\d+\.?\d*)<", svg)
        ]

    wide = ticks([*rows, replace(row, effect=0.1, low=-90.0, high=90.0)])
    assert max(map(abs, wide)) < 4 and len(wide) >= 3  # the axis is the others'
    assert (
        forest.draw_effects(
            [replace(row, effect=np.nan)], "c8", "c", "points", paper=1.33
        ).data.runs.size
        == 1
    )


@pytest.mark.parametrize("claim", ["C1", "C2", "C3"])
def test_claim_forest_draws_each_judged_row_as_a_factor(rows, claim):
    figure = forest.draw_claim(claim, rows)
    forms = ("", ledger.CONTROLS.get(claim))
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
    assert ("open: " in figure.caption) == (claim in ledger.CONTROLS)


def test_dots_stand_at_their_factors(rows):
    """The pixels of the ticks give the scale of the axis, and by it those of the dots."""
    figure = forest.draw_claim("C1", rows)
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
    figure = forest.draw_claim("C8", rows)
    assert "dotted: the paper's gain, +1.33" in figure.caption
    assert "pairs of runs" in figure.caption and "points" in alt_text(figure)
    settings = set(figure.data.setting)
    assert settings == {f"Omniglot 5-way 1-shot, adapted, γ = {gamma}" for gamma in (0.1, 0.3)}


def test_rows_that_cannot_be_tested_are_counted_and_not_drawn(rows):
    assert forest.draw_claim("C4", rows) is None  # accuracy falls nowhere
    (row,) = [
        row
        for row in rows
        if (row.claim, row.scale, row.algorithm, row.variant) == ("C4", "quick", "maml", "")
        and row.dataset == "omniglot"
        and "zero" not in row.setting
    ]
    untestable = sum(row.claim == "C4" and row.as_in_paper for row in rows)
    rows = [*rows, replace(row, verdict=Verdict.REPRODUCED)]
    figure = forest.draw_claim("C4", rows)
    assert len(figure.data) == 1
    assert f"Not drawn: {untestable} rows not testable." in figure.caption
    few = forest.draw_claim("C4", [*rows, replace(row, verdict=Verdict.TOO_FEW)])
    assert f"Not drawn: {untestable} rows not testable, 1 row without a verdict." in few.caption


def test_an_interval_that_goes_on_ends_in_an_arrow(rows):
    c2 = [row for row in rows if row.claim == "C2"]
    assert "an arrow" not in forest.draw_claim("C2", c2).caption
    wide = forest.draw_claim("C2", [replace(c2[0], low=-90.0, high=90.0), *c2[1:]])
    assert "an arrow: the interval goes on" in wide.caption
    (axis,) = wide.canvas.axes
    assert max(map(abs, axis.get_xlim())) < 5  # the axis is the others'


def test_a_label_is_short_enough_for_a_phone(rows):
    long = [replace(row, setting=f"{row.setting}, with quite a few words about it") for row in rows]
    figure = forest.draw_claim("C3", long)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    assert max(map(len, texts)) <= 50
    assert float(re.search('width="(\\d+)"', figure.svg)[1]) < 480  # pixels


def test_a_claim_is_drawn_twice_to_the_same_bytes(rows):
    first, second = (forest.draw_claim("C5", rows)._repr_html_() for _ in range(2))
    assert first == second and first.count("<figure") == 1
