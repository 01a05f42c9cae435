"""A headless Chromium for the tests that read the built book as its readers do: fixtures.

conftest.py shares them. `browser` is one Chromium per test file; `page` is an empty tab of it. Test
files that use them are skipped where there is no Chromium. No request leaves the machine: names
other than 127.0.0.1 do not resolve, and `Watch` records who asked.
"""

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.paths import HTML

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
    "--disable-sync",
]
BLANK = "about:blank"
# In CSS pixels, width and height; paper is A4 without its margins.
DESKTOP, PHONE, PAPER = (1400, 900), (390, 844), (680, 960)
WIDER_THAN_THE_PAGE = """() => {
    const page = document.scrollingElement;
    return page.scrollWidth <= page.clientWidth ? [] : [...document.body.querySelectorAll('*')]
        .filter(element => element.getBoundingClientRect().right > page.clientWidth + 1)
        .map(element => element.outerHTML.slice(0, 100));
}"""


class Watch:
    """Errors and outside requests of a tab from now on: `complaints`, one line each."""

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
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    if not (HTML / "index.html").exists():
        pytest.fail(f"{HTML / 'index.html'} is not there: run `make book` first", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=FLAGS, chromium_sandbox=False
        )
        started.empty_tabs = []
        yield started
        started.close()


def _new_tab(browser):
    page = browser.new_context(reduced_motion="reduce").new_page()
    page.context.set_default_timeout(20_000)
    page.watch = Watch(page)
    return page


@contextlib.contextmanager
def tab(browser, size: tuple[int, int] = DESKTOP, theme: str = "light") -> Iterator:
    """An empty tab of this size, in the light or the dark theme; `watch` has its complaints.

    Tabs are emptied and used again, which saves a second each; not where a test failed within.
    """
    width, height = size
    page = browser.empty_tabs.pop() if browser.empty_tabs else _new_tab(browser)
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(media="screen", color_scheme=theme)
    page.watch.complaints.clear()
    yield page
    page.unroute_all()
    page.mouse.move(-1, -1)  # where it points at nothing
    if page.url != BLANK:
        page.evaluate("localStorage.clear(), sessionStorage.clear()")
        page.goto(BLANK)
    browser.empty_tabs.append(page)


@pytest.fixture
def page(browser) -> Iterator:
    """An empty tab at desktop width.

    The test fails if the tab had a console error or asked for something elsewhere.
    """
    with tab(browser) as opened:
        yield opened
        assert not opened.watch.complaints, "\n".join(opened.watch.complaints)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the built book on a web server; browsers refuse some features to files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=HTML)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
