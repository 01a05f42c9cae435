"""Where runs lie on this machine: the store, a checkout's results/, checkpoints and locks."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import platformdirs

from metanb import files


def store_folder() -> Path:
    """The local store of runs: METANB_STORE, else a folder in the user's cache."""
    given = os.environ.get("METANB_STORE")
    return (
        Path(given).expanduser()
        if given
        else platformdirs.user_cache_path("metanb", appauthor=False) / "runs"
    )


def checkpoint_path(run_id: str) -> Path:
    """Where the store keeps the checkpoint of a run, finished or not."""
    return store_folder() / f"{run_id}.pt"


def lock_run(run_id: str, patience: float = -1) -> AbstractContextManager[None]:
    """Keeps two processes off one run, as `metanb.files.locked` does;

    the store is made if it is not there.
    """
    return files.locked(store_folder() / f"{run_id}.lock", f"run {run_id}", patience)


def record_folders() -> list[Path]:
    """Where records are looked for, in this order:

    a checkout's `results/`, then the local store.
    """
    committed = Path(__file__).resolve().parents[2] / "results"
    return [committed, store_folder()] if committed.is_dir() else [store_folder()]


def run_of(name: str) -> str:
    """The id of the run that a record's folder, or a checkpoint, is named after."""
    return name.partition("-to-")[0]
