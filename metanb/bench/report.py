"""How fast, and how right: one meta-gradient by metanb and by its peers, and the Hessian norm, timed side by side.

Candidates take turns within one process, so that a machine's moods hit all alike; what counts are
ratios of medians. Time is this process's CPU time on a CPU and device events on a GPU. Beside each
time stands the error of the result against a float64 reference by autograd alone: a fast wrong
gradient is not fast.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from metanb.bench import throughput
from metanb.bench.throughput import TOGETHER
from metanb.bench.timing import (
    BASE,
    OURS,
    UNITS,
    VMAP,
    Timing,
    best_rate,
    time_gradients,
    time_hessian_norms,
    time_measuring,
)
from metanb.runs import machine
from metanb.runs.machine import keep_freed_memory


def run_benchmark(units: list[str], repeats: int, device: torch.device) -> dict[str, Any]:
    """Time the units named (keys of UNITS, "H", or keys of `throughput.CELLS`); plain values, ready for JSON.

    With U1 comes `measuring`: what an epoch's measures cost, as a share of an epoch's meta-training
    at paper scale.
    """
    keep_freed_memory()  # for all alike
    # our matrix products are float32, so the others' convolutions are, too
    torch.backends.cudnn.allow_tf32 = False
    if device.index is not None:
        torch.cuda.set_device(device)  # events and synchronize() look at this one
    rate = best_rate(device)
    timings: list[Timing] = []
    jobs = [
        (unit, order)
        for unit in units
        if unit not in throughput.CELLS
        for order in ((False, True) if unit != "H" else (False,))
    ]
    for unit, first_order in tqdm(jobs, unit="unit", disable=None):
        timings += (
            time_hessian_norms(device, repeats)
            if unit == "H"
            else time_gradients(unit, first_order, repeats, device, rate)
        )
    result = {
        "environment": machine.describe_environment(device)
        | {"code": machine.code_version(), "date": machine.utc_now()},
        "clock": "device events" if device.type == "cuda" else "process CPU time",
        "repeats": repeats,
        "best_gflops": rate / 1e9,
        "timings": [asdict(timing) for timing in timings],
        "rates": [
            asdict(rate)
            for cell in units
            if cell in throughput.CELLS
            for rate in throughput.measure_rates(
                cell, device, repeats, TOGETHER if device.type == "cuda" else TOGETHER[:1]
            )
        ],
    }
    if "U1" in units:
        step = next(
            t.ms for t in timings if (t.unit, t.order, t.candidate) == ("U1", "second", OURS)
        )
        result["measuring"] = time_measuring(device) / (
            step * UNITS["U1"][1].epoch_iterations / 1e3
        )
    return result


def timings_table(result: dict[str, Any]) -> pd.DataFrame:
    """The timings for reading, a row a candidate."""
    rows = pd.DataFrame(result["timings"])
    return pd.DataFrame(
        {
            "unit": rows.unit,
            "order": rows.order,
            "candidate": rows.candidate,
            "ms": rows.ms.round(1),
            "quartiles": rows.ms_low.map("{:.1f}".format)
            + " to "
            + rows.ms_high.map("{:.1f}".format),
            "times as fast": rows.ratio.round(2),
            "error, single": rows.error.map("{:.0e}".format),
            "error, double": rows.error64.map(
                lambda error: "" if np.isnan(error) else f"{error:.0e}"
            ),
            "share of best rate": rows.share.map(
                lambda share: "" if np.isnan(share) else f"{share:.0%}"
            ),
        }
    )


def rates_table(result: dict[str, Any]) -> pd.DataFrame:
    """The rates of whole iterations for reading; beside peers where the gradient's unit was timed in the same call."""
    rows = pd.DataFrame(result["rates"])
    peer_ms = {(t["unit"], t["order"], t["candidate"]): t["ms"] for t in result["timings"]}

    def times(row: Any, peer: str) -> str:
        ms = peer_ms.get((*throughput.GRADIENTS[row.cell], peer))
        return "" if ms is None else f"{row.rate * ms / 1e3:.1f}"

    def shown(values: pd.Series, form: str) -> pd.Series:
        return values.map(lambda value: "" if np.isnan(value) else form.format(value))

    return pd.DataFrame(
        {
            "cell": rows.cell.map(lambda cell: throughput.CELLS[cell][0]),
            "runs": rows.runs,
            "change": rows.change,
            "ms": rows.ms.round(1),
            "quartiles": rows.ms_low.map("{:.1f}".format)
            + " to "
            + rows.ms_high.map("{:.1f}".format),
            "run-iterations/s": rows.rate.map("{:.3g}".format),
            "times higher": [times(row, BASE) for row in rows.itertuples()],
            "times vmap": [times(row, VMAP) for row in rows.itertuples()],
            "of matrix rate": shown(rows.matrix_share, "{:.0%}"),
            "of copy rate": shown(rows.copy_share, "{:.0%}"),
            "GiB": shown(rows.memory, "{:.1f}"),
            "measuring": shown(rows.measuring, "{:.0%}"),
        }
    )


def write_result(result: dict[str, Any], path: Path) -> None:
    """The result as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")
