"""One meta-gradient and the Hessian norm, by metanb and by its peers, timed in turns."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metanb.bench import peers
from metanb.data import image_sets
from metanb.data.tasks import Tasks, sample_tasks
from metanb.labels import DATASETS
from metanb.landscape import hessian, task_stats
from metanb.landscape.measures import measure
from metanb.maml.cuda_graph import Replayed
from metanb.maml.inner_loop import adapt, losses
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import chunk_size, meta_gradient
from metanb.settings import Settings, preset

UNITS: dict[str, tuple[str, Settings]] = {
    "U1": (
        "Omniglot 5-way 1-shot, 32 tasks, 1 step, 1 query image a class",
        preset("paper", "omniglot"),
    ),
    "U2": ("the same with 15 query images a class", preset("paper", "omniglot", queries=15)),
    "U3": (
        "Omniglot 20-way 1-shot, 16 tasks, 5 steps, 1 query image a class",
        preset("paper", "omniglot", 20),
    ),
    "U4": (
        "mini-ImageNet 5-way 1-shot, 4 tasks, 5 steps, 15 query images a class",
        preset("paper", "mini-imagenet"),
    ),
}


OURS, BASE, HESSIAN_BASE = (
    "metanb",
    "higher, one task at a time",
    "PyHessian, at most 20 iterations",
)


VMAP = "torch.func vmap, own batch norm"


HESSIAN_TASKS = 16


CHECKED_TASKS = 6  # of a unit, whose gradients are compared one by one


WRONG = 1e-9  # relative error in float64 above which a gradient is not rounded but wrong


@dataclass(frozen=True)
class Timing:
    """One candidate on one unit.

    Attributes:
        unit: key of UNITS, or "H" for the Hessian norms.
        order: "second" or "first" for meta-gradients, "" for Hessian norms.
        candidate: metanb or a peer.
        ms, ms_low, ms_high: median and quartiles of the time, milliseconds.
        ratio: the base's median divided by this one: how many times as fast. The base of "H" is
            PyHessian, without which the ratio is NaN.
        error: relative error in float32: the median over single tasks' gradients, or the worst
            task's Hessian norm.
        error64: the worst over single tasks' gradients in float64: rounding, or a wrong method. NaN
            for "H".
        share: of the best convolution rate seen on this machine, counting the base's operations;
            NaN for "H".
    """

    unit: str
    order: str
    candidate: str
    ms: float
    ms_low: float
    ms_high: float
    ratio: float
    error: float
    error64: float
    share: float


def time_gradients(
    unit: str, first_order: bool, repeats: int, device: torch.device, rate: float
) -> list[Timing]:
    """Time one meta-gradient of the unit by metanb and by every peer that is installed."""
    settings = replace(UNITS[unit][1], algorithm="fomaml" if first_order else "maml")
    tasks = unit_tasks(settings, settings.meta_batch, device)
    net = _net(settings, tasks)
    errors = _errors(net, tasks[:CHECKED_TASKS], settings)
    calls = {name: call for name, (_, call) in _candidates(net, tasks, settings).items()}
    with FlopCounterMode(display=False) as counter:
        calls[BASE]()
    seconds = _alternate(calls, repeats, device)
    share = {
        name: counter.get_total_flops() / np.median(times) / rate for name, times in seconds.items()
    }
    order = "first" if first_order else "second"
    return _timings(unit, order, seconds, BASE, errors[torch.float32], errors[torch.float64], share)


def _errors(net: ConvNet, tasks: Tasks, settings: Settings) -> dict[torch.dtype, dict[str, float]]:
    """Each candidate's relative error over single tasks: the median in float32, where a ReLU may flip; or the worst."""
    found: dict[torch.dtype, dict[str, list[float]]] = {torch.float64: {}, torch.float32: {}}
    for task in tasks.split(1):
        exact = peers.exact_gradient(net, task, settings)
        for dtype, errors in found.items():
            for name, (model, call) in _candidates(
                net.to(dtype), _cast(task, dtype), settings
            ).items():
                call()
                error = (peers.gradient(model).cpu().double() - exact).norm() / exact.norm()
                errors.setdefault(name, []).append(float(error))
    pick: dict[torch.dtype, Callable[..., Any]] = {torch.float64: max, torch.float32: np.median}
    return {
        dtype: {name: float(pick[dtype](e)) for name, e in errors.items()}
        for dtype, errors in found.items()
    }


def _candidates(
    net: ConvNet, tasks: Tasks, settings: Settings
) -> dict[str, tuple[torch.nn.Module, Callable[[], None]]]:
    """Each candidate's network, and a call that leaves the meta-gradient in it."""
    how, first_order = (settings.inner_lr, settings.inner_steps), settings.first_order
    chunk = chunk_size(settings, tasks.support_x.device)

    def replayed(*tensors: Tensor) -> None:
        net.zero_grad(set_to_none=True)
        meta_gradient(
            net, Tasks(*tensors), *how, first_order=first_order, adapt_norm=True, chunk=chunk
        )

    ours = partial(Replayed(replayed, tasks.support_x.device), *tasks.tensors())

    def theirs(peer: peers.Peer, plain: torch.nn.Module) -> Callable[[], None]:
        def call() -> None:
            plain.zero_grad()
            peer(plain, tasks, *how, first_order)

        return call

    found: dict[str, tuple[torch.nn.Module, Callable[[], None]]] = {OURS: (net, ours)}
    for name, (peer, norm, needs, orders) in peers.PEERS.items():
        if peers.is_installed(needs) and ("first" if first_order else "second") in orders:
            plain = peers.plain_net(net, norm)
            found[name] = (plain, theirs(peer, plain))
    return found


