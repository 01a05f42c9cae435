"""Portraits of the loss landscape, computed at some stages of a network's meta-training.

These are the numbers of pictures; no files are read or written here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.landscape import slices, spectrum
from metanb.landscape.lanczos import number_tasks, random_directions
from metanb.landscape.measures import BASIS, bytes_per_task
from metanb.landscape.solutions import adapt_at_test, starting_points
from metanb.landscape.spectrum import Quadrature
from metanb.landscape.square import BEYOND, DRAWN, FILMED
from metanb.landscape.task_stats import tasks_at_once
from metanb.maml.inner_loop import accuracy, logits, losses
from metanb.settings import Settings

ALPHAS = np.linspace(-0.5, 2, 26).round(2)
SPECTRUM_TASKS = 16
DIRECTIONS = 2  # per task
DRAWN_TOGETHER = 8  # tasks whose directions come from one seed, whatever is measured at once
PRODUCTS = 80  # per direction
# Vectors that `lanczos` holds for PRODUCTS when its basis of 64 doubles: both halves, the whole.
SPECTRUM_BASIS = 64 + 64 + 128
TOP = 20  # largest eigenvalues that a spectrum lists
BELLS = 100  # widths of the density's Gaussian in the range of the eigenvalues
# Eigenvalues are counted above each of these values, and below minus it.
COUNTED = np.logspace(-2, 1.5, 36).round(5)


@dataclass(frozen=True)
class Stage:
    """The network after an epoch, the first meta-test tasks, and their adaptation."""

    epoch: int
    net: nn.Module
    tasks: Tasks
    paths: Tensor  # [S + 1, T, P] theta_s, the parameters after each inner step, theta~_i


def adapt_at_stage(settings: Settings, epoch: int, net: nn.Module, tasks: Tasks) -> Stage:
    """Adapt the tasks as at meta-test, by the network after an epoch, and keep each inner step.

    Raises ValueError for a "centred" head, see `metanb.landscape.solutions.require_head`.
    """
    learner, theta = starting_points(net, settings, len(tasks), stream=0)
    at_once = tasks_at_once(theta.device, bytes_per_task(learner, theta, tasks))
    single_step = replace(settings, test_steps=1)
    paths = [theta]
    for _ in range(settings.test_steps):
        chunks = zip(tasks.split(at_once), paths[-1].split(at_once), strict=True)
        stepped = [adapt_at_test(learner, part, start, single_step) for part, start in chunks]
        paths.append(torch.cat(stepped))
    return Stage(epoch, learner, tasks, torch.stack(paths))


def compute_surfaces(stages: list[Stage]) -> dict[str, Any]:
    """Compute the first task's losses on the plane of the first two tasks' adaptation.

    All stages have the same square. `at` are the coordinates of both axes. Each stage has
    `support_loss` and `query_loss` [b, a], and `paths` [2, S + 1, 2], the coordinates of the two
    trajectories, whose ends lie in the plane.
    """
    at, planes, paths = _planes_and_square(stages, DRAWN)
    records = []
    for stage, plane, path in zip(stages, planes, paths, strict=True):
        record = {"epoch": stage.epoch, "paths": path}
        for name, x, y in _support_and_query(stage.tasks[0:1]):
            loss = _as_function_of_params(losses, stage.net, x, y)
            record[f"{name}_loss"] = slices.losses_on_plane(loss, plane, at, at, like=stage.paths)
        records.append(record)
    return {"at": at, "stages": records}


def _planes_and_square(
    stages: list[Stage], points: int
) -> tuple[Tensor, list[slices.Plane], list[Tensor]]:
    """The square of all stages, [points] coordinates; each stage's plane and its two paths on it.

    A plane passes through theta_s and the first two tasks' adapted solutions.
    """
    planes = [slices.plane_through(*stage.paths[0, :1], *stage.paths[-1, :2]) for stage in stages]
    paths = [
        torch.stack([plane.coordinates(stage.paths[:, task]) for task in (0, 1)])
        for plane, stage in zip(planes, stages, strict=True)
    ]
    # The square is wide enough for every path.
    reach = max(float(path.abs().max()) for path in paths)
    low, high = (edge * reach for edge in BEYOND)
    return torch.linspace(low, high, points, dtype=torch.float64), planes, paths


def compute_film(stages: list[Stage]) -> dict[str, Any]:
    """Compute what an inner step meets and what it gains, stage by stage.

    `at`, `paths` and `support_loss` are those of `compute_surfaces`, on a finer grid. Each stage
    has the first task's support loss at theta_s and at its adapted solution,
    `support_loss_before` and `support_loss_after`; and the mean query accuracy over all `n` tasks
    there, `accuracy_before` and `accuracy_after`.
    """
    at, planes, paths = _planes_and_square(stages, FILMED)
    records = []
    for stage, plane, path in zip(stages, planes, paths, strict=True):
        first = stage.tasks[0:1]
        loss = _as_function_of_params(losses, stage.net, first.support_x, first.support_y)
        record = {
            "epoch": stage.epoch,
            "paths": path,
            "support_loss": slices.losses_on_plane(loss, plane, at, at, like=stage.paths),
        }
        for name, params in (("before", stage.paths[0]), ("after", stage.paths[-1])):
            with torch.no_grad():
                record[f"support_loss_{name}"] = loss(params[:1])[0]
            record[f"accuracy_{name}"] = _query_accuracies(stage, params).mean()
        records.append(record)
    return {"at": at, "n": len(stages[0].tasks), "stages": records}


def _query_accuracies(stage: Stage, params: Tensor) -> Tensor:
    """The query accuracy of each task of a stage at parameters [T, P]: [T]."""
    with torch.no_grad():
        by_chunk = [
            accuracy(stage.net, params[part], tasks.query_x, tasks.query_y)
            for part in _chunks(stage, len(stage.tasks))
            for tasks in [stage.tasks[part]]
        ]
    return torch.cat(by_chunk)


def compute_interpolations(stages: list[Stage]) -> dict[str, Any]:
    """Compute support and query loss at theta_s + alpha (theta~_i - theta_s).

    `alpha` is [A], `n` the number of tasks. Each stage has, for each loss, the `mean`, `low` and
    `high` quartile over tasks, [A]; and the means over tasks of `distance`, from theta_s to
    theta~_i, and `query_accuracy` at theta~_i.
    """
    alphas = torch.from_numpy(ALPHAS)
    records = []
    for stage in stages:
        # Values of each task, chunk by chunk: losses [A, T], the others [T].
        values_by_chunk: dict[str, list[Tensor]] = {}
        for part in _chunks(stage, len(stage.tasks)):
            for name, values in _interpolate(stage, part, alphas).items():
                values_by_chunk.setdefault(name, []).append(values)
        # Statistics over all tasks.
        record: dict[str, Any] = {"epoch": stage.epoch}
        for name in ("distance", "query_accuracy"):
            record[name] = torch.cat(values_by_chunk.pop(name)).mean()
        for name, chunks in values_by_chunk.items():
            loss = torch.cat(chunks, 1)  # [A, T]
            low, high = loss.quantile(torch.tensor([0.25, 0.75], dtype=loss.dtype), dim=1)
            record[name] = {"mean": loss.mean(1), "low": low, "high": high}
        records.append(record)
    return {"alpha": alphas, "n": len(stages[0].tasks), "stages": records}


def _interpolate(stage: Stage, part: slice, alphas: Tensor) -> dict[str, Tensor]:
    """Losses [A, T] of some tasks on the lines from theta_s to theta~_i; two values at theta~_i."""
    start, end = stage.paths[0, part], stage.paths[-1, part]
    tasks = stage.tasks[part]
    values = {}
    for name, x, y in _support_and_query(tasks):
        loss = _as_function_of_params(losses, stage.net, x, y)
        values[f"{name}_loss"] = slices.values_along_line(loss, start, end, alphas)
    values["distance"] = (end - start).norm(dim=1)
    with torch.no_grad():
        values["query_accuracy"] = accuracy(stage.net, end, tasks.query_x, tasks.query_y)
    return values


def compute_spectra(stages: list[Stage]) -> dict[str, Any]:
    """Compute the spectrum of the support loss's Hessian at theta~_i of the first `n` tasks.

    `size` is the number of parameters, `counted` the values at which eigenvalues are counted. Each
    stage has, by task: `largest` and `smallest` eigenvalue, `trace`, `squares` (the sum of squared
    eigenvalues), `outliers` and `gauss_newton` (the largest eigenvalue of that part). It has means
    over tasks: `top` and `gauss_newton_top`, the largest eigenvalues in order; `density` at
    `density_at`, in eigenvalues per unit, each spread by a Gaussian of standard deviation `width`;
    `above` and `below`, the numbers of eigenvalues above each of `counted` and below minus it.
    """
    n = min(SPECTRUM_TASKS, len(stages[0].tasks))
    starts = _draw_directions(n, stages[0].paths.shape[-1])
    records = []
    for stage in stages:
        nodes, weights, gauss_newton = [], [], []
        for part in _chunks(stage, n, SPECTRUM_BASIS):
            theta = stage.paths[-1, part]
            tasks = stage.tasks[part]
            # The whole Hessian, seen from random directions.
            loss = _as_function_of_params(losses, stage.net, tasks.support_x, tasks.support_y)
            with number_tasks(part.start, n):
                quadrature = spectrum.quadrature(loss, theta, starts[:, part], PRODUCTS)
            nodes.append(quadrature.nodes)
            weights.append(quadrature.weights)
            # Its Gauss-Newton part, task by task: the Jacobian of all tasks is large.
            for row, x in zip(theta.split(1), tasks.support_x.split(1), strict=True):
                outputs = _as_function_of_params(logits, stage.net, x)
                gauss_newton.append(spectrum.gauss_newton(outputs, row))
        spectra = Quadrature(torch.cat(nodes), torch.cat(weights), quadrature.size)
        record = _summarise_spectra(spectra, torch.cat(gauss_newton))
        records.append({"epoch": stage.epoch} | record)
    counted = torch.from_numpy(COUNTED)
    return {"n": n, "size": quadrature.size, "counted": counted, "stages": records}


def _draw_directions(n_tasks: int, size: int) -> Tensor:
    """Random directions of length 1 for the first tasks, [DIRECTIONS, n_tasks, size]."""
    by_block = []
    for first in range(0, n_tasks, DRAWN_TOGETHER):
        rows = min(DRAWN_TOGETHER, n_tasks - first)
        seeds = range(first * DIRECTIONS, (first + 1) * DIRECTIONS)
        by_block.append(torch.stack([random_directions(rows, size, seed) for seed in seeds]))
    return torch.cat(by_block, dim=1)


def _summarise_spectra(spectra: Quadrature, gauss_newton: Tensor) -> dict[str, Any]:
    """One stage's numbers, as `compute_spectra` says; gauss_newton [T, n] are eigenvalues."""
    largest = spectrum.largest(spectra, TOP)
    smallest = spectrum.smallest(spectra, 1)[:, 0]
    # Where the density is drawn: the range of all tasks' eigenvalues, and three widths beyond.
    low, high = float(smallest.min()), float(largest.max())
    width = (high - low) / BELLS
    at = torch.linspace(low - 3 * width, high + 3 * width, BELLS + 7, dtype=torch.float64)
    # Eigenvalues below -x are those of -H above x.
    counted = torch.from_numpy(COUNTED)
    negated = replace(spectra, nodes=-spectra.nodes)
    return {
        "largest": largest[:, 0],
        "smallest": smallest,
        "trace": spectrum.moment(spectra, 1),
        "squares": spectrum.moment(spectra, 2),
        "outliers": spectrum.outliers(spectra),
        "gauss_newton": gauss_newton[:, 0],
        "top": largest.mean(0),
        "gauss_newton_top": gauss_newton[:, :TOP].mean(0),
        "width": width,
        "density_at": at,
        "density": spectra.size * spectrum.density(spectra, at, width).mean(0),
        "above": spectrum.count_above(spectra, counted).mean(0),
        "below": spectrum.count_above(negated, counted).mean(0),
    }


