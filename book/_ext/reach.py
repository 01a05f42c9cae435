"""How far the evidence reaches: the runs' lengths, seeds and machines, and what is not yet run."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from committed import ROOT
from formats import PLACES, enumerate_words, format_iterations, format_value, least_to_greatest

from metanb.claims import rules
from metanb.claims.cells import curve, cut_to_common_length, group_into_cells, value_at_the_end
from metanb.claims.run_stats import correlation_power, fitted_change, interval
from metanb.claims.verdicts import MIN_RUNS, Row
from metanb.grids import definitions
from metanb.grids.hours import CORE, kind_of
from metanb.labels import ALGORITHMS, name_of
from metanb.runs.records import Record, keep_furthest
from metanb.settings import Settings, preset, scale_of


def runs_by_scale(recorded: list[Record]) -> str:
    """How many runs there are of each scale, and how many of them were stopped early."""
    phrases = []
    for scale, n in Counter(scale_of(run.settings) for run in recorded).most_common():
        of_scale = [run for run in recorded if scale_of(run.settings) == scale]
        stopped = sum(not run.finished for run in of_scale)
        phrase = f"{n} runs at `{scale}` scale"
        if all(definitions.is_beginning(run.settings) for run in of_scale):
            phrase = f"{n} runs of the first {beginning()}"
        phrases.append(f"{phrase}, {stopped} of them stopped early" if stopped else phrase)
    return "; ".join(phrases)


def beginning() -> str:
    """How long the runs for first peaks are, and how closely they are measured."""
    iterations, every = (
        definitions.BEGINNING["iterations"],
        definitions.BEGINNING["epoch_iterations"],
    )
    return f"{iterations:,} iterations of the smaller version, measured every {every}"


def quick_without() -> str:
    """The data, ways and shots of the paper's grid that the smaller version leaves out."""
    quick, paper = (
        {(run.settings.dataset, run.settings.setting) for run in grid()}
        for grid in (definitions.quick_grid, definitions.paper_grid)
    )
    return enumerate_words(
        [f"{name_of(data)} {setting}" for data, setting in sorted(paper - quick)]
    )


def cells_of_meta_training(recorded: Iterable[Record]) -> list[list[Record]]:
    """The cells of meta-training at the paper's settings, cut to what three runs have reached."""
    learners = [
        run
        for run in paper_runs(recorded)
        if ALGORITHMS[run.settings.algorithm].episodic and run.epochs >= rules.MIN_EPOCHS
    ]
    cells = [cut_to_common_length(cell) for cell in group_into_cells(learners)]
    return [cell for cell in cells if len(cell) >= MIN_RUNS]


def paper_runs(recorded: Iterable[Record]) -> list[Record]:
    """The recorded runs at the paper's settings; of a run that is there twice, the furthest."""
    return [run for run in keep_furthest(recorded) if scale_of(run.settings) == "paper"]


def twins(recorded: Iterable[Record]) -> str:
    """How far two runs of the same settings and seed end apart, trained at different times.

    Interventions have base runs of their own, which train as the plain runs do and are measured
    less often, on more tasks at the end. So there are pairs of runs that differ by nothing else.
    """
    trained_alike: dict[Settings, list[Record]] = {}
    for run in keep_furthest(recorded):
        if run.finished and not definitions.is_beginning(run.settings):
            alike = replace(run.settings, epoch_iterations=run.settings.iterations, final_tasks=0)
            trained_alike.setdefault(alike, []).append(run)
    pairs = [runs for runs in trained_alike.values() if len(runs) == 2]
    accuracies, norms = (  # [pairs, 2]
        np.array([[value_at_the_end(run, measure)[0] for run in pair] for pair in pairs])
        for measure in ("query_accuracy", "hessian_norm")
    )
    points, log_factor = (
        np.sqrt(np.mean(np.diff(ends) ** 2)) for ends in (100 * accuracies, np.log(norms))
    )
    return (
        f"{points:.1f} points of accuracy and {100 * np.expm1(log_factor):.0f} % of the Hessian "
        f"norm (root mean square over {len(pairs)} pairs)"
    )


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
            # One phrase for all strengths, or for those that are left.
            like = {replace(settings.unseeded, gamma=gamma) for gamma in definitions.PAPER_GAMMAS}
            strengths = "further strengths of " if like & judged else ""
            what = "its control" if settings.regulariser == "random" else "the regulariser"
            method = f"{strengths}{what} under {method}"
        elif settings.inner_loss == "sum":
            method += " with the sum as inner loss"
        methods = missing.setdefault(f"{name_of(settings.dataset)} {settings.setting}", [])
        if method not in methods:
            methods.append(method)
    phrases = [f"{setting} ({', '.join(methods)})" for setting, methods in missing.items()]
    return "; ".join(phrases) or "nothing"


def still_rising(recorded: Iterable[Record]) -> str:
    """In how many cells at the paper's settings accuracy rises over the second half, in words."""
    cells = cells_of_meta_training(recorded)
    rises = 0
    for cell in cells:
        accuracies = [curve(run, "query_accuracy") for run in cell]
        halves = [accuracy[len(accuracy) // 2 :] for accuracy in accuracies]
        rises += interval(map(fitted_change, halves)).low > 0
    return f"{rises or 'none'} of {len(cells)}"


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


def seeds(rows: Iterable[Row]) -> str:
    """How many runs the verdicts rest on, least to greatest, and the power to compare runs."""
    phrases = []
    for scale, place in PLACES.items():
        counts = [row.runs for row in rows if row.scale == scale and row.verdict.is_judged]
        if counts:
            most = max(counts)
            phrases.append(f"{least_to_greatest(counts, '{}')} runs {place}")
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
    for scale, place in PLACES.items():
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


def run_counts(recorded: list[Record]) -> dict[str, str]:
    """Substitutions that count runs: recorded, planned, and with trained weights."""
    with_weights = list((ROOT / "results").glob("*/weights.safetensors"))
    return {
        "runs_total": format_value(len(recorded)),
        "runs_by_scale": runs_by_scale(recorded),
        "kept_weights": format_value(len(with_weights)),
        "paper_runs": format_value(len(definitions.paper_grid())),
        "quick_runs": format_value(len(definitions.quick_grid())),
    }
