"""One run on disk: a folder of small text files, written all at once, checked when read.

    <id>/settings.json     what was run (metanb.settings.Settings)
    <id>/provenance.json   by whom and where: versions, device, dates, times, data digests
    <id>/measures.csv      one row an epoch and measure: mean, median, std, sem, n; pandas.read_csv opens it

Records stand in two places: `results/` beside the package in a checkout (committed), and the local store.
"""

import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import platformdirs

from metanb.settings import Settings, from_dict

COLUMNS = ["epoch", "iteration", "measure", "mean", "median", "std", "sem", "n"]
PROVENANCE = (
    "metanb code python torch torchvision higher numpy device threads chunk started finished wall_seconds cpu_seconds "
    "resumed data measures_sha256"
).split()


class RecordError(RuntimeError):
    """A record that is torn, foreign or incomplete; the message names the file and the remedy."""


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        settings: what was run.
        measures: columns epoch, iteration, measure, mean, median, std, sem, n; see `metanb.experiment.measure` for the
            measures.
        provenance: versions, device, dates, seconds, data digests.
        path: the record's folder.
    """

    settings: Settings
    measures: pd.DataFrame
    provenance: dict[str, Any]
    path: Path

    def curve(self, measure: str) -> pd.DataFrame:
        """The rows of one measure, indexed by epoch. Raises KeyError, naming the measures there are."""
        rows = self.measures[self.measures.measure == measure]
        if rows.empty:
            raise KeyError(
                f"no measure {measure!r} in {self.path.name}: choose from {', '.join(self.measures.measure.unique())}"
            )
        return rows.set_index("epoch").drop(columns="measure")


def store() -> Path:
    """The local store of runs: METANB_STORE, else a folder in the user's cache."""
    given = os.environ.get("METANB_STORE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("metanb", appauthor=False) / "runs"


def places() -> list[Path]:
    """Where records are looked for, in this order: a checkout's `results/`, then the local store."""
    committed = Path(__file__).resolve().parent.parent / "results"
    return [committed, store()] if committed.is_dir() else [store()]


def find(settings: Settings) -> Record | None:
    """The record of exactly these settings, or None. Raises RecordError if there is one and it is damaged."""
    for place in places():
        if (place / settings.id).is_dir():
            return read(place / settings.id)
    return None


def read(path: Path) -> Record:
    """Read and check the record in a folder. Raises RecordError for anything missing, torn, or belonging elsewhere."""
    try:
        values = json.loads((path / "settings.json").read_text())
        provenance = json.loads((path / "provenance.json").read_text())
        content = (path / "measures.csv").read_bytes()
        if not (isinstance(values, dict) and isinstance(provenance, dict)):
            raise ValueError("settings.json and provenance.json must each hold one object")
        settings = from_dict(values)
    except (OSError, ValueError) as error:  # of which bad UTF-8, bad JSON and a SettingsError are kinds
        raise _damaged(path, str(error)) from error
    if settings.id != path.name:
        raise _damaged(path, f"its settings belong to {settings.id}")
    missing = [name for name in PROVENANCE if name not in provenance]
    if missing:
        raise _damaged(path, f"provenance.json lacks {', '.join(missing)}")
    if hashlib.sha256(content).hexdigest() != provenance["measures_sha256"]:
        raise _damaged(path, "measures.csv is not the file that was recorded")
    measures = pd.read_csv(io.BytesIO(content))
    if list(measures.columns) != COLUMNS or set(measures.epoch) != set(range(settings.epochs + 1)):
        raise _damaged(path, f"measures.csv does not hold {', '.join(COLUMNS)} for epochs 0 to {settings.epochs}")
    return Record(settings, measures, provenance, path)


def read_all(folder: Path) -> list[Record]:
    """All records in a folder, by name. Raises RecordError for a damaged one."""
    return [read(path) for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def write(settings: Settings, rows: list[dict[str, Any]], provenance: dict[str, Any], folder: Path) -> Record:
    """Write a record into `folder`/id, whole or not at all, and read it back.

    Args:
        settings: what was run.
        rows: one dict an epoch and measure, with the keys COLUMNS.
        provenance: all of PROVENANCE but the digest, which is added here.
        folder: where records stand, such as `store()`.

    A record that is there already stays as it is.
    """
    content = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, float_format="%.9g").encode()
    provenance = provenance | {"measures_sha256": hashlib.sha256(content).hexdigest()}
    scratch = folder / f".{settings.id}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        (scratch / "settings.json").write_text(json.dumps(settings.to_dict(), indent=1) + "\n")
        (scratch / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
        (scratch / "measures.csv").write_bytes(content)
        if not (folder / settings.id).is_dir():
            os.rename(scratch, folder / settings.id)  # a folder appears under its name only when it is complete
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return read(folder / settings.id)


def _damaged(path: Path, what: str) -> RecordError:
    return RecordError(f"record {path} is damaged: {what}; delete the folder to train it anew")
