"""Where runs are kept on this machine: the local store and a checkout's `results/`.

Everything about a run is named after its id, see `metanb.settings.Settings.id`:

    results/<id>/            its record, committed; in a checkout alone
    METANB_STORE/<id>/       its record in the local store (metanb.runs.records)
    METANB_STORE/<id>.pt     its checkpoint, finished or not (metanb.runs.checkpoint)
    METANB_STORE/<id>.lock   held by the process that trains it or writes its files
"""

import os
import re
from contextlib import AbstractContextManager
from pathlib import Path

import platformdirs

from metanb import files


def store_folder() -> Path:
    """The local store of runs: METANB_STORE, or else a folder in the user's cache.

    The folder need not exist.
    """
    folder = os.environ.get("METANB_STORE")
    if folder:
        return Path(folder).expanduser()
    return platformdirs.user_cache_path("metanb", appauthor=False) / "runs"


def record_folders() -> list[Path]:
    """The folders where records are looked for: a checkout's `results/`, then the local store.

    The first is absent from the list outside of a checkout; the second need not exist.
    """
    committed = book_folder()
    return [committed, store_folder()] if committed.is_dir() else [store_folder()]


def book_folder() -> Path:
    """The folder of the book's records, a checkout's `results/`; outside of one it is not there."""
    return Path(__file__).resolve().parents[2] / "results"


def checkpoint_path(run_id: str) -> Path:
    """The path of a run's checkpoint in the local store, whether or not the file exists."""
    return store_folder() / f"{run_id}.pt"


def lock_run(run_id: str, patience: float = -1) -> AbstractContextManager[None]:
    """Hold the lock of a run, which keeps other processes from training or writing it.

    The store is made if it is missing. If another process holds the lock, a line on standard error
    says so.

    Args:
        run_id: id of the run, or the name of a portrait.
        patience: seconds to wait for another process; -1: without end.

    Raises:
        metanb.files.DiskError: the store cannot be written.
        metanb.files.LockedError: the lock is still held after `patience` seconds.
    """
    return files.locked(store_folder() / f"{run_id}.lock", f"run {run_id}", patience)


def run_of(name: str) -> str:
    """The id of the run that a record's folder or a checkpoint is named after.

    Args:
        name: a run's id, or <id>-to-<iterations> of a run that was stopped.

    Example:
        >>> run_of("apple-to-orange-5w1s-maml-s0-6effa944-to-30")  # the data set is one's own
        'apple-to-orange-5w1s-maml-s0-6effa944'
    """
    return re.sub(r"-to-\d+$", "", name)
