"""What a verdict is: all verdicts, all units, and the rows of the ledger.

Tables are for people, JSON is for machines.
"""

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from metanb.claims.paper import BY_NAME
from metanb.labels import name_of

FULL_LENGTH = "full length"
MIN_RUNS = 3  # fewer seeds give no interval worth the name, and no verdict

HOLM_MEANING = (
    "Holm's p-values allow for the number of rows: in a ledger of pure noise, the chance that even "
    "one of them is at most 0.05 is at most 5 %."
)


class Verdict(StrEnum):
    """What a cell's runs say about a claim; each verdict is its own text."""

    REPRODUCED = "reproduced"
    TREND_ONLY = "trend only"
    WITHIN_RUNS = "within runs only"
    NOT_SET_APART = "not set apart"
    CONTRARY = "reversed"
    OPPOSITE_TREND = "opposite trend"
    NOT_SEEN = "not reproduced"
    UNCLEAR = "cannot tell: no gain and the paper's gain are both possible"
    POWERLESS = "cannot tell: too few runs to compare across them"
    NO_CASE = "not testable: accuracy is not seen to fall"
    TOO_COARSE = "not testable: the first epoch hides early peaks"
    TOO_SHORT = "not testable: too few epochs to see a fall"
    NO_BASELINE = "not testable: the finetuned baseline does not work"
    NO_RATIO = "not testable: the measure is 0 in a run"
    TOO_FEW = f"no verdict: fewer than {MIN_RUNS} runs"
    SMOKE = "not judged: smoke runs only show that the code works"

    @property
    def is_judged(self) -> bool:
        """Whether the claim was put to the test."""
        return self not in _UNJUDGED

    @property
    def is_untestable(self) -> bool:
        """Whether there are enough runs, but they do not show the case that the claim is about."""
        return not self.is_judged and self not in (Verdict.TOO_FEW, Verdict.SMOKE)


_UNJUDGED = (
    Verdict.TOO_FEW,
    Verdict.NO_CASE,
    Verdict.TOO_COARSE,
    Verdict.TOO_SHORT,
    Verdict.NO_BASELINE,
    Verdict.NO_RATIO,
    Verdict.SMOKE,
)
# from the worst fit with the paper to the best; last, what was not put to the test
_WORST_FIRST = (
    Verdict.CONTRARY,
    Verdict.OPPOSITE_TREND,
    Verdict.NOT_SEEN,
    Verdict.UNCLEAR,
    Verdict.POWERLESS,
    Verdict.TREND_ONLY,
    Verdict.WITHIN_RUNS,
    Verdict.NOT_SET_APART,
    Verdict.REPRODUCED,
    *_UNJUDGED,
)


class Unit(StrEnum):
    """What an effect is measured in; each unit is its own text."""

    LOG_RATIO = "log ratio"
    POINTS = "percentage points"
    CORRELATION = "correlation r"
    COSINE = "mean cosine"


def _round_beside(no_effect: float, value: float, form: str, digits: int) -> str:
    """A value with some digits, or with up to three more if it would read as `no_effect`.

    Args:
        no_effect: what it should not read as, unless it is that.
        value: the value.
        form: of the number, with a place for the digits.
        digits: at least.
    """
    texts = [f"{value:{form.format(n)}}" for n in range(digits, digits + 4)]
    return next((text for text in texts if float(text) != no_effect), texts[0])


