"""Meta-training, top to bottom: load, build the networks, loop over epochs, record.

Runs that differ by seeds alone train side by side, as a cohort: their weights are [S, P], and their
tasks go through the network together. Each run keeps its own draws, checkpoint, record and
messages. Its record reads as if it had trained alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from metanb.data import image_sets
from metanb.data.image_sets import ImageSet
from metanb.data.tasks import Tasks, sample_tasks
from metanb.labels import ALGORITHMS, DATASETS, describe_own
from metanb.landscape import task_stats
from metanb.landscape.lanczos import LandscapeError
from metanb.landscape.measures import accuracies_after_adapting, measure_together
from metanb.landscape.solutions import without_common_answer
from metanb.landscape.task_stats import Stat
from metanb.maml.check import check_outputs, same_values
from metanb.maml.engine import Engine, precision
from metanb.maml.inner_loop import flatten
from metanb.maml.network import build_network
from metanb.maml.outer_loop import chunk_size
from metanb.runs import machine, plugins, records, store
from metanb.runs.checkpoint import State
from metanb.runs.cohorts import (
    FINAL,
    TEST,
    TRAIN,
    VALID,
    Cohort,
    DivergedError,
    EpochOutcome,
    TrainingImages,
    diverged_error,
)
from metanb.settings import Settings

TASKS_PER_STREAM = 60  # of the final tasks; each stream of random numbers draws so many

CENTRING_TASKS = 40  # of meta-train classes, in whose images a centred head's mean feature is taken

# What a progress bar says that is done; of one length, so that the bar stays in its place.
TRAINING = "training "
MEASURING = "measuring"

RunFailure: TypeAlias = DivergedError | records.RecordError  # why a run has no record


def train_together(
    runs: Sequence[Settings], device: torch.device, last: int, engine: Engine, *, shown: bool
) -> list[records.Record | RunFailure]:
    """Train runs that differ by seeds alone up to epoch `last`, measure and record them.

    Each run starts from its checkpoint, if it has one, and writes a checkpoint after each epoch: a
    kill loses at most one epoch. The runs may be at different epochs, and each goes on from its
    own. The caller holds the runs' locks.

    Args:
        runs: the settings, one or more.
        device: where to compute.
        last: the epoch at which the runs stop.
        engine: what is done for speed.
        shown: whether a progress bar is shown.

    Returns:
        For each run its record, or the error that ended it without one: it diverged, or its
        checkpoint is not usable.
    """
    # Load the images of each run, and the fixed tasks that every epoch is measured on.
    with_content(runs[0])
    images = _load_training_images(runs)
    held_out = {split: load_split(runs[0], split) for split in ("valid", "test")}
    test = fixed_tasks(runs[0], held_out["test"], runs[0].test_tasks, TEST).to(device)
    valid = fixed_tasks(runs[0], held_out["valid"], runs[0].test_tasks, VALID).to(device)
    machine.keep_freed_memory()
    pool = TrainingImages(images.values(), device, engine.resident)

    # Build the networks: untrained, or as their checkpoints have them.
    results: dict[Settings, records.Record | RunFailure] = {}
    states: list[State] = []
    for settings in runs:
        try:
            states.append(_load_state(settings, images[settings], held_out, device, engine))
        except records.RecordError as error:
            results[settings] = error
            _report_set_aside(error, len(runs))

    # Loop over epochs, until each run has reached the last one or has failed.
    cohort: Cohort | None = None
    with _progress_bar(runs, states, last, shown) as bar:
        while active := [s for s in states if s.epoch < last and s.settings not in results]:
            # Untrained networks are measured first. Then all runs train one epoch together: each
            # trains its own next epoch.
            untrained = [state for state in active if state.epoch < 0]
            waiting = untrained or active
            # A cohort has one set of buffers: runs with others of their own take their turn later.
            members = tuple(s for s in waiting if _same_buffers(s.net, waiting[0].net))
            if cohort is None or cohort.states != members:
                cohort = None  # frees its memory before the next cohort asks for the same
                sets = [images[state.settings] for state in members]
                cohort = Cohort(members, sets, pool, device, engine)
            failures = _run_epoch(cohort, test, valid, bar, trains=not untrained)
            for state, failure in failures.items():
                results[state.settings] = failure
                _report_set_aside(failure, len(runs))
            if untrained:
                cohort = None

        # Record the runs that went well, which measures them once more.
        bar.set_description(MEASURING)
        for state in states:
            if state.settings not in results:
                net = state.net.to(device)
                results[state.settings] = record_run(state.settings, net, vars(state))
    return [results[settings] for settings in runs]


def _load_training_images(runs: Sequence[Settings]) -> dict[Settings, ImageSet]:
    """The meta-training images of each run; runs with the same draw of classes share one set."""
    by_class_seed: dict[int, ImageSet] = {}
    for settings in runs:
        if settings.class_seed not in by_class_seed:
            by_class_seed[settings.class_seed] = load_split(settings, "train")
    return {settings: by_class_seed[settings.class_seed] for settings in runs}


def load_split(
    settings: Settings, split: str, digests: Mapping[str, str] | None = None
) -> ImageSet:
    """The image set of one split.

    The rotations and the few classes that the settings ask for apply to the split "train" alone.

    Args:
        settings: of the run.
        split: "train", "valid" or "test".
        digests: of the images that the run was trained and measured on, by split; None: any images.

    Raises:
        metanb.data.cache.DataError: as `load_images` and `require_images` do.
    """
    train = split == "train"
    images = image_sets.load_images(settings.dataset, split, rotations=settings.rotations and train)
    if train and settings.train_classes:
        images = image_sets.keep_classes(images, settings.train_classes, settings.class_seed)
    require_images(images, digests or {})
    return images


def require_images(images: ImageSet, digests: Mapping[str, str]) -> None:
    """Raise DataError unless the images are those of a run.

    Args:
        images: of one split.
        digests: of the run's images by split, as its provenance has them under "data"; a split that
            is not there is not compared.
    """
    expected = digests.get(images.split, images.digest)
    if images.digest != expected:
        raise image_sets.DataError(
            f"data set {images.name!r}, {images.split}, is {images.digest}, and the run is of "
            f"{expected}: put the earlier images back, or train the run anew"
        )


def identify_runs(runs: Iterable[Settings]) -> list[Settings]:
    """The settings that identify runs: with the content of the images, read once per data set.

    A content that is given already stays. Errors are those of `with_content`.
    """
    contents: dict[str, str] = {}
    identified = []
    for settings in runs:
        if settings.dataset not in DATASETS and not settings.content:
            if settings.dataset not in contents:
                contents[settings.dataset] = with_content(settings).content
            settings = replace(settings, content=contents[settings.dataset])
        identified.append(settings)
    return identified


def with_content(settings: Settings) -> Settings:
    """The settings with the content of the images, where these are a folder of one's own.

    Raises:
        metanb.data.cache.DataError: the images are not those of the settings, or as `load_images`
            does.
    """
    if settings.dataset in DATASETS:
        return settings
    content = image_sets.content_of(settings.dataset)
    if settings.content not in ("", content):
        raise image_sets.DataError(
            f"data set {settings.dataset!r} is {content}, and the run is of {settings.content}: "
            "put the earlier images back, or leave content out"
        )
    return replace(settings, content=content)


def fixed_tasks(settings: Settings, images: ImageSet, n_tasks: int, stream: int) -> Tasks:
    """Tasks that are the same for every epoch, and for every run with the same `task_seed`.

    Args:
        settings: the kind of tasks, and their seed.
        images: the image set to draw from.
        n_tasks: how many.
        stream: of random numbers, such as `metanb.runs.cohorts.TEST`.
    """
    rng = np.random.default_rng([settings.task_seed, stream])
    return sample_tasks(images, n_tasks, settings.ways, settings.shots, settings.test_queries, rng)


def _load_state(
    settings: Settings,
    train: ImageSet,
    held_out: dict[str, ImageSet],
    device: torch.device,
    engine: Engine,
) -> State:
    """The state of a run: that of its checkpoint, or an untrained one.

    Raises RecordError for a checkpoint that is not usable.
    """
    origin = {
        **machine.describe_environment(device),
        **plugins.describe(),
        **describe_own(settings.algorithm),
        "code": machine.code_version(),
        "chunk": chunk_size(settings, train.images.shape[-2:], device),
        "precision": engine.precision,
        "data": {split: images.digest for split, images in {"train": train, **held_out}.items()},
    }
    net = new_network(settings, train)
    state = State(settings, net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), origin)
    path = store.checkpoint_path(settings.id)
    if path.exists():
        state.load(path)
        anew = "the run goes on from there; delete it to start anew"
        plugins.report_edited(f"checkpoint {path}", state.origin, anew)
    return state


def new_network(settings: Settings, train: ImageSet) -> nn.Module:
    """The untrained network of these settings, on the CPU.

    Its head has N outputs; if the algorithm is not episodic, one output per meta-train class. The
    seed of the settings decides the weights; torch's global random state stays as it is.

    Raises:
        metanb.maml.per_task.NetworkError: it does not give one output per class, see
            `check_outputs`.
    """
    outputs = settings.ways if ALGORITHMS[settings.algorithm].episodic else len(train.classes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        net = build_network(settings, train.images.shape[2:], outputs)
        check_outputs(net, train.images.shape[2:], outputs)
        return net


def _same_buffers(net: nn.Module, reference: nn.Module) -> bool:
    """Whether two networks of one design share their buffers, or have equal ones, all dense."""
    pairs = zip(net.buffers(), reference.buffers(), strict=True)
    return all(
        buffer is expected or (buffer.layout == torch.strided and same_values(buffer, expected))
        for buffer, expected in pairs
    )


def _report_set_aside(failure: RunFailure, n_runs: int) -> None:
    """Report on standard error that a run has failed, if others go on."""
    if n_runs > 1:
        print(f"set aside: {failure}; the others go on", file=sys.stderr)


def _progress_bar(
    runs: Sequence[Settings], states: Sequence[State], last: int, shown: bool
) -> tqdm:
    """A bar over the iterations of all runs, which starts at those that the checkpoints hold.

    Its description is what is done at the moment. The runs stand on a line above it: an id would
    leave no room for the bar itself.
    """
    settings = runs[0]
    if shown:
        rest = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        length = f"{settings.iterations} iterations, {settings.epochs} epochs"
        print(f"run {settings.id}{rest}: {length}", file=sys.stderr)
    done = sum(max(0, state.epoch) for state in states)
    return tqdm(
        total=len(runs) * last * settings.epoch_iterations,
        initial=done * settings.epoch_iterations,
        desc=TRAINING,
        unit="it",
        disable=not shown,
        dynamic_ncols=True,
    )


def _run_epoch(
    cohort: Cohort, test: Tasks, valid: Tasks, bar: tqdm, *, trains: bool
) -> dict[State, DivergedError]:
    """Train one epoch, measure the networks and write the checkpoints.

    Args:
        cohort: the runs.
        test: meta-test tasks to measure on.
        valid: meta-validation tasks to measure on.
        bar: shows the progress.
        trains: whether the epoch is trained; if not, the untrained networks are measured alone.

    Returns:
        The runs that failed, and why. They get no checkpoint of this epoch.
    """
    wall_start = time.perf_counter()
    cpu_start = time.process_time()

    # Train.
    bar.set_description(TRAINING)
    outcomes: list[EpochOutcome] = cohort.train(bar) if trains else [{} for _ in cohort.states]

    # Measure the runs whose training went well, and join both kinds of statistics.
    bar.set_description(MEASURING)
    trained = {i: stats for i, stats in enumerate(outcomes) if isinstance(stats, dict)}
    measured = _measure(cohort, cohort.theta, list(trained), test, valid) if trained else []
    for (i, stats), measures in zip(trained.items(), measured, strict=True):
        outcomes[i] = stats | measures if isinstance(measures, dict) else measures

    # Put the weights back into the states.
    if trains:
        cohort.keep()
    wall = time.perf_counter() - wall_start
    cpu = time.process_time() - cpu_start

    # Save each run that went well.
    failures: dict[State, DivergedError] = {}
    for state, outcome in zip(cohort.states, outcomes, strict=True):
        if isinstance(outcome, DivergedError):
            failures[state] = outcome
            continue
        state.epoch += 1
        state.rows += make_rows(state.settings, state.epoch, outcome)
        state.wall += wall
        state.cpu += cpu / len(cohort.states)
        state.shared += wall / len(cohort.states)
        if trains:
            state.note("together", len(cohort.states))
            state.note("engine", cohort.features)
        state.save(store.checkpoint_path(state.settings.id))
    return failures


def _measure(
    cohort: Cohort, theta: Tensor, members: Sequence[int], test: Tasks, valid: Tasks
) -> list[EpochOutcome]:
    """The measures of some runs of a cohort; for a run without finite measures, its error.

    All runs are measured at once. If that fails, each is measured alone, which tells the run that
    failed.

    Args:
        cohort: the runs.
        theta: their weights, [S, P].
        members: numbers of the runs to measure, out of S.
        test: meta-test tasks.
        valid: meta-validation tasks.
    """
    states = [cohort.states[i] for i in members]
    settings = [state.settings for state in states]
    digests = [state.origin["data"] for state in states]
    rows = torch.stack([theta[i] for i in members])
    weights = weights_at_test(cohort.net, rows, settings, digests)
    try:
        with precision(tf32=False):
            return list(measure_together(cohort.net, weights, test, valid, settings))
    except LandscapeError as error:
        if len(members) == 1:
            return [diverged_error(f"{error}, after epoch {states[0].epoch + 1}", states[0])]
    # Outside of the handler, where the error's traceback would keep the tensors alive.
    return [outcome for i in members for outcome in _measure(cohort, theta, [i], test, valid)]


def weights_at_test(
    net: nn.Module, weights: Tensor, runs: Sequence[Settings], digests: Sequence[Mapping[str, str]]
) -> Tensor:
    """The weights that S runs are measured with, [S, P]: a centred head loses its common answer.

    The mean feature comes from fixed tasks of each run's own meta-train classes.

    Args:
        net: a network of the runs' design; its own weights are not used.
        weights: as they are trained, [S, P].
        runs: the S runs' settings.
        digests: of each run's images, as `load_split` takes them.

    Raises:
        metanb.data.cache.DataError: the images are not those of a run.
    """
    if runs[0].test_head != "centred":
        return weights
    centred = []
    for settings, row, of_run in zip(runs, weights, digests, strict=True):
        images = load_split(settings, "train", of_run)
        tasks = fixed_tasks(settings, images, CENTRING_TASKS, TRAIN).to(weights.device)
        centred.append(without_common_answer(net, row, tasks))
    return torch.stack(centred)


def make_rows(settings: Settings, epoch: int, stats: dict[str, Stat]) -> list[dict[str, Any]]:
    """The rows of a record for one epoch: one per measure."""
    place = {"epoch": epoch, "iteration": epoch * settings.epoch_iterations}
    return [place | {"measure": name} | asdict(stat) for name, stat in stats.items()]


def record_run(settings: Settings, net: nn.Module, values: dict[str, Any]) -> records.Record:
    """Write the record of a run, at its end or where it stopped.

    The FINAL_MEASURES are taken here: on meta-test tasks that the measures of the epochs do not
    use.

    Args:
        settings: of the run.
        net: the network as the record finds it, on any device.
        values: the attributes of the run's `State`, by name, as a checkpoint holds them.

    Raises:
        metanb.data.cache.DataError: the images are not those of the run.
    """
    rows = list(values["rows"])
    if settings.final_tasks:
        digests = values["origin"]["data"]
        weights = weights_at_test(net, flatten(net).detach().unsqueeze(0), [settings], [digests])
        stats = measure_at_the_end(settings, net, weights, digests)
        rows += make_rows(settings, values["epoch"], stats)
    times = {
        "started": values["started"],
        "finished": values["saved"],
        "wall_seconds": round(values["wall"], 1),
        "cpu_seconds": round(values["cpu"], 1),
        "shared_seconds": round(values["shared"], 1),
        "resumed": values["resumed"],
    }
    return records.write_record(settings, rows, values["origin"] | times, store.store_folder())


def as_finn_et_al_test(settings: Settings) -> Settings:
    """These settings with the meta-test of Finn et al. (2017): their code and their appendix A.1.

    There are as many query images per class as support images; all pass as one batch, and batch
    norm uses its statistics. On Omniglot, 5-way, three inner steps are taken at meta-test.
    """
    steps = 3 if (settings.dataset, settings.ways) == ("omniglot", 5) else settings.test_steps
    return replace(settings, test_queries=settings.shots, test_steps=steps)


# Accuracies after the last epoch, on `final_tasks` further meta-test tasks: by the measure's name,
# the settings that these tasks have.
FINAL_MEASURES: dict[str, Callable[[Settings], Settings]] = {
    "final_accuracy": lambda settings: settings,
    "final_accuracy_finn": as_finn_et_al_test,
}


def measure_at_the_end(
    settings: Settings,
    net: nn.Module,
    weights: Tensor,
    digests: Mapping[str, str],
    names: Collection[str] = tuple(FINAL_MEASURES),
) -> dict[str, Stat]:
    """Some of FINAL_MEASURES, by name, of weights [1, P] as `weights_at_test` gives them.

    Raises DataError for images that do not have the digests, as `load_split` does.
    """
    return {
        name: _measure_final_accuracy(change(settings), net, weights, digests)
        for name, change in FINAL_MEASURES.items()
        if name in names
    }


def _measure_final_accuracy(
    settings: Settings, net: nn.Module, weights: Tensor, digests: Mapping[str, str]
) -> Stat:
    """The query accuracy after adapting, over the settings' `final_tasks` meta-test tasks."""
    images = load_split(settings, "test", digests)
    accuracies: list[Tensor] = []
    for i, first in enumerate(range(0, settings.final_tasks, TASKS_PER_STREAM)):
        n_tasks = min(TASKS_PER_STREAM, settings.final_tasks - first)
        tasks = fixed_tasks(settings, images, n_tasks, FINAL + i)
        with precision(tf32=False):
            stream = FINAL + i
            accuracies += accuracies_after_adapting(net, weights, tasks, [settings], stream)
    return task_stats.summarise(torch.cat(accuracies))
