"""One thread, here and in processes that tests start; and which tests workers take first.

Another number of threads changes a run's last bits. Kernels of notebooks are forked. What is loaded
before the first test stays to the end, so Python does not look there for garbage, which takes a
quarter of the time until the first test.
"""

import gc
import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

from jupyter_client.provisioning import local_provisioner
from xdist.scheduler import LoadScopeScheduling

from tests.support import kernels
from tests.support.browser import browser, page, served  # noqa: F401  fixtures

local_provisioner.launch_kernel = kernels.launch

# Tests of a quarter of a minute or more, which need no other test of their file.
LONG = {
    "test_runs_live_with_other_parameters",
    "test_flatness_runs_by_plain_papermill",
    "test_grid_killed_twice_and_asked_again",
    "test_killed_at_random_moments_and_resumed_in_other_groups_the_records_are_those_undisturbed",
    "test_a_run_stays_on_its_device_and_finds_what_the_cpu_finds",
    "test_runs_side_by_side_stay_there_with_their_images",
}
# Files that take half a minute or more, each from end to end by one worker.
LONG_FILES = (
    "notebooks/1-maml.ipynb",
    "notebooks/9-your-own.ipynb",
    "tests/book/test_browser.py",
    "tests/grids/test_runner.py",
    "tests/runs/test_training.py",
    "tests/test_second_device.py",
)


def _is_long(nodeid):
    return nodeid.partition("::")[2].partition("[")[0] in LONG


def pytest_collection_modifyitems(items):
    """The book's tests come last, and long tests and files first, so that workers end together."""
    items.sort(key=_turn)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Load the tests and all that they need."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _turn(item):
    """Where a test's turn is: those that are equal in this keep their order."""
    is_long = _is_long(item.nodeid) or item.nodeid.startswith(LONG_FILES)
    return item.nodeid.startswith("tests/book/"), not is_long


@pytest.hookimpl(optionalhook=True)  # xdist may be off
def pytest_xdist_make_scheduler(config, log):
    return _ByFile(config, log) if config.getoption("dist") == "loadscope" else None


class _ByFile(LoadScopeScheduling):
    """A worker takes the tests of a file, as a notebook's cells need; any takes a long one."""

    def _split_scope(self, nodeid):
        return nodeid if _is_long(nodeid) else nodeid.partition("::")[0]