@dataclass(frozen=True)
class Row:
    """One row of the ledger: a claim on a cell.

    Attributes:
        claim: the claim's name, such as "C1".
        variant: which form of the claim, where there are several; "" for the paper's.
        dataset: the data set's key.
        setting: ways, shots, and whatever else readers tell cells apart by.
        apart: every other setting in which the cell differs from its scale's.
        algorithm: the algorithm's key.
        scale: smoke, quick, paper or custom.
        iterations: of meta-training that the runs have made.
        full_iterations: those that they make in all.
        effect: the effect, in `unit`; NaN without runs to compare.
        low: lower end of the effect's 95 % interval, over runs and tasks or, where `detail` says
            so, over runs alone.
        high: upper end of that interval.
        unit: what the effect is measured in.
        p: two-sided p-value of no effect; the largest one for a verdict that needs several
            findings.
        p_holm: the same by Holm's correction, see HOLM_MEANING; NaN for a row that is not judged.
        runs: number of runs, or of pairs of runs.
        verdict: what the runs say about the claim.
        detail: what else the verdict rests on.
        paper: the paper's own figure, where it gives one.
        ids: ids of the runs.
        own: ids of those that are the reader's own and not the book's, where the two were told
            apart, see `metanb.claims.rules.judge_apart`.
    """

    claim: str
    variant: str
    dataset: str
    setting: str
    apart: str
    algorithm: str
    scale: str
    iterations: int
    full_iterations: int
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
    own: tuple[str, ...] = ()

    @property
    def as_in_paper(self) -> bool:
        """Whether this is the paper's own form of the claim, as we read it."""
        return self.variant.split(",")[0] in ("", "adapted", "fresh head")

    @property
    def beside(self) -> str:
        """The name of the algorithm that a row of C7 compares finetuning with; "" in others."""
        return self.variant.partition("beside ")[2]

    @property
    def name(self) -> str:
        """The claim, and which form of it."""
        return f"{self.claim}, {self.variant}" if self.variant else self.claim

    @property
    def anchor(self) -> str:
        """The row's name in an address."""
        return re.sub(r"\W+", "-", f"{self.name}-{self.ids[0]}".lower())

    @property
    def reached(self) -> str:
        """How far the runs got, such as "2,000 of 60,000 iterations"; "" if to the end."""
        if self.iterations == self.full_iterations:
            return ""
        return f"{self.iterations:,} of {self.full_iterations:,} iterations"

    @property
    def shown_scale(self) -> str:
        """The scale, and how far the runs got; the small scales are always whole."""
        if self.reached or self.scale == "paper":
            return f"{self.scale} settings, {self.length}"
        return self.scale

    @property
    def length(self) -> str:
        """How far the runs got, such as "5,000 of 60,000 iterations"; FULL_LENGTH if to the end."""
        return self.reached or FULL_LENGTH

    @property
    def shown_p(self) -> str:
        """Holm's p-value as people read it."""
        return "–" if math.isnan(self.p_holm) else f"{self.p_holm:.2g}"

    @property
    def change(self) -> str:
        """The effect as people read it, with its interval if there are several runs.

        A log ratio is shown as a factor, late over early. An end beside *no effect* has so many
        digits that it does not read as *no effect*.
        """
        if not math.isfinite(self.effect):
            return "–"
        values = [self.effect, self.low, self.high]
        if self.unit == Unit.LOG_RATIO:
            with np.errstate(over="ignore"):
                values = [float(factor) for factor in np.exp(values)]
        whole, number, digits, no_effect = {
            Unit.LOG_RATIO: ("× {}", ".{}f", 2, 1.0),
            Unit.POINTS: ("{} points", "+.{}f", 2, 0.0),
        }.get(self.unit, ("{}", ".{}f", 3, 0.0))
        text = f"{values[0]:{number.format(digits)}}"
        if self.runs < 2:
            return whole.format(f"{text} (no interval)")
        low, high = (_round_beside(no_effect, end, number, digits) for end in values[1:])
        return whole.format(f"{text} ({low} to {high})")

    @property
    def shown_unit(self) -> str:
        """The name of the quantity in `change`.

        It is a factor where the unit is the log ratio, and a change where it is percentage points.
        """
        shown = {Unit.LOG_RATIO: "factor", Unit.POINTS: "change"}
        return shown.get(self.unit, self.unit.value)


