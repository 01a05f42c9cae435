"""The landscape of a run at stages of its training: computed once, kept as small text files.

    <id>.surface.json         the losses of one task on the plane of two tasks' trajectories
    <id>.interpolation.json   the losses along the line from theta_s through theta~_i, over tasks
    <id>.spectrum.json        the Hessian's spectrum at theta~_i, over tasks
    <id>.film.json            the surface of the support loss, and accuracy, at many stages

The stages are the start, the middle and the end; those of a film are at `TWELFTHS` of the training.
The files are beside the run's record: in `results/` (committed), or in the local store. Few records
have their weights beside them, so a portrait may be drawn from weights that were trained anew, on
another machine. Its provenance says so. The query accuracy and the distance in the interpolation
are measures of the run, too: they can be compared.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from metanb import files
from metanb.landscape.portrait import KINDS, adapt_at_stage
from metanb.maml.inner_loop import flatten
from metanb.runs import checkpoint, machine, records, store, training, weights
from metanb.runs.cohorts import TEST
from metanb.runs.experiment import nets_after
from metanb.runs.machine import resolve_device
from metanb.settings import Settings, from_dict

# The stages of a film, in twelfths of the training: dense at first, where accuracy rises fastest.
TWELFTHS = (0, 1, 2, 3, 4, 6, 9, 12)
KEYS = {"kind", "settings", "values", "provenance", "sha256"}


@dataclass(frozen=True)
class Portrait:
    """One kind of portrait of one run.

    Attributes:
        settings: of the run.
        values: the result of the kind's function in `metanb.landscape.portrait.KINDS`, to four
            digits.
        provenance: versions, device, code, the data's digest and the date; under `weights` those of
            the training.
        path: the file.
    """

    settings: Settings
    values: dict[str, Any]
    provenance: dict[str, Any]
    path: Path


def portrait(kind: str, settings: Settings, device: str = "auto") -> Portrait:
    """The portrait of a run: read if there is one, drawn if not.

    It is drawn from stored weights, or from weights that are trained for it.

    Args:
        kind: "surface", "interpolation", "spectrum" or "film".
        settings: of the run, of two or more epochs; without the content of a data set of one's own,
            that of the images that are there.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        metanb.runs.records.RecordError: a portrait exists, but it is damaged.
        metanb.data.cache.DataError: the data set is missing, or is not the one that the run was
            trained on.
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: choose from {', '.join(KINDS)}")
    (settings,) = training.identify_runs([settings])
    if stored := find_portrait(kind, settings):
        return stored
    with store.lock_run(f"{settings.id}.{kind}"):
        # Look again: another process may have drawn it while this one waited.
        return find_portrait(kind, settings) or _draw(kind, settings, resolve_device(device))


def find_portrait(kind: str, settings: Settings) -> Portrait | None:
    """The stored portrait of a run, or None.

    Raises:
        metanb.runs.records.RecordError: the portrait is damaged.
        metanb.data.cache.DataError: a data set of one's own, whose content the settings do not
            give, is missing.
    """
    (settings,) = training.identify_runs([settings])
    for folder in store.record_folders():
        path = folder / f"{settings.id}.{kind}.json"
        if path.exists():
            return _read_portrait(path, kind, settings)
    return None


