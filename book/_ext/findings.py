"""Sphinx extension: what the pages "Discussion and limits" and "How do I ...?" compute.

Verdicts and effects come from the ledger, prices from the times of recorded runs. A page writes
`{{ name }}` for an entry of `substitutions`. Every conclusion in words is chosen here, by a
condition on the records, so that other records give other words.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from book_numbers import (
    MAIN_SETTINGS,
    ROOT,
    committed_runs,
    format_estimate,
    format_iterations,
    format_value,
    format_whole_grid,
    judged_predictions,
    judged_rows,
    markdown_table,
    small_print,
)

from metanb.claims import predictions, rules
from metanb.claims.cells import (
    curve,
    cut_to_common_length,
    final_accuracy,
    group_into_cells,
    late_values,
    pair_by_seed,
)
from metanb.claims.companions import SUBJECTS, MeasureRole, Role, find_roles
from metanb.claims.paper import CLAIMS, PAPER, PAPER_GAIN
from metanb.claims.predictions import Expectation, Outcome, PredictionRow
from metanb.claims.run_stats import correlation_power, fitted_change, interval
from metanb.claims.verdicts import MIN_RUNS, Row, Verdict
from metanb.grids import definitions
from metanb.grids.definitions import Planned, base_runs
from metanb.grids.hours import CORE, TimeLeft, Timings, format_minutes, kind_of
from metanb.labels import ALGORITHMS, name_of
from metanb.runs.records import Record, keep_furthest
from metanb.settings import Settings, preset, scale_of

PAPER_DATA = ("omniglot", "mini-imagenet")
SCALES = {"paper": "at the paper's settings", "quick": "in the smaller version"}
GPUS = {"NVIDIA H200": "H200", "NVIDIA A100-SXM4-80GB": "A100"}  # the columns of prices
# The data, ways and shots with most runs and with all interventions: chapters begin with them.
MAIN = ("omniglot", 5, 1)
GAIN_SETTING = ("omniglot", 20, 1)  # data, ways and shots of the paper's figure for C8
# Where accuracy and coherence are seen to rise together over epochs.
TOGETHER = (Verdict.TREND_ONLY, Verdict.WITHIN_RUNS, Verdict.POWERLESS, Verdict.REPRODUCED)


def verdicts_in_words(rows: Iterable[Row]) -> str:
    """How many cells got which verdict, in Markdown, the most frequent verdict first.

    Rows of too few runs are left out, and so is what follows a verdict's colon. The rows of C7 are
    comparisons: each cell of finetuning meets two algorithms.
    """
    tested = [row for row in rows if row.verdict != Verdict.TOO_FEW]
    if not tested:
        return "not yet run"
    noun = "comparison" if tested[0].claim == "C7" else "cell"
    counts = Counter(str(row.verdict).partition(":")[0] for row in tested).most_common()
    if len(counts) == 1:
        number = f"the one {noun}" if len(tested) == 1 else f"all {len(tested)} {noun}s"
        return f"**{counts[0][0]}** in {number}"
    listed = ", ".join(f"**{word}** in {n}" for word, n in counts)
    return f"{listed}, of {len(tested)} {noun}s"


def at_both_scales(rows: Sequence[Row]) -> str:
    """The verdicts at the paper's settings, and in the smaller version."""
    phrases = [
        f"{place}: {verdicts_in_words(row for row in rows if row.scale == scale)}"
        for scale, place in SCALES.items()
        if any(row.scale == scale for row in rows)
    ]
    return "; ".join(phrases)


def is_control(row: Row) -> bool:
    """Whether a row asks what else could explain a claim that holds in the paper's form."""
    form = row.variant.split(",")[0]
    if row.claim == "C7":
        return form != "fresh head"
    return form in (rules.SCALE_FREE, rules.RELATIVE, "random")


CONTROL_PHRASES = {
    "C1": "By a measure that rescaling the weights cannot change",
    "C3": "Divided by the norm of the weights",
    "C4": "By a measure that rescaling the weights cannot change",
    "C7": "With other heads for the finetuned network",
    "C8": "With a random direction in place of the common one",
}


