"""Formulas in a built page, and what becomes of one that cannot be translated.

Evidence: pages that Sphinx builds from a few lines, parsed as XML by the standard library; the
expected trees are written out by hand from MathML Core's definitions of the elements.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from sphinx.testing.util import SphinxTestApp

from tests.support.paths import ROOT

EXTENSIONS = ROOT / "book" / "_ext"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a page of one formula: its element, and what Sphinx warned of."""
    monkeypatch.syspath_prepend(EXTENSIONS)

    def built(role: str):
        (tmp_path / "conf.py").write_text(
            "extensions = ['mathml']\nhtml_math_renderer = 'mathml'\n"
        )
        (tmp_path / "index.rst").write_text(f"Page\n====\n\n{role}\n")
        app = SphinxTestApp(srcdir=tmp_path)
        app.build()
        app.cleanup()
        page = BeautifulSoup((Path(app.outdir) / "index.html").read_text(), "html.parser")
        return page.find("math"), app.warning.getvalue()

    yield built
    sys.modules.pop("mathml", None)


def shape(element: ElementTree.Element):
    """A tree as nested tuples: the name of an element, and its children or its text."""
    return element.tag, [shape(child) for child in element] or element.text


def test_formula_is_mathml_and_keeps_its_tex(build):
    formula, warnings = build(r":math:`\frac{a}{b^2} < c`")
    (semantics,) = ElementTree.fromstring(str(formula))
    row, tex = semantics
    fraction, sign, c = map(shape, row)
    assert fraction == ("mfrac", [("mi", "a"), ("msup", [("mi", "b"), ("mn", "2")])])
    assert (sign, c) == (("mo", "<"), ("mi", "c"))
    assert tex.text == r"\frac{a}{b^2} < c" and formula.get("display") is None
    assert warnings == ""


def test_lines_of_a_block_stay_lines(build):
    formula, warnings = build(".. math::\n\n   \\begin{gathered} a \\\\ b \\end{gathered}")
    assert [row.get_text() for row in formula.find_all("mtr")] == ["a", "b"]
    assert formula["display"] == "block" and "math" in formula.parent["class"]
    assert warnings == ""


@pytest.mark.parametrize(
    ("role", "cause"),
    [
        (r":math:`\nosuch x`", r"\nosuch"),
        (r":math:`\frac{a}{b`", r"\frac{a}{b"),
        # reStructuredText halves the backslashes twice over
        (":math:`a \\\\\\\\ b`", "environment"),
    ],
)
def test_formula_that_cannot_be_translated_is_named(build, role, cause):
    formula, warnings = build(role)
    assert formula is None
    assert "WARNING: formula" in warnings and "index.rst" in warnings
    assert cause in warnings.replace("\\\\", "\\")
