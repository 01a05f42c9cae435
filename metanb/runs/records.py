"""One run on disk: a folder of small files, written all at once, checked when read.

    <id>/settings.json     what was run (metanb.settings.Settings)
    <id>/provenance.json   by whom and where: versions, device, dates, times, data digests
    <id>/measures.csv      one row per epoch and measure: mean, median, std, sem, n; or the same,
                           compressed, as measures.csv.gz
    <id>/weights.safetensors   of some runs: the trained weights (metanb.runs.weights)
    <id>/later.json        of some runs: measures taken later, of those weights (metanb.runs.later)

The folder of a run that was stopped is <id>-to-<iterations>: it holds the epochs that were reached.
It gives way to a longer record of the run, unless it has one of the two files that cannot be made
again from that.
Records are in two places: `results/` beside the package in a checkout (committed, and therefore
compressed), and the local store.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metanb import files
from metanb.labels import OF_PACKAGE, learn_names
from metanb.runs import store
from metanb.settings import AlgorithmError, Settings, from_dict

MEASURES = "measures.csv"
FILES = ("settings.json", "provenance.json", MEASURES)
WEIGHTS = "weights.safetensors"  # beside FILES, for some runs
LATER = "later.json"  # likewise
RECORD_NAME = re.compile(r"[A-Za-z0-9].*-s\d+-[0-9a-f]{8}(-to-\d+)?")  # of a record's folder
COLUMNS = ["epoch", "iteration", "measure", "mean", "median", "std", "sem", "n"]
PROVENANCE = (
    "metanb code python torch torchvision higher numpy device threads chunk "
    "started finished wall_seconds cpu_seconds resumed data measures_sha256"
).split()


Later = dict[str, list[dict[str, Any]]]  # what `read_later` returns


class RecordError(RuntimeError):
    """A record is torn, foreign or incomplete; the message names the file and the remedy."""


class OwnAlgorithmError(ValueError):
    """A record does not fit what is known here of its algorithm, which is one's own."""


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

    @cached_property
    def epochs(self) -> int:
        """The last epoch that was measured."""
        return int(self.measures.epoch.max())

    @cached_property
    def at_the_end(self) -> set[str]:
        """The measures of the last epoch; a plugin's may be in others alone, of a resumed run."""
        return set(self.measures.measure[self.measures.epoch == self.epochs])

    def has(self, measure: str) -> bool:
        """Whether the measure is recorded, in one epoch at least."""
        return measure in self._grouped[1]

    @cached_property
    def _grouped(self) -> tuple[dict[str, np.ndarray], dict[str, slice]]:
        """The columns, one measure below the other by epoch, and where each measure stands there.

        Rules ask for the same curves again and again, tens of thousands of times.
        """
        codes, names = pd.factorize(self.measures.measure)
        order = np.argsort(codes, kind="stable")
        table = self.measures.drop(columns="measure")
        columns = {name: values.to_numpy()[order] for name, values in table.items()}
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        return columns, dict(zip(names, map(slice, [0, *ends], ends), strict=True))

    @property
    def iterations(self) -> int:
        """The number of meta-training iterations up to that epoch."""
        return self.epochs * self.settings.epoch_iterations

    @property
    def finished(self) -> bool:
        """Whether the last epoch of the settings is recorded."""
        return self.epochs == self.settings.epochs

    @property
    def anew(self) -> str:
        """How to have the run trained anew, for error messages.

        The checkpoint goes as well, because from it the same rows would be written again.
        """
        return f"delete the folder and {store.checkpoint_path(self.settings.id)} to train it anew"

    def upto(self, epochs: int) -> "Record":
        """The record as it was after an epoch, or as it is if it ends there or earlier.

        Raises ValueError for an epoch below 0.
        """
        if epochs < 0:
            raise ValueError(f"epochs is {epochs}: give an epoch, 0 or later")
        if epochs >= self.epochs:
            return self
        return replace(self, measures=self.measures[self.measures.epoch <= epochs])

    def curve(self, measure: str) -> pd.DataFrame:
        """The rows of one measure, indexed by epoch.

        Args:
            measure: its name, such as "query_accuracy".

        Returns:
            Columns iteration, mean, median, std, sem and n.

        Raises:
            RecordError: the record has no such measure; the message names those it has.

        Example:
            >>> from pathlib import Path
            >>> import pandas as pd
            >>> from metanb import Record, preset
            >>> measures = pd.DataFrame(
            ...     {"epoch": [0, 1], "measure": ["distance"] * 2, "mean": [0.25, 0.5]}
            ... )
            >>> record = Record(preset("smoke", "glyphs"), measures, {}, Path("by-hand"))
            >>> record.curve("distance")["mean"].tolist()
            [0.25, 0.5]
        """
        columns, place = self._find(measure)
        rows = pd.DataFrame({name: values[place] for name, values in columns.items()})
        return rows.set_index("epoch")

    def values(self, measure: str, column: str = "mean") -> tuple[np.ndarray, np.ndarray]:
        """One column of the rows of a measure: the epochs, and its values after them.

        The same as a column of `curve`, without making a table first.

        Args:
            measure: its name, such as "query_accuracy".
            column: "mean" over tasks, or another column of `curve`.

        Raises:
            RecordError: as `curve` does.

        Example:
            >>> from metanb import preset
            >>> record = find_record(preset("quick", "omniglot"))
            >>> epochs, accuracies = record.values("query_accuracy")
            >>> print(f"{accuracies[-1]:.2f} after epoch {epochs[-1]}")
            0.82 after epoch 12
        """
        columns, place = self._find(measure)
        return columns["epoch"][place].copy(), columns[column][place].copy()

    def _find(self, measure: str) -> tuple[dict[str, np.ndarray], slice]:
        """The columns of all measures, and where this one stands among them."""
        columns, places = self._grouped
        if measure not in places:
            raise RecordError(
                f"no measure {measure!r} in {self.path}: it has {', '.join(places)}; "
                f"if it was recorded by an older version, {self.anew}"
            )
        return columns, places[measure]


