"""Trains the missing runs of a grid, in processes that may be stopped and resumed at any moment."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import fields
from datetime import UTC, datetime
from subprocess import DEVNULL, PIPE, Popen
from time import monotonic

from metanb.grids import hours, progress
from metanb.grids.definitions import Planned
from metanb.maml.engine import TOGETHER
from metanb.runs import records
from metanb.settings import Settings

Batch = tuple[Settings, ...]  # runs that one process trains; they differ by seeds alone


def run_grid(
    planned: Iterable[Planned],
    processes: int,
    device: str,
    say: Callable[[str], None],
    budget: float = math.inf,
    until: int | None = None,
    together: int = 1,
) -> list[str]:
    """Train the runs that are missing, in `processes` processes of one thread at a time.

    A process trains one run, or on a GPU a batch of runs that differ by seeds alone. Each is
    `metanb train`: killed at any moment, its runs go on from their last epochs when the grid is
    asked for again. If a run fails, the others go on. When the budget is spent, the runs in
    progress are stopped and recorded as far as they got.

    Args:
        planned: the runs.
        processes: how many at a time; on a GPU they share it.
        device: for all runs.
        say: is called with one line per run, which has an estimate of the time left.
        budget: minutes.
        until: the iteration after whose epoch a run makes room for the next; None: each run is
            trained whole.
        together: runs per batch, at most.

    Returns:
        A line for each run that failed, with its error.
    """
    # Find what is missing, and say how long it takes.
    report = _Report(list(planned), device, processes, together, until, say)
    report.say_plan()

    # Train it batch by batch, until all is done or the budget is spent.
    deadline = monotonic() + 60 * budget
    queue = group_into_batches(report.missing, together)
    with _Processes(processes, device, together, until) as pool:
        while queue or pool.running:
            while queue and len(pool.running) < processes:
                batch = queue.pop(0)
                report.note_start(batch)
                pool.start(batch)
            for batch, errors in pool.wait_for_finished():
                report.say_finished(batch, errors, [*queue, *pool.running.values()])
            if monotonic() > deadline:
                break

    # Leaving the pool has stopped the runs in progress: record them as far as they got.
    for future, batch in pool.running.items():
        for settings in batch:
            report.say_stopped(settings, future.result())
    return report.failed


def together_on(device: str) -> int:
    """How many runs of a cell train in one batch on a device by default."""
    if device == "auto":
        from metanb.runs.machine import resolve_device

        device = resolve_device(device).type
    return TOGETHER if device.startswith("cuda") else 1


def group_into_batches(runs: Iterable[Settings], together: int) -> list[Batch]:
    """Group runs that differ by seeds alone into batches.

    Args:
        runs: in any order.
        together: runs per batch, at most.

    Returns:
        The batches, in the order of their first runs.
    """
    batches: list[list[Settings]] = []
    open_batches: dict[Settings, list[Settings]] = {}  # the last batch of each cell
    for settings in runs:
        batch = open_batches.get(settings.unseeded)
        if batch is None or len(batch) == together:
            batch = open_batches[settings.unseeded] = []
            batches.append(batch)
        batch.append(settings)
    return [tuple(batch) for batch in batches]


def command(settings: Settings, device: str, until: int | None = None) -> list[str]:
    """The command that trains one run, with every setting as an option.

    The content of images of one's own is no option: the command finds it by itself.
    """
    options = _until_options(until)
    for field in fields(Settings):
        if field.name == "content":
            continue
        flag = field.name.replace("_", "-")
        value = getattr(settings, field.name)
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options += [f"--{flag}", str(value)]
    return [sys.executable, "-m", "metanb", "train", "--device", device, *options]


def _batch_command(device: str, together: int, until: int | None) -> list[str]:
    """The command that trains the runs whose settings come on standard input."""
    options = ["--together", str(together), "--runs", "-", *_until_options(until)]
    return [sys.executable, "-m", "metanb", "train", "--device", device, *options]


def _until_options(until: int | None) -> list[str]:
    """The option of the command line that stops a run early, if it is to stop early."""
    return [] if until is None else ["--until", str(until)]


class _Processes:
    """Child processes that train one batch each.

    To be used in a `with` statement: its end stops the processes that still run, whatever ends it.

    Args:
        processes: how many at a time.
        device: for all runs.
        together: runs per batch, at most.
        until: the iteration after whose epoch runs stop, or None.

    Attributes:
        running: the batches in progress; after the end, the batches that were stopped. The result
            of a future is what its process wrote on standard error, "" if all went well.
    """

    def __init__(self, processes: int, device: str, together: int, until: int | None) -> None:
        self.running: dict[Future[str], Batch] = {}
        self._device = device
        self._together = together
        self._until = until
        self._children: dict[Batch, Popen[str]] = {}
        self._threads = ThreadPoolExecutor(processes)  # each waits for one process

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        # Repeat, because a process may be starting just now.
        while wait(self.running, timeout=0.1).not_done:
            for child in list(self._children.values()):
                child.terminate()
        self._threads.shutdown()

    def start(self, batch: Batch) -> None:
        """Train a batch in a process of its own."""
        self.running[self._threads.submit(self._train, batch)] = batch

    def wait_for_finished(self) -> Iterator[tuple[Batch, str]]:
        """Wait up to a second; the batches whose processes have ended, with their errors."""
        finished, _ = wait(self.running, timeout=1, return_when=FIRST_COMPLETED)
        for future in finished:
            yield self.running.pop(future), future.result()

    def _train(self, batch: Batch) -> str:
        """Train a batch and wait for its end; return its errors, "" if all went well."""
        if len(batch) == 1:
            arguments = command(batch[0], self._device, self._until)
            text = None
        else:
            arguments = _batch_command(self._device, self._together, self._until)
            text = json.dumps([settings.to_dict() for settings in batch])
        child = Popen(
            arguments,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=PIPE,
        )
        self._children[batch] = child
        _, errors = child.communicate(text)
        del self._children[batch]
        if child.returncode == 0:
            return ""
        if child.returncode > 0 and errors.strip():
            return errors
        return f"{errors}\nended by signal {-child.returncode}"


class _Report:
    """Reports on the runs of a grid, one line per run with an estimate of the time left.

    Args:
        planned: the runs.
        device: for all runs.
        processes: how many at a time.
        together: runs per batch, at most.
        until: the iteration after whose epoch runs stop, or None.
        say: is called with each line.

    Attributes:
        missing: the runs that are not recorded at the beginning, in the grid's order.
        failed: a line for each run that has failed.
    """

    def __init__(
        self,
        planned: list[Planned],
        device: str,
        processes: int,
        together: int,
        until: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._recorded = progress.find_recorded(planned)
        self.missing = progress.find_missing(planned, self._recorded, until)
        self.failed: list[str] = []
        self._n_planned = len(planned)
        self._n_finished = 0
        self._device = device
        self._until = until
        self._say = say
        self._timed = hours.recorded_anywhere()
        self._kind = hours.Timings(self._timed).kind_here(device)
        self._at_a_time = processes if self._kind == hours.CORE else processes * together
        self._started: dict[Settings, datetime] = {}  # when each run in progress was started

    def say_plan(self) -> None:
        """Say how many runs are recorded, how many are missing, and how long they take."""
        n_recorded = self._n_planned - len(self.missing)
        self._say(
            f"{n_recorded} runs are recorded, {len(self.missing)} are missing: "
            f"{self._time_left(self.missing)}"
        )

    def note_start(self, batch: Batch) -> None:
        """Note that the runs of a batch are in progress from now on."""
        self._started |= dict.fromkeys(batch, datetime.now(UTC))

    def say_finished(self, batch: Batch, errors: str, waiting: Iterable[Batch]) -> None:
        """Say how each run of a batch has ended.

        Args:
            batch: the runs.
            errors: what their process wrote on standard error.
            waiting: the batches that have not ended.
        """
        runs_left = [settings for queued in waiting for settings in queued]
        for settings in batch:
            self._n_finished += 1
            del self._started[settings]
            outcome = self._outcome(settings, errors)
            self._say(
                f"[{self._n_finished}/{len(self.missing)}] {settings.id}: {outcome}; "
                f"{self._time_left(runs_left)}"
            )

    def say_stopped(self, settings: Settings, errors: str) -> None:
        """Record a run that was stopped, as far as it got, and say how far that is."""
        # The run may have failed before the others were stopped.
        if own := _own_errors(settings, errors):
            self.failed.append(f"{settings.id}: {own[-1]}")
            return
        try:
            self._say(_record_stopped(settings, self._device))
        except Exception as error:  # the other runs are to be recorded nevertheless
            lines = str(error).splitlines()
            self.failed.append(f"{settings.id}: {lines[0] if lines else type(error).__name__}")

    def _outcome(self, settings: Settings, errors: str) -> str:
        """How a run has ended, as a phrase; a failure is noted."""
        record = _find_record(settings, self._until)
        if record is None:
            error = _last_error(settings, errors)
            self.failed.append(f"{settings.id}: {error}")
            return f"FAILED: {error}"
        self._recorded.append(record)
        accuracy = record.curve("query_accuracy")["mean"].iloc[-1]
        duration = hours.format_minutes(record.provenance["wall_seconds"] / 60)
        return f"{duration}, query accuracy {accuracy:.3f}, {record.path}"

    def _time_left(self, runs: Iterable[Settings]) -> str:
        """The time until these runs are trained, as a phrase."""
        in_progress = [(self._kind, start) for start in self._started.values()]
        timings = hours.Timings([*self._timed, *self._recorded], in_progress)
        left = timings.time_left(runs, self._recorded, self._kind, self._at_a_time, self._until)
        return left.describe_elapsed(self._at_a_time)


def _find_record(settings: Settings, until: int | None) -> records.Record | None:
    """The record of a run that was trained; None if there is none, or a damaged one."""
    try:
        return records.find_record(settings, settings.epoch_of(until))
    except records.RecordError:
        return None


def _last_error(settings: Settings, errors: str) -> str:
    """Why a process left no record of this run: its last error about the run, or its last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return (_own_errors(settings, errors) or lines or ["it left no record"])[-1]


def _own_errors(settings: Settings, errors: str) -> list[str]:
    """The lines that say why this run failed: they name it, its checkpoint or its record."""
    return [
        line
        for line in map(str.strip, errors.splitlines())
        if line.startswith(("set aside: ", "Error: ")) and settings.id in line
    ]


def _record_stopped(settings: Settings, device: str) -> str:
    """Record a run that was stopped, as far as it got; return a line about it."""
    import torch  # slow to import, and few calls stop a run

    from metanb.runs.experiment import record_so_far

    torch.set_num_threads(1)  # as in the processes that train
    record = record_so_far(settings, device)
    if record is None:
        return f"stopped: {settings.id} before its first epoch"
    return f"stopped: {settings.id} at iteration {record.iterations:,}, {record.path}"
