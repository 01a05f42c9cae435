"""A headless Chromium for the tests that read the built book as its readers do: fixtures, shared through conftest.py.

`browser` is one Chromium a test file; `page` is a fresh tab of it. Whatever file uses them is
skipped where there is no Chromium. No request leaves the machine: a name that is not 127.0.0.1 does
not resolve, and `Watch` says who asked.
"""

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

HTML = Path(__file__).resolve().parent.parent / "_build" / "html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--disable-sync",
]
DESKTOP, PHONE = (1400, 900), (390, 844)  # CSS pixels, width and height


class Watch:
    """What goes wrong on a tab from now on: `complaints`, one line each."""

    def __init__(self, page):
        self.complaints: list[str] = []
        page.on("console", lambda message: message.type == "error" and self._add(message.text))
        page.on("pageerror", lambda error: self._add(f"uncaught {error}"))
        page.on("requestfailed", lambda request: self._add(f"failed: {request.url[:200]}"))
        page.on(
            "response",
            lambda response: (
                response.status >= 400 and self._add(f"{response.status}: {response.url}")
            ),
        )
        page.on("request", lambda request: self._ask(request.url))

    def _add(self, line: str) -> None:
        self.complaints.append(line)

    def _ask(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("file", "data", "blob", "about") and parts.hostname != "127.0.0.1":
            self._add(f"asks elsewhere: {url}")


def address(page: str) -> str:
    """The file:// address of a page of the book, named as in _toc.yml."""
    return (HTML / f"{page}.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium.

    Of a module, not of the session: Playwright's event loop must end before a notebook runs.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    if not (HTML / "index.html").exists():
        pytest.fail(f"{HTML / 'index.html'} is not there: run `make book` first", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found, args=FLAGS, chromium_sandbox=False
        )
        yield started
        started.close()


@contextlib.contextmanager
def tab(browser, size: tuple[int, int] = DESKTOP, theme: str = "light") -> Iterator:
    """A fresh tab, as wide as `size` says, in the light or the dark theme; its `watch` tells what went wrong."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.watch = Watch(page)
    yield page
    context.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A fresh tab at desktop width.

    The test fails if the tab had a console error or asked for something elsewhere.
    """
    with tab(browser) as opened:
        yield opened
        assert not opened.watch.complaints, "\n".join(opened.watch.complaints)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the built book on a web server on 127.0.0.1, for what a browser refuses to a file."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
