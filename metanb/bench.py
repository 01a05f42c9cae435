"""How fast, and how right: one meta-gradient by metanb and by its peers, and the Hessian norm, timed side by side.

Candidates take turns within one process, so that a machine's moods hit all alike; what counts are ratios of medians.
Time is this process's CPU time on a CPU and device events on a GPU. Beside each time stands the error of the result
against a float64 reference by autograd alone: a fast wrong gradient is not fast.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from metanb import landscape, peers, provenance
from metanb.adapt import adapt, losses
from metanb.meta import chunk_size, meta_gradient
from metanb.nets import ConvNet
from metanb.settings import Settings, preset
from metanb.tasks import Tasks

UNITS: dict[str, tuple[str, Settings]] = {
    "U1": ("Omniglot 5-way 1-shot, 32 tasks, 1 step, 1 query image a class", preset("paper", "omniglot")),
    "U2": ("the same with 15 query images a class", preset("paper", "omniglot", queries=15)),
    "U3": ("Omniglot 20-way 1-shot, 16 tasks, 5 steps, 1 query image a class", preset("paper", "omniglot", 20)),
    "U4": ("mini-ImageNet 5-way 1-shot, 4 tasks, 5 steps, 15 query images a class", preset("paper", "mini-imagenet")),
}  # fmt: skip
OURS, BASE, HESSIAN_BASE = "metanb", "higher, one task at a time", "PyHessian, 20 iterations"
HESSIAN_TASKS = 16


@dataclass(frozen=True)
class Timing:
    """One candidate on one unit.

    Attributes:
        unit: key of UNITS, or "H" for the Hessian norms.
        order: "second" or "first" for meta-gradients, "" for Hessian norms.
        candidate: metanb or a peer.
        ms, ms_low, ms_high: median and quartiles of the time, milliseconds.
        ratio: the base's median divided by this one: how many times as fast. The base of "H" is PyHessian.
        error: relative error against float64: of the whole gradient, or of the worst task's Hessian norm.
        share: of the best convolution rate seen on this machine, counting the base's operations; NaN for "H".
    """

    unit: str
    order: str
    candidate: str
    ms: float
    ms_low: float
    ms_high: float
    ratio: float
    error: float
    share: float


def run(units: list[str], repeats: int, device: torch.device) -> dict[str, Any]:
    """Time the units named (keys of UNITS, or "H"); the result is plain values, ready for JSON."""
    rate = best_rate(device)
    timings: list[Timing] = []
    jobs = [(unit, order) for unit in units for order in ((False, True) if unit != "H" else (False,))]
    for unit, first_order in tqdm(jobs, unit="unit", disable=None):
        timings += (
            hessian_norms(device, repeats) if unit == "H" else gradients(unit, first_order, repeats, device, rate)
        )
    return {
        "environment": provenance.environment(device) | {"code": provenance.code(), "date": provenance.now()},
        "clock": "device events" if device.type == "cuda" else "process CPU time",
        "repeats": repeats,
        "best_gflops": rate / 1e9,
        "timings": [asdict(timing) for timing in timings],
    }


def table(result: dict[str, Any]) -> pd.DataFrame:
    """The timings for reading, a row a candidate."""
    rows = pd.DataFrame(result["timings"])
    return pd.DataFrame(
        {
            "unit": rows.unit,
            "order": rows.order,
            "candidate": rows.candidate,
            "ms": rows.ms.round(1),
            "quartiles": rows.ms_low.map("{:.1f}".format) + " to " + rows.ms_high.map("{:.1f}".format),
            "times as fast": rows.ratio.round(2),
            "relative error": rows.error.map("{:.1e}".format),
            "share of best rate": rows.share.map(lambda share: "" if np.isnan(share) else f"{share:.0%}"),
        }
    )


def gradients(unit: str, first_order: bool, repeats: int, device: torch.device, rate: float) -> list[Timing]:
    """Time one meta-gradient of the unit by metanb and by every peer that is installed."""
    settings = replace(UNITS[unit][1], algorithm="fomaml" if first_order else "maml")
    tasks = random_tasks(settings, settings.meta_batch, device)
    net = _net(settings, tasks)
    how = (settings.inner_lr, settings.inner_steps)
    options = {"first_order": first_order, "adapt_norm": True, "chunk": chunk_size(settings, device)}
    models: dict[str, torch.nn.Module] = {OURS: net}
    calls: dict[str, Callable[[], Any]] = {OURS: lambda: meta_gradient(net, tasks, *how, **options)}
    for name, (peer, norm, needs, orders) in peers.PEERS.items():
        if peers.installed(needs) and ("first" if first_order else "second") in orders:
            models[name] = plain = peers.plain_net(net, norm)
            calls[name] = lambda peer=peer, plain=plain: peer(plain, tasks, *how, first_order)
    reference, errors = _reference(net, tasks, *how, first_order), {}
    for name, call in calls.items():
        models[name].zero_grad()
        call()
        errors[name] = float((peers.gradient(models[name]).cpu().double() - reference).norm() / reference.norm())
    with FlopCounterMode(display=False) as counter:
        calls[BASE]()
    seconds = _alternate(calls, repeats, device)
    share = {name: counter.get_total_flops() / np.median(times) / rate for name, times in seconds.items()}
    return _timings(unit, "first" if first_order else "second", seconds, BASE, errors, share)


def hessian_norms(device: torch.device, repeats: int) -> list[Timing]:
    """Time the Hessian norms of 16 adapted tasks of U1's shape, to a relative error of 1e-3 if one can be asked for."""
    settings = UNITS["U1"][1]
    tasks = random_tasks(settings, HESSIAN_TASKS, device)
    net = _net(settings, tasks)
    chunk = chunk_size(settings, device)
    params = adapt(net, tasks, settings.inner_lr, settings.inner_steps, first_order=True).detach()

    def ours() -> Iterator[float]:
        for part, rows in zip(tasks.split(chunk), params.split(chunk), strict=True):
            yield from landscape.hessian_norms(
                lambda q, t=part: losses(net, q, t.support_x, t.support_y), rows
            ).norms.tolist()

    solved = []
    for row in params:
        adapted = _net(settings, tasks)
        torch.nn.utils.vector_to_parameters(row, adapted.parameters())
        solved.append(peers.plain_net(adapted))
    each = list(zip(solved, tasks.support_x, tasks.support_y, strict=True))
    calls: dict[str, Callable[[], list[float]]] = {OURS: lambda: list(ours())}
    for name, (peer, needs) in peers.HESSIAN_PEERS.items():
        if peers.installed(needs):
            calls[name] = lambda peer=peer: [peer(*one) for one in each]
    truth = np.array([_exact_norm(*one) for one in each])
    errors = {name: float(np.max(np.abs(np.array(call()) / truth - 1))) for name, call in calls.items()}
    seconds = _alternate(calls, repeats, device)
    base = next(reversed(seconds)) if HESSIAN_BASE not in seconds else HESSIAN_BASE
    return _timings("H", "", seconds, base, errors, dict.fromkeys(seconds, float("nan")))


