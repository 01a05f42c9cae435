"""The book's search: both spellings, practical questions, and tabs that have a title of their own.

Evidence: Sphinx's own search script in a headless Chromium, on the built index; the rules of
spelling in Python beside the same rules in the browser.
"""

import re

import pytest
from bs4 import BeautifulSoup

from tests.support.paths import HTML, PAGES

spellings = pytest.importorskip("spellings")

# The search has come to an end: each page has its excerpt, and each name what kind it is of.
DONE = """() => {
    const heading = document.querySelector('#search-results h2');
    return heading && !/^Searching/.test(heading.textContent)
        && !document.querySelector('ul.search > li:not(:has(> .context, > span))');
}"""
# American and British
PAIRS = [
    ("regularizer", "regulariser"),
    ("regularization", "regularisation"),
    ("generalize", "generalise"),
    ("generalization", "generalisation"),
    ("optimizer", "optimiser"),
    ("normalized", "normalised"),
    ("color", "colour"),
    ("behavior", "behaviour"),
    ("neighbors", "neighbours"),
    ("labeled", "labelled"),
    ("unlabeled", "unlabelled"),
    ("centered", "centred"),
    ("center", "centre"),
    ("gray", "grey"),
    ("analyzed", "analysed"),
    ("license", "licence"),
]
SAME = ["size", "sizes", "batch_size", "resize", "prize", "seized", "horizon", "parameter", "order"]


@pytest.mark.parametrize(("american", "british"), PAIRS)
def test_american_words_become_british(american, british):
    assert spellings.to_british(american) == british
    assert spellings.to_british(american.capitalize()) == british
    assert spellings.to_british(british) == british


def test_other_words_stay():
    assert [spellings.to_british(word) for word in SAME] == SAME


def results(page, served, words) -> list[str]:
    """The pages that a search finds, the best first."""
    page.goto(f"{served}/search.html?q={words.replace(' ', '+')}")
    page.locator("#search-summary, .search-summary").first.wait_for()
    page.wait_for_function(DONE)
    links = page.locator("#search-results ul.search > li > a").evaluate_all(
        "links => links.map(link => link.href)"
    )
    return [link.split(served)[1].split("?")[0].split("#")[0].strip("/") for link in links]


def test_browser_and_index_spell_alike(page, served):
    page.goto(f"{served}/search.html")
    words = [word for pair in PAIRS for word in pair] + SAME + ["Ünïcode", "x2", "hessian_norm"]
    in_browser = page.evaluate("text => splitQuery(text)", " ".join(words))
    assert in_browser == spellings.SearchBothSpellings({}).split(" ".join(words))


@pytest.mark.parametrize(
    ("american", "british"),
    [("regularizer", "regulariser"), ("generalization", "generalisation"), ("labeled", "labelled")],
)
def test_both_spellings_find_the_same_pages(page, served, american, british):
    pages = set(results(page, served, british))
    assert set(results(page, served, american)) == pages and len(pages) > 3


@pytest.mark.parametrize(
    "words", ["weights", "A100", "SLURM", "own data", "plot my run", "Jupyter", "offline", "PDF"]
)
def test_practical_questions_lead_to_the_answers(page, served, words):
    pages = list(dict.fromkeys(results(page, served, words)))
    assert "book/how-do-i.html" in pages[:3], pages


@pytest.mark.parametrize("name", [*PAGES, "search"])
def test_a_tab_says_nothing_twice(name):
    head = (HTML / f"{name}.html").read_text().partition("</head>")[0]
    title = BeautifulSoup(head, "html.parser").title.get_text()
    parts = re.split(r" [—–-] ", title)
    assert len(parts) <= 2
    assert not any(parts[0].startswith(part) for part in parts[1:]), title
