"""The ledger in a browser: folds, filter, cards on a phone, and the way from the overview.

Evidence: a headless Chromium, with and without scripts.
"""

import pytest

from tests.support.browser import PHONE, address, tab
from tests.support.paths import TOC

LEDGER = "book/ledger"
ROWS = "table.metanb-ledger tbody tr"
CLAIMS = [f"C{number}" for number in range(1, 9)]
# Of each picture, the height of its smallest text on the screen.
SMALLEST_TEXT = """pictures => pictures.map(picture => {
    const scale = picture.getBoundingClientRect().width / picture.viewBox.baseVal.width;
    const sizes = [...picture.querySelectorAll('text')]
        .map(text => parseFloat(getComputedStyle(text).fontSize));
    return scale * Math.min(...sizes);
})"""
# What stands under the heading of each claim.
SECTIONS = """claims => claims.map(claim => {
    const id = `ledger-${claim.toLowerCase()}`;
    const section = document.getElementById(id).closest('section');
    const folds = [...section.querySelectorAll('details.metanb-fold')];
    return {
        pictures: section.querySelectorAll('figure svg[role=img]').length,
        open: folds.map(fold => fold.open),
        counts: folds[0]?.querySelector('summary').innerText,
        rows: section.querySelectorAll('details.metanb-fold tbody tr').length,
    };
})"""
# The places of the rows' effects, from left to right.
EFFECTS = """effects => effects.map(effect => {
    const {left, right, width} = effect.getBoundingClientRect();
    return [left, right, width];
})"""
# The widths of the overview and of the box that it is to fit into.
WIDTHS = """() => {
    const box = document.querySelector('.metanb-overview');
    return [box.scrollWidth, box.clientWidth];
}"""


def in_view(element) -> bool:
    return element.evaluate("""element => {
        const box = element.getBoundingClientRect();
        return box.height > 0 && box.top >= 0 && box.top < innerHeight && box.left >= 0
            && box.right <= document.documentElement.clientWidth;
    }""")


def test_each_claim_has_a_picture_and_a_fold_that_counts_its_rows(page):
    page.goto(address(LEDGER))
    sections = page.evaluate(SECTIONS, CLAIMS)
    for claim, section in zip(CLAIMS, sections, strict=True):
        assert section["pictures"] == 1, claim
        assert section["open"] == [False]  # of one fold
        judged, _, untestable = section["counts"].partition(";")
        total = int(judged.split()[0]) + int((untestable.split() or [0])[0])
        assert total == section["rows"] > 0, section["counts"]
    assert (
        page.locator("figure").first.bounding_box()["y"]
        < page.locator("details.metanb-fold").first.bounding_box()["y"]
    )


@pytest.mark.parametrize("scripts", [True, False])
def test_a_mark_of_the_overview_opens_its_row(browser, scripts):
    # without motion the row is in view at once
    context = browser.new_context(java_script_enabled=scripts, reduced_motion="reduce")
    opened = context.new_page()
    opened.goto(address(TOC["root"]))
    mark = opened.locator(".metanb-overview td a").last
    anchor = mark.get_attribute("href").partition("#")[2]
    opened.goto(address(LEDGER) + f"#{anchor}")
    row = opened.locator(f'[id="{anchor}"]')
    assert row.is_visible()
    box = row.bounding_box()
    assert 0 <= box["y"] < opened.viewport_size["height"]
    context.close()


def test_filter_shows_the_rows_that_match_and_says_how_many(page):
    page.goto(address(LEDGER))
    form = page.locator("#ledger-filter")
    rows = page.locator(ROWS)
    total = rows.count()
    status = form.locator("output")
    assert status.inner_text() == f"{total} of {total} rows shown"
    # by the keyboard alone: the first field, then the second
    form.locator("select[name=dataset]").focus()
    page.keyboard.type("Glyphs")
    page.keyboard.press("Tab")
    page.keyboard.type("first-order")
    page.wait_for_function(
        "document.querySelector('#ledger-filter output').textContent.startsWith("
        "document.querySelectorAll('table.metanb-ledger tbody tr:not([hidden])').length + ' of')"
    )
    shown = page.locator(f"{ROWS}:visible")
    expected = page.locator(f'{ROWS}[data-dataset="Glyphs"][data-algorithm="first-order MAML"]')
    assert shown.count() == expected.count() > 0
    assert status.inner_text() == f"{expected.count()} of {total} rows shown"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button
    assert status.inner_text() == f"{total} of {total} rows shown"
    assert page.locator(f"{ROWS}:visible").count() == 0  # folded again


