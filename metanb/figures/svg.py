"""Matplotlib's SVG made fit for a page: small, and in the page's own colours and fonts.

Black becomes the colour of the text around the figure, light or dark; backgrounds are clear. Words
are text in the reader's font, so they can be searched, read aloud and scaled. Whatever no page
needs (metadata, comments, names of groups) is left out.
"""

import re
from collections.abc import Sequence
from html import escape
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
FONT = "'DejaVu Sans', Verdana, sans-serif"  # matplotlib's own, then one as wide
_FIT = "max-width: 100%; height: auto; "
_NUMBER = re.compile(r"-?\d+\.\d+")
_STEP = re.compile(r"([A-Za-z])([^A-Za-z]*)")
_BLACK = re.compile(r"#000000|\bblack\b")
_FAMILY = re.compile(r"font-family: [^;]*;? ?|font: (?=\d)")
_FONT_SHORTHAND = re.compile(r"font: ([\d.]+px) [^;]*")

ElementTree.register_namespace("", SVG)


def inline(drawn: str, alt: str) -> str:
    """Matplotlib's SVG file as an `<svg>` element for a page; the same input, the same output.

    Without an `alt` the element is a part of a picture: it fits the column that it is put in, and
    screen readers pass over it.

    Args:
        drawn: as saved with `svg.fonttype` "none" and clear backgrounds. Its ids come from
            `svg.hashsalt`: each figure of a page needs a salt of its own.
        alt: the text alternative: what the picture shows.
    """
    root = ElementTree.fromstring(drawn)
    used = set(re.findall(r"#([\w-]+)", drawn))
    _clean(root, used)
    width, height = (float(root.get(side, "").removesuffix("pt")) for side in ("width", "height"))
    root.attrib = {
        "viewBox": root.get("viewBox", ""),
        "width": f"{width / 0.75:.0f}",
        "height": f"{height / 0.75:.0f}",
        **({"role": "img", "aria-label": alt} if alt else {"aria-hidden": "true"}),
        "style": f"{'' if alt else _FIT}font-family: {FONT}; stroke-linejoin: round",
        "fill": "currentColor",
    }
    return ElementTree.tostring(root, encoding="unicode")


def join(rows: Sequence[Sequence[str]], alt: str) -> str:
    """Elements of `inline` as one: rows from top to bottom, each from left to right.

    Args:
        rows: of elements without an alt.
        alt: the text alternative of the whole.
    """
    parts = ""
    width = top = 0.0
    for row in rows:
        left = height = 0.0
        for svg in row:
            parts += svg.replace("<svg ", f'<svg x="{left:g}" y="{top:g}" ', 1).replace(_FIT, "", 1)
            left += size_of(svg)[0]
            height = max(height, size_of(svg)[1])
        width = max(width, left)
        top += height
    return (
        f'<svg xmlns="{SVG}" viewBox="0 0 {width:g} {top:g}" width="{width:g}" height="{top:g}" '
        f'role="img" aria-label="{escape(alt)}" style="stroke-linejoin: round">{parts}</svg>'
    )


def size_of(svg: str) -> tuple[float, float]:
    """Width and height of an element of `inline`, pixels."""
    width, height = (re.search(rf' {side}="([\d.]+)"', svg) for side in ("width", "height"))
    if width is None or height is None:
        raise ValueError(f"no width or height: {svg[:80]}")
    return float(width[1]), float(height[1])


def standalone(svg: str) -> str:
    """The element of `inline` or of `join` as a file: black on white."""
    colours = "color: #000; background: #fff; "
    return svg.replace("stroke-linejoin", f"{colours}stroke-linejoin", 1) + "\n"


def _clean(element: ElementTree.Element, used: set[str]) -> None:
    """Clean an element and all below it, in place; ids that are not `used` go."""
    # children: without those that no page needs, and without groups that have no attributes
    children = []
    for child in element:
        _clean(child, used)
        if _is_needless(child):
            continue
        is_bare_group = child.tag == f"{{{SVG}}}g" and not child.attrib
        children += list(child) if is_bare_group else [child]
    element[:] = children

    # text: none of the indentation
    element.text = (element.text or "").strip() or None
    element.tail = None

    # attributes: none that says nothing, numbers and styles in short
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    if HREF in element.attrib:
        element.set("href", element.attrib.pop(HREF))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name, value in element.attrib.items():
        element.set(name, re.sub(r"\s+", " ", _shorten(name, value)).strip())


def _is_needless(element: ElementTree.Element) -> bool:
    """Whether an element is metadata, a style sheet or an empty list of definitions."""
    if element.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
        return True
    return element.tag.endswith("}defs") and not len(element)


def _shorten(name: str, value: str) -> str:
    """An attribute's value with fewer digits, and in the page's colour and font."""
    if name == "d":
        return _shorten_path(value)
    if name in ("x", "y"):
        return _round_numbers(value, 1)
    if name == "style":
        value = _FONT_SHORTHAND.sub(r"font-size: \1", value)
        return _BLACK.sub("currentColor", _FAMILY.sub("", value))
    return value


def _shorten_path(path: str) -> str:
    """A path to a tenth of a point, curves to a hundredth.

    A line that follows a move or a line needs no letter.
    """
    steps = []
    last = ""
    for letter, numbers in _STEP.findall(path):
        is_implied = letter == "L" and last in ("M", "L")
        rounded = _round_numbers(numbers, 1 if letter in "ML" else 2)
        steps.append((" " if is_implied else letter) + " ".join(rounded.split()))
        last = letter
    return "".join(steps)


def _round_numbers(text: str, digits: int) -> str:
    def round_number(match: re.Match[str]) -> str:
        return f"{float(match[0]):.{digits}f}".rstrip("0").rstrip(".")

    return _NUMBER.sub(round_number, text)
