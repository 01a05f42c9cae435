"""The command line: a module per command, and `main`, which runs it.

Modules that import torch take seconds to load, so each command imports what it needs.
"""

import signal
import sys

import click

from metanb.cli.bench import bench_command
from metanb.cli.claims import claims_command, predictions_command
from metanb.cli.data import data_group
from metanb.cli.grid import grid_command
from metanb.cli.measure import measure_command
from metanb.cli.options import Group
from metanb.cli.run import run_command
from metanb.cli.train import train_command
from metanb.runs.plugins import find_line

# errors that a user can mend, by their message
_EXPECTED = (RuntimeError, ArithmeticError, ValueError, OSError, MemoryError)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metanb")
def cli() -> None:
    """Train, measure and judge gradient-based meta-learning, and run the book's notebooks."""


for command in (
    train_command,
    grid_command,
    claims_command,
    predictions_command,
    run_command,
    bench_command,
    measure_command,
    data_group,
):
    cli.add_command(command)


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
    except Exception as error:
        line_of_plugin = find_line(error)
        if not line_of_plugin and not isinstance(error, _EXPECTED):
            raise  # a fault of metanb: its traceback says where
        # metanb's own messages are one line; the first line of torch's says what happened.
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if line_of_plugin:
            message = f"plugin {line_of_plugin}: {type(error).__name__}: {message}"
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)
