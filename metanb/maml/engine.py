"""How runs are computed on a device: what changes their speed and their last bits, never their meaning.

On a CPU a run is computed by itself. On a GPU runs that differ by seeds alone share a batch, and
more is done to keep the card busy. Each of these features can be left out by METANB_WITHOUT, and
gives way by itself, with one line of warning, where it fails; METANB_WITH asks for those that are
not on by themselves. A run's provenance says which were.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # it takes seconds, and the grid's runner reads TOGETHER alone

TOGETHER = 10  # runs at most in a batch: the paper's five seeds, and room for more
FEATURES = {
    "together": "runs that differ by seeds alone train as one batch",
    "resident": "the image set lies on the device, and an iteration sends the numbers of its images",
    "compile": "chains of elementwise operations are compiled into one kernel each",
    "graph": "an iteration's kernels are recorded once and replayed as one CUDA graph",
    "tf32": "training's matrix products round their factors to TF32; measures never do",
}
# Off unless asked for: it changes an untrained network's meta-gradient by a twentieth or more, see
# test_engine.py.
ON_REQUEST = ("tf32",)


@dataclass(frozen=True)
class Engine:
    """What is done for speed; everything off, as on a CPU, is the reference."""

    together: int = 1  #: runs at most in one batch
    resident: bool = False
    compile: bool = False
    graph: bool = False
    tf32: bool = False

    @property
    def precision(self) -> str:
        """Of training's matrix products, for provenance."""
        return "TF32" if self.tf32 else "float32"

    @property
    def features(self) -> str:
        """The names of the features that are on, for provenance; of `together`, the batch itself tells."""
        names = [name for name in ("resident", "compile", "graph") if getattr(self, name)]
        return " ".join(names) or "plain"


def choose_engine(device: torch.device, together: int | None = None) -> Engine:
    """The engine for a device: nothing on a CPU; on a GPU everything but ON_REQUEST, as METANB_WITHOUT and _WITH say.

    Args:
        device: where runs are computed.
        together: runs at most in a batch; None: TOGETHER on a GPU, 1 elsewhere.

    Raises:
        ValueError: METANB_WITHOUT or METANB_WITH names no feature.
    """
    without, also = _named("METANB_WITHOUT"), _named("METANB_WITH")
    if device.type != "cuda":
        return Engine(1 if together is None or "together" in without else together)
    names = {name for name in FEATURES if name not in ON_REQUEST or name in also} - set(without)
    on: dict[str, Any] = {name: name in names for name in FEATURES}
    most = TOGETHER if together is None else together
    return Engine(**on | {"together": most if on["together"] else 1})


def _named(variable: str) -> list[str]:
    """The features that an environment variable names, separated by commas or spaces."""
    names = os.environ.get(variable, "").replace(",", " ").split()
    for name in names:
        if name not in FEATURES:
            raise ValueError(f"{variable} names {name!r}: choose from {', '.join(FEATURES)}")
    return names


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Inside, a GPU's float32 matrix products round their factors to TF32 (10 bits of fraction), if `tf32`."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def warn_without(feature: str, error: Exception) -> None:
    """One line on standard error: the feature failed, and the work goes on without it."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    print(
        f"without {feature!r} ({FEATURES[feature]}), which failed: {reason}; METANB_WITHOUT={feature} leaves it out "
        "from the start",
        file=sys.stderr,
    )
