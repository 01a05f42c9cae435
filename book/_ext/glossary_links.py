"""Sphinx extension: on every page, the first use of each glossary term links to its meaning.

The link's tooltip shows the meaning. Only running text counts: no headings, code, formulas, links
or outputs of a notebook's cells.
"""

import re
from functools import cache
from typing import Any

from docutils import nodes
from sphinx import addnodes

PAGE = "book/glossary"
# Within these a word is no first use that a reader would look up.
EXCLUDED = (
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.doctest_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.raw,
    addnodes.pending_xref,
    addnodes.download_reference,
    addnodes.desc_signature,
)


@cache
def glossary(app: Any) -> dict[str, tuple[str, str]]:
    """By term: the id of its entry on the glossary's page, and its meaning as plain text."""
    entries = {}
    for item in app.env.get_doctree(PAGE).findall(nodes.definition_list_item):
        for term in item.findall(nodes.term):
            meaning = next(item.findall(nodes.definition)).astext()
            entries[term.astext()] = term["ids"][0], " ".join(meaning.split())
    return entries


def term_pattern(term: str) -> re.Pattern[str]:
    """A pattern of the term as a whole word, singular or plural.

    A term in small letters may begin a sentence with a capital.
    """
    first = re.escape(term[0])
    first = f"[{first}{first.upper()}]" if term[0].islower() else first
    rest = re.escape(term[1:])
    return re.compile(rf"(?<![\w-]){first}{rest}(?:s|es)?(?![\w-])".replace(r"\ ", r"\s+"))


def link_first_uses(app: Any, doctree: nodes.document, docname: str) -> None:
    """Sphinx's event `doctree-resolved`: replace each term's first use by a link."""
    if docname == PAGE or app.builder.format != "html":
        return
    entries = dict(glossary(app))  # of terms that are not linked yet
    base = app.builder.get_relative_uri(docname, PAGE)
    texts = [text for text in doctree.findall(nodes.Text) if not _is_excluded(text)]
    for text in texts:
        parts: list[nodes.Node] = [text]
        # The longest terms first: "MAML" within "first-order MAML" is no use of "MAML".
        for term in sorted(entries, key=len, reverse=True):
            linked = _link_term(parts, term, base, *entries[term])
            if linked:
                parts = linked
                del entries[term]
        if parts != [text]:
            text.parent.replace(text, parts)


def _link_term(
    parts: list[nodes.Node], term: str, base: str, target: str, meaning: str
) -> list[nodes.Node] | None:
    """The parts of a text with the term's first use replaced by a link; None without a use."""
    for place, part in enumerate(parts):
        match = term_pattern(term).search(part) if isinstance(part, nodes.Text) else None
        if match:
            link = nodes.reference(
                "",
                match[0],
                refuri=f"{base}#{target}",
                reftitle=meaning,
                internal=True,
                classes=["glossary-link"],
            )
            split = [nodes.Text(part[: match.start()]), link, nodes.Text(part[match.end() :])]
            filled = [node for node in split if node.astext()]
            return [*parts[:place], *filled, *parts[place + 1 :]]
    return None


def _is_excluded(text: nodes.Text) -> bool:
    """Whether a text lies within an EXCLUDED node, in a notebook's output or in its box."""
    node = text.parent
    while node is not None:
        classes = getattr(node, "attributes", {}).get("classes", ())
        if isinstance(node, EXCLUDED) or {"cell_output", "metanb-in-short"} & {*classes}:
            return True
        node = node.parent
    return False


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
