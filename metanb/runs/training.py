"""Meta-training: image sets, networks, the loop over epochs with measures and checkpoints, the record.

Runs that differ by seeds alone are trained side by side, as a cohort: their weights are [S, P],
their tasks go through the network together. Each run keeps its own draws, checkpoint, record and
messages, and reads as if it had been alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from metanb.data import image_sets
from metanb.data.image_sets import ImageSet
from metanb.data.tasks import (
    Draw,
    Tasks,
    as_tasks,
    draw_images,
    draw_tasks,
    pixels_of,
    sample_tasks,
    scaled,
)
from metanb.landscape import hessian
from metanb.landscape.hessian import Stat
from metanb.landscape.lanczos import LandscapeError, directions
from metanb.landscape.measures import accuracies, measure_together
from metanb.maml import fusing
from metanb.maml.cuda_graph import Replayed
from metanb.maml.engine import Engine, precision, warn_without
from metanb.maml.fusing import fused
from metanb.maml.inner_loop import flatten, keep_freed_memory, unflatten
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import chunk_size, meta_gradient, supervised_gradient
from metanb.runs import machine, records
from metanb.runs.checkpoint import State
from metanb.settings import Settings

# Streams of random numbers: the tasks of iteration i come from [seed, TRAIN, i], fixed ones from
# [task_seed, stream]. The final tasks are many: FINAL, FINAL + 1 and so on are the streams of PART
# tasks each.
TRAIN, VALID, TEST, FINAL = range(4)
PART = 60


class DivergedError(ArithmeticError):
    """The meta-training loss is no longer finite; the message names the iteration and the run."""


Ended = DivergedError | records.RecordError  # why a run has no record


def load(settings: Settings, split: str) -> ImageSet:
    """The image set of one split; meta-training's with rotations, or with few classes, as the settings say."""
    train = split == "train"
    whole = image_sets.load(
        settings.dataset,
        split,
        partition=settings.partition,
        rotations=settings.rotations and train,
    )
    few = train and settings.train_classes
    return image_sets.keep(whole, settings.train_classes, settings.class_seed) if few else whole


def new_net(settings: Settings, train: ImageSet) -> ConvNet:
    """The untrained network of these settings, on the CPU; torch's own random state stays as it is.

    Finetuning trains a head with an output for each meta-train class.
    """
    outputs = len(train.classes) if settings.algorithm == "finetune" else settings.ways
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ConvNet(train.images.shape[2:], outputs, settings.filters, settings.head_init)


def fixed_tasks(settings: Settings, images_: ImageSet, n: int, stream: int) -> Tasks:
    """Tasks that are the same for every run of these settings and every epoch."""
    rng = np.random.default_rng([settings.task_seed, stream])
    return sample_tasks(images_, n, settings.ways, settings.shots, settings.test_queries, rng)


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
            return torch.cat([pixels_of(images_, draw) for images_, draw in draws])
        return torch.from_numpy(
            np.concatenate([self.first[images_.digest] + draw.images for images_, draw in draws])
        )

    def images(self, inputs: Tensor) -> Tensor:
        """The images that `inputs` stand for, float32 in [0, 1], on the device: [rows, n, C, H, W]."""
        return scaled(inputs if self.on_device is None else self.on_device[inputs])


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
        self.net = new_net(self.settings, sets[0]).to(device)
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
                others.append(directions(1, size, int(rng.integers(2**63))).float())
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
                as_tasks(x, labels, settings.ways * settings.shots),
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


def train(
    runs: Sequence[Settings], device: torch.device, last: int, engine: Engine, *, shown: bool
) -> list[records.Record | Ended]:
    """Train and measure runs that differ by seeds alone up to epoch `last`, from their checkpoints, and record them.

    The caller holds the runs' locks. A checkpoint of each is written after each epoch: a kill loses
    at most one. Runs may stand at different epochs, as those do that were begun apart: each goes on
    from its own.

    Args:
        runs: the settings, one or more.
        device: where.
        last: the epoch at which they stop.
        engine: how.
        shown: whether a progress bar is shown.

    Returns:
        For each run its record, or why it ended without one: it diverged, or its checkpoint is not
            usable.
    """
    # all that tells their image sets apart
    kept = {settings.class_seed: settings for settings in runs}
    loaded = {class_seed: load(settings, "train") for class_seed, settings in kept.items()}
    sets = [loaded[settings.class_seed] for settings in runs]
    held = {split: load(runs[0], split) for split in ("valid", "test")}
    test = fixed_tasks(runs[0], held["test"], runs[0].test_tasks, TEST).to(device)
    valid = fixed_tasks(runs[0], held["valid"], runs[0].test_tasks, VALID).to(device)
    keep_freed_memory()
    pool = TrainingImages(sets, device, engine.resident)
    results: dict[Settings, records.Record | Ended] = {}
    states, of_state = [], []
    for settings, images_ in zip(runs, sets, strict=True):
        try:
            states.append(_state(settings, images_, held, device, engine))
            of_state.append(images_)
        except records.RecordError as error:
            results[settings] = error
            _say_set_aside(error, len(runs))
    name = runs[0].id if len(runs) == 1 else f"{runs[0].id} and {len(runs) - 1} more"
    done = sum(max(0, state.epoch) for state in states) * runs[0].epoch_iterations
    bar = tqdm(
        total=len(runs) * last * runs[0].epoch_iterations,
        initial=done,
        desc=name,
        unit="it",
        disable=not shown,
        dynamic_ncols=True,
    )
    with bar:
        cohort: Cohort | None = None
        while active := [
            (state, images_)
            for state, images_ in zip(states, of_state, strict=True)
            if state.epoch < last and state.settings not in results
        ]:
            # Those that were never measured are, untrained; then all train an epoch together,
            # whichever is theirs.
            untrained = [pair for pair in active if pair[0].epoch < 0]
            members, their_sets = zip(*(untrained or active), strict=True)
            if cohort is None or cohort.states != members:
                cohort = None  # its memory goes first
                cohort = Cohort(members, their_sets, pool, device, engine)
            for state, reason in _epoch(cohort, test, valid, bar, trains=not untrained).items():
                results[state.settings] = reason
                _say_set_aside(reason, len(runs))
            if untrained:
                cohort = None
    for state in states:
        if state.settings not in results:
            results[state.settings] = record(state.settings, state.net.to(device), vars(state))
    return [results[settings] for settings in runs]


