"""Runs by their settings: read where they are recorded, trained where they are not.

The networks at the end of a run, and after its epochs, come from here too.
"""

import gc
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from metanb.data.tasks import Tasks
from metanb.maml.engine import Engine, choose_engine
from metanb.runs import checkpoint, cohorts, plugins, records, store, training, weights

# callers know it as experiment.DivergedError
from metanb.runs.cohorts import DivergedError as DivergedError
from metanb.runs.machine import MemoryFullError, enough_memory, is_interactive, resolve_device
from metanb.runs.training import RunFailure, load_split, new_network
from metanb.settings import Settings


def run(settings: Settings, device: str = "auto", until: int | None = None) -> records.Record:
    """The record of these settings: read if there is one, trained if not.

    A run that was interrupted goes on from its last epoch. On the same CPU it ends with the very
    numbers of an uninterrupted one. A second process that asks for a run in progress waits for it.
    A line on standard error says if a plugin was edited after the run was recorded or interrupted.

    Args:
        settings: what to run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        until: stop after the epoch that reaches this iteration, and record the run as far as it
            got; 0: the untrained network is recorded alone; None: train all epochs.

    Raises:
        ValueError: an unknown device, or `until` is below 0.
        DivergedError: a meta-training loss is not finite; the last checkpoint is kept.
        MemoryFullError: the run does not fit into memory, the GPU's or the machine's; the last
            checkpoint is kept.
        metanb.data.cache.DataError: the data set is missing or damaged.
        metanb.runs.records.RecordError: a record of these settings exists, but it is damaged.

    Example:
        >>> import os
        >>> from tempfile import TemporaryDirectory
        >>> from unittest.mock import patch
        >>> from metanb import preset, run
        >>> settings = preset("smoke", "glyphs", iterations=2, epoch_iterations=1, test_tasks=4)
        >>> with TemporaryDirectory() as folder, patch.dict(os.environ, METANB_STORE=folder):
        ...     record = run(settings, "cpu")
        >>> record.epochs, record.finished
        (2, True)
    """
    return run_all([settings], device, until)[0]


def run_all(
    runs: Iterable[Settings],
    device: str = "auto",
    until: int | None = None,
    together: int | None = None,
) -> list[records.Record]:
    """The records of several runs, in their order, each as `run` gives it.

    Missing runs that differ by seeds alone train side by side in batches on a GPU, and one after
    the other on a CPU. If a run diverges, the others of its batch go on and are recorded before the
    error is raised. A batch that does not fit into the GPU's memory is halved.

    Args:
        runs: what to run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        until: as for `run`.
        together: runs per batch, at most; None: `metanb.maml.engine.TOGETHER` on a GPU, 1 on a CPU.

    Raises:
        ValueError: `together` is below 1; and what `run` raises.
    """
    if until is not None and until < 0:
        raise ValueError(f"until is {until}: give an iteration, 0 or later")
    runs = training.identify_runs(runs)
    if together is not None and together < 1:
        raise ValueError(f"together is {together}: at least 1 run in a batch")

    # Group the missing runs by cell: the runs of a cell differ by seeds alone.
    cells: dict[Settings, list[Settings]] = {}
    for settings in dict.fromkeys(runs):
        if record := records.find_record(settings, settings.epoch_of(until)):
            plugins.report_edited(f"record {record.path}", record.provenance, record.anew)
        else:
            cells.setdefault(settings.unseeded, []).append(settings)

    # Train each cell, batch by batch.
    if cells:
        torch_device = resolve_device(device)
        engine = choose_engine(torch_device, together)
        for cell in cells.values():
            for first in range(0, len(cell), engine.together):
                batch = cell[first : first + engine.together]
                _raise_first(_train_batch(batch, torch_device, until, engine))
    return [_read_recorded(settings, until) for settings in runs]


def _train_batch(
    runs: Sequence[Settings], device: torch.device, until: int | None, engine: Engine
) -> list[records.Record | RunFailure]:
    """Train the missing ones of these runs together, or in halves if memory is too small for all.

    Returns:
        For each missing run its record, or the error that ended it.
    """
    last = runs[0].epoch_of(until)
    with ExitStack() as locks:
        # Lock the runs in one order everywhere, so that no two processes wait for each other.
        for settings in sorted(runs, key=lambda settings: settings.id):
            locks.enter_context(store.lock_run(settings.id))
        # Look again: another process may have recorded some while this one waited.
        missing = [settings for settings in runs if records.find_record(settings, last) is None]
        if not missing:
            return []
        try:
            with enough_memory(missing[0]):
                shown = is_interactive()
                return training.train_together(missing, device, last, engine, shown=shown)
        except MemoryFullError:
            if len(missing) == 1:
                raise
    # Free the memory, outside of the handler: there the error's traceback would keep the batch's
    # tensors alive.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

    # Train one half after the other.
    half = (len(missing) + 1) // 2
    print(
        f"{len(missing)} runs together do not fit into memory: going on with {half} at a time",
        file=sys.stderr,
    )
    first_half = _train_batch(missing[:half], device, until, engine)
    return first_half + _train_batch(missing[half:], device, until, engine)


def _raise_first(results: Iterable[records.Record | RunFailure]) -> None:
    """Raise the first error among the results of a batch, if there is one."""
    for result in results:
        if not isinstance(result, records.Record):
            raise result


