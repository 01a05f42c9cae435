"""`metanb run`: execute a notebook with parameters."""

import os
from pathlib import Path

import click

from metanb.cli.options import Command


@click.command("run", cls=Command)
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
