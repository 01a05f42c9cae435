"""Sphinx extension: the numbers in the book's prose, computed from the recorded runs and from the code at build time.

Each entry of `substitutions` is written `{{ name }}` in a page. A name that is not there is a
warning, and so, in the strict build, an error: no number of the book is typed by hand.
"""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from metanb.bench import report as bench
from metanb.bench import timing as bench_timing
from metanb.claims import rules
from metanb.claims.cells import group_into_cells
from metanb.claims.paper import PAPER_GAIN, PUBLISHED
from metanb.claims.verdicts import HOLM_MEANING, Row, Verdict
from metanb.figures import ledger as summary
from metanb.figures import runs as figures
from metanb.grids import definitions, hours
from metanb.grids.hours import CORE, Estimate, Timings, format_minutes
from metanb.labels import NAMES
from metanb.runs.records import Record, read_records
from metanb.settings import Settings, differences_from_scale, preset, scale_of

ROOT = Path(__file__).resolve().parents[2]
BEFORE = ROOT / "book" / "verdicts-before.csv"  # made by the rules of then, from the records of now
CLAIMS = [f"C{number}" for number in range(1, 9)]
CLAIM_PAGES = {
    name: f"../notebooks/{page}.html#{name.lower()}"
    for page, names in {
        "2-flatness": ("C1", "C2", "C3"),
        "5-overfitting": ("C4",),
        "3-trajectories": ("C5", "C7"),
        "4-gradients": ("C6",),
        "6-regularizer": ("C8",),
    }.items()
    for name in names
}
CONTROLS = {  # forms that the landing page counts besides the paper's
    "c1_first_peak": ("C1", "first peak"),
    "c1_scale_free": ("C1", rules.SCALE_FREE),
    "c3_relative": ("C3", rules.RELATIVE),
    "c4_scale_free": ("C4", rules.SCALE_FREE),
}
RUNS_PAGE, RUNS_MARK = "book/runs", "<!-- one section for each cell, written at build time -->"
SCALES = ("smoke", "quick", "paper")
PAPER_SETTINGS = [
    ("omniglot", 5, 1),
    ("omniglot", 20, 1),
    ("mini-imagenet", 5, 1),
    ("mini-imagenet", 5, 5),
]
MAIN_SETTINGS = {  # 1-shot; Omniglot where no data set is named
    "20-way MAML": preset("paper", "omniglot", 20),
    "mini-ImageNet, first-order MAML": preset("paper", "mini-imagenet", algorithm="fomaml"),
    "5-way MAML": preset("paper", "omniglot"),
}


@cache
def all_recorded() -> list[Record]:
    """The committed runs; read once a build, for all that is made from them."""
    return read_records(ROOT / "results")


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


def headline(rows: list[Row], form: str = "") -> str:
    """One claim's verdicts in a phrase: of the rows that can test it, in the paper's form or another, what they say."""
    chosen = [row for row in rows if (row.variant == form if form else row.as_in_paper)]
    judged = [row for row in chosen if row.verdict.is_judged]
    counts = Counter(row.verdict for row in judged)
    said = [f"**{verdict}** in {n} of {len(judged)}" for verdict, n in counts.most_common()]
    untestable = sum(not row.verdict.is_judged and row.verdict != Verdict.TOO_FEW for row in chosen)
    if said and untestable:
        said.append(f"not testable in {untestable} more")
    return "; ".join(said) or ("not testable in any run so far" if untestable else "not yet run")


def small(*texts: str) -> str:
    """Small print, on a line of its own in a table's cell; nothing if there is none."""
    said = "; ".join(filter(None, texts))
    return f"<br><small>{said}</small>" if said else ""


def ledger_table(rows: list[Row]) -> str:
    """The rows that have a verdict, as a table: each verdict leads to its section, each number of runs to its runs."""
    judged = [
        row
        for row in rows
        if row.verdict.is_judged or (row.verdict != Verdict.TOO_FEW and row.as_in_paper)
    ]
    if not judged:
        return "No run is recorded yet."
    lines = []
    for row in judged:
        where = f"{NAMES[row.algorithm]}, {NAMES[row.dataset]} {row.setting}{small(row.apart)}"
        effect = (
            f'<span class="metanb-effect">{row.change}</span>{small(row.shown_unit, row.detail)}'
        )
        verdict, runs = f"[{row.verdict}](#{row.claim.lower()})", f"[{row.runs}](#{row.ids[0]})"
        form = f'<span id="{row.anchor}"></span>{row.variant or "as in the paper"}'
        lines.append(
            [
                form,
                where,
                f"{row.scale}{small(row.reached)}",
                verdict,
                effect,
                runs,
                row.shown_p,
                row.paper or "–",
            ]
        )
    head = ["Form", "Cell", "Scale", "Verdict", "Effect, 95 % interval", "Runs", "p, Holm", "Paper"]
    # the paper gives a figure for few claims
    shown = len(head) if any(row.paper for row in judged) else -1
    return table(head[:shown], [line[:shown] for line in lines])


