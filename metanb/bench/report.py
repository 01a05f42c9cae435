"""The benchmark as a whole: run its units, and make tables of the result.

Candidates take turns within one process, so that changes in load affect all of them equally; what
counts is ratios of medians. Time is this process's CPU time on a CPU, and device events on a GPU.
Each time stands beside the result's error against a float64 reference by autograd alone: a fast
wrong gradient is not fast.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from metanb.bench import throughput, timing
from metanb.runs import machine


def run_benchmark(units: list[str], repeats: int, device: torch.device) -> dict[str, Any]:
    """Time the given units.

    With U1 comes `measuring`: the cost of an epoch's measures, as a share of an epoch's
    meta-training at paper scale.

    Args:
        units: keys of `timing.UNITS`, "H" for Hessian norms, or keys of `throughput.CELLS`.
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
    timed_units = [unit for unit in units if unit not in throughput.CELLS]
    timings = _time_units(timed_units, repeats, device, rate)
    cells = [unit for unit in units if unit in throughput.CELLS]
    result = {
        "environment": machine.describe_environment(device)
        | {"code": machine.code_version(), "date": machine.utc_now()},
        "clock": "device events" if device.type == "cuda" else "process CPU time",
        "repeats": repeats,
        "best_gflops": rate / 1e9,
        "timings": [asdict(row) for row in timings],
        "rates": [asdict(row) for row in _measure_cells(cells, repeats, device)],
    }
    if "U1" in units:
        result["measuring"] = _share_of_measuring(timings, device)
    return result


def _time_units(
    units: Iterable[str], repeats: int, device: torch.device, rate: float
) -> list[timing.Timing]:
    """Time meta-gradients of both orders, and Hessian norms."""
    jobs = [
        (unit, first_order)
        for unit in units
        for first_order in ((False, True) if unit != "H" else (False,))
    ]
    timings: list[timing.Timing] = []
    for unit, first_order in tqdm(jobs, unit="unit", disable=None):
        if unit == "H":
            timings += timing.time_hessian_norms(device, repeats)
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
    of_u1 = ("U1", "second", timing.OURS)
    ms = next(row.ms for row in timings if (row.unit, row.order, row.candidate) == of_u1)
    iterations = timing.UNITS["U1"][1].epoch_iterations
    return timing.time_measuring(device) / (ms * iterations / 1e3)


def _format_quartiles(rows: pd.DataFrame) -> pd.Series:
    """The quartiles of times in ms, as text."""
    return rows.ms_low.map("{:.1f}".format) + " to " + rows.ms_high.map("{:.1f}".format)


def _format_known(values: pd.Series, form: str) -> pd.Series:
    """Values as text; NaN is empty."""
    return values.map(lambda value: "" if np.isnan(value) else form.format(value))


def timings_table(result: dict[str, Any]) -> pd.DataFrame:
    """The timings for reading, one row per candidate."""
    rows = pd.DataFrame(result["timings"])
    return pd.DataFrame(
        {
            "unit": rows.unit,
            "order": rows.order,
            "candidate": rows.candidate,
            "ms": rows.ms.round(1),
            "quartiles": _format_quartiles(rows),
            "times as fast": rows.ratio.round(2),
            "error, single": rows.error.map("{:.0e}".format),
            "error, double": _format_known(rows.error64, "{:.0e}"),
            "share of best rate": _format_known(rows.share, "{:.0%}"),
        }
    )


def rates_table(result: dict[str, Any]) -> pd.DataFrame:
    """The rates of whole iterations for reading.

    Peers are compared where the gradient's unit was timed in the same call.
    """
    rows = pd.DataFrame(result["rates"])
    peer_ms = {
        (row["unit"], row["order"], row["candidate"]): row["ms"] for row in result["timings"]
    }

    def times_as_fast(row: Any, peer: str) -> str:
        ms = peer_ms.get((*throughput.GRADIENTS[row.cell], peer))
        return "" if ms is None else f"{row.rate * ms / 1e3:.1f}"

    return pd.DataFrame(
        {
            "cell": rows.cell.map(lambda cell: throughput.CELLS[cell][0]),
            "runs": rows.runs,
            "change": rows.change,
            "ms": rows.ms.round(1),
            "quartiles": _format_quartiles(rows),
            "run-iterations/s": rows.rate.map("{:.3g}".format),
            "times higher": [times_as_fast(row, timing.BASE) for row in rows.itertuples()],
            "times vmap": [times_as_fast(row, timing.VMAP) for row in rows.itertuples()],
            "of matrix rate": _format_known(rows.matrix_share, "{:.0%}"),
            "of copy rate": _format_known(rows.copy_share, "{:.0%}"),
            "GiB": _format_known(rows.memory, "{:.1f}"),
            "measuring": _format_known(rows.measuring, "{:.0%}"),
        }
    )


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write the result as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")
