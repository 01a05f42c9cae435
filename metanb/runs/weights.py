"""Trained weights kept beside a run's record: `<record>/weights.safetensors`.

The tensors have the names, dtypes and shapes of the network's `state_dict()`; weights that are tied
in the network are there once under each name. The file's metadata has the run's id and
the epoch, as JSON under "metanb". The record's provenance lists the file's SHA-256; the file is
checked against it when it is read. The safetensors format holds numbers alone: reading it runs no
code.

A network that was trained on all meta-train classes (finetuning) is kept without its head: one
output per class is most of its numbers, and no task uses them. In its place is a head of zeros with
N outputs.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from metanb.files import LockedError
from metanb.labels import ALGORITHMS
from metanb.maml.network import build_network
from metanb.maml.per_task import in_head
from metanb.runs import checkpoint, records, store
from metanb.runs.records import Record, RecordError
from metanb.settings import Settings, SettingsError

PATIENCE = 5  # seconds to wait for a run that another process is training


class NoWeightsError(RecordError):
    """No checkpoint in the store has the weights of a record; the message says why."""


def keep_weights(record: Record) -> Path:
    """Keep the weights that a run had when it was recorded; they come from its checkpoint.

    The rest of the record stays as it is, and so do weights that are kept already.

    Args:
        record: of a run that stopped or finished, in any place.

    Returns:
        The file of the weights.

    Raises:
        NoWeightsError: the store has no checkpoint of the run, or one of another epoch or training;
            or the network holds something that the format does not.
        RecordError: the record, the checkpoint, or weights that are kept already are damaged.
        metanb.files.DiskError: the record's folder cannot be written.
        metanb.files.LockedError: another process is training the run.
    """
    with store.lock_run(record.settings.id, PATIENCE):
        # Read the record again: another process may have written its weights by now.
        record = records.read_record(record.path)
        if load_weights(record) is not None:
            return record.path / records.WEIGHTS
        state = _state_when_recorded(record)
        return records.attach_weights(record, _pack_weights(record, state))


def keep_one_per_cell(runs: Iterable[Settings]) -> Iterator[str]:
    """Keep the weights of one run per cell: the lowest seed whose checkpoint fits its record.

    Only records in the local store count. Raises RecordError and DiskError as `keep_weights` does.

    Yields:
        One line per cell, which names the file or says why there is none.
    """
    cells: dict[Settings, list[Settings]] = {}
    for settings in sorted(runs, key=lambda run: (run.seed, run.class_seed)):
        cells.setdefault(settings.unseeded, []).append(settings)
    for cell in cells.values():
        yield _keep_lowest_seed(cell)


def find_weights(settings: Settings, epoch: int | None = None) -> Record | None:
    """The record of a run that has its weights beside it; None if there is none.

    Args:
        settings: of the run.
        epoch: at which the record ends; None for the run's last one.

    Raises:
        RecordError: the record is damaged.
    """
    last = settings.epochs if epoch is None else epoch
    for folder in store.record_folders():
        path = records.records_of_run(folder, settings).get(last)
        if path is not None and (path / records.WEIGHTS).exists():
            return records.read_record(path)
    return None


def load_weights(record: Record) -> dict[str, Tensor] | None:
    """The weights kept beside a record, by the names of the network's `state_dict()`, on the CPU.

    None for a record without the file, even if its provenance lists a checksum: records may be
    copied without their weights. Raises RecordError for a file that is damaged.
    """
    path = record.path / records.WEIGHTS
    if not path.exists():
        return None
    try:
        return unpack_weights(path.read_bytes(), record.settings, record.provenance)
    except SettingsError:  # a network of one's own that is not registered here
        raise
    except (OSError, ValueError) as error:
        raise RecordError(
            f"weights {path} are damaged: {error}; delete the file: they are then read from the "
            "run's checkpoint, or trained anew"
        ) from error


def unpack_weights(
    content: bytes, settings: Settings, provenance: dict[str, Any]
) -> dict[str, Tensor]:
    """The weights in a file's content, as `load_weights` returns them.

    Args:
        content: of a file `weights.safetensors`.
        settings: of the run.
        provenance: of its record.

    Raises:
        ValueError: the provenance lists another checksum, or the tensors do not fit the network of
            the settings.
    """
    if hashlib.sha256(content).hexdigest() != provenance.get("weights_sha256"):
        raise ValueError("the content does not match weights_sha256 in provenance.json")
    try:
        state = tensors_of(content)
        expected = network_with(settings, state).state_dict()
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the content is not the network of {settings.id}") from error
    for name, tensor in state.items():
        if tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} is {tensor.dtype}, not {expected[name].dtype}")
    return state


def network_with(settings: Settings, state: dict[str, Tensor]) -> nn.Module:
    """The N-way network of a run with given weights, on the CPU; it does not need the image set.

    After an algorithm that is not episodic its head is zero: that of the meta-train classes serves
    no task. Raises RuntimeError for weights that do not fit.
    """
    # As when the run began, for buffers that no file keeps; the first weights are replaced below.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        net = build_network(settings, settings.image_shape, settings.ways)
    if not ALGORITHMS[settings.algorithm].episodic:
        named = zip(net.named_parameters(), in_head(net), strict=True)
        state = state | {name: torch.zeros_like(p) for (name, p), is_head in named if is_head}
    net.load_state_dict(state)
    return net


def _keep_lowest_seed(cell: list[Settings]) -> str:
    """Keep the weights of the first run of a cell that has them; return a line about it."""
    reasons: list[str] = []
    for settings in cell:
        folders = records.records_of_run(store.store_folder(), settings)
        if folders:
            try:
                return f"weights: {keep_weights(records.read_record(folders[max(folders)]))}"
            except (NoWeightsError, LockedError) as error:
                reasons.append(str(error))
    absent = f"{store.store_folder()} has no record of {cell[0].id}, nor of its other seeds"
    return f"no weights: {reasons[0] if reasons else absent}"


def _state_when_recorded(record: Record) -> dict[str, Tensor]:
    """The weights to keep, from the run's checkpoint: the one that the record was made from."""
    path = store.checkpoint_path(record.settings.id)
    if not path.exists():
        raise NoWeightsError(
            f"no checkpoint {path}, which would have the weights of record {record.path}: copy it "
            "there, or delete the record's folder to train it anew"
        )
    values = checkpoint.read_checkpoint(path)
    if values["epoch"] > record.epochs:
        raise NoWeightsError(
            f"checkpoint {path} is at epoch {values['epoch']}, further than record {record.path} "
            f"at epoch {record.epochs}: train the run until it is recorded, then keep its weights"
        )
    if (values["epoch"], values.get("saved")) != (record.epochs, record.provenance["finished"]):
        raise _mismatch_error(record, path, "is of another training than")
    try:
        return network_with(record.settings, values["net"]).state_dict()
    except RuntimeError as error:
        raise _mismatch_error(record, path, "does not hold the network of") from error


