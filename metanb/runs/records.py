"""One run on disk: a folder of small files, written all at once, checked when read.

    <id>/settings.json     what was run (metanb.settings.Settings)
    <id>/provenance.json   by whom and where: versions, device, dates, times, data digests
    <id>/measures.csv      one row an epoch and measure: mean, median, std, sem, n; pandas.read_csv opens it
    <id>/weights.safetensors   of some runs: the trained weights (metanb.runs.weights)

The folder of a run that was stopped is <id>-to-<iterations>: it holds the epochs that were reached.
Records stand in two places: `results/` beside the package in a checkout (committed), and the local
store.
"""

import hashlib
import io
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from metanb import files
from metanb.runs import store
from metanb.runs.store import checkpoint_path, run_of
from metanb.settings import Settings, from_dict

FILES = ("settings.json", "provenance.json", "measures.csv")
WEIGHTS = "weights.safetensors"  # beside them, for some runs
COLUMNS = ["epoch", "iteration", "measure", "mean", "median", "std", "sem", "n"]
PROVENANCE = (
    "metanb code python torch torchvision higher numpy device threads chunk started finished wall_seconds cpu_seconds "
    "resumed data measures_sha256"
).split()


class RecordError(RuntimeError):
    """A record that is torn, foreign or incomplete; the message names the file and the remedy."""


@dataclass(frozen=True)
class Record:
    """A run, finished or as far as it got.

    Attributes:
        settings: what was run.
        measures: columns epoch, iteration, measure, mean, median, std, sem, n; see
            `metanb.landscape.measures.measure` for the measures.
        provenance: versions, device, dates, seconds, data digests.
        path: the record's folder.
    """

    settings: Settings
    measures: pd.DataFrame
    provenance: dict[str, Any]
    path: Path

    @property
    def epochs(self) -> int:
        """The last epoch that was measured."""
        return int(self.measures.epoch.max())

    @property
    def iterations(self) -> int:
        """The meta-training iterations behind it."""
        return self.epochs * self.settings.epoch_iterations

    @property
    def finished(self) -> bool:
        """Whether that is the settings' last one."""
        return self.epochs == self.settings.epochs

    @property
    def anew(self) -> str:
        """What to do to have the run trained anew;

        from its checkpoint alone the same rows would be written again.
        """
        return f"delete the folder and {checkpoint_path(self.settings.id)} to train it anew"

    def upto(self, epochs: int) -> "Record":
        """The record as it was after that epoch."""
        return (
            self
            if epochs >= self.epochs
            else replace(self, measures=self.measures[self.measures.epoch <= epochs])
        )

    def curve(self, measure: str) -> pd.DataFrame:
        """The rows of one measure, indexed by epoch.

        Raises RecordError, naming the measures there are.
        """
        rows = self.measures[self.measures.measure == measure]
        if rows.empty:
            raise RecordError(
                f"no measure {measure!r} in {self.path}: it has {', '.join(self.measures.measure.unique())}; if it was "
                f"recorded by an older version, {self.anew}"
            )
        return rows.set_index("epoch").drop(columns="measure")


def find_record(settings: Settings, epochs: int | None = None) -> Record | None:
    """The furthest record of exactly these settings, of all epochs or of at least so many; None if there is none.

    Raises RecordError if there is one and it is damaged.
    """
    there = [
        found
        for place in store.record_folders()
        for found in records_of_run(place, settings).items()
    ]
    # of two alike, the first place's
    furthest, path = max(there, key=lambda found: found[0], default=(-1, None))
    enough = furthest >= (settings.epochs if epochs is None else epochs)
    return read_record(path) if path is not None and enough else None


def read_record(path: Path) -> Record:
    """Read and check the record in a folder.

    Raises RecordError for anything missing, torn, or belonging elsewhere.
    """
    return _read(path, path.name)


