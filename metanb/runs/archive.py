"""Runs on the move between machines: records, checkpoints and trained weights in zip files that are checked when read.

<name>-01.zip, -02.zip ...   each below 16 MiB, and whole in itself
    MANIFEST.json            the SHA-256 of every other member
    <record>/settings.json, provenance.json, measures.csv
    <record>/weights.safetensors   where they are kept
    <id>.pt                  a checkpoint: plain tensors and values, nothing that runs when it is read
    <record>.pt              in archives of an earlier version: weights, without an optimiser
"""

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from metanb import files
from metanb.runs import checkpoint, records, store, weights
from metanb.settings import Settings, from_dict

LIMIT = 16 * 2**20 - 2**18  # bytes of members in a file; the rest is for names and the manifest
MANIFEST = "MANIFEST.json"
TRAINING = ("measures_sha256", "finished")  # in the provenance: of two trainings, not the same
RECORD_FILES = "|".join(map(re.escape, (*records.FILES, records.WEIGHTS)))
MEMBER = re.compile(rf"[a-z0-9-]+(\.pt|/({RECORD_FILES}))")


class ArchiveError(RuntimeError):
    """An archive that is damaged or foreign; the message names the file and the remedy."""


def pack_runs(runs: Iterable[Settings], folder: Path, name: str) -> list[Path]:
    """Pack what the local store has of these runs: records, weights, unfinished checkpoints.

    A checkpoint is packed where no whole record is, weights where they are kept beside a record.
    Raises ArchiveError where `name` stands for archives that hold more, RecordError for a record or
    weights that are damaged.
    """

    def members(settings: Settings) -> dict[str, bytes]:
        found = _record(settings)
        path = store.checkpoint_path(settings.id)
        if path.exists() and records.find_record(settings) is None:
            found[path.name] = path.read_bytes()
        return found

    return _pack([members(one) for one in runs], folder, name)


def unpack_runs(path: Path) -> list[str]:
    """Put what an archive holds into the local store; a line for each run.

    What the store has already and is as far stays. Nothing is written unless every member is as it
    was packed. Raises ArchiveError for an archive that is not, RecordError for a member that is no
    record or no plain checkpoint.
    """
    members = _verified(path)
    runs = dict.fromkeys(map(_owner, members))
    recorded = [run for run in runs if any(member.startswith(f"{run}/") for member in members)]
    for run in recorded:
        _check_weights(run, members, path)
    checkpoints = {run: _trained(run, members, path) for run in runs if f"{run}.pt" in members}
    lines = []
    for run in runs:
        if run in recorded:  # first: a run that is recorded needs no checkpoint to go on from
            lines.append(_put_record(run, members))
        if run in checkpoints:
            lines.append(_put_checkpoint(checkpoints[run], members[f"{run}.pt"]))
    return lines


def _check_weights(run: str, members: dict[str, bytes], path: Path) -> None:
    """Raises ArchiveError for weights in an archive that are not those of their record."""
    member = f"{run}/{records.WEIGHTS}"
    if member not in members:
        return
    try:
        provenance = json.loads(members[f"{run}/provenance.json"])
        weights.unpack_weights(members[member], _settings(run, members), provenance)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArchiveError(
            f"archive {path} holds {member}, which does not fit the record: ask for a whole one"
        ) from error


