"""The engine: features that change the speed and the last bits of a run, never its meaning.

On a CPU a run is computed by itself. On a GPU runs that differ by seeds alone share a batch, and
other features keep the card busy. METANB_WITHOUT turns features off; METANB_WITH turns on those
that are off by default. Where a feature fails, the work goes on without it, with one line of
warning. A run's provenance names its features.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # the import takes seconds, and the grid's runner reads TOGETHER alone

TOGETHER = 10  # runs per batch at most: the paper's five seeds, and room for more
FEATURES = {
    "together": "runs that differ by seeds alone train as one batch",
    "resident": (
        "the image set lies on the device, and an iteration sends the numbers of its images"
    ),
    "compile": "chains of elementwise operations are compiled into one kernel each",
    "graph": "an iteration's kernels are recorded once and replayed as one CUDA graph",
    "tf32": "training's matrix products round their factors to TF32; measures never do",
}
# Off by default: it changes an untrained network's meta-gradient by a twentieth or more, see
# tests/maml/test_engine.py.
ON_REQUEST = ("tf32",)


@dataclass(frozen=True)
class Engine:
    """The features that are on; the reference, as on a CPU, has them all off."""

    together: int = 1  #: runs per batch at most
    resident: bool = False
    compile: bool = False
    graph: bool = False
    tf32: bool = False

    @property
    def precision(self) -> str:
        """Precision of training's matrix products, for provenance."""
        return "TF32" if self.tf32 else "float32"

    @property
    def features(self) -> str:
        """Names of the features that are on, for provenance, which has the batch size by itself."""
        names = [name for name in ("resident", "compile", "graph") if getattr(self, name)]
        return " ".join(names) or "plain"


def choose_engine(device: torch.device, together: int | None = None) -> Engine:
    """Return the engine for a device.

    A CPU's has no feature. A GPU's has all but ON_REQUEST, less METANB_WITHOUT, plus METANB_WITH.

    Args:
        device: where runs are computed.
        together: runs per batch at most; None: TOGETHER on a GPU, 1 elsewhere.

    Raises:
        ValueError: METANB_WITHOUT or METANB_WITH names no feature.
    """
    without = _read_features("METANB_WITHOUT")
    requested = _read_features("METANB_WITH")
    if device.type != "cuda":
        return Engine(1 if together is None or "together" in without else together)
    default = [name for name in FEATURES if name not in ON_REQUEST]
    names = {*default, *requested} - set(without)
    options: dict[str, Any] = {name: name in names for name in FEATURES}
    most = TOGETHER if together is None else together
    return Engine(**options | {"together": most if options["together"] else 1})


def _read_features(variable: str) -> list[str]:
    """The features that an environment variable names, separated by commas or spaces."""
    names = os.environ.get(variable, "").replace(",", " ").split()
    for name in names:
        if name not in FEATURES:
            raise ValueError(f"{variable} names {name!r}: choose from {', '.join(FEATURES)}")
    return names


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Set the precision of a GPU's float32 matrix products inside the context.

    If `tf32`, their factors are rounded to TF32 (10 bits of fraction).
    """
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def warn_without(feature: str, error: Exception) -> None:
    """Print one line on standard error: the feature failed, and the work goes on without it."""
    lines = str(error).strip().splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    print(
        f"without {feature!r} ({FEATURES[feature]}), which failed: {reason}; "
        f"METANB_WITHOUT={feature} leaves it out from the start",
        file=sys.stderr,
    )