def _draw(kind: str, settings: Settings, device: torch.device) -> Portrait:
    """Draw a portrait and write it into the local store.

    Raises DataError if the images are not those that a stage was trained on.
    """
    # Get the weights of each stage, and the images of the run.
    epochs = _epochs_of_stages(kind, settings)
    nets = nets_after(settings, epochs, str(device))
    origins = {epoch: _origin_of_net(settings, epoch) for epoch in epochs if epoch}
    images = training.load_split(settings, "test")
    for origin in origins.values():
        training.require_images(images, origin.get("data", {}))

    # Compute the values at each stage.
    tasks = training.fixed_tasks(settings, images, settings.test_tasks, TEST).to(device)
    at_test = settings
    if settings.test_head == "centred":
        at_test = replace(settings, test_head="fresh")
        for epoch, net in nets.items():
            origin = origins[epoch or epochs[-1]]  # an untrained network has none of its own
            _centre_head(settings, net, origin.get("data", {}))
    stages = [
        adapt_at_stage(at_test, epoch, nets[epoch].to(device), tasks) for epoch in sorted(nets)
    ]
    values = KINDS[kind](stages)

    # Note where they come from.
    provenance = {
        **machine.describe_environment(device),
        "code": machine.code_version(),
        "data": images.digest,
        "drawn": machine.utc_now(),
        "weights": _describe_training(origins[epochs[-1]]),
    }
    if kind == "film" and epochs[-2] in origins:  # an untrained network has none
        provenance["earlier_weights"] = _describe_training(origins[epochs[-2]])

    # Write both, with a checksum.
    content = {
        "kind": kind,
        "settings": settings.to_dict(),
        "provenance": provenance,
        "values": _round_numbers(values),
    }
    path = store.store_folder() / f"{settings.id}.{kind}.json"
    files.replace(path, _format_file(content | {"sha256": _digest(content)}).encode())
    return _read_portrait(path, kind, settings)


def _centre_head(settings: Settings, net: nn.Module, digests: dict[str, str]) -> None:
    """Take its common answer out of a network's head, as where the run is measured."""
    theta = flatten(net).detach().unsqueeze(0)
    (centred,) = training.weights_at_test(net, theta, [settings], [digests])
    vector_to_parameters(centred, net.parameters())


def _epochs_of_stages(kind: str, settings: Settings) -> list[int]:
    """The epochs after which a kind of portrait is computed, from 0 to the last."""
    twelfths = TWELFTHS if kind == "film" else (0, 6, 12)
    return sorted({settings.epochs * number // 12 for number in twelfths})


def _origin_of_net(settings: Settings, epoch: int) -> dict[str, Any]:
    """The provenance of the training whose weights `nets_after` gives after an epoch, from 1 on.

    Under `trained` it has the date; the provenance of a checkpoint from an older archive is empty.
    """
    part = settings.ending(epoch)
    if record := weights.find_weights(settings, epoch) or weights.find_weights(part):
        return record.provenance | {"trained": record.provenance["finished"]}
    values = checkpoint.read_checkpoint(store.checkpoint_path(part.id))
    return values.get("origin", {}) | {"trained": values.get("saved")}


def _describe_training(origin: dict[str, Any]) -> dict[str, Any]:
    """Code, versions, device and date of the training of weights, None where it is not known."""
    return {name: origin.get(name) for name in ("code", "torch", "device", "threads", "trained")}


def _format_file(content: dict[str, Any]) -> str:
    """A portrait's file: JSON, one line per entry."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}"
        for name, value in content.items()
    )
    return "{" + ",\n".join(lines) + "}\n"


def _read_portrait(path: Path, kind: str, settings: Settings) -> Portrait:
    """Read and check a portrait.

    Raises RecordError for a file that is torn, changed, or of other settings.
    """
    try:
        content = files.parse_json(path.read_text())
        if not isinstance(content, dict) or content.keys() != KEYS:
            raise ValueError(f"it does not hold {', '.join(sorted(KEYS))}")
        if content.pop("sha256") != _digest(content):
            raise ValueError("it is not what was drawn")
        if (content["kind"], from_dict(content["settings"])) != (kind, settings):
            raise ValueError(f"it is not the {kind} of {settings.id}")
    except (OSError, ValueError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise records.RecordError(
            f"portrait {path} is damaged: {error}; delete the file to draw it anew"
        ) from error
    return Portrait(settings, content["values"], content["provenance"], path)


def _digest(content: dict[str, Any]) -> str:
    """The SHA-256 of a portrait's entries."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _round_numbers(value: Any) -> Any:
    """The same value with tensors as lists, and numbers rounded to four digits."""
    if isinstance(value, dict):
        return {name: _round_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_round_numbers(entry) for entry in value]
    if isinstance(value, Tensor):
        return _round_numbers(value.tolist())
    return float(f"{value:.4g}") if isinstance(value, float) else value
