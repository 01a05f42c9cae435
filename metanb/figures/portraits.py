"""Figures of portraits: losses on a plane and along lines, and the Hessian's spectrum, by stage.

A stage is the network after an epoch of meta-training.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd

from metanb.figures.style import (
    STYLE,
    Figure,
    add_legend,
    colours_and_dashes,
    finish_panels,
    make_panels,
    set_title,
)
from metanb.labels import name_of
from metanb.landscape.square import BEYOND

if TYPE_CHECKING:
    from metanb.runs.portraits import Portrait

_INK = "#111111"  # on filled contours, whatever the page
_PAPER = "#ffffff"
SHOWN = 8  # of the largest eigenvalues
TOPS = (
    ("top", 0.05, "o", "largest eigenvalues"),
    ("gauss_newton_top", 0.012, "x", "largest of the Gauss-Newton part"),
)
CLEAR = 0.08  # a contour's label stays this far from all else that is drawn, in panel widths
LOSSES = {"support_loss": "support loss", "query_loss": "query loss"}
_SIDES = {"below": "below −x", "above": "above x"}


def draw_surfaces(runs: list["Portrait"], loss: str, name: str, caption: str) -> Figure:
    """One task's `loss` on the plane of two trajectories.

    Panels are the stages of the first run, then those of the next. A stage has a scale of colours
    of its own: between stages losses differ by orders of magnitude. The data have one row per b
    and one column per a, both in units of the column `unit`. The caption is completed by what
    colours and labels are.

    Args:
        runs: portraits of kind "surface".
        loss: key of LOSSES.
        name: of the data file.
        caption: what to see.
    """
    losses = np.array([[stage[loss] for stage in run.values["stages"]] for run in runs])
    rows: list[list[Any]] = []
    sentences = []
    with matplotlib.rc_context(STYLE):
        drawn = list(itertools.product(runs, range(losses.shape[1])))
        canvas, axes = make_panels(len(drawn))
        for axis, (run, number) in zip(axes, drawn, strict=True):
            coordinates = np.array(run.values["at"])
            stage = run.values["stages"][number]
            _draw_surface(axis, coordinates, stage, loss, _contour_levels(losses[:, number]))
            axis.set(aspect="equal", xlabel="1st axis (L2)", ylabel="2nd axis (L2)")
            set_title(axis, _describe_stage(run, stage))
            axis.grid(False)
            rows += _surface_rows(run, stage, loss)
            sentences.append(_describe_trajectories(run, stage))

        columns = ["algorithm", "epoch", "unit", "b", *_columns_of_surface(runs[-1])]
        caption += (
            f" Labels: {LOSSES[loss]} in nats. Light is low, dark is high; each stage has a scale"
            " of its own."
        )
        alt = (
            f"Contour maps of a task's {LOSSES[loss]}, each with two trajectories. "
            f"{'; '.join(sentences)}."
        )
        return finish_panels(canvas, name, caption, alt, pd.DataFrame(rows, columns=columns))


def _draw_surface(
    axis: Any, coordinates: np.ndarray, stage: dict[str, Any], loss: str, levels: np.ndarray
) -> None:
    """One panel of `draw_surfaces`: filled contours, their labels and both trajectories."""
    x = y = coordinates
    norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
    filled = axis.contourf(x, y, stage[loss], levels, norm=norm, cmap="cividis_r", extend="both")
    filled.set(edgecolor="#555555", linewidth=0.3)

    # labels, light on dark; the lines that they belong to are the edges of what is filled
    lines = axis.contour(x, y, stage[loss], levels, colors=_INK)
    spots = _place_labels(lines.allsegs, stage["paths"], coordinates[0], coordinates[-1])
    inks = [_INK if norm(level) < 0.6 else _PAPER for level in levels]
    axis.clabel(lines, levels, inline=False, fmt="%g", fontsize=8, colors=inks, manual=spots)
    lines.set_visible(False)

    for path, mark in zip(stage["paths"], "os", strict=True):
        _draw_trajectory(axis, np.array(path), mark)


def _unit(run: "Portrait") -> float:
    """The furthest coordinate of a trajectory, in which a surface's data are given."""
    return float(run.values["at"][-1] / BEYOND[1])


