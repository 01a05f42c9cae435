"""Tables of a benchmark's result, and its file; no torch is loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metanb import files
from metanb.bench import units


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
        ms = peer_ms.get((*units.GRADIENTS[row.cell], peer))
        return "" if ms is None else f"{row.rate * ms / 1e3:.1f}"

    return pd.DataFrame(
        {
            "cell": rows.cell.map(lambda cell: units.CELLS[cell][0]),
            "runs": rows.runs,
            "change": rows.change,
            "ms": rows.ms.round(1),
            "quartiles": _format_quartiles(rows),
            "run-iterations/s": rows.rate.map("{:.3g}".format),
            "times higher": [times_as_fast(row, units.BASE) for row in rows.itertuples()],
            "times vmap": [times_as_fast(row, units.VMAP) for row in rows.itertuples()],
            "of matrix rate": _format_known(rows.matrix_share, "{:.0%}"),
            "of copy rate": _format_known(rows.copy_share, "{:.0%}"),
            "GiB": _format_known(rows.memory, "{:.1f}"),
            "measuring": _format_known(rows.measuring, "{:.0%}"),
        }
    )


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write the result as JSON; the file is the old one or the new one, never a part."""
    files.replace(path, (json.dumps(result, indent=1) + "\n").encode())
