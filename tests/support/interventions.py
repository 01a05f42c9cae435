"""Records of interventions that never ran, with values at the end given by the test."""

from pathlib import Path

import numpy as np
import pandas as pd

from metanb.claims.predictions import PREDICTIONS
from metanb.grids.interventions import BY_NAME, intervention_runs
from metanb.runs.records import Record

SEEDS = range(5)
MEASURES = sorted({each.measure for each in PREDICTIONS} | {"support_loss", "distance"})


def made_up(name, algorithm="fomaml", seeds=SEEDS, sem=0.0, **values):
    """An intervention's runs, with values at the end by measure: a number, or one per seed."""
    settings = intervention_runs("quick", "omniglot", 5, 1, seeds, algorithm, BY_NAME[name])
    runs = []
    for i, run in enumerate(settings):
        rows = []
        for measure in MEASURES:
            value = np.broadcast_to(values.get(measure, 0.5), len(settings))[i]
            for epoch in [3] if measure == "final_accuracy" else range(4):
                at_the_end = value if epoch == 3 else 1000.0  # must not count
                rows.append((epoch, 600 * epoch, measure, at_the_end, at_the_end, 0.0, sem, 60))
        columns = ["epoch", "iteration", "measure", "mean", "median", "std", "sem", "n"]
        runs.append(Record(run, pd.DataFrame(rows, columns=columns), {}, Path(run.id)))
    return runs
