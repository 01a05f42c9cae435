"""Runs that differ by seeds alone, trained side by side: their images, weights and one Adam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeAlias
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from metanb.data.image_sets import ImageSet
from metanb.data.tasks import Draw, draw_images, draw_tasks, drawn_pixels, scale_pixels
from metanb.labels import ALGORITHMS
from metanb.landscape import task_stats
from metanb.landscape.lanczos import random_directions
from metanb.landscape.measures import OF_TRAINING, require_free_measure
from metanb.landscape.task_stats import Stat
from metanb.maml import fusing
from metanb.maml.algorithms import add_gradient
from metanb.maml.cuda_graph import Replayed
from metanb.maml.engine import Engine, precision, warn_without
from metanb.maml.fusing import fused
from metanb.maml.inner_loop import flatten, unflatten
from metanb.runs.checkpoint import State
from metanb.settings import Settings

# Streams of random numbers: the tasks of iteration i come from [seed, TRAIN, i], fixed tasks from
# [task_seed, stream]. The final tasks are many: they come from the streams FINAL, FINAL + 1 and so
# on, see `metanb.runs.training.TASKS_PER_STREAM`.
TRAIN, VALID, TEST, FINAL = range(4)

SLOPE = "norm of the gradient"  # beside an algorithm's values; none of them can have such a name


class DivergedError(ArithmeticError):
    """The meta-training loss is no longer finite; the message names the iteration and the run."""


# Statistics of one run in one epoch, by measure, or the error that ended the run.
EpochOutcome: TypeAlias = dict[str, Stat] | DivergedError


class TrainingImages:
    """The images that a cohort trains on.

    They are kept on the device as uint8, once for all runs, or read from the host for each
    iteration.

    Args:
        sets: the image set of each run; sets with the same digest are kept once.
        device: where the networks are.
        resident: whether to keep the images on the device. If they do not fit, the host sends them
            and a line on standard error says so.
    """

    def __init__(self, sets: Iterable[ImageSet], device: torch.device, resident: bool) -> None:
        self.sets = {images.digest: images for images in sets}
        self.device = device
        self.on_device: Tensor | None = None
        # The number of each set's first image, counted over all sets.
        self.first: dict[str, int] = {}
        n_images = 0
        for digest, images in self.sets.items():
            self.first[digest] = n_images
            n_images += images.images.shape[0] * images.images.shape[1]
        if resident:
            try:
                self.on_device = self._copy(n_images)
            except torch.OutOfMemoryError as error:
                warn_without("resident", error)

    def _copy(self, n_images: int) -> Tensor:
        """Copy all images to the device, set after set: [n_images, C, H, W] uint8.

        They go class by class, so that neither side holds them twice.
        """
        classes = [pixels for images in self.sets.values() for pixels in images.images]
        shape = (n_images, *classes[0].shape[1:])
        copies = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        slots = copies.split([len(pixels) for pixels in classes])
        for pixels, slot in zip(classes, slots, strict=True):
            slot.copy_(torch.tensor(pixels))
        return copies

    def inputs(self, draws: Sequence[tuple[ImageSet, Draw]]) -> Tensor:
        """What an iteration sends to the device, for one draw per run.

        It sends the numbers of the images if these are on the device, and else their pixels.
        """
        if self.on_device is None:
            return torch.cat([drawn_pixels(images, draw) for images, draw in draws])
        numbers = [self.first[images.digest] + draw.images for images, draw in draws]
        return torch.from_numpy(np.concatenate(numbers))

    def images(self, inputs: Tensor) -> Tensor:
        """The images of `inputs`, on the device: [rows, n, C, H, W] float32 in [0, 1]."""
        return scale_pixels(inputs if self.on_device is None else self.on_device[inputs])


class Cohort:
    """Runs that differ by seeds alone, between two epochs: their weights and one Adam for all.

    Args:
        states: one per run; they may be at different epochs. `keep` puts what was learnt back into
            them.
        sets: the meta-training images of each run.
        pool: the images of all runs.
        device: where to train.
        engine: what is done for speed.
    """

    def __init__(
        self,
        states: Sequence[State],
        sets: Sequence[ImageSet],
        pool: TrainingImages,
        device: torch.device,
        engine: Engine,
    ) -> None:
        self.states = states
        self.sets = sets
        self.pool = pool
        self.device = device
        self.engine = engine
        self.settings = states[0].settings
        # The design of all networks. The cohort does not use the weights of this one.
        self.net = deepcopy(states[0].net).to(device)
        self.weights = [
            nn.Parameter(flatten(state.net).detach().to(device, copy=True)) for state in states
        ]
        self.optimiser = torch.optim.Adam(self.weights, lr=self.settings.outer_lr)
        for row, state in zip(self.weights, states, strict=True):
            self._load_moments(row, state)
        # A weak reference, because in a cycle a dropped cohort would hold a GPU's memory until the
        # garbage collector runs.
        gradient = WeakMethod(self._gradient)
        self.gradient = Replayed(lambda *drawn: _alive(gradient)(*drawn), device, engine.graph)

    def _load_moments(self, row: nn.Parameter, state: State) -> None:
        """Take Adam's moments of a run from its state; a state without one step has none."""
        if not state.optimiser.state:
            return
        moments = [state.optimiser.state[parameter] for parameter in state.net.parameters()]
        flat = {
            name: torch.cat([moment[name].flatten() for moment in moments]).to(self.device)
            for name in ("exp_avg", "exp_avg_sq")
        }
        self.optimiser.state[row] = {"step": moments[0]["step"].clone()} | flat

    @property
    def features(self) -> str:
        """The engine's features that are in use: those that have failed are left out."""
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
            with torch.no_grad():
                for parameter, values in zip(parameters, _split_row(row, state), strict=True):
                    parameter.copy_(values)
            moments = self.optimiser.state[row]
            if "exp_avg" not in moments:  # not one step so far
                continue
            averages = _split_row(moments["exp_avg"], state)
            squares = _split_row(moments["exp_avg_sq"], state)
            for parameter, average, square in zip(parameters, averages, squares, strict=True):
                state.optimiser.state[parameter] = {
                    "step": moments["step"].detach().cpu().clone(),
                    "exp_avg": average,
                    "exp_avg_sq": square,
                }

    def train(self, bar: tqdm) -> list[EpochOutcome]:
        """Train one epoch of each run, its next one.

        A run whose loss or gradient is no longer finite has diverged, and the others go on.

        Args:
            bar: a progress bar over the iterations of all runs.

        Returns:
            For each run its statistics over the epoch's iterations, by measure, or the error that
            ended it.
        """
        length = self.settings.epoch_iterations
        starts = [state.epoch * length for state in self.states]
        diverged: dict[int, DivergedError] = {}
        history: dict[str, list[list[float]]] = {}  # values of the runs, per measure and iteration
        with precision(self.engine.tf32), fused(self.engine.compile):
            drawn = self._draw(starts)
            for i in range(length):
                # Start the iteration, and draw the next one while a GPU is still at this one.
                on_device = self.gradient(*drawn)
                self.optimiser.step()
                if i + 1 < length:
                    drawn = self._draw([start + i + 1 for start in starts])

                # Read the iteration's values, [S] per measure, in a single transfer.
                rows = torch.stack(list(on_device.values())).cpu().tolist()
                values = dict(zip(on_device, rows, strict=True))

                # Set aside the runs that are no longer finite.
                slopes = values.pop(SLOPE)
                for run, (loss, slope) in enumerate(zip(values["train_loss"], slopes, strict=True)):
                    if run not in diverged and not np.isfinite([loss, slope]).all():
                        iteration = starts[run] + i
                        reason = (
                            f"loss is {loss}, its gradient's norm {slope}, at iteration {iteration}"
                        )
                        diverged[run] = diverged_error(reason, self.states[run])
                if len(diverged) == len(self.states):
                    break

                # Note the values, and show them.
                for name, row in values.items():
                    history.setdefault(name, []).append(row)
                bar.set_postfix(loss=f"{np.nanmean(values['train_loss']):.3f}", refresh=False)
                bar.update(len(self.states) - len(diverged))
        return [
            diverged.get(run) or {name: _summarise(rows, run) for name, rows in history.items()}
            for run in range(len(self.states))
        ]

    def _draw(self, iterations: Sequence[int]) -> tuple[Tensor, ...]:
        """Draw the input of `_gradient` for one iteration per run, on the host.

        Returns:
            Images or their numbers, labels, and for the regulariser's control "random" a random
            direction per run, [S, P].
        """
        settings = self.settings
        draws: list[tuple[ImageSet, Draw]] = []
        directions: list[Tensor] = []
        for state, images, iteration in zip(self.states, self.sets, iterations, strict=True):
            rng = np.random.default_rng([state.settings.seed, TRAIN, iteration])
            draws.append((images, _draw_batch(images, settings, rng)))
            if settings.regulariser == "random":
                size = self.weights[0].numel()
                seed = int(rng.integers(2**63))
                directions.append(random_directions(1, size, seed).float())
        labels = torch.from_numpy(np.concatenate([draw.labels for _, draw in draws]))
        inputs = self.pool.inputs(draws), labels
        return (*inputs, torch.cat(directions)) if directions else inputs

    def _gradient(
        self, inputs: Tensor, labels: Tensor, direction: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Put the gradient of each run into the `.grad` of its weights.

        Args:
            inputs: as `TrainingImages.inputs` gives them.
            labels: of the images.
            direction: for the regulariser's control alone, [S, P].

        Returns:
            By measure one value per run, [S]: `train_loss`, with a regulariser `relative_move`,
            what an algorithm of one's own adds, and SLOPE.

        Raises:
            ValueError: a value that an algorithm adds has the name of a measure, and as
                `add_gradient` does.
        """
        settings = self.settings
        theta = self.theta.requires_grad_()
        pixels = self.pool.images(inputs)
        if direction is not None:
            direction = direction.to(theta)
        values, gradient = add_gradient(self.net, theta, pixels, labels, settings, direction)
        _check_names(settings, values)
        for row, slope in zip(self.weights, gradient, strict=True):
            row.grad = slope
        return values | {SLOPE: gradient.norm(dim=1)}


def diverged_error(reason: str, state: State) -> DivergedError:
    """The error of a run that has diverged in the epoch after the state's."""
    settings = state.settings
    if state.epoch >= 0:
        kept = f"the checkpoint of epoch {state.epoch} is kept"
    else:
        kept = "there is no checkpoint yet"
    return DivergedError(
        f"{settings.id}: {reason}: try a smaller inner_lr ({settings.inner_lr}) "
        f"or outer_lr ({settings.outer_lr}); {kept}"
    )


def _check_names(settings: Settings, values: Iterable[str]) -> None:
    """Raise ValueError where a value that the settings' algorithm adds cannot be recorded."""
    for name in values:
        if name not in OF_TRAINING:
            try:
                require_free_measure(name)
            except ValueError as error:
                raise ValueError(
                    f"algorithm={settings.algorithm!r} returned values under {name!r}: {error}"
                ) from None


def _draw_batch(images: ImageSet, settings: Settings, rng: np.random.Generator) -> Draw:
    """Draw the meta-batch of one iteration, or as many images in one mini-batch."""
    if not ALGORITHMS[settings.algorithm].episodic:
        n_images = settings.meta_batch * settings.ways * (settings.shots + settings.queries)
        return draw_images(images, n_images, rng)
    shape = (settings.meta_batch, settings.ways, settings.shots, settings.queries)
    return draw_tasks(images, *shape, rng)


def _split_row(row: Tensor, state: State) -> list[Tensor]:
    """Values [P] of one run, as tensors on the CPU with the shapes of its parameters."""
    return [part[0].cpu().clone() for part in unflatten(state.net, row.detach().unsqueeze(0))]


def _alive(method: WeakMethod[Any]) -> Any:
    """The method of an object that exists: a cohort alone calls for its gradient."""
    bound = method()
    assert bound is not None
    return bound


def _summarise(rows: list[list[float]], run: int) -> Stat:
    """The statistics of one run's values over iterations."""
    return task_stats.summarise(torch.tensor([row[run] for row in rows], dtype=torch.float64))
