"""The exercises of the chapters: two of them in each, and what their solutions print is true."""

import doctest
import re

import nbformat
import pytest

from metanb import labels
from tests.support.paths import ROOT

# chapters whose second solution goes on from the first, and chapters whose blocks stand alone
GO_ON = ("0-what-it-looks-like", "1-maml", "2-flatness")
ALONE = ("7-what-coherence-measures", "8-causes", "9-your-own")


@pytest.fixture
def restored():
    """What a solution registers is gone again."""
    from metanb.landscape.measures import PER_TASK
    from metanb.maml.algorithms import GRADIENTS

    tables = (labels.ALGORITHMS, GRADIENTS, labels.MEASURES, PER_TASK)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("name", [*GO_ON, *ALONE])
def test_solutions_print_what_stands_below_them(name, restored):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    heads = r"^\*\*\d\. .+\*\*"
    if name in ALONE:
        text = text.partition("\n## Exercises\n")[2].partition("\n## ")[0]
        heads = r"^\*\*\d\.\*\*"
    solutions = re.findall(r"^:::\{dropdown\} Solution\n(.*?)^:::$", text, re.M | re.S)
    assert len(re.findall(heads, text, re.M)) == len(solutions) == 2

    runner = doctest.DocTestRunner()
    names = {}
    for solution in solutions:
        blocks = re.findall(r"^```pycon\n(.*?)^```$", solution, re.M | re.S)
        assert len(blocks) == 1 or name in ALONE
        for block in blocks:
            known = names if name in GO_ON else {}
            test = doctest.DocTestParser().get_doctest(block, known, name, None, 0)
            runner.run(test, clear_globs=False)
            names = test.globs
    assert runner.tries >= 4 and not runner.failures
