"""The ledger at a glance: verdicts as marks, the order of its rows, and its overview."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from html import escape

from metanb.claims.cells import SCALES
from metanb.claims.paper import CLAIMS
from metanb.claims.rules import RELATIVE, SCALE_FREE
from metanb.claims.verdicts import FULL_LENGTH, Row, Verdict
from metanb.labels import ALGORITHMS, name_of

_CANNOT_TELL = ("cannot tell", '<path class="line" d="M-3 -3A3 3 0 1 1 0 1.2V2.6M0 5V6"/>')
_NOT_TESTABLE = ("not testable", '<circle r="1.8"/>')
_HALF = '<circle class="line" r="5.2"/><path d="M0 -6A6 6 0 0 0 0 6Z"/>'
# By verdict: its name in short, and its mark in a square of 16 about the middle. Shapes differ, not
# only colours.
MARKS = {
    Verdict.REPRODUCED: ("reproduced", '<circle r="6"/>'),
    Verdict.TREND_ONLY: ("trend only", _HALF),
    Verdict.WITHIN_RUNS: ("within runs only", _HALF),
    Verdict.NOT_SET_APART: ("not set apart", _HALF),
    Verdict.NOT_SEEN: ("not reproduced", '<circle class="line" r="5.2"/>'),
    Verdict.CONTRARY: ("reversed", '<path class="line" d="M-5 -5L5 5M-5 5L5 -5"/>'),
    Verdict.OPPOSITE_TREND: ("opposite trend", '<path class="line" d="M-5 -5L5 5"/>'),
    Verdict.UNCLEAR: _CANNOT_TELL,
    Verdict.POWERLESS: _CANNOT_TELL,
    Verdict.NO_CASE: _NOT_TESTABLE,
    Verdict.TOO_COARSE: _NOT_TESTABLE,
    Verdict.TOO_SHORT: _NOT_TESTABLE,
    Verdict.NO_BASELINE: _NOT_TESTABLE,
    Verdict.NO_RATIO: _NOT_TESTABLE,
}
# the mark of a claim that is reproduced in the paper's form, and not in the form of its control
WITHOUT_CONTROL = (
    "only without allowing for the size of the weights",
    '<circle class="line" r="5.2"/><path d="M-6 0A6 6 0 0 0 6 0Z"/>',
)
# by claim, the form that considers the weights' scale
CONTROLS = {"C1": SCALE_FREE, "C3": RELATIVE, "C4": SCALE_FREE}
_SHORT_NAMES = {"first-order MAML": "1st order"}  # in the heads of rows
_DIFFERENCES = {"inner_loss=sum": "sum as inner loss"}  # from the scale, in the heads of rows
# by claim, what it says in the head of a column
_SHORT_CLAIMS = {
    "C1": "flatter",
    "C2": "lower loss",
    "C3": "further",
    "C4": "flatter while worse",
    "C5": "with trajectory coherence",
    "C6": "with gradient coherence",
    "C7": "finetuning orthogonal",
    "C8": "regulariser helps",
}


def describe_length(row: Row) -> str:
    """How much of their full length the runs of a row have made, in words: "1/12 length"."""
    share = _share_made(row)
    if share == 1:
        return FULL_LENGTH
    if share.numerator == 1:
        return f"{share} length"
    return f"{100 * float(share):.0f} % of the length"


def _share_made(row: Row) -> Fraction:
    return Fraction(row.iterations, row.full_iterations)


def describe_scale(rows: Sequence[Row]) -> str:
    """The scale of rows that share it, and how much of their length their runs have made.

    Complete runs of the small scales need no words.
    """
    scale = f"{rows[0].scale.capitalize()} settings"
    lengths = list(dict.fromkeys(describe_length(row) for row in rows))
    if lengths == [FULL_LENGTH] and rows[0].scale != "paper":
        return scale
    return f"{scale}, {' or '.join(lengths)}"


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """The paper's own settings first, the longest of them at the top, and Glyphs last."""

    def order(row: Row) -> tuple[bool, int, Fraction]:
        scale = -SCALES.index(row.scale) if row.scale in SCALES[:3] else 1
        return row.dataset == "glyphs", scale, -_share_made(row)

    return sorted(rows, key=order)


def find_control(row: Row, rows: Iterable[Row]) -> Row | None:
    """The row of the same runs in the form that considers the weights' scale, if it is judged."""
    form = CONTROLS.get(row.claim)
    for control in rows:
        is_same = (control.claim, control.ids) == (row.claim, row.ids)
        if is_same and control.variant == form and control.verdict.is_judged:
            return control
    return None


def mark_of(row: Row, rows: Iterable[Row]) -> tuple[str, str]:
    """A row's mark in the overview: its name and shape, see MARKS and WITHOUT_CONTROL."""
    control = find_control(row, rows) if row.verdict == Verdict.REPRODUCED else None
    if control is not None and control.verdict != Verdict.REPRODUCED:
        return WITHOUT_CONTROL
    return MARKS[row.verdict]


