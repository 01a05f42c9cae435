"""The exercises of the chapters: two of them in each, and what their solutions print is true."""

import doctest
import re

import nbformat
import pytest

from tests.support.paths import ROOT

CHAPTERS = ("0-what-it-looks-like", "1-maml", "2-flatness")


@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_print_what_stands_below_them(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    solutions = re.findall(r"^:::\{dropdown\} Solution\n(.*?)^:::$", text, re.M | re.S)
    assert len(re.findall(r"^\*\*\d\. .+\*\*", text, re.M)) == len(solutions) == 2
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner()
    names = {}  # a chapter's second solution goes on from the first
    for solution in solutions:
        (code,) = re.findall(r"^```pycon\n(.*?)^```$", solution, re.M | re.S)
        test = parser.get_doctest(code, names, name, None, 0)
        runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.tries >= 4 and not runner.failures
