"""Each claim's test on records: an effect, its 95 % interval over seeds, and a verdict by a rule written here first.

A cell is one (data set, setting, algorithm, scale): all its runs differ by the seed alone. A claim that a curve falls
or rises is judged by its trend: the log ratio of its mean over the last quarter of the epochs to its mean over the
first quarter. The untrained network, epoch 0, is left out. The trend of pure noise is as often above 0 as below, so a
verdict that asks for a 95 % interval on one side of 0 is one that noise gives in 2.5 % of cells.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from metanb.records import Record
from metanb.settings import CHOICES, NAMES, Settings, scale_of

MIN_RUNS = 3  # fewer seeds give no interval worth the name, and no verdict

REPRODUCED, CONTRARY, NOT_SEEN = "reproduced", "not reproduced: the opposite", "not reproduced"
TOO_FEW = f"not yet run: fewer than {MIN_RUNS} seeds"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about one curve: `measure` falls (direction -1) or rises (+1) as meta-training goes on."""

    name: str
    text: str
    measure: str
    direction: int


CLAIMS = (
    Claim("C1", "adapted solutions become flatter", "hessian_norm", -1),
    Claim("C2", "adapted solutions become lower in support loss", "support_loss", -1),
    Claim("C3", "adapted solutions lie further from theta_s", "distance", +1),
)


@dataclass(frozen=True)
class Row:
    """One cell of the ledger.

    Attributes:
        effect: mean over runs of the trend (a natural-log ratio); low, high: its 95 % interval over seeds (Student's
            t).
        unit: of effect, low and high.
        runs: number of runs, that is of seeds.
        verdict: one of REPRODUCED, CONTRARY, NOT_SEEN, TOO_FEW.
    """

    claim: str
    dataset: str
    setting: str
    algorithm: str
    scale: str
    effect: float
    unit: str
    low: float
    high: float
    runs: int
    verdict: str

    @property
    def change(self) -> str:
        """The effect as a factor, and its interval: how many times the late mean is the early one."""
        effect, low, high = np.exp([self.effect, self.low, self.high])
        return f"×\N{NO-BREAK SPACE}{effect:.2f} ({low:.2f} to {high:.2f})"


def trend(curve: np.ndarray) -> float:
    """Log ratio of a curve's mean over its last quarter to that over its first quarter; it starts at epoch 1.

    Raises ValueError for fewer than four epochs or means that are not positive.
    """
    curve = np.asarray(curve, dtype=float)
    if len(curve) < 4:
        raise ValueError(f"a trend needs at least 4 epochs, this curve has {len(curve)}: measure more often")
    quarter = len(curve) // 4
    first, last = curve[:quarter].mean(), curve[-quarter:].mean()
    if not (first > 0 and last > 0):
        raise ValueError(f"a log ratio needs positive means, these are {first:g} and {last:g}")
    return float(np.log(last / first))


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t) of independent values; the interval is infinite below two values."""
    values = np.asarray(list(values), dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def verdict(low: float, high: float, runs: int, direction: int) -> str:
    """The verdict on an effect of claimed sign `direction`, by its 95 % interval [low, high] over `runs` seeds."""
    if runs < MIN_RUNS:
        return TOO_FEW
    if low <= 0 <= high:
        return NOT_SEEN
    return REPRODUCED if (low > 0) == (direction > 0) else CONTRARY


def cells(records: Iterable[Record]) -> list[list[Record]]:
    """Records grouped into cells: same settings but for the seed. Cells by data set and setting, runs by seed."""
    groups: dict[Settings, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.settings.seed):
        groups.setdefault(replace(record.settings, seed=0), []).append(record)

    def order(s: Settings) -> tuple[Any, ...]:
        return s.dataset, s.ways, s.shots, scale_of(s), CHOICES["algorithm"].index(s.algorithm), s.id

    return [groups[settings] for settings in sorted(groups, key=order)]


def judge(claim: Claim, cell: list[Record]) -> Row:
    """One claim on one cell."""
    settings = cell[0].settings
    effect, low, high = interval(trend(record.curve(claim.measure)["mean"].loc[1:]) for record in cell)
    return Row(
        claim=claim.name,
        dataset=settings.dataset,
        setting=f"{settings.ways}-way {settings.shots}-shot",
        algorithm=settings.algorithm,
        scale=scale_of(settings),
        effect=effect,
        unit="log ratio, last to first quarter",
        low=low,
        high=high,
        runs=len(cell),
        verdict=verdict(low, high, len(cell), claim.direction),
    )


def ledger(records: Iterable[Record]) -> list[Row]:
    """Every claim on every cell of the records."""
    groups = cells(records)
    return [judge(claim, cell) for claim in CLAIMS for cell in groups]


def table(rows: Iterable[Row]) -> pd.DataFrame:
    """The ledger for reading: a row a cell, the effect as a factor with its 95 % interval over runs."""
    return pd.DataFrame(
        {
            "claim": row.claim,
            "data": f"{NAMES[row.dataset]}, {row.setting}",
            "algorithm": NAMES[row.algorithm],
            "scale": row.scale,
            "late / early (95 % interval)": row.change,
            "runs": row.runs,
            "verdict": row.verdict,
        }
        for row in rows
    )
