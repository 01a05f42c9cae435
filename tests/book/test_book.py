"""The built book: every page is there, whole, and readable without a network.

Evidence: the HTML, CSS and SVG files themselves, parsed by BeautifulSoup. Links are followed on
disk.
"""

import base64
import gzip
import re
from collections import Counter
from copy import copy
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from tests.support.paths import HTML, PAGES, ROOT, TOC

EXTERNAL = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
# Elements that load what they name as soon as the page opens. A link to elsewhere that a reader may
# click is fine.
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "image": "href",
    "use": "href",
    "link": "href",
}


@pytest.fixture(scope="module")
def soups() -> dict[Path, BeautifulSoup]:
    """All built pages, parsed."""
    if not (HTML / "index.html").exists():
        pytest.fail(f"{HTML / 'index.html'} is not there: run `make book` first", pytrace=False)
    paths = [HTML / "index.html", HTML / "search.html", *(HTML / f"{page}.html" for page in PAGES)]
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in paths}


def article(soups: dict[Path, BeautifulSoup], page: str) -> BeautifulSoup:
    """The text of a page, without the theme around it."""
    return soups[HTML / f"{page}.html"].select_one("article.bd-article")


def test_first_page_leads_into_the_book(soups):
    target = soups[HTML / "index.html"].find(
        "meta", attrs={"http-equiv": re.compile("refresh", re.IGNORECASE)}
    )
    assert target["content"].split("url=")[1] == f"{TOC['root']}.html"


@pytest.mark.parametrize("page", PAGES)
def test_page_has_one_title_and_text(soups, page):
    text = article(soups, page)
    assert len(text.find_all("h1")) == 1
    assert len(text.get_text().split()) > 100


def test_menu_lists_every_page(soups):
    menu = soups[HTML / f"{TOC['root']}.html"].select("nav.bd-links a.reference.internal")
    listed = {(HTML / TOC["root"]).parent.joinpath(link["href"]).resolve() for link in menu}
    assert {HTML / f"{page}.html" for page in PAGES[1:]} <= listed


def test_nothing_is_loaded_from_elsewhere(soups):
    outside = []
    for path, soup in soups.items():
        for name, attribute in LOADING.items():
            for element in soup.find_all(name):
                if name == "link" and element.get("rel") in (["canonical"], ["next"], ["prev"]):
                    continue
                sources = element.get(attribute, ""), element.get("srcset", "")
                if EXTERNAL.match(sources[0]) or EXTERNAL.search(sources[1]):
                    outside.append(f"{path.name}: {element}")
        inline = [style.get_text() for style in soup.find_all("style")]
        inline += [element["style"] for element in soup.find_all(style=True)]
        outside += [
            f"{path.name}: {css[:200]}"
            for css in inline
            if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", css)
        ]
        scripts = " ".join(script.get_text() for script in soup.find_all("script"))
        outside += [f"{path.name}: {url}" for url in re.findall(r"https?://[^\s\"'`<>]+", scripts)]
    for path in HTML.glob("_static/**/*.css"):
        urls = re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", path.read_text())
        outside += [f"{path.name}: {url}" for url in urls]
    assert outside == []


def test_links_and_images_lead_somewhere(soups):
    ids = {path: {e["id"] for e in soup.find_all(id=True)} for path, soup in soups.items()}
    broken = []
    for path, soup in soups.items():
        for element in soup.find_all(["a", "img", "script", "link"]):
            link = element.get("href") or element.get("src") or ""
            parts = urlsplit(link)
            if not link or parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{path.relative_to(HTML)}: {link}")
            elif (
                parts.fragment and target in ids and parts.fragment not in ids[target] | {"", "top"}
            ):
                broken.append(f"{path.relative_to(HTML)}: {link}")
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_no_two_elements_share_an_id(soups, page):
    counts = Counter(element["id"] for element in article(soups, page).find_all(id=True))
    assert [name for name, n in counts.items() if n > 1] == []


def test_every_picture_has_a_text_alternative(soups):
    silent = [
        f"{path.relative_to(HTML)}: {str(image)[:200]}"
        for path, soup in soups.items()
        for image in soup.find_all(["img", "svg"])
        if image.get("aria-hidden") != "true"
        and not (
            image.get("alt") or (image.get("role") == "img" and image.get("aria-label")) or ""
        ).strip()
    ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES)
