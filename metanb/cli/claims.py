"""`metanb claims` and `metanb predictions`: verdicts on recorded runs."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from metanb.cli.options import Command
from metanb.grids.interventions import find_intervention
from metanb.labels import ALGORITHMS
from metanb.runs import records, store
from metanb.settings import scale_of

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


@click.command("claims", cls=Command)
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


@click.command("predictions", cls=Command)
@_json_option
@_records_option
def predictions_command(as_json: bool, folders: tuple[Path, ...]) -> None:
    """Print a verdict on each prediction about the interventions.

    An intervention changes one thing in meta-training or at meta-test, such as the head that each
    inner loop starts from. Each prediction was committed before the runs that judge it; chapter 8
    of the book has them all. To train those runs: metanb grid quick --only interventions.

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


def _choose(option: str, value: str, choices: Collection[str]) -> str:
    """The value, if it is one of the choices.

    Raises:
        click.UsageError: it is not; the message lists the choices.
    """
    if not choices:
        raise click.UsageError(f"{option} {value!r} has nothing to choose from: no run is judged")
    if value not in choices:
        raise click.UsageError(f"{option} {value!r} is none of {', '.join(sorted(choices))}")
    return value
