"""How many iterations a device trains per second: whole ones, of one run alone and of several side by side.

For `metanb bench` alone. An iteration is drawn, sent, differentiated and stepped as in a run.
Beside its time stand the shares of the device's own matrix and copy rates, measured in the same
call: what is left of the hardware.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from metanb.data import image_sets
from metanb.data.image_sets import ImageSet
from metanb.labels import DATASETS
from metanb.landscape.measures import measure_together
from metanb.maml.engine import Engine, choose_engine, precision
from metanb.runs import cohorts, training
from metanb.runs.checkpoint import State
from metanb.settings import Settings, preset

CELLS: dict[str, tuple[str, Settings]] = {
    "R1": ("Omniglot 20-way 1-shot, MAML", preset("paper", "omniglot", 20)),
    "R2": (
        "mini-ImageNet 5-way 1-shot, first-order MAML",
        preset("paper", "mini-imagenet", algorithm="fomaml"),
    ),
}
# the benchmark's unit and order of a cell's gradient
GRADIENTS = {"R1": ("U3", "second"), "R2": ("U4", "first")}
TOGETHER = (1, 5, 10)  # runs side by side
COMPARED = 5  # with so many runs each feature of the engine is left out once, or added


@dataclass(frozen=True)
class Rate:
    """How fast one cell trains.

    Attributes:
        cell: key of CELLS.
        runs: side by side.
        change: what was done otherwise than by default, such as "without graph" or "with tf32"; ""
            for nothing.
        ms, ms_low, ms_high: median and quartiles of an iteration of all runs, milliseconds by the
            clock.
        rate: iterations of a run per second, of all runs together.
        matrix_share: of the device's rate at products of large matrices, in the precision of
            training.
        copy_share: of its rate at copying, counting what the plain engine's operations read and
            write.
        memory: the most that the device's allocator held, GiB; NaN on a CPU.
        measuring: what an epoch's measures take, as a share of its training; NaN where something
            was done otherwise.
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
    """Time a cell's iterations as they are trained, for several numbers of runs; then with each feature changed.

    Args:
        cell: key of CELLS.
        device: where.
        repeats: rounds of each; medians are given.
        together: numbers of runs. Features are changed one by one at COMPARED runs, if that is
            among them.
    """
    settings = CELLS[cell][1]
    work = _work(settings, device)
    copied = _copy_rate(device)
    timed = []
    for runs in together:
        engine = replace(choose_engine(device), together=runs)
        try:
            timed.append(_rate(cell, runs, engine, "", device, repeats, work, copied))
        except torch.OutOfMemoryError:  # more than this card holds: what was timed stays
            break
        if runs == COMPARED and device.type == "cuda":
            for name in ("resident", "compile", "graph", "tf32"):
                on: dict[str, Any] = {name: not getattr(engine, name)}
                change = f"{'with' if on[name] else 'without'} {name}"
                timed.append(
                    _rate(cell, runs, replace(engine, **on), change, device, repeats, work, copied)
                )
    return timed


def _rate(
    cell: str,
    runs: int,
    engine: Engine,
    change: str,
    device: torch.device,
    repeats: int,
    work: tuple[float, float],
    copied: float,
) -> Rate:
    settings = CELLS[cell][1]
    rounds, measured, held = _timed(settings, runs, engine, device, repeats, measures=not change)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    seconds, low, high = (float(value) for value in np.quantile(rounds, [0.5, 0.25, 0.75]))
    operations, traffic = (runs * amount / seconds for amount in work)
    return Rate(
        cell,
        runs,
        change,
        seconds * 1e3,
        low * 1e3,
        high * 1e3,
        runs / seconds,
        operations / _matrix_rate(device, engine.tf32),
        traffic / copied,
        held,
        measured / (seconds * settings.epoch_iterations),
    )


def _timed(
    settings: Settings,
    runs: int,
    engine: Engine,
    device: torch.device,
    repeats: int,
    measures: bool,
) -> tuple[list[float], float, float]:
    """Seconds per iteration in each round; seconds of an epoch's measures; the allocator's peak in GiB."""
    length = 50 if device.type == "cuda" else 1  # iterations per round
    cohort = _cohort(
        replace(settings, iterations=length, epoch_iterations=length), runs, engine, device
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rounds = [_seconds(lambda: _train(cohort), device) / length for _ in range(repeats + 1)]
    measured = _measuring(cohort, settings, device) if measures else float("nan")
    held = (
        torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    )
    return rounds[1:], measured, held  # the first round warms up


def _train(cohort: cohorts.Cohort) -> None:
    """One round. Raises DivergedError: what ended early would look fast."""
    with tqdm(disable=True) as bar:
        for outcome in cohort.train(bar):
            if isinstance(outcome, cohorts.DivergedError):
                raise outcome


def _cohort(settings: Settings, runs: int, engine: Engine, device: torch.device) -> cohorts.Cohort:
    """Untrained runs that differ by seeds, on images of the settings' shape."""
    pool = _images(settings)
    states = []
    for seed in range(runs):
        chosen = replace(settings, seed=seed)
        net = training.new_network(chosen, pool)
        states.append(
            State(
                chosen, net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), {}, epoch=0
            )
        )
    on_device = cohorts.TrainingImages([pool], device, engine.resident)
    return cohorts.Cohort(states, [pool] * runs, on_device, device, engine)


def _images(settings: Settings) -> ImageSet:
    """Printed characters for 28x28 grey; random pixels, as many as mini-ImageNet's training set, for 84x84 colour."""
    if settings.dataset == "mini-imagenet":
        pixels = np.random.default_rng(0).integers(
            0, 256, (64, 600, *DATASETS["mini-imagenet"].shape), np.uint8
        )
        return ImageSet("random", "train", pixels, tuple(map(str, range(64))), "")
    return image_sets.load_images("glyphs", "train")


def _measuring(cohort: cohorts.Cohort, settings: Settings, device: torch.device) -> float:
    """Seconds of one epoch's measures of all runs."""
    pool = _images(settings)
    test, valid = (
        training.fixed_tasks(settings, pool, settings.test_tasks, stream).to(device)
        for stream in (cohorts.TEST, cohorts.VALID)
    )
    runs = [state.settings for state in cohort.states]
    return _seconds(lambda: measure_together(cohort.net, cohort.theta, test, valid, runs), device)


def _work(settings: Settings, device: torch.device) -> tuple[float, float]:
    """Of one run's gradient by the plain engine: operations of its matrix products, and bytes read and written."""
    cohort = _cohort(replace(settings, epoch_iterations=1, iterations=1), 1, Engine(), device)
    drawn = cohort._draw([0])
    with FlopCounterMode(display=False) as counter:
        cohort.gradient(*drawn)
    with _Traffic() as traffic:
        cohort.gradient(*drawn)
    return counter.get_total_flops(), traffic.bytes


class _Traffic(TorchDispatchMode):
    """Inside, `bytes` sums what operations read and write: views move nothing."""

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
    """Operations per second of a product of two large matrices, float32 or TF32."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.rand(2, side, side, device=device)
    with precision(tf32):
        return 2 * side**3 / min(_seconds(lambda: a @ b, device) for _ in range(6))


def _copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy of a large tensor."""
    a = torch.rand(2**28 if device.type == "cuda" else 2**24, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / min(_seconds(lambda: b.copy_(a), device) for _ in range(6))


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """By the clock on a GPU, this process's CPU time on a CPU."""
    if device.type != "cuda":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began
