"""Prices of runs whose times are given, and a simulation of correlations."""

from dataclasses import replace

import costs
import numpy as np
from scipy import stats

from metanb.claims import rules
from metanb.grids import definitions, hours
from metanb.grids.definitions import Planned
from metanb.grids.hours import Timings
from metanb.settings import preset
from tests.support.records import timed


def test_the_cost_of_the_paper_by_device(monkeypatch):
    """Two runs of an hour share a GPU, one takes an hour of a core; the grid is their settings."""
    maml = preset("paper", "omniglot", 20)
    fomaml = replace(maml, algorithm="fomaml")
    settings = [replace(plain, seed=seed) for plain in (maml, fomaml) for seed in range(4)]
    planned = [Planned("a", run) for run in settings]
    monkeypatch.setattr(definitions, "paper_grid", lambda: planned)
    runs = [timed(replace(maml, seed=seed), 3600.0, "NVIDIA H200") for seed in range(2)]
    lines = costs.cost_table([*runs, timed(fomaml, 3600.0, "AMD EPYC (AVX2)")]).splitlines()
    assert lines[0].split("|")[-3:-1] == [" All 8 runs ", " Hours of the device "]
    rows = {line.split("|")[1].split("<")[0].strip(): line.split("|")[2:-1] for line in lines[2:]}
    assert list(rows) == [*hours.BANDWIDTH, hours.CORE]
    h200, consumer, core = (
        [value.strip() for value in rows[kind]]
        for kind in ("NVIDIA H200", "NVIDIA GeForce RTX 4090", hours.CORE)
    )
    assert h200[:3] == ["2", "30 min", "unknown"] and h200[3].startswith("≈ ")
    assert h200[4:] == ["over 2.0 h<br><small>4 of the 8 runs were never timed</small>", "over 2"]
    scaled = hours.format_minutes(30 * 4.8 / 1.01)
    assert consumer[:3] == ["2", f"≈ {scaled}", "unknown"] and consumer[5] == "over 10"
    assert core[0] == "1" and core[1].startswith("≈ ") and "unknown" not in "".join(core)
    assert core[4].startswith("≈ ") and core[5].startswith("≈ ")  # of one setting none was timed
    nothing = costs.cost_table([]).splitlines()[2].split("|")[2:-1]
    assert {value.strip() for value in nothing} == {"unknown"}


def test_what_runs_took_on_a_gpu_is_told_with_their_share():
    maml = preset("paper", "omniglot", 20)
    runs = [timed(replace(maml, seed=seed), 3600.0, "NVIDIA H200", 10) for seed in range(2)]
    (line,) = costs.gpu_table(runs).splitlines()[2:]
    assert line.endswith(
        "| NVIDIA H200 | 2 | 5,000 | 60 min | a process each | 2.0 | 30 min | 6.0 h |"
    )
    for run, together in zip(runs, (2, "3, 2"), strict=True):
        run.provenance["together"] = together
    assert "| as one batch | 2.0 |" in costs.gpu_table(runs)
    assert len(costs.gpu_table([timed(maml, 60.0, "AMD EPYC")]).splitlines()) == 2


def test_a_whole_run_is_a_share_of_a_gpu_and_marked_where_it_is_scaled():
    """Three runs at a time, an hour for a tenth of the iterations: 200 minutes each."""
    maml = preset("paper", "omniglot")
    runs = [timed(replace(maml, seed=seed), 3600.0, "NVIDIA H200", 12) for seed in range(3)]
    assert costs.whole_run_values(runs) == {
        "whole_run": "3.3 h",
        "whole_run_together": "3",
        "whole_run_gpu": "H200",
    }
    others = [timed(preset("paper", "omniglot", 20), 3600.0, "NVIDIA H200", 12)]
    assert costs.whole_run_values(others)["whole_run"].startswith("≈ ")


def test_so_many_runs_show_a_strong_correlation_often_enough():
    """Simulated pairs of normal values, with the number of runs that the table asks for."""
    runs = costs.seeds_for_power()
    rng = np.random.default_rng(0)
    seen = []
    for n in (runs, runs - 1):
        x, noise = rng.normal(size=(2, 4000, n))
        y = rules.STRONG * x + np.sqrt(1 - rules.STRONG**2) * noise
        r, p = stats.pearsonr(x, y, axis=1)
        seen.append(((r > 0) & (p < 0.05)).mean())
    assert seen[0] > rules.POWER - 0.02 and seen[1] < rules.POWER + 0.02


def test_what_was_stopped_is_priced_from_its_start():
    settings = [preset("paper", "omniglot", 20, seed=seed) for seed in range(2)]
    whole, stopped = (
        timed(run, 3600.0, "NVIDIA H200", epochs)
        for run, epochs in zip(settings, (120, 60), strict=True)
    )
    stopped = replace(
        stopped,
        provenance=stopped.provenance
        | {"started": "2026-02-01T00:00:00+00:00", "finished": "2026-02-01T01:00:00+00:00"},
    )  # alone on the GPU, at half the pace
    timings = Timings([whole, stopped])
    both = costs.prices(timings, settings, [])[0]
    left = costs.prices(timings, settings, [whole])[0]
    assert (both, left) == ("3.0", "1.5")  # 1.5 hours a run on average
