"""What a run's landscape looks like at its start, middle and end: computed once, kept as small text files.

    <id>.surface.json         the losses of one task on the plane of two tasks' trajectories
    <id>.interpolation.json   losses along the line from theta_s through theta~_i and beyond, over tasks
    <id>.spectrum.json        the Hessian's spectrum at theta~_i, over tasks

They stand beside the run's record: in `results/` (committed), or in the local store. Few records
have their weights beside them, so a portrait may be drawn from weights that were trained anew, on
another machine: its provenance says so, and the query accuracy and distance that come with the
interpolation are the run's measures, to be compared.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanb import files
from metanb.data import image_sets
from metanb.landscape.portrait import KINDS, adapt_at_stage
from metanb.runs import checkpoint, machine, records, store, weights
from metanb.runs.experiment import meta_test_tasks, nets_after
from metanb.runs.machine import resolve_device
from metanb.settings import Settings, from_dict

KEYS = {"kind", "settings", "values", "provenance", "sha256"}


@dataclass(frozen=True)
class Portrait:
    """One kind of portrait of one run.

    Attributes:
        settings: of the run.
        values: what `surfaces`, `interpolations` or `spectra` of `metanb.landscape.portrait` gives,
            to four digits.
        provenance: versions, device, code, the data's digest and the date; `weights`: with what
            these were trained.
        path: the file.
    """

    settings: Settings
    values: dict[str, Any]
    provenance: dict[str, Any]
    path: Path


def portrait(kind: str, settings: Settings, device: str = "auto") -> Portrait:
    """The portrait of a run: read if there is one, else drawn, from stored weights or newly trained ones.

    Args:
        kind: "surface", "interpolation" or "spectrum".
        settings: of the run, of two or more epochs.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        metanb.runs.records.RecordError: a portrait is there, but damaged.
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: choose from {', '.join(KINDS)}")
    name = f"{settings.id}.{kind}"

    def found() -> Portrait | None:
        paths = (place / f"{name}.json" for place in store.record_folders())
        return next((_read(path, kind, settings) for path in paths if path.exists()), None)

    if there := found():
        return there
    with store.lock_run(name):
        return found() or _draw(kind, settings, resolve_device(device))


def _draw(kind: str, settings: Settings, device: torch.device) -> Portrait:
    epochs = (0, settings.epochs // 2, settings.epochs)
    nets = nets_after(settings, epochs, str(device))
    tasks = meta_test_tasks(settings).to(device)
    values = KINDS[kind](
        [adapt_at_stage(settings, epoch, nets[epoch].to(device), tasks) for epoch in sorted(nets)]
    )
    origin = {
        **machine.describe_environment(device),
        "code": machine.code_version(),
        "data": image_sets.load_images(
            settings.dataset, "test", partition=settings.partition
        ).digest,
        "drawn": machine.utc_now(),
        "weights": _origin_of_weights(settings),
    }
    path = store.store_folder() / f"{settings.id}.{kind}.json"
    content = {
        "kind": kind,
        "settings": settings.to_dict(),
        "provenance": origin,
        "values": _plain(values),
    }
    files.replace(path, _text(content | {"sha256": _digest(content)}).encode())
    return _read(path, kind, settings)


def _origin_of_weights(settings: Settings) -> dict[str, Any]:
    """With what the weights that `nets_after` found were trained, and when."""
    if record := weights.find_weights(settings):
        origin, trained = record.provenance, record.provenance["finished"]
    else:
        values = checkpoint.read_checkpoint(store.checkpoint_path(settings.id))
        origin, trained = values.get("origin", {}), values.get("saved")  # not in older archives
    names = ("code", "torch", "device", "threads")
    return {name: origin.get(name) for name in names} | {"trained": trained}


def _text(content: dict[str, Any]) -> str:
    """A portrait's file: one line for each entry."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}"
        for name, value in content.items()
    )
    return "{" + ",\n".join(lines) + "}\n"


def _read(path: Path, kind: str, settings: Settings) -> Portrait:
    """Raises RecordError for a file that is torn, changed, or of other settings."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.keys() != KEYS:
            raise ValueError(f"it does not hold {', '.join(sorted(KEYS))}")
        if content.pop("sha256") != _digest(content):
            raise ValueError("it is not what was drawn")
        if (content["kind"], from_dict(content["settings"])) != (kind, settings):
            raise ValueError(f"it is not the {kind} of {settings.id}")
    except (OSError, ValueError) as error:  # of which bad UTF-8 and bad JSON are kinds
        raise records.RecordError(
            f"portrait {path} is damaged: {error}; delete the file to draw it anew"
        ) from error
    return Portrait(settings, content["values"], content["provenance"], path)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Lists of numbers of four digits, for tensors anywhere in a value."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    return float(f"{value:.4g}") if isinstance(value, float) else value
