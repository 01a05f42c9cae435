"""Runs on the move between machines, in zip files that are checked when they are read.

An archive of any size is a row of files, each whole in itself:

    <name>-01.zip, -02.zip ...   each below 16 MiB
        MANIFEST.json            the SHA-256 of every other member
        <record>/settings.json, provenance.json, measures.csv
        <record>/weights.safetensors   where they are kept
        <id>.pt                  a checkpoint: plain tensors and values; reading it runs no code
        <record>.pt              in archives of an earlier version: weights without an optimiser
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from metanb import files
from metanb.runs import checkpoint, records, store, weights
from metanb.runs.records import Later, Record
from metanb.settings import Settings, SettingsError

LIMIT = 16 * 2**20 - 2**18  # bytes of members in a file; the rest is for names and the manifest
MANIFEST = "MANIFEST.json"
# Keys of the provenance that are equal in two records if these are of the same training.
TRAINING = ("measures_sha256", "finished")
RECORD_FILES = "|".join(map(re.escape, (*records.FILES, records.WEIGHTS, records.LATER)))
MEMBER = re.compile(rf"[A-Za-z0-9_-]+(\.pt|/({RECORD_FILES}))")

# What zipfile and json raise for a file that is damaged or no archive.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class ArchiveError(RuntimeError):
    """An archive is damaged or foreign, or holds more than what is to replace it.

    The message names the file and the remedy.
    """


class _Checkpoint(NamedTuple):
    """A checkpoint in an archive: of which run, and at which epoch."""

    run: str
    epoch: int


@dataclass(frozen=True)
class _Content:
    """What the members of an archive are, each of them checked.

    Attributes:
        records: by the names of their folders.
        weights: the names of the records whose weights are there.
        later: the measures that were taken later, by record, as `records.parse_later` gives them.
        checkpoints: by the names of their files, without the ending.
    """

    records: dict[str, Record]
    weights: set[str]
    later: dict[str, Later]
    checkpoints: dict[str, _Checkpoint]


def pack_runs(runs: Iterable[Settings], folder: Path, name: str) -> list[Path]:
    """Pack what the local store has of these runs: records, weights, unfinished checkpoints.

    A checkpoint is packed if the run has no whole record, weights if they are kept beside a record.
    The runs fill as few files as their order allows. Earlier archives of that name are replaced:
    none of them, unless all new ones can be written.

    Args:
        runs: to pack; a run with nothing in the store is left out.
        folder: where the archives go.
        name: of the archives, `<name>-01.zip` and so on.

    Returns:
        The archives.

    Raises:
        ArchiveError: a run is too large; or an earlier archive of that name holds other runs, or
            more of one of these: it goes further, or has weights or later measures besides.
        metanb.runs.records.RecordError: a record, weights or a checkpoint are damaged.
        metanb.files.DiskError: an archive cannot be written.
    """
    members_by_run = [_members_of_run(settings) for settings in runs]
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _find_archives(folder, name)
    if earlier:
        _check_nothing_is_lost(earlier, members_by_run)
    archives = {
        folder / f"{name}-{number:02d}.zip": _zip_members(members)
        for number, members in enumerate(_fill_volumes(members_by_run), start=1)
    }
    files.replace_all(archives)
    for path in set(earlier) - set(archives):
        path.unlink()
    return list(archives)


def _members_of_run(settings: Settings) -> dict[str, bytes]:
    """What the store has of a run: the files of its records, or its checkpoint, or both."""
    members: dict[str, bytes] = {}
    # The shortest first: unpacked behind a longer one, a record would be left out.
    for _, folder in sorted(records.records_of_run(store.store_folder(), settings).items()):
        members |= _members_of_record(folder)
    path = store.checkpoint_path(settings.id)
    if path.exists() and records.find_record(settings) is None:
        checkpoint.read_checkpoint(path)  # a torn one is refused
        members[path.name] = path.read_bytes()
    return members


def _members_of_record(folder: Path) -> dict[str, bytes]:
    """The files of the record in a folder, with its weights if they are kept."""
    record = records.read_record(folder)
    names = list(records.FILES)
    if weights.load_weights(record) is not None:
        names.append(records.WEIGHTS)
    if (record.path / records.LATER).exists():
        names.append(records.LATER)
    return {f"{record.path.name}/{file}": records.read_file(record.path, file) for file in names}


def _find_archives(folder: Path, name: str) -> list[Path]:
    """The archives of this name in a folder, in order."""
    archive = re.compile(rf"{re.escape(name)}-\d+\.zip")
    return [path for path in sorted(folder.iterdir()) if archive.fullmatch(path.name)]


def _check_nothing_is_lost(
    earlier: Sequence[Path], members_by_run: Iterable[Mapping[str, bytes]]
) -> None:
    """Raises ArchiveError if an earlier archive holds what is not among the members to pack."""
    members = {name: content for of_run in members_by_run for name, content in of_run.items()}
    now = _check_members(members, earlier[0])  # they were read from the store, which checks them
    for path in earlier:
        packed = _read_archive(path)
        if lost := sorted(_runs_of_members(packed) - _runs_of_members(members)):
            raise ArchiveError(
                f"archive {path} holds runs that this one would not, such as {lost[0]}: "
                "name another folder"
            )
        if surplus := next(_find_more(_check_members(packed, path), now), None):
            run, part = surplus
            raise ArchiveError(
                f"archive {path} holds more of run {run} than the store, such as {part}: import it "
                "first, or name another folder"
            )


def _find_more(earlier: _Content, now: _Content) -> Iterator[tuple[str, str]]:
    """The runs of which an earlier archive holds more than there is now, each with what is more."""
    recorded: dict[str, int] = {}  # the epochs that are reached now, by run
    begun = {point.run: point.epoch for point in now.checkpoints.values()}
    for record in now.records.values():
        run = record.settings.id
        recorded[run] = max(record.epochs, recorded.get(run, -1))
        if record.finished:  # it needs no checkpoint
            begun[run] = record.epochs

    for name, record in earlier.records.items():
        run = record.settings.id
        if record.epochs > recorded.get(run, -1):
            yield run, f"the record of epoch {record.epochs}"
        if name in earlier.weights and name not in now.weights:
            yield run, f"the weights of record {name}"
        later = {row["measure"] for row in earlier.later[name]["rows"]}
        kept = now.records[name].at_the_end if name in now.records else set()
        for measure in sorted(later - kept):
            yield run, f"measure {measure!r} of record {name}"
    for name, point in earlier.checkpoints.items():
        run = store.run_of(name)
        if point.epoch > begun.get(run, -1):
            yield run, f"the checkpoint of epoch {point.epoch}"


def _fill_volumes(members_by_run: Iterable[dict[str, bytes]]) -> list[dict[str, bytes]]:
    """Distribute whole runs, in their order, over volumes of at most LIMIT bytes.

    Raises ArchiveError for a run that is larger.
    """
    volumes: list[dict[str, bytes]] = []
    room = 0  # bytes left in the last volume
    for members in members_by_run:
        size = sum(map(len, members.values()))
        if size > LIMIT:
            raise ArchiveError(
                f"{min(members)} and what belongs to it are {size:,} bytes: "
                f"an archive holds {LIMIT:,}"
            )
        if not members:
            continue
        if not volumes or size > room:
            volumes.append({})
            room = LIMIT
        volumes[-1] |= members
        room -= size
    return volumes


def _zip_members(members: Mapping[str, bytes]) -> bytes:
    """The content of an archive; the same members give the same bytes."""
    manifest = json.dumps(_checksums(members), indent=1).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in {MANIFEST: manifest, **members}.items():
            # A ZipInfo by name alone has a fixed date.
            archive.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def unpack_runs(path: Path) -> list[str]:
    """Put the content of an archive into the local store.

    What the store has already stays, if it is as far; of the same training, weights and later
    measures that are not there join it. Nothing is written unless every member is as it was packed.

    Returns:
        A line for each record and each checkpoint.

    Raises:
        ArchiveError: the archive is damaged or foreign, or a member is no record, no weights of its
            record or no plain checkpoint.
        metanb.runs.records.RecordError: what the store has already is damaged.
        metanb.files.DiskError: the store cannot be written.
    """
    # Check everything first.
    members = _read_archive(path)
    content = _check_members(members, path)

    # Then write, the record first: a run that is recorded needs no checkpoint to go on from.
    lines = []
    for name in dict.fromkeys(map(_owner, members)):
        if name in content.records:
            packed = content.records[name], content.later[name]
            lines.append(_put_record(*packed, _files_of_record(name, members)))
        if name in content.checkpoints:
            lines.append(_put_checkpoint(content.checkpoints[name], members[f"{name}.pt"]))
    return lines


def _read_archive(path: Path) -> dict[str, bytes]:
    """The members of an archive without its manifest, each the very bytes that were packed.

    Raises ArchiveError for an archive that is damaged or foreign.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        manifest = members.pop(MANIFEST, None)
        checksums = None if manifest is None else files.parse_json(manifest)
    except UNREADABLE as error:
        raise ArchiveError(f"archive {path} is damaged ({error}): copy it again") from error
    if manifest is None:
        raise ArchiveError(
            f"{path} is no archive of metanb: it has no {MANIFEST}; name a file that "
            "`metanb grid --export` wrote"
        )
    if _checksums(members) != checksums:
        raise ArchiveError(
            f"archive {path} is damaged: it does not hold what its manifest lists; copy it again"
        )
    if foreign := [name for name in members if not MEMBER.fullmatch(name)]:
        raise ArchiveError(
            f"archive {path} holds {foreign[0]!r}, which is neither a record nor a checkpoint"
        )
    return members


