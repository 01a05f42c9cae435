"""Figures from records, in one style.

A figure carries its caption, its alt text and its data, and shows them wherever a notebook is shown.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.claims import Row
from metanb.effects import correlation, late
from metanb.records import Record
from metanb.settings import NAMES
from metanb.tasks import Tasks

LABELS = {
    "hessian_norm": "Hessian norm at adapted solutions",
    "support_loss": "support loss, adapted (nats)",
    "support_loss_before": "support loss, not adapted (nats)",
    "query_loss": "query loss, adapted (nats)",
    "query_accuracy": "query accuracy",
    "valid_accuracy": "meta-validation accuracy",
    "distance": "distance from theta_s (L2)",
    "trajectory_coherence": "trajectory coherence",
    "gradient_coherence": "gradient coherence",
    "adaptive_sharpness": "adaptive sharpness (relative curvature)",
    "entropy_before": "prediction entropy, not adapted (nats)",
    "majority_before": "share of a task's most frequent answer",
    "trajectory_coherence_head": "the head's share of it",
    "trajectory_coherence_body": "the body's share of it",
    "gradient_cosine": "gradient cosine",
    "gradient_coherence_uniform": "coherence of g_uniform",
    "gradient_coherence_label": "coherence of g_label",
    "relative_move": "relative move by the regulariser",
    "train_loss": "meta-training loss (nats)",
    "body_norm": "L2 norm of convolution weights",
    "head_norm": "L2 norm of head weights",
}
STYLE = {
    "svg.hashsalt": "metanb",
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.facecolor": "white",
    "savefig.bbox": "tight",
}
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # algorithms stay apart in grey


@dataclass(frozen=True)
class Figure:
    """A drawn figure: SVG, a caption that says what to see, alt text that says what is there, and the data as csv."""

    name: str
    svg: str
    caption: str
    alt: str
    data: pd.DataFrame

    def __repr__(self) -> str:
        """The words, where pictures cannot be shown."""
        return f"Figure {self.name}: {self.caption}"

    def _repr_html_(self) -> str:
        """The figure as one self-contained piece of HTML: nothing is fetched, the data link holds the data."""
        csv = self.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        image = f'<img alt="{escape(self.alt)}" src="data:image/svg+xml;base64,{_base64(self.svg)}">'
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{_base64(csv)}">Data (csv)</a>'
        caption = f"<figcaption>{escape(self.caption)} {link}</figcaption>"
        return f'<figure class="metanb-figure">{image}{caption}</figure>'


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _finish(canvas: Canvas, name: str, caption: str, alt: str, data: pd.DataFrame) -> Figure:
    file = io.StringIO()
    canvas.savefig(file, format="svg", metadata={"Date": None})
    return Figure(name, file.getvalue(), caption, alt, data)


def algorithm(run: Record) -> str:
    """The name of a run's algorithm: what runs are told apart by, unless a figure is given something else."""
    return NAMES[run.settings.algorithm]


def runs_table(runs: Sequence[Record], label: Callable[[Record], str] = algorithm) -> pd.DataFrame:
    """What was run, a row a kind of run: how many, how long, late query accuracy and time, means over runs."""
    rows = pd.DataFrame(
        {
            "runs of": label(run),
            "accuracy": late(run.curve("query_accuracy")["mean"].loc[1:]),
            "iterations": run.settings.iterations,
            "minutes": run.provenance["cpu_seconds"] / 60,
        }
        for run in runs
    )
    kinds = rows.groupby("runs of", sort=False)
    return pd.DataFrame(
        {
            "runs": kinds.size(),
            "iterations": kinds.iterations.first(),
            "late query accuracy": kinds.accuracy.mean().round(3),
            "least to greatest": kinds.accuracy.min().round(3).astype(str) + " to "
            + kinds.accuracy.max().round(3).astype(str),
            "CPU minutes a run": kinds.minutes.mean().round(1),
        }
    )  # fmt: skip


def origin(runs: Sequence[Record]) -> str:
    """Where the runs come from, in a sentence: dates, devices, versions and commits, each as often as it differs."""
    facts = [run.provenance | {"date": run.provenance["finished"][:10]} for run in runs]
    seen = {key: ", ".join(sorted({str(fact[key]) for fact in facts})) for key in ("date", "device", "torch", "code")}
    return f"Recorded {seen['date']} on {seen['device']}, torch {seen['torch']}, code {seen['code']}."


def long(runs: Sequence[Record], measures: Sequence[str], label: Callable[[Record], str] = algorithm) -> pd.DataFrame:
    """The runs' measures as one long table: columns run, seed, measure, epoch, iteration, mean, sem, n."""
    return pd.concat(
        [
            run.curve(measure).reset_index()[["epoch", "iteration", "mean", "sem", "n"]]
            .assign(run=label(run), seed=run.settings.seed, measure=measure)
            for run in runs for measure in measures
        ]
    )  # fmt: skip


