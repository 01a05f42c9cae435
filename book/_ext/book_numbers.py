"""Sphinx extension: the numbers in the book's prose, computed from the recorded runs and from the code at build time.

Each entry of `substitutions` is written `{{ name }}` in a page. A name that is not there is a warning, and so, in the
strict build, an error: no number of the book is typed by hand.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from metanb import bench, claims
from metanb.claims import TOO_FEW, Row, ledger
from metanb.records import read_all
from metanb.settings import NAMES, Settings, preset

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = [f"C{number}" for number in range(1, 9)]
SCALES = ("smoke", "quick", "paper")
PAPER_SETTINGS = [("omniglot", 5, 1), ("omniglot", 20, 1), ("mini-imagenet", 5, 1), ("mini-imagenet", 5, 5)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def frame(data: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    return table(list(data.columns), data.astype(str).to_numpy().tolist())


def number(value: Any) -> str:
    """A value as the book prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def verdict(rows: list[Row]) -> str:
    """One claim's verdicts in a phrase, each with the cells that it holds for."""
    tested: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict != TOO_FEW:
            where = f"{NAMES[row.dataset]} {row.setting}, {row.scale} scale: {NAMES[row.algorithm]}"
            tested.setdefault(row.verdict, []).append(where)
    return (
        "; ".join(f"**{result}** ({'; '.join(cells)})" for result, cells in tested.items()) or "not&nbsp;yet&nbsp;run"
    )


def evidence(rows: list[Row]) -> str:
    """The ledger's rows that have a verdict, as a table."""
    tested = claims.table(row for row in rows if row.verdict != TOO_FEW)
    if tested.empty:
        return "No run is recorded yet."
    return frame(tested)


def settings_table(columns: dict[str, Settings], only_changing: bool) -> str:
    """Settings side by side, one row a setting; what each means stands with it in the code."""
    rows = []
    for name in Settings.__dataclass_fields__:
        values = [getattr(settings, name) for settings in columns.values()]
        if not only_changing or (name not in ("dataset", "ways", "shots") and len(set(values)) > 1):
            rows.append([f"`{name}`", *map(number, values), Settings.__dataclass_fields__[name].metadata["help"]])
    return table(["Setting", *columns, "Meaning"], rows)


def span(values: pd.Series) -> str:
    """Least to greatest, one digit."""
    return f"{values.min():.0e} to {values.max():.0e}"


def gradient_table(timings: pd.DataFrame, order: str) -> str:
    """Candidates by units: time, how many times as fast as the base, and whether the gradient is wrong."""
    chosen = timings[timings.order == order]

    def cell(row: Any) -> str:
        wrong = f" <br>**wrong by {row.error64:.2%}**" if row.error64 > bench.WRONG else ""
        return f"×\N{NO-BREAK SPACE}{row.ratio:.2f} ({row.ms:,.0f}\N{NO-BREAK SPACE}ms){wrong}"

    cells = {(row.candidate, row.unit): cell(row) for row in chosen.itertuples()}
    rows = [[name, *(cells.get((name, unit), "–") for unit in bench.UNITS)] for name in chosen.candidate.unique()]
    return table(["Candidate", *bench.UNITS], rows)


def benchmark() -> dict[str, str]:
    """The recorded benchmark, `results/bench.json`, as tables; names and units are `metanb.bench`'s."""
    result = json.loads((ROOT / "results" / "bench.json").read_text())
    timings, where = pd.DataFrame(result["timings"]), result["environment"]
    ours = timings[(timings.candidate == bench.OURS) & (timings.unit != "H")]
    hessian = bench.table(result)
    return {
        "bench_units": table(["Unit", "Setting"], [[name, text] for name, (text, _) in bench.UNITS.items()]),
        "bench_tasks": number(bench.HESSIAN_TASKS),
        "bench_where": f"Measured on {where['date'][:10]} on {where['device']} with {where['threads']} thread, "
        f"torch {where['torch']}: {result['clock']}, {result['repeats']} rounds.",
        "bench_checked": number(bench.CHECKED_TASKS),
        "bench_single": span(ours.error),
        "bench_single_base": span(timings[(timings.candidate == bench.BASE) & (timings.unit != "H")].error),
        "bench_measuring": f"{result['measuring']:.1%}",
        "bench_rate": f"{result['best_gflops']:.0f}",
        "bench_share": f"{ours.share.min():.0%} to {ours.share.max():.0%}",
        "bench_second": gradient_table(timings, "second"),
        "bench_first": gradient_table(timings, "first"),
        "bench_hessian": frame(hessian[hessian.unit == "H"][["candidate", "ms", "times as fast", "error, single"]]),
    }


def substitutions() -> dict[str, str]:
    """All names that pages may use, with their Markdown."""
    rows = ledger(read_all(ROOT / "results"))
    names = {f"verdict_{claim.lower()}": verdict([row for row in rows if row.claim == claim]) for claim in CLAIMS}
    names["evidence"] = evidence(rows)
    names["scales"] = settings_table({scale: preset(scale, "omniglot") for scale in SCALES}, True)
    paper = {f"{NAMES[name]}, {n}-way {k}-shot": preset("paper", name, n, k) for name, n, k in PAPER_SETTINGS}
    names["paper_settings"] = settings_table(paper, True)
    names["all_settings"] = settings_table({"default": Settings()}, False)
    return names | benchmark()


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", lambda _, config: config.myst_substitutions.update(substitutions()))
    return {"parallel_read_safe": True}