def test_filters_offer_what_the_rows_have(page):
    page.goto(address(LEDGER))
    for name in ("dataset", "algorithm", "scale", "verdict"):
        offered = page.locator(f"#ledger-filter select[name={name}] option").all_inner_texts()
        values = page.locator(ROWS).evaluate_all(
            "(rows, name) => [...new Set(rows.map(row => row.dataset[name]))]", name
        )
        assert offered == ["all", *values] and len(values) > 1


def test_a_row_that_is_filtered_out_is_shown_when_an_address_names_it(page):
    page.goto(address(LEDGER))
    anchor = page.locator(f'{ROWS}[data-dataset="Omniglot"]').first.get_attribute("id")
    page.select_option("#ledger-filter select[name=dataset]", "Glyphs")
    page.evaluate("anchor => { location.hash = anchor; }", anchor)
    row = page.locator(f'[id="{anchor}"]')
    row.wait_for(state="visible")
    assert in_view(row)


def test_without_scripts_there_is_no_filter_and_folds_work(browser):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(address(LEDGER))
    assert not opened.locator("#ledger-filter").is_visible()
    opened.locator("details.metanb-fold summary").first.click()
    assert opened.locator(ROWS).first.is_visible()
    context.close()


def open_folds(page) -> None:
    page.locator("details.metanb-fold").evaluate_all(
        "folds => folds.forEach(fold => { fold.open = true; })"
    )


def test_on_a_phone_a_row_is_a_card_with_its_effect_on_the_screen(browser):
    with tab(browser, PHONE) as page:
        page.goto(address(LEDGER))
        open_folds(page)
        for width in (320, 390):
            page.set_viewport_size({"width": width, "height": PHONE[1]})
            effects = page.locator(f"{ROWS} .metanb-effect").evaluate_all(EFFECTS)
            assert len(effects) > 100
            assert all(left >= 0 and right <= width and wide > 0 for left, right, wide in effects)
            cells = page.locator(ROWS).first.locator("td")
            labels = cells.evaluate_all(
                "cells => cells.map(cell => getComputedStyle(cell, '::before').content)"
            )
            assert labels[:4] == ['"Form"', '"Cell"', '"Verdict"', '"Effect, 95 % interval"']
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_overview_and_rows_fit_the_article(browser):
    widths = [1000, 1280, 1440, 1920]
    with tab(browser) as page:
        page.goto(address(TOC["root"]))
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            content, box = page.evaluate(WIDTHS)
            assert content <= box, width
        page.goto(address(LEDGER))
        open_folds(page)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            tables = page.locator("table.metanb-ledger").evaluate_all(
                "tables => tables.map(table => table.offsetWidth - table.parentElement.clientWidth)"
            )
            assert max(tables) <= 0, width


def test_the_papers_settings_are_all_in_view_on_a_phone(browser):
    with tab(browser, PHONE) as page:
        page.goto(address(TOC["root"]))
        assert (
            page.locator(".metanb-overview tbody th")
            .first.inner_text()
            .startswith("Paper settings")
        )
        content, box = page.evaluate(WIDTHS)
        assert content <= box


def test_pictures_are_legible_on_a_phone(browser):
    """Their smallest text is at least 10 pixels high on the screen."""
    with tab(browser, PHONE) as page:
        page.goto(address(LEDGER))
        sizes = page.locator("figure svg[role=img]").evaluate_all(SMALLEST_TEXT)
        assert len(sizes) == len(CLAIMS) and min(sizes) >= 10, sizes
