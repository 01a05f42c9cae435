"""Sphinx extension: formulas as MathML, written when the book is built, so that a page shows them without JavaScript.

math-core translates the TeX and stands in the page's annotation of each formula. What it cannot
translate is a warning that names the formula, and so, in the strict build, an error. Glyphs are
those of a math font, see `math.css`.
"""

import html
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

logger = logging.getLogger(__name__)
converter = LatexToMathML(annotation=True, fancy_error=False)


def mathml(node: nodes.Element, display: bool) -> str:
    """A formula as a `<math>` element; its TeX, with a warning, where there is no translation."""
    tex = node.astext().strip()
    if r"\\" in tex and r"\begin" not in tex:  # would be dropped without a word
        said = r"a line break (\\) needs an environment around it, such as gathered"
    else:
        try:
            return converter.convert_with_local_state(tex, displaystyle=display)
        except LatexError as error:
            said = str(error)
    logger.warning("formula %r: %s", tex, said, location=node, type="mathml")
    return html.escape(tex)


def visit_math(self: Any, node: nodes.math) -> None:
    """A formula in a line of text."""
    self.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """A formula of its own line, in a box that scrolls where the formula is wider than the page.

    The box has the class of the theme's box around tables, to which the theme gives a tab stop when
    it scrolls.
    """
    self.body.append(self.starttag(node, "div", CLASS="math pst-scrollable-table-container"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({node["number"]})</span>')
    self.body.append(mathml(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
