"""The command line, called as its user does."""

import sys

from metanb.cli import main


def call(capsys, monkeypatch, *arguments):
    """Exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["metanb", *map(str, arguments)])
    try:
        code = main() or 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err
