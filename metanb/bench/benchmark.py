"""The benchmark as a whole: run its units.

Candidates take turns within one process, so that changes in load affect all of them equally; what
counts is ratios of medians. Time is this process's CPU time on a CPU, and device events on a GPU.
Each time stands beside the result's error against a float64 reference by autograd alone: a fast
wrong gradient is not fast.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from metanb.bench import throughput, timing, units
from metanb.runs import machine


def run_benchmark(names: list[str], repeats: int, device: torch.device) -> dict[str, Any]:
    """Time the given units.

    With U1 comes `measuring`: the cost of an epoch's measures, as a share of an epoch's
    meta-training at paper scale.

    Args:
        names: of the units, out of `metanb.bench.units.ALL`.
        repeats: rounds of each unit.
        device: CPU or GPU.

    Returns:
        Plain values, ready for JSON.
    """
    machine.keep_freed_memory()  # for all candidates alike
    # metanb's matrix products are float32, so the peers' convolutions must be, too.
    torch.backends.cudnn.allow_tf32 = False
    if device.index is not None:
        torch.cuda.set_device(device)  # events and synchronize() look at the current device
    rate = timing.best_rate(device)
    cells = [name for name in names if name in units.CELLS]
    timed = [name for name in names if name not in units.CELLS]
    timings = _time_units(timed, repeats, device, rate)
    result = {
        "environment": machine.describe_environment(device)
        | {"code": machine.code_version(), "date": machine.utc_now()},
        "clock": "device events" if device.type == "cuda" else "process CPU time",
        "repeats": repeats,
        "best_gflops": rate / 1e9,
        "timings": [asdict(row) for row in timings],
        "rates": [asdict(row) for row in _measure_cells(cells, repeats, device)],
    }
    if "U1" in names:
        result["measuring"] = _share_of_measuring(timings, device)
    return result


def _time_units(
    names: Iterable[str], repeats: int, device: torch.device, rate: float
) -> list[timing.Timing]:
    """Time meta-gradients of both orders, and Hessian norms."""
    jobs = [
        (unit, first_order)
        for unit in names
        for first_order in ((False,) if unit in units.HESSIANS else (False, True))
    ]
    timings: list[timing.Timing] = []
    for unit, first_order in tqdm(jobs, unit="unit", disable=None):
        if unit in units.HESSIANS:
            timings += timing.time_hessian_norms(unit, device, repeats)
        else:
            timings += timing.time_gradients(unit, first_order, repeats, device, rate)
    return timings


def _measure_cells(
    cells: Iterable[str], repeats: int, device: torch.device
) -> list[throughput.Rate]:
    """Measure rates of whole iterations; on a CPU of one run only."""
    together = throughput.TOGETHER if device.type == "cuda" else throughput.TOGETHER[:1]
    rates: list[throughput.Rate] = []
    for cell in cells:
        rates += throughput.measure_rates(cell, device, repeats, together)
    return rates


def _share_of_measuring(timings: Iterable[timing.Timing], device: torch.device) -> float:
    """Time of an epoch's measures, as a share of the time of its meta-gradients."""
    of_u1 = ("U1", "second", units.OURS)
    ms = next(row.ms for row in timings if (row.unit, row.order, row.candidate) == of_u1)
    iterations = units.UNITS["U1"][1].epoch_iterations
    return timing.time_measuring(device) / (ms * iterations / 1e3)
