"""Figures of portraits: the loss on a plane and along lines, and the Hessian's spectrum, at stages of meta-training."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from metanb.figures.style import STYLE, Figure, colours_and_dashes, finish_figure
from metanb.labels import NAMES
from metanb.landscape.portrait import BEYOND
from metanb.runs.portraits import Portrait

_INK, _PAPER = "#111111", "#ffffff"  # on filled contours, whatever the page
SHOWN = 8  # of the largest eigenvalues
TOPS = (
    ("top", 0.05, "o", "largest eigenvalues"),
    ("gauss_newton_top", 0.012, "x", "largest of the Gauss-Newton part"),
)
CLEAR = 0.08  # how far from what else is drawn a contour's label stays, of a panel's width
LOSSES = {"support_loss": "support loss", "query_loss": "query loss"}


def draw_surfaces(runs: list[Portrait], loss: str, name: str, caption: str) -> Figure:
    """One task's `loss` on the plane of two trajectories: a row a run, a column a stage, one scale of colours.

    The data have a row for each b, a column for each a, both in units of the column `unit`.
    """
    rows, said = [], []
    with matplotlib.rc_context(STYLE):
        n = len(runs[0].values["stages"])
        canvas = Canvas(figsize=(2.75 * n + 0.6, 2.75 * len(runs)), layout="constrained")
        axes = canvas.subplots(len(runs), n, squeeze=False, sharex="row", sharey="row")
        levels = _levels(
            np.array([[stage[loss] for stage in one.values["stages"]] for one in runs])
        )
        norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
        inks = [_INK if norm(level) < 0.6 else _PAPER for level in levels]
        for row, one in zip(axes, runs, strict=True):
            at, kind = np.array(one.values["at"]), one.settings.algorithm
            for axis, stage in zip(row, one.values["stages"], strict=True):
                filled = axis.contourf(
                    at, at, stage[loss], levels, norm=norm, cmap="cividis_r", extend="both"
                )
                filled.set(edgecolor="#555555", linewidth=0.3)
                lines = axis.contour(at, at, stage[loss], levels, colors=_INK)
                spots = _spots(lines.allsegs, stage["paths"], at[0], at[-1])
                axis.clabel(
                    lines, levels, inline=False, fmt="%g", fontsize=7, colors=inks, manual=spots
                )
                lines.set_visible(False)  # the edges of what is filled are there already
                for path, mark in zip(stage["paths"], "os", strict=True):
                    _trajectory(axis, np.array(path), mark)
                axis.set(aspect="equal", title=_when(one, stage["epoch"]))
                axis.grid(False)
                unit = at[-1] / BEYOND[1]
                for b, values in zip(at / unit, stage[loss], strict=True):
                    rows.append(
                        [
                            kind,
                            stage["epoch"],
                            f"{unit:.4g}",
                            f"{b:.4g}",
                            *(f"{value:.3g}" for value in values),
                        ]
                    )
                lengths = (np.hypot(*path[-1]) for path in stage["paths"])
                steps = " and ".join(f"{length:.2g}" for length in lengths)
                said.append(
                    f"{NAMES[kind]}, {_when(one, stage['epoch'])}: {steps} long, {angle_between_paths(stage):.0f}° apart"
                )
            row[0].set_ylabel(f"{NAMES[kind]}\n2nd axis (L2)")
        for axis in axes[-1]:
            axis.set_xlabel("1st axis (L2)")
        bar = canvas.colorbar(
            filled, ax=axes, label=f"{LOSSES[loss]} (nats)", ticks=levels, pad=0.01
        )
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.minorticks_off()
        data = pd.DataFrame(
            rows, columns=["algorithm", "epoch", "unit", "b", *(f"{a / unit:.4g}" for a in at)]
        )
        alt = f"Contour maps of a task's {LOSSES[loss]}, each with two trajectories. {'; '.join(said)}."
        return finish_figure(canvas, name, caption, alt, data)


def angle_between_paths(stage: dict[str, Any]) -> float:
    """Degrees between the ways from theta_s to the two ends, of one stage of a surface."""
    return float(np.degrees(np.arctan2(stage["paths"][1][-1][1], stage["paths"][1][-1][0])))


def draw_interpolations(runs: list[Portrait], name: str, caption: str) -> Figure:
    """Losses along the line from theta_s to theta~_i: a row an algorithm, a column a loss, a line a stage.

    Thin lines are single runs, the thick one is their mean; the band is the mean of the runs'
    quartiles over tasks.
    """
    kinds = list(dict.fromkeys(one.settings.algorithm for one in runs))
    rows = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.4 * len(LOSSES), 2.9 * len(kinds)), layout="constrained")
        axes = canvas.subplots(len(kinds), len(LOSSES), sharex=True, sharey="col", squeeze=False)
        for row, kind in zip(axes, kinds, strict=True):
            chosen = [one for one in runs if one.settings.algorithm == kind]
            alpha, stages = np.array(chosen[0].values["alpha"]), chosen[0].values["stages"]
            for axis, measure in zip(row, LOSSES, strict=True):
                for i, (colour, dash) in enumerate(colours_and_dashes(len(stages))):
                    found = [one.values["stages"][i][measure] for one in chosen]
                    when = _when(chosen[0], stages[i]["epoch"])
                    mean = _each_and_mean(
                        axis, alpha, [one["mean"] for one in found], colour, dash, when
                    )
                    low, high = (
                        np.mean([one[part] for one in found], axis=0) for part in ("low", "high")
                    )
                    axis.fill_between(alpha, low, high, color=colour, alpha=0.15, linewidth=0)
                    rows += [
                        (kind, stages[i]["epoch"], measure, *values)
                        for values in zip(alpha, mean, low, high, strict=True)
                    ]
                axis.set_yscale("log")
                low, high = axis.get_ylim()
                between = (1,) if high > 100 * low else (1, 1.5, 2, 3, 5)
                axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=between))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.minorticks_off()
                for mark in (0, 1):
                    axis.axvline(mark, color="#888888", linewidth=0.8)
                axis.set_title(f"{LOSSES[measure]}, {NAMES[kind]}", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("α: 0 at θ_s, 1 at the adapted solution")
        axes[0, 0].legend(frameon=False, fontsize=8)
        data = pd.DataFrame(
            rows, columns=["algorithm", "epoch", "measure", "alpha", "mean", "low", "high"]
        )
        return finish_figure(canvas, name, caption, _alt_lines(data), data)


def draw_densities(runs: list[Portrait], name: str, caption: str) -> Figure:
    """Smoothed spectra: a row a run, a column a stage, each on its own axis, eigenvalues a unit on a log scale.

    Dots are the largest eigenvalues in order, crosses those of the Gauss-Newton part, each a mean
    over tasks. Their heights have no meaning: two rows, so that neither hides the other. The
    caption is completed by this and by the n.
    """
    rows = []
    with matplotlib.rc_context(STYLE):
        n = len(runs[0].values["stages"])
        canvas = Canvas(figsize=(2.95 * n, 2.7 * len(runs)), layout="constrained")
        axes = canvas.subplots(len(runs), n, squeeze=False, sharey=True)
        for row, one in zip(axes, runs, strict=True):
            (colour, _), (other, _) = colours_and_dashes(2)
            for axis, stage in zip(row, one.values["stages"], strict=True):
                at, density = np.array(stage["density_at"]), np.array(stage["density"])
                axis.fill_between(
                    at, density.clip(1e-3), 1e-4, facecolor=(*colour, 0.3), edgecolor=colour
                )
                for key, height, mark, label in TOPS:
                    axis.plot(
                        stage[key][:SHOWN],
                        [height] * SHOWN,
                        mark,
                        color=other,
                        markersize=4,
                        label=label,
                    )
                axis.axvline(0, color="#888888", linewidth=0.8)
                axis.set(yscale="log", ylim=(0.003, 1e6), title=_when(one, stage["epoch"]))
                kind = one.settings.algorithm
                rows += [(kind, stage["epoch"], x, y) for x, y in zip(at, density, strict=True)]
            row[0].set_ylabel(f"{NAMES[one.settings.algorithm]}\neigenvalues a unit")
        marks = axes[0, 0].get_legend_handles_labels()
        # clear of the peaks
        canvas.legend(*marks, frameon=False, fontsize=8, loc="outside lower center", ncols=2)
        for axis in axes[-1]:
            axis.set_xlabel("eigenvalue of the Hessian")
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "eigenvalue", "density"])
        ends = "; ".join(
            f"{NAMES[one.settings.algorithm]}, {_when(one, stage['epoch'])}: from {np.mean(stage['smallest']):.2g} to"
            f" {np.mean(stage['largest']):.2g}"
            for one in runs
            for stage in one.values["stages"]
        )
        size, tasks = runs[0].values["size"], runs[0].values["n"]
        caption = (
            f"{caption} Density of the {size:,} eigenvalues, mean over {tasks} tasks. Dots: the largest ones in order,"
            " means over tasks; crosses: those of the Gauss-Newton part. They stand in two rows to be told apart: their"
            " height means nothing. Where a cross stands below a dot, the Gauss-Newton part is what is sharp."
        )
        return finish_figure(
            canvas, name, caption, f"Densities of eigenvalues, with a spike at 0. {ends}.", data
        )


def draw_eigenvalue_counts(runs: list[Portrait], name: str, caption: str) -> Figure:
    """How many eigenvalues lie above x, and below -x: a row an algorithm, a line a stage, mean over runs."""
    kinds = list(dict.fromkeys(one.settings.algorithm for one in runs))
    rows = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(8.8, 2.9 * len(kinds)), layout="constrained")
        axes = canvas.subplots(len(kinds), 2, squeeze=False, sharex=True, sharey=True)
        for row, kind in zip(axes, kinds, strict=True):
            chosen = [one for one in runs if one.settings.algorithm == kind]
            at, stages = np.array(chosen[0].values["counted"]), chosen[0].values["stages"]
            for axis, side, label in zip(
                row, ("below", "above"), ("below −x", "above x"), strict=True
            ):
                for i, (colour, dash) in enumerate(colours_and_dashes(len(stages))):
                    each = [one.values["stages"][i][side] for one in chosen]
                    when = _when(chosen[0], stages[i]["epoch"])
                    mean = _each_and_mean(axis, at, each, colour, dash, when)
                    rows += [
                        (kind, stages[i]["epoch"], side, x, y)
                        for x, y in zip(at, mean, strict=True)
                    ]
                axis.set(xscale="log", yscale="log", ylim=(0.5, chosen[0].values["size"]))
                axis.set_title(f"eigenvalues {label}, {NAMES[kind]}", fontsize=9)
                for scale in (axis.xaxis, axis.yaxis):
                    scale.set_major_formatter("{x:,g}")
                axis.minorticks_off()
            row[0].set_ylabel("number of eigenvalues")
        for axis in axes[-1]:
            axis.set_xlabel("x")
        axes[0, 1].legend(frameon=False, fontsize=8)
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "side", "x", "number"])
        near = data[np.isclose(data.x, data.x[(data.x - 0.1).abs().idxmin()])]
        ends = "; ".join(
            f"{NAMES[r.algorithm]}, epoch {r.epoch}: {r.number:.0f} {r.side}"
            for r in near.itertuples()
        )
        return finish_figure(
            canvas,
            name,
            caption,
            f"Falling curves on logarithmic axes. At x = {near.x.iloc[0]:.2g}: {ends}.",
            data,
        )


def table_by_stage(
    runs: list[Portrait], values: Callable[[Portrait, dict[str, Any]], dict[str, float]]
) -> pd.DataFrame:
    """A table of portraits, a row a run and stage: its columns are what `values` makes of a portrait and its stage."""
    drawn = [(one, stage) for one in runs for stage in one.values["stages"]]
    keys = [
        (NAMES[one.settings.algorithm], one.settings.seed, stage["epoch"]) for one, stage in drawn
    ]
    index = pd.MultiIndex.from_tuples(keys, names=["algorithm", "seed", "epoch"])
    return pd.DataFrame([values(one, stage) for one, stage in drawn], index=index)


def describe_portraits(portraits: list[Portrait]) -> str:
    """When and with what portraits were drawn, and their weights trained, as one line of Markdown."""

    def each(*values: Any) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    drawn = [one.provenance for one in portraits]
    weights = [one["weights"] for one in drawn]
    return (
        f"Drawn {each(*(one['drawn'][:10] for one in drawn))} on {each(*(one['device'] for one in drawn))},"
        f" torch {each(*(one['torch'] for one in drawn))}, code {each(*(one['code'] for one in drawn))};"
        f" weights trained by code {each(*(one['code'] for one in weights))}"
        f" on {each(*(one['device'] for one in weights))}."
    )


def _when(one: Portrait, epoch: int) -> str:
    return f"iteration {epoch * one.settings.epoch_iterations:,}" if epoch else "untrained"


def _each_and_mean(
    axis: Any, x: np.ndarray, each: list[Any], colour: Any, dash: Any, label: str
) -> np.ndarray:
    """Thin lines for single runs, a thick one for their mean, which is returned."""
    for line in each:
        axis.plot(x, line, color=colour, linestyle=dash, linewidth=0.6, alpha=0.7)
    mean = np.mean(each, axis=0)
    axis.plot(x, mean, color=colour, linestyle=dash, label=label)
    return mean


def _levels(values: np.ndarray) -> np.ndarray:
    """Round levels over the values, all above 0: the coarsest series that has six."""
    low, high = float(values.min()), float(values.max())
    for series in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]):
        levels = np.outer(10.0 ** np.arange(-5, 5), series).ravel().round(5)
        inside = levels[(low <= levels) & (levels <= high)]
        if len(inside) >= 6:
            return inside
    ticks = matplotlib.ticker.MaxNLocator(8).tick_values(low, high)
    return ticks[ticks > 0]


def _spots(
    segments: list[list[np.ndarray]], paths: list[Any], low: float, high: float
) -> list[np.ndarray]:
    """Where labels of contours go: one on each piece, where it is freest, none on a piece that is free nowhere.

    Free is what is `CLEAR` away from the edges of the square from low to high and from the
    trajectories with their markers, and twice as far from other labels.
    """
    clear, along = CLEAR * (high - low), np.linspace(0, 1, 50)[:, None]
    spots: list[np.ndarray] = []
    taken = [a + along * (b - a) for path in map(np.array, paths) for a, b in pairwise(path)]
    for piece in (piece for level in segments for piece in level if len(piece)):
        room = np.minimum(piece - low, high - piece).min(1)
        for others, share in ((np.concatenate(taken), 1), (np.reshape(spots, (-1, 2)), 2)):
            away = np.linalg.norm(piece[:, None] - others, axis=2).min(1, initial=np.inf)
            room = np.minimum(room, away / share)
        if room.max() >= clear and np.ptp(piece, axis=0).max() >= 2 * clear:
            spots.append(piece[room.argmax()])
    return spots


def _trajectory(axis: Any, path: np.ndarray, mark: str) -> None:
    for colour, width in ((_INK, 2.6), (_PAPER, 1.4)):
        axis.plot(*path.T, color=colour, linewidth=width)
    axis.plot(*path[-1], mark, color=_PAPER, markeredgecolor=_INK, markersize=6)
    axis.plot(*path[0], "X", color=_PAPER, markeredgecolor=_INK, markersize=6)


def _alt_lines(data: pd.DataFrame) -> str:
    at = data[data.alpha.isin([0.0, 1.0, 2.0])]
    ends = (
        f"{NAMES[kind]}, {LOSSES[measure]}, epoch {epoch}: "
        + ", ".join(f"{m:.2g}" for m in group["mean"])
        for (kind, measure, epoch), group in at.groupby(
            ["algorithm", "measure", "epoch"], sort=False
        )
    )
    return "Lines over alpha; values at 0, 1 and 2. " + "; ".join(ends) + "."