def test_headings_are_in_order(soups, page):
    levels = [
        int(heading.name[1]) for heading in article(soups, page).find_all(re.compile("^h[1-6]$"))
    ]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


@pytest.mark.parametrize("page", PAGES)
def test_formulas_and_numbers_are_resolved(soups, page):
    prose = copy(article(soups, page))
    for code in prose.select("pre, code, math, script"):
        code.extract()
    text = prose.get_text()
    assert "{{" not in text and "}}" not in text
    assert not re.search(r"\$|\\[(\[a-z]", text), "a formula was left as text"
    assert not re.search(r"\{(cite|doc|ref|numref|eq|download)\S*\}", text), (
        "a role was left as text"
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in ("book/glossary", "book/bibliography")]
)
def test_the_first_use_of_each_term_leads_to_the_glossary(soups, page):
    terms = [
        dt.find(string=True, recursive=False).strip()
        for dt in article(soups, "book/glossary").select("dt")
    ]
    assert len(terms) > 12
    prose = copy(article(soups, page))
    excluded = (
        "h1, h2, h3, h4, h5, pre, code, .math, math, figure, script, style, .cell_output, "
        ".cell_input, .metanb-in-short, .metanb-overview, .sig"
    )
    for element in prose.select(excluded):
        element.extract()
    for element in prose.select("a:not(.glossary-link)"):
        element.extract()
    for term in sorted(terms, key=len, reverse=True):
        word = re.compile(
            rf"(?<![\w-])[{term[0]}{term[0].upper()}]{re.escape(term[1:])}s?(?![\w-])"
        )
        uses = prose.find_all(string=word)
        if uses:
            link = uses[0].parent
            assert "glossary-link" in link.get("class", []), f"{term}: {uses[0].strip()[:200]}"
            assert link["title"].endswith(".") and "glossary.html#" in link["href"]
            for use in uses:  # "MAML" is not looked for within "first-order MAML"
                use.replace_with(word.sub("", use))


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")])
def test_a_chapter_says_first_what_it_found(soups, page):
    """Title, question, box: before any code."""
    parts = article(soups, page).section.find_all(recursive=False)
    assert [part.name for part in parts[:2]] == ["h1", "p"]
    assert parts[2].get_text().strip().startswith("In short")
    assert len(parts[2].find_all("li")) >= 2
    assert article(soups, page).get_text().count("In short") == 1


def test_notebooks_to_download_are_those_committed_without_outputs():
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert len(names) == len(list((HTML / "_sources" / "notebooks").glob("*.ipynb")))
    for name in names:
        committed, offered = (
            nbformat.read(folder / "notebooks" / name, 4).cells
            for folder in (ROOT, HTML / "_sources")
        )
        assert [cell.source for cell in offered] == [cell.source for cell in committed]
        assert not any(cell.get("outputs") for cell in offered)


def test_measures_are_saved_under_their_runs_id():
    page = BeautifulSoup((HTML / "book/runs.html").read_text(), "html.parser")
    links = page.select('a.download[href$="measures.csv.gz"]')
    assert len(links) > 100
    assert all(link["download"] == f"{link.get_text()}.csv.gz" for link in links)


def test_large_tables_of_figures_are_compressed_and_hold_what_the_notebook_has():
    notebook = (ROOT / "notebooks/2-flatness.ipynb").read_text()
    page = (HTML / "notebooks/2-flatness.html").read_text()
    form = r'download=\\?"large\.csv(?:\.gz)?\\?" href=\\?"data:([\w/]+);base64,([\w+/=]+)'
    (kind, table), (kind_in_page, compressed) = (
        re.search(form, text).groups() for text in (notebook, page)
    )
    assert (kind, kind_in_page) == ("text/csv", "application/gzip")
    assert gzip.decompress(base64.b64decode(compressed)) == base64.b64decode(table)
    assert len(compressed) < len(table) / 3


@pytest.mark.parametrize("name", [f"C{number}" for number in range(1, 9)])
def test_landing_page_gives_each_claim_a_verdict(soups, name):
    rows = [
        [cell.get_text(strip=True) for cell in row.find_all("td")]
        for row in article(soups, TOC["root"]).find_all("tr")
    ]
    claims = [row for row in rows if len(row) == 4 and row[0] == name]
    assert len(claims) == 1
    assert re.search(
        "reproduced|trend only|reversed|cannot tell|not.yet.run|not testable", claims[0][3]
    )
