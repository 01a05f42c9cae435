"""Sphinx extension: a chapter's box "In short" stands below its first paragraph.

A notebook computes the box after it has read its runs. A reader of the book wants it first, so the
box moves up, out of the output of its cell.
"""

from typing import Any

from docutils import nodes

HEAD = "In short"


def move_box_up(app: Any, doctree: nodes.document, docname: str) -> None:
    """Sphinx's event `doctree-resolved`: move the box."""
    boxes = [box for box in doctree.findall(nodes.block_quote) if is_in_short(box)]
    chapter = doctree.next_node(nodes.section)
    if not boxes or chapter is None:
        return
    (box,) = boxes
    first = next(place for place, part in enumerate(chapter) if isinstance(part, nodes.paragraph))
    box.parent.remove(box)
    chapter.insert(first + 1, nodes.container("", box, classes=["metanb-in-short"]))


def is_in_short(box: nodes.block_quote) -> bool:
    """Whether a quotation begins with HEAD."""
    return len(box) > 0 and box[0].astext() == HEAD


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", move_box_up)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
