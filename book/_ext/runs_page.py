"""The page of runs: a section per cell, with its records to download."""

from collections.abc import Sequence

from formats import describe_cell, format_iterations

from metanb.claims.cells import group_into_cells
from metanb.figures.runs import describe_origin
from metanb.grids.hours import RunTime, Timings, format_minutes
from metanb.runs.records import Record

RUNS_PAGE = "book/runs"
RUNS_MARK = "<!-- one section for each cell, written at build time -->"


def runs_page(recorded: list[Record]) -> str:
    """A section per cell with its runs to download; a link to any run's id leads to its section."""
    timings = Timings(recorded)
    lines = []
    for cell in group_into_cells(recorded):
        settings = cell[0].settings
        downloads = ", ".join(
            f"{{download}}`{run.settings.id} <../results/{run.path.name}/measures.csv.gz>`"
            for run in cell
        )
        length = describe_times([timings.run_time(run) for run in cell])
        if not all(run.finished for run in cell):
            length += f", to {format_iterations(cell)} of {settings.iterations:,} iterations"
        lines += [f"({run.settings.id})=" for run in cell]
        lines += [
            f"### {describe_cell(settings)}",
            "",
            f"{length}. {describe_origin(cell)} Measures: {downloads}.",
            "",
        ]
    return "\n".join(lines)


def describe_times(timed: Sequence[RunTime]) -> str:
    """The number of runs with their mean time, by the kind of device.

    A run that was continued elsewhere has both kinds, with a comma between them, and no time.
    """
    phrases = []
    for kind in sorted({run.kind for run in timed}):
        minutes = [run.minutes for run in timed if run.kind == kind]
        runs = "1 run" if len(minutes) == 1 else f"{len(minutes)} runs"
        if ", " in kind:  # minutes of different devices add up to nothing
            phrases.append(f"{runs} on one {' and one '.join(kind.split(', '))} in turn")
            continue
        each = "" if len(minutes) == 1 else " each"
        phrases.append(f"{runs},{each} {format_minutes(sum(minutes) / len(minutes))} of one {kind}")
    return "; ".join(phrases)
