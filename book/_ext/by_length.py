"""What an earlier stop would have said: verdicts at the paper's settings by length of the runs."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from formats import describe_changes, enumerate_words, markdown_table
from reach import cells_of_meta_training

from metanb.claims import rules
from metanb.claims.verdicts import Row
from metanb.figures.ledger import MARKS
from metanb.labels import name_of
from metanb.runs.records import Record

LENGTHS = (5_000, 10_000, 20_000, 30_000, 40_000, 60_000)  # iterations


def verdicts_by_length(recorded: Iterable[Record]) -> str:
    """The verdicts on meta-training that turn with the length of the runs, as a table.

    A cell counts if three of its runs go beyond the first of LENGTHS. It is judged at each of these
    lengths that they reach, and at the greatest length that they have in common.
    """
    cells = [cell for cell in cells_of_meta_training(recorded) if cell[0].iterations > LENGTHS[0]]
    if not cells:
        return "No three runs of a cell at the paper's settings go further than that."
    ends = {cell[0].iterations for cell in cells}
    lengths = sorted(ends.union(length for length in LENGTHS if length < max(ends)))

    lines = []
    steady = 0
    for cell in cells:
        by_row: dict[str, dict[int, str]] = {}
        for length in lengths:
            for row in _judge_at(cell, length):
                by_row.setdefault(row.name, {})[length] = MARKS[row.verdict][0]
        settings = cell[0].settings
        task = f"{name_of(settings.dataset)} {settings.setting}"
        name = f"{task}, {name_of(settings.algorithm)}{describe_changes(settings)}"
        for claim, verdicts in by_row.items():
            if len(set(verdicts.values())) > 1:
                lines.append([claim, name, _describe_turns(verdicts)])
            else:
                steady += 1
    text = f"{steady} of {steady + len(lines)} verdicts are the same at each length."
    if not lines:
        return text
    table = markdown_table(["Claim", "Cell", "Verdict, by iterations"], lines)
    asked = enumerate_words([f"{length:,}" for length in lengths])
    text += f" Each cell is judged at {asked} iterations, as far as it went. These turn:"
    return f"{text}\n\n{table}"


def _describe_turns(verdicts: Mapping[int, str]) -> str:
    """Verdicts by length in words: "trend only at 5,000; not reproduced from 10,000 to 20,000"."""
    phrases = []
    for verdict, group in itertools.groupby(verdicts, key=lambda length: verdicts[length]):
        stretch = list(group)
        place = f"at {stretch[0]:,}"
        if len(stretch) > 1:
            place = f"from {stretch[0]:,} to {stretch[-1]:,}"
        phrases.append(f"{verdict} {place}")
    return "; ".join(phrases)


def _judge_at(cell: Sequence[Record], iterations: int) -> list[Row]:
    """The verdicts on a cell as it was after some iterations; none where it has not reached them.

    First peaks are left out: they lie in the first half of the epochs, whatever their number.
    """
    settings = cell[0].settings
    if cell[0].iterations < iterations:
        return []
    rows = rules.judge(run.upto(iterations // settings.epoch_iterations) for run in cell)
    return [row for row in rows if row.verdict in MARKS and row.variant != "first peak"]
