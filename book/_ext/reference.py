"""Sphinx extension: the reference pages, from the docstrings and from the command line's own help.

The docstrings are written for people who read code: plain text with `names` in backticks, indented
passages to be shown as they stand, and Google's sections. Before napoleon and docutils see them,
this makes proper reStructuredText of them.
"""

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive

from metanb.cli import cli

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
WIDTH = 80  # of a terminal


def restructured(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText: indented passages as they stand, other marks than backticks as text."""
    found: list[str] = []
    verbatim = in_section = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            verbatim, in_section = False, bool(SECTION.match(line))
        if indented and not in_section and not verbatim and i and not lines[i - 1]:
            found += [".. code-block:: none", ""]
            verbatim = True
        found.append(line if verbatim else _escaped(line))
    return found


def _escaped(line: str) -> str:
    """The line with every mark but backticks taken as text; `names` as code."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[2::2] = [rf"\ {part}" if part[:1].isalnum() else part for part in parts[2::2]]  # `name`s
    return "``".join(parts)


def docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Autodoc's event `autodoc-process-docstring`, before napoleon's."""
    lines[:] = restructured(lines)
    if what == "class" and is_dataclass(thing):  # the meanings that the command line shows, too
        told = [
            f"    {field.name}: {_escaped(field.metadata['help'])} (default: {field.default})"
            for field in fields(thing)
            if "help" in field.metadata
        ]
        lines += ["", "Attributes:", *told] if told else []


def signature(app: Any, what: str, name: str, thing: Any, *others: Any) -> tuple[str, None] | None:
    """Autodoc's event `autodoc-process-signature`: a class whose fields are told one by one needs them but once."""
    return (
        ("(**settings)", None) if what == "class" and name == "metanb.settings.Settings" else None
    )


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Autodoc's event `autodoc-skip-member`: a field of a named tuple without a comment says nothing."""
    return True if (inspect.getdoc(thing) or "").startswith("Alias for field number") else None


class Help(Directive):
    """`{help} train` shows what `metanb train --help` prints."""

    optional_arguments = 10

    def run(self) -> list[nodes.Node]:
        """The help text as a terminal shows it."""
        command: click.Command = cli
        context = click.Context(
            cli, info_name="metanb", terminal_width=WIDTH, **cli.context_settings
        )
        for name in self.arguments:
            if not (isinstance(command, click.Group) and name in command.commands):
                raise self.error(f"metanb has no command {' '.join(self.arguments)!r}")
            command = command.commands[name]
            context = click.Context(command, context, info_name=name, terminal_width=WIDTH)
        text = command.get_help(context)
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", docstring, priority=100)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.add_directive("help", Help)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