def curves(
    runs: Sequence[Record], measures: Sequence[str], name: str, caption: str, log: Sequence[str] = (),
    label: Callable[[Record], str] = algorithm,
) -> Figure:  # fmt: skip
    """Measures over meta-training, a panel each: a thin line a run, a thick one for the mean, a band over runs.

    The untrained network, epoch 0, is drawn apart as open circles. The caption is completed by what n and the band are,
    the alt text by first and last values.

    Args:
        runs: records; runs of one label are drawn in one colour.
        measures: keys of LABELS.
        name: of the data file.
        caption: what to see.
        log: the measures drawn on a logarithmic axis.
        label: what runs are told apart by.
    """
    data = long(runs, measures, label)
    kinds = list(dict.fromkeys(data.run))
    said = []
    with matplotlib.rc_context(STYLE):
        canvas, axes = _panels(len(measures))
        for axis, measure in zip(axes, measures, strict=False):
            for kind, (colour, dash) in zip(kinds, _looks(len(kinds)), strict=True):
                chosen = data[(data.measure == measure) & (data.run == kind)]
                table = chosen.pivot(index="iteration", columns="seed", values="mean")
                start, table = table.loc[table.index == 0], table.loc[table.index > 0]
                axis.plot(table.index, table, color=colour, linewidth=0.6, alpha=0.5, linestyle=dash)
                axis.plot(table.index, table.mean(axis=1), color=colour, linewidth=2, linestyle=dash, label=kind)
                axis.fill_between(
                    table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.15, linewidth=0
                )
                axis.plot(
                    np.zeros(start.size), start.to_numpy().ravel(), "o", color=colour, fillstyle="none", markersize=5
                )
                first, last = table.iloc[0].mean(), table.iloc[-1].mean()
                said.append(f"{LABELS[measure]}, {kind}: from {first:.3g} after the first epoch to {last:.3g}")
            axis.set(
                xlabel="meta-training iteration", title=LABELS[measure], yscale="log" if measure in log else "linear"
            )
            axis.title.set_size(10)
        axes[0].legend(frameon=False)
        seeds, tasks = data.seed.nunique(), runs[0].settings.test_tasks
        caption = (
            f"{caption} Thick: mean of {seeds} run{'s' if seeds > 1 else ''} (seeds); thin: each run; band: least to "
            f"greatest run. What is measured on tasks is a mean over the same {tasks} meta-test tasks. "
            "Circles: the untrained network."
        )
        return _finish(canvas, name, caption, f"Line charts over meta-training. {'; '.join(said)}.", data)


def scatter(
    runs: Sequence[Record], x: str, y: str, name: str, caption: str, label: Callable[[Record], str] = algorithm
) -> Figure:
    """One measure against another, a panel for each label, a dot an epoch, joined in order of time; colour: the run."""
    data = long(runs, (x, y), label)
    data = data[data.epoch > 0].pivot(index=["run", "seed", "epoch"], columns="measure", values="mean").reset_index()
    kinds, said = list(dict.fromkeys(label(run) for run in runs)), []
    with matplotlib.rc_context(STYLE):
        canvas, axes = _panels(len(kinds))
        for axis, kind in zip(axes, kinds, strict=False):
            chosen = data[data.run == kind]
            for (_, path), colour in zip(chosen.groupby("seed"), sns.color_palette("viridis", 6), strict=False):
                axis.plot(path[x], path[y], "-", color=colour, linewidth=0.7, alpha=0.6)
                axis.scatter(path[x], path[y], s=4 + 3 * path.epoch, color=colour)
            axis.set(xlabel=LABELS[x], ylabel=LABELS[y], title=kind)
            axis.title.set_size(10)
            said.append(f"{kind}: r between {_range(chosen, x, y)}")
        caption = f"{caption} A line a run (seed), a dot an epoch, larger dots later; epoch 0 is left out."
        return _finish(canvas, name, caption, f"{LABELS[y]} against {LABELS[x]}. {'; '.join(said)}.", data)