def _say_set_aside(error: Ended, runs: int) -> None:
    if runs > 1:
        print(f"set aside: {error}; the others go on", file=sys.stderr)


def record(settings: Settings, net: ConvNet, values: dict[str, Any]) -> records.Record:
    """Write the record of a run at the end or where it stopped: `values` are a State's, by name.

    What is measured only here: `final_accuracy`, of meta-test tasks that the epochs' measures do
    not use.
    """
    rows = list(values["rows"])
    if settings.final_tasks:
        test, parts = load(settings, "test"), []
        for i, first in enumerate(range(0, settings.final_tasks, PART)):
            tasks = fixed_tasks(settings, test, min(PART, settings.final_tasks - first), FINAL + i)
            with precision(tf32=False):
                parts.append(accuracies(net, tasks, settings, FINAL + i))
        place = {"epoch": values["epoch"], "iteration": values["epoch"] * settings.epoch_iterations}
        rows.append(
            place | {"measure": "final_accuracy"} | asdict(hessian.summarise(torch.cat(parts)))
        )
    times = {
        "started": values["started"],
        "finished": values["saved"],
        "wall_seconds": round(values["wall"], 1),
        "cpu_seconds": round(values["cpu"], 1),
        "shared_seconds": round(values["shared"], 1),
        "resumed": values["resumed"],
    }
    return records.write(settings, rows, values["origin"] | times, records.store())


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


def _state(
    settings: Settings,
    train: ImageSet,
    held: dict[str, ImageSet],
    device: torch.device,
    engine: Engine,
) -> State:
    """A run as its checkpoint has it, or at its beginning."""
    origin = {
        **machine.environment(device),
        "code": machine.code(),
        "chunk": chunk_size(settings, device),
        "precision": engine.precision,
        "data": {split: images_.digest for split, images_ in {"train": train, **held}.items()},
    }
    net = new_net(settings, train)
    state = State(settings, net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), origin)
    path = records.checkpoint(settings.id)
    if path.exists():
        state.load(path)
    return state


def _epoch(
    cohort: Cohort, test: Tasks, valid: Tasks, bar: tqdm, trains: bool
) -> dict[State, DivergedError]:
    """Train one epoch and measure, or measure alone; write the checkpoints; the runs that ended, and why."""
    wall, cpu = time.perf_counter(), time.process_time()
    nothing: list[dict[str, Stat] | DivergedError] = [{} for _ in cohort.states]
    trained = cohort.train(bar) if trains else nothing
    theta, outcomes = cohort.theta, {}
    going = [i for i, outcome in enumerate(trained) if not isinstance(outcome, DivergedError)]
    if going:
        measured = _measure(cohort, theta, going, test, valid)
        outcomes = dict(zip(going, measured, strict=True))
    if trains:
        cohort.keep()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ended = {}
    for i, (state, outcome) in enumerate(zip(cohort.states, trained, strict=True)):
        measures = outcome if isinstance(outcome, DivergedError) else outcomes[i]
        if isinstance(measures, DivergedError):
            ended[state] = measures
            continue
        assert not isinstance(outcome, DivergedError)  # it would not have been measured
        state.epoch += 1
        place = {"epoch": state.epoch, "iteration": state.epoch * state.settings.epoch_iterations}
        state.rows += [place | {"measure": k} | asdict(v) for k, v in (outcome | measures).items()]
        state.wall += wall
        state.cpu += cpu / len(cohort.states)
        state.shared += wall / len(cohort.states)
        if trains:
            state.note("together", len(cohort.states))
            state.note("engine", cohort.features)
        state.save(records.checkpoint(state.settings.id))
    return ended


def _measure(
    cohort: Cohort, theta: Tensor, chosen: Sequence[int], test: Tasks, valid: Tasks
) -> list[dict[str, Stat] | DivergedError]:
    """The measures of some runs of the cohort, at once; where that fails, one by one, to tell which of them failed."""
    states = [cohort.states[i] for i in chosen]
    try:
        runs = [state.settings for state in states]
        with precision(tf32=False):
            return list(
                measure_together(
                    cohort.net, torch.stack([theta[i] for i in chosen]), test, valid, runs
                )
            )
    except LandscapeError as error:
        if len(chosen) == 1:
            return [diverged(f"{error}, after epoch {states[0].epoch + 1}", states[0])]
    return [outcome for i in chosen for outcome in _measure(cohort, theta, [i], test, valid)]


def _alive(method: WeakMethod[Any]) -> Any:
    """The method of an object that is still there: nobody else calls for a cohort's gradient."""
    bound = method()
    assert bound is not None
    return bound


def _of_runs(values: Tensor, runs: int) -> Tensor:
    """The mean of each run's values, [S], of [S*T]: summed run by run, as for a run alone."""
    return torch.stack([rows.mean() for rows in values.view(runs, -1)])


def _over_iterations(rows: list[list[float]], run: int) -> Stat:
    return hessian.summarise(torch.tensor([row[run] for row in rows], dtype=torch.float64))