def _columns_of_surface(run: "Portrait") -> list[str]:
    return [f"{a / _unit(run):.4g}" for a in run.values["at"]]


def _surface_rows(run: "Portrait", stage: dict[str, Any], loss: str) -> list[list[Any]]:
    """The data of one panel of `draw_surfaces`, one row per b."""
    unit = _unit(run)
    heads = [run.settings.algorithm, stage["epoch"], f"{unit:.4g}"]
    return [
        [*heads, f"{b / unit:.4g}", *(f"{value:.3g}" for value in values)]
        for b, values in zip(run.values["at"], stage[loss], strict=True)
    ]


def _describe_trajectories(run: "Portrait", stage: dict[str, Any]) -> str:
    """The lengths of both trajectories and the angle between them, in words."""
    lengths = " and ".join(f"{np.hypot(*path[-1]):.2g}" for path in stage["paths"])
    return f"{_describe_stage(run, stage)}: {lengths} long, {angle_between_paths(stage):.0f}° apart"


def angle_between_paths(stage: dict[str, Any]) -> float:
    """The angle between the lines from theta_s to the two ends, degrees.

    `stage` is a stage of a surface.
    """
    end = stage["paths"][1][-1]  # of the second path; the first path ends on the first axis
    return float(np.degrees(np.arctan2(end[1], end[0])))


def draw_interpolations(runs: list["Portrait"], name: str, caption: str) -> Figure:
    """Losses along the line from theta_s to theta~_i.

    Panels are a loss under each algorithm, then the next loss; a colour is a stage. Thin lines are
    single runs, the thick one is their mean; the band is the mean of the runs' quartiles over
    tasks.

    Args:
        runs: portraits of kind "interpolation".
        name: of the data file.
        caption: what to see.
    """
    groups = _group_by_algorithm(runs)
    rows: list[tuple[Any, ...]] = []
    with matplotlib.rc_context(STYLE):
        drawn = list(itertools.product(LOSSES, groups.items()))
        canvas, axes = make_panels(len(drawn))
        for axis, (loss, (algorithm, group)) in zip(axes, drawn, strict=True):
            rows += _draw_loss_lines(axis, group, loss)
            axis.set(xlabel="α: 0 at θ_s, 1 at the adapted solution", ylabel="loss (nats)")
            set_title(axis, f"{LOSSES[loss]}, {name_of(algorithm)}")
        for start in range(0, len(axes), len(groups)):
            _format_loss_axes(axes[start : start + len(groups)])
        add_legend(canvas, axes[0])
        columns = ["algorithm", "epoch", "measure", "alpha", "mean", "low", "high"]
        data = pd.DataFrame(rows, columns=columns)
        return finish_panels(canvas, name, caption, _describe_lines(data), data)


def _draw_loss_lines(axis: Any, group: list["Portrait"], loss: str) -> list[tuple[Any, ...]]:
    """One panel of `draw_interpolations`: lines and a band per stage; returns their data."""
    first = group[0]
    alpha = np.array(first.values["alpha"])
    stages = first.values["stages"]
    rows: list[tuple[Any, ...]] = []
    for i, (colour, dash) in enumerate(colours_and_dashes(len(stages))):
        epoch = stages[i]["epoch"]
        losses = [run.values["stages"][i][loss] for run in group]
        means = [values["mean"] for values in losses]
        label = _describe_epoch(first, epoch)
        mean = _draw_runs_and_mean(axis, alpha, means, colour, dash, label)
        low = np.mean([values["low"] for values in losses], axis=0)
        high = np.mean([values["high"] for values in losses], axis=0)
        axis.fill_between(alpha, low, high, color=colour, alpha=0.15, linewidth=0)
        points = zip(alpha, mean, low, high, strict=True)
        rows += [(first.settings.algorithm, epoch, loss, *point) for point in points]
    return rows


