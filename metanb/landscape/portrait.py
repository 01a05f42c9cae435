"""What the landscape looks like from a network at some stages of its meta-training:

numbers for pictures, no files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanb.data.tasks import Tasks
from metanb.landscape import slices, spectrum
from metanb.landscape.lanczos import random_directions
from metanb.landscape.measures import adapt_at_test, starting_points
from metanb.landscape.square import BEYOND, DRAWN
from metanb.landscape.task_stats import tasks_at_once
from metanb.maml.inner_loop import accuracy, logits, losses
from metanb.maml.network import ConvNet
from metanb.settings import Settings

ALPHAS = np.linspace(-0.5, 2, 26).round(2)
SPECTRUM_TASKS, DIRECTIONS, PRODUCTS = 16, 2, 80
TOP = 20  # eigenvalues a spectrum is given with
BELLS = 100  # widths of the density's Gaussian that make up its range
# where eigenvalues above, and below minus this, are counted
COUNTED = np.logspace(-2, 1.5, 36).round(5)


@dataclass(frozen=True)
class Stage:
    """The network after an epoch, the first meta-test tasks, and their adaptation."""

    epoch: int
    net: ConvNet
    tasks: Tasks
    paths: Tensor  # [S + 1, T, P] theta_s, the parameters after each inner step, theta~_i


def adapt_at_stage(settings: Settings, epoch: int, net: ConvNet, tasks: Tasks) -> Stage:
    """The tasks adapted as at meta-test by the network after an epoch, each inner step kept."""
    learner, theta = starting_points(net, settings, len(tasks), stream=0)
    paths, at_once = [theta], tasks_at_once(theta.device)
    for _ in range(settings.test_steps):
        pairs = zip(tasks.split(at_once), paths[-1].split(at_once), strict=True)
        one = replace(settings, test_steps=1)
        paths.append(torch.cat([adapt_at_test(learner, part, start, one) for part, start in pairs]))
    return Stage(epoch, learner, tasks, torch.stack(paths))


def compute_surfaces(stages: list[Stage]) -> dict[str, Any]:
    """Losses of the first task on the plane of the first two tasks' adaptation, on the same square at every stage.

    `at` are the coordinates of both axes; of each stage `support_loss` and `query_loss` [b, a], and
    `paths`, the two trajectories' coordinates [2, S + 1, 2], which are inside the plane at both
    ends.
    """
    planes = [slices.plane_through(*stage.paths[0, :1], *stage.paths[-1, :2]) for stage in stages]
    paths = [
        torch.stack([where.coordinates(stage.paths[:, t]) for t in (0, 1)])
        for where, stage in zip(planes, stages, strict=True)
    ]
    reach = max(float(path.abs().max()) for path in paths)
    low, high = (edge * reach for edge in BEYOND)
    at = torch.linspace(low, high, DRAWN, dtype=torch.float64)
    drawn = []
    for stage, where, path in zip(stages, planes, paths, strict=True):
        found = {"epoch": stage.epoch, "paths": path}
        for name, x, y in _sets(stage.tasks[0:1]):
            loss = _by_params(losses, stage.net, x, y)
            found[f"{name}_loss"] = slices.losses_on_plane(loss, where, at, at, like=stage.paths)
        drawn.append(found)
    return {"at": at, "stages": drawn}


def compute_interpolations(stages: list[Stage]) -> dict[str, Any]:
    """Support and query loss at theta_s + alpha (theta~_i - theta_s).

    `alpha` [A] and `n`, the number of tasks; of each stage and loss the `mean`, `low` and `high`
    quartile over tasks, [A]; and the mean `distance` from theta_s to theta~_i, and `query_accuracy`
    there.
    """
    alphas, drawn = torch.from_numpy(ALPHAS), []
    for stage in stages:
        seen: dict[str, list[Tensor]] = {}
        at_once = tasks_at_once(stage.paths.device)
        for first in range(0, len(stage.tasks), at_once):
            part = slice(first, first + at_once)
            start, end, tasks = stage.paths[0, part], stage.paths[-1, part], stage.tasks[part]
            for name, x, y in _sets(tasks):
                values = slices.values_along_line(
                    _by_params(losses, stage.net, x, y), start, end, alphas
                )
                seen.setdefault(f"{name}_loss", []).append(values)
            seen.setdefault("distance", []).append((end - start).norm(dim=1))
            with torch.no_grad():
                right = accuracy(stage.net, end, tasks.query_x, tasks.query_y)
            seen.setdefault("query_accuracy", []).append(right)
        found: dict[str, Any] = {
            name: torch.cat(seen.pop(name)).mean() for name in ("distance", "query_accuracy")
        }
        for name, parts in seen.items():
            values = torch.cat(parts, 1)  # [A, T]
            low, high = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype), dim=1)
            found[name] = {"mean": values.mean(1), "low": low, "high": high}
        drawn.append({"epoch": stage.epoch} | found)
    return {"alpha": alphas, "n": len(stages[0].tasks), "stages": drawn}


def compute_spectra(stages: list[Stage]) -> dict[str, Any]:
    """The spectrum of the support loss's Hessian at theta~_i, over the first tasks, `n` of them.

    `size` is the number of parameters, `counted` the values at which eigenvalues are counted. Of
    each stage, by task: `largest` and `smallest` eigenvalue, `trace`, `squares` (sum of squared
    eigenvalues), `outliers` and `gauss_newton` (the largest of that part). Means over tasks: `top`
    and `gauss_newton_top`, the largest eigenvalues in order; `density` at `density_at`, of
    eigenvalues a unit, each spread by a Gaussian of standard deviation `width`; `above` and
    `below`, numbers of eigenvalues above each of `counted` and below minus it.
    """
    n, drawn = min(SPECTRUM_TASKS, len(stages[0].tasks)), []
    for stage in stages:
        found, parts, at_once = [], [], tasks_at_once(stage.paths.device)
        for first in range(0, n, at_once):
            part = slice(first, min(n, first + at_once))
            theta, x, y = (
                stage.paths[-1, part],
                stage.tasks[part].support_x,
                stage.tasks[part].support_y,
            )
            lines = [
                random_directions(len(theta), theta.shape[1], seed=first * DIRECTIONS + i)
                for i in range(DIRECTIONS)
            ]
            found.append(
                spectrum.quadrature(
                    _by_params(losses, stage.net, x, y), theta, torch.stack(lines), PRODUCTS
                )
            )
            # one by one: the Jacobian of all is large
            for one, its in zip(theta.split(1), x.split(1), strict=True):
                parts.append(spectrum.gauss_newton(_by_params(logits, stage.net, its), one))
        nodes, weights = (
            torch.cat([getattr(one, name) for one in found]) for name in ("nodes", "weights")
        )
        drawn.append(
            {"epoch": stage.epoch}
            | _spectrum(spectrum.Quadrature(nodes, weights, found[0].size), parts)
        )
    return {"n": n, "size": found[0].size, "counted": torch.from_numpy(COUNTED), "stages": drawn}


def _spectrum(found: spectrum.Quadrature, parts: list[Tensor]) -> dict[str, Any]:
    top, bottom, positive = (
        spectrum.largest(found, TOP),
        spectrum.smallest(found, 1)[:, 0],
        torch.cat(parts),
    )
    low, high = float(bottom.min()), float(top.max())
    width = (high - low) / BELLS
    at = torch.linspace(low - 3 * width, high + 3 * width, BELLS + 7, dtype=torch.float64)
    counted = torch.from_numpy(COUNTED)
    mirrored = replace(found, nodes=-found.nodes)
    return {
        "largest": top[:, 0],
        "smallest": bottom,
        "trace": spectrum.moment(found, 1),
        "squares": spectrum.moment(found, 2),
        "outliers": spectrum.outliers(found),
        "gauss_newton": positive[:, 0],
        "top": top.mean(0),
        "gauss_newton_top": positive[:, :TOP].mean(0),
        "width": width,
        "density_at": at,
        "density": found.size * spectrum.density(found, at, width).mean(0),
        "above": spectrum.count_above(found, counted).mean(0),
        "below": spectrum.count_above(mirrored, counted).mean(0),
    }


KINDS: dict[str, Callable[[list[Stage]], dict[str, Any]]] = {
    "surface": compute_surfaces,
    "interpolation": compute_interpolations,
    "spectrum": compute_spectra,
}


def _by_params(
    function: Callable[..., Tensor], net: ConvNet, *data: Tensor
) -> Callable[[Tensor], Tensor]:
    """A function of `metanb.maml.inner_loop` as one of the parameters [n, P] alone;

    one task's data [1, ...] serve all n.
    """
    return lambda params: function(
        net, params, *(x.expand(len(params), *x.shape[1:]) for x in data)
    )


def _sets(tasks: Tasks) -> list[tuple[str, Tensor, Tensor]]:
    return [("support", tasks.support_x, tasks.support_y), ("query", tasks.query_x, tasks.query_y)]
