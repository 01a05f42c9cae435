"""Causes, companions and neither: what interventions, networks and epochs say of each measure.

The paper's claims follow a measure over meta-training, within a run. What goes with accuracy there
need not cause it. `find_roles` asks the interventions:

    COMPANION  the measure goes with accuracy over meta-training, and yet it moves while accuracy
               stays
    NEITHER    it does not go with accuracy, and moves while accuracy stays
    OPEN       it moves, but never while accuracy stays
    UNTESTED   no intervention moves it

A measure *goes with accuracy* if the 95 % interval of their correlation over the epochs of plain
runs, mean over runs, excludes 0. It *moves* between two interventions if it changes more than
TWOFOLD and by more than chance: the interval of the difference at the same seeds, over runs and
tasks, excludes 0. The difference is that of logarithms if all values are positive. Accuracy *stays*
if the whole interval of its change lies within +-MARGIN. That rules out a main cause; a small one
it does not rule out. Any intervention, and any two of them, may be the ones that a role rests on.
So the levels of these intervals are 95 % for all interventions together, and for all pairs of them
(Bonferroni).

Two further questions need no further run. Between trained networks of one setting, which measure
goes with accuracy? And if meta-training were stopped where a measure is best, how much accuracy
would it cost? None of these rules was written before the runs of three seeds were seen: they
explore, and are no verdicts. Three were changed after their result. *Moves* takes differences of
logarithms in place of plain ones. *Moves* takes a level for all pairs: with intervals of 95 % each,
noise around 0 was a COMPANION or NEITHER in half of all cases, and gradient coherence under MAML
was OPEN. *Stays* takes a level for all interventions: with intervals of 95 % each, flatness, loss
and distance under MAML were COMPANIONS.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd

from metanb.claims.cells import (
    curve,
    curves_with_accuracy,
    cut_to_common_length,
    group_into_cells,
    late_values,
    pair_by_seed,
)
from metanb.claims.predictions import (
    MARGIN,
    change_of,
    compare_interventions,
    group_by_algorithm,
    label_of,
    values_at_the_end,
)
from metanb.claims.run_stats import Interval, correlate_over_epochs, interval
from metanb.grids.interventions import BASE
from metanb.labels import MEASURES, name_of
from metanb.runs.records import Record
from metanb.settings import scale_of

TWOFOLD = 2.0  # a measure that changes less has not moved
MIN_CELLS = 5  # networks that a rank correlation takes at least
# By what meta-training is stopped: the measure, and whether its greatest or its least value counts.
# Meta-validation accuracy needs labelled queries of further classes; the others need support sets.
STOPPED_BY = {
    "valid_accuracy": max,
    "trajectory_coherence": max,
    "gradient_coherence": max,
    "hessian_norm": min,
    "support_loss": min,
}


class Role(StrEnum):
    """What a measure is to accuracy, by the rules of the module; each is its own text."""

    COMPANION = "a companion, no main cause"
    NEITHER = "neither main cause nor companion"
    OPEN = "not ruled out as a cause"
    UNTESTED = "not tested"


@dataclass(frozen=True)
class Change:
    """What an intervention makes of a measure and of accuracy, beside the base at the same seeds.

    Attributes:
        intervention: its name.
        value: the measure's mean at the end.
        gain: the change of accuracy, percentage points.
        low: lower end of its 95 % interval, for this intervention by itself.
        high: upper end of it.
        moved: whether the measure moves from the base, by the rule of the module.
        stays: whether accuracy stays, by that rule.
    """

    intervention: str
    value: float
    gain: float
    low: float
    high: float
    moved: bool
    stays: bool

    @property
    def shown_gain(self) -> str:
        """The change of accuracy with its interval."""
        return f"{self.gain:+.1f} points ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class MeasureRole:
    """What one measure is to accuracy under one algorithm.

    Attributes:
        algorithm: the algorithm's key.
        measure: the measure's name.
        along: its correlation with accuracy over meta-training.
        changes: by intervention, the base first.
        least: among the changes with which accuracy stays, that of the least value.
        greatest: among them, that of the greatest value.
        role: what the measure is.
    """

    algorithm: str
    measure: str
    along: Interval
    changes: tuple[Change, ...]
    least: Change
    greatest: Change
    role: Role

    @property
    def base(self) -> float:
        """The measure's mean in the base."""
        return self.changes[0].value

    @property
    def better_but_worse(self) -> tuple[Change, ...]:
        """Changes that move the measure to the side of high accuracy, and lower accuracy.

        The side is that of the correlation over meta-training; accuracy is lower if its whole
        interval lies below 0.
        """
        return tuple(
            change
            for change in self.changes
            if change.moved
            and (change.value - self.base) * self.along.mean > 0
            and _excludes_zero(self.along)
            and change.high < 0
        )

    @property
    def moves(self) -> list[Change]:
        """The changes by which the measure moves from the base: those that the role rests on.

        For a companion and for what is neither, those with which accuracy stays. There are none
        where the measure moves between two interventions alone.
        """
        needs_accuracy = self.role in (Role.COMPANION, Role.NEITHER)
        return [c for c in self.changes if c.moved and (c.stays or not needs_accuracy)]

    @property
    def shown_range(self) -> str:
        """From where to where the measure moves while accuracy stays; "–" if it does not."""
        if self.role not in (Role.COMPANION, Role.NEITHER):
            return "–"
        values = [change.value for change in self.moves]
        ends = [*values, self.base] if values else [self.least.value, self.greatest.value]
        return f"{min(ends):.3g} to {max(ends):.3g}"

    @property
    def evidence(self) -> str:
        """What the role rests on, in a clause."""
        if self.role == Role.UNTESTED:
            return "no intervention here moves it more than twofold and by more than chance"
        if not self.moves:
            ends = (
                f"{change.value:.3g} (*{change.intervention}*)"
                for change in (self.least, self.greatest)
            )
            return f"it goes from {' to '.join(ends)} while accuracy stays"
        farthest = max(self.moves, key=lambda change: _ratio(change.value, self.base))
        return (
            f"*{farthest.intervention}* moves it from {self.base:.3g} to {farthest.value:.3g} "
            f"and accuracy by {farthest.shown_gain}"
        )


