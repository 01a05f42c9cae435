"""What a verdict is: the claims, the verdicts that there are, and the ledger's rows, for people and for machines."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from metanb.labels import NAMES

MIN_RUNS = 3  # fewer seeds give no interval worth the name, and no verdict

HOLM_MEANING = (
    "Holm's p-values allow for the number of rows: among all rows where it is at most 0.05, the chance that even one "
    "effect is only noise is at most 5 %."
)


class Verdict(StrEnum):
    """What a cell's runs say about a claim; each verdict is its own text."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    CONTRARY = "not reproduced: the opposite"
    NOT_SEEN = "not reproduced"
    UNCLEAR = "cannot tell: the paper's gain is possible, too"
    POWERLESS = "cannot tell: too few runs to compare across them"
    NO_CASE = "not testable: accuracy does not fall"
    TOO_COARSE = "not testable: a peak before the first epoch would not be seen"
    TOO_SHORT = "not testable: too few epochs to see a fall"
    NO_BASELINE = "not testable: the finetuned baseline does not work"
    TOO_FEW = f"not yet run: fewer than {MIN_RUNS} runs"

    @property
    def is_judged(self) -> bool:
        """Whether the claim was put to the test."""
        return self not in _UNJUDGED


_UNJUDGED = (
    Verdict.TOO_FEW,
    Verdict.NO_CASE,
    Verdict.TOO_COARSE,
    Verdict.TOO_SHORT,
    Verdict.NO_BASELINE,
)


class Unit(StrEnum):
    """What an effect is measured in; each unit is its own text."""

    LOG_RATIO = "log ratio"
    POINTS = "percentage points"
    CORRELATION = "correlation r"
    COSINE = "mean cosine"


@dataclass(frozen=True)
class Row:
    """One row of the ledger: a claim on a cell.

    Attributes:
        variant: which form of the claim, where there are several; "" for the paper's.
        setting: ways, shots, and what else readers tell cells apart by.
        apart: every other setting in which the cell differs from its scale's.
        scale: smoke, quick, paper or custom.
        reached: how far the runs got, if not to the end, such as "2,000 of 60,000 iterations".
        effect, low, high: the effect and its 95 % interval, in `unit`, over runs and tasks or,
            where `detail` says so, over runs alone; NaN without runs to compare.
        p: two-sided, of no effect; for a verdict that needs several findings the largest one.
            p_holm: see HOLM_MEANING.
        runs: number of runs, or of pairs of runs.
        verdict: what the runs say.
        detail: what else the verdict rests on.
        paper: the paper's own figure, where it gives one.
        ids: of the runs.
    """

    claim: str
    variant: str
    dataset: str
    setting: str
    apart: str
    algorithm: str
    scale: str
    reached: str
    effect: float
    low: float
    high: float
    unit: Unit
    p: float
    p_holm: float
    runs: int
    verdict: Verdict
    detail: str
    paper: str
    ids: tuple[str, ...]

    @property
    def as_in_paper(self) -> bool:
        """Whether this is the paper's own form of the claim, as we read it."""
        return self.variant.split(",")[0] in ("", "adapted", "fresh head")

    @property
    def name(self) -> str:
        """The claim, and which form of it."""
        return f"{self.claim}, {self.variant}" if self.variant else self.claim

    @property
    def anchor(self) -> str:
        """The row's name in an address."""
        return re.sub(r"\W+", "-", f"{self.name}-{self.ids[0]}".lower())

    @property
    def shown_scale(self) -> str:
        """The scale, and in brackets the iterations at which runs were stopped."""
        return f"{self.scale} ({self.reached.split()[0]})" if self.reached else self.scale

    @property
    def shown_p(self) -> str:
        """Holm's p-value as people read it."""
        return "–" if math.isnan(self.p_holm) else f"{self.p_holm:.2g}"

    @property
    def change(self) -> str:
        """The effect as read, with its interval if runs are several; a log ratio as a factor, late over early."""
        if not math.isfinite(self.effect):
            return "–"
        values, form = np.array([self.effect, self.low, self.high]), "{} ({} to {})"
        if self.runs < 2:
            values, form = values[:1], "{} (no interval)"
        if self.unit == Unit.LOG_RATIO:
            with np.errstate(over="ignore"):
                return "× " + form.format(*(f"{v:.2f}" for v in np.exp(values)))
        if self.unit == Unit.POINTS:
            return form.format(*(f"{v:+.2f}" for v in values)) + " points"
        return form.format(*(f"{v:.3f}" for v in values))

    @property
    def shown_unit(self) -> str:
        """What `change` is: a log ratio is shown as a factor, percentage points as a change."""
        return {Unit.LOG_RATIO: "factor", Unit.POINTS: "change"}.get(self.unit, self.unit.value)

    @property
    def sentence(self) -> str:
        """The row in Markdown: what was judged, the verdict, and what it rests on."""
        rest = f"; {self.detail}" if self.detail else ""
        if not math.isfinite(self.effect):
            return f"**{self.name}; {NAMES[self.algorithm]}, {NAMES[self.dataset]} {self.setting}: {self.verdict}**{rest}."
        return (
            f"**{self.name}; {NAMES[self.algorithm]}, {NAMES[self.dataset]} {self.setting}: {self.verdict}.** "
            f"{self.shown_unit.capitalize()} {self.change}{rest}."
        )


def verdict_table(rows: Iterable[Row], corrected: bool = False) -> pd.DataFrame:
    """The ledger for reading: a row a cell, the effect with its 95 % interval.

    `corrected` adds Holm's p-values, which mean something beside the whole ledger only.
    """
    columns = [
        "claim",
        "data",
        "algorithm",
        "scale",
        "effect",
        "95 % interval",
        "runs",
        "p, Holm",
        "verdict",
        "paper",
    ]
    lines = [
        (
            row.name,
            f"{NAMES[row.dataset]}, {row.setting}" + (f" ({row.apart})" if row.apart else ""),
            NAMES[row.algorithm],
            row.shown_scale,
            row.shown_unit,
            row.change,
            row.runs,
            row.shown_p,
            row.verdict.value,
            row.paper or "–",
        )
        for row in rows
    ]
    found = pd.DataFrame(lines, columns=columns)
    return found if corrected else found.drop(columns="p, Holm")


def verdicts_by_scale(rows: Iterable[Row]) -> pd.DataFrame:
    """The same claims at several scales, one below the other: a row a claim, algorithm and scale."""
    shown = verdict_table(rows)
    names = ["claim", "algorithm"]
    # rows of one claim and algorithm stay together, in their order
    first = shown.groupby(names, sort=False).ngroup()
    shown = shown.iloc[first.argsort(kind="stable")]
    return shown.set_index([*names, "scale"])[["95 % interval", "runs", "verdict"]]


def changed_verdicts(rows: Iterable[Row], others: Iterable[Row]) -> str:
    """In Markdown: what `others` say of a claim and algorithm where their verdict is not that of `rows`."""
    before = {(row.name, row.algorithm): row for row in rows}
    said = [
        f"- {row.name}, {NAMES[row.algorithm]}: {before[key].verdict} at {before[key].shown_scale} scale, "
        f"**{row.verdict}** at {row.shown_scale} scale."
        for row in others
        if (key := (row.name, row.algorithm)) in before and before[key].verdict != row.verdict
    ]
    return "\n".join(said) or "No verdict is another one there."


def rows_as_json(rows: Iterable[Row]) -> str:
    """The ledger for machines: a list of objects with the fields of Row; null for what is not finite."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(
        [{name: plain(value) for name, value in asdict(row).items()} for row in rows], indent=1
    )
