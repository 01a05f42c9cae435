"""Sphinx extension: the reference pages, from the docstrings and from the command line's own help.

The docstrings are written for people who read code: plain text with `names` in backticks, indented
passages to be shown as they are, and Google's sections. This extension turns them into
reStructuredText before napoleon and docutils read them.
"""

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive

from metanb.cli import cli

SECTION = re.compile(r"(Args|Attributes|Example|Raises|Returns|Yields):$")
WIDTH = 80  # of a terminal


def to_restructured_text(lines: list[str]) -> list[str]:
    """Turn a docstring's lines into reStructuredText.

    Indented passages, and examples, are shown as they are. Elsewhere backticks alone are markup.
    """
    converted: list[str] = []
    section = ""
    verbatim = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            heading = SECTION.match(line)
            section = heading[1] if heading else ""
            verbatim = False
        # An indented passage begins after an empty line, outside the sections.
        if indented and not section and not verbatim and i and not lines[i - 1]:
            converted += [".. code-block:: none", ""]
            verbatim = True
        is_code = verbatim or (indented and section == "Example")
        converted.append(line if is_code else _escape(line))
    return converted


def _escape(line: str) -> str:
    """Escape every mark but backticks; `names` become code."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[2::2] = [rf"\ {part}" if part[:1].isalnum() else part for part in parts[2::2]]  # `name`s
    return "``".join(parts)


def rewrite_docstring(
    app: Any, kind: str, name: str, documented: Any, options: Any, lines: list[str]
) -> None:
    """Autodoc's event `autodoc-process-docstring`, before napoleon's."""
    lines[:] = to_restructured_text(lines)
    if kind != "class" or not is_dataclass(documented):
        return
    # The command line shows the same meanings.
    attributes = [
        f"    {field.name}: {_escape(field.metadata['help'])} (default: {field.default})"
        for field in fields(documented)
        if "help" in field.metadata
    ]
    if attributes:
        lines += ["", "Attributes:", *attributes]


def shorten_signature(app: Any, kind: str, name: str, *_: Any) -> tuple[str, None] | None:
    """Autodoc's event `autodoc-process-signature`: the fields of Settings are listed below it."""
    is_settings = kind == "class" and name == "metanb.settings.Settings"
    return ("(**settings)", None) if is_settings else None


def skip_undocumented_field(
    app: Any, kind: str, name: str, member: Any, skipped: bool, options: Any
) -> bool | None:
    """Autodoc's event `autodoc-skip-member`: skip a named tuple's field without a comment."""
    docstring = inspect.getdoc(member) or ""
    return True if docstring.startswith("Alias for field number") else None


class Help(Directive):
    """`{help} train` shows the output of `metanb train --help`."""

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
    app.connect("autodoc-process-docstring", rewrite_docstring, priority=100)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-skip-member", skip_undocumented_field)
    app.add_directive("help", Help)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
