"""Makes whatever is missing of a grid: in processes of one run or one batch each, stopped and resumed at will."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import fields
from datetime import UTC, datetime
from time import monotonic

from metanb.grids import hours, progress
from metanb.grids.definitions import Planned
from metanb.maml.engine import TOGETHER
from metanb.runs import records
from metanb.settings import Settings

Batch = tuple[Settings, ...]  # runs that one process trains, which differ by seeds alone


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

    A process trains one run, or on a GPU a batch of runs that differ by seeds alone. Each run is
    `metanb train`: killed at any moment, it goes on from its last epoch when the grid is asked for
    again. A run that fails does not stop the others. When the budget is spent the runs in progress
    are stopped and recorded as far as they got.

    Args:
        planned: the runs.
        processes: how many at a time; on a GPU they share it.
        device: for all of them.
        say: is given one line a run, with an estimate of the time left.
        budget: minutes.
        until: the iteration at which a run makes way for the next; None: each is run whole.
        together: runs at most in a batch.

    Returns:
        A line for each run that failed, with its error.
    """
    planned = list(planned)
    recorded = progress.find_recorded(planned)
    missing = progress.find_missing(planned, recorded, until)
    there = len(planned) - len(missing)
    timed = hours.recorded_anywhere()
    kind = hours.Timings(timed).kind_here(device)
    at_a_time = processes if kind == hours.CORE else processes * together

    def left(settings: Iterable[Settings]) -> str:
        shared = [(kind, start) for start in begun.values()]
        timings = hours.Timings([*timed, *recorded], shared)
        return timings.left(settings, recorded, kind, at_a_time, until).as_clock(at_a_time)

    begun: dict[Settings, datetime] = {}  # when each of those in progress was started
    say(f"{there} runs are recorded, {len(missing)} are missing: {left(missing)}")
    failed: list[str] = []
    deadline = monotonic() + 60 * budget
    running: dict[Future[str], Batch] = {}
    children: dict[Batch, subprocess.Popen[str]] = {}
    queue, done = group_into_batches(missing, together), 0

    def waiting() -> list[Settings]:
        return [settings for batch in (*queue, *running.values()) for settings in batch]

    with ThreadPoolExecutor(processes) as pool:
        try:
            while queue or running:
                while queue and len(running) < processes:
                    batch = queue.pop(0)
                    begun |= dict.fromkeys(batch, datetime.now(UTC))
                    running[pool.submit(_train, batch, device, until, together, children)] = batch
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    batch, errors = running.pop(future), future.result()
                    for settings in batch:
                        done += 1
                        del begun[settings]
                        record = _find(settings, until)
                        if record is None:
                            error = _error_of(settings, errors)
                            failed.append(f"{settings.id}: {error}")
                            outcome = f"FAILED: {error}"
                        else:
                            recorded.append(record)
                            accuracy = record.curve("query_accuracy")["mean"].iloc[-1]
                            took = hours.format_minutes(record.provenance["wall_seconds"] / 60)
                            outcome = f"{took}, query accuracy {accuracy:.3f}, {record.path}"
                        say(f"[{done}/{len(missing)}] {settings.id}: {outcome}; {left(waiting())}")
                if monotonic() > deadline:
                    break
        finally:
            while wait(running, timeout=0.1).not_done:  # one may be starting just now
                for child in list(children.values()):
                    child.terminate()
    for settings, errors in (
        (settings, future.result()) for future, batch in running.items() for settings in batch
    ):
        if own := _own_errors(settings, errors):  # it had ended before the others were stopped
            failed.append(f"{settings.id}: {own[-1]}")
            continue
        try:
            say(_stopped(settings, device))
        except Exception as error:  # one that cannot be recorded does not keep the others from it
            failed.append(
                f"{settings.id}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
    return failed


def together_on(device: str) -> int:
    """How many runs of a cell train in one batch on a device, unless told otherwise."""
    if device == "auto":
        from metanb.runs.machine import resolve_device

        device = resolve_device(device).type
    return TOGETHER if device.startswith("cuda") else 1


def group_into_batches(runs: Iterable[Settings], together: int) -> list[Batch]:
    """The runs in batches of at most `together` that differ by seeds alone, in the order of each batch's first run."""
    cells: dict[Settings, list[list[Settings]]] = {}
    ordered: list[list[Settings]] = []
    for settings in runs:
        of_cell = cells.setdefault(settings.unseeded, [])
        if not of_cell or len(of_cell[-1]) == together:
            of_cell.append([])
            ordered.append(of_cell[-1])
        of_cell[-1].append(settings)
    return [tuple(batch) for batch in ordered]


def _find(settings: Settings, until: int | None) -> records.Record | None:
    """The record that was asked for; a damaged one is none."""
    try:
        return records.find_record(settings, settings.epoch_of(until))
    except records.RecordError:
        return None


def _error_of(settings: Settings, errors: str) -> str:
    """What a process that ended without this run's record said: of this run, or else last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return (_own_errors(settings, errors) or lines or ["it left no record"])[-1]


def _own_errors(settings: Settings, errors: str) -> list[str]:
    """The lines that say why this run was set aside or ended: they name it, its checkpoint or its record."""
    return [
        line
        for line in map(str.strip, errors.splitlines())
        if line.startswith(("set aside: ", "Error: "))
        and settings.id in line.partition(": the others")[0]
    ]


def _stopped(settings: Settings, device: str) -> str:
    import torch  # slow to import, and few calls stop a run

    from metanb.runs.experiment import record_so_far

    torch.set_num_threads(1)  # as the runs themselves
    found = record_so_far(settings, device)
    if found is None:
        return f"stopped: {settings.id} before its first epoch"
    return f"stopped: {settings.id} at iteration {found.iterations:,}, {found.path}"


def command(settings: Settings, device: str, until: int | None = None) -> list[str]:
    """The command that trains this run, with every setting."""
    options = [] if until is None else ["--until", str(until)]
    for field in fields(Settings):
        flag, value = field.name.replace("_", "-"), getattr(settings, field.name)
        options += (
            [f"--{'' if value else 'no-'}{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        )
    return [sys.executable, "-m", "metanb", "train", "--device", device, *options]


def _train(
    batch: Batch,
    device: str,
    until: int | None,
    together: int,
    children: dict[Batch, "subprocess.Popen[str]"],
) -> str:
    """Train a batch in a process of its own; what it wrote on standard error, "" if all went well."""
    arguments, text = command(batch[0], device, until), None
    if len(batch) > 1:
        arguments = [
            sys.executable,
            "-m",
            "metanb",
            "train",
            "--device",
            device,
            "--together",
            str(together),
        ]
        arguments += ["--runs", "-"] + ([] if until is None else ["--until", str(until)])
        text = json.dumps([settings.to_dict() for settings in batch])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        arguments,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    children[batch] = child
    _, errors = child.communicate(text)
    del children[batch]
    if child.returncode == 0:
        return ""
    return (
        errors
        if errors.strip() and child.returncode > 0
        else f"{errors}\nended by signal {-child.returncode}"
    )
