"""A ledger of synthetic records, for the tests that draw it."""

from dataclasses import replace

import numpy as np
import pytest

from metanb.claims import rules
from metanb.settings import preset
from tests.support.records import TIME, cell

LARGE = {"filters": 64, "iterations": 60_000, "epoch_iterations": 500}  # stopped at 6,000


@pytest.fixture(scope="module")
def rows():
    """The ledger of small and large runs, where the Hessian norm falls by its scale alone."""
    flatter = {"hessian_norm": np.exp(-TIME)}
    return rules.judge(
        cell({})
        + cell(flatter, algorithm="fomaml")
        + [
            replace(run, settings=preset("quick", "glyphs", seed=run.settings.seed))
            for run in cell({}, wobble=0.02)
        ]
        + cell({}, head_init="zero")
        + cell(flatter, **LARGE)
        + cell(
            {"hessian_norm": np.exp(-TIME), "adaptive_sharpness": np.exp(-2 * TIME)},
            algorithm="fomaml",
            **LARGE,
        )
        + [
            run
            for gamma in (0.1, 0.3)
            for run in cell(
                {"query_accuracy": 0.5 + 0.1 * TIME}, regulariser="adapted", gamma=gamma, **LARGE
            )
        ]
    )