def _pack_weights(record: Record, state: dict[str, Any]) -> bytes:
    """The content of the file of weights. Raises NoWeightsError for what the format cannot hold."""
    copies: dict[str, Tensor] = {}
    for name, value in state.items():
        try:
            # A copy: the format refuses tensors that share memory or are not contiguous.
            copies[name] = value.clone(memory_format=torch.contiguous_format)
            bytes_of({name: copies[name]})
        except (AttributeError, KeyError, ValueError, RuntimeError) as error:
            is_tensor = isinstance(value, Tensor)
            kind = f"{value.dtype}, {value.layout}" if is_tensor else type(value).__name__
            path = store.checkpoint_path(record.settings.id)
            raise NoWeightsError(
                f"the weights of record {record.path} cannot be kept: {name} ({kind}) is nothing "
                f"that safetensors holds; keep a copy of checkpoint {path} instead"
            ) from error
    # One entry alone: safetensors writes several in random order, and the bytes would vary.
    origin = json.dumps({"run": record.settings.id, "epoch": record.epochs})
    return bytes_of(copies, {"metanb": origin})


def _mismatch_error(record: Record, path: Path, relation: str) -> NoWeightsError:
    """The error of a checkpoint that is not the one of its record."""
    return NoWeightsError(f"checkpoint {path} {relation} record {record.path}: {record.anew}")
