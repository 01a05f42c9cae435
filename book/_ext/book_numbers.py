"""Sphinx extension: the numbers in the book's prose, computed from the recorded runs and from the code at build time.

Each entry of `substitutions` is written `{{ name }}` in a page. A name that is not there is a warning, and so, in the
strict build, an error: no number of the book is typed by hand.
"""

import inspect
import math
import re
from pathlib import Path
from typing import Any

from metanb.claims import NOT_RUN, Row, ledger
from metanb.figures import NAMES
from metanb.records import read_all
from metanb.settings import Settings, preset

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = [f"C{number}" for number in range(1, 9)]
SCALES = ("smoke", "quick", "paper")
TITLES = {"omniglot": "Omniglot", "mini-imagenet": "mini-ImageNet", "glyphs": "Glyphs"}
PAPER_SETTINGS = [("omniglot", 5, 1), ("omniglot", 20, 1), ("mini-imagenet", 5, 1), ("mini-imagenet", 5, 5)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def number(value: Any) -> str:
    """A value as the book prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def verdict(rows: list[Row]) -> str:
    """One claim's verdicts in a phrase: "**reproduced** (MAML); **not reproduced** (first-order MAML)"."""
    tested: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict != NOT_RUN and NAMES[row.algorithm] not in tested.setdefault(row.verdict, []):
            tested[row.verdict].append(NAMES[row.algorithm])
    return "; ".join(f"**{result}** ({', '.join(who)})" for result, who in tested.items()) or NOT_RUN.replace(
        " ", "&nbsp;"
    )


def evidence(rows: list[Row]) -> str:
    """The ledger's rows that have a verdict, as a table. A log ratio is shown as the ratio."""
    tested = [row for row in rows if row.verdict != NOT_RUN]
    if not tested:
        return "No run is recorded yet."
    lines = []
    for row in tested:
        low, effect, high = (f"{value:.3g}" for value in (row.low, row.effect, row.high))
        if row.unit.startswith("log ratio"):
            low, effect, high = (f"{math.exp(value):.2f}" for value in (row.low, row.effect, row.high))
            effect = f"×\N{NO-BREAK SPACE}{effect}"
        where = f"{TITLES[row.dataset]}, {row.setting}, {NAMES[row.algorithm]}, {row.scale} scale"
        lines.append([row.claim, where, effect, f"{low} to {high}", number(row.runs), f"**{row.verdict}**"])
    return table(["Claim", "Cell", "Effect", "95 % interval", "Runs", "Verdict"], lines)


def settings_table(columns: dict[str, Settings], only_changing: bool) -> str:
    """Settings side by side, one row a setting; what each means is the comment beside it in the code."""
    meaning = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(Settings), re.MULTILINE))
    rows = []
    for name in Settings.__dataclass_fields__:
        values = [getattr(settings, name) for settings in columns.values()]
        if not only_changing or (name not in ("dataset", "ways", "shots") and len(set(values)) > 1):
            rows.append([f"`{name}`", *map(number, values), meaning.get(name, "")])
    return table(["Setting", *columns, "Meaning"], rows)


def substitutions() -> dict[str, str]:
    """All names that pages may use, with their Markdown."""
    rows = sorted(ledger(read_all(ROOT / "results")), key=lambda row: (row.claim, [*NAMES].index(row.algorithm)))
    names = {f"verdict_{claim.lower()}": verdict([row for row in rows if row.claim == claim]) for claim in CLAIMS}
    names["evidence"] = evidence(rows)
    names["scales"] = settings_table({scale: preset(scale, "omniglot") for scale in SCALES}, True)
    paper = {f"{TITLES[name]}, {n}-way {k}-shot": preset("paper", name, n, k) for name, n, k in PAPER_SETTINGS}
    names["paper_settings"] = settings_table(paper, True)
    names["all_settings"] = settings_table({"default": Settings()}, False)
    return names


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", lambda _, config: config.myst_substitutions.update(substitutions()))
    return {"parallel_read_safe": True}