def shares(
    runs: Sequence[Record], whole: str, parts: Sequence[str], name: str, caption: str,
    label: Callable[[Record], str] = algorithm,
) -> Figure:  # fmt: skip
    """A measure and its parts over meta-training, a panel for each label: means over runs, bands least to greatest."""
    data = long(runs, (whole, *parts), label)
    data = data[data.epoch > 0]
    kinds, said = list(dict.fromkeys(data.run)), []
    with matplotlib.rc_context(STYLE):
        canvas, axes = _panels(len(kinds))
        for axis, kind in zip(axes, kinds, strict=False):
            for measure, (colour, dash) in zip((whole, *parts), _looks(1 + len(parts)), strict=True):
                chosen = data[(data.run == kind) & (data.measure == measure)]
                table = chosen.pivot(index="iteration", columns="seed", values="mean")
                axis.plot(table.index, table.mean(axis=1), color=colour, linestyle=dash, linewidth=2,
                          label=LABELS[measure])  # fmt: skip
                axis.fill_between(
                    table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.15, linewidth=0
                )
                said.append(f"{kind}, {LABELS[measure]}: at last {table.iloc[-1].mean():.3g}")
            axis.set(xlabel="meta-training iteration", title=kind)
            axis.title.set_size(10)
        axes[0].legend(frameon=False)
        seeds = data.seed.nunique()
        caption = f"{caption} Lines: means of {seeds} run{'s' if seeds > 1 else ''} (seeds); bands: least to greatest."
        return _finish(canvas, name, caption, f"Line charts over meta-training. {'; '.join(said)}.", data)


def forest(rows: Sequence[Row], name: str, caption: str, xlabel: str) -> Figure:
    """Effects of several cells with their 95 % intervals, one below the other; the dashed line is no effect.

    A filled dot is an interval beside 0, an open one an interval across it.
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
        axis.axvline(0, color="0.4", linestyle="--", linewidth=1)
        axis.set(yticks=data.index, yticklabels=data.cell + " (n = " + data.runs.astype(str) + ")", xlabel=xlabel)
        axis.invert_yaxis()
        said = "; ".join(
            f"{row.cell}: {row.effect:+.2f} ({row.low:+.2f} to {row.high:+.2f})" for _, row in finite.iterrows()
        )
        caption = (
            f"{caption} Dots: means over n pairs of runs; bars: 95 % intervals (Student's t); filled: the interval "
            "does not hold 0."
        )
        return _finish(canvas, name, caption, f"Effects with intervals. {said}.", data)


def _panels(n: int) -> tuple[Canvas, list[Any]]:
    """A canvas with n panels, two a row."""
    columns, rows = min(2, n), -(-n // 2)
    canvas = Canvas(figsize=(4.4 * columns, 3.1 * rows), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[n:]:
        axis.set_visible(False)
    return canvas, list(axes[:n])


def _looks(n: int) -> list[tuple[Any, Any]]:
    """Colours and dashes, n of them, that stay apart, in grey too."""
    return [(colour, DASHES[i % len(DASHES)]) for i, colour in enumerate(sns.color_palette("colorblind", n))]


def _range(data: pd.DataFrame, x: str, y: str) -> str:
    found = [correlation(path[x], path[y])[0] for _, path in data.groupby("seed")]
    return f"{min(found):.2f} and {max(found):.2f}"


def tasks_picture(tasks: Tasks, name: str, caption: str) -> Figure:
    """Tasks as pictures: a row a task, support images left of the bar, query images right, a column a class.

    Shows the first image of each class and role. The data have a row a picture: its bytes (0 to 255) in hexadecimal.
    """
    ways = int(tasks.support_y.max()) + 1
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(1.1 * ways, 0.62 * len(tasks) + 0.4), layout="constrained")
        axes = canvas.subplots(len(tasks), 2 * ways, squeeze=False)
        rows = []
        for task, row in enumerate(axes):
            for column, axis in enumerate(row):
                role = "support" if column < ways else "query"
                x, y = getattr(tasks, f"{role}_x")[task], getattr(tasks, f"{role}_y")[task]
                image = x[y == column % ways][0].permute(1, 2, 0).squeeze(-1).numpy()
                axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=True, alpha=0.2)
                rows.append((task, role, column % ways, (image * 255).round().astype("uint8").tobytes().hex()))
                if task == 0:
                    axis.set_title(f"{role} {column % ways}", fontsize=6)
            row[0].set_ylabel(f"task {task}", fontsize=7)
        data = pd.DataFrame(rows, columns=["task", "role", "label", "pixels"])
        alt = f"{len(tasks)} rows of pictures: {ways} support classes, then new query images of the same classes."
        return _finish(canvas, name, caption, alt, data)


def steps(data: pd.DataFrame, name: str, caption: str, ylabel: str) -> Figure:
    """Adaptation watched: `data` has a column step and one column a line; drawn over the inner steps."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(5.2, 3.1), layout="constrained")
        axis = canvas.subplots()
        lines = [column for column in data.columns if column != "step"]
        for column, colour, dash in zip(lines, sns.color_palette("colorblind"), DASHES * 2, strict=False):
            axis.plot(data.step, data[column], color=colour, linestyle=dash, marker="o", label=column)
        axis.set(xlabel="inner SGD step", ylabel=ylabel, xticks=data.step)
        axis.legend(frameon=False)
        ends = "; ".join(f"{c}: from {data[c].iloc[0]:.3g} to {data[c].iloc[-1]:.3g}" for c in lines)
        return _finish(canvas, name, caption, f"Line chart over inner SGD steps. {ends}.", data)
