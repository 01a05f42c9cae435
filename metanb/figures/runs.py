"""Figures and tables from records.

Each figure has alt text that says what it shows, and holds the data that it draws.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import LogFormatter

from metanb.claims.cells import late_values
from metanb.claims.run_stats import correlation
from metanb.figures.style import (
    STYLE,
    Figure,
    add_legend,
    colours_and_dashes,
    finish_panels,
    make_panels,
    set_title,
)
from metanb.labels import MEASURES, describe_measure, name_of
from metanb.runs.records import Record

MARKERS = "osD^vP*X"  # of runs
NO_COMMON = "no epoch that all runs have"
FINAL = "final_accuracy"  # begins the names of measures on further tasks, after the last epoch


def algorithm_label(run: Record) -> str:
    """The name of a run's algorithm, which groups runs unless a figure is given another label."""
    return name_of(run.settings.algorithm)


def runs_table(
    runs: Sequence[Record], label: Callable[[Record], str] = algorithm_label
) -> pd.DataFrame:
    """A table of the runs, one row per label.

    Columns: number of runs, iterations, late query accuracy (mean and range over runs), and CPU
    minutes (mean).
    """
    rows = pd.DataFrame(
        {
            "runs of": label(run),
            "accuracy": late_values([run], "query_accuracy")[0],
            "iterations": run.iterations,
            "minutes": run.provenance["cpu_seconds"] / 60,
        }
        for run in runs
    )
    groups = rows.groupby("runs of", sort=False)
    accuracy_range = groups.accuracy.agg(lambda values: f"{values.min():.3f} to {values.max():.3f}")
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "iterations": groups.iterations.first(),
            "late query accuracy": groups.accuracy.mean().round(3),
            "least to greatest": accuracy_range,
            "CPU minutes per run": groups.minutes.mean().round(1),
        }
    )


def describe_origin(runs: Sequence[Record]) -> str:
    """Where the runs come from, in a sentence: all dates, devices, versions and commits."""
    facts = [run.provenance | {"date": run.provenance["finished"][:10]} for run in runs]

    def list_values(key: str) -> str:
        # A run that was resumed lists several values, with commas between them; a processor's name
        # may have commas of its own, in parentheses.
        comma = r", (?![^()]*\))"
        values = {value for fact in facts for value in re.split(comma, str(fact[key]))}
        return ", ".join(sorted(values))

    return (
        f"Recorded {list_values('date')} on {list_values('device')}, "
        f"torch {list_values('torch')}, code {list_values('code')}."
    )


def long_table(
    runs: Sequence[Record],
    measures: Sequence[str],
    label: Callable[[Record], str] = algorithm_label,
    partly: bool = False,
) -> pd.DataFrame:
    """The runs' measures as one long table, one row per run, measure and epoch.

    Columns: epoch, iteration, mean, sem, n, run (its label), seed, measure, and two that tell apart
    runs of one label and seed: id, that of the settings, and number, the place among these runs.

    Arguments and errors are those of `curves`.
    """
    if not runs or not measures:
        raise ValueError(f"no {'measure' if runs else 'run'} is given: give at least one")
    twice = [measure for measure in dict.fromkeys(measures) if list(measures).count(measure) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} is given more than once: give each measure once")
    left_out = _find_lacking(runs, measures, label) if partly else set()
    return pd.concat(
        [
            run.curve(measure)
            .reset_index()[["epoch", "iteration", "mean", "sem", "n"]]
            .assign(
                run=label(run),
                seed=run.settings.seed,
                measure=measure,
                id=run.settings.id,
                number=number,
            )
            for number, run in enumerate(runs)
            for measure in measures
            if (label(run), measure) not in left_out
        ]
    )


def _find_lacking(
    runs: Sequence[Record], measures: Sequence[str], label: Callable[[Record], str]
) -> set[tuple[str, str]]:
    """Which label is left out of which measure's panel: pairs whose measure a run does not have.

    A measure that no label has is not among them: its error names it.
    """
    lacking = {(label(run), m) for run in runs for m in measures if not run.has(m)}
    labels = {label(run) for run in runs}
    somewhere = {m for m in measures if any((group, m) not in lacking for group in labels)}
    return {(group, m) for group, m in lacking if m in somewhere}


