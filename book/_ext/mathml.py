"""Sphinx extension: formulas as MathML, so that a page shows them without JavaScript.

math-core translates the TeX when the book is built; the TeX stays in the page as an annotation of
each formula. A formula that cannot be translated is a warning that names it, and so, in the strict
build, an error. The glyphs are those of a math font, see `math.css`.
"""

import html
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

logger = logging.getLogger(__name__)
converter = LatexToMathML(annotation=True, fancy_error=False)


def translate_formula(node: nodes.Element, display: bool) -> str:
    """Translate a formula to a `<math>` element; with a warning to its TeX, where that fails."""
    tex = node.astext().strip()
    if r"\\" in tex and r"\begin" not in tex:  # math-core would drop it without a word
        reason = r"a line break (\\) needs an environment around it, such as gathered"
    else:
        try:
            return converter.convert_with_local_state(tex, displaystyle=display)
        except LatexError as error:
            reason = str(error)
    logger.warning("formula %r: %s", tex, reason, location=node, type="mathml")
    return html.escape(tex)


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    self.body.append(translate_formula(node, display=False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own, in a box that scrolls where the page is too narrow.

    The box has the class of the theme's box around tables: the theme gives it a tab stop when it
    scrolls.
    """
    self.body.append(self.starttag(node, "div", CLASS="math pst-scrollable-table-container"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({node["number"]})</span>')
    self.body.append(translate_formula(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
