"""One PDF of the whole book, from the built pages: python book/one_pdf.py [FILE].

The text of all pages is joined, in the order of the table of contents, and Chromium prints it. The
explorer is left out: on paper nothing moves.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
LEFT_OUT = ("book/explore",)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
STYLE = "article { break-before: page; } article:first-of-type { break-before: auto; }"


def list_pages() -> list[str]:
    """The book's pages in their order, named as in _toc.yml."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [page for page in (toc["root"], *files) if page not in LEFT_OUT]


def anchor(page: str, fragment: str = "") -> str:
    """The id in the joined page of an id on one page, or of that page's beginning."""
    return f"{page.replace('/', '-')}--{fragment}"


def cut_out(page: str, pages: list[str]) -> Tag:
    """A page's text, ready to stand beside the others'.

    Ids are made unique, links to other pages lead to their text in the joined page, and what is
    folded opens, except code.

    Args:
        page: its name.
        pages: all pages that are joined.
    """
    path = HTML / f"{page}.html"
    article = BeautifulSoup(path.read_text(), "html.parser").select_one("article.bd-article")
    for element in article.find_all(id=True):
        if not element.find_parent("svg"):  # a drawing refers to its own parts
            element["id"] = anchor(page, element["id"])
    article["id"] = anchor(page)
    for link in article.find_all("a", href=True):
        parts = urlsplit(link["href"])
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        name = str(target.relative_to(HTML).with_suffix("")) if HTML in target.parents else ""
        if target.suffix == ".html" and name in pages:
            link["href"] = f"#{anchor(name, parts.fragment)}"
    for element in article.select("script, .metanb-noprint"):
        element.decompose()
    for element in article.select("details:not(.hide)"):
        element["open"] = ""
    return article


def join_pages() -> Path:
    """Write the joined page beside the others, and return its path."""
    pages = list_pages()
    soup = BeautifulSoup((HTML / f"{pages[0]}.html").read_text(), "html.parser")
    soup.html["data-theme"] = "light"
    for script in soup.find_all("script"):
        script.decompose()
    soup.head.append(soup.new_tag("style", string=STYLE))
    soup.body.clear()
    for page in pages:
        soup.body.append(cut_out(page, pages))
    path = HTML / "book" / "whole-book.html"
    path.write_text(str(soup))
    return path


def print_pdf(page: Path, pdf: Path) -> None:
    """Let Chromium print a page.

    Raises:
        SystemExit: there is no Chromium, or it fails.
    """
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise SystemExit(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    options = ["--headless", "--disable-gpu", "--no-pdf-header-footer"]
    options += ["--generate-pdf-document-outline", f"--print-to-pdf={pdf}"]
    if os.geteuid() == 0:  # Chromium refuses its sandbox to root
        options.append("--no-sandbox")
    done = subprocess.run([chromium, *options, page.as_uri()], capture_output=True, text=True)
    if done.returncode or not pdf.exists():
        raise SystemExit(f"Chromium could not print {page}:\n{done.stderr[-2000:]}")


def main() -> None:
    """Join, print, and remove the joined page again."""
    pdf = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "metanb.pdf").absolute()
    if not (HTML / "index.html").exists():
        raise SystemExit(f"{HTML / 'index.html'} is not there: run `make book` first")
    page = join_pages()
    try:
        print_pdf(page, pdf)
    finally:
        page.unlink()
    print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
