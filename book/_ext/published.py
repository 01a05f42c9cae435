"""Our accuracies beside published ones: those of Finn et al., and the paper's for C8."""

from collections.abc import Mapping, Sequence

import numpy as np
from formats import PLACES, describe_changes, format_iterations, format_value, markdown_table

from metanb.claims.cells import final_accuracy, group_into_cells, late_values, pair_by_seed
from metanb.claims.paper import PAPER, PAPER_GAIN, PUBLISHED
from metanb.claims.verdicts import Row
from metanb.labels import name_of
from metanb.runs.records import Record, keep_furthest
from metanb.settings import scale_of

GAIN_SETTING = ("omniglot", 20, 1)  # data, ways and shots of the paper's figure for C8


def accuracy_as_published(cell: list[Record]) -> str:
    """The accuracy of a cell's runs under the meta-test of Finn et al., where it was measured."""
    ends = [
        run.curve("final_accuracy_finn").iloc[-1] for run in cell if run.has("final_accuracy_finn")
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
                f"{name_of(settings.dataset)}, {settings.setting}{describe_changes(settings)}",
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


def gain_table(recorded: Sequence[Record], rows: Sequence[Row]) -> str:
    """The paper's figures for the regulariser beside ours, in its own setting."""
    by_id = {run.settings.id: run for run in keep_furthest(recorded)}
    dataset, ways, shots = GAIN_SETTING
    figures = PAPER["C8", *GAIN_SETTING].split(" to ")
    lines = [
        [
            "The paper: MAML, by our source",
            "whole",
            "not given",
            *figures,
            f"{PAPER_GAIN:+.2f} points",
            "–",
        ]
    ]
    for row in rows:
        is_here = (row.dataset, row.setting) == (dataset, f"{ways}-way {shots}-shot")
        if row.claim != "C8" or not is_here or not row.as_in_paper or not row.runs:
            continue
        with_it, without = (mean_accuracy(runs) for runs in pairs_of_gain(row, by_id))
        lines.append(
            [
                f"{name_of(row.algorithm)}, {PLACES[row.scale]}",
                row.reached.partition(" ")[0] if row.reached else "whole",
                row.variant.partition("γ = ")[2],
                without,
                with_it,
                row.change,
                format_value(row.runs),
            ]
        )
    head = ["", "Iterations", "γ", "Without", "With the regulariser", "Difference", "Runs"]
    return markdown_table(head, lines)


def pairs_of_gain(
    row: Row, by_id: Mapping[str, Record]
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """The runs that a row of C8 compares, seed by seed: with the regulariser, and without."""
    half = len(row.ids) // 2
    cell, base = ([by_id[i] for i in ids] for ids in (row.ids[:half], row.ids[half:]))
    with_it, without = zip(*pair_by_seed(cell, base), strict=True)
    return with_it, without


def mean_accuracy(runs: Sequence[Record]) -> str:
    """The mean accuracy of runs on the further tasks or, without these, late on the usual ones."""
    ends = [final_accuracy(run) for run in runs]
    measured = [end[0] for end in ends if end]
    values = measured if len(measured) == len(runs) else late_values(runs, "query_accuracy")
    return f"{100 * np.mean(values):.2f} %"
