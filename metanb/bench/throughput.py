"""Iterations that a device trains per second: of one run alone, and of several side by side.

An iteration is drawn, sent, differentiated and stepped as in a run. Beside its time stand the rates
of its matrix products and of its reads and writes, as shares of the device's own rates, measured in
the same call: how much of the hardware is used.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from metanb.bench import units
from metanb.data import image_sets
from metanb.data.image_sets import ImageSet
from metanb.labels import DATASETS
from metanb.landscape.measures import measure_together
from metanb.maml.engine import Engine, choose_engine, precision
from metanb.runs import cohorts, training
from metanb.runs.checkpoint import State
from metanb.settings import Settings

TOGETHER = (1, 5, 10)  # runs side by side
COMPARED = 5  # the number of runs at which each feature of the engine is switched once


@dataclass(frozen=True)
class Rate:
    """How fast one cell trains.

    Attributes:
        cell: key of `units.CELLS`.
        runs: how many train side by side.
        change: the feature that differs from the default, such as "without graph" or "with tf32";
            "" for the default.
        ms, ms_low, ms_high: median and quartiles of an iteration of all runs, milliseconds; by the
            clock on a GPU, process CPU time on a CPU.
        rate: iterations per second, summed over the runs.
        matrix_share: rate of the matrix products, as a share of the device's rate at products of
            large matrices in the precision of training.
        copy_share: rate of the bytes that the plain engine's operations read and write, as a share
            of the device's rate at copying.
        memory: the allocator's peak, GiB; NaN on a CPU.
        measuring: time of an epoch's measures, as a share of its training; NaN where a feature
            differs from the default.
    """

    cell: str
    runs: int
    change: str
    ms: float
    ms_low: float
    ms_high: float
    rate: float
    matrix_share: float
    copy_share: float
    memory: float
    measuring: float


def measure_rates(
    cell: str, device: torch.device, repeats: int, together: Sequence[int]
) -> list[Rate]:
    """Time a cell's iterations as they are trained, for several numbers of runs.

    On a GPU the engine's features are also switched one by one.

    Args:
        cell: key of `units.CELLS`.
        device: CPU or GPU.
        repeats: rounds of each; medians are given.
        together: numbers of runs. Features are switched at COMPARED runs, if that is among them.
    """
    settings = units.CELLS[cell][1]
    measure_rate = partial(
        _measure_rate,
        cell,
        device=device,
        repeats=repeats,
        work=_count_work(settings, device),
        copy_rate=_copy_rate(device),
    )
    rates = []
    for runs in together:
        engine = replace(choose_engine(device), together=runs)
        try:
            rates.append(measure_rate(runs, engine, ""))
        except torch.OutOfMemoryError:  # more runs than the card holds: keep what was timed
            break
        if runs == COMPARED and device.type == "cuda":
            for feature in ("resident", "compile", "graph", "tf32"):
                is_on = getattr(engine, feature)
                switched = replace(engine, **{feature: not is_on})
                change = f"{'without' if is_on else 'with'} {feature}"
                rates.append(measure_rate(runs, switched, change))
    return rates


def _measure_rate(
    cell: str,
    runs: int,
    engine: Engine,
    change: str,
    device: torch.device,
    repeats: int,
    work: tuple[float, float],
    copy_rate: float,
) -> Rate:
    """Time a number of runs with one engine.

    Args:
        cell: key of `units.CELLS`.
        runs: how many train side by side.
        engine: for all of them.
        change: how the engine differs from the default; "" if it does not.
        device: CPU or GPU.
        repeats: rounds.
        work: operations and bytes of one run's gradient, see `_count_work`.
        copy_rate: of the device, bytes per second.
    """
    settings = units.CELLS[cell][1]
    rounds, measuring_seconds, memory = _time_rounds(
        settings, runs, engine, device, repeats, measures=not change
    )
    # Free this cohort's memory: the next one, and the matrix rate, need it.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    seconds, low, high = (float(value) for value in np.quantile(rounds, [0.5, 0.25, 0.75]))
    operations_rate, traffic_rate = (runs * amount / seconds for amount in work)
    return Rate(
        cell,
        runs,
        change,
        ms=seconds * 1e3,
        ms_low=low * 1e3,
        ms_high=high * 1e3,
        rate=runs / seconds,
        matrix_share=operations_rate / _matrix_rate(device, engine.tf32),
        copy_share=traffic_rate / copy_rate,
        memory=memory,
        measuring=measuring_seconds / (seconds * settings.epoch_iterations),
    )


def _time_rounds(
    settings: Settings,
    runs: int,
    engine: Engine,
    device: torch.device,
    repeats: int,
    measures: bool,
) -> tuple[list[float], float, float]:
    """Train some rounds.

    Returns:
        Seconds per iteration in each round; seconds of an epoch's measures, NaN if not asked for;
        the allocator's peak in GiB, NaN on a CPU.
    """
    length = 50 if device.type == "cuda" else 1  # iterations per round
    settings_of_round = replace(settings, iterations=length, epoch_iterations=length)
    cohort = _new_cohort(settings_of_round, runs, engine, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rounds = [
        _elapsed_seconds(lambda: _train_round(cohort), device) / length for _ in range(repeats + 1)
    ]
    measuring_seconds = _time_measures(cohort, settings, device) if measures else float("nan")
    memory = float("nan")
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 2**30
    return rounds[1:], measuring_seconds, memory  # the first round warms up


def _train_round(cohort: cohorts.Cohort) -> None:
    """Train one round. Raises DivergedError: a run that ends early would look fast."""
    with tqdm(disable=True) as bar:
        for outcome in cohort.train(bar):
            if isinstance(outcome, cohorts.DivergedError):
                raise outcome


def _new_cohort(
    settings: Settings, runs: int, engine: Engine, device: torch.device
) -> cohorts.Cohort:
    """A cohort of untrained runs that differ by seed, on images of the settings' shape."""
    images = _training_images(settings)
    states = []
    for seed in range(runs):
        seeded = replace(settings, seed=seed)
        net = training.new_network(seeded, images)
        adam = torch.optim.Adam(net.parameters(), lr=settings.outer_lr)
        states.append(State(seeded, net, adam, {}, epoch=0))
    on_device = cohorts.TrainingImages([images], device, engine.resident)
    return cohorts.Cohort(states, [images] * runs, on_device, device, engine)