def _read_recorded(settings: Settings, until: int | None) -> records.Record:
    """The record of a run that was found or trained."""
    record = records.find_record(settings, settings.epoch_of(until))
    assert record is not None
    return record


def trained_net(settings: Settings, device: str = "auto") -> nn.Module:
    """The network at the end of a run, on the CPU; trained where its weights are not stored.

    Weights kept beside the run's record come first, then the checkpoint in the local store. Neither
    needs the image set. After finetuning the head is zero, with N outputs: the trained one, for all
    meta-train classes, serves no task.

    Args:
        settings: of the run.
        device: to train on: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        metanb.runs.records.RecordError: the kept weights, their record or the checkpoint are
            damaged; and, where the run is trained, whatever `run` raises.
    """
    (settings,) = training.identify_runs([settings])
    if kept := _kept_net(settings, settings.epochs):
        return kept
    values = _read_whole_checkpoint(settings)
    if values is None:
        with store.lock_run(settings.id), enough_memory(settings):
            # Look again: another process may have trained it while this one waited.
            if _read_whole_checkpoint(settings) is None:
                torch_device = resolve_device(device)
                engine = choose_engine(torch_device, 1)
                results = training.train_together(
                    [settings], torch_device, settings.epochs, engine, shown=is_interactive()
                )
                _raise_first(results)
        values = checkpoint.read_checkpoint(store.checkpoint_path(settings.id))
    return _net_of_checkpoint(settings, values)


def _read_whole_checkpoint(settings: Settings) -> dict[str, Any] | None:
    """The checkpoint of a run, if it has reached the run's last epoch."""
    path = store.checkpoint_path(settings.id)
    values = checkpoint.read_checkpoint(path) if path.exists() else None
    return values if values and values["epoch"] >= settings.epochs else None


def nets_after(
    settings: Settings, epochs: Iterable[int], device: str = "auto"
) -> dict[int, nn.Module]:
    """The network after each of some epochs, on the CPU; epoch 0 is the untrained network.

    Weights kept beside the record of this run, stopped after that epoch, come first. Otherwise they
    are those of the run whose settings end after that epoch, as `trained_net` gives them. Where
    several such runs are trained, a longer one goes on from a shorter one.

    After finetuning the networks have a head of zeros with N outputs, as `trained_net` says. Only
    that of epoch 0 has the head that it was drawn with, of an output per meta-train class.

    Raises:
        ValueError: the run does not have one of the epochs; and what `trained_net` raises.
    """
    wanted = sorted(set(epochs))
    for epoch in wanted:
        if not 0 <= epoch <= settings.epochs:
            raise ValueError(f"epoch is {epoch}: give one from 0 to {settings.epochs}")
    (settings,) = training.identify_runs([settings])
    nets: dict[int, nn.Module] = {}
    shorter: Settings | None = None
    for epoch in wanted:
        if epoch == 0:
            nets[epoch] = new_network(settings, load_split(settings, "train"))
        elif kept := _kept_net(settings, epoch):
            nets[epoch] = kept
        else:
            part = settings.ending(epoch)
            if shorter is not None:
                _go_on_from(shorter, part)
            nets[epoch] = trained_net(part, device)
            shorter = part
    return nets


def _go_on_from(shorter: Settings, longer: Settings) -> None:
    """Let a run that has no checkpoint start from that of a shorter one, if there is one."""
    path = store.checkpoint_path(shorter.id)
    if path.exists() and not store.checkpoint_path(longer.id).exists():
        with store.lock_run(longer.id):
            checkpoint.go_on_from(path, store.checkpoint_path(longer.id))


def meta_test_tasks(settings: Settings) -> Tasks:
    """The fixed meta-test tasks on which a run's measures are taken, on the CPU."""
    images = load_split(settings, "test")
    return training.fixed_tasks(settings, images, settings.test_tasks, cohorts.TEST)


def record_so_far(settings: Settings, device: str = "auto") -> records.Record | None:
    """Record a run that was stopped, as far as its checkpoint goes.

    The checkpoint stays, and the run goes on from there when it is asked for again.

    Args:
        settings: of the run.
        device: to measure on: "cpu", "cuda", or "auto" for a GPU where there is one.

    Returns:
        The record, or None if the run has not trained one epoch.

    Raises:
        metanb.files.LockedError: another process is training the run.
    """
    (settings,) = training.identify_runs([settings])
    path = store.checkpoint_path(settings.id)
    with store.lock_run(settings.id, patience=5):
        record = records.find_record(settings)
        if record or not path.exists():
            return record
        values = checkpoint.read_checkpoint(path)
        if values["epoch"] < 1:
            return None
        net = _net_of_checkpoint(settings, values).to(resolve_device(device))
        return training.record_run(settings, net, values)


def _net_of_checkpoint(settings: Settings, values: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint, on the CPU."""
    return weights.network_with(settings, values["net"])


def _kept_net(settings: Settings, epoch: int) -> nn.Module | None:
    """The network after an epoch, if its weights are kept beside a record that ends there."""
    record = weights.find_weights(settings, epoch)
    state = weights.load_weights(record) if record else None
    return weights.network_with(settings, state) if state else None