def _differ_by_seed(data: pd.DataFrame) -> bool:
    """Whether no two runs of a long table have a label and a seed in common."""
    return bool((data.groupby(["run", "seed"]).number.nunique() == 1).all())


def _hand_out(data: pd.DataFrame) -> pd.DataFrame:
    """What a figure hands out of its table: with ids, where label and seed do not name a run."""
    return data.drop(columns=["id", "number"] if _differ_by_seed(data) else ["number"])


class _PlainLabels(LogFormatter):
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
    partly: bool = False,
) -> Figure:
    """Measures over meta-training, one panel each.

    Thin lines are runs, a thick line is their mean, a band is their range. Open circles are the
    untrained network, epoch 0. Means end where the first run does. The caption is completed by what
    n and the band are, the alt text by first and last values.

    Args:
        runs: records; runs of one label are drawn in one colour.
        measures: keys of `metanb.labels.MEASURES`.
        name: of the data file.
        caption: what to see.
        log: the measures drawn on a logarithmic axis.
        label: what groups the runs.
        known: by measure, a published value and its source, drawn as a dotted line.
        partly: whether a label is left out of the panel of a measure that not all its runs have; if
            not, that is an error.

    Raises:
        ValueError: no run or no measure is given, or a measure is given more than once.
        metanb.runs.records.RecordError: a run does not have a measure; with `partly`, no label has.

    Example:
        >>> from metanb import preset
        >>> from metanb.runs.records import find_record
        >>> runs = [find_record(preset("quick", "omniglot", seed=seed)) for seed in range(5)]
        >>> figure = curves(runs, ["query_accuracy"], "accuracy", "See it rise.")
        >>> figure.alt.split(". ")[1]
        'query accuracy, MAML: from 0.59 after the first epoch to 0.822.'
    """
    data = long_table(runs, measures, label, partly)
    sentences: list[str] = []
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(measures))
        for axis, measure in zip(axes, measures, strict=False):
            sentences += _draw_groups(axis, data, measure)
            axis.set(xlabel="meta-training iteration", yscale="log" if measure in log else "linear")
            set_title(axis, describe_measure(measure).label)
            if measure in known:
                value, source = known[measure]
                axis.axhline(value, color="0.5", linestyle=":", linewidth=1.5, label=source)
                sentences.append(f"{describe_measure(measure).label}, {source}: {value:g}")
            # an axis of less than a power of ten gets more labels than its powers
            if measure in log:
                axis.yaxis.set_major_formatter(_PlainLabels())
                axis.yaxis.set_minor_formatter(_PlainLabels(minor_thresholds=(2, 0.5)))
        add_legend(canvas, *axes)
        alt = f"Line charts over meta-training. {'; '.join(sentences)}."
        caption += _describe_curves(runs, measures, data) + (" Dotted: published." if known else "")
        return finish_panels(canvas, name, caption, alt, _hand_out(data))


def _draw_groups(axis: Any, data: pd.DataFrame, measure: str) -> list[str]:
    """One panel of `curves`: each group's runs, mean, range and untrained networks.

    Returns a sentence per group.
    """
    groups = list(dict.fromkeys(data.run))
    sentences = []
    for group, (colour, dash) in zip(groups, colours_and_dashes(len(groups)), strict=True):
        selected = data[(data.measure == measure) & (data.run == group)]
        if selected.empty:
            continue
        table = _pivot_runs(selected)
        untrained = table.loc[table.index == 0]
        trained = table.loc[table.index > 0]

        # thin lines, one per run, through the epochs that it has
        for _, column in trained.items():
            values = column.dropna()
            axis.plot(values.index, values, color=colour, linewidth=0.6, alpha=0.5, linestyle=dash)

        # mean and range of all runs: a mean over fewer would jump where one ends
        common = trained.dropna()
        _draw_mean_and_range(axis, common, colour, dash, group)

        # the untrained networks, as circles
        axis.plot(
            np.zeros(untrained.size),
            untrained.to_numpy().ravel(),
            "o",
            color=colour,
            fillstyle="none",
            markersize=5,
        )
        title = describe_measure(measure).label
        if common.empty:
            sentences.append(f"{title}, {group}: {NO_COMMON}")
            continue
        first, last = (common.iloc[place].mean() for place in (0, -1))
        begins = {column.first_valid_index() for _, column in trained.items()}
        start = common.index[0]
        when = "after the first epoch" if begins == {start} else f"at iteration {start:,}"
        sentences.append(f"{title}, {group}: from {first:.3g} {when} to {last:.3g}")
    return sentences


