"""What runs cost by device: those that are recorded, and those that would settle a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from formats import describe_cell, format_iterations, format_value, markdown_table, small_print
from published import GAIN_SETTING

from metanb.claims import rules
from metanb.claims.cells import group_into_cells
from metanb.claims.run_stats import correlation_power
from metanb.grids import definitions, hours
from metanb.grids.definitions import Planned, base_runs
from metanb.grids.hours import CORE, Estimate, TimeLeft, Timings, format_minutes
from metanb.labels import ALGORITHMS
from metanb.runs.records import Record, keep_furthest
from metanb.settings import Settings, preset, scale_of

# 1-shot; Omniglot where no data set is named
MAIN_SETTINGS = {
    "20-way MAML": preset("paper", "omniglot", 20),
    "mini-ImageNet, first-order MAML": preset("paper", "mini-imagenet", algorithm="fomaml"),
    "5-way MAML": preset("paper", "omniglot"),
}
GPUS = {"NVIDIA H200": "H200", "NVIDIA A100-SXM4-80GB": "A100"}  # the columns of prices


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
    if bases == {"like runs"}:
        return "timed"
    return "timed in part, else scaled" if "like runs" in bases else ""


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
        return f"over {time}{never_timed(left)}", f"over {device_hours}"
    if left.bases != {"like runs"}:
        return f"≈ {time}", f"≈ {device_hours}"
    return time, device_hours


def never_timed(left: TimeLeft) -> str:
    """For how many of the runs no time is known, in small print."""
    return small_print(f"{left.unknown} of the {left.runs} runs were never timed")


def format_estimate(estimate: Estimate) -> str:
    """A time, marked where no run of these very settings was timed on the device."""
    is_rough = estimate.known and estimate.basis != "like runs"
    return f"{'≈ ' if is_rough else ''}{format_minutes(estimate.minutes)}"


def format_hours(left: TimeLeft) -> str:
    """Hours of a device, marked where they are scaled or where some runs' time is unknown."""
    if left.unknown == left.runs:
        return "unknown" if left.runs else "0"
    hours = left.minutes / 60
    text = f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}"
    if left.unknown:
        return f"over {text}{never_timed(left)}"
    return text if left.bases == {"like runs"} else f"≈ {text}"


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
    """The time that 60,000 iterations of MAML on Omniglot 5-way 1-shot should take on a GPU."""
    settings = preset("paper", "omniglot", 5, algorithm="maml")
    timings = Timings(recorded)
    estimate = timings.estimate(settings, timings.gpus[0])
    return {
        "whole_run": format_estimate(estimate),
        "whole_run_together": f"{estimate.together:.0f}",
        "whole_run_gpu": timings.gpus[0].removeprefix("NVIDIA "),
    }


def gpu_time(recorded: Sequence[Record], kind: str) -> str:
    """How long one run of each main setting takes of a GPU, and the whole grid, in words."""
    timings = Timings(recorded)
    planned = [run.settings for run in definitions.paper_grid()]
    left = timings.time_left(planned, [], kind)
    times = []
    for name, settings in MAIN_SETTINGS.items():
        estimate = timings.estimate(settings, kind)
        start_to_end = format_minutes(estimate.by_the_clock)
        times.append(
            f"{name} {format_estimate(estimate)} ({start_to_end} from start to end, with "
            f"{estimate.together:.0f} runs at a time)"
        )
    text = (
        f"A run's share of the GPU: {'; '.join(times)}. All {left.runs} runs of the paper's grid "
        f"take {format_whole_grid(left)[0].partition('<')[0]}"
    )
    if left.unknown:
        text += f": for {left.unknown} of them no similar run was timed on a GPU"
    return f"{text}."


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


def seeds_for_power(limit: int = 100) -> int:
    """The fewest runs that show a true correlation of `rules.STRONG` as often as `rules.POWER`."""
    return next(n for n in range(3, limit) if correlation_power(n, rules.STRONG) >= rules.POWER)


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


def cost_values(recorded: list[Record]) -> dict[str, str]:
    """Substitutions about the time that runs and grids take."""
    quick = [run.settings for run in definitions.quick_grid()]
    quick_minutes = Timings(recorded).time_left(quick, [], CORE).minutes
    rates = [f"{gpu} {rate:g} TB/s" for gpu, rate in hours.BANDWIDTH.items()]
    return {
        "gpu_hours": gpu_table(recorded),
        "paper_cost": cost_table(recorded),
        "bandwidths": ", ".join(rates),
        "limit_unknown": format_minutes(hours.LIMIT_IF_UNKNOWN),
        "quick_hours": format_minutes(quick_minutes),
        "one_a100": gpu_time(recorded, "NVIDIA A100-SXM4-80GB"),
        **whole_run_values(recorded),
    }
