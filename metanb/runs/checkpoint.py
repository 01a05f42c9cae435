"""The state of a run in progress, saved after each epoch: a kill loses at most one."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from metanb import files
from metanb.runs import machine
from metanb.runs.records import RecordError
from metanb.settings import Settings

# The attributes of State that a checkpoint holds as they are.
PLAIN = ("origin", "epoch", "rows", "wall", "cpu", "shared", "resumed", "started", "saved")
# The provenance that checkpoints of the first version lack. It holds for all of their runs.
FIRST_VERSION = {"together": 1, "precision": "float32"}
# The values that checkpoints of the first version lack, and the value that is equal: each run was
# alone, and had all of the time for itself.
ADDED = {"shared": "wall"}


@dataclass(eq=False)
class State:
    """A run in progress, on the CPU: what a checkpoint holds, and the run's settings.

    The seed and the epoch are all of the random state: every draw is seeded by its iteration.

    Attributes:
        settings: of the run; not in the file, which is named after the run.
        net: the network.
        optimiser: of its parameters.
        origin: environment, code, digests of the data; where a value has changed when the run went
            on, both are listed.
        epoch: the last one that was trained and measured; 0: the untrained network; -1: none.
        rows: of measures, as `metanb.runs.records.write_record` takes them.
        wall: seconds by the clock.
        cpu: seconds of the CPU; those of runs trained together are divided among them.
        shared: seconds by the clock, divided by the number of runs that were trained together.
        resumed: how often the run went on from a checkpoint.
        started: the date and time of the first epoch.
        saved: the date and time of the last checkpoint.
    """

    settings: Settings
    net: nn.Module
    optimiser: torch.optim.Adam
    origin: dict[str, Any]
    epoch: int = -1
    rows: list[dict[str, Any]] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0
    shared: float = 0.0
    resumed: int = 0
    started: str = field(default_factory=machine.utc_now)
    saved: str = ""

    def save(self, path: Path) -> None:
        """Replace the checkpoint, as `metanb.files.replace` does. The caller holds the lock."""
        self.saved = machine.utc_now()
        values = {name: getattr(self, name) for name in PLAIN}
        values["net"] = self.net.state_dict()
        values["optimiser"] = self.optimiser.state_dict()
        stream = io.BytesIO()
        torch.save(values, stream)
        files.replace(path, stream.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises RecordError for a checkpoint that is torn, of another network, or of other data.
        """
        # Read the checkpoint into this state.
        origin_now = self.origin
        values = read_checkpoint(path)
        try:
            self.net.load_state_dict(values["net"])
            self.optimiser.load_state_dict(values["optimiser"])
            for name in PLAIN:
                setattr(self, name, values[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise _unusable(path, "is of another version") from error
        if self.origin["data"] != origin_now["data"]:
            raise _unusable(path, "was made from other data")

        # Complete the provenance of the first version. On a GPU it replayed a graph, and no more.
        on_gpu = str(self.origin["device"]).startswith("NVIDIA")
        self.origin = FIRST_VERSION | {"engine": "graph" if on_gpu else "plain"} | self.origin

        # Note what has changed since then.
        for name, value in origin_now.items():
            if name == "algorithm":
                self.origin[name] = value  # the entry of an algorithm, as it is registered now
            elif name != "data":
                self.note(name, value)
        self.resumed += 1

    def note(self, name: str, value: Any) -> None:
        """Note in the provenance how the run is computed now.

        A value that differs from the earlier ones is listed behind them: "NVIDIA A, NVIDIA B". One
        value may have commas of its own: "Intel Xeon Processor (Skylake, IBRS) (AVX2)".
        """
        before = self.origin.setdefault(name, value)
        if f", {value}, " not in f", {before}, ":
            self.origin[name] = f"{before}, {value}"


def go_on_from(shorter: Path, path: Path) -> None:
    """Let a run that has no checkpoint yet start from that of a shorter run.

    Weights without their optimiser, as earlier archives hold them, are no start: the run then
    begins anew. The caller holds the longer run's lock.

    Args:
        shorter: the checkpoint of a run with the same settings but for their length.
        path: of the longer run's checkpoint.
    """
    if not path.exists() and "optimiser" in read_checkpoint(shorter):
        files.replace(path, shorter.read_bytes())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: the attributes of its `State` by name, the network's and Adam's state.

    Checkpoints hold plain values and tensors only, on the CPU: reading them runs no code. Earlier
    archives hold "epoch" and "net" alone.

    Raises RecordError for a file that is torn.
    """
    try:
        return parse_checkpoint(path)
    except ValueError as error:
        raise _unusable(path, str(error)) from error


def parse_checkpoint(source: Path | BinaryIO) -> dict[str, Any]:
    """Read a checkpoint as `read_checkpoint` does, from a file that need not be in the store.

    Raises ValueError for what is no checkpoint; the message says why.
    """
    try:
        values = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a torn file
        raise ValueError(f"cannot be read ({type(error).__name__})") from error
    if not (isinstance(values, dict) and "net" in values and isinstance(values.get("epoch"), int)):
        raise ValueError("cannot be read: it holds no network, or no epoch")
    added = {name: values[equal] for name, equal in ADDED.items() if equal in values}
    return added | values


def _unusable(path: Path, reason: str) -> RecordError:
    """The error of a checkpoint that no run can go on from."""
    return RecordError(f"checkpoint {path} {reason}: delete it to start anew")