KINDS: dict[str, Callable[[list[Stage]], dict[str, Any]]] = {
    "surface": compute_surfaces,
    "interpolation": compute_interpolations,
    "spectrum": compute_spectra,
    "film": compute_film,
}


def _chunks(stage: Stage, n_tasks: int, vectors: int = BASIS) -> Iterator[slice]:
    """The first n_tasks tasks of a stage, as many at once as `bytes_per_task` lets fit."""
    each = bytes_per_task(stage.net, stage.paths[0], stage.tasks, vectors)
    at_once = tasks_at_once(stage.paths.device, each)
    for first in range(0, n_tasks, at_once):
        yield slice(first, min(n_tasks, first + at_once))


def _as_function_of_params(
    function: Callable[..., Tensor], net: nn.Module, *data: Tensor
) -> Callable[[Tensor], Tensor]:
    """A function of `metanb.maml.inner_loop` as one of the parameters [n, P] alone.

    The data of one task, [1, ...], serve all n rows.
    """
    return lambda params: function(
        net, params, *(x.expand(len(params), *x.shape[1:]) for x in data)
    )


def _support_and_query(tasks: Tasks) -> list[tuple[str, Tensor, Tensor]]:
    """Name, images and labels of both sets."""
    return [("support", tasks.support_x, tasks.support_y), ("query", tasks.query_x, tasks.query_y)]
