"""The book on paper: light, without menus or empty frames, and with what is folded.

Evidence: a headless Chromium that lays the pages out for print, on a page as wide as A4's text.
"""

import pytest

from tests.support.browser import address, tab
from tests.support.paths import PAGES

PAPER = (680, 960)  # CSS pixels: A4 without its margins
MENUS = """() => [...document.querySelectorAll(
        '.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, '
        + '.copybtn')]
    .filter(menu => menu.checkVisibility({visibilityProperty: true})
        && menu.getBoundingClientRect().height)
    .map(menu => menu.outerHTML.slice(0, 120))"""
WIDER = """() => [...document.querySelectorAll('article *')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > document.documentElement.clientWidth + 2
        && element.checkVisibility() && !element.closest('svg, math, .uplot');
}).map(element => element.outerHTML.slice(0, 120))"""
FRAMES = """() => [...document.querySelectorAll(
        'article :is(pre, figure, details, .cell, .cell_input)')]
    .filter(element => element.checkVisibility() && element.getBoundingClientRect().height > 4
        && !element.innerText.trim() && !element.querySelector('img, svg, canvas, math'))
    .map(element => element.outerHTML.slice(0, 120))"""


@pytest.fixture
def on_paper(browser):
    """A tab of a reader in the dark, as it is printed."""
    with tab(browser, PAPER, "dark") as page:
        yield page


@pytest.mark.parametrize("name", [page for page in PAGES if not page.startswith("book/api")])
def test_page_prints_light_and_whole(on_paper, name):
    on_paper.goto(address(name))
    assert on_paper.evaluate("document.documentElement.dataset.theme") == "dark"
    assert on_paper.evaluate(MENUS) != []
    on_paper.emulate_media(media="print")
    on_paper.wait_for_function("document.documentElement.dataset.theme === 'light'")
    assert on_paper.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert on_paper.evaluate(MENUS) == []
    assert on_paper.evaluate(WIDER) == []
    assert on_paper.evaluate(FRAMES) == []
    closed = "article details:not([open], .hide)"
    assert on_paper.locator(closed).count() == 0
    on_paper.emulate_media(media="screen")
    on_paper.wait_for_function("document.documentElement.dataset.theme === 'dark'")


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
