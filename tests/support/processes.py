"""The command line in processes of its own, to be stopped and killed.

They are forked from one process that has loaded torch, which takes seconds of each otherwise;
so are the kernels of notebooks (`tests.support.kernels`).
"""

import gc
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metanb.cli import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "metanb.cli",
        "metanb.notebooks",
        "metanb.runs.experiment",
        "torch._dynamo",
        "metanb.figures.runs",
        "scipy.stats",
        "ipykernel.kernelapp",
    ]
)


class Forked:
    """A forked process that runs from now on, with the methods of `subprocess.Popen`.

    Args:
        target: what it runs.
        arguments: of `target`.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._process = _context.Process(target=_begin, args=(target, *arguments), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code; None before the end, and the signal's number below 0 after a kill."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """The exit code, at the end."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, such as SIGKILL, to the process."""
        os.kill(self.pid, number)


class Process(Forked):
    """`metanb` with some arguments.

    Args:
        store: METANB_STORE; the other variables are those of this process.
        arguments: of the command line.
        text: what it finds on standard input.
        terminal: the path of a terminal that is its standard error; None: a file.
        room: bytes of memory that it may take for itself, where Linux counts them; None: any.
    """

    def __init__(
        self,
        store: Path,
        *arguments: Any,
        text: str = "",
        terminal: str | None = None,
        room: int | None = None,
    ) -> None:
        self._folder = TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("in", "out", "err")]
        for stream, content in zip(self._streams, (text, "", ""), strict=True):
            stream.write_text(content)
        if terminal is not None:
            self._streams[2] = Path(terminal)
        environment = os.environ | {"METANB_STORE": str(store)}
        super().__init__(_run, environment, self._streams, list(map(str, arguments)), room)

    @property
    def out(self) -> str:
        """Standard output, so far."""
        return self._streams[1].read_text()

    @property
    def err(self) -> str:
        """Standard error, so far, where it is a file."""
        return self._streams[2].read_text()


class Child:
    """Stands for `subprocess.Popen` where metanb starts itself: a forked process instead.

    Args:
        command: begins with `python -m metanb`.
        env: the variables, METANB_STORE among them.
    """

    returncode: int | None = None

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        self._store = Path(env["METANB_STORE"])
        self._arguments = command[3:]
        self._process: Process | None = None

    def communicate(self, text: str | None = None) -> tuple[None, str]:
        """Run from now to the end; nothing of standard output, and the standard error."""
        self._process = Process(self._store, *self._arguments, text=text or "")
        self.returncode = self._process.wait()
        return None, self._process.err

    def terminate(self) -> None:
        """Send SIGTERM, if it has begun and has not ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


def _begin(target: Callable[..., None], *arguments: Any) -> None:
    gc.freeze()  # what was loaded before the fork is no garbage
    target(*arguments)


def _run(
    environment: dict[str, str], streams: list[Path], arguments: list[str], room: int | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_WRONLY if number else os.O_RDONLY), number)
    sys.stdin = open(0)
    if room is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = ["metanb", *arguments]
    main()
