"""The page "When things go wrong" as its tests see it: a row a bad day, and the message that its test must produce."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "book" / "bad-days.md"


def rows() -> list[tuple[str, str]]:
    """Each row of the page's tables: what happens, and the message that is seen, "" where nothing is said."""
    lines = [
        line.strip("| ").split(" | ")
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    found = [cells for cells in lines if cells[0] != "What happens"]
    assert all(len(cells) == 3 for cells in found), "a row has three cells"
    return [
        (cells[0], re.sub(r"^(`+)(.+)\1$", r"\2", cells[1]).strip() if "`" in cells[1] else "")
        for cells in found
    ]


def shown(day: str, said: str) -> None:
    """One line of what was said is the message in the page's row, word for word; {a word} there stands for anything."""
    message = dict(rows())[day]
    if not message:
        assert said == ""
        return
    pattern = re.sub(r"\\\{[a-z ]+\\\}", ".+", re.escape(message).replace(r"\ ", " "))
    assert [line for line in said.splitlines() if re.fullmatch(pattern, line)], (
        f"{message}\nis not in\n{said}"
    )