# what the measures stand for in a sentence
SUBJECTS = {
    "trajectory_coherence": "trajectory coherence",
    "gradient_coherence": "gradient coherence",
    "hessian_norm": "flatness (Hessian norm)",
    "support_loss": "loss (support loss, adapted)",
    "distance": "distance from θ_s",
}


def find_roles(
    records: Iterable[Record], plain: Iterable[Record], measures: Sequence[str]
) -> list[MeasureRole]:
    """What each measure is to accuracy: a companion, neither, or not ruled out as a cause.

    Args:
        records: runs of interventions in one setting and at one scale.
        plain: plain runs of that setting, for the correlation over meta-training.
        measures: names of measures.

    Returns:
        The roles, measure by measure; within a measure, algorithm by algorithm.

    Raises:
        metanb.runs.records.RecordError: a measure of a run is missing.
        ValueError: the interventions are of several settings, scales or sets of images.
    """
    records, plain = list(records), list(plain)
    table = compare_interventions(records, measures)
    cells = group_by_algorithm(records)
    return [
        _find_role(table[table.algorithm == algorithm], cells[algorithm], plain, measure)
        for measure in measures
        for algorithm in dict.fromkeys(table.algorithm)
    ]


def _find_role(
    rows: pd.DataFrame, cells: dict[str, list[Record]], plain: Sequence[Record], measure: str
) -> MeasureRole:
    """The role of one measure under one algorithm.

    Args:
        rows: the algorithm's, as `compare_interventions` gives them.
        cells: its runs by intervention.
        plain: plain runs of any algorithm.
        measure: a column of `rows`.
    """
    algorithm = str(rows.algorithm.iloc[0])
    of_algorithm = [run for run in plain if run.settings.algorithm == algorithm]
    along = correlate_over_epochs(curves_with_accuracy(of_algorithm, measure))
    # levels for all interventions together, and for all pairs of them and the base
    level = 1 - 0.05 / max(1, len(rows) - 1)
    level_of_pairs = 1 - 0.05 / max(1, math.comb(len(rows), 2))
    changes = tuple(
        Change(
            intervention=row.intervention,
            value=getattr(row, measure),
            gain=row.gain,
            low=row.low,
            high=row.high,
            moved=_moves(cells[row.intervention], cells[BASE.name], measure, level_of_pairs),
            stays=row.intervention == BASE.name
            or _stays(cells[row.intervention], cells[BASE.name], level),
        )
        for row in rows.itertuples()
    )
    # the base is among those with which accuracy stays
    staying = [change for change in changes if change.stays]
    least, greatest = (pick(staying, key=lambda change: change.value) for pick in (min, max))
    if any(change.moved for change in staying) or _moves(
        cells[least.intervention], cells[greatest.intervention], measure, level_of_pairs
    ):
        role = Role.COMPANION if _excludes_zero(along) else Role.NEITHER
    else:
        role = Role.OPEN if any(change.moved for change in changes) else Role.UNTESTED
    return MeasureRole(algorithm, measure, along, changes, least, greatest, role)