def claim_results(rows: Sequence[Row], outcomes: Sequence[PredictionRow]) -> str:
    """An item per claim: its verdicts at both scales, then the control that may change them.

    Args:
        rows: the ledger.
        outcomes: what came of the predictions, the control of C5 and C6.
    """
    items = []
    sentences: list[str] = []  # what interventions do, said once
    for claim in CLAIMS:
        of_claim = [row for row in rows if row.claim == claim.name]
        verdicts = at_both_scales([row for row in of_claim if row.as_in_paper])
        item = f"- **{claim.name}**, {claim.text}. {capitalise(verdicts or 'not yet run')}."
        controls = [row for row in of_claim if is_control(row)]
        if controls:
            item += f" {CONTROL_PHRASES[claim.name]}, {at_both_scales(controls)}."
        if claim.name in ("C5", "C6"):
            text = without_coherence(outcomes, claim.measure)
            item += (
                " The same interventions take this coherence away." if text in sentences else text
            )
            sentences += [text] if text else []
        items.append(item)
    return "\n".join(items)


def capitalise(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def accuracy_without(outcomes: Iterable[PredictionRow], measure: str) -> list[PredictionRow]:
    """What accuracy does under the interventions that are seen to take most of a coherence away.

    Args:
        outcomes: what came of the predictions.
        measure: the coherence.
    """
    outcomes = list(outcomes)
    taken = {
        row.comparison
        for row in outcomes
        if row.prediction.measure == measure
        and row.prediction.expected == Expectation.COLLAPSES
        and row.outcome == Outcome.PREDICTED
    }
    return [
        row
        for row in outcomes
        if row.comparison in taken
        and row.prediction.measure == "final_accuracy"
        and row.prediction.expected == Expectation.STAYS
    ]


def without_coherence(outcomes: Iterable[PredictionRow], measure: str) -> str:
    """A sentence on accuracy where a coherence is taken away; empty where it was taken nowhere."""
    rows = accuracy_without(outcomes, measure)
    if not rows:
        return ""
    names = name_interventions(rows)
    effects = "; ".join(f"{row.change} by {names[row]}" for row in rows)
    algorithms = " and ".join(sorted({name_of(row.algorithm) for row in rows}))
    many = len(rows) > 1
    return (
        f" The intervention{'s' if many else ''} that take{'' if many else 's'} most of this "
        f"coherence away from {algorithms} change{'' if many else 's'} accuracy: {effects}."
    )


def share_words(rows: Sequence[Row]) -> str:
    """Of how many judged rows the claim is reproduced: "4 of 5"."""
    judged = [row for row in rows if row.verdict.is_judged]
    return f"{sum(row.verdict == Verdict.REPRODUCED for row in judged)} of {len(judged)}"


def reproduced_share(rows: Sequence[Row]) -> float:
    """The share of judged rows that are reproduced; NaN without any."""
    judged = [row.verdict == Verdict.REPRODUCED for row in rows if row.verdict.is_judged]
    return float(np.mean(judged)) if judged else np.nan


def belief_in_flatness(rows: Sequence[Row]) -> str:
    """C1: whether solutions become flatter, and whether growing weights can explain it."""
    phrases = []
    for scale, place in SCALES.items():
        of_scale = [row for row in rows if row.claim == "C1" and row.scale == scale]
        plain = [row for row in of_scale if row.as_in_paper]
        scale_free = [row for row in of_scale if row.variant == rules.SCALE_FREE]
        if not any(row.verdict.is_judged for row in plain):
            continue
        phrase = (
            f"{place} the Hessian norm falls in {share_words(plain)} cells, and the scale-free "
            f"measure in {share_words(scale_free)}"
        )
        explained = reproduced_share(scale_free) < reproduced_share(plain) / 2
        phrases.append(phrase + (", so growing weights may be why" if explained else ""))
    if not phrases:
        return ""
    return f"**Are adapted solutions flatter?** {capitalise('; '.join(phrases))}."


def belief_in_worse(rows: Sequence[Row]) -> str:
    """C4: where accuracy falls at all, and what flatness does there."""
    c4 = [row for row in rows if row.claim == "C4"]
    plain = [row for row in c4 if row.as_in_paper]
    judged = [row for row in plain if row.verdict.is_judged]
    cells = sum(row.verdict != Verdict.TOO_FEW for row in plain)
    text = "**Does flatness go with generalisation?** "
    if not judged:
        return text + f"Accuracy falls in none of {cells} cells, so nothing here tests it."
    at_paper = sum(row.scale == "paper" for row in judged)
    text += f"Accuracy falls in {len(judged)} of {cells} cells, {at_paper or 'none'} of them at "
    text += f"the paper's settings. There the Hessian norm falls on in {share_words(judged)}"
    scale_free = [row for row in c4 if row.variant == rules.SCALE_FREE and row.verdict.is_judged]
    text += f", the scale-free measure in {share_words(scale_free)}"
    if reproduced_share(scale_free) == 1:
        text += ": a flatter solution is not a better one"
    return text + "."


def belief_in_coherence(rows: Sequence[Row], outcomes: Sequence[PredictionRow]) -> str:
    """C5 and C6: a shared trend or more, what happens where accuracy falls, and interventions."""
    judged = [row for row in rows if row.claim in ("C5", "C6") and row.verdict.is_judged]
    if not judged:
        return ""
    together = sum(row.verdict in TOGETHER for row in judged)
    whole = sum(row.verdict == Verdict.REPRODUCED for row in judged)
    text = (
        f"**Does coherence go with accuracy?** The two rise together over epochs in {together} of "
        f"{len(judged)} tests, and in {whole or 'none'} of these also from epoch to epoch and from "
        "run to run."
    )
    falling = {row.ids for row in rows if row.claim == "C4" and row.verdict.is_judged}
    there = [row for row in judged if row.ids in falling]
    if there:
        verdicts = [
            f"{claim} is {verdicts_in_words(of_claim)}".removesuffix(" in the one cell")
            for claim in ("C5", "C6")
            if (of_claim := [row for row in there if row.claim == claim])
        ]
        text += (
            f" Where accuracy falls late in training, {' and '.join(verdicts)}, over all epochs; "
            "[chapter 5](../notebooks/5-overfitting.ipynb) has the halves."
        )
    text += accuracy_without_coherence(outcomes)
    if not whole:
        text += " Nothing here shows that coherence is more than a companion of training."
    return text


def accuracy_without_coherence(outcomes: Iterable[PredictionRow]) -> str:
    """Sentences on which interventions take trajectory coherence away and leave accuracy."""
    rows = accuracy_without(outcomes, "trajectory_coherence")
    if not rows:
        return ""
    names = name_interventions(rows)
    stays = [names[row] for row in rows if row.outcome == Outcome.PREDICTED]
    changes = [names[row] for row in rows if row.outcome != Outcome.PREDICTED]
    margin = f"within ± {predictions.MARGIN:g} points"
    text = " Without most of the coherence, "
    if stays:
        text += f"accuracy stays {margin} under {enumerate_words(stays)}"
    if changes:
        text += ", and not " if stays else f"accuracy does not stay {margin} "
        text += f"under {enumerate_words(changes)}"
        text += " ([why that does not decide](../notebooks/8-causes.ipynb))" if stays else ""
    return f"{text}."


def name_interventions(rows: Sequence[PredictionRow]) -> dict[PredictionRow, str]:
    """Interventions as a sentence names them, with their settings where these differ."""
    differ = len({(row.dataset, row.setting) for row in rows}) > 1
    return {
        row: f"the {row.prediction.intervention.removesuffix(' at meta-test')}"
        + (f" ({name_of(row.dataset)}, {row.setting})" if differ else "")
        for row in rows
    }


def belief_in_finetuning(rows: Sequence[Row]) -> str:
    """C7: how many comparisons have a baseline that works, and what they say."""
    fresh = [row for row in rows if row.claim == "C7" and row.as_in_paper]
    works = [row for row in fresh if row.verdict.is_judged]
    broken = sum(row.verdict == Verdict.NO_BASELINE for row in fresh)
    if not works and not broken:
        return ""
    text = (
        "**Is finetuning nearly orthogonal?** The finetuned network works in "
        f"{len(works)} of {len(works) + broken} comparisons"
    )
    if not works:
        return text + "."
    apart = sum(row.verdict == Verdict.REPRODUCED for row in works)
    alike = sum(row.verdict == Verdict.NOT_SET_APART for row in works)
    text += f"; in {apart + alike} of these its trajectories are nearly orthogonal"
    if alike:
        text += f", but in {alike} of them meta-training's are not seen to be less so"
    return text + "."


def belief_in_gain(rows: Sequence[Row]) -> str:
    """C8 where the paper gives its figure: our gains beside the paper's."""
    dataset, ways, shots = GAIN_SETTING
    judged = [
        row
        for row in rows
        if row.claim == "C8"
        and row.as_in_paper
        and (row.dataset, row.setting) == (dataset, f"{ways}-way {shots}-shot")
        and row.verdict.is_judged
    ]
    if not judged:
        return ""
    text = f"**Does the regulariser help?** The paper reports a gain of {PAPER_GAIN:.2f} points. "
    phrases = []
    for row in sorted(judged, key=lambda row: list(SCALES).index(row.scale)):
        if row.low > 0:
            conclusion = "which is a gain"
        elif row.high < PAPER_GAIN:
            conclusion = "which is less than the paper's"
        else:
            conclusion = "which includes both no gain and the paper's"
        reached = f", {row.reached}" if row.reached else ""
        phrases.append(
            f"{row.change} under {name_of(row.algorithm)} {SCALES[row.scale]}{reached}, "
            f"{conclusion}"
        )
    return text + f"Our change on the same task: {'; '.join(phrases)}."


def main_roles(recorded: Iterable[Record]) -> list[MeasureRole]:
    """What each measure in SUBJECTS is to accuracy, by the interventions in the main setting."""
    base = {settings.unseeded for settings in base_runs("quick", *MAIN, [0], ["maml", "fomaml"])}
    of_main = [
        run
        for run in recorded
        if (run.settings.dataset, run.settings.ways, run.settings.shots) == MAIN
        and scale_of(run.settings) == "quick"
    ]
    plain = [run for run in of_main if run.settings.unseeded in base]
    return find_roles(of_main, plain, list(SUBJECTS))


def belief_in_causes(roles: Iterable[MeasureRole]) -> str:
    """Which measures move while accuracy stays, and are no main causes of it; by algorithm."""
    ruled_out: dict[str, list[str]] = {}
    for role in roles:
        if role.role in (Role.COMPANION, Role.NEITHER):
            ruled_out.setdefault(role.algorithm, []).append(SUBJECTS[role.measure])
    if not ruled_out:
        return ""
    dataset, ways, shots = MAIN
    phrases = [f"under {name_of(key)} {enumerate_words(names)}" for key, names in ruled_out.items()]
    return (
        f"**What is no main cause of accuracy?** On {name_of(dataset)}, {ways}-way {shots}-shot, "
        "interventions move these more than twofold while accuracy stays within "
        f"± {predictions.MARGIN:g} points: {'; '.join(phrases)}. "
        "[Chapter 8](../notebooks/8-causes.ipynb) has the interventions, and what they leave open."
    )


def pair_inner_losses(recorded: Iterable[Record], rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Verdicts with the mean as inner loss, each beside that of like runs with the sum.

    The rows are those that are judged with one of the two at least.
    """
    settings = {run.settings.id: run.settings for run in recorded}
    by_loss: dict[str, dict[tuple[str, Settings], Row]] = {"mean": {}, "sum": {}}
    for row in rows:
        own = settings[row.ids[0]]
        by_loss[own.inner_loss][row.name, replace(own.unseeded, inner_loss="mean")] = row
    means, sums = by_loss.values()
    pairs = [(row, sums[key]) for key, row in means.items() if key in sums]
    return [pair for pair in pairs if any(row.verdict.is_judged for row in pair)]


def belief_in_inner_loss(pairs: Iterable[tuple[Row, Row]]) -> str:
    """How many verdicts in the paper's form another inner loss leaves, and which it changes."""
    pairs = [pair for pair in pairs if pair[0].as_in_paper]
    if not pairs:
        return ""
    differ = [mean for mean, summed in pairs if mean.verdict != summed.verdict]
    text = (
        "**Does the choice of inner loss matter?** The sum of Finn's code in place of the mean "
        f"leaves {len(pairs) - len(differ)} of {len(pairs)} verdicts as they are"
    )
    if differ:
        claims = enumerate_words(sorted({row.claim for row in differ}))
        text += f", and changes some of {claims}"
    return f"{text} ([both](inner-losses))."


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
        f"under {name} by {_range_of(values, '{:+.1f}')} points" for name, values in changes.items()
    ]
    return f"{' and '.join(phrases)} (means over {_range_of(counts, '{}')} seeds per cell)"


def _range_of(values: Collection[float], form: str) -> str:
    """The least and the greatest value, once if they read the same."""
    least, greatest = form.format(min(values)), form.format(max(values))
    return least if least == greatest else f"{least} to {greatest}"


def enumerate_words(words: Sequence[str]) -> str:
    """Words as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def beliefs(
    rows: Sequence[Row],
    outcomes: Sequence[PredictionRow],
    roles: Iterable[MeasureRole],
    inner_losses: Iterable[tuple[Row, Row]],
) -> str:
    """What a reader may believe now, an item per question."""
    texts = [
        belief_in_flatness(rows),
        belief_in_worse(rows),
        belief_in_coherence(rows, outcomes),
        belief_in_causes(roles),
        belief_in_finetuning(rows),
        belief_in_gain(rows),
        belief_in_inner_loss(inner_losses),
    ]
    return "\n".join(f"- {text}" for text in texts if text)


def paper_runs(recorded: Iterable[Record]) -> list[Record]:
    """The recorded runs at the paper's settings; of a run that is there twice, the furthest."""
    return [run for run in keep_furthest(recorded) if scale_of(run.settings) == "paper"]


def lengths(recorded: Iterable[Record]) -> str:
    """How many runs at the paper's settings are whole, and how far the others got, in words."""
    runs = paper_runs(recorded)
    whole = [run for run in runs if run.finished]
    stopped = [run for run in runs if not run.finished]
    iterations = f"{preset('paper').iterations:,}"
    text = f"{len(whole) or 'none'} of {len(runs)} runs at the paper's settings"
    text += f" {'is' if len(whole) == 1 else 'are'} whole, {iterations} iterations"
    if len(whole) == 1:
        settings = whole[0].settings
        task = f"{name_of(settings.dataset)} {settings.setting}"
        text += f" ({name_of(settings.algorithm)}, {task})"
    if stopped:
        text += f"; the others stop at {format_iterations(stopped)}"
    return text


def still_rising(recorded: Iterable[Record]) -> str:
    """In how many cells at the paper's settings accuracy rises over the second half, in words."""
    learners = [
        run
        for run in paper_runs(recorded)
        if ALGORITHMS[run.settings.algorithm].episodic and run.epochs >= rules.MIN_EPOCHS
    ]
    cells = [cut_to_common_length(cell) for cell in group_into_cells(learners)]
    cells = [cell for cell in cells if len(cell) >= MIN_RUNS]
    rises = 0
    for cell in cells:
        accuracies = [curve(run, "query_accuracy") for run in cell]
        halves = [accuracy[len(accuracy) // 2 :] for accuracy in accuracies]
        rises += interval(map(fitted_change, halves)).low > 0
    return f"{rises or 'none'} of {len(cells)}"


def seeds(rows: Iterable[Row]) -> str:
    """How many runs the verdicts rest on, least to greatest, and the power to compare runs."""
    phrases = []
    for scale, place in SCALES.items():
        counts = [row.runs for row in rows if row.scale == scale and row.verdict.is_judged]
        if counts:
            most = max(counts)
            phrases.append(f"{_range_of(counts, '{}')} runs {place}")
            power = 100 * correlation_power(most, rules.STRONG)
            phrases[-1] += (
                f" (a true correlation of {rules.STRONG:g} between {most} runs is seen in "
                f"{power:.0f} % of cases)"
            )
    return "; ".join(phrases) or "none so far"


def devices(recorded: Iterable[Record]) -> str:
    """The kinds of machine that the runs were made on, by scale."""
    phrases = []
    runs = keep_furthest(recorded)
    for scale, place in SCALES.items():
        kinds = Counter(
            kind_of(run.provenance["device"]) for run in runs if scale_of(run.settings) == scale
        )
        if kinds:
            counted = ", ".join(
                f"{n} runs {_describe_machines(kind)}" for kind, n in kinds.most_common()
            )
            phrases.append(f"{place} {counted}")
    return "; ".join(phrases)


def _describe_machines(kind: str) -> str:
    """Where runs of a kind were made: "on CPUs", or "partly on CPUs and partly on an ..."."""
    names = ["CPUs" if name == CORE else f"an {name}" for name in kind.split(", ")]
    return "on " + names[0] if len(names) == 1 else " and ".join(f"partly on {n}" for n in names)


def gain_table(recorded: Sequence[Record], rows: Sequence[Row]) -> str:
    """The paper's figures for the regulariser beside ours, in its own setting."""
    by_id = {run.settings.id: run for run in keep_furthest(recorded)}
    dataset, ways, shots = GAIN_SETTING
    figures = PAPER["C8", *GAIN_SETTING].split(" to ")
    lines = [["The paper", "whole", "not given", *figures, f"{PAPER_GAIN:+.2f} points", "–"]]
    for row in rows:
        is_here = (row.dataset, row.setting) == (dataset, f"{ways}-way {shots}-shot")
        if row.claim != "C8" or not is_here or not row.as_in_paper or not row.runs:
            continue
        half = len(row.ids) // 2
        cell, base = ([by_id[i] for i in ids] for ids in (row.ids[:half], row.ids[half:]))
        pairs = pair_by_seed(cell, base)
        with_it, without = (mean_accuracy(runs) for runs in zip(*pairs, strict=True))
        lines.append(
            [
                f"{name_of(row.algorithm)}, {SCALES[row.scale]}",
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


def mean_accuracy(runs: Sequence[Record]) -> str:
    """The mean accuracy of runs on the further tasks or, without these, late on the usual ones."""
    ends = [final_accuracy(run) for run in runs]
    measured = [end[0] for end in ends if end]
    values = measured if len(measured) == len(runs) else late_values(runs, "query_accuracy")
    return f"{100 * np.mean(values):.2f} %"


def monotone(recorded: Iterable[Record]) -> str:
    """In how many runs at the paper's settings the Hessian norm falls after every epoch."""
    runs = [
        run
        for run in paper_runs(recorded)
        if ALGORITHMS[run.settings.algorithm].episodic
        and run.settings.regulariser == "none"
        and run.epochs >= rules.MIN_EPOCHS
    ]
    steps = [np.diff(curve(run, "hessian_norm")) < 0 for run in runs]
    if not steps:
        return "no run tells"
    always = sum(bool(falls.all()) for falls in steps)
    share = np.concatenate(steps).mean()
    return (
        f"in {always or 'none'} of {len(runs)} runs the norm falls after every epoch; "
        f"it falls after {100 * share:.0f} % of all epochs"
    )


def seeds_for_power(limit: int = 100) -> int:
    """The fewest runs that show a true correlation of `rules.STRONG` as often as `rules.POWER`."""
    return next(n for n in range(3, limit) if correlation_power(n, rules.STRONG) >= rules.POWER)


@dataclass(frozen=True)
class Question:
    """A question that further runs would settle.

    Attributes:
        text: the question, with its claims.
        concerns: whether a planned run of the paper's grid is among these runs.
    """

    text: str
    concerns: Callable[[Planned], bool]


def _is_gain(run: Planned) -> bool:
    settings = run.settings
    is_here = (settings.dataset, settings.ways, settings.shots) == GAIN_SETTING
    return is_here and ALGORITHMS[settings.algorithm].episodic


def _is_worse(run: Planned) -> bool:
    settings = run.settings
    return (settings.dataset, settings.shots, settings.algorithm) == ("mini-imagenet", 1, "fomaml")


def _is_learner(run: Planned) -> bool:
    return run.group == "base" and ALGORITHMS[run.settings.algorithm].episodic


QUESTIONS = (
    Question("Does the regulariser help where the paper says so (C8)?", _is_gain),
    Question("Do solutions become flatter while accuracy falls (C4)?", _is_worse),
    Question("Do C1 to C3, C5 and C6 hold over the whole length?", _is_learner),
    Question(
        "Is finetuning nearly orthogonal (C7)?",
        lambda run: run.group == "base" and run.settings.algorithm == "finetune",
    ),
    Question(
        "Does the choice of inner loss matter at full length?",
        lambda run: run.group == "inner-loss",
    ),
)


def settling_table(recorded: Sequence[Record]) -> str:
    """What would settle each open question, and its price by device.

    A run that was stopped is priced from its start: its record holds no checkpoint.
    """
    planned = definitions.paper_grid()
    lists = {
        question.text: [run.settings for run in planned if question.concerns(run)]
        for question in QUESTIONS
    }
    runs = seeds_for_power()
    algorithms = ("maml", "fomaml")
    lists[f"Do runs that are more coherent end more accurate (C5, C6)? {runs} seeds of 5-way"] = (
        base_runs("paper", "omniglot", 5, 1, range(runs), algorithms)
    )
    lists["All of the paper's grid"] = [run.settings for run in planned]
    finished = [run for run in keep_furthest(recorded) if run.finished]
    timings = Timings(recorded)
    lines = [
        [text, format_value(len(settings)), *prices(timings, settings, finished)]
        for text, settings in lists.items()
    ]
    head = [
        "Question",
        "Runs planned",
        *(f"Hours of one {gpu}" for gpu in GPUS.values()),
        f"One {CORE}",
    ]
    return markdown_table(head, lines)


def prices(timings: Timings, runs: Sequence[Settings], finished: Sequence[Record]) -> list[str]:
    """The hours of each GPU that unfinished runs take, and their time on a CPU core."""
    lefts = [timings.time_left(runs, finished, kind) for kind in GPUS]
    on_core = timings.time_left(runs, finished, CORE)
    return [*map(format_hours, lefts), format_whole_grid(on_core)[0]]


def format_hours(left: TimeLeft) -> str:
    """Hours of a device, marked where they are scaled or where some runs' time is unknown."""
    if left.unknown == left.runs:
        return "unknown" if left.runs else "0"
    hours = left.minutes / 60
    text = f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}"
    if left.unknown:
        note = small_print(f"{left.unknown} of the {left.runs} runs left were never timed")
        return f"over {text}{note}"
    return text if left.bases == {"like runs"} else f"≈ {text}"


def gpu_time(recorded: Sequence[Record], kind: str) -> str:
    """How long one run of each main setting takes of a GPU, and the whole grid, in words."""
    timings = Timings(recorded)
    planned = [run.settings for run in definitions.paper_grid()]
    left = timings.time_left(planned, [], kind)
    times = []
    for name, settings in MAIN_SETTINGS.items():
        estimate = timings.estimate(settings, kind)
        start_to_end = format_minutes(estimate.by_the_clock)
        times.append(f"{name} {format_estimate(estimate)} ({start_to_end} from start to end)")
    text = (
        f"A run's share of the GPU while {left.together:.0f} runs use it at a time: "
        f"{'; '.join(times)}. All {left.runs} runs of the paper's grid take "
        f"{format_whole_grid(left)[0].partition('<')[0]}"
    )
    if left.unknown:
        text += f", because nothing like {left.unknown} of them was timed on a GPU"
    return f"{text}."


def kept_weights() -> str:
    """How many of the committed records hold trained weights."""
    return format_value(len(list((ROOT / "results").glob("*/weights.safetensors"))))


def substitutions() -> dict[str, str]:
    """All names that pages may use, with their Markdown."""
    recorded = committed_runs()
    rows = [row for row in judged_rows() if row.dataset in PAPER_DATA]
    outcomes = judged_predictions()
    inner_losses = pair_inner_losses(recorded, rows)
    return {
        "discussion_beliefs": beliefs(rows, outcomes, main_roles(recorded), inner_losses),
        "discussion_claims": claim_results(rows, outcomes),
        "discussion_lengths": capitalise(lengths(recorded)),
        "discussion_rising": still_rising(recorded),
        "discussion_seeds": seeds(rows),
        "discussion_devices": capitalise(devices(recorded)),
        "discussion_gains": gain_table(recorded, rows),
        "discussion_inner_losses": inner_loss_table(inner_losses),
        "discussion_inner_loss_accuracy": inner_loss_accuracy(recorded, inner_losses),
        "discussion_monotone": monotone(recorded),
        "discussion_settling": settling_table(recorded),
        "one_a100": gpu_time(recorded, "NVIDIA A100-SXM4-80GB"),
        "kept_weights": kept_weights(),
    }


def add_substitutions(_: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: give pages the substitutions."""
    config.myst_substitutions.update(substitutions())


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", add_substitutions)
    return {"parallel_read_safe": True}
