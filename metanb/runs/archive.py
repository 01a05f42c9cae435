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
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metanb import files
from metanb.runs import checkpoint, records, store, weights
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
    """An archive is damaged or foreign; the message names the file and the remedy."""


def pack_runs(runs: Iterable[Settings], folder: Path, name: str) -> list[Path]:
    """Pack what the local store has of these runs: records, weights, unfinished checkpoints.

    A checkpoint is packed if the run has no whole record, weights if they are kept beside a record.
    The runs fill as few files as their order allows. Earlier archives of that name are replaced.

    Args:
        runs: to pack; a run with nothing in the store is left out.
        folder: where the archives go.
        name: of the archives, `<name>-01.zip` and so on.

    Returns:
        The archives.

    Raises:
        ArchiveError: a run is too large, or earlier archives of that name hold other runs.
        metanb.runs.records.RecordError: a record or weights are damaged.
        metanb.files.DiskError: an archive cannot be written.
    """
    members_by_run = [_members_of_run(settings) for settings in runs]
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _find_archives(folder, name)
    _check_nothing_is_lost(earlier, members_by_run)
    paths = []
    for number, members in enumerate(_fill_volumes(members_by_run), start=1):
        path = folder / f"{name}-{number:02d}.zip"
        _write_archive(path, members)
        paths.append(path)
    for path in set(earlier) - set(paths):
        path.unlink()
    return paths


def _members_of_run(settings: Settings) -> dict[str, bytes]:
    """What the store has of a run: the files of its records, or its checkpoint, or both."""
    members: dict[str, bytes] = {}
    # The shortest first: unpacked behind a longer one, a record would be left out.
    for _, folder in sorted(records.records_of_run(store.store_folder(), settings).items()):
        members |= _members_of_record(folder)
    path = store.checkpoint_path(settings.id)
    if path.exists() and records.find_record(settings) is None:
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
    return [
        path
        for path in sorted(folder.glob(f"{name}-*.zip"))
        if re.fullmatch(rf"{name}-\d+\.zip", path.name)
    ]


def _check_nothing_is_lost(
    earlier: Iterable[Path], members_by_run: Iterable[Iterable[str]]
) -> None:
    """Raises ArchiveError if an earlier archive holds a run that is not among those to pack."""
    packed = {run for members in members_by_run for run in _runs_of_members(members)}
    for path in earlier:
        if lost := sorted(_runs_of_members(_read_archive(path)) - packed):
            raise ArchiveError(
                f"archive {path} holds runs that this one would not, such as {lost[0]}: "
                "name another folder"
            )


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


def _write_archive(path: Path, members: Mapping[str, bytes]) -> None:
    """Write one archive, whole or not at all; the same members give the same bytes."""
    manifest = json.dumps(_checksums(members), indent=1).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in {MANIFEST: manifest, **members}.items():
            # A ZipInfo by name alone has a fixed date.
            archive.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)
    files.replace(path, stream.getvalue())


def unpack_runs(path: Path) -> list[str]:
    """Put the content of an archive into the local store.

    What the store has already stays, if it is as far; of the same training, weights and later
    measures that are not there join it. Nothing is written unless every member is as it was packed.

    Returns:
        A line for each record and each checkpoint.

    Raises:
        ArchiveError: the archive is damaged or foreign.
        metanb.runs.records.RecordError: a member is no record or no plain checkpoint.
        metanb.files.DiskError: the store cannot be written.
    """
    # Check everything first.
    members = _read_archive(path)
    owners = dict.fromkeys(map(_owner, members))
    recorded = [name for name in owners if any(m.startswith(f"{name}/") for m in members)]
    for record_name in recorded:
        _check_weights(record_name, members, path)
    checkpoints = {
        name: _run_of_checkpoint(name, members, path) for name in owners if f"{name}.pt" in members
    }

    # Then write, the record first: a run that is recorded needs no checkpoint to go on from.
    lines = []
    for name in owners:
        if name in recorded:
            lines.append(_put_record(name, members))
        if name in checkpoints:
            lines.append(_put_checkpoint(checkpoints[name], members[f"{name}.pt"]))
    return lines


