"""The pages joined for one PDF: each id is there once, and each link inside leads somewhere.

Evidence: three built pages, joined and read again by an HTML parser.
"""

from collections import Counter

import pytest
from bs4 import BeautifulSoup

from book import one_pdf
from tests.support.paths import ROOT

PAGES = ["book/index", "book/paper", "book/cite"]


@pytest.fixture
def joined(monkeypatch):
    monkeypatch.setattr(one_pdf, "list_pages", lambda: PAGES)
    path = one_pdf.join_pages()
    yield BeautifulSoup(path.read_text(), "html.parser")
    path.unlink()


def test_all_pages_are_joined_but_the_explorer():
    pages = one_pdf.list_pages()
    assert pages[0] == "book/index" and {"book/ledger", "notebooks/1-maml"} <= set(pages)
    assert len(set(pages)) == len(pages) and "book/explore" not in pages
    for page in pages:
        assert any((ROOT / f"{page}.{suffix}").exists() for suffix in ("md", "ipynb"))


def test_links_lead_to_the_joined_text(joined):
    ids = Counter(element["id"] for element in joined.find_all(id=True))
    inside = [a["href"][1:] for a in joined.find_all("a", href=True) if a["href"].startswith("#")]
    assert len([id for id in ids if id in map(one_pdf.anchor, PAGES)]) == len(PAGES)
    assert one_pdf.anchor("book/paper") in inside  # from the first page
    assert set(inside) <= set(ids)
    assert not [id for id, times in ids.items() if times > 1 and "--" in id]


def test_paper_has_no_scripts_and_nothing_folded(joined):
    assert not joined.select("script, .metanb-noprint, details:not([open]):not(.hide)")
    headings = [heading.get_text() for heading in joined.find_all("h1")]
    assert len(headings) == len(PAGES) and headings[1].startswith("The paper in a page")
