"""The state of a run in progress, saved after each epoch: a kill loses at most one."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metanb import files
from metanb.maml.network import ConvNet
from metanb.runs import machine
from metanb.runs.records import RecordError
from metanb.settings import Settings

PLAIN = ("origin", "epoch", "rows", "wall", "cpu", "shared", "resumed", "started", "saved")
# what the first version does not say of how it computed
FORMERLY = {"together": 1, "precision": "float32"}
# what checkpoints of the first version lack, and what stands for it: runs were alone
ADDED = {"shared": "wall"}


@dataclass(eq=False)
class State:
    """What a checkpoint holds.

    The random state is the seed and the epoch: every draw is seeded by its iteration.
    """

    settings: Settings  # not in the file, whose name tells the run
    net: ConvNet  # on the CPU, as all here
    optimiser: torch.optim.Adam
    # environment, code, digests of the data; what changed between sessions is listed
    origin: dict[str, Any]
    epoch: int = -1  # last epoch finished and measured; 0 is the untrained network
    rows: list[dict[str, Any]] = field(default_factory=list)  # of measures
    wall: float = 0.0  # seconds
    cpu: float = 0.0
    # seconds of `wall`, divided by the number of runs that were trained together
    shared: float = 0.0
    resumed: int = 0
    started: str = field(default_factory=machine.utc_now)
    saved: str = ""

    def save(self, path: Path) -> None:
        """Replace the checkpoint, as `metanb.files.replace` does. The caller holds the lock."""
        self.saved = machine.utc_now()
        plain, stream = {name: getattr(self, name) for name in PLAIN}, io.BytesIO()
        torch.save(
            plain | {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict()}, stream
        )
        files.replace(path, stream.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises RecordError for one that is torn, of another design, or of other data.
        """
        here, values = self.origin, read_checkpoint(path)
        try:
            self.net.load_state_dict(values["net"])
            self.optimiser.load_state_dict(values["optimiser"])
            for name in PLAIN:
                setattr(self, name, values[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise _unusable(path, "is of another version") from error
        if self.origin["data"] != here["data"]:
            raise _unusable(path, "was made from other data")
        # on a GPU it replayed a graph, and that was all
        graph = str(self.origin["device"]).startswith("NVIDIA")
        self.origin = FORMERLY | {"engine": "graph" if graph else "plain"} | self.origin
        for name, value in here.items():
            if name != "data":
                self.note(name, value)
        self.resumed += 1

    def note(self, name: str, value: Any) -> None:
        """Add to the provenance how the run is computed now, behind what it says of before if that differs."""
        before = self.origin.setdefault(name, value)
        if str(value) not in str(before).split(", "):
            self.origin[name] = f"{before}, {value}"


def go_on_from(shorter: Path, path: Path) -> None:
    """Let the run of checkpoint `path`, if it has none yet, start where a shorter one stands.

    The two must be runs of the same settings but for their length. Weights without their optimiser,
    as archives hold them, are nothing to go on from: the run then starts anew. The caller holds the
    lock of `path`.
    """
    if not path.exists() and "optimiser" in read_checkpoint(shorter):
        files.replace(path, shorter.read_bytes())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, plain values and tensors only.

    Raises RecordError for a file that is torn.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a torn file
        raise _unusable(path, f"cannot be read ({type(error).__name__})") from error
    if not (isinstance(values, dict) and {"epoch", "net"} <= values.keys()):
        raise _unusable(path, "cannot be read: it holds no network")
    return {name: values[other] for name, other in ADDED.items() if other in values} | values


def _unusable(path: Path, what: str) -> RecordError:
    return RecordError(f"checkpoint {path} {what}: delete it to start anew")