def rules_changed(recorded: list[Record], before: pd.DataFrame) -> str:
    """What the change of the rules turned: verdicts then and now, on the very runs that were judged then.

    `before` is the ledger of the old rules: claim, variant, the runs' ids, how far they had
    reached, verdict. Runs that were added to a cell since are left out, and so is a cell whose runs
    have gone on.
    """
    then = before.set_index(["claim", "variant", "runs", "reached"]).verdict.to_dict()
    ids = {run_id for runs in before.runs for run_id in runs.split()}
    rows = rules.judge(run for run in recorded if run.settings.id in ids)
    turned: dict[tuple[str, str, str], list[str]] = {}
    compared = still = 0
    for row in rows:
        old = then.get((row.claim, row.variant, " ".join(row.ids), row.reached))
        compared += old is not None
        if old is None or old == row.verdict:
            continue
        if old.startswith("not testable") and not row.verdict.is_judged:
            still += 1
        else:
            where = f"{NAMES[row.algorithm]}, {NAMES[row.dataset]} {row.setting}, {row.scale}"
            turned.setdefault((row.name, old, row.verdict), []).append(where)
    lines = [
        [*key, number(len(cells)), small(*cells).removeprefix("<br>")]
        for key, cells in turned.items()
    ]
    count = sum(map(len, turned.values()))
    head = ["Claim", "Then", "Now", "Rows", "Which"]
    also = f" {still} more are not testable as they were, for another reason." if still else ""
    return f"Of {compared} rows {count} turned.{also}\n\n{table(head, lines)}"


def runs_page(recorded: list[Record]) -> str:
    """A section for each cell, with its runs to download; the id of each of them leads there."""
    timings, lines = Timings(recorded), []
    for cell in group_into_cells(recorded):
        timed = [timings.run_time(run) for run in cell]
        minutes = sum(run.minutes for run in timed) / len(timed)
        devices = " and ".join(sorted({run.kind for run in timed}))
        downloads = ", ".join(
            f"{{download}}`{run.settings.id} <../results/{run.path.name}/measures.csv>`"
            for run in cell
        )
        lines += [f"({run.settings.id})=" for run in cell]
        so_far = (
            ""
            if all(run.finished for run in cell)
            else f", stopped at {iterations(cell)} iterations"
        )
        lines += [
            f"### {what(cell[0].settings)}",
            "",
            f"{len(cell)} runs, each {format_minutes(minutes)} of one {devices}{so_far}. "
            f"{figures.describe_origin(cell)} Measures: {downloads}.",
            "",
        ]
    return "\n".join(lines)


def what(settings: Settings) -> str:
    """A cell in words: its data, its algorithm, and every setting that sets it apart from its scale's."""
    rest = "".join(
        f", `{name}={number(value)}`" for name, value in differences_from_scale(settings).items()
    )
    return f"{NAMES[settings.dataset]}, {settings.setting}, {NAMES[settings.algorithm]}, {scale_of(settings)} scale{rest}"


def settings_table(columns: dict[str, Settings], only_changing: bool) -> str:
    """Settings side by side, one row a setting; what each means stands with it in the code."""
    rows = []
    for name in Settings.__dataclass_fields__:
        values = [getattr(settings, name) for settings in columns.values()]
        if not only_changing or (name not in ("dataset", "ways", "shots") and len(set(values)) > 1):
            rows.append(
                [
                    f"`{name}`",
                    *map(number, values),
                    Settings.__dataclass_fields__[name].metadata["help"],
                ]
            )
    return table(["Setting", *columns, "Meaning"], rows)


def span(values: pd.Series) -> str:
    """Least to greatest, one digit."""
    return f"{values.min():.0e} to {values.max():.0e}"


