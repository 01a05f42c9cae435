"""Runs by their settings: read where they are recorded, trained where they are not.

And the networks they end with.
"""

import gc
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from metanb.data.tasks import Tasks
from metanb.maml.engine import Engine, choose_engine
from metanb.maml.network import ConvNet
from metanb.runs import checkpoint, cohorts, records, store, training, weights

# callers know it as experiment.DivergedError
from metanb.runs.cohorts import DivergedError as DivergedError
from metanb.runs.machine import MemoryFullError, enough_memory, is_interactive, resolve_device
from metanb.runs.training import RunFailure, load_split, new_network
from metanb.settings import Settings


def run(settings: Settings, device: str = "auto", until: int | None = None) -> records.Record:
    """The record of these settings: read if there is one, trained if not.

    A run that was interrupted goes on from its last epoch, to the very numbers of an uninterrupted
    one on the same CPU. A second process that asks for a run in progress waits for it.

    Args:
        settings: what to run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        until: stop after the epoch that reaches this iteration, and record the run as far as it
            got.

    Raises:
        DivergedError: a meta-training loss is not finite; the last checkpoint is kept.
        MemoryFullError: the run does not fit into memory, the GPU's or the machine's; the last
            checkpoint is kept.
        metanb.data.cache.DataError: the data set is missing or damaged.
        metanb.runs.records.RecordError: a record of these settings is there, but damaged.
    """
    return run_all([settings], device, until)[0]


def run_all(
    runs: Iterable[Settings],
    device: str = "auto",
    until: int | None = None,
    together: int | None = None,
) -> list[records.Record]:
    """The records of several runs, in their order, each as `run` gives it.

    On a GPU those that are missing and differ by seeds alone train side by side, in one batch; on a
    CPU one after the other. A run that diverges is set aside, and the others of its batch go on and
    are recorded before it is raised. Where a batch does not fit into the GPU's memory, it is
    halved.

    Args:
        runs: what to run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        until: as for `run`.
        together: runs at most in a batch; None: `metanb.maml.engine.TOGETHER` on a GPU, 1 on a CPU.

    Raises:
        ValueError: an unknown device, or `together` is below 1; and what `run` raises.
    """
    runs = list(runs)
    if together is not None and together < 1:
        raise ValueError(f"together is {together}: at least 1 run in a batch")
    cells: dict[Settings, list[Settings]] = {}
    for settings in dict.fromkeys(runs):
        if records.find_record(settings, settings.epoch_of(until)) is None:
            cells.setdefault(settings.unseeded, []).append(settings)
    if cells:
        where = resolve_device(device)
        engine = choose_engine(where, together)
        for cell in cells.values():
            for first in range(0, len(cell), engine.together):
                _raise_first(_train(cell[first : first + engine.together], where, until, engine))
    return [_recorded(settings, until) for settings in runs]


def _recorded(settings: Settings, until: int | None) -> records.Record:
    record = records.find_record(settings, settings.epoch_of(until))
    assert record is not None  # it was read or trained
    return record


def _train(
    runs: Sequence[Settings], device: torch.device, until: int | None, engine: Engine
) -> list[records.Record | RunFailure]:
    """Train those of the runs that are not recorded yet, together; in halves where memory is too small for all."""
    last = runs[0].epoch_of(until)
    with ExitStack() as locks:
        # in one order: no two processes wait crosswise
        for settings in sorted(runs, key=lambda settings: settings.id):
            locks.enter_context(store.lock_run(settings.id))
        # still, behind the locks
        missing = [settings for settings in runs if records.find_record(settings, last) is None]
        if not missing:
            return []
        try:
            with enough_memory(missing[0]):
                return training.train_together(
                    missing, device, last, engine, shown=is_interactive()
                )
        except MemoryFullError:
            if len(missing) == 1:
                raise
    # Outside of the handler, where the error's traceback would keep the batch's tensors alive.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    half = (len(missing) + 1) // 2
    print(
        f"{len(missing)} runs together do not fit into memory: going on with {half} at a time",
        file=sys.stderr,
    )
    parts = missing[:half], missing[half:]
    return [result for part in parts for result in _train(part, device, until, engine)]


