"""One thread, here and in processes that tests start: another number changes a run's last bits."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

from tests.support.browser import browser, page, served  # noqa: F401  fixtures
