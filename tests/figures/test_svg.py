"""SVG for pages: all that matplotlib drew is there, in the page's colours, and nothing needless.

Evidence: matplotlib's own file, read by another parser (minidom), word by word and coordinate by
coordinate.
"""

import io
import re
from xml.dom import minidom

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from metanb.figures import svg
from metanb.figures.style import STYLE


@pytest.fixture
def drawn():
    """A drawing with a line, a band, dots, a legend and words, as matplotlib writes it."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "test"}):
        canvas = Canvas(figsize=(4, 3))
        axis = canvas.subplots()
        x = np.linspace(0, 1, 7)
        axis.plot(x, np.sin(x), "-o", label="\N{GREEK SMALL LETTER THETA}_s & more", color="C1")
        axis.fill_between(x, x, 2 * x, alpha=0.2)
        axis.set(xlabel="iteration", ylabel="loss < 1 (nats)")
        axis.legend()
        canvas.savefig(file, format="svg")
    return file.getvalue()


def elements(text, name):
    return minidom.parseString(text).getElementsByTagName(name)


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


def test_every_word_and_every_path_is_kept(drawn):
    page = svg.inline(drawn, "a line")
    words = [[e.firstChild.data for e in elements(source, "text")] for source in (drawn, page)]
    assert words[0] == words[1] and "loss < 1 (nats)" in words[1]
    paths = [
        [numbers(e.getAttribute("d")) for e in elements(source, "path")] for source in (drawn, page)
    ]
    assert len(paths[0]) == len(paths[1]) > 10
    for before, after in zip(*paths, strict=True):
        assert np.allclose(before, after, atol=0.051)  # a tenth of a point
    places = [
        [[float(e.getAttribute(k)) for k in "xy"] for e in elements(source, "use")]
        for source in (drawn, page)
    ]
    assert len(places[0]) == len(places[1]) > 7
    assert np.allclose(*places, atol=0.051)


def test_it_takes_the_colours_of_the_page(drawn):
    page = svg.inline(drawn, "a line")
    assert "#000000" in drawn and "#000000" not in page and "#ffffff" not in page
    root = dict(minidom.parseString(page).documentElement.attributes.items())
    assert (
        root["fill"] == "currentColor" and root["role"] == "img" and root["aria-label"] == "a line"
    )
    # points, pixels
    assert float(root["width"]) == pytest.approx(float(root["viewBox"].split()[2]) / 0.75, abs=0.5)


def test_ids_are_those_that_are_used_and_differ_by_salt(drawn):
    page = svg.inline(drawn, "a line")
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | {
        e.getAttribute("href")[1:] for e in elements(page, "use")
    }
    assert {e.getAttribute("id") for e in elements(page, "*")} - {""} == used != set()


def test_nothing_is_left_that_no_page_needs(drawn):
    page = svg.inline(drawn, "a line")
    assert len(page) < 0.6 * len(drawn)
    assert (
        "metadata" not in page
        and "<!--" not in page
        and "xlink" not in page
        and "<style" not in page
    )


def test_a_file_of_it_is_black_on_white(drawn):
    file = svg.standalone(svg.inline(drawn, "a line"))
    style = minidom.parseString(file).documentElement.getAttribute("style")
    assert "color: #000" in style and "background: #fff" in style
    assert file.replace("; color: #000; background: #fff", "").strip() == svg.inline(
        drawn, "a line"
    )


def test_quotes_in_the_text_alternative_do_not_break_out(drawn):
    root = minidom.parseString(svg.inline(drawn, 'a "b" <c> & d')).documentElement
    assert root.getAttribute("aria-label") == 'a "b" <c> & d'


def test_parts_are_joined_in_rows(drawn):
    """Each part keeps its drawing, begins where the one before it ends, and is said once."""
    part = svg.inline(drawn, "")
    width, height = svg.size_of(part)
    whole = minidom.parseString(svg.join([[part], [part, part]], 'a "b" & c')).documentElement
    assert whole.getAttribute("aria-label") == 'a "b" & c' and 'aria-hidden="true"' in part
    assert float(whole.getAttribute("width")) == 2 * width
    assert float(whole.getAttribute("height")) == 2 * height
    places = [[float(e.getAttribute(k)) for k in "xy"] for e in whole.childNodes]
    assert places == [[0, 0], [0, height], [width, height]]
    for nested in whole.childNodes:
        assert [e.firstChild.data for e in nested.getElementsByTagName("text")] == [
            e.firstChild.data for e in elements(drawn, "text")
        ]
        assert "height: auto" not in nested.getAttribute("style")  # it has a place, not a column
