"""The command line: `metanb train`, `grid`, `claims`, `predictions`, `run`, `bench` and so on.

Modules that import torch take seconds to load, so each command imports what it needs.
"""

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO, get_args

import click

from metanb.bench import units as bench_units
from metanb.data import image_sets
from metanb.files import parse_json
from metanb.grids import definitions, progress
from metanb.grids.definitions import Planned
from metanb.grids.interventions import find_intervention
from metanb.labels import ALGORITHMS, DATASETS
from metanb.runs import records, store
from metanb.settings import (
    CHOICES,
    RANGES,
    Scale,
    Settings,
    SettingsError,
    from_dict,
    preset,
    scale_of,
)

SHOWN_MEASURES = [
    "query_accuracy",
    "hessian_norm",
    "support_loss",
    "distance",
    "trajectory_coherence",
    "gradient_coherence",
]


class _Command(click.Command):
    """A command whose summary is never cut in the list of commands."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first line of the docstring, whole; click would cut it."""
        return (self.help or "").strip().partition("\n")[0]


class _Group(_Command, click.Group):
    """A group of such commands."""

    command_class = _Command
    group_class = type


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metanb")
def cli() -> None:
    """Train, measure and judge gradient-based meta-learning, and run the book's notebooks."""


def _add_settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per setting; without it, the setting takes the scale's value."""
    for field in reversed(fields(Settings)):
        flag = f"--{field.name.replace('_', '-')}"
        meaning = field.metadata["help"]
        if field.name == "content":  # read from the images
            continue
        if isinstance(field.default, bool):
            option = click.option(f"{flag}/--no-{flag[2:]}", default=None, help=meaning)
        elif field.name in ("algorithm", "network"):  # a plugin may add one
            option = click.option(flag, metavar="NAME", help=meaning)
        elif field.name in CHOICES:
            option = click.option(flag, type=click.Choice(list(CHOICES[field.name])), help=meaning)
        elif field.name not in RANGES:
            option = click.option(flag, metavar="NAME", help=meaning)
        else:
            low, high = RANGES[field.name]
            help_text = f"{meaning} [{low:,} to {high:,}]"
            option = click.option(flag, type=type(field.default), help=help_text)
        command = option(command)
    return command


_together_option = click.option(
    "--together",
    metavar="RUNS",
    type=click.IntRange(min=1),
    help="number of runs, differing only by seed, that train as one batch  "
    "[default: 10 on a GPU, 1 on a CPU]",
)


_plugin_option = click.option(
    "--plugin",
    "plugin_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="first run a Python file of your own that registers measures or an algorithm; "
    "may be repeated",
)


@cli.command("train")
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
@_together_option
@_plugin_option
@_add_settings_options
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
    _load_plugins(plugin_files)
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


def _load_plugins(files: Sequence[Path]) -> None:
    """Run Python files that register measures or algorithms."""
    from metanb.runs.plugins import load_plugin

    for file in files:
        load_plugin(file)


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


@cli.command("grid")
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
@_together_option
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


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="print JSON: a list of objects, with all details"
)
_records_option = click.option(
    "--records",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folders of records  [default: results/ of a checkout, and the local store]",
)


@cli.command("claims")
@click.argument("claims", metavar="[CLAIM]...", nargs=-1)
@click.option("--dataset", metavar="NAME", help="only rows of this data set")
@click.option("--algorithm", metavar="NAME", help="only rows of this algorithm")
@click.option("--scale", metavar="NAME", help="only rows of this scale: quick, paper or custom")
@_json_option
@_records_option
def claims_command(
    claims: tuple[str, ...],
    dataset: str | None,
    algorithm: str | None,
    scale: str | None,
    as_json: bool,
    folders: tuple[Path, ...],
) -> None:
    """Print a verdict on each claim of the paper.

    CLAIM is one of C1 to C8; the default is all. The ledger is grouped by cell: runs that differ
    only by their seeds. Each row is about one claim. It has the verdict, the effect with its 95 %
    interval, the number of runs, and Holm's p-value. In each cell the worst fit with the paper
    comes first.

    The book's runs, in results/ of a checkout, are judged by themselves. A cell with runs of your
    own is shown once more, marked "yours".
    """
    from metanb.claims import rules, verdicts
    from metanb.claims.paper import BY_NAME

    # Read the book's runs and one's own.
    book, own = _read_apart(folders)
    if not book + own:
        looked_in = ", ".join(map(str, folders or store.record_folders()))
        raise click.ClickException(
            f"no recorded run in {looked_in}: make some with metanb grid quick"
        )

    # Judge all at once: Holm's p-values are those of the whole ledger, whichever rows are shown.
    rows = rules.judge_apart(book, own)
    _report_unjudged(records.keep_furthest(book + own))
    rows = [row for row in rows if row.verdict != verdicts.Verdict.SMOKE]

    # Keep the rows that were asked for.
    wanted = {
        "claim": [_choose("CLAIM", name.upper(), BY_NAME) for name in claims],
        "dataset": dataset and [_choose("--dataset", dataset, {row.dataset for row in rows})],
        "algorithm": algorithm and [_choose("--algorithm", algorithm, ALGORITHMS)],
        "scale": scale and [_choose("--scale", scale, ("quick", "paper", "custom"))],
    }
    for name, values in wanted.items():
        rows = [row for row in rows if not values or getattr(row, name) in values]
    if as_json:
        click.echo(verdicts.rows_as_json(rows))
    elif rows:
        click.echo(verdicts.verdicts_by_cell(rows))
        click.echo("\n" + textwrap.fill(verdicts.HOLM_MEANING, 80))
    else:
        click.echo("no recorded run has such a row", err=True)


