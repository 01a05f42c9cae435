"""The ledger: its tables and pictures by claim, its counts, and what a change of rules turned."""

from collections import Counter
from dataclasses import replace
from html import escape

import pandas as pd
from committed import PAPER_DATA, ROOT
from docutils import nodes
from formats import folded_table, format_value, table_row
from reach import beginning, paper_missing, paper_reach, quick_without

from metanb.claims import predictions, rules
from metanb.claims.cells import cut_to_common_epoch, cut_to_common_length
from metanb.claims.paper import CLAIMS, PAPER_GAIN
from metanb.claims.verdicts import HOLM_MEANING, Row, Verdict
from metanb.figures import forest, ledger
from metanb.grids import definitions
from metanb.labels import name_of
from metanb.runs.records import Record, keep_furthest

# verdicts of the earlier rules on the records of today
BEFORE = ROOT / "book" / "verdicts-before.csv"
BEFORE_SECOND = ROOT / "book" / "verdicts-before-second-change.csv"
# words of that table that are called otherwise today, and what they are called
RENAMED = {
    "not reproduced: the opposite": {Verdict.CONTRARY, Verdict.OPPOSITE_TREND},
    "not yet run: fewer than 3 runs": {Verdict.TOO_FEW},
    "partly": {Verdict.TREND_ONLY, Verdict.WITHIN_RUNS, Verdict.NOT_SET_APART},
}
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
        "do that both change with it. Beyond the trend that all runs share, their changes from "
        "epoch to epoch are not seen to go together, which with few runs is weak evidence."
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
        "The interval contains the value that stands for no effect: a factor of 1, a correlation "
        "of 0, or 0 points. An effect may exist all the same. For C7 the interval contains "
        f"{rules.ORTHOGONAL:g}, the coherence below which we call directions orthogonal. For C1's "
        "first peak it may also lie wholly below 1: then no peak is seen."
    ),
    "reversed": (
        "The whole interval lies on the other side. For C5 and C6, that of the changes from epoch "
        "to epoch does so, too."
    ),
    "opposite trend": (
        "C5 and C6: accuracy and coherence drift apart over meta-training. Beyond the trend that "
        "all runs share, their changes from epoch to epoch are not seen to go apart."
    ),
    "cannot tell": (
        "The runs are too few to decide. For C8 the interval contains both no gain and the "
        f"paper's gain of {PAPER_GAIN:.2f} points. For C5 and C6 the runs cannot be compared "
        "across."
    ),
    "not testable": (
        "The runs do not show the case that the claim is about: accuracy is not seen to fall (C4), "
        "the baseline does not work (C7), epochs are too few or too long (C1's first peak, C4), or "
        "a measure is 0, so that no ratio can be taken."
    ),
}


def headline(rows: list[Row], form: str = "") -> str:
    """One claim's verdicts in a phrase, in the paper's form or in another."""
    selected = [row for row in rows if (row.variant == form if form else row.as_in_paper)]
    judged = [row for row in selected if row.verdict.is_judged]
    counts = Counter(row.verdict for row in judged)
    phrases = [f"**{verdict}** in {n} of {len(judged)}" for verdict, n in counts.most_common()]
    untestable = sum(row.verdict.is_untestable for row in selected)
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
    untestable = sum(row.verdict.is_untestable for row in rows)
    return f"{text}; {untestable} not testable" if untestable else text


def shown_rows(rows: list[Row]) -> list[Row]:
    """The rows that have a verdict, and the paper's own forms that cannot be tested.

    The paper's own settings stand first.
    """
    return ledger.sort_rows(
        row
        for row in rows
        if row.verdict.is_judged or (row.verdict.is_untestable and row.as_in_paper)
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
    figure = forest.draw_claim(claim, rows, beside)
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
    """Verdicts that a change of the rules turned, on the very runs that were judged before it.

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


def predictions_over_runs_alone(rows: list[predictions.PredictionRow]) -> str:
    """A sentence on the predictions of which runs alone, on these very tasks, would tell more."""
    phrases = []
    for outcome in (predictions.Outcome.REFUTED, predictions.Outcome.PREDICTED):
        told = [
            f"*{row.prediction.intervention}* under {name_of(row.algorithm)} "
            f"({predictions.label_of(row.prediction.measure)} {row.prediction.expected})"
            for row in rows
            if row.outcome == predictions.Outcome.OPEN and row.over_runs_alone == outcome
        ]
        if told:
            phrases.append(f"{len(told)} *{outcome}*: {'; '.join(told)}")
    if not phrases:
        return "Over runs alone no outcome would be another."
    return f"Over runs alone, on these very tasks, these would be {', and '.join(phrases)}."


def verdict_values(recorded: list[Record], rows: list[Row]) -> dict[str, str]:
    """Substitutions from the ledger."""
    by_claim = {claim.name: [row for row in rows if row.claim == claim.name] for claim in CLAIMS}
    on_paper_data = {
        claim: [row for row in of_claim if row.dataset in PAPER_DATA]
        for claim, of_claim in by_claim.items()
    }
    values: dict[str, str] = {}
    for claim, of_claim in by_claim.items():
        values[f"verdict_{claim.lower()}"] = headline(on_paper_data[claim])
        values[f"ledger_{claim.lower()}"] = ledger_table(of_claim)
        values[f"picture_{claim.lower()}"] = claim_picture(claim, recorded, rows)
    for name, (claim, form) in CONTROLS.items():
        values[f"verdict_{name}"] = headline(on_paper_data[claim], form)
    reproduced = [row for row in rows if row.verdict == Verdict.REPRODUCED]
    too_few = sum(row.verdict == Verdict.TOO_FEW for row in rows)
    planned = {run.settings.id for run in definitions.quick_grid()}
    finished = {run.settings.id for run in recorded if run.finished}
    return values | {
        "overview": ledger.overview(rows, CLAIM_PAGES, "ledger.html"),
        "verdict_words": verdict_words(),
        "ledger_counts": count_verdicts(shown_rows(rows)),
        "rules_changed": rules_changed(recorded, pd.read_csv(BEFORE, keep_default_na=False)),
        "rules_changed_again": rules_changed(
            recorded, pd.read_csv(BEFORE_SECOND, keep_default_na=False)
        ),
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
        "beginning": beginning(),
        "quick_without": quick_without(),
        "paper_missing": paper_missing(recorded, rows),
        "paper_reach": paper_reach(recorded, rows),
    }
