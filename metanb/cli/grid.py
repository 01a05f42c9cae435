"""`metanb grid`: list, train, pack and unpack the runs of a grid."""

import math
from collections.abc import Sequence
from pathlib import Path

import click

from metanb.cli.options import Command, together_option
from metanb.grids import definitions, progress
from metanb.grids.definitions import Planned
from metanb.runs import store
from metanb.settings import Settings


@click.command("grid", cls=Command)
@click.argument("name", metavar="GRID", type=click.Choice(list(definitions.GRIDS)))
@click.option(
    "--list",
    "only_list",
    is_flag=True,
    help="list the runs, with their state and the time they take; train nothing",
)
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    help="only runs whose group or id matches, as in 'base' or '*-5w1s-*'; "
    "may be repeated: runs of the first pattern come first",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="number of processes at a time  [default: 2 on a CPU, 1 on a GPU]",
)
@together_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or auto")
@click.option(
    "--until",
    metavar="ITERATIONS",
    type=click.IntRange(min=1),
    help="stop each run after the epoch that reaches this iteration",
)
@click.option(
    "--budget",
    metavar="MINUTES",
    type=click.FloatRange(min=0),
    default=float("inf"),
    help="stop after this time and record the runs in progress as far as they got; "
    "0: train nothing",
)
@click.option(
    "--import",
    "archives",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="first import the runs of an archive, or of all archives in a folder",
)
@click.option(
    "--keep-weights",
    is_flag=True,
    help="at the end, keep the trained weights of one run per cell of group 'base' beside "
    "its record in the store; to publish them, copy the record's folder",
)
@click.option(
    "--export",
    type=click.Path(file_okay=False, path_type=Path),
    help="at the end, pack the store's records, kept weights and unfinished checkpoints "
    "into archives in this folder",
)
def grid_command(
    name: str,
    only_list: bool,
    only: tuple[str, ...],
    processes: int | None,
    together: int | None,
    device: str,
    until: int | None,
    budget: float,
    archives: tuple[Path, ...],
    keep_weights: bool,
    export: Path | None,
) -> None:
    """Train the missing runs of a grid.

    GRID is smoke, quick or paper: all runs at one scale. The book's results come from quick and
    paper; smoke has a few tiny runs that show that the code works.
    """
    from metanb.grids import runner

    # Refuse contradictions before anything is read or written.
    if only_list and (export or keep_weights):
        raise click.UsageError(
            "--list only lists: to keep weights or to export, give --budget 0 instead"
        )
    if math.isnan(budget):
        raise click.UsageError("--budget nan is no time: give minutes, or leave it out")
    default_together = runner.together_on(device)
    together = together or default_together
    processes = processes or (1 if default_together > 1 else 2)
    planned = definitions.select_runs(definitions.GRIDS[name](), *only)
    plain = [run.settings for run in planned if run.group == "base"]
    if keep_weights and not plain:
        raise click.UsageError("--keep-weights is for runs of group 'base': --only leaves none")

    _import_archives(archives)
    if only_list:
        _list_grid(planned, device, processes, together, until)
        return
    failed: list[str] = []
    if budget:
        failed = runner.run_grid(planned, processes, device, click.echo, budget, until, together)
    if keep_weights:
        _keep_weights(plain)
    if export:
        _export_runs(planned, export, name)
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(planned)} runs failed: {'; '.join(failed)}"
        )


def _import_archives(paths: Sequence[Path]) -> None:
    """Import the runs of archives, and of all archives in folders, into the store."""
    if not paths:
        return
    from metanb.runs import archive

    for path in paths:
        archives = sorted(path.glob("*.zip")) if path.is_dir() else [path]
        if not archives:
            click.echo(f"imported: nothing; {path} has no archive (.zip)", err=True)
        for file in archives:
            for line in archive.unpack_runs(file):
                click.echo(f"imported: {line}")


def _list_grid(
    planned: Sequence[Planned], device: str, processes: int, together: int, until: int | None
) -> None:
    """Print one row per run, and how long the missing runs take."""
    from metanb.grids import hours

    recorded = progress.find_recorded(planned)
    missing = progress.find_missing(planned, recorded, until)
    timings = hours.Timings(hours.recorded_anywhere())
    kind = timings.kind_here(device)
    at_a_time = processes if kind == hours.CORE else processes * together
    table = progress.grid_table(planned, recorded, timings, kind, at_a_time)
    click.echo(table.to_string(index=False))
    count = f"{len(planned)} runs, {len(planned) - len(missing)} recorded"
    if missing:
        left = timings.time_left(missing, recorded, kind, at_a_time, until).describe(at_a_time)
        click.echo(f"{count}; the others take {left}")
    else:
        click.echo(f"{count}, which is all")


def _keep_weights(runs: Sequence[Settings]) -> None:
    """Keep the trained weights of one run per cell."""
    from metanb.runs import weights

    for line in weights.keep_one_per_cell(runs):
        click.echo(line)


def _export_runs(planned: Sequence[Planned], folder: Path, name: str) -> None:
    """Pack what the store has of a grid into archives."""
    from metanb.runs import archive

    paths = archive.pack_runs([run.settings for run in planned], folder, name)
    for path in paths:
        click.echo(f"exported: {path}")
    if not paths:
        click.echo(
            f"exported: nothing; the store {store.store_folder()} has no record and no checkpoint "
            "of these runs",
            err=True,
        )