def _moves(before: list[Record], after: list[Record], measure: str, level: float) -> bool:
    """Whether a measure moves from one intervention to another, by the rule of the module.

    Args:
        before: the runs of one intervention.
        after: those of the other.
        measure: the measure's name.
        level: of the interval that has to exclude 0.
    """
    ends = np.array(values_at_the_end(pair_by_seed(before, after), measure))
    values, errors = ends[..., 0], ends[..., 1]  # [2, pairs]
    if _ratio(*values.mean(1)) <= TWOFOLD:
        return False
    if (values > 0).all():
        values, errors = np.log(values), errors / values
    change = interval(values[0] - values[1], level=level, shared=np.hypot(*errors))
    return _excludes_zero(change)


def _stays(after: list[Record], base: list[Record], level: float) -> bool:
    """Whether accuracy stays under an intervention, by the rule of the module.

    Args:
        after: the intervention's runs.
        base: the base's.
        level: of the interval that has to lie within +-MARGIN.
    """
    accuracies, of_base = values_at_the_end(pair_by_seed(after, base), "final_accuracy")
    change = change_of(100 * accuracies, 100 * of_base, level)
    return -MARGIN < change.low and change.high < MARGIN


def _ratio(before: float, after: float) -> float:
    """The greater of two values over the lesser; infinite where the lesser is not positive."""
    least, greatest = sorted((before, after))
    return greatest / least if least > 0 else math.inf


def _excludes_zero(effect: Interval) -> bool:
    """Whether an interval lies on one side of 0."""
    return effect.low > 0 or effect.high < 0


def role_sentences(roles: Iterable[MeasureRole]) -> list[str]:
    """One sentence of Markdown per measure: what it is under each algorithm, and the evidence.

    Args:
        roles: as `find_roles` gives them.
    """
    by_measure: dict[str, list[MeasureRole]] = {}
    for role in roles:
        by_measure.setdefault(role.measure, []).append(role)
    sentences = []
    for measure, group in by_measure.items():
        subject = SUBJECTS.get(measure, label_of(measure))
        sentences.append(f"**{subject[0].upper()}{subject[1:]}**: {_describe_roles(group)}.")
    return sentences


def _describe_roles(roles: Sequence[MeasureRole]) -> str:
    """The roles of one measure in words; a role that all algorithms share is said once."""
    parts = {f"under {name_of(role.algorithm)}": role for role in roles}
    if len({role.role for role in roles}) == 1:
        evidence = "; ".join(f"{place} {role.evidence}" for place, role in parts.items())
        return f"**{roles[0].role}**; {evidence}"
    return "; ".join(f"{place} **{role.role}**: {role.evidence}" for place, role in parts.items())


def role_table(roles: Iterable[MeasureRole]) -> pd.DataFrame:
    """The roles for people, all as text: one row per measure and algorithm."""
    return pd.DataFrame(
        {
            "measure": label_of(role.measure),
            "algorithm": name_of(role.algorithm),
            "r with accuracy, over meta-training": role.along.describe(),
            "base": f"{role.base:.3g}",
            "while accuracy stays": role.shown_range,
            "role": role.role.value,
        }
        for role in roles
    )


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
            "setting": f"{name_of(settings.dataset)} {settings.setting}, {scale_of(settings)}",
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
                measure: float(accuracy.rank().corr(of_setting[measure].rank()))
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
    stop = len(accuracies) - 1
    if measure is not None:
        values = list(curve(run, measure))
        stop = values.index(STOPPED_BY[measure](values))
    return float(100 * (accuracies.max() - accuracies[stop]))


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
