"""Figures of the ledger: all verdicts at a glance, and effects with their intervals."""

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from metanb.claims.cells import SCALES
from metanb.claims.paper import BY_NAME, CLAIMS, PAPER_GAIN
from metanb.claims.rules import ORTHOGONAL, RELATIVE, SCALE_FREE
from metanb.claims.verdicts import FULL_LENGTH, Row, Unit, Verdict
from metanb.figures.style import STYLE, Figure, finish_figure
from metanb.labels import ALGORITHMS, name_of

_CANNOT_TELL = ("cannot tell", '<path class="line" d="M-3 -3A3 3 0 1 1 0 1.2V2.6M0 5V6"/>')
_NOT_TESTABLE = ("not testable", '<circle r="1.8"/>')
_HALF = '<circle class="line" r="5.2"/><path d="M0 -6A6 6 0 0 0 0 6Z"/>'
# By verdict: its name in short, and its mark in a square of 16 about the middle. Shapes differ, not
# only colours.
MARKS = {
    Verdict.REPRODUCED: ("reproduced", '<circle r="6"/>'),
    Verdict.TREND_ONLY: ("trend only", _HALF),
    Verdict.WITHIN_RUNS: ("within runs only", _HALF),
    Verdict.NOT_SET_APART: ("not set apart", _HALF),
    Verdict.NOT_SEEN: ("not reproduced", '<circle class="line" r="5.2"/>'),
    Verdict.CONTRARY: ("reversed", '<path class="line" d="M-5 -5L5 5M-5 5L5 -5"/>'),
    Verdict.UNCLEAR: _CANNOT_TELL,
    Verdict.POWERLESS: _CANNOT_TELL,
    Verdict.NO_CASE: _NOT_TESTABLE,
    Verdict.TOO_COARSE: _NOT_TESTABLE,
    Verdict.TOO_SHORT: _NOT_TESTABLE,
    Verdict.NO_BASELINE: _NOT_TESTABLE,
}
# the mark of a claim that is reproduced in the paper's form, and not in the form of its control
WITHOUT_CONTROL = (
    "only without the control",
    '<circle class="line" r="5.2"/><path d="M-6 0A6 6 0 0 0 6 0Z"/>',
)
# by claim, the form that considers the weights' scale
CONTROLS = {"C1": SCALE_FREE, "C3": RELATIVE, "C4": SCALE_FREE}
_SHORT_NAMES = {"first-order MAML": "1st order"}  # in the heads of rows
# by claim, what it says in the head of a column
_SHORT_CLAIMS = {
    "C1": "flatter",
    "C2": "lower loss",
    "C3": "further",
    "C4": "flatter while worse",
    "C5": "with trajectory coherence",
    "C6": "with gradient coherence",
    "C7": "finetuning orthogonal",
    "C8": "regulariser helps",
}


def describe_length(row: Row) -> str:
    """How much of their full length the runs of a row have made, in words: "1/12 length"."""
    share = _share_made(row)
    if share == 1:
        return FULL_LENGTH
    return f"{share} length" if share.numerator == 1 else f"{float(share):.0%} of the length"


def _share_made(row: Row) -> Fraction:
    return Fraction(row.iterations, row.full_iterations)


def describe_scale(rows: Sequence[Row]) -> str:
    """The scale of rows that share it, and how much of their length their runs have made.

    Complete runs of the small scales need no words.
    """
    scale = f"{rows[0].scale.capitalize()} settings"
    lengths = list(dict.fromkeys(describe_length(row) for row in rows))
    if lengths == [FULL_LENGTH] and rows[0].scale != "paper":
        return scale
    return f"{scale}, {' or '.join(lengths)}"


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """The paper's own settings first, the longest of them at the top, and Glyphs last."""

    def order(row: Row) -> tuple[bool, int, Fraction]:
        scale = -SCALES.index(row.scale) if row.scale in SCALES[:3] else 1
        return row.dataset == "glyphs", scale, -_share_made(row)

    return sorted(rows, key=order)