def _training_images(settings: Settings) -> ImageSet:
    """Printed characters for 28x28 grey; random pixels for 84x84 colour.

    There are as many random images as in mini-ImageNet's training set.
    """
    if settings.dataset == "mini-imagenet":
        shape = (64, 600, *DATASETS["mini-imagenet"].shape)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return ImageSet("random", "train", pixels, tuple(map(str, range(64))), "")
    return image_sets.load_images("glyphs", "train")


def _time_measures(cohort: cohorts.Cohort, settings: Settings, device: torch.device) -> float:
    """Seconds of one epoch's measures of all runs."""
    images = _training_images(settings)
    test, valid = (
        training.fixed_tasks(settings, images, settings.test_tasks, stream).to(device)
        for stream in (cohorts.TEST, cohorts.VALID)
    )
    runs = [state.settings for state in cohort.states]
    return _elapsed_seconds(
        lambda: measure_together(cohort.net, cohort.theta, test, valid, runs), device
    )


def _count_work(settings: Settings, device: torch.device) -> tuple[float, float]:
    """Work of one run's gradient by the plain engine.

    Returns:
        Operations of its matrix products; bytes that its operations read and write.
    """
    one_iteration = replace(settings, epoch_iterations=1, iterations=1)
    cohort = _new_cohort(one_iteration, 1, Engine(), device)
    batch = cohort._draw([0])
    with FlopCounterMode(display=False) as counter:
        cohort.gradient(*batch)
    with _TrafficCounter() as traffic:
        cohort.gradient(*batch)
    return counter.get_total_flops(), traffic.bytes


class _TrafficCounter(TorchDispatchMode):
    """In its block, `bytes` sums what operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def _matrix_rate(device: torch.device, tf32: bool) -> float:
    """Operations per second of a product of two large matrices, in float32 or TF32."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.rand(2, side, side, device=device)
    with precision(tf32):
        fastest = min(_elapsed_seconds(lambda: a @ b, device) for _ in range(6))
    return 2 * side**3 / fastest


def _copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy of a large tensor."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    fastest = min(_elapsed_seconds(lambda: target.copy_(source), device) for _ in range(6))
    return 2 * source.numel() * 4 / fastest


def _elapsed_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call: by the clock on a GPU, this process's CPU time on a CPU."""
    if device.type != "cuda":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began
