"""Figures of portraits: the loss on a plane and along lines, and the Hessian's spectrum, at stages of meta-training."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import ScalarFormatter

from metanb.pictures import STYLE, Figure, finish, looks
from metanb.portraits import Portrait
from metanb.settings import NAMES

LEVELS = np.array([1, 2, 5])[None] * 10.0 ** np.arange(-4, 4)[:, None]  # of losses, nats
LOSSES = {"support_loss": "support loss", "query_loss": "query loss"}


def surfaces(one: Portrait, name: str, caption: str) -> Figure:
    """Support and query loss of one task on the plane of two trajectories: a row a loss, a column a stage."""
    at, stages = np.array(one.values["at"]), one.values["stages"]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(2.9 * len(stages), 5.4), layout="constrained")
        axes = canvas.subplots(2, len(stages), sharex=True, sharey=True, squeeze=False)
        for row, (measure, label) in zip(axes, LOSSES.items(), strict=True):
            values = np.array([stage[measure] for stage in stages])
            levels = _levels(values)
            for axis, stage, value in zip(row, stages, values, strict=True):
                norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
                filled = axis.contourf(at, at, value, levels, norm=norm, cmap="cividis_r", extend="both")
                lines = axis.contour(at, at, value, levels, colors="#333333", linewidths=0.4)
                axis.clabel(lines, levels[::2], fmt="%g", fontsize=6, colors="#111111")
                for path, mark in zip(stage["paths"], "os", strict=True):
                    _trajectory(axis, np.array(path), mark)
                axis.set_aspect("equal")
                axis.grid(False)
            row[0].set_ylabel("distance along the 2nd axis")
            canvas.colorbar(filled, ax=row, label=f"{label} (nats)", format=ScalarFormatter(), ticks=levels, pad=0.01)
        for axis, stage in zip(axes[0], stages, strict=True):
            axis.set_title(_when(one, stage["epoch"]))
        for axis in axes[-1]:
            axis.set_xlabel("distance along the 1st axis")
        rows = [
            (stage["epoch"], a, b, stage["support_loss"][j][i], stage["query_loss"][j][i])
            for stage in stages
            for j, b in enumerate(at)
            for i, a in enumerate(at)
        ]
        data = pd.DataFrame(rows, columns=["epoch", "a", "b", *LOSSES])
        ends = "; ".join(
            f"{_when(one, stage['epoch'])}: steps of {_length(stage, 0):.2g} and {_length(stage, 1):.2g},"
            f" {angle(stage):.0f} degrees apart"
            for stage in stages
        )
        return finish(canvas, name, caption, f"Contour maps of a task's losses, with two trajectories. {ends}.", data)


def angle(stage: dict[str, Any]) -> float:
    """Degrees between the ways from theta_s to the two ends, of one stage of a surface."""
    return float(np.degrees(np.arctan2(stage["paths"][1][-1][1], stage["paths"][1][-1][0])))


def lines(runs: list[Portrait], name: str, caption: str) -> Figure:
    """Losses along the line from theta_s to theta~_i: a row an algorithm, a column a loss, a line a stage.

    Thin lines are single runs, the thick one is their mean; the band is the mean of the runs' quartiles over tasks.
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
                for i, (colour, dash) in enumerate(looks(len(stages))):
                    found = [one.values["stages"][i][measure] for one in chosen]
                    mean, low, high = (
                        np.mean([one[part] for one in found], axis=0) for part in ("mean", "low", "high")
                    )
                    for one in found:
                        axis.plot(alpha, one["mean"], color=colour, linestyle=dash, linewidth=0.6, alpha=0.7)
                    axis.plot(alpha, mean, color=colour, linestyle=dash, label=_when(chosen[0], stages[i]["epoch"]))
                    axis.fill_between(alpha, low, high, color=colour, alpha=0.15, linewidth=0)
                    rows += [
                        (kind, stages[i]["epoch"], measure, *values)
                        for values in zip(alpha, mean, low, high, strict=True)
                    ]
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(ScalarFormatter())
                for mark in (0, 1):
                    axis.axvline(mark, color="#888888", linewidth=0.8)
                axis.set_title(f"{LOSSES[measure]}, {NAMES[kind]}", fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("α: 0 at θ_s, 1 at the adapted solution")
        axes[0, 0].legend(frameon=False, fontsize=8)
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "measure", "alpha", "mean", "low", "high"])
        return finish(canvas, name, caption, _alt_lines(data), data)