def _raise_first(results: Iterable[records.Record | RunFailure]) -> None:
    for result in results:
        if not isinstance(result, records.Record):
            raise result


def trained_net(settings: Settings, device: str = "auto") -> ConvNet:
    """The network at the end of a run, on the CPU; trained where its weights are not stored.

    Weights kept beside the run's record come first, then the checkpoint in the local store. Neither
    needs the image set.

    Args:
        settings: of the run.
        device: to train on: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises RecordError if the kept weights, their record or the checkpoint are damaged; where the
    run is trained, whatever `run` raises.
    """
    if kept := _kept_net(settings, settings.epochs):
        return kept
    path = store.checkpoint_path(settings.id)
    with store.lock_run(settings.id), enough_memory(settings):
        if not path.exists() or checkpoint.read_checkpoint(path)["epoch"] < settings.epochs:
            where = resolve_device(device)
            _raise_first(
                training.train_together(
                    [settings],
                    where,
                    settings.epochs,
                    choose_engine(where, 1),
                    shown=is_interactive(),
                )
            )
    return _net_of(settings, checkpoint.read_checkpoint(path))


def nets_after(
    settings: Settings, epochs: Iterable[int], device: str = "auto"
) -> dict[int, ConvNet]:
    """The network after each of some epochs, on the CPU; 0 is the untrained one.

    The weights after an epoch are read where they are kept beside the record of this run, stopped
    there. Elsewhere they are those of the run that ends after that epoch, as `trained_net` has
    them; of the runs that are trained for this a longer one goes on from a shorter one.
    """
    nets: dict[int, ConvNet] = {}
    shorter = None
    for epoch in sorted(set(epochs)):
        if epoch == 0:
            nets[epoch] = new_network(settings, load_split(settings, "train"))
            continue
        if kept := _kept_net(settings, epoch):
            nets[epoch] = kept
            continue
        part = settings.ending(epoch)
        if shorter is not None and store.checkpoint_path(shorter.id).exists():
            with store.lock_run(part.id):
                checkpoint.go_on_from(
                    store.checkpoint_path(shorter.id), store.checkpoint_path(part.id)
                )
        nets[epoch], shorter = trained_net(part, device), part
    return nets


def meta_test_tasks(settings: Settings) -> Tasks:
    """The fixed meta-test tasks on which a run's measures are taken."""
    return training.fixed_tasks(
        settings, load_split(settings, "test"), settings.test_tasks, cohorts.TEST
    )


def record_so_far(settings: Settings, device: str = "auto") -> records.Record | None:
    """Record a run that was stopped, as far as its checkpoint goes; None if that is not one epoch.

    The checkpoint stays: asked for again, the run goes on from there. Raises filelock.Timeout if
    another process is at it.
    """
    with store.lock_run(settings.id, patience=5):
        if (found := records.find_record(settings)) or not store.checkpoint_path(
            settings.id
        ).exists():
            return found
        values = checkpoint.read_checkpoint(store.checkpoint_path(settings.id))
        if values["epoch"] < 1:
            return None
        return training.record_run(
            settings, _net_of(settings, values).to(resolve_device(device)), values
        )


def _net_of(settings: Settings, values: dict[str, Any]) -> ConvNet:
    """The network of a checkpoint."""
    return weights.network_with(settings, values["net"])


def _kept_net(settings: Settings, epoch: int) -> ConvNet | None:
    """The network after an epoch, if its weights are kept beside a record that ends there."""
    record = weights.find_weights(settings, epoch)
    state = weights.load_weights(record) if record else None
    return weights.network_with(settings, state) if state else None
