"""Figures and tables from records.

A figure says in its alt text what it shows, and hands out what it draws.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogFormatter

from metanb.claims.cells import late_values
from metanb.claims.run_stats import correlation
from metanb.figures.style import STYLE, Figure, colours_and_dashes, finish_figure, make_panels
from metanb.labels import LABELS, MEASURES, NAMES
from metanb.runs.records import Record


def algorithm_label(run: Record) -> str:
    """The name of a run's algorithm: what runs are told apart by, unless a figure is given something else."""
    return NAMES[run.settings.algorithm]


def runs_table(
    runs: Sequence[Record], label: Callable[[Record], str] = algorithm_label
) -> pd.DataFrame:
    """What was run, a row a kind of run: how many, how long, late query accuracy and time, means over runs."""
    rows = pd.DataFrame(
        {
            "runs of": label(run),
            "accuracy": late_values([run], "query_accuracy")[0],
            "iterations": run.iterations,
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
            "least to greatest": kinds.accuracy.agg(
                lambda values: f"{values.min():.3f} to {values.max():.3f}"
            ),
            "CPU minutes a run": kinds.minutes.mean().round(1),
        }
    )


def describe_origin(runs: Sequence[Record]) -> str:
    """Where the runs come from, in a sentence: dates, devices, versions and commits, each as often as it differs."""
    facts = [run.provenance | {"date": run.provenance["finished"][:10]} for run in runs]
    seen = {
        key: ", ".join(
            sorted({part for fact in facts for part in str(fact[key]).split(", ")})
        )  # some runs were resumed
        for key in ("date", "device", "torch", "code")
    }
    return (
        f"Recorded {seen['date']} on {seen['device']}, torch {seen['torch']}, code {seen['code']}."
    )


def long_table(
    runs: Sequence[Record],
    measures: Sequence[str],
    label: Callable[[Record], str] = algorithm_label,
) -> pd.DataFrame:
    """The runs' measures as one long table: columns run, seed, measure, epoch, iteration, mean, sem, n."""
    return pd.concat(
        [
            run.curve(measure)
            .reset_index()[["epoch", "iteration", "mean", "sem", "n"]]
            .assign(run=label(run), seed=run.settings.seed, measure=measure)
            for run in runs
            for measure in measures
        ]
    )


