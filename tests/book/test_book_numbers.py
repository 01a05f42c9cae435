"""The pages that show numbers: they load without torch, and every name has a value."""

from tests.support.fresh_process import require_no_torch
from tests.support.paths import ROOT


def test_number_pages_load_no_torch_and_have_every_number():
    """All that they put into the book, in a process of its own."""
    code = (
        "sys.path.insert(0, sys.argv[1]); import book_numbers, explorer; "
        "values = book_numbers.substitutions(); assert all(values.values()), values; "
        "recorded = book_numbers.committed_runs(); book_numbers.runs_page(recorded); "
        "explorer.curves_of_cells(recorded)"
    )
    require_no_torch(code, ROOT / "book" / "_ext")
