"""The command line: `metanb train`, `grid`, `claims`, `run`, `bench`, `data`."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO, get_args

import click

from metanb.bench import timing
from metanb.data import image_sets
from metanb.files import DiskError
from metanb.grids import progress
from metanb.runs import store
from metanb.settings import CHOICES, RANGES, Dataset, Scale, Settings, from_dict, preset

MEASURES = (
    "query_accuracy",
    "hessian_norm",
    "support_loss",
    "distance",
    "trajectory_coherence",
    "gradient_coherence",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metanb")
def cli() -> None:
    """Gradient-based meta-learning and the landscape it finds: train, measure, run the notebooks."""


def _settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for every setting; one that is left out takes the scale's value."""
    for field in reversed(fields(Settings)):
        flag, meaning = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if isinstance(field.default, bool):
            option = click.option(f"{flag}/--no-{flag[2:]}", default=None, help=meaning)
        elif field.name in CHOICES:
            option = click.option(flag, type=click.Choice(CHOICES[field.name]), help=meaning)
        else:
            low, high = RANGES[field.name]
            option = click.option(
                flag, type=type(field.default), help=f"{meaning} [{low:,} to {high:,}]"
            )
        command = option(command)
    return command


@cli.command()
@click.option(
    "--scale",
    type=click.Choice(get_args(Scale)),
    help="smoke: seconds; quick: minutes on a CPU core; paper: the paper's own, hours on a GPU  "
    "[default: smoke]",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, or auto: a GPU where there is one",
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
    help="a file with a run's settings.json, or a JSON list of such; -: standard input",
)
@click.option(
    "--together",
    metavar="RUNS",
    type=click.IntRange(min=1),
    help="train so many at once that differ by seeds alone  [default: 10 on a GPU, 1 on a CPU]",
)
@_settings_options
def train(
    scale: Scale | None,
    device: str,
    until: int | None,
    file: TextIO | None,
    together: int | None,
    **options: Any,
) -> None:
    """Train one run, or several, and record them; one that was interrupted goes on, one that is recorded is read."""
    # torch and higher are slow to import: only where they are used
    from metanb.runs.experiment import run_all

    given = {name: value for name, value in options.items() if value is not None}
    if file and (beside := sorted(given) + ["scale"] * bool(scale)):
        raise click.UsageError(
            f"--runs names every setting: leave out --{beside[0].replace('_', '-')}"
        )
    chosen = (
        _read_runs(file) if file else [preset(scale or "smoke", **({"dataset": "glyphs"} | given))]
    )
    for settings in chosen:
        click.echo(
            f"run {settings.id}: {settings.iterations} iterations, {settings.epochs} epochs",
            err=True,
        )
    for record in run_all(chosen, device, until, together):
        table = record.measures.pivot(index="epoch", columns="measure", values="mean")[
            list(MEASURES)
        ]
        click.echo(table.iloc[[0, -1]].to_string(float_format="%.4g"))
        click.echo(f"record: {record.path}")


def _read_runs(file: TextIO) -> list[Settings]:
    """The settings in a file, one run's or a list. Raises UsageError for a file that holds none."""
    try:
        values = json.load(file)
        runs = values if isinstance(values, list) else [values]
        if not runs or not all(isinstance(run, dict) for run in runs):
            raise ValueError("it holds no settings")
    except ValueError as error:  # bad JSON and bad UTF-8, too
        raise click.UsageError(
            f"--runs {file.name}: {error}: give a record's settings.json, or a JSON list of such"
        ) from None
    return [from_dict(run) for run in runs]