def gradient_table(timings: pd.DataFrame, order: str) -> str:
    """Candidates by units: time, how many times as fast as the base, and whether the gradient is wrong."""
    chosen = timings[timings.order == order]

    def cell(row: Any) -> str:
        wrong = f" <br>**wrong by {row.error64:.2%}**" if row.error64 > bench_timing.WRONG else ""
        return f"×\N{NO-BREAK SPACE}{row.ratio:.2f} ({row.ms:,.0f}\N{NO-BREAK SPACE}ms){wrong}"

    cells = {(row.candidate, row.unit): cell(row) for row in chosen.itertuples()}
    rows = [
        [name, *(cells.get((name, unit), "–") for unit in bench_timing.UNITS)]
        for name in chosen.candidate.unique()
    ]
    return table(["Candidate", *bench_timing.UNITS], rows)


def against_best_peer(timings: pd.DataFrame, order: str) -> str:
    """How many times as fast metanb is as the fastest peer that is right, unit by unit."""
    chosen = timings[(timings.order == order) & ~(timings.error64 > bench_timing.WRONG)]
    ours = chosen[chosen.candidate == bench_timing.OURS].set_index("unit").ms
    best = chosen[chosen.candidate != bench_timing.OURS].groupby("unit").ms.min()
    return ", ".join(f"{best[unit] / ms:.2f} ({unit})" for unit, ms in ours.items())


def benchmark() -> dict[str, str]:
    """The recorded benchmark, `results/bench.json`, as tables; names and units are `metanb.bench.report`'s."""
    result = json.loads((ROOT / "results" / "bench.json").read_text())
    timings, where = pd.DataFrame(result["timings"]), result["environment"]
    ours = timings[(timings.candidate == bench_timing.OURS) & (timings.unit != "H")]
    hessian = bench.timings_table(result)
    return {
        "bench_units": table(
            ["Unit", "Setting"], [[name, text] for name, (text, _) in bench_timing.UNITS.items()]
        ),
        "bench_tasks": number(bench_timing.HESSIAN_TASKS),
        "bench_where": f"Measured on {where['date'][:10]} on {where['device']} with {where['threads']} thread, "
        f"torch {where['torch']}: {result['clock']}, {result['repeats']} rounds.",
        "bench_checked": number(bench_timing.CHECKED_TASKS),
        "bench_single": span(ours.error),
        "bench_single_base": span(
            timings[(timings.candidate == bench_timing.BASE) & (timings.unit != "H")].error
        ),
        "bench_measuring": f"{result['measuring']:.1%}",
        "bench_rate": f"{result['best_gflops']:.0f}",
        "bench_share": f"{ours.share.min():.0%} to {ours.share.max():.0%}",
        "bench_second": gradient_table(timings, "second"),
        "bench_first": gradient_table(timings, "first"),
        "bench_best_second": against_best_peer(timings, "second"),
        "bench_best_first": against_best_peer(timings, "first"),
        "bench_hessian": frame(
            hessian[hessian.unit == "H"][["candidate", "ms", "times as fast", "error, single"]]
        ),
    }


def accuracy_table(recorded: list[Record]) -> str:
    """Accuracy on further meta-test tasks at the paper's scale, beside the published figures for MAML."""
    lines = []
    for cell in group_into_cells(run for run in recorded if scale_of(run.settings) == "paper"):
        settings = cell[0].settings
        published = PUBLISHED.get((settings.dataset, settings.ways, settings.shots))
        if settings.algorithm == "finetune" or settings.regulariser != "none" or published is None:
            continue
        ends = [run.curve("final_accuracy").iloc[-1] for run in cell]
        values = [100 * end["mean"] for end in ends]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(cell) > 1 else ""
        error = 1.96 * max(100 * end["sem"] for end in ends)
        lines.append(
            [
                f"{NAMES[settings.dataset]}, {settings.setting}",
                NAMES[settings.algorithm],
                iterations(cell),
                f"{sum(values) / len(values):.1f} %{spread}",
                f"± {error:.1f}",
                number(len(cell)),
                number(int(ends[0].n)),
                f"{published:g} %" if settings.algorithm == "maml" else "–",
            ]
        )
    if not lines:
        return "No run at the paper's scale is recorded yet."
    head = [
        "Setting",
        "Algorithm",
        "Iterations",
        "Accuracy, least to greatest run",
        "One run, points",
        "Runs",
        "Tasks",
    ]
    return table([*head, "Finn et al., 60,000"], lines)