def _read_archive(path: Path) -> dict[str, bytes]:
    """The members of an archive without its manifest, each the very bytes that were packed.

    Raises ArchiveError for an archive that is damaged or foreign.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        checksums = files.parse_json(members.pop(MANIFEST))
    except UNREADABLE as error:
        raise ArchiveError(f"archive {path} is damaged ({error}): copy it again") from error
    if _checksums(members) != checksums:
        raise ArchiveError(
            f"archive {path} is damaged: it does not hold what its manifest lists; copy it again"
        )
    if foreign := [name for name in members if not MEMBER.fullmatch(name)]:
        raise ArchiveError(
            f"archive {path} holds {foreign[0]!r}, which is neither a record nor a checkpoint"
        )
    return members


def _check_weights(record_name: str, members: dict[str, bytes], path: Path) -> None:
    """Raises ArchiveError for weights in an archive that are not those of their record."""
    member = f"{record_name}/{records.WEIGHTS}"
    if member not in members:
        return
    try:
        provenance = files.parse_json(members[f"{record_name}/provenance.json"])
        settings = _settings_of_record(record_name, members)
        weights.unpack_weights(members[member], settings, provenance)
    except SettingsError as error:  # an algorithm or a network that is one's own
        raise ArchiveError(
            f"archive {path} holds {member}, which cannot be checked here: {error}"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArchiveError(
            f"archive {path} holds {member}, which does not fit the record: ask for a whole one"
        ) from error


def _run_of_checkpoint(name: str, members: dict[str, bytes], path: Path) -> str:
    """The id of the run whose checkpoint `<name>.pt` is.

    Earlier versions packed the weights of a stopped run as `<id>-to-<iterations>.pt`. They are the
    end of another run: of the same settings, but with so many iterations.
    """
    if name == store.run_of(name):
        return name
    try:
        settings = _settings_of_record(name, members)
        iterations = int(name.rpartition("-")[2])
        return settings.ending(iterations // settings.epoch_iterations).id
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArchiveError(
            f"archive {path} holds {name}.pt without a record of it: ask for a whole one"
        ) from error


def _put_record(record_name: str, members: dict[str, bytes]) -> str:
    """Put a record into the store, unless the one there is as far; return a line about it.

    If the store has a record of the same training, it gets the packed weights where it has none,
    and the packed later measures that it lacks.
    """
    contents = {file: members.get(f"{record_name}/{file}", b"") for file in records.FILES}
    weights_file = members.get(f"{record_name}/{records.WEIGHTS}")
    if weights_file is not None:
        contents[records.WEIGHTS] = weights_file
    later = members.get(f"{record_name}/{records.LATER}")
    if later is not None:
        contents[records.LATER] = later
    folder = store.store_folder()
    with store.lock_run(store.run_of(record_name)):
        record = records.put_record(folder, record_name, contents)
        if (folder / record_name).is_dir():  # a shorter record than that, kept for its weights
            record = records.read_record(folder / record_name)
        packed = files.parse_json(contents["provenance.json"])
        same = all(record.provenance[key] == packed[key] for key in TRAINING)
        if weights_file is not None and same and not (record.path / records.WEIGHTS).exists():
            records.attach_weights(record, weights_file)
        news = _merge_later(record, files.parse_json(later), same) if later is not None else ""
    return f"record {record.path}{news}"


def _merge_later(
    record: records.Record, packed: dict[str, list[dict[str, Any]]], same: bool
) -> str:
    """Add the packed later measures that a record in the store lacks; return what became of them.

    Args:
        record: in the store.
        packed: the content of the packed later.json, which was checked as a part of its record.
        same: whether both are of the same training; if not, nothing is added.
    """
    if not same:
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


def _put_checkpoint(run_id: str, content: bytes) -> str:
    """Put a checkpoint into the store, unless the one there is as far; return a line about it."""
    path = store.checkpoint_path(run_id)
    with store.lock_run(run_id):
        scratch = files.scratch_path(path)
        try:
            with files.writing(path):
                files.write_synced(scratch, content)
                epoch = checkpoint.read_checkpoint(scratch)["epoch"]
                if path.exists() and checkpoint.read_checkpoint(path)["epoch"] >= epoch:
                    return f"checkpoint {path} is as far already"
                os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    return f"checkpoint {path}, epoch {epoch}"


def _settings_of_record(record_name: str, members: Mapping[str, bytes]) -> Settings:
    """The settings in a packed record."""
    values, provenance = (
        files.parse_json(members[f"{record_name}/{file}"]) for file in records.FILES[:2]
    )
    return records.settings_in(values, provenance)


def _owner(member: str) -> str:
    """The folder of the record that a member is in, or the name of the checkpoint that it is."""
    return member.removesuffix(".pt").split("/")[0]


def _runs_of_members(members: Iterable[str]) -> set[str]:
    """The ids of the runs that some members belong to."""
    return {store.run_of(_owner(member)) for member in members}


def _checksums(members: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each member."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
