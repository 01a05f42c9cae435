"""`metanb train`: train runs of any settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, get_args

import click

from metanb.cli.options import (
    Command,
    add_settings_options,
    load_plugins,
    plugin_option,
    together_option,
)
from metanb.files import parse_json
from metanb.settings import Scale, Settings, SettingsError, from_dict, preset

SHOWN_MEASURES = [
    "query_accuracy",
    "hessian_norm",
    "support_loss",
    "distance",
    "trajectory_coherence",
    "gradient_coherence",
]


@click.command("train", cls=Command)
@click.option(
    "--scale",
    type=click.Choice(get_args(Scale)),
    help="smoke: seconds; quick: minutes on a CPU core; paper: the paper's size, hours on a GPU  "
    "[default: smoke]",
)
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU if there is one"
)
@click.option(
    "--until",
    metavar="ITERATIONS",
    type=click.IntRange(min=1),
    help="stop after the epoch that reaches this iteration; the record says how far the run got",
)
@click.option(
    "--runs",
    "file",
    type=click.File(),
    help="a record's settings.json, or a file with a JSON list of several; -: standard input",
)
@together_option
@plugin_option
@add_settings_options
def train_command(
    scale: Scale | None,
    device: str,
    until: int | None,
    file: TextIO | None,
    together: int | None,
    plugin_files: tuple[Path, ...],
    **options: Any,
) -> None:
    """Train runs and record them.

    An interrupted run continues from its last epoch; a recorded run is read, not trained again.
    """
    load_plugins(plugin_files)
    given = {name: value for name, value in options.items() if value is not None}
    runs = _read_runs(file, scale, given) if file else [_settings_from_options(scale, given)]
    click.echo("loading PyTorch, which takes seconds", err=True)
    from metanb.runs.experiment import run_all
    from metanb.runs.machine import is_interactive
    from metanb.runs.training import identify_runs

    runs = identify_runs(runs)
    # Where there is a progress bar, it names its runs.
    for settings in [] if is_interactive() else runs:
        length = f"{settings.iterations} iterations, {settings.epochs} epochs"
        click.echo(f"run {settings.id}: {length}", err=True)
    for record in run_all(runs, device, until, together):
        by_epoch = record.measures.pivot(index="epoch", columns="measure", values="mean")
        first_and_last = by_epoch[SHOWN_MEASURES].iloc[[0, -1]].T
        click.echo(first_and_last.to_string(float_format="%.4g"))
        click.echo(f"record: {record.path}")


def _settings_from_options(scale: Scale | None, given: Mapping[str, Any]) -> Settings:
    """The settings of one run; the data set is glyphs by default."""
    return preset(scale or "smoke", **{"dataset": "glyphs", **given})


def _read_runs(file: TextIO, scale: Scale | None, given: Mapping[str, Any]) -> list[Settings]:
    """Read the settings in a file: one run's, or a list.

    Raises:
        click.UsageError: the file holds no settings, or options name settings too.
        SettingsError: a setting has an impossible value.
    """
    options = sorted(given) + ["scale"] * bool(scale)
    if options:
        flag = options[0].replace("_", "-")
        raise click.UsageError(f"--runs names every setting: leave out --{flag}")
    try:
        values = parse_json(file.read())
        runs = values if isinstance(values, list) else [values]
        if not runs or not all(isinstance(run, dict) for run in runs):
            raise ValueError("it holds no settings")
    except ValueError as error:  # also bad JSON and bad UTF-8
        raise click.UsageError(
            f"--runs {file.name}: {error}: give a record's settings.json, or a JSON list of several"
        ) from None
    try:
        return [from_dict(run) for run in runs]
    except SettingsError as error:
        raise SettingsError(f"--runs {file.name}: {error}") from None