def find_record(settings: Settings, epochs: int | None = None) -> Record | None:
    """The furthest record of exactly these settings, in any place.

    Args:
        settings: of the run.
        epochs: how many epochs the record must reach; None: all of the settings' epochs.

    Returns:
        The record, or None if there is none that goes as far.

    Raises:
        RecordError: the record is damaged.
    """
    furthest = -1
    path: Path | None = None
    for folder in store.record_folders():
        for last, record_path in records_of_run(folder, settings).items():
            if last > furthest:  # of two that go equally far, the first place's
                furthest = last
                path = record_path
    wanted = settings.epochs if epochs is None else epochs
    return read_record(path) if path is not None and furthest >= wanted else None


def read_record(path: Path) -> Record:
    """Read and check the record in a folder.

    Raises RecordError for a file that is missing or damaged, or that belongs to another run.
    """
    return _read_as(path, path.name)


def _read_as(path: Path, name: str) -> Record:
    """Read and check the record in a folder that has this name, or is to have it."""
    try:
        record = parse_record({file: read_file(path, file) for file in FILES}, path, name)
    except OwnAlgorithmError as error:
        raise RecordError(f"record {path} {error}") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error

    # Add the measures that were taken later.
    later = read_later(path)
    try:
        return with_later(record, later)
    except ValueError as error:
        raise _damaged_later(path, str(error)) from error


