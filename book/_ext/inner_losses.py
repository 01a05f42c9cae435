"""Verdicts and accuracy with the sum of Finn et al.'s code as inner loss, beside the mean's."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from claim_results import is_control, verdicts_in_words
from formats import format_value, least_to_greatest, markdown_table
from reach import paper_runs

from metanb.claims.cells import curve, late_values, pair_by_seed
from metanb.claims.paper import CLAIMS
from metanb.claims.run_stats import trend
from metanb.claims.verdicts import Row, Verdict
from metanb.labels import name_of
from metanb.runs.records import Record
from metanb.settings import Settings


def pair_inner_losses(recorded: Iterable[Record], rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Verdicts with the mean as inner loss, each beside that of like runs with the sum.

    The rows are those that have enough runs with both, and are judged with one of them at least.
    """
    settings = {run.settings.id: run.settings for run in recorded}
    by_loss: dict[str, dict[tuple[str, Settings], Row]] = {"mean": {}, "sum": {}}
    for row in rows:
        own = settings[row.ids[0]]
        by_loss[own.inner_loss][row.name, replace(own.unseeded, inner_loss="mean")] = row
    means, sums = by_loss.values()
    pairs = [(row, sums[key]) for key, row in means.items() if key in sums]
    return [
        pair
        for pair in pairs
        if any(row.verdict.is_judged for row in pair)
        and not any(row.verdict == Verdict.TOO_FEW for row in pair)
    ]


def inner_loss_table(pairs: Sequence[tuple[Row, Row]]) -> str:
    """The verdicts with both inner losses, in the paper's form of each claim and its control."""
    lines = []
    for claim in CLAIMS:
        of_claim = [pair for pair in pairs if pair[0].claim == claim.name]
        forms = {
            claim.name: [pair for pair in of_claim if pair[0].as_in_paper],
            f"{claim.name}, control": [pair for pair in of_claim if is_control(pair[0])],
        }
        for name, of_form in forms.items():
            if of_form:
                same = sum(mean.verdict == summed.verdict for mean, summed in of_form)
                words = [verdicts_in_words(side) for side in zip(*of_form, strict=True)]
                lines.append([name, *words, f"{same} of {len(of_form)}"])
    return markdown_table(["Claim", "With the mean", "With the sum", "Same verdict"], lines)


def count_changes(pairs: Iterable[tuple[Row, Row]]) -> str:
    """How many verdicts another inner loss changes, and how many of them by testability alone."""
    shown = [pair for pair in pairs if pair[0].as_in_paper or is_control(pair[0])]
    changed = [pair for pair in shown if pair[0].verdict != pair[1].verdict]
    testable = sum(not all(row.verdict.is_judged for row in pair) for pair in changed)
    return (
        f"{len(changed)} of these {len(shown)} verdicts change, {testable} of them from or to "
        "*not testable*"
    )


def inner_loss_accuracy(recorded: Iterable[Record], pairs: Iterable[tuple[Row, Row]]) -> str:
    """By how many points the sum changes late accuracy, over cells by algorithm, in words."""
    by_id = {run.settings.id: run for run in recorded}
    changes: dict[str, list[float]] = {}
    counts = set()
    for mean, summed in pairs:
        if mean.name == "C1":  # one row per cell
            cell, reference = ([by_id[i] for i in row.ids] for row in (summed, mean))
            paired = pair_by_seed(cell, reference)
            counts.add(len(paired))
            after, before = (
                late_values(runs, "query_accuracy") for runs in zip(*paired, strict=True)
            )
            change = 100 * float(np.mean(after - before))
            changes.setdefault(name_of(mean.algorithm), []).append(change)
    phrases = [
        f"under {name} by {least_to_greatest(values, '{:+.1f}')} points"
        for name, values in changes.items()
    ]
    return f"{' and '.join(phrases)} (means over {least_to_greatest(counts, '{}')} seeds per cell)"


def inner_losses_at_length(recorded: Iterable[Record]) -> str:
    """Runs at the paper's settings with the sum, each beside its seed's run with the mean."""
    runs = {run.settings: run for run in paper_runs(recorded)}
    lines = []
    for settings, summed in runs.items():
        mean = runs.get(replace(settings, inner_loss="mean"))
        if settings.inner_loss != "sum" or mean is None:
            continue
        reached = min(mean.epochs, summed.epochs)
        for run in (mean.upto(reached), summed.upto(reached)):
            flatness, scale_free = (
                f"× {np.exp(trend(curve(run, measure))):.2f}"
                for measure in ("hessian_norm", "adaptive_sharpness")
            )
            lines.append(
                [
                    f"{name_of(settings.algorithm)}, seed {settings.seed}",
                    run.settings.inner_loss,
                    format_value(run.iterations),
                    f"{100 * late_values([run], 'query_accuracy')[0]:.1f} %",
                    flatness,
                    scale_free,
                ]
            )
    if not lines:
        return "No run at the paper's settings has the sum yet."
    head = [
        "Run at the paper's settings",
        "Inner loss",
        "Iterations",
        "Accuracy, last quarter",
        "Hessian norm, last over first quarter",
        "Scale-free measure, last over first quarter",
    ]
    lead = (
        "At the paper's settings the rows come in pairs, the mean above the sum at the same seed, "
        "as far as both went:"
    )
    return f"{lead}\n\n{markdown_table(head, lines)}"