def _format_loss_axes(axes: Sequence[Any]) -> None:
    """One logarithmic scale with plain labels; lines at theta_s and at the adapted solution."""
    for axis in axes:
        axis.set_yscale("log")
    low, high = np.array([axis.get_ylim() for axis in axes]).T
    bottom, top = low.min(), high.max()
    # labels between the powers of ten where there are few of these
    between = (1,) if top > 100 * bottom else (1, 1.5, 2, 3, 5)
    for axis in axes:
        axis.set_ylim(bottom, top)
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=between))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        for alpha in (0, 1):
            axis.axvline(alpha, color="#888888", linewidth=0.8)


def draw_densities(runs: list["Portrait"], name: str, caption: str) -> Figure:
    """Smoothed spectra: eigenvalues per unit, on a logarithmic scale.

    Panels are the stages of the first run, then those of the next; each has its own axis of
    eigenvalues. Dots are the largest eigenvalues in order, crosses those of the Gauss-Newton part,
    each a mean over tasks. Their heights have no meaning: they stand in two rows, so that neither
    hides the other. The caption is completed by this and by the n.

    Args:
        runs: portraits of kind "spectrum".
        name: of the data file.
        caption: what to see.
    """
    drawn = [(run, stage) for run in runs for stage in run.values["stages"]]
    with matplotlib.rc_context(STYLE):
        canvas, axes = make_panels(len(drawn))
        for axis, (run, stage) in zip(axes, drawn, strict=True):
            _draw_density(axis, stage)
            axis.set(yscale="log", ylim=(0.003, 1e6))
            axis.set(xlabel="eigenvalue of the Hessian", ylabel="eigenvalues per unit")
            set_title(axis, _describe_stage(run, stage))
        add_legend(canvas, axes[0])

        rows = [
            (run.settings.algorithm, stage["epoch"], x, y)
            for run, stage in drawn
            for x, y in zip(stage["density_at"], stage["density"], strict=True)
        ]
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "eigenvalue", "density"])
        ranges = "; ".join(_describe_range(run, stage) for run, stage in drawn)
        alt = f"Densities of eigenvalues, with a spike at 0. {ranges}."
        caption += _describe_densities(runs[0])
        return finish_panels(canvas, name, caption, alt, data)


def _draw_density(axis: Any, stage: dict[str, Any]) -> None:
    """One panel of `draw_densities`: the density, and the largest eigenvalues in two rows."""
    (area_colour, _), (mark_colour, _) = colours_and_dashes(2)
    eigenvalues = np.array(stage["density_at"])
    density = np.array(stage["density"]).clip(1e-3)
    face = (*area_colour, 0.3)
    axis.fill_between(eigenvalues, density, 1e-4, facecolor=face, edgecolor=area_colour)
    for key, height, mark, label in TOPS:
        tops = stage[key][:SHOWN]  # a task of few images has fewer of the Gauss-Newton part
        heights = [height] * len(tops)
        axis.plot(tops, heights, mark, color=mark_colour, markersize=4, label=label)
    axis.axvline(0, color="#888888", linewidth=0.8)


def _describe_range(run: "Portrait", stage: dict[str, Any]) -> str:
    """The smallest and the largest eigenvalue, means over tasks, in words."""
    smallest, largest = np.mean(stage["smallest"]), np.mean(stage["largest"])
    return f"{_describe_stage(run, stage)}: from {smallest:.2g} to {largest:.2g}"


def _describe_densities(run: "Portrait") -> str:
    """The end of the caption of `draw_densities`."""
    return (
        f" Density of the {run.values['size']:,} eigenvalues, mean over {run.values['n']} tasks. "
        "Dots: the largest eigenvalues, means over tasks; crosses: those of the Gauss-Newton part. "
        "Two rows keep them apart; their heights mean nothing. A cross below a dot: the "
        "Gauss-Newton part accounts for that eigenvalue."
    )


