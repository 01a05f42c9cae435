"""What interventions change: a measure, and accuracy beside it."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.claims.predictions import MARGIN
from metanb.figures.style import STYLE, Figure, finish_figure
from metanb.grids.interventions import BY_NAME
from metanb.labels import describe_measure, name_of

NAME_WIDTH = 18  # letters of a line of a name


def describe_interventions(names: Sequence[str]) -> str:
    """What interventions do, as a list in Markdown; those that do the same share an item.

    Args:
        names: of interventions.

    Raises:
        KeyError: an unknown name.

    Example:
        >>> print(describe_interventions(["sharpness-aware and coherent"]))
        - *sharpness-aware and coherent* (both together): the two together.
    """
    sharing: dict[str, list[str]] = {}
    for name in names:
        intervention = BY_NAME[name]
        meaning = f"({intervention.source}): {intervention.meaning}."
        sharing.setdefault(meaning, []).append(f"*{name}*")
    return "\n".join(f"- {', '.join(shared)} {meaning}" for meaning, shared in sharing.items())


def interventions(table: pd.DataFrame, measure: str, name: str, caption: str) -> Figure:
    """A measure, and the change of accuracy beside it, one row per intervention.

    Two panels per algorithm. Left: the measure at the end; the dashed line is the base. Right: the
    change of accuracy with its interval; the band is the margin within which accuracy counts as
    unchanged.

    Args:
        table: as `metanb.claims.predictions.compare_interventions` gives it.
        measure: one of its columns.
        name: of the data file.
        caption: what to see.
    """
    shown = describe_measure(measure)
    algorithms = list(dict.fromkeys(table.algorithm))
    names = [name for name in dict.fromkeys(table.intervention) if name != "base"]
    columns = ["algorithm", "intervention", "pairs", measure, "gain", "low", "high"]
    data = table[columns].reset_index(drop=True)
    with matplotlib.rc_context(STYLE):
        # narrow enough that a phone hardly shrinks it; a name of two lines takes more room
        labels = [textwrap.fill(name, NAME_WIDTH) for name in names]
        lines = sum(1 + 0.6 * label.count("\n") for label in labels)
        canvas = Canvas(figsize=(4.6, (0.26 * lines + 0.9) * len(algorithms)), layout="constrained")
        panels = canvas.subplots(len(algorithms), 2, squeeze=False, sharex="col", sharey=True)
        for (left, right), algorithm in zip(panels, algorithms, strict=True):
            of_algorithm = data[data.algorithm == algorithm].set_index("intervention")
            _draw_measure(left, of_algorithm[measure], names, shown.log)
            left.set_yticks(range(len(names)), labels)
            _draw_gains(right, of_algorithm, names)
            left.set_title(name_of(algorithm), size=10, loc="left")
        for axis, label in zip(
            panels[-1], (shown.label, "change of accuracy (points)"), strict=True
        ):
            axis.set_xlabel(textwrap.fill(label, NAME_WIDTH))
        panels[0, 0].invert_yaxis()

        pairs = sorted(set(data.pairs))
        n = f"n = {pairs[0]}" if len(pairs) == 1 else f"n = {pairs[0]} to {pairs[-1]}"
        caption += (
            f" Left: means over {n} runs; dashed: the base. Right: changes from the base at the "
            "same seeds, with 95 % intervals over runs and tasks; filled: the interval excludes 0; "
            f"band: ± {MARGIN:g} points, within which accuracy counts as unchanged."
        )
        alt = f"{shown.label}, and the change of accuracy. {_in_words(data, measure)}."
        return finish_figure(canvas, name, caption, alt, data)


def _draw_measure(axis: Any, values: pd.Series, names: Sequence[str], logarithmic: bool) -> None:
    """A dot per intervention, and the base as a line."""
    colour = sns.color_palette("colorblind")[0]
    present = [name for name in names if name in values.index]
    axis.plot(values[present], [names.index(name) for name in present], "o", color=colour)
    axis.axvline(values["base"], color="0.5", linestyle="--", linewidth=1)
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")


def _draw_gains(axis: Any, rows: pd.DataFrame, names: Sequence[str]) -> None:
    """A dot and its interval per intervention, and the margin as a band."""
    colour = sns.color_palette("colorblind")[3]
    axis.axvspan(-MARGIN, MARGIN, color="0.5", alpha=0.15, linewidth=0)
    axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
    for place, name in enumerate(names):
        if name in rows.index:
            row = rows.loc[name]
            fill = "none" if row.low <= 0 <= row.high else "full"
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.5)
            axis.plot(row.gain, place, "o", color=colour, fillstyle=fill)


def _in_words(data: pd.DataFrame, measure: str) -> str:
    """What is drawn, for those who do not see it."""
    return "; ".join(
        f"{name_of(row.algorithm)}, {row.intervention}: {getattr(row, measure):.3g}"
        + ("" if row.intervention == "base" else f", {row.gain:+.1f} points")
        for row in data.itertuples()
    )
