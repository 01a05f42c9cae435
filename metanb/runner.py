"""Makes whatever is missing of a grid: a process a run, several at a time, stopped and resumed at will."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import fields
from datetime import UTC, datetime
from time import monotonic

from metanb import grid, hours, records
from metanb.grid import Planned
from metanb.settings import Settings


def run(
    planned: Iterable[Planned], processes: int, device: str, say: Callable[[str], None], budget: float = math.inf,
    until: int | None = None,
) -> list[str]:  # fmt: skip
    """Train the runs that are missing, `processes` at a time, each a process of its own with one thread.

    Each run is `metanb train`: killed at any moment, it goes on from its last epoch when the grid is asked for again. A
    run that fails does not stop the others. When the budget is spent the runs in progress are stopped and recorded as
    far as they got.

    Args:
        planned: the runs.
        processes: how many at a time; on a GPU they share it.
        device: for all of them.
        say: is given one line a run, with an estimate of the time left.
        budget: minutes.
        until: the iteration at which a run makes way for the next; None: each is run whole.

    Returns:
        A line for each run that failed, with its error.
    """
    planned = list(planned)
    recorded = grid.made(planned)
    missing = grid.missing(planned, recorded, until)
    there = len(planned) - len(missing)
    timed = hours.recorded_anywhere()
    kind = hours.Timings(timed).kind_here(device)

    def left(settings: Iterable[Settings]) -> str:
        shared = [(kind, start) for start in begun.values()]
        timings = hours.Timings([*timed, *recorded], shared)
        return timings.left(settings, recorded, kind, processes, until).as_clock(processes)

    begun: dict[Settings, datetime] = {}  # when each of those in progress was started
    say(f"{there} runs are recorded, {len(missing)} are missing: {left(missing)}")
    failed: list[str] = []
    deadline = monotonic() + 60 * budget
    running: dict[Future[str], Settings] = {}
    children: dict[str, subprocess.Popen[str]] = {}
    queue, done = list(missing), 0
    with ThreadPoolExecutor(processes) as pool:
        try:
            while queue or running:
                while queue and len(running) < processes:
                    settings = queue.pop(0)
                    begun[settings] = datetime.now(UTC)
                    running[pool.submit(_train, command(settings, device, until), settings.id, children)] = settings
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    settings, error, done = running.pop(future), future.result(), done + 1
                    del begun[settings]
                    found = None if error else records.find(settings, settings.epoch_of(until))
                    if found is None:
                        failed.append(f"{settings.id}: {error}")
                        said = f"FAILED: {error}"
                    else:
                        recorded.append(found)
                        accuracy = found.curve("query_accuracy")["mean"].iloc[-1]
                        took = hours.in_units(found.provenance["wall_seconds"] / 60)
                        said = f"{took}, query accuracy {accuracy:.3f}, {found.path}"
                    rest = left([*queue, *running.values()])
                    say(f"[{done}/{len(missing)}] {settings.id}: {said}; {rest}")
                if monotonic() > deadline:
                    break
        finally:
            while wait(running, timeout=0.1).not_done:  # one may be starting just now
                for child in list(children.values()):
                    child.terminate()
    for settings in running.values():
        try:
            say(_stopped(settings, device))
        except Exception as error:  # one that cannot be recorded does not keep the others from it
            failed.append(f"{settings.id}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return failed


def _stopped(settings: Settings, device: str) -> str:
    import torch  # slow to import, and few calls stop a run

    from metanb.experiment import record_so_far

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
        options += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return [sys.executable, "-m", "metanb", "train", "--device", device, *options]


def _train(command: list[str], run: str, children: dict[str, "subprocess.Popen[str]"]) -> str:
    """Train one run in a process of its own; its last line of error, "" if there was none."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    children[run] = child
    _, errors = child.communicate()
    del children[run]
    if child.returncode == 0:
        return ""
    lines = errors.strip().splitlines()
    return lines[-1] if lines and child.returncode > 0 else f"ended by signal {-child.returncode}"
