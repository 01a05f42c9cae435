"""How long runs take on a kind of device: as their like took there, and otherwise "unknown".

A kind of device is a CPU core, or a GPU by the name in a record's provenance. Times on one kind say
nothing about another: each estimate rests on records of one kind, except where it says "bandwidth".

The time of a run is the time that it takes from its device. On a CPU core that is its CPU seconds,
not those of the clock: where processes share the cores, a run spends part of the clock's waiting.
On a GPU it is the run's share: each second is divided among the runs in progress.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import mean, median
from typing import Literal

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
HOUR, DAY = 60, 24 * 60  # minutes
LIMIT_IF_UNKNOWN = DAY  # what a job asks for where nothing like it was timed

Basis = Literal["like runs", "scaled", "bandwidth", "work model", "unknown"]


@dataclass(frozen=True)
class Timed:
    """A recorded run's time on its device.

    Attributes:
        settings: what was run.
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
        together: how many runs shared the device where this was timed.
        basis: "like runs": runs of the same settings but seeds. "scaled": other runs on the same
            kind of device, by their amount of work. "bandwidth": runs on another GPU, by memory
            bandwidth. "work model": the amount of work alone, as on the core that it was measured
            on.
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
        """Minutes from start to end while as many runs share the device."""
        return self.minutes * self.together


