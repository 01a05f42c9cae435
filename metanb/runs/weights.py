"""Trained weights kept beside a run's record: `<record>/weights.safetensors`, float32 tensors.

The tensors have the names of `ConvNet.state_dict()`; the file's metadata has the run's id and the
epoch, as JSON under "metanb". The record's provenance lists the file's SHA-256, and the file is
checked against it when it is read. The safetensors format holds numbers alone: reading it runs no
code.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from metanb.labels import DATASETS
from metanb.maml.network import ConvNet
from metanb.runs import checkpoint, records, store
from metanb.runs.records import Record, RecordError
from metanb.settings import Settings

PATIENCE = 5  # seconds to wait for a run that another process is training


class NoWeightsError(RecordError):
    """No checkpoint in the store has the weights of a record; the message says why."""


def keep_weights(record: Record) -> Path:
    """Keep the weights that a run had when it was recorded, from its checkpoint; return their file.

    Measures and the rest of the record stay as they are. Weights that are kept already stay, too.

    Args:
        record: of a run that stopped or finished, in any place.

    Raises:
        NoWeightsError: the store has no checkpoint of the run, or one of another epoch or training.
        RecordError: the record, the checkpoint, or weights that are kept already are damaged.
        metanb.files.DiskError: the record's folder cannot be written.
        filelock.Timeout: another process is training the run.
    """
    with store.lock_run(record.settings.id, PATIENCE):
        record = records.read_record(record.path)  # anew: another process may have written there
        if load_weights(record) is not None:
            return record.path / records.WEIGHTS
        state = _state_when_recorded(record)
        # One entry: of several, safetensors writes the order at random, and the bytes would vary.
        origin = json.dumps({"run": record.settings.id, "epoch": record.epochs})
        return records.attach_weights(record, bytes_of(state, {"metanb": origin}))


def keep_one_per_cell(runs: Iterable[Settings]) -> Iterator[str]:
    """Keep the weights of one run per cell: the lowest seed whose record has a checkpoint to match.

    Only records in the local store count. Yields one line per cell, which names the file or says
    why there is none. Raises RecordError and DiskError as `keep` does.
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

    Raises RecordError if the record is damaged.
    """
    last = settings.epochs if epoch is None else epoch
    for place in store.record_folders():
        folder = records.records_of_run(place, settings).get(last)
        if folder is not None and (folder / records.WEIGHTS).exists():
            return records.read_record(folder)
    return None


def load_weights(record: Record) -> dict[str, Tensor] | None:
    """The weights kept beside a record, by the names of `ConvNet.state_dict()`, on the CPU.

    None for a record without the file, even if its provenance lists a checksum: records may be
    copied without their weights. Raises RecordError for a file that is not what was kept.
    """
    path = record.path / records.WEIGHTS
    if not path.exists():
        return None
    try:
        return unpack_weights(path.read_bytes(), record.settings, record.provenance)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"weights {path} are damaged: {error}; delete the file: they are then read from the "
            "run's checkpoint, or trained anew"
        ) from error


def unpack_weights(
    content: bytes, settings: Settings, provenance: dict[str, Any]
) -> dict[str, Tensor]:
    """The weights in a file's content, as `load` returns them.

    Raises ValueError, with the reason, for content that the provenance of the run does not list, or
    that does not fit the network of the settings.
    """
    if hashlib.sha256(content).hexdigest() != provenance.get("weights_sha256"):
        raise ValueError("the content does not match weights_sha256 in provenance.json")
    try:
        state = tensors_of(content)
        network_with(settings, state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"the content is not the network of {settings.id}") from error
    if wrong := {str(tensor.dtype) for tensor in state.values()} - {"torch.float32"}:
        raise ValueError(f"the content is {', '.join(sorted(wrong))}, not torch.float32")
    return state


def network_with(settings: Settings, state: dict[str, Tensor]) -> ConvNet:
    """The network of a run with given weights, on the CPU, without a look at the image set.

    Raises KeyError or RuntimeError for weights that do not fit.
    """
    outputs = settings.ways
    if settings.algorithm == "finetune":  # one per meta-train class
        outputs = settings.train_classes or state["head.bias"].numel()
    with torch.random.fork_rng(devices=[]):  # the first weights, which are replaced, take no draws
        shape = DATASETS[settings.dataset].shape
        net = ConvNet(shape, outputs, settings.filters, settings.head_init)
    net.load_state_dict(state)
    return net


def _keep_lowest_seed(cell: list[Settings]) -> str:
    """Keep the weights of the first of these runs that can be; a line that says which."""
    reasons: list[str] = []
    for settings in cell:
        folders = records.records_of_run(store.store_folder(), settings)
        if folders:
            try:
                return f"weights: {keep_weights(records.read_record(folders[max(folders)]))}"
            except (NoWeightsError, Timeout) as error:
                reasons.append(str(error))
    absent = f"{store.store_folder()} has no record of {cell[0].id}, nor of its other seeds"
    return f"no weights: {reasons[0] if reasons else absent}"


def _state_when_recorded(record: Record) -> dict[str, Tensor]:
    """The weights in the run's checkpoint, if it is the one that the record was made from."""
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
        raise _not_of(record, path, "is of another training than")
    try:
        network_with(record.settings, values["net"])
    except (KeyError, RuntimeError) as error:
        raise _not_of(record, path, "does not hold the network of") from error
    return values["net"]


def _not_of(record: Record, path: Path, relation: str) -> NoWeightsError:
    return NoWeightsError(f"checkpoint {path} {relation} record {record.path}: {record.anew}")
