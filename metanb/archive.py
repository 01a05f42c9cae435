"""Runs on the move between machines: records, checkpoints and trained weights in zip files that are checked when read.

<name>-01.zip, -02.zip ...   each below 16 MiB, and whole in itself; <name>-weights-01.zip and so on of weights
    MANIFEST.json            the SHA-256 of every other member
    <record>/settings.json, provenance.json, measures.csv
    <id>.pt                  a checkpoint: plain tensors and values, nothing that runs when it is read
    <record>.pt              the weights that a run had when it was recorded, and no optimiser to go on with
"""

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from metanb import checkpoint, disk, records
from metanb.settings import Settings, from_dict

LIMIT = 16 * 2**20 - 2**18  # bytes of members in a file; the rest is for names and the manifest
MANIFEST = "MANIFEST.json"
MEMBER = re.compile(rf"[a-z0-9-]+(\.pt|/({'|'.join(map(re.escape, records.FILES))}))")


class ArchiveError(RuntimeError):
    """An archive that is damaged or foreign; the message names the file and the remedy."""


def write(runs: Iterable[Settings], folder: Path, name: str) -> list[Path]:
    """Pack what the local store has of these runs: the records, and checkpoints where no whole one is."""

    def members(settings: Settings) -> dict[str, bytes]:
        found = _record(settings, [records.store()])
        path = records.checkpoint(settings.id)
        if path.exists() and records.find(settings) is None:
            found[path.name] = path.read_bytes()
        return found

    return _pack([members(one) for one in runs], folder, name)


def write_weights(runs: Iterable[Settings], folder: Path, name: str) -> list[Path]:
    """Pack trained weights with their records, one run a cell: that which got furthest, of two alike the lower seed.

    Whoever has them can measure what was trained without training it: `metanb.experiment.trained_net` reads those of a
    finished run, `nets_after` those that a stopped one had after its last epoch. Weights that no record belongs to are
    left out.
    """
    furthest: dict[Settings, tuple[int, dict[str, bytes]]] = {}
    for settings in sorted(runs, key=lambda one: (one.seed, one.class_seed)):
        path = records.checkpoint(settings.id)
        values = checkpoint.read(path) if path.exists() else {"epoch": 0}
        epoch, reached = values["epoch"], furthest.get(settings.unseeded, (0,))[0]
        if epoch > reached and (found := _record(settings, records.places(), epoch)):
            stream = io.BytesIO()
            torch.save({"epoch": epoch, "net": values["net"]}, stream)
            furthest[settings.unseeded] = epoch, found | {f"{_owner(min(found))}.pt": stream.getvalue()}
    return _pack([members for _, members in furthest.values()], folder, f"{name}-weights", _cells)


def read(path: Path) -> list[str]:
    """Put what an archive holds into the local store; a line for each run.

    What the store has already and is as far stays. Nothing is written unless every member is as it was packed. Raises
    ArchiveError for an archive that is not, RecordError for a member that is no record or no plain checkpoint.
    """
    members = _verified(path)
    said, runs = [], dict.fromkeys(map(_owner, members))
    checkpoints = {run: _trained(run, members, path) for run in runs if f"{run}.pt" in members}
    for run in runs:
        if f"{run}/{records.FILES[0]}" in members:  # first: a run that is recorded needs no checkpoint to go on from
            files = {file: members.get(f"{run}/{file}", b"") for file in records.FILES}
            with records.lock(records.run_of(run)):
                said.append(f"record {records.put(records.store(), run, files).path}")
        if run in checkpoints:
            said.append(_put_checkpoint(checkpoints[run], members[f"{run}.pt"]))
    return said


def _trained(run: str, members: dict[str, bytes], path: Path) -> str:
    """The run whose checkpoint `<run>.pt` is: of weights on the way, the run that ends there."""
    if run == records.run_of(run):
        return run
    try:
        settings = _settings(run, members)
        return settings.ending(int(run.rpartition("-")[2]) // settings.epoch_iterations).id
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(f"archive {path} holds {run}.pt without a record of it: ask for a whole one") from error


def _settings(record: str, members: Mapping[str, bytes]) -> Settings:
    return from_dict(json.loads(members[f"{record}/{records.FILES[0]}"]))


def _record(settings: Settings, places: Iterable[Path], epoch: int | None = None) -> dict[str, bytes]:
    """The files of a run's record in some places: of the furthest, or of the one that ends with an epoch."""
    there = {epochs: path for place in places for epochs, path in records.reached(place, settings).items()}
    path = there.get(max(there, default=0) if epoch is None else epoch)
    if path is None:
        return {}
    record = records.read(path).path
    return {f"{record.name}/{file}": (record / file).read_bytes() for file in records.FILES}


def _runs(members: Iterable[str]) -> set[str]:
    """The runs that some members belong to."""
    return {records.run_of(_owner(member)) for member in members}


def _cells(members: Mapping[str, bytes]) -> set[str]:
    """The cells that some records belong to, by the id of a run of seed 0."""
    return {_settings(record, members).unseeded.id for record in map(_owner, members)}


def _pack(
    runs: Sequence[dict[str, bytes]], folder: Path, name: str,
    held: Callable[[dict[str, bytes]], set[str]] = _runs,
) -> list[Path]:  # fmt: skip
    """Archives of whole runs, as few as follow from their order, in place of those of that name.

    Raises ArchiveError for a run that is too large, and for an archive there that holds what the new ones would not:
    `held` says what there is in members.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    earlier = [path for path in sorted(folder.glob(f"{name}-*.zip")) if re.fullmatch(rf"{name}-\d+\.zip", path.name)]
    packed = {one for members in runs for one in held(members)}
    for path in earlier:
        if lost := sorted(held(_verified(path)) - packed):
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
        disk.replace(path, stream.getvalue())
        paths.append(path)

    volume: dict[str, bytes] = {}
    for members in runs:
        size = sum(map(len, members.values()))
        if size > LIMIT:
            raise ArchiveError(f"{min(members)} and what belongs to it are {size:,} bytes: an archive holds {LIMIT:,}")
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
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ArchiveError(f"archive {path} is damaged ({error}): copy it again") from error
    if _digests(members) != digests:
        raise ArchiveError(f"archive {path} is damaged: it does not hold what its manifest lists; copy it again")
    if foreign := [name for name in members if not MEMBER.fullmatch(name)]:
        raise ArchiveError(f"archive {path} holds {foreign[0]!r}, which is neither a record nor a checkpoint")
    return members


def _put_checkpoint(run: str, content: bytes) -> str:
    """A checkpoint into the store, unless the one there is as far."""
    path = records.checkpoint(run)
    with records.lock(run):
        scratch = path.with_suffix(f".{os.getpid()}")
        try:
            with disk.writing(path):
                disk.write(scratch, content)
                epoch = checkpoint.read(scratch)["epoch"]
                if path.exists() and checkpoint.read(path)["epoch"] >= epoch:
                    return f"checkpoint {path} is as far already"
                os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    return f"checkpoint {path}, epoch {epoch}"