@dataclass(frozen=True)
class Left:
    """How long some runs should yet take together.

    Attributes:
        kind: the kind of device.
        minutes: of the device, for the runs whose time is known.
        by_the_clock: the sum of these runs' minutes from start to end while they share the device.
        runs: how many there are.
        unknown: for how many of them no time is known.
        bases: what the others' times rest on.
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
        """Minutes until all are done with so many at a time.

        A GPU is shared by as many as where the runs were timed, whatever `processes` says.
        """
        return self.minutes / processes if self.kind == CORE else self.minutes

    def as_clock(self, processes: int) -> str:
        """The time until all are done, as a phrase."""
        if self.unknown == self.runs > 0:
            return "unknown time left"
        phrase = f"about {format_minutes(self.elapsed(processes))} left"
        return phrase + (f", and unknown time for {self.unknown} runs" if self.unknown else "")

    def in_words(self, processes: int = 1) -> str:
        """The time, the device, how many runs share it, and what is not known, as a phrase."""
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
    """What recorded runs took, and what follows for others.

    Args:
        recorded: the records; of two of one run the later counts.
        running: kinds of device and start times of runs in progress, which share their devices.
    """

    def __init__(self, recorded: Iterable[Record], running: Iterable[tuple[str, datetime]] = ()):
        runs = {run.settings: run for run in recorded}
        now = datetime.now().timestamp()
        # A CPU counts a run's seconds itself. On a GPU they follow from who else was in progress.
        spans = {run.settings: _span(run) for run in runs.values() if _kind(run) != CORE}
        begun = [_Span(kind, start.timestamp(), now, 1.0) for kind, start in running]
        on_gpus = [*spans.values(), *begun]
        self._timed: dict[Settings, Timed] = {}
        for settings, run in runs.items():
            if not run.epochs:
                continue  # it shared the device, and tells no pace
            if settings in spans:
                wall = run.provenance["wall_seconds"]
                share = _share(spans[settings], on_gpus)
                seconds = min(run.provenance.get("shared_seconds", wall), wall * share)
                together = wall / seconds if seconds else 1.0
            else:
                seconds, together = run.provenance["cpu_seconds"], 1.0
            whole = seconds / 60 * settings.epochs / run.epochs
            self._timed[settings] = Timed(settings, _kind(run), seconds / 60, whole, together)

    def of(self, run: Record) -> Timed:
        """What one of the records took. Raises KeyError for another one."""
        return self._timed[run.settings]

    @property
    def gpus(self) -> list[str]:
        """The kinds of GPU that were timed, the one with the most runs first."""
        kinds = [timed.kind for timed in self._timed.values() if timed.kind.startswith("NVIDIA")]
        single = {kind for kind in kinds if ", " not in kind}
        return sorted(single, key=lambda kind: (-kinds.count(kind), kind))

    def kind_here(self, device: str) -> str:
        """The kind of device behind cpu, cuda, cuda:0 and so on, or auto.

        Where cuda is asked for on a machine without a GPU, as on a cluster's login node, it is the
        GPU of which there are the most records. Raises ValueError for a device that is not there.
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

        As its like took there. Else, scaled by the amount of work, as runs of the same data set,
        filters, algorithm and regulariser took there. Else, on a CPU core, scaled as any run took;
        a GPU does without, because the work model weighs data sets and algorithms as a CPU core
        does. Else, on a GPU, by memory bandwidth from another one.

        Args:
            settings: the run.
            kind: the kind of device.
            together: how many runs are to share a GPU; of the runs that were timed there, those
                count that shared it with the number nearest to this.
        """
        estimate = self._timed_on(settings, kind, together)
        if estimate.known:
            return estimate
        if kind == CORE:
            return Estimate(_work(settings), basis="work model")
        if kind not in BANDWIDTH:
            return estimate
        others = [gpu for gpu in self.gpus if gpu in BANDWIDTH and gpu != kind]
        for gpu in sorted(others, key=lambda gpu: _apart(BANDWIDTH[gpu], BANDWIDTH[kind])):
            there = self._timed_on(settings, gpu, together)
            if there.known:
                minutes = there.minutes * BANDWIDTH[gpu] / BANDWIDTH[kind]
                return Estimate(minutes, there.together, "bandwidth")
        return estimate

    def left(
        self,
        runs: Iterable[Settings],
        recorded: Iterable[Record],
        kind: str,
        together: float = 1.0,
        until: int | None = None,
    ) -> Left:
        """How long these runs should yet take up to this iteration, beyond what is recorded."""
        done = {run.settings: run.epochs for run in recorded}
        minutes = by_the_clock = 0.0
        counted, unknown, bases = 0, 0, set[Basis]()
        for settings in runs:
            epochs = max(0, settings.epoch_of(until) - done.get(settings, 0))
            if not epochs:
                continue
            counted += 1
            estimate = self.estimate(settings, kind, together)
            if not estimate.known:
                unknown += 1
                continue
            bases.add(estimate.basis)
            minutes += estimate.minutes * epochs / settings.epochs
            by_the_clock += estimate.by_the_clock * epochs / settings.epochs
        return Left(kind, minutes, by_the_clock, counted, unknown, frozenset(bases))

    def limit(
        self, settings: Settings, recorded: Iterable[Record], kind: str, until: int | None = None
    ) -> int:
        """Minutes to ask of a cluster for a run: twice what is left by the clock, and ten.

        It is LIMIT_IF_UNKNOWN where nothing like the run was timed.
        A run that has a GPU for itself takes no longer than it took among others.
        """
        left = self.left([settings], recorded, kind, until=until)
        return LIMIT_IF_UNKNOWN if left.unknown else 10 + math.ceil(2 * left.by_the_clock)

    def _timed_on(self, settings: Settings, kind: str, together: float) -> Estimate:
        """The estimate by runs on this kind of device alone."""
        timed = [run for run in self._timed.values() if run.kind == kind]
        like = [run for run in timed if run.settings.unseeded == settings.unseeded]
        if like:
            chosen = _as_many_together(like, together)
            minutes = mean(run.whole for run in chosen)
            return Estimate(minutes, mean(run.together for run in chosen), "like runs")
        same_way = [run for run in timed if _way(run.settings) == _way(settings)]
        usable = timed if kind == CORE and not same_way else same_way
        if not usable:
            return Estimate()
        chosen = _as_many_together(usable, together)
        scale = median(run.whole / _work(run.settings) for run in chosen)
        return Estimate(_work(settings) * scale, mean(run.together for run in chosen), "scaled")


def recorded_anywhere() -> list[Record]:
    """The records in all places, whatever grid they belong to; of one run, the furthest.

    A record that is damaged tells no time, and is named where it is asked for.
    """
    runs: dict[Settings, Record] = {}
    for place in filter(lambda place: place.is_dir(), store.record_folders()):
        for path in sorted(place.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                with suppress(records.RecordError):
                    run = records.read_record(path)
                    if run.settings not in runs or run.epochs > runs[run.settings].epochs:
                        runs[run.settings] = run
    return list(runs.values())


def kind_of(device: str) -> str:
    """The kind of a device by its name in provenance.

    A run that moved has several names; where they differ in kind, so does the answer from any kind.
    """
    kinds = {name if name.startswith("NVIDIA") else CORE for name in device.split(", ")}
    return ", ".join(sorted(kinds))


def format_minutes(minutes: float) -> str:
    """A time in minutes below two hours, in hours below two days, else in days; NaN: unknown."""
    if math.isnan(minutes):
        return "unknown"
    if minutes < 2 * HOUR:
        return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"
    return f"{minutes / HOUR:.1f} h" if minutes < 2 * DAY else f"{minutes / DAY:.1f} days"


@dataclass(frozen=True)
class _Span:
    """When a run was in progress on a kind of device, in seconds of the epoch.

    Attributes:
        presence: the part of that time in which it trained; below 1 if it was stopped and resumed.
    """

    kind: str
    start: float
    end: float
    presence: float


def _kind(run: Record) -> str:
    return kind_of(run.provenance["device"])


def _span(run: Record) -> _Span:
    start = datetime.fromisoformat(run.provenance["started"]).timestamp()
    end = datetime.fromisoformat(run.provenance["finished"]).timestamp()
    wall = run.provenance["wall_seconds"]
    return _Span(_kind(run), start, end, min(1.0, wall / (end - start)) if end > start else 1.0)


def _share(own: _Span, spans: list[_Span]) -> float:
    """The part of its own time that a run had the device: the mean of 1 / (runs in progress).

    Records do not tell two cards of one name apart: runs on them count as sharing one.
    """
    alike = [span for span in spans if span.kind == own.kind and span is not own]
    others = [span for span in alike if span.start < own.end and span.end > own.start]
    if not others:
        return 1.0
    # Between two neighbouring cuts nobody starts or ends.
    edges = {edge for span in others for edge in (span.start, span.end)}
    cuts = sorted({own.start, own.end, *(edge for edge in edges if own.start < edge < own.end)})
    seconds = 0.0
    for start, end in pairwise(cuts):
        beside = sum(span.presence for span in others if span.start <= start and span.end >= end)
        seconds += (end - start) / (1 + beside)
    return seconds / (own.end - own.start)


def _way(settings: Settings) -> tuple[object, ...]:
    """What runs must have in common for one to be scaled to another on any device.

    The random control passes through the network as often as the regulariser that it controls.
    """
    regulariser = "adapted" if settings.regulariser == "random" else settings.regulariser
    return settings.dataset, settings.filters, settings.algorithm, regulariser


def _as_many_together(timed: list[Timed], together: float) -> list[Timed]:
    """The runs that shared a device with the number nearest to this, up to a factor of 1.5."""
    nearest = min(_apart(run.together, together) for run in timed)
    return [run for run in timed if _apart(run.together, together) <= nearest + math.log(1.5)]


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))


def _work(settings: Settings) -> float:
    """Minutes of one core of an AMD EPYC, measured at 32 filters; more filters in proportion.

    The unit of training is an image's way through the network and back. Its weights are those of
    the recorded benchmark, within a third: the second derivative of an inner step costs two units
    more, and an image of mini-ImageNet, with 9 times the pixels and no strides, 27 of Omniglot's.
    """
    adapting = settings.shots * settings.inner_steps
    if settings.algorithm == "finetune":
        images = settings.shots + settings.queries  # as many images as MAML, each seen once
    else:
        images = adapting * (1 if settings.first_order else 3) + settings.queries
        if settings.regulariser != "none":
            images += adapting  # a first pass, without a graph: the mean direction
    training = 1.2e-4 * settings.iterations * settings.meta_batch * settings.ways * images
    measured = settings.test_tasks * settings.ways * settings.shots
    measuring = 0.012 * (settings.epochs + 1) * measured
    pixels = 27 if settings.dataset == "mini-imagenet" else 1
    return (training + measuring) * pixels * settings.filters / 32 / 60
