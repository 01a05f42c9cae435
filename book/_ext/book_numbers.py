"""Sphinx extension: the numbers in the book's prose, computed when the book is built.

They come from the recorded runs and from the code. A page writes `{{ name }}` for an entry of
`substitutions`. A name that does not exist is a warning, and so, in the strict build, an error: no
number in the book is typed by hand.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from docutils import nodes

from metanb.bench import report, units
from metanb.claims import predictions, rules
from metanb.claims.cells import cut_to_common_epoch, cut_to_common_length, group_into_cells
from metanb.claims.paper import PAPER_GAIN, PUBLISHED
from metanb.claims.verdicts import HOLM_MEANING, Row, Verdict
from metanb.figures import ledger
from metanb.figures.runs import describe_origin
from metanb.grids import definitions, hours
from metanb.grids.hours import CORE, Estimate, TimeLeft, Timings, format_minutes
from metanb.labels import name_of
from metanb.runs.records import Record, keep_furthest, read_records
from metanb.settings import Settings, differences_from_scale, preset, scale_of

ROOT = Path(__file__).resolve().parents[2]
# verdicts of the earlier rules on the records of today
BEFORE = ROOT / "book" / "verdicts-before.csv"
# words of that table that are called otherwise today, and what they are called
RENAMED = {
    "not reproduced: the opposite": {Verdict.CONTRARY},
    "partly": {Verdict.TREND_ONLY, Verdict.WITHIN_RUNS, Verdict.NOT_SET_APART},
}
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
# forms of claims, beside the paper's, that the landing page counts
CONTROLS = {
    "c1_first_peak": ("C1", "first peak"),
    "c1_scale_free": ("C1", rules.SCALE_FREE),
    "c3_relative": ("C3", rules.RELATIVE),
    "c4_scale_free": ("C4", rules.SCALE_FREE),
}
# by the short name of a verdict, what it means
VERDICT_MEANINGS = {
    "reproduced": (
        "The whole interval lies on the side that the paper claims. C4 to C7 ask for more: see "
        "their sections."
    ),
    "trend only": (
        "C5 and C6: accuracy and coherence drift together over meta-training, as any two measures "
        "do that both change with it. Their changes from epoch to epoch are not seen to go "
        "together, which with few runs is weak evidence."
    ),
    "within runs only": (
        "C5 and C6: they go together within each run, also from epoch to epoch. But the more "
        "coherent runs are not the more accurate ones."
    ),
    "not set apart": (
        "C7: finetuning's trajectories are nearly orthogonal. Meta-training's are not seen to lie "
        f"above {rules.ORTHOGONAL:g}, so this bound does not set finetuning apart."
    ),
    "not reproduced": (
        "The interval contains *no effect*. That does not prove that there is none. For C7 it "
        f"contains {rules.ORTHOGONAL:g}, the coherence below which we call directions orthogonal."
    ),
    "reversed": "The whole interval lies on the other side.",
    "cannot tell": (
        "The runs are too few to decide. For C8 the interval contains both no gain and the "
        f"paper's gain of {PAPER_GAIN:.2f} points. For C5 and C6 the runs cannot be compared "
        "across."
    ),
    "not testable": (
        "The runs do not show the case that the claim is about: accuracy does not fall (C4), the "
        "baseline does not work (C7), or epochs are too few or too long (C1's first peak, C4)."
    ),
}
LEDGER_PAGE = "book/ledger"
LEDGER_SCRIPT = "ledger.js"
RUNS_PAGE = "book/runs"
RUNS_MARK = "<!-- one section for each cell, written at build time -->"
SCALES = ("smoke", "quick", "paper")
PAPER_SETTINGS = [
    ("omniglot", 5, 1),
    ("omniglot", 20, 1),
    ("mini-imagenet", 5, 1),
    ("mini-imagenet", 5, 5),
]
# 1-shot; Omniglot where no data set is named
MAIN_SETTINGS = {
    "20-way MAML": preset("paper", "omniglot", 20),
    "mini-ImageNet, first-order MAML": preset("paper", "mini-imagenet", algorithm="fomaml"),
    "5-way MAML": preset("paper", "omniglot"),
}


@cache
def committed_runs() -> list[Record]:
    """The committed runs, read once per build."""
    return read_records(ROOT / "results")


@cache
def judged_rows() -> list[Row]:
    """The verdicts on the committed runs, reached once per build."""
    return rules.judge(committed_runs())


@cache
def judged_predictions() -> list[predictions.PredictionRow]:
    """What came of the predictions on the committed runs, judged once per build."""
    return predictions.judge_predictions(committed_runs())


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown_frame(data: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    return markdown_table(list(data.columns), data.astype(str).to_numpy().tolist())


def format_value(value: Any) -> str:
    """A value as the book prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def small_print(*texts: str) -> str:
    """The texts that are not empty, in small print on a line of its own in a table's cell."""
    line = "; ".join(filter(None, texts))
    return f"<br><small>{line}</small>" if line else ""


