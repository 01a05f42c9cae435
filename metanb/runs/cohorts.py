"""Runs that differ by seeds alone, trained side by side: their images, weights and one Adam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from metanb.data.image_sets import ImageSet
from metanb.data.tasks import (
    Draw,
    draw_images,
    draw_tasks,
    drawn_pixels,
    scale_pixels,
    split_into_tasks,
)
from metanb.landscape import task_stats
from metanb.landscape.lanczos import random_directions
from metanb.landscape.task_stats import Stat
from metanb.maml import fusing
from metanb.maml.cuda_graph import Replayed
from metanb.maml.engine import Engine, precision, warn_without
from metanb.maml.fusing import fused
from metanb.maml.inner_loop import flatten, unflatten
from metanb.maml.outer_loop import chunk_size, meta_gradient, supervised_gradient
from metanb.runs.checkpoint import State

# Streams of random numbers: the tasks of iteration i come from [seed, TRAIN, i], fixed ones from
# [task_seed, stream]. The final tasks are many: FINAL, FINAL + 1 and so on are the streams of PART
# tasks each.
TRAIN, VALID, TEST, FINAL = range(4)


class DivergedError(ArithmeticError):
    """The meta-training loss is no longer finite; the message names the iteration and the run."""


class TrainingImages:
    """The images that a cohort trains on: on the device as uint8, once for all runs, or read from the host each time.

    Args:
        sets: the image set of each run; those of the same digest are kept once.
        device: where the networks are.
        resident: whether the images lie on the device; the host serves where they do not fit.
    """

    def __init__(self, sets: Iterable[ImageSet], device: torch.device, resident: bool) -> None:
        self.sets = {images_.digest: images_ for images_ in sets}
        self.first: dict[str, int] = {}  # the number of each set's first image among all
        self.device, self.on_device = device, None
        number = 0
        for digest, images_ in self.sets.items():
            self.first[digest] = number
            number += images_.images.shape[0] * images_.images.shape[1]
        if resident:
            try:
                self.on_device = self._copy(number)
            except torch.OutOfMemoryError as error:
                warn_without("resident", error)

    def _copy(self, number: int) -> Tensor:
        """All images on the device, one after the other; class by class, so that neither side holds them twice."""
        blocks = [block for images_ in self.sets.values() for block in images_.images]
        copies = torch.zeros(number, *blocks[0].shape[1:], dtype=torch.uint8, device=self.device)
        for block, place in zip(
            blocks, copies.split([len(block) for block in blocks]), strict=True
        ):
            place.copy_(torch.tensor(block))
        return copies

    def inputs(self, draws: Sequence[tuple[ImageSet, Draw]]) -> Tensor:
        """What an iteration sends to the device, for one draw per run: image numbers, or else the images themselves."""
        if self.on_device is None:
            return torch.cat([drawn_pixels(images_, draw) for images_, draw in draws])
        return torch.from_numpy(
            np.concatenate([self.first[images_.digest] + draw.images for images_, draw in draws])
        )

    def images(self, inputs: Tensor) -> Tensor:
        """The images that `inputs` stand for, float32 in [0, 1], on the device: [rows, n, C, H, W]."""
        return scale_pixels(inputs if self.on_device is None else self.on_device[inputs])


class Cohort:
    """Runs that differ by seeds alone, between two epochs: weights, one Adam, and what their gradient needs.

    Args:
        states: one per run; they may be at different epochs. `keep` puts what was learnt back into
            them.
        sets: the meta-training images of each run.
        pool: the images of all of them.
        device: where they are trained.
        engine: how.
    """

    def __init__(
        self,
        states: Sequence[State],
        sets: Sequence[ImageSet],
        pool: TrainingImages,
        device: torch.device,
        engine: Engine,
    ) -> None:
        self.states, self.sets, self.pool, self.device, self.engine = (
            states,
            sets,
            pool,
            device,
            engine,
        )
        self.settings = states[0].settings
        # the design; its weights are not used
        self.net = deepcopy(states[0].net).to(device)
        self.weights = [
            nn.Parameter(flatten(state.net).detach().to(device, copy=True)) for state in states
        ]
        self.optimiser = torch.optim.Adam(self.weights, lr=self.settings.outer_lr)
        for row, state in zip(self.weights, states, strict=True):
            if moments := state.optimiser.state:
                kept = [moments[p] for p in state.net.parameters()]
                self.optimiser.state[row] = {"step": kept[0]["step"].clone()} | {
                    name: torch.cat([one[name].flatten() for one in kept]).to(device)
                    for name in ("exp_avg", "exp_avg_sq")
                }
        # By a weak reference: with a cycle a dropped cohort would hold a GPU's memory until the
        # collector comes by.
        gradient = WeakMethod(self._gradient)
        self.gradient = Replayed(lambda *drawn: _alive(gradient)(*drawn), device, engine.graph)

    @property
    def features(self) -> str:
        """What is done for speed, less what has given way."""
        used = replace(
            self.engine,
            resident=self.pool.on_device is not None,
            compile=self.engine.compile and not fusing.failed(),
            graph=self.gradient.recorded,
        )
        return used.features

    @property
    def theta(self) -> Tensor:
        """The weights, [S, P], as they are now."""
        return torch.stack([row.detach() for row in self.weights])

    def keep(self) -> None:
        """Put the weights and Adam's moments back into the runs' states."""
        for row, state in zip(self.weights, self.states, strict=True):
            parameters = list(state.net.parameters())
            moments = self.optimiser.state[row]
            parts = {
                name: [
                    part[0].cpu().clone()
                    for part in unflatten(state.net, values.detach().unsqueeze(0))
                ]
                for name, values in (
                    ("weights", row),
                    ("exp_avg", moments.get("exp_avg")),
                    ("exp_avg_sq", moments.get("exp_avg_sq")),
                )
                if values is not None
            }
            with torch.no_grad():
                for parameter, values in zip(parameters, parts["weights"], strict=True):
                    parameter.copy_(values)
            if "exp_avg" not in parts:  # not one step so far
                continue
            for i, parameter in enumerate(parameters):
                state.optimiser.state[parameter] = {
                    "step": moments["step"].detach().cpu().clone(),
                    "exp_avg": parts["exp_avg"][i],
                    "exp_avg_sq": parts["exp_avg_sq"][i],
                }

    def train(self, bar: tqdm) -> list[dict[str, Stat] | DivergedError]:
        """One epoch of each run, its next; statistics over its iterations, or why it ended.

        A run whose loss or gradient is no longer finite is not counted any further; the others go
        on.
        """
        length, runs = self.settings.epoch_iterations, range(len(self.states))
        begun = [state.epoch * length for state in self.states]
        ended: dict[int, DivergedError] = {}
        seen: dict[str, list[list[float]]] = {}
        with precision(self.engine.tf32), fused(self.engine.compile):
            drawn = self._draw(begun)
            for i in range(length):
                values = self.gradient(*drawn)
                self.optimiser.step()
                if i + 1 < length:  # while a GPU is at this iteration
                    drawn = self._draw([iteration + i + 1 for iteration in begun])
                read = dict(
                    zip(values, torch.stack(list(values.values())).cpu().tolist(), strict=True)
                )
                for run in runs:
                    loss, slope = read["train_loss"][run], read["slope"][run]
                    if run not in ended and not np.isfinite([loss, slope]).all():
                        what = f"loss is {loss}, its gradient's norm {slope}, at iteration {begun[run] + i}"
                        ended[run] = diverged(what, self.states[run])
                if len(ended) == len(runs):
                    break
                for name, row in read.items():
                    seen.setdefault(name, []).append(row)
                bar.set_postfix(loss=f"{np.nanmean(read['train_loss']):.3f}", refresh=False)
                bar.update(len(runs) - len(ended))
        seen.pop("slope", None)
        return [
            ended.get(run) or {name: _over_iterations(rows, run) for name, rows in seen.items()}
            for run in runs
        ]

    def _draw(self, iterations: Sequence[int]) -> tuple[Tensor, ...]:
        """What an iteration's gradient is of: images, labels, and for the regulariser's control a direction per run."""
        settings, draws, others = self.settings, [], []
        for state, images_, iteration in zip(self.states, self.sets, iterations, strict=True):
            rng = np.random.default_rng([state.settings.seed, TRAIN, iteration])
            if settings.algorithm == "finetune":  # as many images an iteration as MAML sees
                n_images = settings.meta_batch * settings.ways * (settings.shots + settings.queries)
                draws.append((images_, draw_images(images_, n_images, rng)))
            else:
                shape = (settings.meta_batch, settings.ways, settings.shots, settings.queries)
                draws.append((images_, draw_tasks(images_, *shape, rng)))
            if settings.regulariser == "random":
                size = self.weights[0].numel()
                others.append(random_directions(1, size, int(rng.integers(2**63))).float())
        labels = torch.from_numpy(np.concatenate([draw.labels for _, draw in draws]))
        inputs = self.pool.inputs(draws), labels
        return (*inputs, torch.cat(others)) if others else inputs

    def _gradient(
        self, inputs: Tensor, labels: Tensor, other: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Put each run's gradient into its weights' `.grad`; what it saw, by measure, [S]."""
        settings, theta = self.settings, self.theta.requires_grad_()
        x = self.pool.images(inputs)
        if settings.algorithm == "finetune":
            seen = {"train_loss": supervised_gradient(self.net, x, labels, theta)}
        else:
            outcome = meta_gradient(
                self.net,
                split_into_tasks(x, labels, settings.ways * settings.shots),
                settings.inner_lr,
                settings.inner_steps,
                first_order=settings.first_order,
                adapt_norm=settings.adapt_norm,
                chunk=chunk_size(settings, self.device),
                regulariser=settings.regulariser,
                gamma=settings.gamma,
                other=None if other is None else other.to(theta),
                theta=theta,
            )
            seen = {"train_loss": _of_runs(outcome.losses, len(theta))}
            if settings.regulariser != "none":
                seen["relative_move"] = _of_runs(outcome.moves, len(theta))
        gradient = theta.grad
        assert gradient is not None  # the loss depends on the weights
        for row, slope in zip(self.weights, gradient, strict=True):
            row.grad = slope
        return seen | {"slope": gradient.norm(dim=1)}


def diverged(what: str, state: State) -> DivergedError:
    """The error of a run that ended in the epoch after the state's."""
    settings = state.settings
    kept = (
        f"the checkpoint of epoch {state.epoch} is kept"
        if state.epoch >= 0
        else "there is no checkpoint yet"
    )
    return DivergedError(
        f"{settings.id}: {what}: try a smaller inner_lr ({settings.inner_lr}) or outer_lr ({settings.outer_lr}); {kept}"
    )


def _alive(method: WeakMethod[Any]) -> Any:
    """The method of an object that is still there: nobody else calls for a cohort's gradient."""
    bound = method()
    assert bound is not None
    return bound


def _of_runs(values: Tensor, runs: int) -> Tensor:
    """The mean of each run's values, [S], of [S*T]: summed run by run, as for a run alone."""
    return torch.stack([rows.mean() for rows in values.view(runs, -1)])


def _over_iterations(rows: list[list[float]], run: int) -> Stat:
    return task_stats.summarise(torch.tensor([row[run] for row in rows], dtype=torch.float64))
