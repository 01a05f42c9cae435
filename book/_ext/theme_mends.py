"""Sphinx extension: corrections of the theme's and docutils' HTML, where style sheets cannot help.

Files that the theme copies into a built book, and that no page needs, are removed again: source
maps, translations, fonts in a second format, and the icons' script. The theme's style sheet draws
the same icons from a font; the script is ten times as large and would delay a page's first paint.
Notebooks to download lose their outputs, which their pages show. Large tables of figures are
compressed, so that pages stay light.
"""

import base64
import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat

UNUSED = (
    "**/*.map",
    "**/*.ttf",
    "**/*webpack-macros.html",
    "images/logo_*",
    "scripts/fontawesome.js*",
    "locales",
)
PARAMETERS = re.compile(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>', re.DOTALL)
# a link to a run's measures, which all have one file name; the run's id is the link's text
MEASURES = re.compile(
    r'download="" (href="[^"]*/measures\.csv\.gz"><code[^>]*><span class="pre">)([\w-]+)(?=</span>)'
)
# a table that a figure offers, in the page itself
TABLE = re.compile(r'download="([\w.-]+\.csv)" href="data:text/csv;base64,([\w+/=]+)"')
LARGE_TABLE = 40_000  # characters
ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*/fontawesome\.js[^"]*"></script>')


def mend_body(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Sphinx's event `html-page-context`: correct roles and lists in a page's text.

    An entry of the bibliography gets a role that browsers still support. A run's measures are saved
    under the run's id. A figure's large table is compressed. The parameters of a long signature
    become lines, in place of a definition list without terms.
    """
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        body = MEASURES.sub(r'download="\2.csv.gz" \1\2', body)
        body = TABLE.sub(_compress_large, body)
        context["body"] = PARAMETERS.sub(_as_lines, body)


def _compress_large(match: re.Match[str]) -> str:
    """A match of TABLE, compressed if it is large: `pandas.read_csv` and the explorer open both."""
    name, encoded = match.groups()
    if len(encoded) < LARGE_TABLE:
        return match[0]
    content = gzip.compress(base64.b64decode(encoded), mtime=0)
    address = f"data:application/gzip;base64,{base64.b64encode(content).decode()}"
    return f'download="{name}.gz" href="{address}"'


def shorten_tab_title(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Sphinx's event `html-page-context`: the landing page's tab has the book's title once.

    The theme adds the book's title to each page's own, and the landing page's is the book's.
    """
    if pagename == app.config.root_doc:
        context["docstitle"] = ""


def _as_lines(match: re.Match[str]) -> str:
    """A match of PARAMETERS with lines in place of the definition list."""
    lines = match[2].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f"{match[1]}<span>{lines}</span>"


def remove_unused(app: Any, exception: Exception | None) -> None:
    """Sphinx's event `build-finished`: remove what no page needs, and outputs of downloads."""
    if exception is not None or app.builder.format != "html":
        return
    html = Path(app.outdir)
    for path in {match for pattern in UNUSED for match in (html / "_static").glob(pattern)}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for page in html.rglob("*.html"):
        text = page.read_text()
        lighter = ICON_SCRIPT.sub("", text)
        if lighter != text:
            page.write_text(lighter)
    for path in (html / "_sources").rglob("*.ipynb"):
        _strip_outputs(path)


def _strip_outputs(path: Path) -> None:
    """Take the outputs out of a notebook on disk."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", mend_body)
    app.connect("html-page-context", shorten_tab_title)
    app.connect("build-finished", remove_unused)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
