"""Sphinx extension: on every page, the first use of each term of the glossary links to its meaning, and shows it.

Only running text counts: not headings, code, formulas, links, or what a cell of a notebook printed.
"""

import re
from functools import cache
from typing import Any

from docutils import nodes
from sphinx import addnodes

PAGE = "book/glossary"
# Within these a word is something else than a first use that a reader would look up.
APART = (
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.raw,
    addnodes.pending_xref,
    addnodes.download_reference,
    addnodes.desc_signature,
)


@cache
def meanings(app: Any) -> dict[str, tuple[str, str]]:
    """By term: the id of its entry on the glossary's page, and its meaning as plain text."""
    found = {}
    for item in app.env.get_doctree(PAGE).findall(nodes.definition_list_item):
        for term in item.findall(nodes.term):
            meaning = next(item.findall(nodes.definition)).astext()
            found[term.astext()] = term["ids"][0], " ".join(meaning.split())
    return found


def pattern(term: str) -> re.Pattern[str]:
    """The term as a word of its own, in the singular or the plural; small letters may begin a sentence."""
    first = re.escape(term[0])
    first = f"[{first}{first.upper()}]" if term[0].islower() else first
    return re.compile(
        rf"(?<![\w-]){first}{re.escape(term[1:])}(?:s|es)?(?![\w-])".replace(r"\ ", r"\s+")
    )


def link_first_uses(app: Any, doctree: nodes.document, docname: str) -> None:
    """Sphinx's event `doctree-resolved`: replace each term's first use by a link."""
    if docname == PAGE or app.builder.format != "html":
        return
    left = dict(meanings(app))
    base = app.builder.get_relative_uri(docname, PAGE)
    texts = [text for text in doctree.findall(nodes.Text) if not _apart(text)]
    for text in texts:
        parts: list[nodes.Node] = [text]
        # "MAML" is not looked for within "first-order MAML"
        for term in sorted(left, key=len, reverse=True):
            for place, part in enumerate(parts):
                found = pattern(term).search(part) if isinstance(part, nodes.Text) else None
                if found:
                    target, meaning = left.pop(term)
                    link = nodes.reference(
                        "",
                        found[0],
                        refuri=f"{base}#{target}",
                        reftitle=meaning,
                        internal=True,
                        classes=["glossary-link"],
                    )
                    around = (
                        nodes.Text(part[: found.start()]),
                        link,
                        nodes.Text(part[found.end() :]),
                    )
                    parts[place : place + 1] = [one for one in around if one.astext()]
                    break
        if parts != [text]:
            text.parent.replace(text, parts)


def _apart(text: nodes.Text) -> bool:
    node = text.parent
    while node is not None:
        if isinstance(node, APART) or "cell_output" in getattr(node, "attributes", {}).get(
            "classes", ()
        ):
            return True
        node = node.parent
    return False


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