def _check_members(members: Mapping[str, bytes], path: Path) -> _Content:
    """What the members of an archive are.

    Raises ArchiveError for a member that is no record, no weights of its record or no checkpoint.
    """
    content = _Content({}, set(), {}, {})
    for name in dict.fromkeys(map(_owner, members)):
        if contents := _files_of_record(name, members):
            record, content.later[name] = _check_record(name, contents, path)
            content.records[name] = record
            if records.WEIGHTS in contents:
                _check_weights(record, contents[records.WEIGHTS], path)
                content.weights.add(name)
        if f"{name}.pt" in members:
            packed = members[f"{name}.pt"], content.records.get(name)
            content.checkpoints[name] = _check_checkpoint(name, *packed, path)
    return content


def _files_of_record(name: str, members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a packed record, by their names in its folder; none where there is no record."""
    return {
        member.removeprefix(f"{name}/"): content
        for member, content in members.items()
        if member.startswith(f"{name}/")
    }


def _check_record(name: str, contents: Mapping[str, bytes], path: Path) -> tuple[Record, Later]:
    """The record in an archive with its later measures, and these. ArchiveError if it is none."""
    try:
        record = records.parse_record(contents, path / name, name)
        later: Later = {"rows": [], "origins": []}
        if records.LATER in contents:
            later = records.parse_later(contents[records.LATER])
        return records.with_later(record, later), later
    except records.OwnAlgorithmError as error:
        raise ArchiveError(f"archive {path} holds record {name}, which {error}") from error
    except ValueError as error:
        raise ArchiveError(
            f"archive {path} holds record {name}, which is damaged: {error}; ask for a whole one"
        ) from error


def _check_weights(record: Record, content: bytes, path: Path) -> None:
    """Raises ArchiveError for weights in an archive that are not those of their record."""
    member = f"{record.path.name}/{records.WEIGHTS}"
    try:
        weights.unpack_weights(content, record.settings, record.provenance)
    except SettingsError as error:  # a network that is one's own
        raise ArchiveError(
            f"archive {path} holds {member}, which cannot be checked here: {error}"
        ) from error
    except ValueError as error:
        raise ArchiveError(
            f"archive {path} holds {member}, which does not fit the record: ask for a whole one"
        ) from error


def _check_checkpoint(name: str, content: bytes, record: Record | None, path: Path) -> _Checkpoint:
    """The run and the epoch of the checkpoint `<name>.pt` in an archive.

    Earlier versions packed the weights of a stopped run as `<id>-to-<iterations>.pt`. They are the
    end of another run: of the same settings, but with so many iterations.

    Raises ArchiveError for what is no checkpoint, and for such weights without their record.
    """
    try:
        epoch = checkpoint.parse_checkpoint(io.BytesIO(content))["epoch"]
    except ValueError as error:
        raise ArchiveError(
            f"archive {path} holds {name}.pt, which {error}: ask for a whole one"
        ) from error
    if name == store.run_of(name):
        return _Checkpoint(name, epoch)
    if record is None:
        raise ArchiveError(
            f"archive {path} holds {name}.pt without a record of it: ask for a whole one"
        )
    return _Checkpoint(record.settings.ending(record.epochs).id, epoch)


def _put_record(packed: Record, later: Later, contents: dict[str, bytes]) -> str:
    """Put a record into the store, unless the one there is as far; return a line about it.

    If the store has a record of the same training, it gets the packed weights where it has none,
    and the packed later measures that it lacks.

    Args:
        packed: the record in the archive.
        later: its measures that were taken later.
        contents: of its files.
    """
    folder = store.store_folder()
    name = packed.path.name
    with store.lock_run(store.run_of(name)):
        record = records.put_record(folder, name, contents)
        if (folder / name).is_dir():  # a shorter record than that, kept for its weights
            record = records.read_record(folder / name)
        is_same = all(record.provenance[key] == packed.provenance[key] for key in TRAINING)
        if records.WEIGHTS in contents and is_same and not (record.path / records.WEIGHTS).exists():
            records.attach_weights(record, contents[records.WEIGHTS])
        news = _merge_later(record, later, is_same)
    return f"record {record.path}{news}"


def _merge_later(record: records.Record, packed: Later, is_same: bool) -> str:
    """Add the packed later measures that a record in the store lacks; return what became of them.

    Args:
        record: in the store.
        packed: the content of the packed later.json, which was checked as a part of its record.
        is_same: whether both are of the same training; if not, nothing is added.
    """
    if not is_same:
        listed = ", ".join(row["measure"] for row in packed["rows"])
        return f"; left out, as another training's: later measures {listed}" if listed else ""
    in_store = {row["measure"]: row for row in records.read_later(record.path)["rows"]}
    rows = [row for row in packed["rows"] if row["measure"] not in record.at_the_end]
    added = [row["measure"] for row in rows]
    unchanged = [
        row["measure"]
        for row in packed["rows"]
        if row["measure"] in record.at_the_end and row != in_store.get(row["measure"])
    ]

    # Each origin tells of the measures that come from it.
    origins = []
    for origin in packed["origins"]:
        if names := [name for name in origin.get("measures", ()) if name in added]:
            origins.append(origin | {"measures": names})
    if rows:
        records.add_later(record, rows, origins)
    news = [("later measures added", added), ("left as they are there", unchanged)]
    return "".join(f"; {what}: {', '.join(names)}" for what, names in news if names)


def _put_checkpoint(packed: _Checkpoint, content: bytes) -> str:
    """Put a checkpoint into the store, unless the one there is as far; return a line about it."""
    path = store.checkpoint_path(packed.run)
    with store.lock_run(packed.run):
        if path.exists() and checkpoint.read_checkpoint(path)["epoch"] >= packed.epoch:
            return f"checkpoint {path} is as far already"
        files.replace(path, content)
    return f"checkpoint {path}, epoch {packed.epoch}"


def _owner(member: str) -> str:
    """The folder of the record that a member is in, or the name of the checkpoint that it is."""
    return member.removesuffix(".pt").split("/")[0]


def _runs_of_members(members: Iterable[str]) -> set[str]:
    """The ids of the runs that some members belong to."""
    return {store.run_of(_owner(member)) for member in members}


def _checksums(members: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each member."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
