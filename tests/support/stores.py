"""Stores that hold a run with its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metanb.runs import weights
from metanb.runs.experiment import run
from metanb.settings import Settings


@contextmanager
def store_with(settings: Settings, folder: Path) -> Iterator[Path]:
    """Train a run and keep its weights in a store in `folder`; inside, it is the store in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(folder))
        weights.keep_weights(run(settings, "cpu"))
        yield folder
