"""Meta-training: image sets, networks, the loop over epochs with measures and checkpoints, the record.

Runs that differ by seeds alone are trained side by side, as a cohort: their weights are [S, P],
their tasks go through the network together. Each run keeps its own draws, checkpoint, record and
messages, and reads as if it had been alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metanb.data import image_sets
from metanb.data.image_sets import ImageSet
from metanb.data.tasks import Tasks, sample_tasks
from metanb.landscape import task_stats
from metanb.landscape.lanczos import LandscapeError
from metanb.landscape.measures import accuracies_after_adapting, measure_together
from metanb.landscape.task_stats import Stat
from metanb.maml.engine import Engine, precision
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import chunk_size
from metanb.runs import machine, records, store
from metanb.runs.checkpoint import State
from metanb.runs.cohorts import FINAL, TEST, VALID, Cohort, DivergedError, TrainingImages, diverged
from metanb.runs.machine import keep_freed_memory
from metanb.settings import Settings

PART = 60


Ended: TypeAlias = DivergedError | records.RecordError  # why a run has no record


def load_split(settings: Settings, split: str) -> ImageSet:
    """The image set of one split; meta-training's with rotations, or with few classes, as the settings say."""
    train = split == "train"
    whole = image_sets.load_images(
        settings.dataset,
        split,
        partition=settings.partition,
        rotations=settings.rotations and train,
    )
    few = train and settings.train_classes
    return (
        image_sets.keep_classes(whole, settings.train_classes, settings.class_seed)
        if few
        else whole
    )


def new_network(settings: Settings, train: ImageSet) -> ConvNet:
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


def train_together(
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
    loaded = {class_seed: load_split(settings, "train") for class_seed, settings in kept.items()}
    sets = [loaded[settings.class_seed] for settings in runs]
    held = {split: load_split(runs[0], split) for split in ("valid", "test")}
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
            results[state.settings] = record_run(state.settings, state.net.to(device), vars(state))
    return [results[settings] for settings in runs]


def _say_set_aside(error: Ended, runs: int) -> None:
    if runs > 1:
        print(f"set aside: {error}; the others go on", file=sys.stderr)


def record_run(settings: Settings, net: ConvNet, values: dict[str, Any]) -> records.Record:
    """Write the record of a run at the end or where it stopped: `values` are a State's, by name.

    What is measured only here: `final_accuracy`, of meta-test tasks that the epochs' measures do
    not use.
    """
    rows = list(values["rows"])
    if settings.final_tasks:
        test, parts = load_split(settings, "test"), []
        for i, first in enumerate(range(0, settings.final_tasks, PART)):
            tasks = fixed_tasks(settings, test, min(PART, settings.final_tasks - first), FINAL + i)
            with precision(tf32=False):
                parts.append(accuracies_after_adapting(net, tasks, settings, FINAL + i))
        place = {"epoch": values["epoch"], "iteration": values["epoch"] * settings.epoch_iterations}
        rows.append(
            place | {"measure": "final_accuracy"} | asdict(task_stats.summarise(torch.cat(parts)))
        )
    times = {
        "started": values["started"],
        "finished": values["saved"],
        "wall_seconds": round(values["wall"], 1),
        "cpu_seconds": round(values["cpu"], 1),
        "shared_seconds": round(values["shared"], 1),
        "resumed": values["resumed"],
    }
    return records.write_record(settings, rows, values["origin"] | times, store.store_folder())


def _state(
    settings: Settings,
    train: ImageSet,
    held: dict[str, ImageSet],
    device: torch.device,
    engine: Engine,
) -> State:
    """A run as its checkpoint has it, or at its beginning."""
    origin = {
        **machine.describe_environment(device),
        "code": machine.code_version(),
        "chunk": chunk_size(settings, device),
        "precision": engine.precision,
        "data": {split: images_.digest for split, images_ in {"train": train, **held}.items()},
    }
    net = new_network(settings, train)
    state = State(settings, net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), origin)
    path = store.checkpoint_path(settings.id)
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
        state.save(store.checkpoint_path(state.settings.id))
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
