"""The built book as a reader's browser shows it: desktop, phone, paper, light, dark, no network.

Evidence: a headless Chromium, which lays out the pages and runs their scripts, and axe-core's rules
for accessibility. What can be seen in the files themselves is tested in test_book.py, which needs
no browser.
"""

import pytest

from tests.support.axe import CONTRAST, add_axe, axe
from tests.support.browser import DESKTOP, PAPER, PHONE, WIDER_THAN_THE_PAGE, address, tab
from tests.support.paths import PAGES

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
# What paper does not show, and frames that are empty there.
MENUS = """() => [...document.querySelectorAll(
        '.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, '
        + '.copybtn')]
    .filter(menu => menu.checkVisibility({visibilityProperty: true})
        && menu.getBoundingClientRect().height)
    .map(menu => menu.outerHTML.slice(0, 120))"""
WIDER_THAN_PAPER = """() => [...document.querySelectorAll('article *')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > document.documentElement.clientWidth + 2
        && element.checkVisibility() && !element.closest('svg, math, .uplot');
}).map(element => element.outerHTML.slice(0, 120))"""
FRAMES = """() => [...document.querySelectorAll(
        'article :is(pre, figure, details, .cell, .cell_input)')]
    .filter(element => element.checkVisibility() && element.getBoundingClientRect().height > 4
        && !element.innerText.trim() && !element.querySelector('img, svg, canvas, math'))
    .map(element => element.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module", params=EVERYWHERE)
def opened(browser, request):
    """A page of the book, opened once for the tests that look at it; they set size and theme.

    It opens on a phone: the theme decides then which boxes a keyboard reaches.
    """
    with tab(browser, PHONE) as page:
        page.goto(address(request.param))
        add_axe(page)
        yield page


def show(page, size: tuple[int, int], theme: str) -> None:
    """Give an open page another size and theme, as a reader's system does."""
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)


def test_page_fits_a_phone(opened):
    """Nothing scrolls sideways but boxes of their own, and a keyboard reaches these."""
    show(opened, PHONE, "light")
    assert opened.evaluate(WIDER_THAN_THE_PAGE) == []
    assert axe(opened, "scrollable-region-focusable", "target-size") == []
    assert opened.watch.complaints == []


def test_page_works_and_is_accessible(opened):
    show(opened, DESKTOP, "light")
    assert opened.evaluate(EMPTY_PICTURES) == []
    assert opened.evaluate(BAD_FORMULAS) == []
    assert axe(opened) == []
    assert opened.watch.complaints == []


def test_dark_page_is_legible(opened):
    show(opened, DESKTOP, "dark")
    assert axe(opened, CONTRAST) == []
    assert opened.watch.complaints == []


def test_page_prints_light_and_whole(opened):
    """For a reader in the dark: without menus or empty frames, and with what is folded."""
    show(opened, PAPER, "dark")
    assert opened.evaluate(MENUS) != []
    opened.emulate_media(media="print")
    opened.wait_for_function("document.documentElement.dataset.theme === 'light'")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert opened.evaluate(MENUS) == []
    assert opened.evaluate(WIDER_THAN_PAPER) == []
    assert opened.evaluate(FRAMES) == []
    assert opened.locator("article details:not([open], .hide)").count() == 0
    opened.emulate_media(media="screen")
    opened.wait_for_function("document.documentElement.dataset.theme === 'dark'")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_pale_word_is_found(browser, theme):
    """On a page of many words, whether text or background is pale, in an element or around it."""
    pale = """theme => {
        const colour = theme === 'dark' ? '#555' : '#bbb';
        const page = theme === 'dark' ? '#222' : '#fff';
        const article = document.querySelector('article');
        article.insertAdjacentHTML('beforeend',
            `<p id="pale-1" style="color:${colour};background:${page}">word<br></p>
            <div style="background:#777"><p><b id="pale-2" style="color:#888">word</b></p></div>`);
    }"""
    with tab(browser, DESKTOP, theme) as page:
        page.goto(address("book/api-measures"))
        page.evaluate(pale, theme)
        add_axe(page)
        complaints = axe(page, CONTRAST)
        assert len(complaints) == 2
        assert "pale-1" in complaints[0] and "pale-2" in complaints[1]


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
