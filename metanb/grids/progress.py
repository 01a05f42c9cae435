"""What there is of a grid: recorded runs, missing ones, and the time that the rest takes."""

from collections.abc import Iterable, Sequence

import pandas as pd

from metanb.grids.definitions import Planned, paper_grid
from metanb.grids.hours import Timings, format_minutes
from metanb.runs import records, store
from metanb.settings import CHOICES, Settings


def find_recorded(planned: Iterable[Planned]) -> list[records.Record]:
    """The records that there are of these runs, finished or not."""
    return [found for one in planned if (found := records.find_record(one.settings, 0))]


def find_missing(
    planned: Iterable[Planned], recorded: Iterable[records.Record], until: int | None = None
) -> list[Settings]:
    """The runs that are not recorded up to this iteration, in the grid's order; None: not finished."""
    there = {found.settings for found in recorded if found.epochs >= found.settings.epoch_of(until)}
    return [one.settings for one in planned if one.settings not in there]


def recorded_at_paper_scale(
    dataset: str, ways: int, shots: int, groups: Iterable[str] = ("base",)
) -> list[records.Record]:
    """The records of the paper's own experiment in one setting, by algorithm, as far as they got; none is trained."""
    where = (dataset, ways, shots)
    found = find_recorded(
        one
        for one in paper_grid()
        if one.group in groups
        and (one.settings.dataset, one.settings.ways, one.settings.shots) == where
    )
    return sorted(found, key=lambda run: CHOICES["algorithm"].index(run.settings.algorithm))


def grid_table(
    planned: Sequence[Planned],
    recorded: Iterable[records.Record],
    timings: Timings,
    kind: str,
    together: float = 1.0,
) -> pd.DataFrame:
    """The grid for reading: a row per run.

    Args:
        planned: the runs.
        recorded: those that are recorded, finished or not.
        timings: what runs took.
        kind: the kind of device on which they are to run.
        together: how many of them share a GPU.

    Returns:
        Columns group, run, state, time (of one core, or the run's share of a GPU's) and
        estimate: what that time rests on, as `metanb.grids.hours.Estimate` says it.
    """
    there = {run.settings: run for run in recorded}

    def state(settings: Settings) -> str:
        found = there.get(settings)
        if found is None:
            return "begun" if store.checkpoint_path(settings.id).exists() else "missing"
        return "recorded" if found.finished else f"to {found.iterations:,}"

    estimates = {run.settings: timings.estimate(run.settings, kind, together) for run in planned}
    return pd.DataFrame(
        {
            "group": run.group,
            "run": run.settings.id,
            "state": state(run.settings),
            "time": format_minutes(estimates[run.settings].minutes),
            "estimate": estimates[run.settings].basis,
        }
        for run in planned
    )