def runs_by_scale(recorded: list[Record]) -> str:
    """How many runs there are of each scale, and how many of them were stopped."""
    said = []
    for scale, n in Counter(scale_of(run.settings) for run in recorded).most_common():
        cut = sum(not run.finished for run in recorded if scale_of(run.settings) == scale)
        said.append(
            f"{n} runs at `{scale}` scale" + (f", {cut} of them stopped early" if cut else "")
        )
    return "; ".join(said)


def judged_at_paper_scale(recorded: list[Record], rows: list[Row]) -> list[Record]:
    """The runs at the paper's scale that some verdict rests on."""
    ids = {one for row in rows if row.verdict.is_judged for one in row.ids}
    return [run for run in recorded if scale_of(run.settings) == "paper" and run.settings.id in ids]


def paper_reach(recorded: list[Record], rows: list[Row]) -> str:
    """How far the runs behind verdicts at the paper's scale have got, in words."""
    reached = judged_at_paper_scale(recorded, rows)
    if not reached:
        return "of which none has a verdict yet"
    return f"trained for {iterations(reached)} of {preset('paper').iterations:,} iterations"


def paper_missing(recorded: list[Record], rows: list[Row]) -> str:
    """What of the paper's experiments has no verdict at its scale, in words."""
    there = {run.settings.unseeded for run in judged_at_paper_scale(recorded, rows)}
    left: dict[str, list[str]] = {}
    for one in (
        planned.settings for planned in definitions.paper_grid() if planned.settings.seed == 0
    ):
        setting = f"{NAMES[one.dataset]} {one.setting}"
        what = "the regulariser" if one.regulariser != "none" else NAMES[one.algorithm]
        if one.unseeded not in there and what not in left.setdefault(setting, []):
            left[setting].append(what)
    said = [f"{setting} ({', '.join(names)})" for setting, names in left.items() if names]
    return "; ".join(said) or "nothing"


def iterations(cell: list[Record]) -> str:
    """The iterations that a cell's runs got to, least to greatest."""
    ends = {run.iterations for run in cell}
    return f"{min(ends):,}" if len(ends) == 1 else f"{min(ends):,} to {max(ends):,}"


def cost_table(recorded: list[Record]) -> str:
    """The paper's runs on each kind of device: one of each main setting, and all of its grid."""
    timings, planned = Timings(recorded), [run.settings for run in definitions.paper_grid()]
    by_bandwidth = sorted(hours.BANDWIDTH, key=lambda gpu: -hours.BANDWIDTH[gpu])
    others = [gpu for gpu in timings.gpus if gpu not in hours.BANDWIDTH]
    rows = []
    for kind in (*by_bandwidth, *others, CORE):
        estimates = [timings.estimate(settings, kind) for settings in MAIN_SETTINGS.values()]
        left = timings.time_left(planned, [], kind)
        whole, device_hours = format_minutes(left.minutes), f"{left.minutes / 60:,.0f}"
        if left.unknown == left.runs:
            whole = device_hours = "unknown"
        elif left.unknown:
            note = small(f"{left.unknown} of {left.runs} runs unknown")
            whole, device_hours = f"over {whole}{note}", f"over {device_hours}"
        elif left.bases != {"like runs"}:
            whole, device_hours = f"≈ {whole}", f"≈ {device_hours}"
        basis = small(timed_how(left.bases, kind))
        together = "1" if kind == CORE else f"{left.together:.0f}" if left.minutes else "unknown"
        rows.append([f"{kind}{basis}", together, *map(cost, estimates), whole, device_hours])
    head = [
        "Device",
        "Runs at a time",
        *MAIN_SETTINGS,
        f"All {len(planned)} runs",
        "Hours of the device",
    ]
    return table(head, rows)


def timed_how(bases: frozenset[hours.Basis], kind: str) -> str:
    """What a row of `cost_table` rests on."""
    if "bandwidth" in bases:
        return f"an estimate, by {hours.BANDWIDTH[kind]:g} TB/s"
    return "timed" if "like runs" in bases else ""


def cost(estimate: Estimate) -> str:
    """A time, marked where no run of just these settings was timed on the device."""
    rough = estimate.known and estimate.basis != "like runs"
    return f"{'≈ ' if rough else ''}{format_minutes(estimate.minutes)}"


