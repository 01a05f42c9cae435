"""Figures of the ledger: all verdicts at a glance, and effects with their intervals."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.claims.paper import CLAIMS, Claim
from metanb.claims.verdicts import Row, Verdict
from metanb.figures.style import STYLE, Figure, finish_figure
from metanb.labels import name_of

_CANNOT_TELL = ("cannot tell", '<path class="line" d="M-3 -3A3 3 0 1 1 0 1.2V2.6M0 5V6"/>')
_NOT_TESTABLE = ("not testable", '<circle r="1.8"/>')
_HALF = '<circle class="line" r="5.2"/><path d="M0 -6A6 6 0 0 0 0 6Z"/>'
# By verdict: its name in short, and its mark in a square of 16 about the middle. Shapes differ, not
# only colours.
MARKS = {
    Verdict.REPRODUCED: ("reproduced", '<circle r="6"/>'),
    Verdict.TREND_ONLY: ("trend only", _HALF),
    Verdict.WITHIN_RUNS: ("within runs only", _HALF),
    Verdict.BOTH_ORTHOGONAL: ("both orthogonal", _HALF),
    Verdict.NOT_SEEN: ("not reproduced", '<circle class="line" r="5.2"/>'),
    Verdict.CONTRARY: ("reversed", '<path class="line" d="M-5 -5L5 5M-5 5L5 -5"/>'),
    Verdict.UNCLEAR: _CANNOT_TELL,
    Verdict.POWERLESS: _CANNOT_TELL,
    Verdict.NO_CASE: _NOT_TESTABLE,
    Verdict.TOO_COARSE: _NOT_TESTABLE,
    Verdict.TOO_SHORT: _NOT_TESTABLE,
    Verdict.NO_BASELINE: _NOT_TESTABLE,
}
_SHORT_NAMES = {"first-order MAML": "1st"}  # in the heads of columns


class _Column(NamedTuple):
    """A column of the overview."""

    dataset: str
    setting: str
    scale: str
    algorithm: str


def overview(rows: Sequence[Row], pages: Mapping[str, str], ledger: str) -> str:
    """The verdicts on the paper's own form of each claim, as an HTML table.

    A row is a claim, a column a setting and algorithm: MAML or first-order MAML. Finetuning's
    verdicts stand in the column of the algorithm that it is compared with. A mark leads to its row
    of the ledger, and its title gives form, effect and runs. Where a claim has several rows in one
    place, as the regulariser has at several strengths, each has its mark.

    Args:
        rows: the ledger.
        pages: by claim, the address of the page that tests it.
        ledger: the address of the ledger's page.
    """
    shown = [row for row in rows if row.verdict in MARKS and row.as_in_paper]

    # where each row's mark stands
    places: dict[tuple[str, _Column], list[Row]] = {}
    for row in shown:
        places.setdefault((row.claim, _find_column(row)), []).append(row)

    # columns of one setting stand side by side
    columns = list(dict.fromkeys(column for _, column in places))
    settings = list(dict.fromkeys(column[:3] for column in columns))
    columns.sort(key=lambda column: settings.index(column[:3]))

    # the table
    body = ""
    for claim in CLAIMS:
        cells = ""
        for column in columns:
            marks = "".join(_draw_mark(row, ledger) for row in places.get((claim.name, column), []))
            cells += f'<td class="{column.scale}">{marks}</td>'
        body += f"<tr>{_head_of_row(claim, pages[claim.name])}{cells}</tr>"
    table = f"<table><thead>{_heads_of_columns(columns)}</thead><tbody>{body}</tbody></table>"
    return (
        '<div class="metanb-overview" tabindex="0" role="region" '
        f'aria-label="Verdicts at a glance">{table}</div>'
        f'<p class="metanb-legend">{_draw_legend(shown)} '
        '<span class="metanb-hint">Scroll sideways for more settings.</span></p>'
    )


def _find_column(row: Row) -> _Column:
    """A row's column: that of its algorithm, or of the one that finetuning is compared with."""
    algorithm = row.variant.partition("beside ")[2] or name_of(row.algorithm)
    return _Column(row.dataset, row.setting, row.scale, algorithm)


