"""The page of runs: the times of a cell's runs, by the kind of device."""

import runs_page

from metanb.grids.hours import RunTime
from metanb.settings import preset


def timed(kind, minutes):
    return RunTime(preset("smoke", "glyphs"), kind, minutes, minutes, 1.0)


def test_times_of_different_devices_are_not_averaged():
    core, both = "CPU core", "CPU core, NVIDIA H200"
    assert runs_page.describe_times([timed(core, 20.0), timed(core, 40.0)]) == (
        "2 runs, each 30 min of one CPU core"
    )
    assert runs_page.describe_times([timed(both, 60.0), timed(core, 30.0)]) == (
        "1 run, 30 min of one CPU core; 1 run on one CPU core and one NVIDIA H200 in turn"
    )