def _pivot_runs(data: pd.DataFrame) -> pd.DataFrame:
    """The means of one measure of one group: a row per iteration, a column per run, by seed."""
    return data.pivot(index="iteration", columns=["seed", "number"], values="mean").sort_index(
        axis="columns"
    )


def _draw_mean_and_range(
    axis: Any, table: pd.DataFrame, colour: Any, dash: Any, label: str
) -> None:
    """A thick line for the mean over the columns of a table, a band from least to greatest.

    A single epoch is a dot.
    """
    iterations = table.index
    axis.plot(
        iterations,
        table.mean(axis=1),
        color=colour,
        linewidth=2,
        linestyle=dash,
        label=label,
        marker="o" if len(table) == 1 else None,
    )
    low, high = table.min(axis=1), table.max(axis=1)
    axis.fill_between(iterations, low, high, color=colour, alpha=0.15, linewidth=0)


def _describe_curves(runs: Sequence[Record], measures: Sequence[str], data: pd.DataFrame) -> str:
    """The end of the caption of `curves`: what lines, bands and circles are."""
    words = (
        f" Thick: mean of {_describe_counts(data)}; thin: each run; band: least to greatest run."
    )
    over_iterations = [measure for measure in measures if _is_over_iterations(runs, measure)]
    if over_iterations:
        names = " and ".join(describe_measure(measure).label for measure in over_iterations)
        words += f" The {names}: mean over the iterations of each epoch."
    on_further_tasks = [measure for measure in measures if measure.startswith(FINAL)]
    if on_further_tasks:
        names = " and ".join(on_further_tasks)
        words += f" The {names}: mean over further meta-test tasks, at the run's end."
    if len(over_iterations) + len(on_further_tasks) < len(measures):
        words += (
            " What is measured on tasks: mean over the same "
            f"{_describe_test_tasks(runs)} meta-test tasks. Circles: the untrained network."
        )
    return words


def _is_over_iterations(runs: Sequence[Record], measure: str) -> bool:
    """Whether a measure is taken over the iterations of an epoch, not over tasks.

    One that is not registered here, such as a value that an algorithm of one's own adds, is so if
    its n says it and the untrained networks have none.
    """
    if measure in MEASURES:
        return MEASURES[measure].over == "iterations"
    curves_of_runs = [(run, run.curve(measure)) for run in runs if run.has(measure)]
    return all(
        0 not in rows.index and (rows.n == run.settings.epoch_iterations).all()
        for run, rows in curves_of_runs
    )


def scatter(
    runs: Sequence[Record],
    x: str,
    y: str,
    name: str,
    caption: str,
    label: Callable[[Record], str] = algorithm_label,
) -> Figure:
    """One measure against another, one panel per label.

    A dot is an epoch; dots are joined in order of time, and their shape is that of a run. Colours
    are those of `curves`: one per label.

    Args:
        runs: records.
        x: key of `metanb.labels.MEASURES`.
        y: key of `metanb.labels.MEASURES`.
        name: of the data file.
        caption: what to see.
        label: what groups the runs.
    """
    data = long_table(runs, (x, y), label)
    x_label, y_label = (describe_measure(measure).label for measure in (x, y))
    of_run = "run (seed)" if _differ_by_seed(data) else "run"
    data = data[data.epoch > 0].pivot(
        index=["run", "seed", "id", "number", "epoch"], columns="measure", values="mean"
    )
    data = data.reset_index()
    groups = list(dict.fromkeys(label(run) for run in runs))
    sentences = []
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(groups))
        styles = colours_and_dashes(len(groups))
        for axis, group, (colour, _) in zip(axes, groups, styles, strict=True):
            selected = data[data.run == group]
            _draw_paths(axis, selected, x, y, colour)
            axis.set(xlabel=x_label, ylabel=y_label)
            set_title(axis, group)
            sentences.append(f"{group}: r between {_describe_correlations(selected, x, y)}")
        caption += (
            f" One line and one shape of dots per {of_run}, one dot per epoch, larger dots later; "
            "epoch 0 is left out."
        )
        alt = f"{y_label} against {x_label}. {'; '.join(sentences)}."
        return finish_panels(canvas, name, caption, alt, _hand_out(data))