def _heads_of_columns(columns: Sequence[_Column]) -> str:
    """Two rows of heads: settings over algorithms."""
    settings = ""
    for (dataset, setting, scale), count in Counter(column[:3] for column in columns).items():
        lines = setting.replace(" ", "<br>", 1).replace(", ", "<br>")
        settings += (
            f'<th colspan="{count}" scope="colgroup" class="{scale}">'
            f"{name_of(dataset)}<br>{lines}<br>{scale}</th>"
        )
    algorithms = ""
    for column in columns:
        short_name = _SHORT_NAMES.get(column.algorithm, column.algorithm)
        algorithms += (
            f'<th scope="col" class="{column.scale}">'
            f'<abbr title="{column.algorithm}">{short_name}</abbr></th>'
        )
    return f'<tr><td rowspan="2"></td>{settings}</tr><tr>{algorithms}</tr>'


def _head_of_row(claim: Claim, page: str) -> str:
    text = escape(f"{claim.text[0].upper()}{claim.text[1:]}")
    return f'<th scope="row"><a href="{page}">{claim.name}</a> {text}</th>'


def _draw_legend(rows: Iterable[Row]) -> str:
    """The marks of these rows and their names, in the order of MARKS."""
    drawn = {MARKS[row.verdict] for row in rows}
    return " ".join(
        f"<span>{_draw_symbol(name, shape)} {name}</span>"
        for name, shape in dict.fromkeys(MARKS.values())
        if (name, shape) in drawn
    )


def _draw_mark(row: Row, ledger: str) -> str:
    """A row's mark, which leads to the ledger."""
    name, shape = MARKS[row.verdict]
    title = escape(f"{row.name}, {name}: {row.change}, {row.runs} runs")
    return (
        f'<a href="{ledger}#{row.anchor}" title="{title}" aria-label="{title}">'
        f"{_draw_symbol(name, shape)}</a>"
    )


def _draw_symbol(name: str, shape: str) -> str:
    return (
        f'<svg class="metanb-mark {name.replace(" ", "-")}" viewBox="-8 -8 16 16" '
        f'width="16" height="16" aria-hidden="true">{shape}</svg>'
    )


def forest(rows: Sequence[Row], name: str, caption: str, xlabel: str, paper: float) -> Figure:
    """Effects of several cells with their 95 % intervals, one below the other.

    The dashed line is no effect, the dotted one the paper's. A dot is filled where the interval
    does not hold 0, and open where it does.
    """
    data = pd.DataFrame(
        {
            "cell": f"{name_of(row.algorithm)}, {row.setting}: {row.variant}",
            "effect": row.effect,
            "low": row.low,
            "high": row.high,
            "runs": row.runs,
            "verdict": row.verdict.value,
        }
        for row in rows
    )
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, 0.34 * len(data) + 0.9), layout="constrained")
        axis = canvas.subplots()
        finite = data[np.isfinite(data[["effect", "low", "high"]]).all(axis=1)]

        # the axis ends where one wide interval does not squeeze the others
        widths = np.maximum(finite.high.abs(), finite.low.abs())
        limit = np.nanmax([2.5 * widths.median(), 2 * abs(paper)])
        for place, effect in finite.iterrows():
            _draw_effect(axis, place, effect, limit)
        axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
        axis.axvline(paper, color="0.5", linestyle=":", linewidth=1.5)
        axis.set(
            yticks=data.index,
            yticklabels=data.cell + " (n = " + data.runs.astype(str) + ")",
            xlabel=xlabel,
        )
        axis.set_xlim(max(-limit, axis.get_xlim()[0]), min(limit, axis.get_xlim()[1]))
        axis.invert_yaxis()

        effects = "; ".join(
            f"{row.cell}: {row.effect:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
            for _, row in finite.iterrows()
        )
        caption += (
            " Dots: means over n pairs of runs; bars: 95 % intervals (Student's t); filled: the "
            "interval does not hold 0; an arrow: the interval goes on. Dashed: no effect; dotted: "
            f"the paper's, {paper:+.2f}."
        )
        return finish_figure(canvas, name, caption, f"Effects with intervals. {effects}.", data)


def _draw_effect(axis: Any, place: int, effect: Any, limit: float) -> None:
    """A dot, its interval, and an arrow where the interval goes on beyond the limit."""
    colour = sns.color_palette("colorblind")[0]
    for end, arrow in ((effect.low, "<"), (effect.high, ">")):
        if abs(end) > limit:
            axis.plot(math.copysign(limit, end), place, arrow, color=colour, clip_on=False)
    fill = "none" if effect.low <= 0 <= effect.high else "full"
    axis.plot([effect.low, effect.high], [place, place], color=colour, linewidth=1.5)
    axis.plot(effect.effect, place, "o", color=colour, fillstyle=fill)