def _cast(tasks: Tasks, dtype: torch.dtype) -> Tasks:
    return replace(tasks, support_x=tasks.support_x.to(dtype), query_x=tasks.query_x.to(dtype))


def time_hessian_norms(device: torch.device, repeats: int) -> list[Timing]:
    """Time the Hessian norms of 16 adapted tasks of U1's shape, to a relative error of 1e-3 if one can be asked for."""
    settings = UNITS["U1"][1]
    tasks = unit_tasks(settings, HESSIAN_TASKS, device)
    net = _net(settings, tasks)
    chunk = task_stats.tasks_at_once(device)
    params = adapt(net, tasks, settings.inner_lr, settings.inner_steps, first_order=True).detach()

    def ours() -> Iterator[float]:
        for part, rows in zip(tasks.split(chunk), params.split(chunk), strict=True):

            def loss(params: Tensor, part: Tasks = part) -> Tensor:
                return losses(net, params, part.support_x, part.support_y)

            yield from hessian.hessian_norms(loss, rows).norms.tolist()

    def theirs(peer: Callable[..., float]) -> Callable[[], list[float]]:
        return lambda: [peer(*one) for one in each]

    solved = []
    for row in params:
        adapted = _net(settings, tasks)
        torch.nn.utils.vector_to_parameters(row, adapted.parameters())
        solved.append(peers.plain_net(adapted))
    each = list(zip(solved, tasks.support_x, tasks.support_y, strict=True))
    calls: dict[str, Callable[[], list[float]]] = {OURS: lambda: list(ours())}
    for name, (peer, needs) in peers.HESSIAN_PEERS.items():
        if peers.is_installed(needs):
            calls[name] = theirs(peer)
    truth = np.array([peers.exact_norm(*one) for one in each])
    errors = {
        name: float(np.max(np.abs(np.array(call()) / truth - 1))) for name, call in calls.items()
    }
    seconds = _alternate(calls, repeats, device)
    unknown = dict.fromkeys(seconds, float("nan"))
    return _timings("H", "", seconds, HESSIAN_BASE, errors, unknown, unknown)


def time_measuring(device: torch.device) -> float:
    """Seconds that one epoch's measures take at U1's settings, on as many tasks as a run has."""
    settings = UNITS["U1"][1]
    shape = replace(settings, queries=settings.test_queries)
    test, valid = (unit_tasks(shape, settings.test_tasks, device) for _ in range(2))
    net = _net(settings, test)
    return _alternate({"": lambda: measure(net, test, valid, settings)}, 1, device)[""][0]


def unit_tasks(settings: Settings, n_tasks: int, device: torch.device) -> Tasks:
    """Tasks of the settings' shape: printed characters for 28x28 grey, random pixels for 84x84 colour."""
    rng = np.random.default_rng(0)
    if settings.dataset == "mini-imagenet":
        pool = image_sets.ImageSet(
            "random",
            "train",
            rng.integers(0, 256, (10, 20, *DATASETS["mini-imagenet"].shape), np.uint8),
            tuple("0123456789"),
            "",
        )
    else:
        pool = image_sets.load_images("glyphs", "train")
    return sample_tasks(pool, n_tasks, settings.ways, settings.shots, settings.queries, rng).to(
        device
    )


def best_rate(device: torch.device) -> float:
    """The best float32 rate of a 3x3 convolution on this machine, in operations a second, over a few easy shapes."""
    best = 0.0
    for batch, channels, side in ((64, 64, 28), (32, 128, 28), (64, 128, 14)):
        x, weight = (
            torch.rand(batch, channels, side, side, device=device),
            torch.rand(channels, channels, 3, 3, device=device),
        )
        seconds = _alternate({"": partial(F.conv2d, x, weight, padding=1)}, 10, device)[""]
        best = max(best, 2 * batch * channels * channels * 9 * side * side / min(seconds))
    return best


def _net(settings: Settings, tasks: Tasks) -> ConvNet:
    torch.manual_seed(settings.seed)
    return ConvNet(tuple(tasks.support_x.shape[2:]), settings.ways, settings.filters).to(
        tasks.support_x.device
    )


def _alternate(
    calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, in turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.freeze()  # what is there now is not garbage, and need not be looked through each time
    for _ in range(repeats + 1):
        for name, call in calls.items():
            gc.collect()  # higher leaves reference cycles: nobody pays for another's
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                seconds[name].append(start.elapsed_time(end) / 1e3)
            else:
                began = time.process_time()
                call()
                seconds[name].append(time.process_time() - began)
    gc.unfreeze()
    return {name: times[1:] for name, times in seconds.items()}


def _timings(
    unit: str, order: str, seconds: dict[str, list[float]], base: str, *columns: dict[str, float]
) -> list[Timing]:
    quartiles = {
        name: np.quantile(times, [0.5, 0.25, 0.75]) * 1e3 for name, times in seconds.items()
    }
    base_ms = quartiles[base][0] if base in quartiles else float("nan")
    return [
        Timing(
            unit,
            order,
            name,
            *map(float, [*ms, base_ms / ms[0], *(column[name] for column in columns)]),
        )
        for name, ms in quartiles.items()
    ]
