"""Cells: runs of one data set, setting, algorithm and scale, and their curves.

Runs of one cell differ by their seeds alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np

from metanb.claims.run_stats import late_error, late_mean
from metanb.claims.verdicts import MIN_RUNS
from metanb.runs.records import Record, RecordError
from metanb.settings import CHOICES, Scale, Settings, scale_of

SCALES = (*get_args(Scale), "custom")


def group_into_cells(records: Iterable[Record]) -> list[list[Record]]:
    """Group records into cells: same settings but for the seeds.

    Returns:
        Cells in order of data set and setting, the runs of each in order of their seeds.

    Example:
        >>> from pathlib import Path
        >>> import pandas as pd
        >>> from metanb import preset
        >>> records = [
        ...     Record(
        ...         preset("smoke", "glyphs", algorithm=algorithm, seed=seed),
        ...         pd.DataFrame(), provenance={}, path=Path("nowhere"),
        ...     )
        ...     for seed in (1, 0) for algorithm in ("fomaml", "maml")
        ... ]
        >>> for cell in group_into_cells(records):
        ...     print(cell[0].settings.algorithm, [run.settings.seed for run in cell])
        maml [0, 1]
        fomaml [0, 1]
    """
    groups: dict[Settings, list[Record]] = {}
    for record in sorted(records, key=_seeds):
        groups.setdefault(record.settings.unseeded, []).append(record)
    return [groups[settings] for settings in sorted(groups, key=_order_of_settings)]


def _order_of_settings(settings: Settings) -> tuple[Any, ...]:
    """The sort key of a cell: data set and setting first, then choices in their own order."""
    names = ("head_init", "algorithm", "adapts", "inner_loss", "test_head", "regulariser")
    return (
        settings.dataset,
        settings.ways,
        settings.shots,
        settings.train_classes,
        *(list(CHOICES[name]).index(getattr(settings, name)) for name in names),
        SCALES.index(scale_of(settings)),
        settings.id,
    )


def _seeds(run: Record) -> tuple[int, int]:
    return run.settings.seed, run.settings.class_seed


def cut_to_common_length(cell: list[Record]) -> list[Record]:
    """Cut all runs to the epoch that the MIN_RUNS longest have reached; drop shorter ones.

    How far a run got depends on how much time there was for it. A run that diverged has no record,
    so it is missing here, too.
    """
    longest = sorted((run.epochs for run in cell), reverse=True)[:MIN_RUNS]
    reached = longest[-1]
    return [run.upto(reached) for run in cell if run.epochs >= reached]


def pair_by_seed(cell: list[Record], reference: list[Record]) -> list[tuple[Record, Record]]:
    """Pair the runs of two cells that have their seeds in common.

    All pairs are cut to the epoch that the MIN_RUNS longest pairs have reached; shorter ones are
    dropped.
    """
    by_seed = {_seeds(run): run for run in reference}
    pairs = [(run, by_seed[_seeds(run)]) for run in cell if _seeds(run) in by_seed]
    if not pairs:
        return []
    # a pair is as long as its shorter run
    lengths = [min(run.epochs, partner.epochs) for run, partner in pairs]
    reached = sorted(lengths, reverse=True)[:MIN_RUNS][-1]
    return [
        (run.upto(reached), partner.upto(reached))
        for (run, partner), length in zip(pairs, lengths, strict=True)
        if length >= reached
    ]


def cut_to_common_epoch(
    cell: list[Record], reference: list[Record]
) -> tuple[list[Record], list[Record]]:
    """Cut two cells that are compared to the epoch that all their runs have reached."""
    reached = min(run.epochs for run in (*cell, *reference))
    return [run.upto(reached) for run in cell], [run.upto(reached) for run in reference]


def curve(run: Record, measure: str, column: str = "mean") -> np.ndarray:
    """A measure's values after epochs 1, 2 and so on, [epochs]; epoch 0 is left out.

    Args:
        run: the run.
        measure: the measure's name.
        column: "mean" over tasks, or another column of the record, such as "sem", the standard
            error of that mean. An error that too few tasks could not give is infinite.

    Raises:
        RecordError: a value is missing or not finite.
    """
    epochs, values = run.values(measure, column)
    values = values[epochs > 0]
    if column == "sem" and np.isnan(values).all() and len(values) == run.epochs:
        return np.full(run.epochs, np.inf)
    complete = np.array_equal(epochs[epochs > 0], np.arange(1, run.epochs + 1))
    if not complete or not np.isfinite(values).all():
        raise RecordError(f"{measure} of {run.path} is not a number for every epoch: {run.anew}")
    return values


def curves_with_accuracy(
    runs: Iterable[Record], measure: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The curves of query accuracy and of a measure, run by run, see `curve`."""
    return [(curve(run, "query_accuracy"), curve(run, measure)) for run in runs]


def untrained(run: Record, measure: str) -> float:
    """The mean of epoch 0, before meta-training."""
    return value_after(run, 0, measure)


def value_after(run: Record, epoch: int, measure: str, column: str = "mean") -> float:
    """A measure after one epoch, for which it is recorded.

    Args:
        run: the run.
        epoch: the epoch; 0 is the untrained network.
        measure: the measure's name.
        column: "mean" over tasks, or another column of the record.

    Raises:
        RecordError: the measure has no value after that epoch.
    """
    epochs, values = run.values(measure, column)
    of_epoch = values[epochs == epoch]
    if len(of_epoch) != 1:
        raise RecordError(f"{measure} of {run.path} has no value after epoch {epoch}: {run.anew}")
    return float(of_epoch[0])


def value_at_the_end(run: Record, measure: str) -> tuple[float, float]:
    """A measure after the last epoch, and its standard error over tasks."""
    mean, error = (value_after(run, run.epochs, measure, column) for column in ("mean", "sem"))
    return mean, error


def final_accuracy(run: Record) -> tuple[float, float] | None:
    """Accuracy on the further tasks that a run is measured on once, after its last epoch.

    Returns:
        The mean and its standard error over these tasks; None for a run without this measurement.
    """
    name = "final_accuracy"
    return value_at_the_end(run, name) if name in run.at_the_end else None


def late_values(runs: Iterable[Record], measure: str) -> np.ndarray:
    """A measure late in meta-training: each run's mean over its last quarter of epochs, [runs]."""
    return np.array([late_mean(curve(run, measure)) for run in runs])


def late_errors(runs: Iterable[Record], measure: str) -> np.ndarray:
    """Upper bounds on the standard errors over tasks of `late_values`, [runs]."""
    return np.array([late_error(curve(run, measure, "sem")) for run in runs])


def late_gains(runs: Sequence[Record], partners: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Gains in late query accuracy over each run's partner, and their standard errors over tasks.

    Both are in percentage points, [runs]. An error is that of a run and a partner which meet
    different tasks; if they meet the same ones, it is an upper bound.
    """
    values, errors = (
        [100 * late_part(group, "query_accuracy") for group in (runs, partners)]
        for late_part in (late_values, late_errors)
    )
    return values[0] - values[1], np.hypot(*errors)