def parse_record(contents: Mapping[str, bytes], path: Path, name: str) -> Record:
    """The record that the contents of its files are, each checked; without later measures.

    Args:
        contents: of FILES.
        path: of the record.
        name: that its folder has, or is to have.

    Raises:
        ValueError: the contents are no record, or that of another name; the message says why.
        OwnAlgorithmError: its algorithm does not fit what is known here of it.
    """
    # Read the settings and the provenance, which has to be complete.
    if absent := [file for file in FILES if file not in contents]:
        raise ValueError(f"it lacks {', '.join(absent)}")
    values, provenance = (_parse_object(file, contents[file]) for file in FILES[:2])
    try:
        settings = settings_in(values, provenance)
    except AlgorithmError as error:
        algorithm = values.get("algorithm", Settings.algorithm)
        if algorithm in OF_PACKAGE:
            raise
        raise OwnAlgorithmError(
            f"does not fit what is known here of algorithm={algorithm!r}, which is one's own: "
            f"{error.cause}; register it as it was then, or name its file with --plugin"
        ) from error
    if missing := [key for key in PROVENANCE if key not in provenance]:
        raise ValueError(f"provenance.json lacks {', '.join(missing)}")

    # Check that the measures are those that were recorded, and that no epoch is missing.
    if hashlib.sha256(contents[MEASURES]).hexdigest() != provenance["measures_sha256"]:
        raise ValueError(f"{MEASURES} is not the file that was recorded")
    try:
        measures = _read_table(contents[MEASURES])
    except ValueError as error:  # of several lines, some of them
        raise ValueError(f"{MEASURES} is no table") from error
    columns = list(measures.columns)
    if columns != COLUMNS or set(measures.epoch) != set(range(measures.epoch.nunique())):
        raise ValueError(
            f"{MEASURES} does not hold {', '.join(COLUMNS)} for epochs 0, 1, 2 and so on"
        )

    # Check that the record stands under its own name.
    record = Record(settings, measures, provenance, path)
    if name != _record_name(settings, record.epochs):
        raise ValueError(f"it holds {record.epochs} epochs of {settings.id}")
    return record


def with_later(record: Record, later: Later) -> Record:
    """The record with measures that were taken later, as `parse_later` gives them.

    Raises ValueError for measures that the record has already, or that are of another epoch.
    """
    if not later["rows"]:
        return record
    rows = pd.DataFrame(later["rows"], columns=COLUMNS)
    if set(rows.measure) & record.at_the_end or set(rows.epoch) != {record.epochs}:
        raise ValueError("its measures are not new, or not of the last epoch")
    return replace(record, measures=pd.concat([record.measures, rows], ignore_index=True))


def _parse_object(file: str, content: bytes) -> dict[str, Any]:
    """The object in a JSON file; ValueError for anything else."""
    try:
        values = files.parse_json(content)
    except ValueError as error:  # bad UTF-8, too
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} does not hold one object")
    return values


def settings_in(values: dict[str, Any], provenance: dict[str, Any]) -> Settings:
    """The settings of a record, with what it says of an algorithm of one's own made known.

    Args:
        values: of its settings.json.
        provenance: of the record.

    Raises:
        ValueError: the entry of the algorithm is none; and as `metanb.settings.from_dict` does.
    """
    learn_names(values, provenance.get("algorithm"))
    return from_dict(values)


def read_file(folder: Path, name: str) -> bytes:
    """The content of one of a record's files; measures may be compressed.

    Args:
        folder: of the record.
        name: of the file, such as "measures.csv".

    Raises:
        OSError, EOFError, zlib.error: the file is missing, or is damaged as a compressed file.
    """
    compressed = folder / f"{name}.gz"
    if name == MEASURES and compressed.exists():
        return gzip.decompress(compressed.read_bytes())
    return (folder / name).read_bytes()


def _read_table(content: bytes) -> pd.DataFrame:
    """The table of measures in a file's content; a measure may be called "null" or "NA"."""
    numbers = [column for column in COLUMNS if column != "measure"]
    return pd.read_csv(
        io.BytesIO(content), keep_default_na=False, na_values=dict.fromkeys(numbers, "")
    )


def read_later(path: Path) -> Later:
    """The measures of a record that were taken later: "rows", and where they come from, "origins".

    Raises RecordError for a damaged file.
    """
    try:
        return parse_later((path / LATER).read_bytes())
    except FileNotFoundError:
        return {"rows": [], "origins": []}
    except (OSError, ValueError) as error:
        raise _damaged_later(path, str(error)) from error


