"""Runs whose curves are noise, cheap enough for hundreds of ledgers."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest

from metanb.claims import cells as cells_module
from metanb.claims import rules
from metanb.settings import Settings
from tests.support.records import EPOCHS, QUICK, UNTRAINED

CELLS, RUNS, LEVEL = 200, 5, 0.025
NOISY = 200  # cells of each kind of noise, for one rule
WALK = 1.0  # each epoch leans on the one before with all its weight
KINDS = {"white": 0.0, "autoregressive 0.5": 0.5, "autoregressive 0.9": 0.9, "random walk": WALK}
# Some ninety rates are checked: within this many standard errors all of them pass with 99 % if the
# rules are right.
ERRORS = 4 * math.sqrt(LEVEL * (1 - LEVEL) / CELLS)
KEPT = [
    (seed, replace(QUICK, seed=seed, **options))
    for options in ({}, {"algorithm": "finetune"}, {"regulariser": "adapted", "gamma": 1.0})
    for seed in range(RUNS)
]


def noise(rng, rho, *shape):
    """Noise of mean 0 over epochs, [*shape, EPOCHS].

    Its variance is 1: in every epoch where it is stationary, in the last where it is a random walk.
    """
    e = rng.normal(size=(*shape, EPOCHS))
    if rho == WALK:
        return e.cumsum(axis=-1) / math.sqrt(EPOCHS)
    for t in range(1, EPOCHS):
        e[..., t] = rho * e[..., t - 1] + math.sqrt(1 - rho**2) * e[..., t]
    return e


class Bare(NamedTuple):
    """What the rules read of a record, as arrays."""

    settings: Settings
    curves: dict  # by measure, the means of epochs 1 to 12
    epochs: int = EPOCHS
    finished: bool = True
    final: tuple[float, float] | None = None  # accuracy on further tasks, and its error
    # by measure, those of its epochs over tasks; 0 if not given
    errors: dict = MappingProxyType({})

    def has(self, measure):
        """Whether it has a curve of a measure."""
        return measure in self.curves

    def upto(self, _):
        """All of it: no run was stopped."""
        return self


@contextmanager
def bare():
    """Lets the rules read runs that are Bare.

    What depends on settings alone is cached: it would take most of the time.
    """
    with pytest.MonkeyPatch.context() as patch:

        def read(run, measure, column="mean"):
            return (
                run.curves[measure]
                if column == "mean"
                else run.errors.get(measure, np.zeros(EPOCHS))
            )

        for module in (rules, cells_module):
            patch.setattr(module, "curve", read)
        patch.setattr(rules, "final_accuracy", lambda run: run.final)
        patch.setattr(rules, "untrained", lambda run, measure: UNTRAINED[measure])
        for name in ("scale_of", "differences_from_scale"):
            patch.setattr(rules, name, cache(getattr(rules, name)))
        yield
