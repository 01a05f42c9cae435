"""Files that are whole or absent, and locks: everything that metanb keeps is written here."""

import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

SCRATCH_ENDING = re.compile(r"\.metanb-(\d+)")  # with the number of the process that writes


class DiskError(OSError):
    """A file cannot be written; the message names it, the reason and the remedy."""


class LockedError(Timeout):
    """A lock stays held; the message says what is locked, how long was waited and the remedy.

    Args:
        lock_file: its path.
        message: a copy by pickle gets it after its creation, as `filelock.Timeout` has it.
    """

    def __init__(self, lock_file: str, message: str = "") -> None:
        super().__init__(lock_file)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any OSError in the block into a DiskError that names the path."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(
            f"cannot write {path} ({error.strerror or error}): make room, or name another folder "
            "(for runs METANB_STORE, for images METANB_DATA); existing files are intact"
        ) from error


def parse_json(content: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises ValueError for bad JSON, bad UTF-8, and lists or objects that are nested too deeply.

    Example:
        >>> parse_json(b"[1, 2]")
        [1, 2]
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: lists or objects are nested too deeply
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk.

    If the file is renamed after that, it is whole even after a power cut.
    """
    with open(path, "wb") as stream:
        stream.write(content)
        _sync(stream)


def scratch_path(path: Path) -> Path:
    """Return where this process writes what is to become the file `path`: a hidden file beside it.

    Scratch files of `path` that killed processes left are removed. Those of running processes stay:
    of two that write one path at a time, the later one decides.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.metanb-*"):
        ending = SCRATCH_ENDING.fullmatch(leftover.suffix)
        if ending and not _is_running(int(ending[1])):
            leftover.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.metanb-{os.getpid()}")


def _is_running(process: int) -> bool:
    """Whether a process of this number is running on this machine."""
    try:
        os.kill(process, 0)  # no signal: only whether there is one to get it
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces the file `path` when the block ends.

    A killed process, or an error in the block, leaves the old file or the new one, never a part.
    What depends on the old content is written under a lock, which the caller holds.

    Raises:
        DiskError: the content cannot be written; the old file stays.
    """
    scratch = scratch_path(path)
    try:
        with writing(path):
            with open(scratch, "wb") as stream:
                yield stream
                _sync(stream)
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def replace(path: Path, content: bytes) -> None:
    """Replace a file as a whole, as `replacing` does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "notes.txt"
        ...     replace(path, b"first")
        ...     replace(path, b"second")
        ...     path.read_bytes()
        b'second'
    """
    with replacing(path) as stream:
        stream.write(content)


def replace_all(contents: Mapping[Path, bytes]) -> None:
    """Replace several files, each as a whole, and none of them unless all can be written.

    Args:
        contents: of the files, by path.

    Raises:
        DiskError: a content cannot be written; all old files stay.
    """
    with ExitStack() as stack:  # at its end the files are replaced, and until then none of them is
        for path, content in contents.items():
            stream = stack.enter_context(replacing(path))
            with writing(path):
                stream.write(content)
                _sync(stream)


@contextmanager
def locked(path: Path, name: str, patience: float = -1) -> Iterator[None]:
    """Hold a lock; while another process holds it, wait and say so on standard error.

    A process that ends, in whatever way, frees its locks.

    Args:
        path: the lock file; its folder is made if it is missing.
        name: of the locked thing, for the message.
        patience: seconds to wait; -1: without end.

    Raises:
        DiskError: the lock file cannot be written.
        LockedError: the lock is still held after `patience` seconds.
    """
    lock = FileLock(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    if not lock.is_locked:
        print(f"waiting for {name}: another process is using it", file=sys.stderr)
        try:
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise LockedError(
                error.lock_file,
                f"{name} is still in use by another process after {patience:g} s of waiting: try "
                "again when that process has ended",
            ) from error
    try:
        yield
    finally:
        lock.release()


def _sync(stream: BinaryIO) -> None:
    """Wait until what was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())