def parse_later(content: bytes) -> Later:
    """The measures in the content of a file of later measures, as `read_later` gives them.

    Raises ValueError for any other content.
    """
    try:
        later = files.parse_json(content)
        rows, origins = later["rows"], later["origins"]
        if not (isinstance(rows, list) and isinstance(origins, list)):
            raise ValueError("rows and origins are not lists")
        if not all(isinstance(origin.get("measures", []), list) for origin in origins):
            raise ValueError("origins do not list measures")
        if not all(isinstance(row, dict) and set(row) == set(COLUMNS) for row in rows):
            raise ValueError(f"rows do not hold {', '.join(COLUMNS)}")
        numbers = [row[column] for row in rows for column in COLUMNS if column != "measure"]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("rows do not hold numbers")
        names = [row["measure"] for row in rows]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("rows do not hold names of measures")
        if len(set(names)) < len(names):
            raise ValueError("a measure is there twice")
        return {"rows": rows, "origins": origins}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def read_records(*folders: Path, leaves_out_damaged: bool = False) -> list[Record]:
    """The records in some folders, by run id; of one run, the furthest.

    Folders that are not there have none, and what is not named like a record is none.

    Args:
        folders: where to look, in this order.
        leaves_out_damaged: whether a damaged record is left out, not an error.

    Raises:
        RecordError: a record is damaged.
    """
    paths = [
        path
        for folder in folders
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.is_dir() and RECORD_NAME.fullmatch(path.name)
    ]
    recorded = []
    for path in paths:
        with suppress(*([RecordError] if leaves_out_damaged else [])):
            recorded.append(read_record(path))
    return sorted(keep_furthest(recorded), key=lambda record: record.settings.id)


def keep_furthest(records: Iterable[Record]) -> list[Record]:
    """One record per run: the furthest, and of two that go equally far the first."""
    furthest: dict[Settings, Record] = {}
    for record in records:
        earlier = furthest.get(record.settings)
        if earlier is None or record.epochs > earlier.epochs:
            furthest[record.settings] = record
    return list(furthest.values())


def keep_new(own: Iterable[Record], book: Iterable[Record]) -> list[Record]:
    """One's own records that reach further than the book's record of the same run.

    Example:
        >>> from metanb import preset
        >>> record = find_record(preset("quick", "omniglot"))
        >>> len(keep_new([record], [])), len(keep_new([record.upto(3)], [record]))
        (1, 0)
    """
    reached = {run.settings: run.epochs for run in keep_furthest(book)}
    return [run for run in own if run.epochs > reached.get(run.settings, 0)]


def write_record(
    settings: Settings, rows: list[dict[str, Any]], provenance: dict[str, Any], folder: Path
) -> Record:
    """Write a record into `folder`, whole or not at all, and read it back.

    A record that reaches as far stays as it is; records of the same run that reach less are
    removed, unless they have weights or measures that were taken later.

    Args:
        settings: what was run.
        rows: one dict per epoch and measure, with the keys COLUMNS, for the epochs that were
            reached.
        provenance: all of PROVENANCE but the digest, which is added here.
        folder: of records, such as `metanb.runs.store.store_folder()`.

    Returns:
        The furthest record of the run in `folder`.
    """
    content = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, float_format="%.9g").encode()
    provenance = provenance | {"measures_sha256": hashlib.sha256(content).hexdigest()}
    contents = {
        "settings.json": _encode_json(settings.to_dict()),
        "provenance.json": _encode_json(provenance),
        MEASURES: content,
    }
    last = max(row["epoch"] for row in rows)
    return put_record(folder, _record_name(settings, last), contents)


