"""The page of runs: a section per cell, with its records to download."""

from formats import describe_cell, format_iterations

from metanb.claims.cells import group_into_cells
from metanb.figures.runs import describe_origin
from metanb.grids.hours import Timings, format_minutes
from metanb.runs.records import Record

RUNS_PAGE = "book/runs"
RUNS_MARK = "<!-- one section for each cell, written at build time -->"


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