def draw_eigenvalue_counts(runs: list["Portrait"], name: str, caption: str) -> Figure:
    """The number of eigenvalues below -x and above x, mean over runs.

    Panels are a side under each algorithm, then the next side; a line is a stage.

    Args:
        runs: portraits of kind "spectrum".
        name: of the data file.
        caption: what to see.
    """
    groups = _group_by_algorithm(runs)
    rows: list[tuple[Any, ...]] = []
    with matplotlib.rc_context(STYLE):
        drawn = list(itertools.product(_SIDES, groups.items()))
        canvas, axes = make_panels(len(drawn))
        for axis, (side, (algorithm, group)) in zip(axes, drawn, strict=True):
            rows += _draw_counts(axis, group, side)
            axis.set(xlabel="x", ylabel="number of eigenvalues")
            for scale in (axis.xaxis, axis.yaxis):
                scale.set_major_formatter("{x:,g}")
            axis.minorticks_off()
            set_title(axis, f"eigenvalues {_SIDES[side]}, {name_of(algorithm)}")
        add_legend(canvas, axes[0])
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "side", "x", "number"])
        return finish_panels(canvas, name, caption, _describe_counts_near(data, 0.1), data)


def _draw_counts(axis: Any, group: list["Portrait"], side: str) -> list[tuple[Any, ...]]:
    """One panel of `draw_eigenvalue_counts`: lines per stage; returns their data."""
    first = group[0]
    bounds = np.array(first.values["counted"])
    stages = first.values["stages"]
    rows: list[tuple[Any, ...]] = []
    for i, (colour, dash) in enumerate(colours_and_dashes(len(stages))):
        epoch = stages[i]["epoch"]
        counts = [run.values["stages"][i][side] for run in group]
        label = _describe_epoch(first, epoch)
        mean = _draw_runs_and_mean(axis, bounds, counts, colour, dash, label)
        points = zip(bounds, mean, strict=True)
        rows += [(first.settings.algorithm, epoch, side, *point) for point in points]
    axis.set(xscale="log", yscale="log", ylim=(0.5, first.values["size"]))
    return rows


def _describe_counts_near(data: pd.DataFrame, x: float) -> str:
    """The alt text of `draw_eigenvalue_counts`: counts at the drawn x that is nearest to `x`."""
    nearest = data.x[(data.x - x).abs().idxmin()]
    near = data[np.isclose(data.x, nearest)]
    counts = "; ".join(
        f"{name_of(row.algorithm)}, epoch {row.epoch}: {row.number:.0f} {row.side}"
        for row in near.itertuples()
    )
    return f"Falling curves on logarithmic axes. At x = {near.x.iloc[0]:.2g}: {counts}."


def table_by_stage(
    runs: list["Portrait"], values: Callable[["Portrait", dict[str, Any]], dict[str, float]]
) -> pd.DataFrame:
    """A table of portraits, one row per run and stage.

    `values` gives the columns' values for a portrait and one of its stages.
    """
    stages = [(run, stage) for run in runs for stage in run.values["stages"]]
    index = pd.MultiIndex.from_tuples(
        [
            (name_of(run.settings.algorithm), run.settings.seed, stage["epoch"])
            for run, stage in stages
        ],
        names=["algorithm", "seed", "epoch"],
    )
    return pd.DataFrame([values(run, stage) for run, stage in stages], index=index)


def means_by_stage(
    runs: list["Portrait"], values: Callable[["Portrait", dict[str, Any]], dict[str, float]]
) -> pd.DataFrame:
    """The means over runs of `table_by_stage`, one row per algorithm and stage."""
    table = table_by_stage(runs, values)
    return table.groupby(["algorithm", "epoch"], sort=False).mean()


