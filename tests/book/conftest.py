"""Before the tests of the book: its extensions can be imported, and its build has ended.

Sphinx imports the extensions from their folder, and so do the tests.
"""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))


@pytest.fixture(scope="session", autouse=True)
def book_has_been_built():
    """Wait while `make test` builds the book: until the file that says so is gone."""
    being_built = os.environ.get("METANB_BOOK_BEING_BUILT")
    while being_built and Path(being_built).exists():
        time.sleep(0.5)
