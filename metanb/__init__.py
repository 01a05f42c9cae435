"""metanb: gradient-based meta-learning through `higher`, and the landscape of its solutions.

A reproduction of Guiroy, Verma and Pal, "Towards Understanding Generalization in Gradient-Based
Meta-Learning" (arXiv:1907.07287). `run(preset("smoke", "glyphs"))` trains a run, or reads its
record; the book explains the rest.
"""

from typing import TYPE_CHECKING, Any

from metanb.runs.records import Record
from metanb.settings import Settings, preset

if TYPE_CHECKING:
    from metanb.runs.experiment import run, run_all, trained_net

__all__ = ["Record", "Settings", "preset", "run", "run_all", "trained_net"]
# pyproject.toml reads the version from here, so a checkout that is not installed has it, too.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `run`, `run_all` and `trained_net` at first use: torch takes seconds to import."""
    if name in ("run", "run_all", "trained_net"):
        from metanb.runs import experiment

        return getattr(experiment, name)
    raise AttributeError(
        f"module 'metanb' has no attribute {name!r}: choose from {', '.join(__all__)}"
    )
