"""One thread, here and in processes that tests start; and the order of tests.

Another number of threads changes a run's last bits.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import pytest

from tests.support.browser import browser, page, served  # noqa: F401  fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Long tests begin first, and each in any worker, so that all workers end together.

    The other tests of a file stay in one worker, as the cells of a notebook must.
    """
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # otherwise in their order
    for item in items:
        if not item.get_closest_marker("long"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