class _Plain(LogFormatter):
    """Labels where matplotlib would put them, as plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def curves(
    runs: Sequence[Record],
    measures: Sequence[str],
    name: str,
    caption: str,
    log: Sequence[str] = (),
    label: Callable[[Record], str] = algorithm_label,
    known: Mapping[str, tuple[float, str]] = MappingProxyType({}),
) -> Figure:
    """Measures over meta-training, a panel each: a thin line a run, a thick one for the mean, a band over runs.

    The untrained network, epoch 0, is drawn apart as open circles. Means end where the first run
    does. The caption is completed by what n and the band are, the alt text by first and last
    values.

    Args:
        runs: records; runs of one label are drawn in one colour.
        measures: keys of LABELS.
        name: of the data file.
        caption: what to see.
        log: the measures drawn on a logarithmic axis.
        label: what runs are told apart by.
        known: by measure, a published value and whose it is, drawn as a dotted line.
    """
    data = long_table(runs, measures, label)
    kinds = list(dict.fromkeys(data.run))
    said = []
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(measures))
        for axis, measure in zip(axes, measures, strict=False):
            for kind, (colour, dash) in zip(kinds, colours_and_dashes(len(kinds)), strict=True):
                chosen = data[(data.measure == measure) & (data.run == kind)]
                table = chosen.pivot(index="iteration", columns="seed", values="mean")
                start, table = table.loc[table.index == 0], table.loc[table.index > 0]
                axis.plot(
                    table.index, table, color=colour, linewidth=0.6, alpha=0.5, linestyle=dash
                )
                table = table.dropna()  # a mean over fewer runs would jump where one ends
                axis.plot(
                    table.index,
                    table.mean(axis=1),
                    color=colour,
                    linewidth=2,
                    linestyle=dash,
                    label=kind,
                )
                axis.fill_between(
                    table.index,
                    table.min(axis=1),
                    table.max(axis=1),
                    color=colour,
                    alpha=0.15,
                    linewidth=0,
                )
                axis.plot(
                    np.zeros(start.size),
                    start.to_numpy().ravel(),
                    "o",
                    color=colour,
                    fillstyle="none",
                    markersize=5,
                )
                first, last = table.iloc[0].mean(), table.iloc[-1].mean()
                said.append(
                    f"{LABELS[measure]}, {kind}: from {first:.3g} after the first epoch to {last:.3g}"
                )
            axis.set(
                xlabel="meta-training iteration",
                title=LABELS[measure],
                yscale="log" if measure in log else "linear",
            )
            axis.title.set_size(10)
            if measure in known:
                value, whose = known[measure]
                axis.axhline(value, color="0.5", linestyle=":", linewidth=1.5)
                axis.annotate(
                    whose,
                    (1, value),
                    (0, -3),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="top",
                    textcoords="offset points",
                    fontsize=8,
                )
                said.append(f"{LABELS[measure]}, {whose}: {value:g}")
            # an axis of less than a power of ten gets more labels than its powers
            if measure in log:
                axis.yaxis.set_major_formatter(_Plain())
                axis.yaxis.set_minor_formatter(_Plain(minor_thresholds=(2, 0.5)))
        axes[0].legend(frameon=False)
        caption = f"{caption} Thick: mean of {_counts(data)} (seeds); thin: each run; band: least to greatest run."
        of_iterations = [name for name in measures if MEASURES[name].over == "iterations"]
        if of_iterations:
            names = " and ".join(LABELS[name] for name in of_iterations)
            caption += f" The {names}: mean over the iterations of each epoch."
        if len(of_iterations) < len(measures):
            caption += (
                f" What is measured on tasks: mean over the same {_tasks(runs)} meta-test tasks."
            )
            caption += " Circles: the untrained network."
        if known:
            caption += " Dotted: published."
        return finish_figure(
            canvas, name, caption, f"Line charts over meta-training. {'; '.join(said)}.", data
        )


def scatter(
    runs: Sequence[Record],
    x: str,
    y: str,
    name: str,
    caption: str,
    label: Callable[[Record], str] = algorithm_label,
) -> Figure:
    """One measure against another, a panel for each label, a dot an epoch, joined in order of time; colour: the run."""
    data = long_table(runs, (x, y), label)
    data = (
        data[data.epoch > 0]
        .pivot(index=["run", "seed", "epoch"], columns="measure", values="mean")
        .reset_index()
    )
    kinds, said = list(dict.fromkeys(label(run) for run in runs)), []
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(kinds))
        for axis, kind in zip(axes, kinds, strict=False):
            chosen = data[data.run == kind]
            seeds = chosen.groupby("seed")
            for (seed, path), colour in zip(
                seeds, sns.color_palette("colorblind", len(seeds)), strict=True
            ):
                axis.plot(path[x], path[y], "-", color=colour, linewidth=0.7, alpha=0.6)
                axis.scatter(
                    path[x],
                    path[y],
                    s=4 + 36 * path.epoch / path.epoch.max(),
                    color=colour,
                    label=seed,
                )
            axis.set(xlabel=LABELS[x], ylabel=LABELS[y], title=kind)
            axis.title.set_size(10)
            said.append(f"{kind}: r between {_range(chosen, x, y)}")
        handles, names = axes[0].get_legend_handles_labels()
        # clear of the dots
        canvas.legend(handles, names, title="seed", loc="outside right upper", frameon=False)
        caption = f"{caption} A line a run (seed), a dot an epoch, larger dots later; epoch 0 is left out."
        return finish_figure(
            canvas, name, caption, f"{LABELS[y]} against {LABELS[x]}. {'; '.join(said)}.", data
        )


def shares(
    runs: Sequence[Record],
    whole: str,
    parts: Sequence[str],
    name: str,
    caption: str,
    label: Callable[[Record], str] = algorithm_label,
) -> Figure:
    """A measure and its parts over meta-training, a panel for each label: means over runs, bands least to greatest."""
    data = long_table(runs, (whole, *parts), label)
    data = data[data.epoch > 0]
    kinds, said = list(dict.fromkeys(data.run)), []
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(kinds))
        for axis, kind in zip(axes, kinds, strict=False):
            for measure, (colour, dash) in zip(
                (whole, *parts), colours_and_dashes(1 + len(parts)), strict=True
            ):
                chosen = data[(data.run == kind) & (data.measure == measure)]
                table = chosen.pivot(index="iteration", columns="seed", values="mean")
                axis.plot(
                    table.index,
                    table.mean(axis=1),
                    color=colour,
                    linestyle=dash,
                    linewidth=2,
                    label=LABELS[measure],
                )
                axis.fill_between(
                    table.index,
                    table.min(axis=1),
                    table.max(axis=1),
                    color=colour,
                    alpha=0.15,
                    linewidth=0,
                )
                said.append(f"{kind}, {LABELS[measure]}: at last {table.iloc[-1].mean():.3g}")
            axis.set(xlabel="meta-training iteration", title=kind)
            axis.title.set_size(10)
        axes[0].legend(frameon=False)
        caption = f"{caption} Lines: means of {_counts(data)} (seeds), each over the same {_tasks(runs)} meta-test tasks; "
        caption += "bands: least to greatest."
        return finish_figure(
            canvas, name, caption, f"Line charts over meta-training. {'; '.join(said)}.", data
        )


def _tasks(runs: Sequence[Record]) -> str:
    return " or ".join(str(n) for n in sorted({run.settings.test_tasks for run in runs}))


def _counts(data: pd.DataFrame) -> str:
    """How many runs each line rests on: one number if all rest on as many."""
    counts = data.groupby("run", sort=False).seed.nunique()
    if counts.nunique() == 1:
        return f"{counts.iloc[0]} run{'s' if counts.iloc[0] > 1 else ''}"
    return ", ".join(f"{n} ({kind})" for kind, n in counts.items()) + " runs"


def _range(data: pd.DataFrame, x: str, y: str) -> str:
    found = [correlation(path[x], path[y])[0] for _, path in data.groupby("seed")]
    return f"{min(found):.2f} and {max(found):.2f}"
