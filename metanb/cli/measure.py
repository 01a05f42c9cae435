"""`metanb measure`: add measures to recorded runs."""

from pathlib import Path

import click

from metanb.cli.options import Command, load_plugins, plugin_option
from metanb.runs import store


@click.command("measure", cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--measure",
    "names",
    multiple=True,
    metavar="NAME",
    help="only this measure; may be repeated  [default: all that a record lacks]",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto")
@plugin_option
def measure_command(
    runs: tuple[str, ...], names: tuple[str, ...], device: str, plugin_files: tuple[Path, ...]
) -> None:
    """Add measures to recorded runs whose weights are kept.

    RUN is a record's folder, or its name in the store or in results/. The weights come from the
    record's folder or from the checkpoint in the store. The new measures join the record with a
    provenance of their own; the measures recorded before do not change.
    """
    from metanb.runs import records
    from metanb.runs.later import measure_later

    load_plugins(plugin_files)
    for run in runs:
        places = [Path(run), *(folder / run for folder in store.record_folders())]
        path = next((place for place in places if (place / records.FILES[0]).is_file()), None)
        if path is None:
            raise click.UsageError(
                f"no record {run!r}: give a record's folder, or the name of one in "
                f"{' or '.join(map(str, store.record_folders()))}"
            )
        before = records.read_record(path.resolve())
        after = measure_later(before, names or None, device)
        for row in after.measures[len(before.measures) :].itertuples():
            click.echo(f"{row.measure}: {row.mean:.6g} +- {row.sem:.2g} (n = {row.n})")
        click.echo(f"record: {after.path}")
