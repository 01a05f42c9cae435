"""Cells: runs of one data set, setting, algorithm and scale, which differ by their seeds alone; and their curves."""

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np

from metanb.claims.run_stats import late_error, late_mean
from metanb.claims.verdicts import MIN_RUNS
from metanb.runs.records import Record, RecordError
from metanb.settings import CHOICES, Scale, Settings, scale_of

SCALES = (*get_args(Scale), "custom")


def group_into_cells(records: Iterable[Record]) -> list[list[Record]]:
    """Records grouped into cells: same settings but for the seeds.

    Cells by data set and setting, runs by seed.
    """
    groups: dict[Settings, list[Record]] = {}
    for record in sorted(
        records, key=lambda record: (record.settings.seed, record.settings.class_seed)
    ):
        groups.setdefault(record.settings.unseeded, []).append(record)

    def order(s: Settings) -> tuple[Any, ...]:
        places = (
            CHOICES[name].index(getattr(s, name))
            for name in ("head_init", "algorithm", "test_head", "regulariser")
        )
        return s.dataset, s.ways, s.shots, s.train_classes, *places, SCALES.index(scale_of(s)), s.id

    return [groups[settings] for settings in sorted(groups, key=order)]


def cut_to_common_length(cell: list[Record]) -> list[Record]:
    """Runs of one length: all up to where the MIN_RUNS furthest have got, without those that have not.

    How far a run got says how much time there was for it. A run that diverged has no record, and is
    missing here, too.
    """
    reach = sorted((run.epochs for run in cell), reverse=True)[:MIN_RUNS][-1]
    return [run.upto(reach) for run in cell if run.epochs >= reach]


def pair_by_seed(cell: list[Record], other: list[Record]) -> list[tuple[Record, Record]]:
    """Runs of two cells that have their seeds in common, of one length: that to which MIN_RUNS pairs have got."""
    by_seed = {(run.settings.seed, run.settings.class_seed): run for run in other}
    found = [
        (run, by_seed[run.settings.seed, run.settings.class_seed])
        for run in cell
        if (run.settings.seed, run.settings.class_seed) in by_seed
    ]
    lengths = sorted((min(one.epochs, two.epochs) for one, two in found), reverse=True)[:MIN_RUNS]
    return [
        (one.upto(lengths[-1]), two.upto(lengths[-1]))
        for one, two in found
        if min(one.epochs, two.epochs) >= lengths[-1]
    ]


def cut_to_common_epoch(
    cell: list[Record], other: list[Record]
) -> tuple[list[Record], list[Record]]:
    """Two cells that are compared, up to the epoch that both have reached."""
    reach = min(run.epochs for run in (*cell, *other))
    return [run.upto(reach) for run in cell], [run.upto(reach) for run in other]


def curve(run: Record, measure: str, column: str = "mean") -> np.ndarray:
    """The means of epochs 1, 2 and so on, or another column, such as `sem`, their standard errors over tasks.

    Raises RecordError if one is missing or not finite.
    """
    rows = run.curve(measure)[column].loc[1:]
    values = rows.to_numpy()
    if (
        not np.array_equal(rows.index, np.arange(1, run.epochs + 1))
        or not np.isfinite(values).all()
    ):
        raise RecordError(f"{measure} of {run.path} is not a number for every epoch: {run.anew}")
    return values


def untrained(run: Record, measure: str) -> float:
    """The mean of epoch 0, before meta-training."""
    return float(run.curve(measure)["mean"].loc[0])


def final_accuracy(run: Record) -> tuple[float, float] | None:
    """Accuracy on the further tasks that a run is measured on once, after its last epoch; None if it was not.

    With its standard error over these tasks.
    """
    rows = run.measures[
        (run.measures.measure == "final_accuracy") & (run.measures.epoch == run.epochs)
    ]
    return None if rows.empty else (float(rows["mean"].iloc[0]), float(rows["sem"].iloc[0]))


def late_values(runs: Iterable[Record], measure: str) -> np.ndarray:
    """A measure late in meta-training: the mean over a run's last quarter of epochs, for each of the runs, [runs]."""
    return np.array([late_mean(curve(run, measure)) for run in runs])


def late_errors(runs: Iterable[Record], measure: str) -> np.ndarray:
    """The standard error over tasks of each of `late_values`, at most, [runs]."""
    return np.array([late_error(curve(run, measure, "sem")) for run in runs])
