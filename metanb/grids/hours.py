"""How long runs take, by device: measured on records of like runs, and otherwise "unknown".

A kind of device is a CPU core, or a GPU by the name in a record's provenance. Times on one kind say
nothing about another: each estimate rests on records of one kind, except where it says "bandwidth".

The time of a run is the time that it uses of its device. On a CPU core that is its CPU seconds and
not the time by the clock: where processes share the cores, a run spends part of the latter waiting.
On a GPU it is the run's share: each second is divided among the runs in progress.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from statistics import mean, median
from typing import Literal

from metanb.labels import ALGORITHMS
from metanb.runs import records, store
from metanb.runs.records import Record
from metanb.settings import Settings

CORE = "CPU core"
BANDWIDTH = {  # TB/s of memory, in NVIDIA's own figures
    "NVIDIA H200": 4.8,
    "NVIDIA H100 80GB HBM3": 3.35,
    "NVIDIA A100-SXM4-80GB": 2.0,
    "NVIDIA GeForce RTX 4090": 1.01,
}
HOUR = 60  # minutes
DAY = 24 * HOUR
LIMIT_IF_UNKNOWN = DAY  # minutes that a job asks for if nothing like it was timed
NEAR = math.log(1.5)  # numbers of runs that share a GPU count as near up to this factor

Basis = Literal["like runs", "scaled", "bandwidth", "work model", "unknown"]


@dataclass(frozen=True)
class RunTime:
    """A recorded run's time on its device.

    Attributes:
        settings: of the run.
        kind: the kind of device.
        minutes: of the device, for the epochs that are recorded.
        whole: minutes of the device for all of the run's epochs, at that pace.
        together: how many runs shared the device, on average; 1 on a CPU core.
    """

    settings: Settings
    kind: str
    minutes: float
    whole: float
    together: float


@dataclass(frozen=True)
class Estimate:
    """How long a run should take.

    Attributes:
        minutes: of the device; NaN: unknown.
        together: how many runs shared the device when it was timed.
        basis: "like runs": runs of the same settings but for seeds. "scaled": other runs on the
            same kind of device, by their amount of work. "bandwidth": runs on another GPU, by
            memory bandwidth. "work model": the amount of work alone, on the core where the model
            was measured.
    """

    minutes: float = math.nan
    together: float = 1.0
    basis: Basis = "unknown"

    @property
    def known(self) -> bool:
        """Whether there is an estimate."""
        return not math.isnan(self.minutes)

    @property
    def by_the_clock(self) -> float:
        """Minutes from start to end, while as many runs share the device."""
        return self.minutes * self.together


@dataclass(frozen=True)
class TimeLeft:
    """How long some runs should take until they are done, added up.

    Attributes:
        kind: the kind of device.
        minutes: of the device, for the runs whose time is known.
        by_the_clock: the sum of these runs' minutes from start to end, while they share the device.
        runs: the number of runs that are not done.
        unknown: the number of these runs whose time is unknown.
        bases: the bases of the other estimates.
    """

    kind: str
    minutes: float
    by_the_clock: float
    runs: int
    unknown: int
    bases: frozenset[Basis]

    @property
    def together(self) -> float:
        """How many runs share the device, on average over its time."""
        return self.by_the_clock / self.minutes if self.minutes else 1.0

    def elapsed(self, processes: int) -> float:
        """Minutes until all are done, with so many processes at a time.

        A GPU is shared by as many runs as when they were timed, whatever `processes` says.
        """
        return self.minutes / processes if self.kind == CORE else self.minutes

    def describe_elapsed(self, processes: int) -> str:
        """The time until all are done, with so many processes at a time, as a phrase."""
        if self.unknown == self.runs > 0:
            return "unknown time left"
        phrase = f"about {format_minutes(self.elapsed(processes))} left"
        return phrase + (f", and unknown time for {self.unknown} runs" if self.unknown else "")

    def describe(self, processes: int = 1) -> str:
        """The time, the device, how many runs share it, and what is unknown, as a phrase."""
        if self.unknown == self.runs > 0:
            return f"unknown time on one {self.kind}, on which nothing like them was timed"
        phrase = f"about {format_minutes(self.minutes)} of one {self.kind}"
        if self.kind == CORE:
            phrase += f", {format_minutes(self.elapsed(processes))} with {processes} at a time"
        elif round(self.together) > 1:
            phrase += f", shared by {self.together:.0f} runs at a time"
        if "bandwidth" in self.bases:
            phrase += " (an estimate, from another GPU's times by memory bandwidth)"
        return phrase + (f", and unknown time for {self.unknown} of them" if self.unknown else "")


class Timings:
    """The times of recorded runs, and estimates for other runs.

    Args:
        recorded: the records; of two records of one run the later one in this order counts.
        running: kinds of device and start times of runs in progress, which share their devices.
    """

    def __init__(self, recorded: Iterable[Record], running: Iterable[tuple[str, datetime]] = ()):
        runs = {run.settings: run for run in recorded}
        # A CPU counts a run's seconds itself. On a GPU they follow from the runs that were in
        # progress at the same time.
        now = datetime.now().timestamp()
        spans = {run.settings: _time_span(run) for run in runs.values() if _kind(run) != CORE}
        in_progress = [_TimeSpan(kind, start.timestamp(), now, 1.0) for kind, start in running]
        on_gpus = [*spans.values(), *in_progress]

        self._timed: dict[Settings, RunTime] = {}
        for settings, run in runs.items():
            # An untrained network shared the device, but it tells no pace.
            if not run.epochs:
                continue
            if settings in spans:
                wall = run.provenance["wall_seconds"]
                share = _share(spans[settings], on_gpus)
                seconds = min(run.provenance.get("shared_seconds", wall), wall * share)
                together = wall / seconds if seconds else 1.0
            else:
                seconds = run.provenance["cpu_seconds"]
                together = 1.0
            whole = seconds / 60 * settings.epochs / run.epochs
            self._timed[settings] = RunTime(settings, _kind(run), seconds / 60, whole, together)

    @cached_property
    def _like(self) -> dict[tuple[object, ...], list[RunTime]]:
        """The timed runs by kind of device and settings but for seeds: estimates ask often."""
        return _group(self._timed.values(), lambda run: (run.kind, run.settings.unseeded))

    @cached_property
    def _scalable(self) -> dict[tuple[object, ...], list[RunTime]]:
        """The timed runs by kind of device and workload, see `_workload`."""
        return _group(self._timed.values(), lambda run: (run.kind, *_workload(run.settings)))

    def run_time(self, run: Record) -> RunTime:
        """The time of one of the records.

        Raises KeyError for a record of an untrained network, or of another run.
        """
        return self._timed[run.settings]

    @property
    def gpus(self) -> list[str]:
        """The kinds of GPU that were timed, the kind with the most runs first."""
        kinds = [timed.kind for timed in self._timed.values() if timed.kind.startswith("NVIDIA")]
        single = {kind for kind in kinds if ", " not in kind}
        return sorted(single, key=lambda kind: (-kinds.count(kind), kind))

    def kind_here(self, device: str) -> str:
        """The kind of a device of this machine.

        On a machine without a GPU, such as a cluster's login node, "cuda" stands for the kind of
        GPU with the most records.

        Args:
            device: "cpu", "cuda", "cuda:0" and so on, or "auto".

        Raises:
            ValueError: the machine has no such device.
        """
        if device == "cpu":
            return CORE
        import torch  # slow to import, and on a CPU not needed

        from metanb.runs.machine import device_name, resolve_device

        if device.startswith("cuda") and not torch.cuda.is_available():
            return self.gpus[0] if self.gpus else "GPU"
        return kind_of(device_name(resolve_device(device)))

    def estimate(self, settings: Settings, kind: str, together: float = 1.0) -> Estimate:
        """How long a run should take on a kind of device.

        The estimate has the first of these bases that there is:

        - "like runs" on this kind of device;
        - "scaled": runs there of the same data set, filters, algorithm and regulariser, by the
          amount of work; on a CPU core any runs, and on a GPU no others, because the work model
          weighs data sets and algorithms as a CPU core does;
        - "work model", on a CPU core;
        - "bandwidth", on a GPU: the estimate for the GPU with the nearest memory bandwidth.

        Args:
            settings: of the run.
            kind: the kind of device.
            together: how many runs are to share a GPU. Among the runs that were timed there, those
                count that shared it with the number nearest to this.
        """
        estimate = self._estimate_on_kind(settings, kind, together)
        if estimate.known:
            return estimate
        if kind == CORE:
            return Estimate(_work(settings), basis="work model")
        if kind not in BANDWIDTH:
            return estimate
        rate = BANDWIDTH[kind]
        other_gpus = [gpu for gpu in self.gpus if gpu in BANDWIDTH and gpu != kind]
        for gpu in sorted(other_gpus, key=lambda gpu: _log_ratio(BANDWIDTH[gpu], rate)):
            elsewhere = self._estimate_on_kind(settings, gpu, together)
            if elsewhere.known:
                minutes = elsewhere.minutes * BANDWIDTH[gpu] / rate
                return Estimate(minutes, elsewhere.together, "bandwidth")
        return estimate

    def time_left(
        self,
        runs: Iterable[Settings],
        recorded: Iterable[Record],
        kind: str,
        together: float = 1.0,
        until: int | None = None,
    ) -> TimeLeft:
        """How long runs should take beyond what is recorded.

        Args:
            runs: the settings.
            recorded: the records there are of them, finished or not.
            kind: the kind of device.
            together: how many runs are to share a GPU.
            until: the iteration up to which they run; None: to their ends.
        """
        recorded_epochs = {run.settings: run.epochs for run in recorded}
        minutes = 0.0
        by_the_clock = 0.0
        n_runs = 0
        n_unknown = 0
        bases: set[Basis] = set()
        for settings in runs:
            epochs = max(0, settings.epoch_of(until) - recorded_epochs.get(settings, 0))
            if not epochs:
                continue
            n_runs += 1
            estimate = self.estimate(settings, kind, together)
            if not estimate.known:
                n_unknown += 1
                continue
            bases.add(estimate.basis)
            minutes += estimate.minutes * epochs / settings.epochs
            by_the_clock += estimate.by_the_clock * epochs / settings.epochs
        return TimeLeft(kind, minutes, by_the_clock, n_runs, n_unknown, frozenset(bases))

    def limit(
        self, settings: Settings, recorded: Iterable[Record], kind: str, until: int | None = None
    ) -> int:
        """Minutes to ask of a cluster for a run: twice the time left by the clock, and ten.

        It is LIMIT_IF_UNKNOWN if nothing like the run was timed. The run has a GPU for itself: it
        takes no longer than it took among others.
        """
        left = self.time_left([settings], recorded, kind, until=until)
        return LIMIT_IF_UNKNOWN if left.unknown else 10 + math.ceil(2 * left.by_the_clock)

    def _estimate_on_kind(self, settings: Settings, kind: str, together: float) -> Estimate:
        """The estimate from runs on this kind of device alone."""
        # Runs of the same settings but for seeds: their mean.
        if like := self._like.get((kind, settings.unseeded)):
            nearest = _with_nearest_sharing(like, together)
            minutes = mean(run.whole for run in nearest)
            return Estimate(minutes, mean(run.together for run in nearest), "like runs")

        # Other runs: the median of their minutes per work, times the run's work.
        comparable = self._scalable.get((kind, *_workload(settings)), [])
        if kind == CORE and not comparable:
            comparable = [run for run in self._timed.values() if run.kind == CORE]
        if not comparable:
            return Estimate()
        nearest = _with_nearest_sharing(comparable, together)
        scale = median(run.whole / _work(run.settings) for run in nearest)
        return Estimate(_work(settings) * scale, mean(run.together for run in nearest), "scaled")


def recorded_anywhere() -> list[Record]:
    """The records in all places, whatever grid they belong to; of one run, the furthest.

    A damaged record is left out: reading that run later raises the error.
    """
    return records.read_records(*store.record_folders(), leaves_out_damaged=True)


def kind_of(device: str) -> str:
    """The kind of a device by its name in provenance.

    A run that moved between devices has several names. If these are of several kinds, so is the
    answer, which then equals no single kind: "CPU core, NVIDIA H200".
    """
    kinds = {name if name.startswith("NVIDIA") else CORE for name in device.split(", ")}
    return ", ".join(sorted(kinds))


def format_minutes(minutes: float) -> str:
    """A time in minutes below two hours, in hours below two days, else in days; NaN: unknown."""
    if math.isnan(minutes):
        return "unknown"
    if minutes < 2 * HOUR:
        return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"
    if minutes < 2 * DAY:
        return f"{minutes / HOUR:.1f} h"
    return f"{minutes / DAY:.1f} days" if minutes < 10 * DAY else f"{minutes / DAY:,.0f} days"


@dataclass(frozen=True)
class _TimeSpan:
    """When a run was in progress on a kind of device.

    Attributes:
        kind: the kind of device.
        start: seconds since 1970.
        end: seconds since 1970.
        presence: the part of that time in which it trained; below 1 if it was stopped and resumed.
    """

    kind: str
    start: float
    end: float
    presence: float


def _kind(run: Record) -> str:
    """The kind of device that a run was computed on."""
    return kind_of(run.provenance["device"])


def _time_span(run: Record) -> _TimeSpan:
    """When a recorded run was in progress."""
    start = datetime.fromisoformat(run.provenance["started"]).timestamp()
    end = datetime.fromisoformat(run.provenance["finished"]).timestamp()
    wall = run.provenance["wall_seconds"]
    presence = min(1.0, wall / (end - start)) if end > start else 1.0
    return _TimeSpan(_kind(run), start, end, presence)


def _share(own: _TimeSpan, spans: list[_TimeSpan]) -> float:
    """The part of its own time that a run had the device: the mean of 1 / (runs in progress).

    Records do not tell two cards of one name apart: runs on them count as sharing one.
    """
    same_kind = [span for span in spans if span.kind == own.kind and span is not own]
    overlapping = [span for span in same_kind if span.start < own.end and span.end > own.start]
    if not overlapping:
        return 1.0

    # Times are whole seconds. A run within one of them, or under a clock that was set back, has the
    # share of that moment.
    if own.end <= own.start:
        return 1 / (1 + sum(span.presence for span in overlapping))

    # Cut the run's time where another run starts or ends: between two cuts, nothing changes.
    edges = {edge for span in overlapping for edge in (span.start, span.end)}
    cuts = sorted({own.start, own.end, *(edge for edge in edges if own.start < edge < own.end)})

    # Add up the run's share of each piece.
    seconds = 0.0
    for start, end in pairwise(cuts):
        present = [span.presence for span in overlapping if span.start <= start and span.end >= end]
        seconds += (end - start) / (1 + sum(present))
    return seconds / (own.end - own.start)


def _group(
    timed: Iterable[RunTime], key: Callable[[RunTime], tuple[object, ...]]
) -> dict[tuple[object, ...], list[RunTime]]:
    """Timed runs by a key of theirs, in their order."""
    groups: dict[tuple[object, ...], list[RunTime]] = {}
    for run in timed:
        groups.setdefault(key(run), []).append(run)
    return groups


def _workload(settings: Settings) -> tuple[object, ...]:
    """The settings that two runs must have in common to be scaled to each other on any device.

    The random control passes through the network as often as the regulariser that it controls.
    """
    regulariser = "adapted" if settings.regulariser == "random" else settings.regulariser
    return settings.dataset, settings.filters, settings.algorithm, regulariser


def _with_nearest_sharing(timed: list[RunTime], together: float) -> list[RunTime]:
    """The runs that shared a device with the number nearest to this, up to a factor of 1.5."""
    nearest = min(_log_ratio(run.together, together) for run in timed)
    return [run for run in timed if _log_ratio(run.together, together) <= nearest + NEAR]


def _log_ratio(a: float, b: float) -> float:
    """The distance of two positive numbers on a logarithmic scale."""
    return abs(math.log(a / b))


def _work(settings: Settings) -> float:
    """A run's work: minutes of one core of an AMD EPYC.

    It was measured at 32 filters; more filters take more, in proportion. The unit of training is
    one pass of an image through the network and back. The weights are those of the recorded
    benchmark, within a third: the second derivative of an inner step costs two units more, and an
    image of mini-ImageNet, with 9 times the pixels and no strides, costs as much as 27 of
    Omniglot's.
    """
    # Training: passes of images.
    adapting = settings.shots * settings.inner_steps
    if not ALGORITHMS[settings.algorithm].episodic:
        images = settings.shots + settings.queries  # as many images as MAML, each seen once
    else:
        images = adapting * (1 if settings.first_order else 3) + settings.queries
        if settings.regulariser != "none":
            images += adapting  # a first pass, without a graph: the mean direction
    training = 1.2e-4 * settings.iterations * settings.meta_batch * settings.ways * images

    # Measuring: support images of the meta-test tasks, after each epoch and before the first.
    measured = settings.test_tasks * settings.ways * settings.shots
    measuring = 0.012 * (settings.epochs + 1) * measured

    pixels = 27 if settings.dataset == "mini-imagenet" else 1
    return (training + measuring) * pixels * settings.filters / 32 / 60