def format_range(values: pd.Series) -> str:
    """Least to greatest, one digit each."""
    return f"{values.min():.0e} to {values.max():.0e}"


def format_iterations(cell: list[Record]) -> str:
    """The iterations that a cell's runs have reached, least to greatest."""
    ends = {run.iterations for run in cell}
    return f"{min(ends):,}" if len(ends) == 1 else f"{min(ends):,} to {max(ends):,}"


def describe_cell(settings: Settings) -> str:
    """A cell in words: data, algorithm, scale, and every setting that differs from its scale's."""
    changes = "".join(
        f", `{name}={format_value(value)}`"
        for name, value in differences_from_scale(settings).items()
    )
    experiment = f"{name_of(settings.dataset)}, {settings.setting}, {name_of(settings.algorithm)}"
    return f"{experiment}, {scale_of(settings)} settings{changes}"


def is_untestable(row: Row) -> bool:
    """Whether there are enough runs for a row, but they cannot test its claim."""
    return not row.verdict.is_judged and row.verdict != Verdict.TOO_FEW


def headline(rows: list[Row], form: str = "") -> str:
    """One claim's verdicts in a phrase, in the paper's form or in another."""
    selected = [row for row in rows if (row.variant == form if form else row.as_in_paper)]
    judged = [row for row in selected if row.verdict.is_judged]
    counts = Counter(row.verdict for row in judged)
    phrases = [f"**{verdict}** in {n} of {len(judged)}" for verdict, n in counts.most_common()]
    untestable = sum(map(is_untestable, selected))
    if phrases and untestable:
        phrases.append(f"not testable in {untestable} more")
    if phrases:
        return "; ".join(phrases)
    return "not testable in any run so far" if untestable else "not yet run"


def count_verdicts(rows: list[Row]) -> str:
    """How many verdicts there are, and of which kind, such as "3 verdicts: 2 reproduced, ...".

    Verdicts of one mark count together.
    """
    counts = Counter(ledger.MARKS[row.verdict][0] for row in rows if row.verdict.is_judged)
    order = [name for name, _ in dict.fromkeys(ledger.MARKS.values())]
    kinds = ", ".join(f"{counts[name]} {name}" for name in order if counts[name])
    judged = sum(counts.values())
    text = f"{judged} {'verdict' if judged == 1 else 'verdicts'}"
    text += f": {kinds}" if kinds else ""
    untestable = sum(map(is_untestable, rows))
    return f"{text}; {untestable} not testable" if untestable else text


def shown_rows(rows: list[Row]) -> list[Row]:
    """The rows that have a verdict, and the paper's own forms that cannot be tested.

    The paper's own settings stand first.
    """
    return ledger.sort_rows(
        row for row in rows if row.verdict.is_judged or (is_untestable(row) and row.as_in_paper)
    )


def ledger_table(rows: list[Row]) -> str:
    """The rows that say something, as HTML: a table in a fold, with a summary.

    Each verdict links to the chapter that tests the claim, each number of runs to these runs. A
    row's attributes `data-dataset`, `data-algorithm`, `data-scale` and `data-verdict` are what the
    page's filter asks for.
    """
    shown = shown_rows(rows)
    if not shown:
        return "No run is recorded yet."
    head = ["Form", "Cell", "Verdict", "Effect, 95 % interval", "Runs", "p, Holm", "Paper"]
    # The paper gives a figure for few claims: leave the last column out where it has none.
    width = len(head) if any(row.paper for row in shown) else -1
    lines = [ledger_row(row, len(head[:width])) for row in shown]
    return folded_table(count_verdicts(shown), head[:width], lines, "metanb-ledger")


