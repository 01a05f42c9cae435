"""Figures of the ledger: all verdicts at a glance, and effects with their intervals."""

from collections import Counter
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.pictures import STYLE, Figure, finish
from metanb.settings import NAMES
from metanb.verdicts import CLAIMS, CONTRARY, NO_CASE, NOT_SEEN, PARTLY, REPRODUCED, TOO_LATE, UNCLEAR, Row

MARKS = {  # by verdict: name in the legend, marker, fill, place in the palette; shapes tell them apart in grey
    REPRODUCED: ("reproduced", "o", "full", 0),
    PARTLY: ("partly", "o", "left", 0),
    NOT_SEEN: ("not reproduced", "o", "none", 1),
    CONTRARY: ("the opposite", "X", "full", 3),
    UNCLEAR: ("cannot tell", "$?$", "full", 7),
    NO_CASE: ("not testable", ".", "full", 7),
    TOO_LATE: ("not testable", ".", "full", 7),
}


def overview(rows: Sequence[Row], name: str, caption: str) -> Figure:
    """The verdicts on the paper's own form of each claim: a row a cell, a column a claim, a mark a verdict.

    Cells with other first heads are left out; finetuning's verdicts stand with the algorithm that it is set beside.
    """
    data = pd.DataFrame(
        {"cell": _place(row), "claim": row.claim, "verdict": row.verdict, "effect": row.change, "runs": row.runs}
        for row in rows if row.verdict in MARKS and row.as_in_paper and "head" not in row.setting
    )  # fmt: skip
    cells, claims = list(dict.fromkeys(data.cell)), [claim.name for claim in CLAIMS]
    palette = sns.color_palette("colorblind")
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        canvas = Canvas(
            figsize=(5.2, 0.4 * len(cells) + 1.3), layout="constrained"
        )  # narrow: it is read on phones, too
        axis = canvas.subplots()
        for row in data.itertuples():
            label, marker, fill, colour = MARKS[row.verdict]
            axis.plot(
                claims.index(row.claim), cells.index(row.cell), marker=marker, fillstyle=fill, color=palette[colour],
                markerfacecoloralt="none", markersize=10, linestyle="none", label=label,
            )  # fmt: skip
        axis.set(xticks=range(len(claims)), xticklabels=claims, yticks=range(len(cells)))
        axis.set_yticklabels([cell.replace("; ", "\n") for cell in cells], fontsize=8)
        axis.set(xlim=(-0.5, len(claims) - 0.5), ylim=(len(cells) - 0.5, -0.5))
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.hlines(np.arange(1, len(cells)) - 0.5, -0.5, len(claims) - 0.5, color="0.5", alpha=0.3, linewidth=0.8)
        found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        names = list(dict.fromkeys(label for label, *_ in MARKS.values() if label in found))
        canvas.legend(
            [found[label] for label in names], names, loc="outside lower center",
            ncols=3, frameon=False, handletextpad=0.1, columnspacing=1,
        )  # fmt: skip
        said = []
        for claim in claims:
            counts = Counter(MARKS[verdict][0] for verdict in data.verdict[data.claim == claim])
            if counts:
                said.append(f"{claim}: " + ", ".join(f"{label} in {n}" for label, n in counts.most_common()))
        return finish(canvas, name, caption, f"A mark for each claim and cell. {'; '.join(said)}.", data)


def _place(row: Row) -> str:
    algorithm = row.variant.partition("beside ")[2] or NAMES[row.algorithm]
    return f"{NAMES[row.dataset]}, {row.setting}; {algorithm}, {row.scale.split(',')[0]} scale"


def forest(rows: Sequence[Row], name: str, caption: str, xlabel: str, paper: float) -> Figure:
    """Effects of several cells with their 95 % intervals, one below the other.

    The dashed line is no effect, the dotted one the paper's. A filled dot is an interval beside 0, an open one an
    interval across it.
    """
    data = pd.DataFrame(
        {
            "cell": f"{NAMES[row.algorithm]}, {row.setting}: {row.variant}", "effect": row.effect, "low": row.low,
            "high": row.high, "runs": row.runs, "verdict": row.verdict,
        }
        for row in rows
    )  # fmt: skip
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, 0.34 * len(data) + 0.9), layout="constrained")
        axis = canvas.subplots()
        colour = sns.color_palette("colorblind")[0]
        finite = data[np.isfinite(data[["effect", "low", "high"]]).all(axis=1)]
        for place, row in finite.iterrows():
            apart = not row.low <= 0 <= row.high
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.5)
            axis.plot(row.effect, place, "o", color=colour, fillstyle="full" if apart else "none")
        axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
        axis.axvline(paper, color="0.5", linestyle=":", linewidth=1.5)
        axis.set(yticks=data.index, yticklabels=data.cell + " (n = " + data.runs.astype(str) + ")", xlabel=xlabel)
        axis.invert_yaxis()
        said = "; ".join(
            f"{row.cell}: {row.effect:+.2f} ({row.low:+.2f} to {row.high:+.2f})" for _, row in finite.iterrows()
        )
        caption = (
            f"{caption} Dots: means over n pairs of runs; bars: 95 % intervals (Student's t); filled: the interval "
            f"does not hold 0. Dashed: no effect; dotted: the paper's, {paper:+.2f}."
        )
        return finish(canvas, name, caption, f"Effects with intervals. {said}.", data)