def _read(path: Path, name: str) -> Record:
    """The record in a folder that has this name, or is to have it."""
    try:
        values = json.loads((path / "settings.json").read_text())
        provenance = json.loads((path / "provenance.json").read_text())
        content = (path / "measures.csv").read_bytes()
        if not (isinstance(values, dict) and isinstance(provenance, dict)):
            raise ValueError("settings.json and provenance.json must each hold one object")
        settings = from_dict(values)
    # of which bad UTF-8, bad JSON and a SettingsError are kinds
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    missing = [name for name in PROVENANCE if name not in provenance]
    if missing:
        raise _damaged(path, f"provenance.json lacks {', '.join(missing)}")
    if hashlib.sha256(content).hexdigest() != provenance["measures_sha256"]:
        raise _damaged(path, "measures.csv is not the file that was recorded")
    measures = pd.read_csv(io.BytesIO(content))
    if list(measures.columns) != COLUMNS or set(measures.epoch) != set(
        range(len(set(measures.epoch)))
    ):
        raise _damaged(
            path, f"measures.csv does not hold {', '.join(COLUMNS)} for epochs 0, 1, 2 and so on"
        )
    record = Record(settings, measures, provenance, path)
    if name != _name(settings, record.epochs):
        raise _damaged(path, f"it holds {record.epochs} epochs of {settings.id}")
    return record


def read_records(*folders: Path) -> list[Record]:
    """The records in some folders, by name;

    of one run, the furthest. Raises RecordError for a damaged one.
    """
    found: dict[Settings, Record] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                record = read_record(path)
                other = found.get(record.settings)
                if other is None or record.epochs > other.epochs:
                    found[record.settings] = record
    return sorted(found.values(), key=lambda record: record.settings.id)


def write_record(
    settings: Settings, rows: list[dict[str, Any]], provenance: dict[str, Any], folder: Path
) -> Record:
    """Write a record into `folder`, whole or not at all, and read it back.

    Args:
        settings: what was run.
        rows: one dict an epoch and measure, with the keys COLUMNS, for the epochs that were
            reached.
        provenance: all of PROVENANCE but the digest, which is added here.
        folder: where records stand, such as `store()`.

    A record that is there already stays as it is; records of the same run that reached less go.
    """
    content = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, float_format="%.9g").encode()
    provenance = provenance | {"measures_sha256": hashlib.sha256(content).hexdigest()}
    contents = {
        "settings.json": _json(settings.to_dict()),
        "provenance.json": _json(provenance),
        "measures.csv": content,
    }
    return put_record(folder, _name(settings, max(row["epoch"] for row in rows)), contents)


def put_record(folder: Path, name: str, contents: dict[str, bytes]) -> Record:
    """A record's files as the folder `name` in `folder`, as `write` does it. The caller holds the run's lock.

    The files are FILES and, where weights are kept, WEIGHTS, which the caller has checked. The
    folder appears under its name, and a shorter one disappears from its own, at once: a kill leaves
    nothing torn. Raises RecordError for files that are no record, DiskError if they cannot be
    written.
    """
    scratch = folder / f".{name}.new"
    for left in folder.glob(f".{run_of(name)}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with files.writing(folder / name):
            scratch.mkdir(parents=True)
            for file, content in contents.items():
                files.write_synced(scratch / file, content)
            record = _read(scratch, name)
            there = records_of_run(folder, record.settings)
            if record.epochs > max(there, default=-1):
                os.rename(scratch, folder / name)
                there[record.epochs] = folder / name
            furthest = there.pop(max(there))
            for path in there.values():
                gone = path.with_name(f".{path.name}.old")
                os.rename(path, gone)
                shutil.rmtree(gone)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return read_record(furthest)


def attach_weights(record: Record, content: bytes) -> Path:
    """Write weights into a record's folder, and their SHA-256 into its provenance; return the file.

    The caller holds the run's lock and has checked the content. Raises DiskError if it cannot be
    written.
    """
    checksum = {"weights_sha256": hashlib.sha256(content).hexdigest()}
    # The checksum goes first: a kill in between leaves a record without weights, not one with
    # weights that nothing vouches for.
    files.replace(record.path / "provenance.json", _json(record.provenance | checksum))
    files.replace(record.path / WEIGHTS, content)
    return record.path / WEIGHTS


def records_of_run(folder: Path, settings: Settings) -> dict[int, Path]:
    """The folders of a run's records in `folder`, by the last epoch that each holds."""
    there = {settings.epochs: folder / settings.id} if (folder / settings.id).is_dir() else {}
    for path in folder.glob(f"{settings.id}-to-*"):
        if found := re.fullmatch(rf"{settings.id}-to-(\d+)", path.name):
            there[int(found[1]) // settings.epoch_iterations] = path
    return there


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _name(settings: Settings, epochs: int) -> str:
    return (
        settings.id
        if epochs == settings.epochs
        else f"{settings.id}-to-{epochs * settings.epoch_iterations}"
    )


def _damaged(path: Path, what: str) -> RecordError:
    return RecordError(f"record {path} is damaged: {what}; delete the folder to train it anew")