@cli.command("predictions")
@_json_option
@_records_option
def predictions_command(as_json: bool, folders: tuple[Path, ...]) -> None:
    """Print a verdict on each prediction about the interventions.

    An intervention changes one thing in meta-training or at meta-test, such as the head that each
    inner loop starts from. Each prediction of chapter 7 of the book was committed before the runs
    that judge it. To train those runs: metanb grid quick --only interventions.

    The book's runs are judged by themselves. A prediction to which runs of your own belong is
    shown once more.
    """
    from metanb.claims import predictions

    book, own = _read_apart(folders)
    rows, own_rows = predictions.judge_predictions_apart(book, own)
    smoke = sum(scale_of(run.settings) == "smoke" for run in records.keep_furthest(book + own))
    if smoke:
        click.echo(f"left out: smoke runs ({smoke}): they only show that the code works", err=True)
    if as_json:
        click.echo(predictions.predictions_as_json(rows, own_rows))
    elif rows + own_rows:
        if rows:
            click.echo(predictions.predictions_in_lines(rows))
        if own_rows:
            click.echo("\nWith runs of your own:\n\n" + predictions.predictions_in_lines(own_rows))
    else:
        raise click.ClickException(
            "no run of an intervention is recorded: make some with "
            "metanb grid quick --only interventions"
        )


def _read_apart(folders: Sequence[Path]) -> tuple[list[records.Record], list[records.Record]]:
    """The records of the book and one's own, in these folders or, if there are none, anywhere."""
    places = [place for place in folders or store.record_folders() if place.is_dir()]
    by_book = [place for place in places if place.resolve() == store.book_folder()]
    own = [place for place in places if place not in by_book]
    return records.read_records(*by_book), records.read_records(*own)


def _report_unjudged(recorded: Sequence[records.Record]) -> None:
    """Say on standard error how many runs are not judged, and why."""
    from metanb.claims import rules

    smoke = sum(scale_of(run.settings) == "smoke" for run in recorded)
    if smoke:
        click.echo(f"left out: smoke runs ({smoke}): they only show that the code works", err=True)
    of_interventions = sum(find_intervention(run.settings) is not None for run in recorded)
    if of_interventions:
        click.echo(
            f"left out: runs of interventions ({of_interventions}): metanb predictions judges them",
            err=True,
        )
    short = sum(
        run.epochs < rules.MIN_EPOCHS
        for run in recorded
        if scale_of(run.settings) != "smoke" and not find_intervention(run.settings)
    )
    if short:
        click.echo(f"left out: runs of fewer than {rules.MIN_EPOCHS} epochs ({short})", err=True)


def _choose(option: str, value: str, choices: Iterable[str]) -> str:
    """The value, if it is one of the choices.

    Raises:
        click.UsageError: it is not; the message lists the choices.
    """
    if value not in choices:
        raise click.UsageError(f"{option} {value!r} is none of {', '.join(sorted(choices))}")
    return value


