"""What a reader has to download: the whole book, one page, and what holds up a page's first paint.

Evidence: the sizes of the built files; a page's own are those that it names and that lie in book/,
but vendored ones.
"""

import re
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from tests.support.paths import HTML, PAGES, ROOT

BOOK, PAGE, HELD_UP = 15e6, 500e3, 100e3  # bytes
STATIC = ROOT / "book" / "_static"
VENDORED = {path.parent.name for path in STATIC.glob("*/LICENSE")}


@pytest.fixture(scope="module", params=PAGES)
def built(request):
    """A built page: its file, parsed."""
    path = HTML / f"{request.param}.html"
    return path, BeautifulSoup(path.read_text(), "html.parser")


def named(built, *selectors: str) -> set:
    """The files that a page loads by elements of these kinds."""
    path, soup = built
    links = [
        element.get("src") or element.get("href") for element in soup.select(", ".join(selectors))
    ]
    return {
        (path.parent / unquote(urlsplit(link).path)).resolve()
        for link in links
        if not urlsplit(link).scheme
    }


def test_book_is_light():
    sizes = {path: path.stat().st_size for path in HTML.rglob("*") if path.is_file()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
    assert sum(sizes.values()) < BOOK, (
        f"largest: {', '.join(str(path.relative_to(HTML)) for path in largest)}"
    )


def test_page_is_light(built):
    files = named(built, "script[src]", "link[rel=stylesheet]", "img[src]")
    names = {
        path: path.relative_to(HTML / "_static")
        for path in files
        if path.is_relative_to(HTML / "_static")
    }
    ours = {
        path
        for path, name in names.items()
        if (STATIC / name).exists() and not VENDORED & set(name.parts)
    }
    ours |= {path for path in files if path.is_relative_to(HTML / "_images")}
    sizes = {path.name: path.stat().st_size for path in {built[0], *ours}}
    assert sum(sizes.values()) < PAGE, sizes


def test_no_large_script_holds_up_the_first_paint(built):
    """A script in a page's head without `defer` does; a formula set by a script waits longer."""
    holding = named(built, "head script[src]:not([defer], [async], [type=module])")
    assert sum(path.stat().st_size for path in holding) < HELD_UP, [path.name for path in holding]
    assert not re.search("mathjax|katex", str(built[1].head), re.IGNORECASE)