def find_control(row: Row, rows: Iterable[Row]) -> Row | None:
    """The row of the same runs in the form that considers the weights' scale, if it is judged."""
    form = CONTROLS.get(row.claim)
    for control in rows:
        is_same = (control.claim, control.ids) == (row.claim, row.ids)
        if is_same and control.variant == form and control.verdict.is_judged:
            return control
    return None


def mark_of(row: Row, rows: Iterable[Row]) -> tuple[str, str]:
    """A row's mark in the overview: its name and shape, see MARKS and WITHOUT_CONTROL."""
    control = find_control(row, rows) if row.verdict == Verdict.REPRODUCED else None
    if control is not None and control.verdict != Verdict.REPRODUCED:
        return WITHOUT_CONTROL
    return MARKS[row.verdict]


def overview(rows: Sequence[Row], pages: Mapping[str, str], ledger: str) -> str:
    """The verdicts on the paper's own form of each claim, as an HTML table.

    A column is a claim, a row a setting and algorithm: MAML or first-order MAML. Finetuning's
    verdicts stand in the row of the algorithm that it is compared with. A mark leads to its row
    of the ledger, and its title gives form, effect and runs. Where a claim has several rows in one
    place, as the regulariser has at several strengths, each has its mark.

    Args:
        rows: the ledger.
        pages: by claim, the address of the page that tests it.
        ledger: the address of the ledger's page.
    """
    shown = sort_rows(row for row in rows if row.verdict in MARKS and row.as_in_paper)
    marks = {id(row): mark_of(row, rows) for row in shown}
    links = {}
    for row in shown:
        title = _describe_mark(row, rows, marks[id(row)][0])
        links[id(row)] = _draw_mark(row, title, marks[id(row)], ledger)

    # one body per scale, with Glyphs apart
    scales: dict[tuple[bool, str], list[Row]] = {}
    for row in shown:
        scales.setdefault((row.dataset == "glyphs", row.scale), []).append(row)
    bodies = ""
    for (is_glyphs, _), of_scale in scales.items():
        head = describe_scale(of_scale) + (
            " on data that the paper does not use" if is_glyphs else ""
        )
        bodies += _draw_body(head, of_scale, links)

    table = f"<table><thead>{_heads_of_columns(pages)}</thead>{bodies}</table>"
    return (
        '<div class="metanb-overview" tabindex="0" role="region" '
        f'aria-label="Verdicts at a glance">{table}</div>'
        f'<p class="metanb-legend">{_draw_legend(marks.values())}</p>'
    )


def _draw_body(head: str, rows: Sequence[Row], links: Mapping[int, str]) -> str:
    """The overview's rows of one scale, below their head.

    Args:
        head: of the rows.
        rows: what is shown.
        links: by the id of each of these objects, its mark.
    """
    settings: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        algorithms = settings.setdefault(_describe_setting(row), {})
        algorithms.setdefault(_find_algorithm(row), []).append(row)

    html = f'<tr><th colspan="{2 + len(CLAIMS)}" scope="rowgroup">{head}</th></tr>'
    for setting, algorithms in settings.items():
        # ways and shots stay in one line
        name = re.sub(r"\d+-way \d+-shot", r"<span>\g<0></span>", escape(setting))
        span = f'<th rowspan="{len(algorithms)}" scope="rowgroup">{name}</th>'
        for algorithm in sorted(algorithms, key=_order_of_algorithm):
            short_name = _SHORT_NAMES.get(algorithm, algorithm)
            html += f'<tr>{span}<th scope="row"><abbr title="{algorithm}">{short_name}</abbr></th>'
            span = ""
            for claim in CLAIMS:
                cell = [links[id(row)] for row in algorithms[algorithm] if row.claim == claim.name]
                html += f"<td>{''.join(cell)}</td>"
            html += "</tr>"
    return f"<tbody>{html}</tbody>"


def _find_algorithm(row: Row) -> str:
    """A row's algorithm, or the one that finetuning is compared with."""
    return row.variant.partition("beside ")[2] or name_of(row.algorithm)


def _order_of_algorithm(label: str) -> int:
    labels = [algorithm.label for algorithm in ALGORITHMS.values()]
    return labels.index(label) if label in labels else len(labels)