def describe_change(means: pd.DataFrame, column: str, form: str) -> str:
    """How a column of `means_by_stage` changes from the first stage to the last, in words.

    Args:
        means: one row per algorithm and stage.
        column: the column's name.
        form: of the numbers, as in a format string.

    Example:
        >>> index = pd.MultiIndex.from_product([["MAML"], [0, 6]], names=["algorithm", "epoch"])
        >>> describe_change(pd.DataFrame({"loss": [2.0, 0.5]}, index), "loss", ".1f")
        'falls from 2.0 to 0.5 under MAML'
    """
    parts: list[str] = []
    verb = ""
    for algorithm, values in means[column].groupby("algorithm", sort=False):
        first, last = (format(values.iloc[place], form) for place in (0, -1))
        change = "falls" if values.iloc[-1] < values.iloc[0] else "rises"
        if first == last:
            change, span = "stays", f"at {last}"
        else:
            span = f"from {first} to {last}"
        # a verb that repeats is said once
        parts.append(f"{'' if change == verb else f'{change} '}{span} under {algorithm}")
        verb = change
    return " and ".join(parts)


def summarise_line(run: "Portrait", stage: dict[str, Any]) -> dict[str, float]:
    """Numbers of one stage of an interpolation, for `table_by_stage`; losses in nats.

    Returns:
        `best alpha`, where the mean query loss is lowest, and the loss there, `lowest query loss`;
        both losses at the adapted solution, alpha = 1, and at alpha = 2; `distance`, the mean of
        the distances from theta_s to the adapted solutions (L2).
    """
    alpha = np.array(run.values["alpha"])
    query = np.array(stage["query_loss"]["mean"])
    summary = {"best alpha": float(alpha[query.argmin()]), "lowest query loss": float(query.min())}
    for loss in ("query", "support"):
        means = np.array(stage[f"{loss}_loss"]["mean"])
        summary |= {f"{loss} at {at}": float(means[np.isclose(alpha, at)][0]) for at in (1, 2)}
    return summary | {"distance": stage["distance"]}


def summarise_spectrum(run: "Portrait", stage: dict[str, Any]) -> dict[str, float]:
    """Numbers of one stage of a spectrum, means over tasks, for `table_by_stage`.

    Returns:
        `largest` and `most negative` eigenvalue, `trace` and number of `outliers`; over the largest
        eigenvalue: the size of the most negative one, `negative / largest`, and the largest of the
        Gauss-Newton part, `Gauss-Newton / largest`; and `share`, that of the largest eigenvalue in
        the sum of all squared eigenvalues.
    """
    largest, smallest, trace, outliers, gauss_newton = (
        float(np.mean(stage[name]))
        for name in ("largest", "smallest", "trace", "outliers", "gauss_newton")
    )
    shares = np.square(stage["largest"]) / np.array(stage["squares"])
    return {
        "largest": largest,
        "most negative": smallest,
        "trace": trace,
        "outliers": outliers,
        "negative / largest": -smallest / largest,
        "Gauss-Newton / largest": gauss_newton / largest,
        "share": float(shares.mean()),
    }


def describe_portraits(portraits: list["Portrait"]) -> str:
    """When and with what portraits were drawn and their weights trained, in a line of Markdown."""

    def list_values(origins: list[dict[str, Any]], key: str) -> str:
        return ", ".join(sorted({str(origin[key]) for origin in origins}))

    drawn = [portrait.provenance for portrait in portraits]
    dates = ", ".join(sorted({str(origin["drawn"][:10]) for origin in drawn}))
    weights = [origin["weights"] for origin in drawn]
    return (
        f"Drawn {dates} on {list_values(drawn, 'device')}, torch {list_values(drawn, 'torch')}, "
        f"code {list_values(drawn, 'code')}; weights trained by code "
        f"{list_values(weights, 'code')} on {list_values(weights, 'device')}."
    )


def _describe_epoch(run: "Portrait", epoch: int) -> str:
    return f"iteration {epoch * run.settings.epoch_iterations:,}" if epoch else "untrained"


def _describe_stage(run: "Portrait", stage: dict[str, Any]) -> str:
    return f"{name_of(run.settings.algorithm)}, {_describe_epoch(run, stage['epoch'])}"