def random_tasks(settings: Settings, n_tasks: int, device: torch.device) -> Tasks:
    """Tasks of the settings' shape with random pixels: speed does not look at pictures."""
    rng = torch.Generator().manual_seed(0)
    shape = (3, 84, 84) if settings.dataset == "mini-imagenet" else (1, 28, 28)
    labels = torch.arange(settings.ways)
    support, query = (labels.repeat_interleave(each).repeat(n_tasks, 1) for each in (settings.shots, settings.queries))
    support_x, query_x = (torch.rand(*y.shape, *shape, generator=rng) for y in (support, query))
    return Tasks(support_x, support, query_x, query).to(device)


def best_rate(device: torch.device) -> float:
    """The best float32 rate of a 3x3 convolution on this machine, in operations a second, over a few easy shapes."""
    best = 0.0
    for batch, channels, side in ((64, 64, 28), (32, 128, 28), (64, 128, 14)):
        x, weight = (
            torch.rand(batch, channels, side, side, device=device),
            torch.rand(channels, channels, 3, 3, device=device),
        )
        seconds = _alternate({"": lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)}, 10, device)[""]
        best = max(best, 2 * batch * channels * channels * 9 * side * side / min(seconds))
    return best


def _net(settings: Settings, tasks: Tasks) -> ConvNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet(tuple(tasks.support_x.shape[2:]), settings.ways, settings.filters)
    return net.to(tasks.support_x.device)


def _alternate(calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, in turns; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            gc.collect()  # higher leaves reference cycles: each pays for its own garbage, none for another's
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                seconds[name].append(start.elapsed_time(end) / 1e3)
            else:
                start = time.process_time()
                call()
                seconds[name].append(time.process_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def _timings(
    unit: str, order: str, seconds: dict[str, list[float]], base: str, errors: dict[str, float], share: dict[str, float]
) -> list[Timing]:
    quartiles = {name: np.quantile(times, [0.5, 0.25, 0.75]) * 1e3 for name, times in seconds.items()}
    return [
        Timing(unit, order, name, *map(float, ms), float(quartiles[base][0] / ms[0]), errors[name], float(share[name]))
        for name, ms in quartiles.items()
    ]


def _reference(net: ConvNet, tasks: Tasks, lr: float, steps: int, first_order: bool) -> torch.Tensor:
    """The meta-gradient in float64, by autograd alone, one task at a time, on the CPU."""
    plain = peers.plain_net(net).double().cpu()
    names, theta = zip(*plain.named_parameters(), strict=True)
    total = torch.zeros(sum(p.numel() for p in theta), dtype=torch.float64)
    for x, y, query_x, query_y in peers.each(tasks.to("cpu")):
        params = list(theta)
        for images, labels, last in [(x, y, False)] * steps + [(query_x, query_y, True)]:
            output = torch.func.functional_call(plain, dict(zip(names, params, strict=True)), (images.double(),))
            by = theta if last else params
            slope = torch.autograd.grad(F.cross_entropy(output, labels), by, create_graph=not (last or first_order))
            params = [p - lr * g for p, g in zip(params, slope, strict=True)]
        total += torch.cat([g.flatten() for g in slope]) / len(tasks)
    return total


def _exact_norm(plain: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """|lambda| max of one task's Hessian in float64, by scipy's Lanczos to rounding."""
    double, params = plain.double().cpu(), list(plain.parameters())
    slope = torch.autograd.grad(F.cross_entropy(double(x.cpu().double()), y.cpu()), params, create_graph=True)
    flat = torch.cat([g.flatten() for g in slope])

    def product(v: np.ndarray) -> np.ndarray:
        found = torch.autograd.grad(flat, params, torch.from_numpy(v), retain_graph=True)
        return torch.cat([g.flatten() for g in found]).numpy()

    operator = LinearOperator((len(flat),) * 2, matvec=product, dtype=np.float64)
    (value,) = eigsh(operator, k=1, which="LM", tol=1e-8, return_eigenvectors=False, v0=np.ones(len(flat)))
    plain.float()
    return float(abs(value))


def write(result: dict[str, Any], path: Path) -> None:
    """The result as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")