def put_record(folder: Path, name: str, contents: dict[str, bytes]) -> Record:
    """Put a record's files as the folder `name` into `folder`, whole or not at all.

    The folder appears under its name at once, and then a shorter record of the run, see
    `write_record`, disappears from its own at once: a kill leaves nothing torn. The caller holds
    the run's lock.

    Args:
        folder: of records.
        name: of the record's folder.
        contents: FILES and, where they are kept, WEIGHTS, which the caller has checked, and LATER.

    Returns:
        The furthest record of the run in `folder`.

    Raises:
        RecordError: the files are no record.
        metanb.files.DiskError: the files cannot be written.
    """
    # Remove what a process left that was killed here.
    for leftover in folder.glob(f".{store.run_of(name)}*"):
        shutil.rmtree(leftover, ignore_errors=True)

    scratch = folder / f".{name}.new"
    try:
        with files.writing(folder / name):
            # Write the files under another name, and check them as they will be read.
            scratch.mkdir(parents=True)
            for file, content in contents.items():
                files.write_synced(scratch / file, content)
            record = _read_as(scratch, name)

            # Rename the folder, unless a record is there that goes as far.
            paths = records_of_run(folder, record.settings)
            if record.epochs > max(paths, default=-1):
                os.rename(scratch, folder / name)
                paths[record.epochs] = folder / name

            # Remove the shorter ones, each renamed first: it disappears at once. Kept weights and
            # later measures stay, because the longer record does not have them.
            furthest = paths.pop(max(paths))
            for path in paths.values():
                if (path / WEIGHTS).exists() or (path / LATER).exists():
                    continue
                old = path.with_name(f".{path.name}.old")
                os.rename(path, old)
                shutil.rmtree(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return read_record(furthest)


def attach_weights(record: Record, content: bytes) -> Path:
    """Write weights into a record's folder, and their SHA-256 into its provenance.

    The caller holds the run's lock and has checked the content.

    Returns:
        The file of the weights.

    Raises:
        metanb.files.DiskError: a file cannot be written.
    """
    checksum = {"weights_sha256": hashlib.sha256(content).hexdigest()}
    # The checksum goes first: a kill in between leaves a record without weights, and not weights
    # without a checksum.
    files.replace(record.path / "provenance.json", _encode_json(record.provenance | checksum))
    files.replace(record.path / WEIGHTS, content)
    return record.path / WEIGHTS


def add_later(record: Record, rows: list[dict[str, Any]], origins: list[dict[str, Any]]) -> Record:
    """Add measures that were taken later to a record, with where they come from.

    What was recorded stays as it is. The caller holds the run's lock.

    Args:
        record: in its folder.
        rows: of the measures, with the keys COLUMNS.
        origins: one dict for the measures that were taken together.

    Returns:
        The record with the measures.

    Raises:
        metanb.files.DiskError: the file cannot be written.
    """
    later = read_later(record.path)
    content = {"rows": later["rows"] + rows, "origins": later["origins"] + origins}
    files.replace(record.path / LATER, _encode_json(content))
    return read_record(record.path)


def records_of_run(folder: Path, settings: Settings) -> dict[int, Path]:
    """The folders of a run's records in `folder`, by the last epoch that each holds."""
    paths: dict[int, Path] = {}
    if (folder / settings.id).is_dir():
        paths[settings.epochs] = folder / settings.id
    for path in folder.glob(f"{settings.id}-to-*"):
        if match := re.fullmatch(rf"{settings.id}-to-(\d+)", path.name):
            paths[int(match[1]) // settings.epoch_iterations] = path
    return paths


def _encode_json(values: dict[str, Any]) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(values, indent=1) + "\n").encode()


def _record_name(settings: Settings, epochs: int) -> str:
    """The name of the folder of a run's record that ends after so many epochs."""
    if epochs == settings.epochs:
        return settings.id
    return f"{settings.id}-to-{epochs * settings.epoch_iterations}"


def _damaged_later(path: Path, reason: str) -> RecordError:
    """The error of a damaged file of later measures."""
    return RecordError(
        f"{path / LATER} is damaged: {reason}; delete the file, and take the measures again: "
        "metanb measure"
    )


def _damaged(path: Path, reason: str) -> RecordError:
    """The error of a damaged record."""
    return RecordError(f"record {path} is damaged: {reason}; delete the folder to train it anew")
