"""The book on paper: what is folded, the explorer's charts, and a PDF.

Evidence: a headless Chromium that lays the pages out for print. test_browser.py does so with every
page.
"""

import pytest

from tests.support.browser import PAPER, address, tab


@pytest.fixture
def on_paper(browser):
    """A tab of a reader in the dark, as it is printed."""
    with tab(browser, PAPER, "dark") as page:
        yield page


def test_folded_content_closes_again(on_paper):
    on_paper.goto(address("book/cluster"))
    folded = on_paper.locator("article details").first
    assert folded.get_attribute("open") is None
    on_paper.emulate_media(media="print")
    on_paper.locator("article details[open]").first.wait_for()
    on_paper.emulate_media(media="screen")
    on_paper.locator("article details:not([open])").first.wait_for()


def test_the_explorers_charts_stand_one_below_the_other(on_paper):
    on_paper.set_viewport_size({"width": 1600, "height": 900})
    on_paper.goto(address("book/explore"))
    charts = on_paper.locator("#explore-panels figure")
    charts.nth(1).wait_for()
    first, second = (charts.nth(index).bounding_box() for index in range(2))
    assert first["y"] == second["y"]
    on_paper.emulate_media(media="print")
    on_paper.wait_for_function("document.documentElement.dataset.theme === 'light'")
    first, second = (charts.nth(index).bounding_box() for index in range(2))
    assert second["y"] >= first["y"] + first["height"]


def test_a_page_becomes_a_pdf(on_paper):
    on_paper.goto(address("book/paper"))
    assert on_paper.pdf().startswith(b"%PDF-")
