"""The command line in processes of its own, to be stopped and killed.

They are forked from one process that has loaded torch, which takes seconds of each otherwise.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metanb.cli import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["metanb.cli", "metanb.runs.experiment", "torch._dynamo"])


class Process:
    """`metanb` with some arguments, which runs from now on.

    Args:
        store: METANB_STORE; the other variables are those of this process.
        arguments: of the command line.
        terminal: the path of a terminal that is its standard error; None: a file.
    """

    def __init__(self, store: Path, *arguments: Any, terminal: str | None = None) -> None:
        self._folder = TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("out", "err")]
        for stream in self._streams:
            stream.touch()
        if terminal is not None:
            self._streams[1] = Path(terminal)
        environment = os.environ | {"METANB_STORE": str(store)}
        options = (environment, self._streams, list(map(str, arguments)))
        self._process = _context.Process(target=_run, args=options, daemon=True)
        self._process.start()

    @property
    def out(self) -> str:
        """Standard output, so far."""
        return self._streams[0].read_text()

    @property
    def err(self) -> str:
        """Standard error, so far, where it is a file."""
        return self._streams[1].read_text()

    def poll(self) -> int | None:
        """The exit code; None before the end, and the signal's number below 0 after a kill."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """The exit code, at the end."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, such as SIGKILL, to the process."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _run(environment: dict[str, str], streams: list[Path], arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY), number)
    sys.argv = ["metanb", *arguments]
    main()
