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
CONTRAST = "color-contrast"  # axe-core's rule
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

# Elements with text of their own, one for each combination of what the contrast of text depends on:
# its colour, size and weight, and the backgrounds behind it.
ONE_PER_COLOURING = """() => {
    const behind = new Map([[null, '']]);
    const backgrounds = element => {
        if (!behind.has(element)) {
            const style = getComputedStyle(element);
            const own = [style.backgroundColor, style.backgroundImage, style.opacity].join();
            const outer = backgrounds(element.parentElement);
            behind.set(element, own === 'rgba(0, 0, 0, 0),none,1' ? outer : `${outer};${own}`);
        }
        return behind.get(element);
    };
    const colourings = new Map();
    for (const element of document.body.querySelectorAll('*')) {
        const written = [...element.childNodes].some(
            node => node.nodeType === Node.TEXT_NODE && node.data.trim());
        if (!written || !element.checkVisibility({visibilityProperty: true})) continue;
        const {color, fontSize, fontWeight, textShadow} = getComputedStyle(element);
        const key = [color, fontSize, fontWeight, textShadow, backgrounds(element)].join('|');
        if (!colourings.has(key)) colourings.set(key, element);
    }
    return [...colourings.values()];
}"""


def axe(page, *rules: str) -> list[str]:
    """What axe-core finds that is serious or critical by these rules, or by all; one line each.

    Contrast takes axe-core a minute on a long page, so it looks at one element per colouring.
    """
    options = {"resultTypes": ["violations"], "preload": False}
    violations = []
    if rules != (CONTRAST,):
        chosen = {"runOnly": rules} if rules else {"rules": {CONTRAST: {"enabled": False}}}
        result = page.evaluate("options => axe.run(document, options)", options | chosen)
        violations += result["violations"]
    if not rules or CONTRAST in rules:
        result = page.evaluate(
            f"options => axe.run({{include: ({ONE_PER_COLOURING})()}}, options)",
            options | {"runOnly": [CONTRAST]},
        )
        violations += result["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}: {node['failureSummary'][:200]}"
        for rule in violations
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def add_axe(page) -> None:
    """Let axe-core run in a page: it sees colours, and not changes of colour."""
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.evaluate(AXE.read_text())


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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_pale_word_is_found(browser, theme):
    """On a page of many words, whether text or background is pale, in an element or around it."""
    pale = """theme => {
        const colour = theme === 'dark' ? '#555' : '#bbb';
        const page = theme === 'dark' ? '#222' : '#fff';
        const article = document.querySelector('article');
        article.insertAdjacentHTML('beforeend',
            `<p id="pale-1" style="color:${colour};background:${page}">word</p>
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
