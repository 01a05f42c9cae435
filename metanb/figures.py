"""Figures from records, in one style.

A figure carries its caption, its alt text and its data, and shows them wherever a notebook is shown.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas

from metanb.records import Record
from metanb.settings import CHOICES, NAMES
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


def runs_table(runs: Sequence[Record]) -> pd.DataFrame:
    """What was run, a row a run: its length, its last query accuracy on meta-test tasks, and the time it took."""
    return pd.DataFrame(
        {
            "algorithm": NAMES[run.settings.algorithm],
            "seed": run.settings.seed,
            "iterations": run.settings.iterations,
            "query accuracy": run.curve("query_accuracy")["mean"].iloc[-1].round(3),
            "CPU minutes": round(run.provenance["cpu_seconds"] / 60, 1),
        }
        for run in runs
    ).set_index(["algorithm", "seed"])


def origin(runs: Sequence[Record]) -> str:
    """Where the runs come from, in a sentence: dates, devices, versions and commits, each as often as it differs."""
    facts = [run.provenance | {"date": run.provenance["finished"][:10]} for run in runs]
    seen = {key: ", ".join(sorted({str(fact[key]) for fact in facts})) for key in ("date", "device", "torch", "code")}
    return f"Recorded {seen['date']} on {seen['device']}, torch {seen['torch']}, code {seen['code']}."


def curves(runs: Sequence[Record], measures: Sequence[str], name: str, caption: str, log: Sequence[str] = ()) -> Figure:
    """Measures over meta-training, a panel each: a thin line a run, a thick one for the mean, a band over runs.

    The untrained network, epoch 0, is drawn apart as open circles. The caption is completed by what n and the band are,
    the alt text by first and last values.

    Args:
        runs: records; runs of one algorithm are drawn in one colour.
        measures: keys of LABELS.
        name: of the data file.
        caption: what to see.
        log: the measures drawn on a logarithmic axis.
    """
    data = pd.concat(
        [run.curve(measure).reset_index().assign(measure=measure, algorithm=run.settings.algorithm,
        seed=run.settings.seed)
         for run in runs for measure in measures]
    )  # fmt: skip
    algorithms = [name for name in CHOICES["algorithm"] if name in set(data.algorithm)]
    said = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.4 * min(2, len(measures)), 3.1 * -(-len(measures) // 2)), layout="constrained")
        axes = canvas.subplots(-(-len(measures) // 2), min(2, len(measures)), squeeze=False).ravel()
        for axis, measure in zip(axes, measures, strict=False):
            for algorithm, colour, dash in zip(algorithms, sns.color_palette("colorblind"), DASHES, strict=False):
                chosen = data[(data.measure == measure) & (data.algorithm == algorithm)]
                table = chosen.pivot(index="iteration", columns="seed", values="mean")
                start, table = table.loc[table.index == 0], table.loc[table.index > 0]
                axis.plot(table.index, table, color=colour, linewidth=0.6, alpha=0.5, linestyle=dash)
                axis.plot(
                    table.index, table.mean(axis=1), color=colour, linewidth=2, linestyle=dash, label=NAMES[algorithm]
                )
                axis.fill_between(
                    table.index, table.min(axis=1), table.max(axis=1), color=colour, alpha=0.15, linewidth=0
                )
                axis.plot(
                    np.zeros(start.size), start.to_numpy().ravel(), "o", color=colour, fillstyle="none", markersize=5
                )
                first, last = table.iloc[0].mean(), table.iloc[-1].mean()
                said.append(
                    f"{LABELS[measure]}, {NAMES[algorithm]}: from {first:.3g} after the first epoch to {last:.3g}"
                )
            axis.set(
                xlabel="meta-training iteration", title=LABELS[measure], yscale="log" if measure in log else "linear"
            )
            axis.title.set_size(10)
        for axis in axes[len(measures) :]:
            axis.set_visible(False)
        axes[0].legend(frameon=False)
        seeds, tasks = data.seed.nunique(), runs[0].settings.test_tasks
        caption = (
            f"{caption} Thick: mean of {seeds} run{'s' if seeds > 1 else ''} (seeds); thin: each run; band: least to "
            f"greatest run. What is measured on tasks is a mean over the same {tasks} meta-test tasks. "
            "Circles: the untrained network."
        )
        return _finish(canvas, name, caption, f"Line charts over meta-training. {'; '.join(said)}.", data)


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
