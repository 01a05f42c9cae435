"""Times and errors of one meta-gradient and of Hessian norms, by metanb and by its peers."""

import gc
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metanb.bench import peers, units
from metanb.data import image_sets
from metanb.data.tasks import Tasks, sample_tasks
from metanb.labels import DATASETS
from metanb.landscape import hessian, task_stats
from metanb.landscape.measures import bytes_per_task, measure
from metanb.maml.cuda_graph import Replayed
from metanb.maml.inner_loop import adapt, losses
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import chunk_size, meta_gradient
from metanb.settings import Settings

# A network, and a call that leaves the meta-gradient in it.
Candidate = tuple[torch.nn.Module, Callable[[], None]]


@dataclass(frozen=True)
class Timing:
    """One candidate on one unit.

    Attributes:
        unit: key of `units.UNITS` or `units.HESSIANS`.
        order: "second" or "first" for meta-gradients, "" for Hessian norms.
        candidate: metanb or a peer.
        ms, ms_low, ms_high: median and quartiles of the time, milliseconds.
        ratio: the base's median divided by this one: how many times as fast. The base of "H" is
            PyHessian; where it is not installed, the ratio is NaN.
        error: relative error in float32: the median over single tasks' gradients, or the largest
            over tasks' Hessian norms.
        error64: the largest relative error of single tasks' gradients in float64, which tells
            rounding from a wrong method. NaN for "H".
        share: the rate at which the base's operations are done, as a share of the best convolution
            rate of this machine; NaN for "H".
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
    settings = replace(units.UNITS[unit][1], algorithm="fomaml" if first_order else "maml")
    tasks = unit_tasks(settings, settings.meta_batch, device)
    net = _seeded_network(settings, tasks)
    errors = _gradient_errors(net, tasks[: units.CHECKED_TASKS], settings)
    candidates = _gradient_candidates(net, tasks, settings)
    calls = {name: call for name, (_, call) in candidates.items()}
    with FlopCounterMode(display=False) as counter:
        calls[units.BASE]()
    seconds, _ = _time_in_turns(calls, repeats, device)
    operations = counter.get_total_flops()
    shares = {name: operations / np.median(times) / rate for name, times in seconds.items()}
    order = "first" if first_order else "second"
    return _summarise(
        unit, order, seconds, units.BASE, errors[torch.float32], errors[torch.float64], shares
    )


def _gradient_errors(
    net: ConvNet, tasks: Tasks, settings: Settings
) -> dict[torch.dtype, dict[str, float]]:
    """Each candidate's relative error over single tasks, by precision.

    In float32, where a ReLU may flip, it is the median; in float64 the largest.
    """
    # float64 first: the network ends in float32.
    errors: dict[torch.dtype, dict[str, list[float]]] = {torch.float64: {}, torch.float32: {}}
    for task in tasks.split(1):
        exact = peers.exact_gradient(net, task, settings)
        for dtype, by_candidate in errors.items():
            candidates = _gradient_candidates(net.to(dtype), _cast_images(task, dtype), settings)
            for name, (model, call) in candidates.items():
                call()
                difference = peers.gradient(model).cpu().double() - exact
                by_candidate.setdefault(name, []).append(float(difference.norm() / exact.norm()))
    return {
        torch.float64: {name: max(values) for name, values in errors[torch.float64].items()},
        torch.float32: {
            name: float(np.median(values)) for name, values in errors[torch.float32].items()
        },
    }


def _gradient_candidates(net: ConvNet, tasks: Tasks, settings: Settings) -> dict[str, Candidate]:
    """Candidates by name: metanb, and every installed peer that supports the order."""
    lr = settings.inner_lr
    steps = settings.inner_steps
    first_order = settings.first_order
    device = tasks.support_x.device
    chunk = chunk_size(settings, net.image_shape[1:], device)

    def compute_ours(*tensors: Tensor) -> None:
        net.zero_grad(set_to_none=True)
        meta_gradient(net, Tasks(*tensors), lr, steps, first_order=first_order, chunk=chunk)

    plain_layers = peers.plain_net(net, peers.PrimitiveNorm)

    def compute_plain() -> None:
        plain_layers.zero_grad(set_to_none=True)
        meta_gradient(plain_layers, tasks, lr, steps, first_order=first_order, chunk=chunk)

    def compute_by_peer(peer: peers.Peer, plain: torch.nn.Module) -> None:
        plain.zero_grad()
        peer(plain, tasks, lr, steps, first_order)

    candidates: dict[str, Candidate] = {
        units.OURS: (net, partial(Replayed(compute_ours, device), *tasks.tensors())),
        units.PLAIN: (plain_layers, compute_plain),
    }
    for name, (peer, norm, library, orders) in peers.PEERS.items():
        if peers.is_installed(library) and ("first" if first_order else "second") in orders:
            plain = peers.plain_net(net, norm)
            candidates[name] = (plain, partial(compute_by_peer, peer, plain))
    return candidates


def _cast_images(tasks: Tasks, dtype: torch.dtype) -> Tasks:
    return replace(tasks, support_x=tasks.support_x.to(dtype), query_x=tasks.query_x.to(dtype))


def time_hessian_norms(unit: str, device: torch.device, repeats: int) -> list[Timing]:
    """Time the Hessian norms of adapted tasks; the large network's in a fifth of the rounds.

    The relative error asked for is 1e-3, of peers that can be asked for one.
    """
    settings = units.UNITS["U1"][1]
    if unit == "H":
        tasks = unit_tasks(settings, units.HESSIAN_TASKS, device)
        net: torch.nn.Module = _seeded_network(settings, tasks)
    else:
        from torchvision.models import resnet18  # here, since torchvision takes seconds to import

        settings = replace(settings, inner_lr=0.01)
        rng = np.random.default_rng(0)
        shape = (settings.ways, settings.shots, settings.queries)
        tasks = sample_tasks(_random_images(3, 32, 32), units.RESNET_TASKS, *shape, rng).to(device)
        torch.manual_seed(settings.seed)
        net = resnet18(num_classes=settings.ways).eval().to(device)
        repeats = max(1, repeats // 5)
    params = adapt(net, tasks, settings.inner_lr, settings.inner_steps, first_order=True).detach()
    chunk = task_stats.tasks_at_once(device, bytes_per_task(net, params, tasks))

    def compute_ours(**options: Any) -> list[float]:
        norms: list[float] = []
        for part, rows in zip(tasks.split(chunk), params.split(chunk), strict=True):

            def loss(params: Tensor, part: Tasks = part) -> Tensor:
                return losses(net, params, part.support_x, part.support_y)

            norms += hessian.hessian_norms(loss, rows, **options).norms.tolist()
        return norms

    # For the peers: each task's adapted network, in plain layers, with its support set.
    adapted = []
    for row in params:
        copy = deepcopy(net)
        torch.nn.utils.vector_to_parameters(row, copy.parameters())
        adapted.append(peers.plain_net(copy) if isinstance(copy, ConvNet) else copy)
    solutions = list(zip(adapted, tasks.support_x, tasks.support_y, strict=True))

    def compute_by_peer(peer: Callable[..., float]) -> list[float]:
        return [peer(*solution) for solution in solutions]

    calls: dict[str, Callable[[], list[float]]] = {
        units.OURS: compute_ours,
        units.NO_BOUND: partial(compute_ours, risk=1.0),
    }
    for name, (peer, library) in peers.HESSIAN_PEERS.items():
        if peers.is_installed(library):
            calls[name] = partial(compute_by_peer, peer)

    exact = np.array(compute_by_peer(peers.exact_norm))
    seconds, norms = _time_in_turns(calls, repeats, device)
    errors = {
        name: float(np.max(np.abs(np.array(of_tasks) / exact - 1)))
        for name, of_tasks in norms.items()
    }
    unknown = dict.fromkeys(seconds, float("nan"))
    return _summarise(unit, "", seconds, units.HESSIAN_BASE, errors, unknown, unknown)


def time_measuring(device: torch.device) -> float:
    """Seconds of one epoch's measures at U1's settings, on as many tasks as a run has."""
    settings = units.UNITS["U1"][1]
    shape = replace(settings, queries=settings.test_queries)
    test, valid = (unit_tasks(shape, settings.test_tasks, device) for _ in range(2))
    net = _seeded_network(settings, test)
    seconds, _ = _time_in_turns({"": lambda: measure(net, test, valid, settings)}, 1, device)
    return seconds[""][0]


def unit_tasks(settings: Settings, n_tasks: int, device: torch.device) -> Tasks:
    """Tasks of the settings' shape.

    Images of 28x28 grey are printed characters; images of 84x84 colour are random pixels.
    """
    rng = np.random.default_rng(0)
    if settings.dataset == "mini-imagenet":
        pool = _random_images(*DATASETS["mini-imagenet"].shape)
    else:
        pool = image_sets.load_images("glyphs", "train")
    tasks = sample_tasks(pool, n_tasks, settings.ways, settings.shots, settings.queries, rng)
    return tasks.to(device)


def _random_images(*shape: int) -> image_sets.ImageSet:
    """Ten classes of 20 images [C, H, W] of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, *shape), np.uint8)
    return image_sets.ImageSet("random", "train", pixels, tuple("0123456789"), "")