@cli.command("run")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="set a parameter of the notebook; may be repeated",
)
@click.option(
    "-f",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="a YAML file of parameters, NAME: VALUE per line; -p wins over it",
)
@click.option("-k", "kernel", metavar="NAME", help="the kernel  [default: the notebook's own]")
@click.option(
    "-o",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="the executed notebook's file  "
    "[default: NOTEBOOK's name in the current folder, with -out]",
)
def run_command(
    notebook: Path,
    parameters: tuple[tuple[str, str], ...],
    file: Path | None,
    kernel: str | None,
    output: Path | None,
) -> None:
    """Execute a notebook with parameters of your own.

    Papermill executes a copy; the notebook itself does not change. VALUE is a word, a number or a
    list such as "[0, 1]", and has the type of the notebook's own value.
    """
    try:
        import papermill

        from metanb import notebooks
    except ImportError as error:
        raise click.ClickException(
            "running a notebook needs papermill: pip install 'metanb[book]'"
        ) from error

    # Check kernel and parameters before a kernel starts.
    try:
        content = notebooks.read_notebook(notebook)
        kernel = notebooks.choose_kernel(content, notebook.name, kernel)
        values = notebooks.read_values(content, notebook.name, file, parameters)
    except notebooks.NotebookError as error:
        raise click.UsageError(str(error)) from None

    output = output or Path(f"{notebook.stem}-out.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    # The notebook runs in its own folder, so make relative paths absolute.
    for variable in ("METANB_STORE", "METANB_DATA"):
        if os.environ.get(variable):
            os.environ[variable] = str(Path(os.environ[variable]).expanduser().absolute())
    try:
        notebooks.execute(notebook, output, values, kernel)
    except papermill.PapermillExecutionError as error:
        raise click.ClickException(
            f"{notebook.name}, cell {error.exec_count}: {error.ename}: {error.evalue}; see {output}"
        ) from None
    click.echo(f"executed: {output}")


@cli.command("bench")
@click.option(
    "--unit",
    "units",
    type=click.Choice(bench_units.ALL),
    multiple=True,
    help="only this unit; may be repeated  [default: all; on a CPU all but R1 and R2]",
)
@click.option(
    "--repeats",
    default=7,
    show_default=True,
    type=click.IntRange(min=1),
    help="number of rounds; medians are shown",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="write the result as JSON"
)
def bench_command(units: tuple[str, ...], repeats: int, device: str, output: Path | None) -> None:
    """Time metanb beside `higher` and other libraries.

    The benchmark times meta-gradients and Hessian norms and shows their errors. Its units are:

    U1: Omniglot 5-way 1-shot. U2: the same with 15 query images per class. U3: Omniglot 20-way
    1-shot, 5 steps. U4: mini-ImageNet 5-way 1-shot, 5 steps. H, HR: Hessian norms of the paper's
    network and of a ResNet-18. R1, R2: whole iterations per second of 20-way MAML and of
    first-order MAML on mini-ImageNet, for several runs side by side, and what each feature of the
    engine contributes.

    The other libraries come with the extra `bench`. With `-o bench.json`, the units that are timed
    so far are in bench.part.json until the benchmark ends. Run nothing else on the machine
    meanwhile, and use one thread on a CPU: OMP_NUM_THREADS=1.
    """
    from metanb.bench import benchmark, report
    from metanb.runs.machine import resolve_device

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    torch_device = resolve_device(device)
    on_gpu = torch_device.type == "cuda"
    default = [unit for unit in bench_units.ALL if on_gpu or unit not in bench_units.CELLS]
    # A benchmark takes long. What is timed is kept, and an older result stays until it ends.
    part = output.with_name(f"{output.stem}.part{output.suffix}") if output else None

    def keep(result: dict[str, Any]) -> None:
        if part:
            report.write_result(result, part)

    result = benchmark.run_benchmark(list(units) or default, repeats, torch_device, keep)
    if result["timings"]:
        click.echo(report.timings_table(result).to_string(index=False))
    if result["rates"]:
        click.echo(report.rates_table(result).to_string(index=False))
    click.echo(
        f"best convolution rate: {result['best_gflops']:.0f} GFLOP/s; clock: {result['clock']}"
    )
    if output and part:
        part.replace(output)
        click.echo(f"result: {output}")


@cli.command("measure")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--measure",
    "names",
    multiple=True,
    metavar="NAME",
    help="only this measure; may be repeated  [default: all that a record lacks]",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto")
@_plugin_option
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

    _load_plugins(plugin_files)
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


@cli.group("data")
def data_group() -> None:
    """Check or fetch the image sets."""


@data_group.command("check")
@click.argument("dataset", nargs=-1)
def check_command(dataset: tuple[str, ...]) -> None:
    """Check that image sets are present and whole.

    DATASET is glyphs, omniglot, mini-imagenet or a folder of your own under the data root; the
    default is the first three. The exit code is 1 if one is missing or damaged.
    """
    failed = False
    click.echo(f"data root: {image_sets.data_root()}")
    for name in dataset or DATASETS:
        try:
            click.echo(f"{name}: {image_sets.check_images(name)}")
        except (image_sets.DataError, OSError) as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    sys.exit(1 if failed else 0)


@data_group.command("fetch")
@click.argument("dataset", type=click.Choice(list(DATASETS)))
def fetch_command(dataset: str) -> None:
    """Fetch an image set, if its terms allow."""
    click.echo(f"{dataset}: {image_sets.fetch_images(dataset)}")


def main() -> None:
    """Run the command line; an error that a user can fix is one line and a non-zero exit code."""
    # A scheduler's signal stops the runs of a grid, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A terminal or a file of another encoding gets "?" for a letter that it lacks, such as γ.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "stopped; a run that was training goes on from its last epoch when asked for again",
            err=True,
        )
        sys.exit(130)
    except (RuntimeError, ArithmeticError, ValueError, OSError, MemoryError) as error:
        # metanb's own messages are one line; the first line of torch's says what happened.
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)
