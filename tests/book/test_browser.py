"""The built book as a reader's browser shows it: desktop and phone, light and dark, no network.

Evidence: a headless Chromium, which lays out the pages and runs their scripts, and axe-core's rules
for accessibility. What can be seen in the files themselves is tested in test_book.py, which needs
no browser.
"""

from pathlib import Path

import axe_playwright_python
import pytest

from tests.support.browser import DESKTOP, PHONE, address, tab
from tests.support.paths import PAGES

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
EVERYWHERE = [*PAGES, "search"]
EMPTY_PICTURES = """() => [...document.images]
    .filter(image => image.checkVisibility() && !image.naturalWidth)
    .map(image => image.src.slice(0, 200))"""
# Formulas that take no room or that say they are wrong.
BAD_FORMULAS = r"""() => [...document.querySelectorAll('article math')].filter(formula => {
        const box = formula.getBoundingClientRect();
        return formula.checkVisibility() && (!box.width || !box.height)
            || formula.querySelector('merror, parsererror');
    }).map(formula => formula.textContent)"""
WIDER_THAN_THE_PAGE = """() => {
    const page = document.scrollingElement;
    return page.scrollWidth <= page.clientWidth ? [] : [...document.body.querySelectorAll('*')]
        .filter(element => element.getBoundingClientRect().right > page.clientWidth + 1)
        .map(element => element.outerHTML.slice(0, 100));
}"""


def axe(page, **options) -> list[str]:
    """What axe-core finds that is serious or critical, one line each."""
    # colours, not changes of colour
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.evaluate(AXE.read_text())
    result = page.evaluate(
        "options => axe.run(document, options)",
        {"resultTypes": ["violations"], "preload": False, **options},
    )
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}: {node['failureSummary'][:200]}"
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_page_works_and_is_accessible(page, name):
    page.goto(address(name))
    assert page.evaluate(EMPTY_PICTURES) == []
    assert page.evaluate(BAD_FORMULAS) == []
    assert axe(page) == []


@pytest.mark.parametrize("name", EVERYWHERE)
def test_dark_page_is_legible(browser, name):
    with tab(browser, DESKTOP, "dark") as page:
        page.goto(address(name))
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert axe(page, runOnly=["color-contrast"]) == []
        assert page.watch.complaints == []


@pytest.mark.parametrize("name", EVERYWHERE)
def test_page_fits_a_phone(browser, name):
    """Nothing scrolls sideways but boxes of their own, and a keyboard reaches these."""
    with tab(browser, PHONE) as page:
        page.goto(address(name))
        assert page.evaluate(WIDER_THAN_THE_PAGE) == []
        assert axe(page, runOnly=["scrollable-region-focusable", "target-size"]) == []
        assert page.watch.complaints == []


def test_front_page_leads_into_the_book(page):
    page.goto(address("index"))
    page.wait_for_url(address(PAGES[0]))
    assert page.locator("article h1").count() == 1


def test_search_finds_a_word(page, served):
    page.goto(f"{served}/search.html?q=coherence")
    page.locator("#search-results li a").first.wait_for()
    assert "coherence" in page.locator("#search-results").inner_text().lower()


def test_icons_are_drawn(page):
    """By the theme's font, without the theme's script: theme_mends.py takes that one out."""
    page.goto(address(PAGES[0]))
    page.evaluate("document.fonts.ready")
    icon = page.locator("button.theme-switch-button .theme-switch").locator("visible=true").first
    assert "Font Awesome" in icon.evaluate("icon => getComputedStyle(icon, '::before').fontFamily")
    assert page.evaluate("document.fonts.check('900 16px \"Font Awesome 6 Free\"')")
    assert icon.bounding_box()["width"] > 8


def test_formulas_need_no_script(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address("book/method"))
    formulas = page.locator("article math")
    assert formulas.count() > 30
    assert all(formulas.nth(index).bounding_box()["width"] > 4 for index in range(10))
    context.close()
