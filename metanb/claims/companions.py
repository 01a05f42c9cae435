"""What goes with accuracy between networks and between epochs: tables for exploring, not verdicts.

The paper's claims follow a measure over meta-training, within a run. Two further questions need no
further run. Between trained networks of one setting, which measure goes with accuracy? And if
meta-training were stopped where a measure is best, how much accuracy would it cost? No rule was
written before these tables were seen.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from metanb.claims.cells import curve, cut_to_common_length, group_into_cells, late_values
from metanb.labels import MEASURES
from metanb.runs.records import Record
from metanb.settings import scale_of

MIN_CELLS = 5  # networks that a rank correlation takes at least
# By what meta-training is stopped: the measure, and whether its greatest or its least value counts.
# Meta-validation accuracy needs labelled tasks of further classes, the others need none.
STOPPED_BY = {
    "valid_accuracy": max,
    "trajectory_coherence": max,
    "gradient_coherence": max,
    "hessian_norm": min,
    "support_loss": min,
}


def between_cells(records: Iterable[Record], measures: Sequence[str]) -> pd.DataFrame:
    """Late accuracy and late measures of each cell: means over its runs.

    Args:
        records: of any cells.
        measures: to compare with accuracy.

    Returns:
        A row per cell: `setting` (data set, ways, shots, scale), `algorithm`, `runs`,
        `query_accuracy` and each measure.
    """
    rows = []
    for cell in map(cut_to_common_length, group_into_cells(records)):
        settings = cell[0].settings
        row = {
            "setting": f"{settings.dataset}, {settings.setting}, {scale_of(settings)}",
            "algorithm": settings.algorithm,
            "runs": len(cell),
        }
        for measure in ("query_accuracy", *measures):
            row[measure] = float(late_values(cell, measure).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def rank_correlations(cells: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Spearman's rank correlation of accuracy with each measure, over the cells of a setting.

    Args:
        cells: as `between_cells` gives them.
        measures: columns of it.

    Returns:
        A row per setting of at least MIN_CELLS cells, with their number, a column per measure.

    Example:
        >>> cells = pd.DataFrame({
        ...     "setting": ["a"] * 5, "query_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5],
        ...     "distance": [5.0, 4.0, 3.0, 2.0, 1.0],
        ... })
        >>> rank_correlations(cells, ["distance"]).loc["a"].round(3).to_dict()
        {'cells': 5.0, 'distance': -1.0}
    """
    rows = {}
    for setting, of_setting in cells.groupby("setting", sort=False):
        if len(of_setting) >= MIN_CELLS:
            accuracy = of_setting.query_accuracy
            rows[setting] = {"cells": len(of_setting)} | {
                measure: float(stats.spearmanr(accuracy, of_setting[measure]).statistic)
                for measure in measures
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def points_lost(run: Record, measure: str | None) -> float:
    """Compute the accuracy that is lost by stopping where a measure is best, percentage points.

    It is lost against the run's best epoch on the same meta-test tasks. Epoch 0, the untrained
    network, is no choice.

    Args:
        run: the run.
        measure: a key of STOPPED_BY; None: the last epoch.
    """
    accuracies = curve(run, "query_accuracy")
    chosen = len(accuracies) - 1
    if measure is not None:
        values = list(curve(run, measure))
        chosen = values.index(STOPPED_BY[measure](values))
    return float(100 * (accuracies.max() - accuracies[chosen]))


def stopping_table(cells: Iterable[Sequence[Record]]) -> pd.DataFrame:
    """Points that each way of stopping loses, the mean over a cell's runs.

    Args:
        cells: groups of runs.

    Returns:
        A row per cell, a column per way of stopping, [cells, ways].
    """
    ways: dict[str, str | None] = {MEASURES[name].label: name for name in STOPPED_BY}
    ways["the last epoch"] = None
    return pd.DataFrame(
        [
            {label: np.mean([points_lost(run, by) for run in cell]) for label, by in ways.items()}
            for cell in cells
        ]
    )
