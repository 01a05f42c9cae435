"""The book's extensions are imported by the tests as Sphinx imports them: from their folder."""

import sys

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