def claim_sentences(rows: Iterable[Row]) -> list[str]:
    """One sentence of Markdown per form of a claim: the verdict and effect of each algorithm.

    Args:
        rows: of one data set, setting and scale, such as a chapter's own.

    Example:
        >>> import textwrap
        >>> from metanb import preset
        >>> from metanb.claims.rules import judge
        >>> from metanb.runs.records import find_record
        >>> runs = [find_record(preset("quick", "omniglot", seed=seed)) for seed in range(5)]
        >>> rows = [row for row in judge(runs) if row.claim == "C2"]
        >>> print(textwrap.fill(*claim_sentences(rows), 80))
        **C2**, adapted solutions become lower in support loss: **reproduced**. Factor,
        late over early: × 0.03 (0.03 to 0.04) under MAML.
    """
    forms: dict[str, list[Row]] = {}
    for row in rows:
        forms.setdefault(row.name, []).append(row)
    return [_describe_form(group) for group in forms.values()]


def _describe_form(rows: list[Row]) -> str:
    """A sentence on one form of a claim: its verdict, once if all rows share it, and effects."""
    first = rows[0]
    variant = f", {first.variant}" if first.variant else ""
    head = f"**{first.claim}**{variant}, {BY_NAME[first.claim].text}"
    effects = [row for row in rows if math.isfinite(row.effect)]
    names = {id(row): f"under {name_of(row.algorithm)}" for row in rows}
    if len({row.verdict for row in rows}) == 1:
        sentence = f"{head}: **{first.verdict}**."
    else:
        verdicts = "; ".join(f"**{row.verdict}** {names[id(row)]}" for row in rows)
        sentence = f"{head}: {verdicts}."
    if effects:
        shown = "; ".join(f"{row.change} {names[id(row)]}" for row in effects)
        late = ", late over early" if first.unit == Unit.LOG_RATIO else ""
        sentence += f" {first.shown_unit.capitalize()}{late}: {shown}."
    return sentence


def describe_reach(rows: Iterable[Row]) -> str:
    """How far the runs of some rows got, in words; for each algorithm where these differ.

    Example:
        >>> from dataclasses import replace
        >>> from metanb import preset
        >>> from metanb.claims.rules import judge
        >>> from metanb.runs.records import find_record
        >>> runs = [find_record(preset("quick", "omniglot", seed=seed)) for seed in range(3)]
        >>> row = judge(runs)[0]
        >>> stopped = replace(row, algorithm="fomaml", iterations=900)
        >>> describe_reach([row]), describe_reach([row, stopped])
        ('full length', 'full length under MAML, 900 of 1,800 iterations under first-order MAML')
    """
    reach = {name_of(row.algorithm): row.length for row in rows}
    if len(set(reach.values())) == 1:
        return next(iter(reach.values()))
    return ", ".join(f"{length} under {name}" for name, length in reach.items())


def in_short(*sentences: str) -> str:
    """What a chapter found, in Markdown: a quotation with one item per sentence, for its top."""
    return "\n".join(["> **In short**", ">", *(f"> - {sentence}" for sentence in sentences)])


def _describe_cell(row: Row) -> str:
    """The data set and the settings that tell the row's cell apart, for a table."""
    apart = f" ({row.apart})" if row.apart else ""
    return f"{name_of(row.dataset)}, {row.setting}{apart}"


# the columns of the ledger as people read it: by name, what of a row stands in them
_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "claim": lambda row: row.name,
    "data": _describe_cell,
    "algorithm": lambda row: name_of(row.algorithm),
    "scale": lambda row: row.shown_scale,
    "effect": lambda row: row.shown_unit,
    "95 % interval": lambda row: row.change,
    "runs": lambda row: row.runs,
    "p, Holm": lambda row: row.shown_p,
    "verdict": lambda row: row.verdict.value,
    "paper": lambda row: row.paper or "–",
}