def _trained(run: str, members: dict[str, bytes], path: Path) -> str:
    """The run whose checkpoint `<run>.pt` is: of weights on the way, the run that ends there."""
    if run == store.run_of(run):
        return run
    try:
        settings = _settings(run, members)
        return settings.ending(int(run.rpartition("-")[2]) // settings.epoch_iterations).id
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(
            f"archive {path} holds {run}.pt without a record of it: ask for a whole one"
        ) from error


def _settings(record: str, members: Mapping[str, bytes]) -> Settings:
    return from_dict(json.loads(members[f"{record}/{records.FILES[0]}"]))


def _record(settings: Settings) -> dict[str, bytes]:
    """The files of a run's furthest record in the store, with its weights where they are kept."""
    folders = records.records_of_run(store.store_folder(), settings)
    if not folders:
        return {}
    record = records.read_record(folders[max(folders)])
    names = (
        records.FILES if weights.load_weights(record) is None else (*records.FILES, records.WEIGHTS)
    )
    return {f"{record.path.name}/{file}": (record.path / file).read_bytes() for file in names}


def _runs(members: Iterable[str]) -> set[str]:
    """The runs that some members belong to."""
    return {store.run_of(_owner(member)) for member in members}


def _pack(runs: Sequence[dict[str, bytes]], folder: Path, name: str) -> list[Path]:
    """Archives of whole runs, as few as follow from their order, in place of those of that name.

    Raises ArchiveError for a run that is too large, and for an archive there that holds runs which
    the new ones would not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    earlier = [
        path
        for path in sorted(folder.glob(f"{name}-*.zip"))
        if re.fullmatch(rf"{name}-\d+\.zip", path.name)
    ]
    packed = {run for members in runs for run in _runs(members)}
    for path in earlier:
        if lost := sorted(_runs(_verified(path)) - packed):
            raise ArchiveError(
                f"archive {path} holds runs that this one would not, such as {lost[0]}: name another folder"
            )

    def close(members: dict[str, bytes]) -> None:
        path = folder / f"{name}-{len(paths) + 1:02d}.zip"
        manifest = json.dumps(_digests(members), indent=1).encode()
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in {MANIFEST: manifest, **members}.items():
                archive.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)
        files.replace(path, stream.getvalue())
        paths.append(path)

    volume: dict[str, bytes] = {}
    for members in runs:
        size = sum(map(len, members.values()))
        if size > LIMIT:
            raise ArchiveError(
                f"{min(members)} and what belongs to it are {size:,} bytes: an archive holds {LIMIT:,}"
            )
        if volume and size + sum(map(len, volume.values())) > LIMIT:
            close(volume)
            volume = {}
        volume |= members
    if volume:
        close(volume)
    for path in set(earlier) - set(paths):
        path.unlink()
    return paths


def _owner(member: str) -> str:
    """The record's folder that a member is in, or that weights belong to; or the run whose checkpoint it is."""
    return member.removesuffix(".pt").split("/")[0]


def _digests(members: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}


def _verified(path: Path) -> dict[str, bytes]:
    """An archive's members, each the very bytes that were packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        digests = json.loads(members.pop(MANIFEST))
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ArchiveError(f"archive {path} is damaged ({error}): copy it again") from error
    if _digests(members) != digests:
        raise ArchiveError(
            f"archive {path} is damaged: it does not hold what its manifest lists; copy it again"
        )
    if foreign := [name for name in members if not MEMBER.fullmatch(name)]:
        raise ArchiveError(
            f"archive {path} holds {foreign[0]!r}, which is neither a record nor a checkpoint"
        )
    return members


def _put_record(run: str, members: dict[str, bytes]) -> str:
    """A record into the store, unless the one there is as far; a line that says where it is.

    Its weights go beside a record of that very training, if there are none yet.
    """
    contents = {file: members.get(f"{run}/{file}", b"") for file in records.FILES}
    content = members.get(f"{run}/{records.WEIGHTS}")
    if content is not None:
        contents[records.WEIGHTS] = content
    with store.lock_run(store.run_of(run)):
        record = records.put_record(store.store_folder(), run, contents)
        if content is not None and not (record.path / records.WEIGHTS).exists():
            packed = json.loads(contents["provenance.json"])
            if all(record.provenance[name] == packed[name] for name in TRAINING):
                records.attach_weights(record, content)
    return f"record {record.path}"


def _put_checkpoint(run: str, content: bytes) -> str:
    """A checkpoint into the store, unless the one there is as far."""
    path = store.checkpoint_path(run)
    with store.lock_run(run):
        scratch = path.with_suffix(f".{os.getpid()}")
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