def _draw_paths(axis: Any, data: pd.DataFrame, x: str, y: str, colour: Any) -> None:
    """One panel of `scatter`: a thin line and growing dots of one shape per run."""
    paths = data.groupby(["seed", "number"])
    for (_, path), marker in zip(paths, itertools.cycle(MARKERS), strict=False):
        axis.plot(path[x], path[y], "-", color=colour, linewidth=0.7, alpha=0.6)
        sizes = 4 + 36 * path.epoch / path.epoch.max()
        axis.scatter(path[x], path[y], s=sizes, color=colour, marker=marker)


def shares(
    runs: Sequence[Record],
    whole: str,
    parts: Sequence[str],
    name: str,
    caption: str,
    label: Callable[[Record], str] = algorithm_label,
) -> Figure:
    """A measure and its parts over meta-training, one panel per label.

    Lines are means over runs, bands go from the least run to the greatest. Both end where the first
    run does.

    Args:
        runs: records.
        whole: key of `metanb.labels.MEASURES`.
        parts: keys of `metanb.labels.MEASURES`.
        name: of the data file.
        caption: what to see.
        label: what groups the runs.
    """
    measures = (whole, *parts)
    data = long_table(runs, measures, label)
    data = data[data.epoch > 0]
    groups = list(dict.fromkeys(data.run))
    styles = colours_and_dashes(len(measures))
    sentences = []
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(groups))
        for axis, group in zip(axes, groups, strict=False):
            for measure, (colour, dash) in zip(measures, styles, strict=True):
                selected = data[(data.run == group) & (data.measure == measure)]
                title = describe_measure(measure).label
                # a mean over fewer runs would jump where one ends
                common = _pivot_runs(selected).dropna()
                _draw_mean_and_range(axis, common, colour, dash, title)
                last = f"at last {common.iloc[-1].mean():.3g}" if len(common) else NO_COMMON
                sentences.append(f"{group}, {title}: {last}")
            axis.set(xlabel="meta-training iteration")
            set_title(axis, group)
        add_legend(canvas, axes[0])
        caption += (
            f" Lines: means of {_describe_counts(data)}, each over the same "
            f"{_describe_test_tasks(runs)} meta-test tasks; bands: least to greatest."
        )
        alt = f"Line charts over meta-training. {'; '.join(sentences)}."
        return finish_panels(canvas, name, caption, alt, _hand_out(data))


def _describe_test_tasks(runs: Sequence[Record]) -> str:
    """The number of meta-test tasks; all numbers if runs differ."""
    return " or ".join(str(n) for n in sorted({run.settings.test_tasks for run in runs}))


def _describe_counts(data: pd.DataFrame) -> str:
    """The number of runs behind each line; a single number if it is the same for all lines.

    Where a line's runs differ by their seeds, the words say so.
    """
    counts = data.groupby("run", sort=False).number.nunique()
    seeds = " (seeds)" if _differ_by_seed(data) else ""
    if counts.nunique() == 1:
        return f"{counts.iloc[0]} run{'s' if counts.iloc[0] > 1 else ''}{seeds}"
    return ", ".join(f"{n} ({group})" for group, n in counts.items()) + f" runs{seeds}"


def _describe_correlations(data: pd.DataFrame, x: str, y: str) -> str:
    """The least and the greatest correlation of a run, over the epochs that have both."""
    paths = (path.dropna(subset=[x, y]) for _, path in data.groupby("number"))
    values = [correlation(path[x], path[y])[0] for path in paths if len(path) > 1]
    if not values:
        return "no two epochs"
    return f"{min(values):.2f} and {max(values):.2f}"