@cli.command()
@click.argument("name", metavar="GRID", type=click.Choice(["smoke", "quick", "paper"]))
@click.option(
    "--list",
    "only_list",
    is_flag=True,
    help="list the runs, what is recorded, and the time they take",
)
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    help="runs whose group or id matches, as in 'base' or '*-5w1s-*'; repeated: in that order",
)
@click.option(
    "--processes", type=click.IntRange(min=1), help="at a time  [default: 2 on a CPU, 1 on a GPU]"
)
@click.option(
    "--together",
    metavar="RUNS",
    type=click.IntRange(min=1),
    help="runs in a batch, which differ by seeds alone  [default: 10 on a GPU, 1 on a CPU]",
)
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
    help="stop then, and record the runs in progress as far as they got; 0: run nothing",
)
@click.option(
    "--import",
    "archives",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="first take over what an archive, or a folder of archives, holds",
)
@click.option(
    "--keep-weights",
    is_flag=True,
    help="at the end keep the trained weights of one run per cell of group 'base' beside "
    "its record in the store; to publish them, copy the record's folder",
)
@click.option(
    "--export",
    type=click.Path(file_okay=False, path_type=Path),
    help="at the end pack the store's records, kept weights and unfinished checkpoints "
    "into a folder",
)
def grid(
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
    """Run whatever is missing of a grid: all the runs that the book's results of one scale rest on."""
    from metanb.grids import definitions as grids
    from metanb.grids import hours, runner

    if only_list and (export or keep_weights):
        raise click.UsageError("--list only looks: to keep or pack, give --budget 0 in its place")
    together = together or runner.together_on(device)
    processes = processes or (1 if runner.together_on(device) > 1 else 2)
    planned = grids.select_runs(grids.GRIDS[name](), *only)
    plain = [one.settings for one in planned if one.group == "base"]
    if keep_weights and not plain:
        raise click.UsageError("--keep-weights is for runs of group 'base': --only leaves none")
    if archives or export or keep_weights:
        from metanb.runs import archive, weights

    for path in archives:
        for file in sorted(path.glob("*.zip")) if path.is_dir() else [path]:
            for line in archive.unpack_runs(file):
                click.echo(f"imported: {line}")
    if only_list:
        recorded = progress.find_recorded(planned)
        missing = progress.find_missing(planned, recorded, until)
        timings = hours.Timings(hours.recorded_anywhere())
        kind = timings.kind_here(device)
        at_a_time = processes if kind == hours.CORE else processes * together
        left = timings.left(missing, recorded, kind, at_a_time, until).in_words(at_a_time)
        rows = progress.grid_table(planned, recorded, timings, kind, at_a_time)
        click.echo(rows.to_string(index=False))
        total = f"{len(planned)} runs, {len(planned) - len(missing)} recorded"
        click.echo(f"{total}; the others take {left}" if missing else f"{total}, which is all")
        return
    failed = (
        runner.run_grid(planned, processes, device, click.echo, budget, until, together)
        if budget
        else []
    )
    if keep_weights:
        for line in weights.keep_one_per_cell(plain):
            click.echo(line)
    if export:
        for path in archive.pack_runs([one.settings for one in planned], export, name):
            click.echo(f"exported: {path}")
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(planned)} runs failed: {'; '.join(failed)}"
        )


@cli.command()
@click.option(
    "--json", "machines", is_flag=True, help="for machines: a list of objects, with all details"
)
@click.option(
    "--records",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folders of records  [default: results/ of a checkout, and the local store]",
)
def claims(machines: bool, folders: tuple[Path, ...]) -> None:
    """Print the ledger: each claim of the paper on each cell of recorded runs, with its effect and its verdict."""
    from metanb.claims import rules, verdicts
    from metanb.runs import records

    places = folders or tuple(store.record_folders())
    found = records.read_records(*(place for place in places if place.is_dir()))
    if not found:
        raise click.ClickException(
            f"no recorded run in {', '.join(map(str, places))}: make some with metanb grid quick"
        )
    rows = rules.judge(found)
    if short := sum(run.epochs < rules.MIN_EPOCHS for run in found):
        click.echo(f"left out: {short} runs of fewer than {rules.MIN_EPOCHS} epochs", err=True)
    if machines:
        click.echo(verdicts.rows_as_json(rows))
        return
    click.echo(verdicts.verdict_table(rows, corrected=True).to_string(index=False))
    click.echo(verdicts.HOLM_MEANING)