def gpu_table(recorded: list[Record]) -> str:
    """What runs at the paper's scale took on GPUs, and what whole ones would take at that pace."""
    timings, rows = Timings(recorded), []
    for cell in group_into_cells(run for run in recorded if scale_of(run.settings) == "paper"):
        devices = {timings.run_time(run).kind for run in cell}
        if not devices <= set(timings.gpus):
            continue
        timed = pd.DataFrame(vars(timings.run_time(run)) for run in cell).mean(numeric_only=True)
        by_the_clock = sum(run.provenance["wall_seconds"] for run in cell) / len(cell) / 60
        rows.append(
            [
                what(cell[0].settings),
                ", ".join(sorted(devices)),
                number(len(cell)),
                iterations(cell),
                format_minutes(by_the_clock),
                f"{timed.together:.1f}",
                format_minutes(timed.minutes),
                format_minutes(timed.whole),
            ]
        )
    return table(
        [
            "Runs",
            "GPU",
            "n",
            "Iterations",
            "From start to end",
            "Runs at a time",
            "Share of the GPU",
            "Share for 60,000 iterations",
        ],
        rows,
    )


def substitutions() -> dict[str, str]:
    """All names that pages may use, with their Markdown."""
    recorded = all_recorded()
    rows = rules.judge(recorded)
    of = {name: [row for row in rows if row.claim == name] for name in CLAIMS}
    names = {f"verdict_{name.lower()}": headline(chosen) for name, chosen in of.items()}
    names |= {f"ledger_{name.lower()}": ledger_table(chosen) for name, chosen in of.items()}
    names |= {
        f"verdict_{name}": headline(of[claim], form) for name, (claim, form) in CONTROLS.items()
    }
    names["across"], names["min_epochs"] = number(rules.ACROSS), number(rules.MIN_EPOCHS)
    names["peak_by"] = number(rules.PEAK_BY)
    names["strong"], names["power"] = number(rules.STRONG), f"{100 * rules.POWER:.0f} %"
    names["gpu_hours"] = gpu_table(recorded)
    names["paper_cost"] = cost_table(recorded)
    names["bandwidths"] = ", ".join(f"{gpu} {rate:g} TB/s" for gpu, rate in hours.BANDWIDTH.items())
    names["limit_unknown"] = format_minutes(hours.LIMIT_IF_UNKNOWN)
    names["paper_missing"] = paper_missing(recorded, rows)
    names["overview"] = summary.overview(rows, CLAIM_PAGES, "ledger.html")
    names["rules_changed"] = rules_changed(recorded, pd.read_csv(BEFORE, keep_default_na=False))
    names["holm"] = HOLM_MEANING
    names["holm_seen"] = number(
        sum(row.verdict == Verdict.REPRODUCED and row.p_holm <= 0.05 for row in rows)
    )
    names["reproduced"] = number(sum(row.verdict == Verdict.REPRODUCED for row in rows))
    names["orthogonal"] = number(rules.ORTHOGONAL)
    names["paper_gain"] = f"{PAPER_GAIN:.2f}"
    names["ledger_rows"] = number(sum(row.verdict.is_judged for row in rows))
    names["ledger_untestable"] = number(
        sum(not row.verdict.is_judged and row.verdict != Verdict.TOO_FEW for row in rows)
    )
    names["ledger_missing"] = number(sum(row.verdict == Verdict.TOO_FEW for row in rows) or "none")
    names["scales"] = settings_table({scale: preset(scale, "omniglot") for scale in SCALES}, True)
    paper = {
        f"{NAMES[name]}, {n}-way {k}-shot": preset("paper", name, n, k)
        for name, n, k in PAPER_SETTINGS
    }
    names["paper_settings"] = settings_table(paper, True)
    names["all_settings"] = settings_table({"default": Settings()}, False)
    names["runs_total"] = number(len(recorded))
    names["paper_reach"] = paper_reach(recorded, rows)
    names["runs_by_scale"] = runs_by_scale(recorded)
    names["accuracy"] = accuracy_table(recorded)
    names["final_tasks"] = number(preset("paper").final_tasks)
    names["paper_runs"] = number(len(definitions.paper_grid()))
    quick = [run.settings for run in definitions.quick_grid()]
    names["quick_runs"] = number(len(quick))
    names["quick_hours"] = format_minutes(Timings(recorded).time_left(quick, [], CORE).minutes)
    return names | benchmark()


def source_read(_: Any, docname: str, source: list[str]) -> None:
    """Sphinx's event of that name: the page of runs is written from the records."""
    if docname == RUNS_PAGE:
        source[0] = source[0].replace(RUNS_MARK, runs_page(all_recorded()))


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", source_read)
    app.connect(
        "config-inited", lambda _, config: config.myst_substitutions.update(substitutions())
    )
    return {"parallel_read_safe": True}