def folded_table(summary: str, head: list[str], lines: list[str], kind: str = "") -> str:
    """A table in a fold, as HTML; on a phone its rows become cards.

    Args:
        summary: what stands on the fold.
        head: of the columns, eight at most.
        lines: the rows, as `table_row` gives them.
        kind: a further class of the table.
    """
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    classes = " ".join(filter(None, ["table", "metanb-cards", kind]))
    # What the cells of a card are called, for the style sheet: said once, not in each cell.
    labels = ";".join(f"--label-{i}:'{name}'" for i, name in enumerate(head, 1))
    return (
        f'<details class="metanb-fold"><summary>{summary}</summary>'
        f'<table class="{classes}" style="{labels}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></details>"
    )


def table_row(cells: Iterable[str], attributes: str = "") -> str:
    """A row of `folded_table`.

    Args:
        cells: as HTML.
        attributes: of the row, as HTML.
    """
    return f"<tr{attributes}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def ledger_row(row: Row, width: int) -> str:
    """A row of the ledger's table, with as many cells as its head."""
    name, shape = ledger.MARKS[row.verdict]
    scale = row.shown_scale if row.reached else f"{row.scale} settings"
    algorithm = name_of(row.algorithm)
    attributes = {
        "dataset": name_of(row.dataset),
        "algorithm": algorithm,
        "scale": f"{row.scale} settings",
        "verdict": name,
    }
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in attributes.items())
    cell = f"{name_of(row.dataset)} {row.setting}, {algorithm}"
    verdict = f'<a href="{CLAIM_PAGES[row.claim]}">{escape(row.verdict)}</a>'
    details = "; ".join(filter(None, [row.shown_unit, row.detail]))
    columns = [
        escape(row.variant or "as in the paper"),
        f"{escape(cell)}<small>{escape('; '.join(filter(None, [scale, row.apart])))}</small>",
        f"{ledger.draw_symbol(name, shape)} {verdict}",
        f'<span class="metanb-effect">{row.change}</span><small>{escape(details)}</small>',
        f'<a href="runs.html#{nodes.make_id(row.ids[0])}">{row.runs}</a>',
        row.shown_p,
        row.paper or "–",
    ]
    return table_row(columns[:width], f' id="{row.anchor}"{data}')


def verdict_words() -> str:
    """Each verdict's mark, word and meaning, as a Markdown definition list."""
    shapes = dict(ledger.MARKS.values())
    items = [
        f"{ledger.draw_symbol(name, shapes[name])} {name}\n: {meaning}"
        for name, meaning in VERDICT_MEANINGS.items()
    ]
    return "\n\n".join(items)


def claim_picture(claim: str, recorded: list[Record], rows: list[Row]) -> str:
    """A claim's effects with their intervals, as HTML; empty without a row to draw."""
    beside = meta_training_rows(recorded, rows) if claim == "C7" else []
    figure = ledger.claim_forest(claim, rows, beside)
    return figure._repr_html_() if figure else ""


def meta_training_rows(recorded: list[Record], rows: list[Row]) -> list[Row]:
    """Beside each judged row of C7: late trajectory coherence of the meta-training it is beside.

    It is measured as the rule of C7 measures it, up to the epoch that both have reached.
    """
    by_id = {run.settings.id: run for run in keep_furthest(recorded)}
    beside = []
    for row in rows:
        if row.claim != "C7" or not row.verdict.is_judged:
            continue
        runs = [by_id[run_id] for run_id in row.ids]
        finetuned, learners = (
            cut_to_common_length([run for run in runs if is_baseline(run) == wanted])
            for wanted in (True, False)
        )
        _, learners = cut_to_common_epoch(finetuned, learners)
        coherence = rules.late_coherence(learners)
        beside.append(
            replace(
                row,
                algorithm=learners[0].settings.algorithm,
                effect=coherence.mean,
                low=coherence.low,
                high=coherence.high,
                runs=len(learners),
            )
        )
    return beside


def is_baseline(run: Record) -> bool:
    """Whether a run is one of finetuning."""
    return run.settings.algorithm == "finetune"