def best_rate(device: torch.device) -> float:
    """The best float32 rate of a 3x3 convolution here, in operations per second.

    It is the best over a few shapes that suit most machines.
    """
    best = 0.0
    for batch, channels, side in ((64, 64, 28), (32, 128, 28), (64, 128, 14)):
        x = torch.rand(batch, channels, side, side, device=device)
        weight = torch.rand(channels, channels, 3, 3, device=device)
        call = partial(F.conv2d, x, weight, padding=1)
        seconds, _ = _time_in_turns({"": call}, 10, device)
        best = max(best, 2 * batch * channels * channels * 9 * side * side / min(seconds[""]))
    return best


def _seeded_network(settings: Settings, tasks: Tasks) -> ConvNet:
    """A network for these tasks, on their device, with the seed's weights."""
    torch.manual_seed(settings.seed)
    net = ConvNet(tuple(tasks.support_x.shape[2:]), settings.ways, settings.filters)
    return net.to(tasks.support_x.device)


def _time_in_turns(
    calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each call in each round, and what it returned in the last.

    The first round warms up and does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    gc.freeze()  # objects that exist now are no garbage: each collection skips them
    for _ in range(repeats + 1):
        for name, call in calls.items():
            gc.collect()  # higher leaves reference cycles: no other call pays for them
            elapsed, results[name] = _time_call(call, device)
            seconds[name].append(elapsed)
    gc.unfreeze()
    return {name: times[1:] for name, times in seconds.items()}, results


def _time_call(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call, by device events on a GPU and CPU time on a CPU; and its result."""
    if device.type != "cuda":
        began = time.process_time()
        result = call()
        return time.process_time() - began, result
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, result


def _summarise(
    unit: str,
    order: str,
    seconds: dict[str, list[float]],
    base: str,
    errors: dict[str, float],
    errors64: dict[str, float],
    shares: dict[str, float],
) -> list[Timing]:
    """One Timing per candidate, from its times in all rounds and its errors."""
    quartiles = {
        name: np.quantile(times, [0.5, 0.25, 0.75]) * 1e3 for name, times in seconds.items()
    }
    base_ms = quartiles[base][0] if base in quartiles else float("nan")
    return [
        Timing(
            unit,
            order,
            candidate=name,
            ms=float(ms),
            ms_low=float(low),
            ms_high=float(high),
            ratio=float(base_ms / ms),
            error=float(errors[name]),
            error64=float(errors64[name]),
            share=float(shares[name]),
        )
        for name, (ms, low, high) in quartiles.items()
    ]
