"""What commands share: their class, and options that more than one of them has."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import click

from metanb.settings import CHOICES, RANGES, Settings


class Command(click.Command):
    """A command whose summary is never cut in the list of commands."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first line of the docstring, whole; click would cut it."""
        return (self.help or "").strip().partition("\n")[0]


class Group(Command, click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


def add_settings_options(command: Callable[..., None]) -> Callable[..., None]:
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


together_option = click.option(
    "--together",
    metavar="RUNS",
    type=click.IntRange(min=1),
    help="number of runs, differing only by seed, that train as one batch  "
    "[default: 10 on a GPU, 1 on a CPU]",
)


plugin_option = click.option(
    "--plugin",
    "plugin_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="first run a Python file of your own that registers measures, networks or "
    "algorithms; may be repeated",
)


def load_plugins(files: Sequence[Path]) -> None:
    """Run Python files that register measures, networks or algorithms."""
    from metanb.runs.plugins import load_plugin

    for file in files:
        load_plugin(file)