def _describe_setting(row: Row) -> str:
    """Data set and setting; how it differs from its scale's, where one setting tells."""
    setting = f"{name_of(row.dataset)} {row.setting}"
    return f"{setting}, {row.apart}" if row.apart and "," not in row.apart else setting


def _heads_of_columns(pages: Mapping[str, str]) -> str:
    """The head of each claim's column: its name, and in short what it says."""
    heads = ""
    for claim in CLAIMS:
        title = escape(f"{claim.text[0].upper()}{claim.text[1:]}")
        heads += (
            f'<th scope="col"><a href="{pages[claim.name]}" title="{title}">{claim.name}</a> '
            f"<span>{_SHORT_CLAIMS[claim.name]}</span></th>"
        )
    return f'<tr><td colspan="2"></td>{heads}</tr>'


def _draw_legend(marks: Iterable[tuple[str, str]]) -> str:
    """These marks and their names, in the order of MARKS; names of one shape stand together."""
    drawn = set(marks)
    names: dict[str, list[str]] = {}
    known = [MARKS[Verdict.REPRODUCED], WITHOUT_CONTROL, *MARKS.values()]
    for name, shape in dict.fromkeys(known):
        if (name, shape) in drawn:
            names.setdefault(shape, []).append(name)
    return " ".join(
        f"<span>{draw_symbol(of_shape[0], shape)} {' or '.join(of_shape)}</span>"
        for shape, of_shape in names.items()
    )


def _describe_mark(row: Row, rows: Iterable[Row], name: str) -> str:
    """The title of a row's mark."""
    title = f"{row.name}, {name}: {row.change}, {row.runs} runs"
    if name == WITHOUT_CONTROL[0]:
        control = find_control(row, rows)
        assert control is not None
        title += f"; {control.variant}: {MARKS[control.verdict][0]}, {control.change}"
    return title


def _draw_mark(row: Row, title: str, mark: tuple[str, str], ledger: str) -> str:
    """A row's mark, which leads to the ledger."""
    text = escape(title)
    return (
        f'<a href="{ledger}#{row.anchor}" title="{text}" aria-label="{text}">'
        f"{draw_symbol(*mark)}</a>"
    )


def draw_symbol(name: str, shape: str) -> str:
    """A mark as an `<svg>` element for a line of text, which names it: see MARKS."""
    return (
        f'<svg class="metanb-mark {name.replace(" ", "-")}" viewBox="-8 -8 16 16" '
        f'width="16" height="16" aria-hidden="true">{shape}</svg>'
    )


class _Look(NamedTuple):
    """How an algorithm is drawn."""

    colour: Any
    marker: str


def _look_of(algorithm: str) -> _Look:
    """Colour and marker of an algorithm; those of one's own share a look."""
    palette = sns.color_palette("colorblind")
    place = list(ALGORITHMS).index(algorithm) if algorithm in ("maml", "fomaml", "finetune") else 3
    return _Look(palette[place], "osD^"[place])


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
        look = _look_of("maml")
        for place, effect in finite.iterrows():
            values = (effect.effect, effect.low, effect.high)
            is_open = effect.low <= 0 <= effect.high
            _draw_effect(axis, place, values, (-limit, limit), look, is_open)
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


def _draw_effect(
    axis: Any,
    place: float,
    values: tuple[float, float, float],
    limits: tuple[float, float],
    look: _Look,
    is_open: bool,
) -> bool:
    """A dot, its interval, and an arrow where the interval goes on beyond the limits.

    Args:
        axis: the axis.
        place: the dot's height.
        values: the effect, and the lower and upper end of its interval.
        limits: where the axis ends.
        look: of the algorithm.
        is_open: whether the dot is open.

    Returns:
        Whether the interval goes on.
    """
    effect, low, high = values
    start, end = limits
    goes_on = low < start or high > end
    for beyond, arrow, x in ((low < start, "<", start), (high > end, ">", end)):
        if beyond:
            axis.plot(x, place, arrow, color=look.colour, markersize=5, clip_on=False)
    width = 1 if is_open else 1.6
    ends = [max(low, start), min(high, end)]
    axis.plot(ends, [place, place], color=look.colour, linewidth=width, solid_capstyle="butt")
    if start <= effect <= end:
        fill = "none" if is_open else "full"
        axis.plot(effect, place, look.marker, color=look.colour, fillstyle=fill, markersize=5.5)
    return goes_on