def overview(rows: Sequence[Row], pages: Mapping[str, str], ledger: str) -> str:
    """The verdicts on the paper's own form of each claim, as an HTML table.

    A column is a claim, a row a setting and algorithm: MAML or first-order MAML. Finetuning's
    verdicts stand in the row of the algorithm that it is compared with. A mark leads to its row
    of the ledger, and its title gives form, effect and runs. Where a claim has several rows in one
    place, as the regulariser has at several strengths, each has its mark.

    Args:
        rows: the ledger.
        pages: by claim, the address of the page that tests it.
        ledger: the address of the ledger's page.
    """
    shown = sort_rows(row for row in rows if row.verdict in MARKS and row.as_in_paper)
    marks = {id(row): mark_of(row, rows) for row in shown}
    links = {}
    for row in shown:
        title = _describe_mark(row, rows, marks[id(row)][0])
        links[id(row)] = _draw_mark(row, title, marks[id(row)], ledger)

    # one body per scale, with Glyphs apart
    scales: dict[tuple[bool, str], list[Row]] = {}
    for row in shown:
        scales.setdefault((row.dataset == "glyphs", row.scale), []).append(row)
    bodies = ""
    for (is_glyphs, _), of_scale in scales.items():
        head = describe_scale(of_scale) + (
            " on data that the paper does not use" if is_glyphs else ""
        )
        bodies += _draw_body(head, of_scale, links)

    table = f"<table><thead>{_heads_of_columns(pages)}</thead>{bodies}</table>"
    return (
        '<div class="metanb-overview" tabindex="0" role="region" '
        f'aria-label="Verdicts at a glance">{table}</div>'
        f'<p class="metanb-legend">{_draw_legend(marks.values())}</p>'
    )


def _draw_body(head: str, rows: Sequence[Row], links: Mapping[int, str]) -> str:
    """The overview's rows of one scale, below their head.

    Args:
        head: of the rows.
        rows: what is shown.
        links: by the id of each of these objects, its mark.
    """
    settings: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        algorithms = settings.setdefault(describe_setting(row), {})
        # a row of finetuning stands with the algorithm that it is compared with
        algorithms.setdefault(row.beside or name_of(row.algorithm), []).append(row)

    html = f'<tr><th colspan="{2 + len(CLAIMS)}" scope="rowgroup">{head}</th></tr>'
    for setting, algorithms in settings.items():
        # ways and shots stay in one line
        name = re.sub(r"\d+-way \d+-shot", r"<span>\g<0></span>", escape(setting))
        span = f'<th rowspan="{len(algorithms)}" scope="rowgroup">{name}</th>'
        for algorithm in sorted(algorithms, key=order_of_algorithm):
            short_name = _SHORT_NAMES.get(algorithm, algorithm)
            html += f'<tr>{span}<th scope="row"><abbr title="{algorithm}">{short_name}</abbr></th>'
            span = ""
            for claim in CLAIMS:
                cell = [links[id(row)] for row in algorithms[algorithm] if row.claim == claim.name]
                html += f"<td>{''.join(cell)}</td>"
            html += "</tr>"
    return f"<tbody>{html}</tbody>"


def order_of_algorithm(label: str) -> int:
    """The place of an algorithm's label in the book; those of one's own come last."""
    labels = [algorithm.label for algorithm in ALGORITHMS.values()]
    return labels.index(label) if label in labels else len(labels)


def describe_setting(row: Row) -> str:
    """Data set and setting; how it differs from its scale's, where one setting tells."""
    setting = f"{name_of(row.dataset)} {row.setting}"
    if not row.apart or "," in row.apart:
        return setting
    return f"{setting}, {_DIFFERENCES.get(row.apart, row.apart)}"


def _heads_of_columns(pages: Mapping[str, str]) -> str:
    """The head of each claim's column: its name, and in short what it says."""
    heads = ""
    for claim in CLAIMS:
        title = escape(f"{claim.text[0].upper()}{claim.text[1:]}")
        heads += (
            f'<th scope="col"><a href="{pages[claim.name]}" title="{title}">{claim.name}</a> '
            f"<span>{_SHORT_CLAIMS[claim.name]}</span></th>"
        )
    return f'<tr><td colspan="2"></td>{heads}</tr>'


def _draw_legend(marks: Iterable[tuple[str, str]]) -> str:
    """These marks and their names, in the order of MARKS; names of one shape stand together."""
    drawn = set(marks)
    names: dict[str, list[str]] = {}
    known = [MARKS[Verdict.REPRODUCED], WITHOUT_CONTROL, *MARKS.values()]
    for name, shape in dict.fromkeys(known):
        if (name, shape) in drawn:
            names.setdefault(shape, []).append(name)
    return " ".join(
        f"<span>{draw_symbol(of_shape[0], shape)} {' or '.join(of_shape)}</span>"
        for shape, of_shape in names.items()
    )


def _describe_mark(row: Row, rows: Iterable[Row], name: str) -> str:
    """The title of a row's mark."""
    title = f"{row.name}, {name}: {row.change}, {row.runs} runs"
    if name == WITHOUT_CONTROL[0]:
        control = find_control(row, rows)
        assert control is not None
        title += f"; {control.variant}: {MARKS[control.verdict][0]}, {control.change}"
    return title


def _draw_mark(row: Row, title: str, mark: tuple[str, str], ledger: str) -> str:
    """A row's mark, which leads to the ledger."""
    text = escape(title)
    return (
        f'<a href="{ledger}#{row.anchor}" title="{text}" aria-label="{text}">'
        f"{draw_symbol(*mark)}</a>"
    )


def draw_symbol(name: str, shape: str) -> str:
    """A mark as an `<svg>` element for a line of text, which names it: see MARKS."""
    return (
        f'<svg class="metanb-mark {name.replace(" ", "-")}" viewBox="-8 -8 16 16" '
        f'width="16" height="16" aria-hidden="true">{shape}</svg>'
    )