def verdict_table(rows: Iterable[Row], corrected: bool = False) -> pd.DataFrame:
    """The ledger for people: one row per cell, the effect with its 95 % interval.

    `corrected` adds Holm's p-values. They only mean something for the whole ledger.
    """
    lines = [[read(row) for read in _COLUMNS.values()] for row in rows]
    table = pd.DataFrame(lines, columns=list(_COLUMNS))
    return table if corrected else table.drop(columns="p, Holm")


def verdicts_by_cell(rows: Iterable[Row], width: int = 80) -> str:
    """The ledger for a terminal: a heading per cell, and below it one or two lines per row.

    The worst fit with the paper stands first in each cell. Cells of one data set and setting stand
    together. Rows that contain one's own runs have a heading of their own, which says so.

    Args:
        rows: the ledger, with Holm's p-values.
        width: columns that a line may take.
    """
    # group the rows by cell, and by whether one's own runs are among the cell's
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cell = (row.dataset, row.setting, row.apart, row.algorithm, row.shown_scale)
        cells.setdefault((*cell, bool(row.own)), []).append(row)

    # a stable sort: within a setting, cells keep the order of the rows
    settings = list(dict.fromkeys(cell[:2] for cell in cells))
    groups = [cells[cell] for cell in sorted(cells, key=lambda cell: settings.index(cell[:2]))]
    return "\n\n".join("\n".join(_cell_lines(group, width)) for group in groups)


def _cell_lines(rows: list[Row], width: int) -> Iterator[str]:
    """The lines of one cell: its heading and its rows, the worst fit with the paper first."""
    first = rows[0]
    heading = f"{_describe_cell(first)}, {name_of(first.algorithm)}, {first.shown_scale}"
    own = {run_id for row in rows for run_id in row.own}
    if own:
        heading += f"; yours: {len(own)} of {len({i for row in rows for i in row.ids})} runs"
    yield from textwrap.wrap(heading, width, subsequent_indent="    ")

    for row in sorted(rows, key=lambda row: _WORST_FIRST.index(row.verdict)):
        # the other units show in the effect itself, as "×" and "points"
        unit = {Unit.CORRELATION: "r = ", Unit.COSINE: "cosine "}.get(row.unit, "")
        effect = [f"{unit}{row.change}"] if math.isfinite(row.effect) else []
        parts = [*effect, f"{row.runs} {'run' if row.runs == 1 else 'runs'}"]
        if row.verdict.is_judged:
            parts.append(f"Holm's p {row.shown_p}")
        # a line breaks between two parts, not within one
        tail = ", ".join(part.replace(" ", "\0") for part in parts)
        text = f"{row.name}: {row.verdict}; {tail}"
        for line in textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      "):
            yield line.replace("\0", " ")


def changed_verdicts(rows: Iterable[Row], newer: Iterable[Row]) -> str:
    """In Markdown: each verdict of `newer` that differs from that of `rows`.

    Rows are compared by claim and algorithm; a row of `newer` without a partner is left out.

    Example:
        >>> changed_verdicts([], [])
        'There is nothing to compare.'
    """
    before = {(row.name, row.algorithm): row for row in rows}
    pairs = [(before[key], row) for row in newer if (key := (row.name, row.algorithm)) in before]
    if not pairs:
        return "There is nothing to compare."
    lines = [
        f"- {row.name}, {name_of(row.algorithm)}: {old.verdict} ({old.shown_scale}), "
        f"**{row.verdict}** ({row.shown_scale})."
        for old, row in pairs
        if old.verdict != row.verdict
    ]
    return "\n".join(lines) or f"All {len(pairs)} verdicts are the same."


def rows_as_json(rows: Iterable[Row]) -> str:
    """The ledger for machines: a list of objects with the fields of Row, and `reached`.

    A number that is not finite becomes null.
    """

    def replace_non_finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    objects = [
        {name: replace_non_finite(value) for name, value in asdict(row).items()}
        | {"reached": row.reached}
        for row in rows
    ]
    return json.dumps(objects, indent=1)
