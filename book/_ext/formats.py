"""How the book prints values, cells, sentences and tables."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from metanb.labels import name_of
from metanb.runs.records import Record
from metanb.settings import Settings, differences_from_scale, scale_of

# how a sentence names a scale
PLACES = {"paper": "at the paper's settings", "quick": "in the smaller version"}


def format_value(value: Any) -> str:
    """A value as the book prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_iterations(cell: list[Record]) -> str:
    """The iterations that a cell's runs have reached, least to greatest."""
    ends = {run.iterations for run in cell}
    return f"{min(ends):,}" if len(ends) == 1 else f"{min(ends):,} to {max(ends):,}"


def describe_cell(settings: Settings) -> str:
    """A cell in words: data, algorithm, scale, and every setting that differs from its scale's."""
    experiment = f"{name_of(settings.dataset)}, {settings.setting}, {name_of(settings.algorithm)}"
    return f"{experiment}, {scale_of(settings)} settings{describe_changes(settings)}"


def describe_changes(settings: Settings) -> str:
    """Every setting that differs from its scale's, each after a comma: ", `inner_loss=sum`"."""
    changes = differences_from_scale(settings).items()
    return "".join(f", `{name}={format_value(value)}`" for name, value in changes)


def small_print(*texts: str) -> str:
    """The texts that are not empty, in small print on a line of its own in a table's cell."""
    line = "; ".join(filter(None, texts))
    return f"<br><small>{line}</small>" if line else ""


def capitalise(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def enumerate_words(words: Sequence[str]) -> str:
    """Words as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def least_to_greatest(values: Collection[float], form: str) -> str:
    """The least and the greatest value, once if they read the same."""
    least, greatest = form.format(min(values)), form.format(max(values))
    return least if least == greatest else f"{least} to {greatest}"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown_frame(data: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    return markdown_table(list(data.columns), data.astype(str).to_numpy().tolist())


def folded_table(summary: str, head: list[str], lines: list[str], kind: str = "") -> str:
    """A table in a fold, as HTML; on a phone its rows become cards.

    Args:
        summary: what stands on the fold.
        head: of the columns, eight at most.
        lines: the rows, as `table_row` gives them.
        kind: a further class of the table.
    """
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    classes = " ".join(filter(None, ["table", "metanb-cards", kind]))
    # What the cells of a card are called, for the style sheet: said once, not in each cell.
    labels = ";".join(f"--label-{i}:'{name}'" for i, name in enumerate(head, 1))
    return (
        f'<details class="metanb-fold"><summary>{summary}</summary>'
        f'<table class="{classes}" style="{labels}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></details>"
    )


def table_row(cells: Iterable[str], attributes: str = "") -> str:
    """A row of `folded_table`.

    Args:
        cells: as HTML.
        attributes: of the row, as HTML.
    """
    return f"<tr{attributes}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
