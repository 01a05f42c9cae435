"""Files that are whole or not there, and a lock that says what it waits for: what runs share on disk."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


class DiskError(OSError):
    """Something cannot be written; the message names it, the reason and the remedy."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises DiskError, which names the path, for any OSError inside."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cannot write {path} ({error.strerror or error}): make room, or name another folder "
            "(for runs: METANB_STORE); what was there is whole"
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write a file and see it on the disk: whatever is renamed after that is whole after a power cut, too."""
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def replace(path: Path, content: bytes) -> None:
    """Write a file at once: a kill leaves the old one or the new one. The caller holds the lock.

    Raises DiskError if that cannot be; the old one stays.
    """
    scratch = path.with_suffix(f".{os.getpid()}")
    for left in path.parent.glob(f"{path.stem}.[0-9]*"):  # by a process that was killed while it wrote
        if left.suffix[1:].isdigit():
            left.unlink(missing_ok=True)
    try:
        with writing(path):
            write(scratch, content)
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, what: str, patience: float = -1) -> Iterator[None]:
    """One process at a time; the others wait, and say on standard error for what.

    Args:
        path: the lock file; its folder is made if it is not there. A process that ends in any way leaves it unlocked.
        what: is locked, in words.
        patience: seconds to wait; -1 is for ever.

    Raises:
        DiskError: the lock file cannot be written.
        filelock.Timeout: patience is at an end.
    """
    lock = FileLock(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    if not lock.is_locked:
        print(f"waiting for {what}: another process is at it", file=sys.stderr)
        lock.acquire(timeout=patience)
    try:
        yield
    finally:
        lock.release()
