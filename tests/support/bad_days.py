"""The page "When things go wrong" for its tests: one row per bad day, with its message."""

import re

from tests.support.paths import ROOT

PAGE = ROOT / "book" / "bad-days.md"


def rows() -> list[tuple[str, str]]:
    """Each row of the page's tables: what happens, and the message, "" if there is none."""
    lines = [
        line.strip("| ").split(" | ")
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    days = [cells for cells in lines if cells[0] != "What happens"]
    assert all(len(cells) == 3 for cells in days), "a row has three cells"
    return [
        (cells[0], re.sub(r"^(`+)(.+)\1$", r"\2", cells[1]).strip() if "`" in cells[1] else "")
        for cells in days
    ]


def shown(day: str, output: str) -> None:
    """Assert that a line of the output is the message in the page's row, word for word.

    {a word} in the message stands for anything.
    """
    message = dict(rows())[day]
    if not message:
        assert output == ""
        return
    pattern = re.sub(r"\\\{[a-z ]+\\\}", ".+", re.escape(message).replace(r"\ ", " "))
    assert [line for line in output.splitlines() if re.fullmatch(pattern, line)], (
        f"{message}\nis not in\n{output}"
    )
