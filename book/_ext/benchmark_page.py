"""The recorded benchmarks, of gradients and of Hessian norms, for the page "Speed"."""

import json
from typing import Any

import pandas as pd
from committed import ROOT
from formats import format_value, markdown_frame, markdown_table

from metanb.bench import report, units


def gradient_table(timings: pd.DataFrame, order: str) -> str:
    """Candidates by units: times as fast as the base, time, and the error of a wrong gradient."""
    of_order = timings[timings.order == order]

    def format_cell(row: Any) -> str:
        is_wrong = row.error64 > units.WRONG
        error = f" <br>**wrong by {row.error64:.2%}**" if is_wrong else ""
        return f"×\N{NO-BREAK SPACE}{row.ratio:.2f} ({row.ms:,.0f}\N{NO-BREAK SPACE}ms){error}"

    cells = {(row.candidate, row.unit): format_cell(row) for row in of_order.itertuples()}
    rows = [
        [name, *(cells.get((name, unit), "–") for unit in units.UNITS)]
        for name in of_order.candidate.unique()
    ]
    return markdown_table(["Candidate", *units.UNITS], rows)


def speedup_over_best_peer(timings: pd.DataFrame, order: str) -> str:
    """How many times as fast metanb is as the fastest peer whose gradient is right, by unit."""
    right = timings[(timings.order == order) & ~(timings.error64 > units.WRONG)]
    own = right[right.candidate == units.OURS].set_index("unit").ms
    best = right[~right.candidate.isin([units.OURS, units.PLAIN])].groupby("unit").ms.min()
    return ", ".join(f"{best[unit] / ms:.2f} ({unit})" for unit, ms in own.items())


def describe_benchmark(result: dict[str, Any]) -> str:
    """When, where and how a benchmark was measured, as a sentence."""
    environment = result["environment"]
    return (
        f"Measured on {environment['date'][:10]} on {environment['device']} "
        f"with {environment['threads']} thread, torch {environment['torch']}: "
        f"{result['clock']}, {result['repeats']} rounds."
    )


def format_range(values: pd.Series) -> str:
    """Least to greatest, one digit each."""
    return f"{values.min():.0e} to {values.max():.0e}"


def benchmark_values() -> dict[str, str]:
    """Substitutions from the recorded benchmarks: of gradients, and of Hessian norms."""
    result, of_norms = (
        json.loads((ROOT / "results" / name).read_text())
        for name in ("bench.json", "bench-hessians.json")
    )
    timings = pd.DataFrame(result["timings"])
    gradients = timings[timings.unit.isin(list(units.UNITS))]
    own = gradients[gradients.candidate == units.OURS]
    base = gradients[gradients.candidate == units.BASE]
    hessian = report.timings_table(of_norms)[
        ["unit", "candidate", "ms", "times as fast", "error, single"]
    ]
    unit_rows = [[name, text] for name, (text, _) in units.UNITS.items()]
    hessian_rows = [[name, units.HESSIANS[name]] for name in hessian.unit.unique()]
    return {
        "bench_units": markdown_table(["Unit", "Setting"], unit_rows),
        "bench_hessian_units": markdown_table(["Unit", "Network"], hessian_rows),
        "bench_where": describe_benchmark(result),
        "bench_hessian_where": describe_benchmark(of_norms),
        "bench_checked": format_value(units.CHECKED_TASKS),
        "bench_single": format_range(own.error),
        "bench_single_base": format_range(base.error),
        "bench_measuring": f"{result['measuring']:.1%}",
        "bench_rate": f"{result['best_gflops']:.0f}",
        "bench_share": f"{own.share.min():.0%} to {own.share.max():.0%}",
        "bench_second": gradient_table(timings, "second"),
        "bench_first": gradient_table(timings, "first"),
        "bench_best_second": speedup_over_best_peer(timings, "second"),
        "bench_best_first": speedup_over_best_peer(timings, "first"),
        "bench_hessian": markdown_frame(hessian),
    }
