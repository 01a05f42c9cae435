"""The benchmark as a whole: run its units.

Candidates take turns within one process, so that changes in load affect all of them equally; what
counts is ratios of medians. Time is this process's CPU time on a CPU, and device events on a GPU.
Each time stands beside the result's error against a float64 reference by autograd alone: a fast
wrong gradient is not fast.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from metanb.bench import throughput, timing, units
from metanb.runs import machine


def run_benchmark(
    names: list[str],
    repeats: int,
    device: torch.device,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Time the given units.

    With U1 comes `measuring`: the cost of an epoch's measures, as a share of an epoch's
    meta-training at paper scale.

    Args:
        names: of the units, out of `metanb.bench.units.ALL`.
        repeats: rounds of each unit.
        device: CPU or GPU.
        keep: called with the result so far after each unit, so that a benchmark that is killed
            leaves what it has timed.

    Returns:
        Plain values, ready for JSON.
    """
    machine.keep_freed_memory()  # for all candidates alike
    # metanb's matrix products are float32, so the peers' convolutions must be, too.
    torch.backends.cudnn.allow_tf32 = False
    if device.index is not None:
        torch.cuda.set_device(device)  # events and synchronize() look at the current device
    rate = timing.best_rate(device)
    result: dict[str, Any] = {
        "environment": machine.describe_environment(device)
        | {"code": machine.code_version(), "date": machine.utc_now()},
        "clock": "device events" if device.type == "cuda" else "process CPU time",
        "repeats": repeats,
        "best_gflops": rate / 1e9,
        "timings": [],
        "rates": [],
    }
    # Rates of a CPU are those of one run: there, several together are no faster.
    together = throughput.TOGETHER if device.type == "cuda" else throughput.TOGETHER[:1]
    for name in tqdm(names, unit="unit", disable=None):
        if name in units.CELLS:
            rates = throughput.measure_rates(name, device, repeats, together)
            result["rates"] += [asdict(row) for row in rates]
        elif name in units.HESSIANS:
            timings = timing.time_hessian_norms(name, device, repeats)
            result["timings"] += [asdict(row) for row in timings]
        else:
            for first_order in (False, True):
                timings = timing.time_gradients(name, first_order, repeats, device, rate)
                result["timings"] += [asdict(row) for row in timings]
        if name == "U1":
            result["measuring"] = _share_of_measuring(result["timings"], device)
        keep(result)
    return result


def _share_of_measuring(timings: Iterable[dict[str, Any]], device: torch.device) -> float:
    """Time of an epoch's measures, as a share of the time of its meta-gradients."""
    of_u1 = ("U1", "second", units.OURS)
    ms = next(
        row["ms"] for row in timings if (row["unit"], row["order"], row["candidate"]) == of_u1
    )
    iterations = units.UNITS["U1"][1].epoch_iterations
    return timing.time_measuring(device) / (ms * iterations / 1e3)