@cli.command(name="run")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="set a parameter of the notebook",
)
@click.option(
    "-o",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="where the executed notebook goes  "
    "[default: NOTEBOOK's name in the current folder, with -out]",
)
def run_notebook(
    notebook: Path, parameters: tuple[tuple[str, str], ...], output: Path | None
) -> None:
    """Execute a notebook through papermill, with other parameters than its own."""
    try:
        import papermill
        import yaml
        from papermill.inspection import inspect_notebook
    except ImportError as error:
        raise click.ClickException(
            "running a notebook needs papermill: pip install 'metanb[book]'"
        ) from error

    known = inspect_notebook(str(notebook))
    for name, _ in parameters:
        if name not in known:
            raise click.UsageError(
                f"{notebook.name} has no parameter {name!r}: choose from {', '.join(known)}"
            )
    output = output or Path(f"{notebook.stem}-out.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    values = {}
    for name, value in parameters:
        try:
            values[name] = yaml.safe_load(value)  # "[0, 1]" is a list, "3" a number
        except yaml.YAMLError:
            raise click.UsageError(
                f"{name}={value!r} cannot be read: write a word, a number or a [list]"
            ) from None
    for name in ("METANB_STORE", "METANB_DATA"):  # the notebook runs in its own folder
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().absolute())
    try:
        papermill.execute_notebook(
            str(notebook), str(output), parameters=values, cwd=str(notebook.parent)
        )
    except papermill.PapermillExecutionError as error:
        raise click.ClickException(
            f"{notebook.name}, cell {error.exec_count}: {error.ename}: {error.evalue}; see {output}"
        ) from None
    click.echo(f"executed: {output}")


@cli.command()
@click.option(
    "--unit",
    "units",
    type=click.Choice(["U1", "U2", "U3", "U4", "H", "R1", "R2"]),
    multiple=True,
    help="default: all; R1 and R2 on a GPU alone",
)
@click.option(
    "--repeats",
    default=7,
    show_default=True,
    type=click.IntRange(min=1),
    help="rounds; medians are shown",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="write the result as JSON"
)
def bench(units: tuple[str, ...], repeats: int, device: str, output: Path | None) -> None:
    """Time the meta-gradient and the Hessian norm against plain higher and other libraries, errors beside times.

    U1: Omniglot 5-way 1-shot. U2: the same with 15 query images a class. U3: Omniglot 20-way
    1-shot, 5 steps. U4: mini-ImageNet 5-way 1-shot, 5 steps. H: Hessian norms of 16 tasks. Peers
    come with the extra `bench`. R1 and R2: whole iterations per second of 20-way MAML and of
    first-order MAML on mini-ImageNet, for several runs side by side, and what each of the engine's
    features brings. Keep the machine quiet; on a CPU give one thread: OMP_NUM_THREADS=1.
    """
    from metanb.bench import report as benchmark
    from metanb.bench.throughput import CELLS
    from metanb.runs.machine import resolve_device

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    where = resolve_device(device)
    cells = CELLS if where.type == "cuda" else ()
    result = benchmark.run_benchmark(list(units) or [*timing.UNITS, "H", *cells], repeats, where)
    if result["timings"]:
        click.echo(benchmark.timings_table(result).to_string(index=False))
    if result["rates"]:
        click.echo(benchmark.rates_table(result).to_string(index=False))
    click.echo(
        f"best convolution rate: {result['best_gflops']:.0f} GFLOP/s; clock: {result['clock']}"
    )
    if output:
        benchmark.write_result(result, output)
        click.echo(f"result: {output}")


@cli.group()
def data() -> None:
    """The image sets: where they are, whether they are whole."""


@data.command()
@click.argument("dataset", nargs=-1, type=click.Choice(get_args(Dataset)))
def check(dataset: tuple[Dataset, ...]) -> None:
    """Check image sets, all of them when none is named; one that is not there makes the exit code 1."""
    failed = False
    click.echo(f"data root: {image_sets.data_root()}")
    for name in dataset or get_args(Dataset):
        try:
            click.echo(f"{name}: {image_sets.check_images(name)}")
        except (image_sets.DataError, DiskError) as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    sys.exit(1 if failed else 0)


@data.command()
@click.argument("dataset", type=click.Choice(get_args(Dataset)))
def fetch(dataset: Dataset) -> None:
    """Fetch an image set, as far as its terms allow."""
    click.echo(f"{dataset}: {image_sets.fetch_images(dataset)}")


def main() -> None:
    """Entry point: every error that a user can mend is one line and a non-zero exit."""
    # as Ctrl-C: a grid stops its runs, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    # Ours say all in one line, torch's go on.
    except (RuntimeError, ArithmeticError, ValueError, OSError, MemoryError) as error:
        click.echo(
            f"Error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", err=True
        )
        sys.exit(1)