# by claim, what its effect is
_EFFECTS = {
    "C1": "Hessian norm, late over early (factor)",
    "C2": "support loss, late over early (factor)",
    "C3": "distance, late over early (factor)",
    "C4": "Hessian norm, end over middle (factor)",
    "C5": "correlation with accuracy over epochs (r)",
    "C6": "correlation with accuracy over epochs (r)",
    "C7": "trajectory coherence, late (mean cosine)",
    "C8": "change in query accuracy (points)",
}
_FACTORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # on an axis of factors
_FINE_FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2)
NBSP = "\N{NO-BREAK SPACE}"
_LINE = 0.165  # inches
_LABEL_WIDTH = 47  # characters of a label that fit a phone


@dataclass
class _Group:
    """The bars below one label of a claim's figure.

    Attributes:
        label: data set, setting and form.
        bars: by algorithm, the rows in the paper's form, then those of the control.
    """

    label: str
    bars: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The label with the numbers of runs, in lines that fit a phone."""
        runs = sorted({row.runs for rows in self.bars.values() for row in rows})
        n = " and ".join(map(str, runs)).replace(" ", NBSP)
        text = self.label.replace(" = ", f"{NBSP}={NBSP}") + f" (n{NBSP}={NBSP}{n})"
        return textwrap.wrap(text, _LABEL_WIDTH)


def claim_forest(claim: str, rows: Sequence[Row], beside: Sequence[Row] = ()) -> Figure | None:
    """The effects of a claim with their 95 % intervals, grouped by data set, setting and scale.

    The paper's own settings stand first. In each group MAML and first-order MAML have a line each,
    and a control an open mark below its own. A factor has a logarithmic axis.

    Args:
        claim: the claim's name.
        rows: the ledger; rows of other claims, and rows that are not judged, are left out.
        beside: further rows to compare with, such as meta-training's coherence beside
            finetuning's.

    Returns:
        The figure; None without a row to draw.
    """
    of_claim = [row for row in rows if row.claim == claim]
    is_factor = any(row.unit == Unit.LOG_RATIO for row in of_claim)
    control = CONTROLS.get(claim, "")
    drawn = _choose_rows(of_claim, control, beside)
    if not drawn:
        return None
    sections = _group_rows(drawn, control)
    data = _table_of(sections, is_factor, control)
    untestable = sum(not row.verdict.is_judged and row.as_in_paper for row in of_claim)
    paper = PAPER_GAIN if claim == "C8" else None
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.spines.left": False}):
        height = _height_of(sections)
        canvas = Canvas(figsize=(4.55, _LINE * height + 0.95), layout="constrained")
        axis = canvas.subplots()
        limits = _choose_limits(drawn, claim, paper)
        goes_on = _draw_sections(axis, sections, limits, control, _no_effect(claim), paper)
        axis.set(xlim=limits, ylim=(height, 0), yticks=[], xlabel=_EFFECTS[claim])
        _set_ticks(axis, limits, is_factor)
        _shade_claimed_side(axis, claim, limits)
        canvas.legend(
            handles=_legend_of(drawn, control),
            loc="outside upper left",
            ncols=2,
            frameon=False,
            borderpad=0,
            columnspacing=1.2,
            handletextpad=0.4,
        )
        caption = _caption_of(claim, control, paper, goes_on, untestable)
        alt = f"Effects with 95 % intervals: {_EFFECTS[claim]}. {_words_of(sections, control)}"
        return finish_figure(canvas, f"ledger-{claim.lower()}", caption, alt, data)


def _no_effect(claim: str) -> float:
    """No effect of a claim; for C7, the coherence below which directions count as orthogonal."""
    return ORTHOGONAL if claim == "C7" else 0.0


def _choose_rows(rows: Sequence[Row], control: str, beside: Sequence[Row]) -> list[Row]:
    """The rows that are drawn, each effect once: finetuning is judged beside two algorithms."""
    forms: dict[tuple[Any, ...], Row] = {}
    for row in sort_rows([*rows, *beside]):
        is_form = row.variant == control if control and row.variant else True
        if is_form and row.verdict.is_judged and np.isfinite([row.effect, row.low, row.high]).all():
            key = (*_place_of(row, control), row.algorithm, row.variant == control, row.effect)
            forms.setdefault(key, row)
    return list(forms.values())


def _place_of(row: Row, control: str) -> tuple[str, str]:
    """The section and the label of a row."""
    form = row.variant.partition(", beside ")[0].replace("fresh head", "")
    parts = [_describe_setting(row), form if row.variant != control else ""]
    return describe_scale([row]), ", ".join(filter(None, parts))


def _group_rows(rows: Sequence[Row], control: str) -> dict[str, list[_Group]]:
    """Groups by section."""
    sections: dict[str, dict[str, _Group]] = {}
    for row in rows:
        section, label = _place_of(row, control)
        group = sections.setdefault(section, {}).setdefault(label, _Group(label))
        bars = group.bars.setdefault(row.algorithm, [])
        bars.append(row)
        bars.sort(key=lambda bar: bool(control) and bar.variant == control)
    return {section: list(groups.values()) for section, groups in sections.items()}


def _bars_of(sections: Mapping[str, Sequence[_Group]]) -> Iterator[tuple[str, _Group, Row]]:
    """All bars from top to bottom, with their section and group."""
    for section, groups in sections.items():
        for group in groups:
            for algorithm in _algorithms_of(group):
                for row in group.bars[algorithm]:
                    yield section, group, row


def _algorithms_of(group: _Group) -> list[str]:
    return sorted(group.bars, key=lambda algorithm: _order_of_algorithm(name_of(algorithm)))


def _table_of(
    sections: Mapping[str, Sequence[_Group]], is_factor: bool, control: str
) -> pd.DataFrame:
    """What is drawn, one row per bar; log ratios as factors."""
    transform = np.exp if is_factor else np.asarray
    return pd.DataFrame(
        {
            "scale": section,
            "setting": group.label,
            "algorithm": name_of(row.algorithm),
            "form": control if control and row.variant == control else "as in the paper",
            "effect": float(transform(row.effect)),
            "low": float(transform(row.low)),
            "high": float(transform(row.high)),
            "runs": row.runs,
            "verdict": row.verdict.value,
        }
        for section, group, row in _bars_of(sections)
    )


def _height_of(sections: Mapping[str, Sequence[_Group]]) -> float:
    """Lines that the sections take, as `_draw_sections` sets them."""
    groups = [group for of_section in sections.values() for group in of_section]
    bars = [rows for group in groups for rows in group.bars.values()]
    labels = sum(len(group.lines) for group in groups)
    steps = sum(0.85 + 0.65 * (len(rows) - 1) for rows in bars)
    return 1.5 * len(sections) + labels + steps + 0.5 * len(groups) + 0.3


def _draw_sections(
    axis: Any,
    sections: Mapping[str, Sequence[_Group]],
    limits: tuple[float, float],
    control: str,
    no_effect: float,
    paper: float | None,
) -> bool:
    """Draw all groups, each below its label; returns whether an interval goes on."""
    goes_on = False
    place = 0.0
    for section, groups in sections.items():
        place += 1.5
        _write(axis, place - 0.6, section, weight="bold")
        for group in groups:
            for line in group.lines:
                place += 1
                _write(axis, place - 0.4, line)
            top = place
            for algorithm in _algorithms_of(group):
                place += 0.85
                for number, row in enumerate(group.bars[algorithm]):
                    place += 0.65 if number else 0.0
                    is_open = bool(control) and row.variant == control
                    values = (row.effect, row.low, row.high)
                    look = _look_of(row.algorithm)
                    goes_on |= _draw_effect(axis, place - 0.35, values, limits, look, is_open)
            axis.vlines(no_effect, top, place + 0.2, color="0.5", linestyle="--", linewidth=1)
            if paper is not None:
                axis.vlines(paper, top, place + 0.2, color="0.5", linestyle=":", linewidth=1.8)
            place += 0.5
    return goes_on


def _write(axis: Any, place: float, text: str, weight: str = "normal") -> None:
    """A line of text at the left edge."""
    axis.text(
        0,
        place,
        text,
        transform=axis.get_yaxis_transform(),
        weight=weight,
        va="center",
        clip_on=False,
    )


def _choose_limits(rows: Sequence[Row], claim: str, paper: float | None) -> tuple[float, float]:
    """Where the axis ends: one wide interval does not squeeze the others."""
    if rows[0].unit == Unit.CORRELATION:
        return -1.0, 1.0
    marks = [_no_effect(claim), *([] if paper is None else [paper])]
    dots = np.array([*(row.effect for row in rows), *marks])
    room = 2.5 * float(np.median([row.high - row.low for row in rows]))
    low = max(min(min(row.low for row in rows), *marks), dots.min() - room)
    high = min(max(max(row.high for row in rows), *marks), dots.max() + room)
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _set_ticks(axis: Any, limits: tuple[float, float], is_factor: bool) -> None:
    """Ticks at factors, where the axis is one of log ratios."""
    if not is_factor:
        axis.locator_params(axis="x", nbins=6)
        axis.xaxis.set_major_formatter("{x:g}")
        return
    low, high = np.exp(limits)
    ticks = [factor for factor in _FACTORS if low <= factor <= high]
    if len(ticks) < 3:
        ticks = [factor for factor in _FINE_FACTORS if low <= factor <= high]
    if len(ticks) > 7:
        ticks = [factor for factor in ticks if math.log10(factor) % 1 == 0]
    axis.set_xticks(np.log(ticks), [f"{factor:g}" for factor in ticks])


def _shade_claimed_side(axis: Any, claim: str, limits: tuple[float, float]) -> None:
    """A band over the effects that the claim expects."""
    no_effect = _no_effect(claim)
    end = limits[1] if BY_NAME[claim].direction > 0 else limits[0]
    axis.axvspan(no_effect, end, color="0.5", alpha=0.12, linewidth=0)


def _legend_of(rows: Sequence[Row], control: str) -> list[Line2D]:
    """A handle per algorithm, and one for the open marks of the control."""
    algorithms = sorted(
        {row.algorithm for row in rows}, key=lambda key: _order_of_algorithm(name_of(key))
    )
    handles = [
        Line2D(
            [], [], color=look.colour, marker=look.marker, markersize=5.5, label=name_of(algorithm)
        )
        for algorithm, look in ((algorithm, _look_of(algorithm)) for algorithm in algorithms)
    ]
    if control and any(row.variant == control for row in rows):
        handles.append(
            Line2D(
                [],
                [],
                color="0.5",
                marker="o",
                linestyle="-",
                linewidth=1,
                fillstyle="none",
                markersize=5.5,
                label=control,
            )
        )
    return handles


def _caption_of(
    claim: str, control: str, paper: float | None, goes_on: bool, untestable: int
) -> str:
    """What is drawn, and how to read it."""
    text = BY_NAME[claim].text
    sentences = [f"{claim}, {text}."]
    n = "n pairs of runs" if claim == "C8" else "n runs"
    arrow = "; an arrow: the interval goes on" if goes_on else ""
    sentences.append(f"Marks: means over {n}; bars: 95 % intervals{arrow}.")
    if control:
        sentences.append(f"Filled: as in the paper; open: {control}.")
    dashed = f"a coherence of {ORTHOGONAL:g}" if claim == "C7" else "no effect"
    dotted = "" if paper is None else f"; dotted: the paper's gain, {paper:+.2f}"
    sentences.append(f"Shaded: the side that the paper claims; dashed: {dashed}{dotted}.")
    if untestable:
        sentences.append(f"Not drawn: {untestable} rows where the claim cannot be tested.")
    return " ".join(sentences)


def _words_of(sections: Mapping[str, Sequence[_Group]], control: str) -> str:
    """All effects in words."""
    words = ""
    place = ("", "")
    for section, group, row in _bars_of(sections):
        if (section, group.label) != place:
            place = (section, group.label)
            words = (
                words.removesuffix(", ") + ("; " if words else "") + f"{section}, {group.label}: "
            )
        form = f", {control}" if control and row.variant == control else ""
        words += f"{name_of(row.algorithm)}{form} {row.change}, "
    return words.removesuffix(", ") + "."
