"""Figures of the ledger: all verdicts at a glance, and effects with their intervals."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.claims.paper import CLAIMS
from metanb.claims.verdicts import Row, Verdict
from metanb.figures.style import STYLE, Figure, finish_figure
from metanb.labels import NAMES

# By verdict: its name in short, and its mark in a square of 16 about the middle. Shapes differ, not
# only colours.
MARKS = {
    Verdict.REPRODUCED: ("reproduced", '<circle r="6"/>'),
    Verdict.PARTLY: ("partly", '<circle class="line" r="5.2"/><path d="M0 -6A6 6 0 0 0 0 6Z"/>'),
    Verdict.NOT_SEEN: ("not reproduced", '<circle class="line" r="5.2"/>'),
    Verdict.CONTRARY: ("the opposite", '<path class="line" d="M-5 -5L5 5M-5 5L5 -5"/>'),
    **dict.fromkeys(
        (Verdict.UNCLEAR, Verdict.POWERLESS),
        ("cannot tell", '<path class="line" d="M-3 -3A3 3 0 1 1 0 1.2V2.6M0 5V6"/>'),
    ),
    **dict.fromkeys(
        (Verdict.NO_CASE, Verdict.TOO_COARSE, Verdict.TOO_SHORT, Verdict.NO_BASELINE),
        ("not testable", '<circle r="1.8"/>'),
    ),
}
ALGORITHMS = {"MAML": "MAML", "first-order MAML": "1st"}


def overview(rows: Sequence[Row], pages: Mapping[str, str], ledger: str) -> str:
    """The verdicts on the paper's own form of each claim, as an HTML table: a row a claim, two columns a setting.

    The columns are MAML's and first-order MAML's; finetuning's verdicts stand with the algorithm
    that it is set beside. A mark leads to its row of the ledger, and its title gives form, effect
    and runs. Where a claim has several rows in one place, as the regulariser has at several
    strengths, each has its mark.

    Args:
        rows: the ledger.
        pages: by claim, the address of the page that tests it.
        ledger: the address of the ledger's page.
    """
    marks: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    for row in rows:
        if row.verdict in MARKS and row.as_in_paper:
            marks.setdefault((row.claim, _place(row)), []).append(row)
    settings = list(dict.fromkeys(place[:3] for _, place in marks))
    columns = sorted(
        dict.fromkeys(place for _, place in marks), key=lambda place: settings.index(place[:3])
    )
    heads = ""
    for (dataset, setting, scale), n in Counter(place[:3] for place in columns).items():
        words = f"{NAMES[dataset]}<br>{setting.replace(' ', '<br>', 1).replace(', ', '<br>')}<br>{scale}"
        heads += f'<th colspan="{n}" scope="colgroup" class="{scale}">{words}</th>'
    names = "".join(
        f'<th scope="col" class="{scale}"><abbr title="{algorithm}">{ALGORITHMS.get(algorithm, algorithm)}</abbr></th>'
        for *_, scale, algorithm in columns
    )
    body = ""
    for claim in CLAIMS:
        cells = ""
        for place in columns:
            there = "".join(_mark(row, ledger) for row in marks.get((claim.name, place), []))
            cells += f'<td class="{place[2]}">{there}</td>'
        text = escape(f"{claim.text[0].upper()}{claim.text[1:]}")
        body += f'<tr><th scope="row"><a href="{pages[claim.name]}">{claim.name}</a> {text}</th>{cells}</tr>'
    seen = {MARKS[row.verdict] for there in marks.values() for row in there}
    legend = " ".join(
        f"<span>{_drawing(name, shape)} {name}</span>"
        for name, shape in dict.fromkeys(MARKS.values())
        if (name, shape) in seen
    )
    head = f'<thead><tr><td rowspan="2"></td>{heads}</tr><tr>{names}</tr></thead>'
    return (
        f'<div class="metanb-overview" tabindex="0" role="region" aria-label="Verdicts at a glance"><table>{head}'
        f'<tbody>{body}</tbody></table></div><p class="metanb-legend">{legend} '
        '<span class="metanb-hint">Scroll sideways for more settings.</span></p>'
    )


def _place(row: Row) -> tuple[str, str, str, str]:
    """A row's columns: data set, setting, scale, algorithm."""
    algorithm = row.variant.partition("beside ")[2] or NAMES[row.algorithm]
    return row.dataset, row.setting, row.scale, algorithm


def _mark(row: Row, ledger: str) -> str:
    said = escape(f"{row.name}, {MARKS[row.verdict][0]}: {row.change}, {row.runs} runs")
    return f'<a href="{ledger}#{row.anchor}" title="{said}" aria-label="{said}">{_drawing(*MARKS[row.verdict])}</a>'


def _drawing(name: str, shape: str) -> str:
    kind = name.replace(" ", "-")
    return f'<svg class="metanb-mark {kind}" viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true">{shape}</svg>'


def forest(rows: Sequence[Row], name: str, caption: str, xlabel: str, paper: float) -> Figure:
    """Effects of several cells with their 95 % intervals, one below the other.

    The dashed line is no effect, the dotted one the paper's. A filled dot is an interval beside 0,
    an open one an interval across it.
    """
    data = pd.DataFrame(
        {
            "cell": f"{NAMES[row.algorithm]}, {row.setting}: {row.variant}",
            "effect": row.effect,
            "low": row.low,
            "high": row.high,
            "runs": row.runs,
            "verdict": row.verdict,
        }
        for row in rows
    )
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, 0.34 * len(data) + 0.9), layout="constrained")
        axis = canvas.subplots()
        colour = sns.color_palette("colorblind")[0]
        finite = data[np.isfinite(data[["effect", "low", "high"]]).all(axis=1)]
        widths = np.maximum(finite.high.abs(), finite.low.abs())
        # one wide interval does not squeeze the others
        limit = np.nanmax([2.5 * widths.median(), 2 * abs(paper)])
        for place, row in finite.iterrows():
            for end, arrow in ((row.low, "<"), (row.high, ">")):
                if abs(end) > limit:
                    axis.plot(math.copysign(limit, end), place, arrow, color=colour, clip_on=False)
            apart = not row.low <= 0 <= row.high
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.5)
            axis.plot(row.effect, place, "o", color=colour, fillstyle="full" if apart else "none")
        axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
        axis.axvline(paper, color="0.5", linestyle=":", linewidth=1.5)
        axis.set(
            yticks=data.index,
            yticklabels=data.cell + " (n = " + data.runs.astype(str) + ")",
            xlabel=xlabel,
        )
        axis.set_xlim(max(-limit, axis.get_xlim()[0]), min(limit, axis.get_xlim()[1]))
        axis.invert_yaxis()
        said = "; ".join(
            f"{row.cell}: {row.effect:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
            for _, row in finite.iterrows()
        )
        caption = (
            f"{caption} Dots: means over n pairs of runs; bars: 95 % intervals (Student's t); filled: the interval "
            f"does not hold 0; an arrow: the interval goes on. Dashed: no effect; dotted: the paper's, {paper:+.2f}."
        )
        return finish_figure(canvas, name, caption, f"Effects with intervals. {said}.", data)