def rules_changed(recorded: list[Record], before: pd.DataFrame) -> str:
    """Verdicts that the change of the rules turned, on the very runs that were judged before it.

    Runs that were added to a cell since are left out, and so is a cell whose runs have gone on.

    Args:
        recorded: the records of today.
        before: the ledger of the earlier rules: claim, variant, the runs' ids, how far they had
            reached, verdict.
    """
    earlier = before.set_index(["claim", "variant", "runs", "reached"]).verdict.to_dict()
    ids = {run_id for runs in before.runs for run_id in runs.split()}
    rows = rules.judge(run for run in recorded if run.settings.id in ids)
    turned: dict[tuple[str, str, str], list[str]] = {}
    compared = 0
    untestable_still = 0
    for row in rows:
        verdict_before = earlier.get((row.claim, row.variant, " ".join(row.ids), row.reached))
        compared += verdict_before is not None
        if verdict_before is None or row.verdict in RENAMED.get(verdict_before, {verdict_before}):
            continue
        if verdict_before.startswith("not testable") and not row.verdict.is_judged:
            untestable_still += 1
            continue
        cell = f"{name_of(row.algorithm)}, {name_of(row.dataset)} {row.setting}, {row.scale}"
        turned.setdefault((row.name, verdict_before, row.verdict), []).append(cell)
    head = ["Claim", "Then", "Now", "Rows", "Which"]
    lines = [
        table_row([*key, format_value(len(cells)), f"<small>{'; '.join(cells)}</small>"])
        for key, cells in turned.items()
    ]
    summary = f"{sum(map(len, turned.values()))} of {compared} verdicts changed."
    if untestable_still:
        summary += f" {untestable_still} more are not testable as before, for another reason."
    return folded_table(summary, head, lines)


def runs_page(recorded: list[Record]) -> str:
    """A section per cell with its runs to download; a link to any run's id leads to its section."""
    timings = Timings(recorded)
    lines = []
    for cell in group_into_cells(recorded):
        timed = [timings.run_time(run) for run in cell]
        minutes = sum(run.minutes for run in timed) / len(timed)
        devices = " and ".join(sorted({run.kind for run in timed}))
        downloads = ", ".join(
            f"{{download}}`{run.settings.id} <../results/{run.path.name}/measures.csv.gz>`"
            for run in cell
        )
        length = f"{len(cell)} runs, each {format_minutes(minutes)} of one {devices}"
        if not all(run.finished for run in cell):
            length += f", stopped at {format_iterations(cell)} iterations"
        lines += [f"({run.settings.id})=" for run in cell]
        lines += [
            f"### {describe_cell(cell[0].settings)}",
            "",
            f"{length}. {describe_origin(cell)} Measures: {downloads}.",
            "",
        ]
    return "\n".join(lines)


def settings_table(columns: dict[str, Settings], only_changing: bool) -> str:
    """Settings side by side: one row per setting, with its meaning.

    Args:
        columns: settings by the head of their column.
        only_changing: leave out settings that are the same in all columns, and those that a
            column's head names.
    """
    rows = []
    for name, field in Settings.__dataclass_fields__.items():
        values = [getattr(settings, name) for settings in columns.values()]
        is_changing = name not in ("dataset", "ways", "shots") and len(set(values)) > 1
        if is_changing or not only_changing:
            rows.append([f"`{name}`", *map(format_value, values), field.metadata["help"]])
    return markdown_table(["Setting", *columns, "Meaning"], rows)


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


def accuracy_as_published(cell: list[Record]) -> str:
    """The accuracy of a cell's runs under the meta-test of Finn et al., where it was measured."""
    ends = [
        run.curve("final_accuracy_finn").iloc[-1]
        for run in cell
        if "final_accuracy_finn" in set(run.measures.measure)
    ]
    if not ends:
        return "–"
    mean = 100 * sum(end["mean"] for end in ends) / len(ends)
    error = 196 * max(end["sem"] for end in ends)
    return f"{mean:.1f} ± {error:.1f} %" + (
        f", {len(ends)} of {len(cell)} runs" if len(ends) < len(cell) else ""
    )