def densities(runs: list[Portrait], name: str, caption: str) -> Figure:
    """Smoothed spectra: a row a run, a column a stage, each on its own axis, eigenvalues a unit on a log scale.

    Dots are the largest eigenvalues in order, circles those of the Gauss-Newton part, each a mean over tasks.
    """
    rows = []
    with matplotlib.rc_context(STYLE):
        n = len(runs[0].values["stages"])
        canvas = Canvas(figsize=(2.95 * n, 2.7 * len(runs)), layout="constrained")
        axes = canvas.subplots(len(runs), n, squeeze=False, sharey=True)
        for row, one in zip(axes, runs, strict=True):
            (colour, _), (other, _) = looks(2)
            for axis, stage in zip(row, one.values["stages"], strict=True):
                at, density = np.array(stage["density_at"]), np.array(stage["density"])
                axis.fill_between(at, density, 1e-9, color=colour, alpha=0.3, linewidth=0)
                axis.plot(at, density, color=colour, linewidth=1)
                for key, height, style in (("top", 0.05, "|"), ("gauss_newton_top", 0.02, "x")):
                    axis.plot(
                        stage[key], np.full(len(stage[key]), height), style, color=other, markersize=5, clip_on=False
                    )
                axis.axvline(0, color="#888888", linewidth=0.8)
                axis.set(yscale="log", ylim=(0.01, 1e6), title=_when(one, stage["epoch"]))
                kind = one.settings.algorithm
                rows += [(kind, stage["epoch"], x, y) for x, y in zip(at, density, strict=True)]
            row[0].set_ylabel(f"{NAMES[one.settings.algorithm]}\neigenvalues per unit")
        for axis in axes[-1]:
            axis.set_xlabel("eigenvalue of the Hessian")
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "eigenvalue", "density"])
        ends = "; ".join(
            f"{NAMES[one.settings.algorithm]}, {_when(one, stage['epoch'])}: from {np.mean(stage['smallest']):.2g} to"
            f" {np.mean(stage['largest']):.2g}"
            for one in runs
            for stage in one.values["stages"]
        )
        return finish(canvas, name, caption, f"Densities of eigenvalues, with a spike at 0. {ends}.", data)


def counts(runs: list[Portrait], name: str, caption: str) -> Figure:
    """How many eigenvalues lie above x, and below -x: a row an algorithm, a line a stage, mean over runs."""
    kinds = list(dict.fromkeys(one.settings.algorithm for one in runs))
    rows = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(8.8, 2.9 * len(kinds)), layout="constrained")
        axes = canvas.subplots(len(kinds), 2, squeeze=False, sharex=True, sharey=True)
        for row, kind in zip(axes, kinds, strict=True):
            chosen = [one for one in runs if one.settings.algorithm == kind]
            at, stages = np.array(chosen[0].values["counted"]), chosen[0].values["stages"]
            for axis, side, label in zip(row, ("below", "above"), ("below −x", "above x"), strict=True):
                for i, (colour, dash) in enumerate(looks(len(stages))):
                    each = np.array([one.values["stages"][i][side] for one in chosen])
                    for line in each:
                        axis.plot(at, line, color=colour, linestyle=dash, linewidth=0.6, alpha=0.7)
                    when = _when(chosen[0], stages[i]["epoch"])
                    axis.plot(at, each.mean(0), color=colour, linestyle=dash, label=when)
                    rows += [(kind, stages[i]["epoch"], side, x, y) for x, y in zip(at, each.mean(0), strict=True)]
                axis.set(xscale="log", yscale="log", ylim=(0.5, chosen[0].values["size"]))
                axis.set_title(f"eigenvalues {label}, {NAMES[kind]}", fontsize=9)
                for scale in (axis.xaxis, axis.yaxis):
                    scale.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
            row[0].set_ylabel("number of eigenvalues")
        for axis in axes[-1]:
            axis.set_xlabel("x")
        axes[0, 1].legend(frameon=False, fontsize=8)
        data = pd.DataFrame(rows, columns=["algorithm", "epoch", "side", "x", "number"])
        near = data[np.isclose(data.x, data.x[(data.x - 0.1).abs().idxmin()])]
        ends = "; ".join(f"{NAMES[r.algorithm]}, epoch {r.epoch}: {r.number:.0f} {r.side}" for r in near.itertuples())
        return finish(canvas, name, caption, f"Falling curves on logarithmic axes. {ends}.", data)


def _when(one: Portrait, epoch: int) -> str:
    return f"iteration {epoch * one.settings.epoch_iterations:,}" if epoch else "untrained"


def _levels(values: np.ndarray) -> np.ndarray:
    """At most about 12 levels, round numbers, over the values."""
    inside = LEVELS.ravel()[(LEVELS.ravel() >= values.min()) & (LEVELS.ravel() <= values.max())]
    return inside[-12:] if len(inside) > 1 else np.linspace(values.min(), values.max(), 3)


def _length(stage: dict[str, Any], path: int) -> float:
    return float(np.hypot(*stage["paths"][path][-1]))


def _trajectory(axis: Any, path: np.ndarray, mark: str) -> None:
    for colour, width in (("#000000", 2.6), ("#ffffff", 1.4)):
        axis.plot(*path.T, color=colour, linewidth=width)
    axis.plot(*path[-1], mark, color="#ffffff", markeredgecolor="#000000", markersize=6)
    axis.plot(*path[0], "X", color="#ffffff", markeredgecolor="#000000", markersize=6)


def _alt_lines(data: pd.DataFrame) -> str:
    at = data[data.alpha.isin([0.0, 1.0, 2.0])]
    ends = (
        f"{NAMES[kind]}, {LOSSES[measure]}, epoch {epoch}: " + ", ".join(f"{m:.2g}" for m in group["mean"])
        for (kind, measure, epoch), group in at.groupby(["algorithm", "measure", "epoch"], sort=False)
    )
    return "Lines over alpha; values at 0, 1 and 2. " + "; ".join(ends) + "."
