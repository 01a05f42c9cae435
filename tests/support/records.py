"""Records of runs that never ran, with curves given by the test, and what rules say of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from metanb.claims import rules
from metanb.runs.records import Record
from metanb.settings import preset

EPOCHS = 12

TIME = np.arange(1, EPOCHS + 1) / EPOCHS

FALLS = np.exp(-2 * TIME)

QUICK = preset("quick", "omniglot")

PAPER = {
    "filters": 64,
    "meta_batch": 32,
    "iterations": 60_000,
    "epoch_iterations": 500,
    "final_tasks": 600,
}

UNTRAINED = {"query_accuracy": 0.2}

MEASURES = (
    "hessian_norm adaptive_sharpness support_loss_before support_loss distance body_norm "
    "query_accuracy valid_accuracy trajectory_coherence gradient_coherence relative_move"
).split()


def record(seed, curves=None, wobble=0.01, errors=None, **settings):
    """A run with the curves given for epochs 1 to 12, and about 1 elsewhere.

    Epoch 0 is far off, and must not count but for UNTRAINED. `errors` are those over tasks, by
    measure, else 0.
    """
    settings = preset("quick", "omniglot", seed=seed, **settings)
    rng = np.random.default_rng([seed, int(settings.id[-8:], 16)])
    rows = []
    for measure in MEASURES:
        values = np.asarray((curves or {}).get(measure, np.ones(EPOCHS)), dtype=float)
        values = np.r_[
            UNTRAINED.get(measure, 1000.0), values * np.exp(wobble * rng.normal(size=EPOCHS))
        ]
        columns = {
            "iteration": settings.epoch_iterations * np.arange(EPOCHS + 1),
            "measure": measure,
            "mean": values,
            "median": values,
            "std": 0.0,
            "n": 30,
            "sem": (errors or {}).get(measure, 0.0),
        }
        rows.append(pd.DataFrame({"epoch": range(EPOCHS + 1), **columns}))
    return Record(settings, pd.concat(rows), {}, Path(settings.id))


def cell(curves, seeds=range(3), **settings):
    return [record(seed, curves, **settings) for seed in seeds]


def at_paper_settings(curves, seeds=range(3), epochs=10, **settings):
    """Runs at the paper's settings that were stopped after some epochs."""
    runs = cell(curves, seeds, **PAPER, **settings)
    return [run.upto(epochs) for run in runs]


def stopped_run(seed, accuracy, epochs):
    """A run at the paper's settings that was stopped, with an accuracy on the further tasks."""
    (run,) = at_paper_settings({}, [seed], epochs)
    final = {"epoch": epochs, "iteration": 500 * epochs, "measure": "final_accuracy"}
    final |= {"mean": accuracy, "sem": 0.01 * (1 + seed), "n": 600}
    return replace(run, measures=pd.concat([run.measures, pd.DataFrame([final])]))


def timed(settings, seconds, device, epochs=120):
    """A run of some seconds on a device, without curves."""
    origin = {
        "device": device,
        "wall_seconds": seconds,
        "cpu_seconds": seconds,
        "resumed": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat(),
    }
    measures = pd.DataFrame({"epoch": range(epochs + 1)})
    return Record(settings, measures, origin, Path(settings.id))


def verdict(runs, claim, variant="", algorithm="maml"):
    (row,) = (
        r
        for r in rules.judge(runs)
        if (r.claim, r.variant, r.algorithm) == (claim, variant, algorithm)
    )
    return row.verdict
