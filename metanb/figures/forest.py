"""Forest plots: effects with their 95 % intervals, of a claim or of any rows of the ledger."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from metanb.claims.paper import BY_NAME, PAPER_GAIN
from metanb.claims.rules import ORTHOGONAL
from metanb.claims.verdicts import Row, Unit
from metanb.figures.ledger import (
    CONTROLS,
    describe_scale,
    describe_setting,
    order_of_algorithm,
    sort_rows,
)
from metanb.figures.style import STYLE, Figure, finish_figure
from metanb.labels import ALGORITHMS, name_of

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


class _Look(NamedTuple):
    """How an algorithm is drawn."""

    colour: Any
    marker: str


def _look_of(algorithm: str) -> _Look:
    """Colour and marker of an algorithm; those of one's own share a look."""
    palette = sns.color_palette("colorblind")
    place = list(ALGORITHMS).index(algorithm) if algorithm in ("maml", "fomaml", "finetune") else 3
    return _Look(palette[place], "osD^"[place])


def draw_effects(rows: Sequence[Row], name: str, caption: str, xlabel: str, paper: float) -> Figure:
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
            " Dots: means over n pairs of runs; bars: 95 % intervals; filled: the "
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


def draw_claim(claim: str, rows: Sequence[Row], beside: Sequence[Row] = ()) -> Figure | None:
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
    left_out = [row for row in of_claim if row.as_in_paper and not row.verdict.is_judged]
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
        caption = _caption_of(claim, control, paper, goes_on, left_out)
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
    parts = [describe_setting(row), form if row.variant != control else ""]
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
    return sorted(group.bars, key=lambda algorithm: order_of_algorithm(name_of(algorithm)))


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
        {row.algorithm for row in rows}, key=lambda key: order_of_algorithm(name_of(key))
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
    claim: str, control: str, paper: float | None, goes_on: bool, left_out: Sequence[Row]
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
    if left_out:
        sentences.append(f"Not drawn: {_count_left_out(left_out)}.")
    return " ".join(sentences)


def _count_left_out(rows: Sequence[Row]) -> str:
    """How many of the rows without a verdict there are, and why they have none."""
    untestable = sum(row.verdict.is_untestable for row in rows)
    counts = ((untestable, "not testable"), (len(rows) - untestable, "without a verdict"))
    return ", ".join(
        f"{count} {'row' if count == 1 else 'rows'} {reason}" for count, reason in counts if count
    )


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