def accuracy_table(recorded: list[Record]) -> str:
    """Accuracy on further meta-test tasks at the paper's scale, beside the published figures."""
    lines = []
    for cell in group_into_cells(run for run in recorded if scale_of(run.settings) == "paper"):
        settings = cell[0].settings
        task = settings.dataset, settings.ways, settings.shots
        is_plain = settings.algorithm != "finetune" and settings.regulariser == "none"
        if not is_plain or ("maml", *task) not in PUBLISHED:
            continue
        published = PUBLISHED.get((settings.algorithm, *task))
        ends = [run.curve("final_accuracy").iloc[-1] for run in cell]
        percents = [100 * end["mean"] for end in ends]
        mean = f"{sum(percents) / len(percents):.1f} %"
        if len(cell) > 1:
            mean += f" ({min(percents):.1f} to {max(percents):.1f})"
        error = 1.96 * max(100 * end["sem"] for end in ends)
        lines.append(
            [
                f"{name_of(settings.dataset)}, {settings.setting}",
                name_of(settings.algorithm),
                format_iterations(cell),
                mean,
                f"± {error:.1f}",
                format_value(len(cell)),
                format_value(int(ends[0].n)),
                accuracy_as_published(cell),
                f"{published[0]:g} ± {published[1]:g} %" if published else "–",
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
        "Tested as they do",
        "Finn et al., 60,000",
    ]
    return markdown_table(head, lines)


def runs_by_scale(recorded: list[Record]) -> str:
    """How many runs there are of each scale, and how many of them were stopped early."""
    phrases = []
    for scale, n in Counter(scale_of(run.settings) for run in recorded).most_common():
        stopped = sum(not run.finished for run in recorded if scale_of(run.settings) == scale)
        phrase = f"{n} runs at `{scale}` scale"
        phrases.append(f"{phrase}, {stopped} of them stopped early" if stopped else phrase)
    return "; ".join(phrases)


def judged_at_paper_scale(recorded: list[Record], rows: list[Row]) -> list[Record]:
    """The runs at the paper's scale behind any verdict."""
    ids = {run_id for row in rows if row.verdict.is_judged for run_id in row.ids}
    return [run for run in recorded if scale_of(run.settings) == "paper" and run.settings.id in ids]


def paper_reach(recorded: list[Record], rows: list[Row]) -> str:
    """How far the runs behind verdicts at the paper's scale have got, in words."""
    judged = judged_at_paper_scale(recorded, rows)
    if not judged:
        return "of which none has a verdict yet"
    return f"trained for {format_iterations(judged)} of {preset('paper').iterations:,} iterations"


def paper_missing(recorded: list[Record], rows: list[Row]) -> str:
    """The paper's experiments that have no verdict at its scale, in words."""
    judged = {run.settings.unseeded for run in judged_at_paper_scale(recorded, rows)}
    missing: dict[str, list[str]] = {}
    for run in definitions.paper_grid():
        settings = run.settings
        if settings.seed != 0 or settings.unseeded in judged:
            continue
        method = name_of(settings.algorithm)
        if settings.regulariser != "none":
            method = "the regulariser"
        elif settings.inner_loss == "sum":
            method += " with the sum as inner loss"
        methods = missing.setdefault(f"{name_of(settings.dataset)} {settings.setting}", [])
        if method not in methods:
            methods.append(method)
    phrases = [f"{setting} ({', '.join(methods)})" for setting, methods in missing.items()]
    return "; ".join(phrases) or "nothing"


def cost_table(recorded: list[Record]) -> str:
    """The cost of the paper's runs by device: one run of each main setting, and the whole grid."""
    timings = Timings(recorded)
    planned = [run.settings for run in definitions.paper_grid()]
    by_bandwidth = sorted(hours.BANDWIDTH, key=lambda gpu: -hours.BANDWIDTH[gpu])
    further = [gpu for gpu in timings.gpus if gpu not in hours.BANDWIDTH]
    rows = []
    for kind in (*by_bandwidth, *further, CORE):
        estimates = [timings.estimate(settings, kind) for settings in MAIN_SETTINGS.values()]
        left = timings.time_left(planned, [], kind)
        rows.append(
            [
                f"{kind}{small_print(describe_basis(left.bases, kind))}",
                format_together(left),
                *map(format_estimate, estimates),
                *format_whole_grid(left),
            ]
        )
    head = [
        "Device",
        "Runs at a time",
        *MAIN_SETTINGS,
        f"All {len(planned)} runs",
        "Hours of the device",
    ]
    return markdown_table(head, rows)


def describe_basis(bases: frozenset[hours.Basis], kind: str) -> str:
    """The basis of a row of `cost_table`."""
    if "bandwidth" in bases:
        return f"an estimate, by {hours.BANDWIDTH[kind]:g} TB/s"
    return "timed" if "like runs" in bases else ""


def format_together(left: TimeLeft) -> str:
    """How many runs share the device."""
    if left.kind == CORE:
        return "1"
    return f"{left.together:.0f}" if left.minutes else "unknown"


def format_whole_grid(left: TimeLeft) -> tuple[str, str]:
    """The grid's time, and its hours of the device, marked where they are rough or incomplete."""
    time = format_minutes(left.minutes)
    device_hours = f"{left.minutes / 60:,.0f}"
    if left.unknown == left.runs:
        return "unknown", "unknown"
    if left.unknown:
        note = small_print(f"{left.unknown} of the {left.runs} runs left were never timed")
        return f"over {time}{note}", f"over {device_hours}"
    if left.bases != {"like runs"}:
        return f"≈ {time}", f"≈ {device_hours}"
    return time, device_hours


def format_estimate(estimate: Estimate) -> str:
    """A time, marked where no run of these very settings was timed on the device."""
    is_rough = estimate.known and estimate.basis != "like runs"
    return f"{'≈ ' if is_rough else ''}{format_minutes(estimate.minutes)}"


def gpu_table(recorded: list[Record]) -> str:
    """Times of the runs at the paper's scale on GPUs, and times of whole runs at that pace."""
    timings = Timings(recorded)
    rows = []
    for cell in group_into_cells(run for run in recorded if scale_of(run.settings) == "paper"):
        devices = {timings.run_time(run).kind for run in cell}
        if not devices <= set(timings.gpus):
            continue
        timed = pd.DataFrame(vars(timings.run_time(run)) for run in cell).mean(numeric_only=True)
        by_the_clock = sum(run.provenance["wall_seconds"] for run in cell) / len(cell) / 60
        rows.append(
            [
                describe_cell(cell[0].settings),
                ", ".join(sorted(devices)),
                format_value(len(cell)),
                format_iterations(cell),
                format_minutes(by_the_clock),
                _sharing(cell),
                f"{timed.together:.1f}",
                format_minutes(timed.minutes),
                format_minutes(timed.whole),
            ]
        )
    head = [
        "Runs",
        "GPU",
        "n",
        "Iterations",
        "From start to end",
        "Trained",
        "Runs at a time",
        "Share of the GPU",
        "Share for 60,000 iterations",
    ]
    return markdown_table(head, rows)


def _sharing(cell: list[Record]) -> str:
    """How the runs of a cell shared a GPU."""
    # A number, or the numbers in their order if it changed: "1, 2".
    sizes = [str(run.provenance.get("together", 1)).split(", ") for run in cell]
    return "as one batch" if all("1" not in batch for batch in sizes) else "a process each"


def whole_run_values(recorded: list[Record]) -> dict[str, str]:
    """The time of MAML on Omniglot 5-way 1-shot in a batch on a GPU, and of others as a multiple.

    Others report 12 to 16 hours for 60,000 iterations, one task at a time through `higher`.
    """
    settings = preset("paper", "omniglot", 5, algorithm="maml")
    timings = Timings(recorded)
    estimate = timings.estimate(settings, timings.gpus[0])
    low, high = (hours_of_others * 60 / estimate.minutes for hours_of_others in (12, 16))
    return {
        "whole_run": format_minutes(estimate.minutes),
        "whole_run_together": f"{estimate.together:.0f}",
        "whole_run_gpu": timings.gpus[0].removeprefix("NVIDIA "),
        "whole_run_times": f"{low:.0f} to {high:.0f}",
    }


def verdict_values(recorded: list[Record], rows: list[Row]) -> dict[str, str]:
    """Substitutions from the ledger."""
    by_claim = {claim: [row for row in rows if row.claim == claim] for claim in CLAIMS}
    values: dict[str, str] = {}
    for claim, of_claim in by_claim.items():
        values[f"verdict_{claim.lower()}"] = headline(of_claim)
        values[f"ledger_{claim.lower()}"] = ledger_table(of_claim)
        values[f"picture_{claim.lower()}"] = claim_picture(claim, recorded, rows)
    for name, (claim, form) in CONTROLS.items():
        values[f"verdict_{name}"] = headline(by_claim[claim], form)
    reproduced = [row for row in rows if row.verdict == Verdict.REPRODUCED]
    too_few = sum(row.verdict == Verdict.TOO_FEW for row in rows)
    planned = {run.settings.id for run in definitions.quick_grid()}
    finished = {run.settings.id for run in recorded if run.finished}
    return values | {
        "overview": ledger.overview(rows, CLAIM_PAGES, "ledger.html"),
        "verdict_words": verdict_words(),
        "ledger_counts": count_verdicts(shown_rows(rows)),
        "rules_changed": rules_changed(recorded, pd.read_csv(BEFORE, keep_default_na=False)),
        "holm": HOLM_MEANING,
        "holm_seen": format_value(sum(row.p_holm <= 0.05 for row in reproduced)),
        "reproduced": format_value(len(reproduced)),
        "ledger_missing": (
            f"{too_few} rows with fewer than three runs have no verdict yet and are not listed."
            if too_few
            else "Every row has at least three runs."
        ),
        "quick_planned": format_value(len(planned)),
        "quick_unrecorded": format_value(len(planned) - len(planned & finished) or "none"),
        "paper_missing": paper_missing(recorded, rows),
        "paper_reach": paper_reach(recorded, rows),
    }


def predictions_table(rows: list[predictions.PredictionRow]) -> str:
    """What came of each prediction about an intervention, as a table in a fold."""
    table = predictions.prediction_table(rows)
    if table.empty:
        return "No run of an intervention is recorded yet."
    head = [name[0].upper() + name[1:] for name in table]
    lines = [table_row(map(escape, line)) for line in table.to_numpy().tolist()]
    outcomes = Counter(table.outcome).most_common()
    summary = f"{len(table)} predictions: {', '.join(f'{n} {name}' for name, n in outcomes)}"
    return folded_table(summary, head, lines)


def rule_values() -> dict[str, str]:
    """Substitutions from the constants of the rules."""
    return {
        "across": format_value(rules.ACROSS),
        "min_epochs": format_value(rules.MIN_EPOCHS),
        "peak_by": format_value(rules.PEAK_BY),
        "strong": format_value(rules.STRONG),
        "power": f"{100 * rules.POWER:.0f} %",
        "orthogonal": format_value(rules.ORTHOGONAL),
        "margin": format_value(predictions.MARGIN),
    }


def settings_values() -> dict[str, str]:
    """Substitutions from the settings."""
    scales = {scale: preset(scale, "omniglot") for scale in SCALES}
    paper = {
        f"{name_of(dataset)}, {ways}-way {shots}-shot": preset("paper", dataset, ways, shots)
        for dataset, ways, shots in PAPER_SETTINGS
    }
    return {
        "scales": settings_table(scales, True),
        "paper_settings": settings_table(paper, True),
        "all_settings": settings_table({"default": Settings()}, False),
        "final_tasks": format_value(preset("paper").final_tasks),
    }


def run_values(recorded: list[Record]) -> dict[str, str]:
    """Substitutions from the records, and from the grids with the time that they take."""
    quick = [run.settings for run in definitions.quick_grid()]
    quick_minutes = Timings(recorded).time_left(quick, [], CORE).minutes
    rates = [f"{gpu} {rate:g} TB/s" for gpu, rate in hours.BANDWIDTH.items()]
    return {
        "gpu_hours": gpu_table(recorded),
        "paper_cost": cost_table(recorded),
        "bandwidths": ", ".join(rates),
        "limit_unknown": format_minutes(hours.LIMIT_IF_UNKNOWN),
        "runs_total": format_value(len(recorded)),
        "runs_by_scale": runs_by_scale(recorded),
        "accuracy": accuracy_table(recorded),
        "paper_runs": format_value(len(definitions.paper_grid())),
        "quick_runs": format_value(len(quick)),
        "quick_hours": format_minutes(quick_minutes),
    }


def substitutions() -> dict[str, str]:
    """All names that pages may use, with their Markdown."""
    recorded = committed_runs()
    return {
        **verdict_values(recorded, judged_rows()),
        **rule_values(),
        **settings_values(),
        **run_values(recorded),
        **whole_run_values(recorded),
        "predictions": predictions_table(judged_predictions()),
        **benchmark_values(),
    }


def write_runs_page(_: Any, docname: str, source: list[str]) -> None:
    """Sphinx's event `source-read`: write the page of runs from the records."""
    if docname == RUNS_PAGE:
        source[0] = source[0].replace(RUNS_MARK, runs_page(committed_runs()))


def add_filter(app: Any, pagename: str, *_: Any) -> None:
    """Sphinx's event `html-page-context`: give the ledger the script of its filter."""
    if pagename == LEDGER_PAGE:
        app.add_js_file(LEDGER_SCRIPT, loading_method="defer")


def add_substitutions(_: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: give pages the substitutions."""
    config.myst_substitutions.update(substitutions())


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", write_runs_page)
    app.connect("config-inited", add_substitutions)
    app.connect("html-page-context", add_filter)
    return {"parallel_read_safe": True}
