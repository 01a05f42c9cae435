"""What exists of a grid: recorded runs, missing runs, and the time that the rest takes."""

from collections.abc import Iterable, Sequence

import pandas as pd

from metanb.grids.definitions import Planned, paper_grid
from metanb.grids.hours import Timings, format_minutes
from metanb.labels import ALGORITHMS
from metanb.runs import records, store
from metanb.settings import Settings


def find_recorded(planned: Iterable[Planned]) -> list[records.Record]:
    """The records of these runs, finished or not, in the grid's order."""
    candidates = (records.find_record(run.settings, 0) for run in planned)
    return [record for record in candidates if record]


def find_missing(
    planned: Iterable[Planned], recorded: Iterable[records.Record], until: int | None = None
) -> list[Settings]:
    """The runs that are not recorded, in the grid's order.

    Args:
        planned: the runs.
        recorded: the records of these runs, finished or not.
        until: a run counts as recorded if its record reaches this iteration; None: its end.
    """
    done = {
        record.settings for record in recorded if record.epochs >= record.settings.epoch_of(until)
    }
    return [run.settings for run in planned if run.settings not in done]


def recorded_at_paper_scale(
    dataset: str, ways: int, shots: int, groups: Iterable[str] = ("base",)
) -> list[records.Record]:
    """The records of the paper's own experiment in one setting, as far as they got, by algorithm.

    No run is trained for it.

    Args:
        dataset: the image set.
        ways: N.
        shots: K.
        groups: the groups of the paper's grid to look into.
    """
    setting = (dataset, ways, shots)
    planned = [
        run
        for run in paper_grid()
        if run.group in groups
        and (run.settings.dataset, run.settings.ways, run.settings.shots) == setting
    ]
    algorithms = list(ALGORITHMS)
    return sorted(find_recorded(planned), key=lambda run: algorithms.index(run.settings.algorithm))


def grid_table(
    planned: Sequence[Planned],
    recorded: Iterable[records.Record],
    timings: Timings,
    kind: str,
    together: float = 1.0,
) -> pd.DataFrame:
    """A table of a grid for reading: one row per run.

    Args:
        planned: the runs.
        recorded: the records of these runs, finished or not.
        timings: the times of recorded runs.
        kind: the kind of device on which they are to run.
        together: how many of them share a GPU.

    Returns:
        Columns group, run, state, time (of one core, or the run's share of a GPU's) and
        estimate: the basis of that time, see `metanb.grids.hours.Estimate`.
    """
    by_settings = {record.settings: record for record in recorded}
    rows = []
    for run in planned:
        estimate = timings.estimate(run.settings, kind, together)
        rows.append(
            {
                "group": run.group,
                "run": run.settings.id,
                "state": _describe_state(run.settings, by_settings.get(run.settings)),
                "time": format_minutes(estimate.minutes),
                "estimate": estimate.basis,
            }
        )
    return pd.DataFrame(rows)


def _describe_state(settings: Settings, record: records.Record | None) -> str:
    """How far a run is: missing, begun, recorded to an iteration, or recorded."""
    if record is None:
        return "begun" if store.checkpoint_path(settings.id).exists() else "missing"
    return "recorded" if record.finished else f"to {record.iterations:,}"