def _group_by_algorithm(runs: list["Portrait"]) -> dict[str, list["Portrait"]]:
    groups: dict[str, list[Portrait]] = {}
    for run in runs:
        groups.setdefault(run.settings.algorithm, []).append(run)
    return groups


def _draw_runs_and_mean(
    axis: Any, x: np.ndarray, runs: Sequence[Any], colour: Any, dash: Any, label: str
) -> np.ndarray:
    """Thin lines for single runs, a thick one for their mean; returns the mean."""
    for values in runs:
        axis.plot(x, values, color=colour, linestyle=dash, linewidth=0.6, alpha=0.7)
    mean = np.mean(runs, axis=0)
    axis.plot(x, mean, color=colour, linestyle=dash, label=label)
    return mean


def _contour_levels(values: np.ndarray) -> np.ndarray:
    """Round levels over the values, all above 0: the coarsest series that has six of them."""
    low, high = float(values.min()), float(values.max())
    for series in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]):
        levels = np.outer(10.0 ** np.arange(-5, 5), series).ravel().round(5)
        inside = levels[(low <= levels) & (levels <= high)]
        if len(inside) >= 6:
            return inside
    ticks = matplotlib.ticker.MaxNLocator(8).tick_values(low, high)
    return ticks[ticks > 0]


def _place_labels(
    segments: list[list[np.ndarray]], paths: list[Any], low: float, high: float
) -> list[np.ndarray]:
    """Where labels of contours go: one per piece, at its freest point.

    A point is free that is `CLEAR` away from the edges of the square from low to high and from the
    trajectories with their markers, and twice as far from other labels. A piece without a free
    point gets no label.
    """
    clear = CLEAR * (high - low)

    # points all along the trajectories
    along = np.linspace(0, 1, 50)[:, None]
    lines = [(start, end) for path in paths for start, end in itertools.pairwise(np.array(path))]
    trajectories = np.concatenate([start + along * (end - start) for start, end in lines])

    spots: list[np.ndarray] = []
    for piece in (piece for level in segments for piece in level if len(piece)):
        # the room around each point: to the edges, to the trajectories, to labels (half of it)
        to_edges = np.minimum(piece - low, high - piece).min(1)
        to_paths = _least_distances(piece, trajectories)
        to_labels = _least_distances(piece, np.reshape(spots, (-1, 2)))
        room = np.minimum(np.minimum(to_edges, to_paths), to_labels / 2)
        # a small piece would be hidden by its label
        if room.max() >= clear and np.ptp(piece, axis=0).max() >= 2 * clear:
            spots.append(piece[room.argmax()])
    return spots


def _least_distances(points: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """The distance from each point to the nearest obstacle; infinite without obstacles."""
    return np.linalg.norm(points[:, None] - obstacles, axis=2).min(1, initial=np.inf)


def _draw_trajectory(axis: Any, path: np.ndarray, mark: str) -> None:
    """A trajectory, light with a dark edge: a cross at its start, a mark at its end."""
    for colour, width in ((_INK, 2.6), (_PAPER, 1.4)):
        axis.plot(*path.T, color=colour, linewidth=width)
    axis.plot(*path[-1], mark, color=_PAPER, markeredgecolor=_INK, markersize=6)
    axis.plot(*path[0], "X", color=_PAPER, markeredgecolor=_INK, markersize=6)


def _describe_lines(data: pd.DataFrame) -> str:
    """The alt text of `draw_interpolations`: means at alpha 0, 1 and 2."""
    ends = data[data.alpha.isin([0.0, 1.0, 2.0])]
    groups = ends.groupby(["algorithm", "measure", "epoch"], sort=False)
    lines = "; ".join(
        f"{name_of(algorithm)}, {LOSSES[loss]}, epoch {epoch}: "
        + ", ".join(f"{mean:.2g}" for mean in group["mean"])
        for (algorithm, loss, epoch), group in groups
    )
    return f"Lines over alpha; values at 0, 1 and 2. {lines}."
