"""Matplotlib's SVG made fit for a page: small, in the page's own colours, light or dark, and with words as words.

What is drawn black takes the colour of the text around it; backgrounds are clear. Words are text in
the reader's font, so they can be searched, read aloud and scaled. What no page needs (metadata,
comments, names of groups) is left out.
"""

import re
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
FONT = "'DejaVu Sans', Verdana, sans-serif"  # that which matplotlib measures with, then one as wide
_NUMBER, _STEP = re.compile(r"-?\d+\.\d+"), re.compile(r"([A-Za-z])([^A-Za-z]*)")
_BLACK, _FAMILY = (
    re.compile(r"#000000|\bblack\b"),
    re.compile(r"font-family: [^;]*;? ?|font: (?=\d)"),
)
_FONT_SHORTHAND = re.compile(r"font: ([\d.]+px) [^;]*")

ElementTree.register_namespace("", SVG)


def inline(drawn: str, alt: str) -> str:
    """Matplotlib's SVG file as an `<svg>` element for a page, with its text alternative; the same in, the same out.

    Args:
        drawn: as saved with `svg.fonttype` "none" and clear backgrounds. Its ids come from
            `svg.hashsalt`: figures of one page need a salt each.
        alt: what the picture says.
    """
    root = ElementTree.fromstring(drawn)
    used = set(re.findall(r"#([\w-]+)", drawn))
    _clean(root, used)
    width, height = (float(root.get(side, "").removesuffix("pt")) for side in ("width", "height"))
    root.attrib = {
        "viewBox": root.get("viewBox", ""),
        "width": f"{width / 0.75:.0f}",
        "height": f"{height / 0.75:.0f}",
        "role": "img",
        "aria-label": alt,
        "style": f"font-family: {FONT}; stroke-linejoin: round",
        "fill": "currentColor",
    }
    return ElementTree.tostring(root, encoding="unicode")


def standalone(svg: str) -> str:
    """The element of `inline` as a file: black on white."""
    return (
        svg.replace("; stroke-linejoin", "; color: #000; background: #fff; stroke-linejoin", 1)
        + "\n"
    )


def _clean(element: ElementTree.Element, used: set[str]) -> None:
    children = []
    for child in element:
        _clean(child, used)
        bare = child.tag == f"{{{SVG}}}g" and not child.attrib
        if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style") or (
            child.tag.endswith("}defs") and not len(child)
        ):
            continue
        children += list(child) if bare else [child]
    element[:] = children
    element.text = (element.text or "").strip() or None
    element.tail = None
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    if HREF in element.attrib:
        element.set("href", element.attrib.pop(HREF))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name, value in element.attrib.items():
        if name == "d":
            value = _path(value)
        elif name in ("x", "y"):
            value = _rounded(value, 1)
        elif name == "style":
            value = _BLACK.sub(
                "currentColor", _FAMILY.sub("", _FONT_SHORTHAND.sub(r"font-size: \1", value))
            )
        element.set(name, re.sub(r"\s+", " ", value).strip())


def _path(d: str) -> str:
    """A path to a tenth of a point, curves to a hundredth; the letter of a line after a line goes without saying."""
    found, last = "", ""
    for letter, numbers in _STEP.findall(d):
        said = "" if letter == "L" and last in ("M", "L") else letter
        found += f"{said or ' '}{' '.join(_rounded(numbers, 1 if letter in 'ML' else 2).split())}"
        last = letter
    return found


def _rounded(text: str, digits: int) -> str:
    return _NUMBER.sub(lambda found: f"{float(found[0]):.{digits}f}".rstrip("0").rstrip("."), text)
