"""The grid as data, its estimate by hand, and its runner against `run`: the same records, killed or not."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from metanb import experiment, grid, records
from metanb.__main__ import cli, main
from metanb.grid import Planned
from metanb.records import Record
from metanb.settings import preset

TINY = preset("smoke", "glyphs", filters=4, iterations=12, epoch_iterations=3, test_tasks=4, test_queries=2)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def test_quick_is_well_formed():
    planned = grid.quick()
    ids = [one.settings.id for one in planned]
    assert len(set(ids)) == len(ids)
    seeds = [one.settings.seed for one in planned]
    assert seeds == sorted(seeds)  # one seed of everything before the second of anything
    there = {one.settings for one in planned}
    for one in planned:
        if one.settings.regulariser != "none":
            assert replace(one.settings, regulariser="none", gamma=0.0) in there
        if one.settings.train_classes:
            assert one.settings.class_seed == one.settings.seed
    base = [one.settings for one in planned if one.group == "base"]
    for dataset, ways, shots, runs in (("omniglot", 5, 1, 5), ("glyphs", 5, 1, 5), ("omniglot", 20, 1, 3)):
        for algorithm in ("maml", "fomaml", "finetune"):
            chosen = [s for s in base if (s.dataset, s.ways, s.shots, s.algorithm) == (dataset, ways, shots, algorithm)]
            assert len(chosen) == runs


def test_select():
    planned = grid.quick()
    assert {one.group for one in grid.select(planned, "few-classes")} == {"few-classes"}
    assert {one.settings.algorithm for one in grid.select(planned, "*-5w1s-maml-s0-*")} == {"maml"}
    assert all("20w" in one.settings.id for one in grid.select(planned, "20w"))
    assert grid.select(planned, None) == planned
    with pytest.raises(ValueError, match="'nothing'.*few-classes"):
        grid.select(planned, "nothing")


@pytest.mark.parametrize("which", [0, 5, -1])
def test_command_trains_the_very_settings(which, monkeypatch):
    settings, asked = grid.quick()[which].settings, []

    def run(wanted, device):
        asked.append((wanted, device))
        raise ValueError("enough")

    monkeypatch.setattr(experiment, "run", run)
    CliRunner().invoke(cli, grid.command(settings, "cpu")[3:])
    assert asked == [(settings, "cpu")]


def test_minutes_are_those_of_the_like_or_scaled_work(tmp_path):
    def record(settings, seconds):
        return Record(settings, None, {"wall_seconds": seconds}, tmp_path)

    planned = preset("quick", "omniglot", seed=3)
    like = [record(replace(planned, seed=seed), seconds) for seed, seconds in ((0, 60), (1, 120))]
    assert grid.minutes(planned, like) == 1.5
    twice = preset("quick", "omniglot", seed=3, iterations=3600, epoch_iterations=300)
    assert 1.5 < grid.minutes(twice, like) < 3.0  # twice the training, the same measuring
    other = record(twice, 60 * 4 * grid.minutes(twice))
    assert grid.minutes(planned, [other]) == pytest.approx(4 * grid.minutes(planned))


def test_grid_makes_the_records_of_run_and_tells_of_failures(store, tmp_path, monkeypatch):
    lines = []
    good = [Planned("a", replace(TINY, seed=seed)) for seed in (0, 1)]
    bad = Planned("a", preset("smoke", "mini-imagenet", iterations=10))
    monkeypatch.setenv("METANB_DATA", str(tmp_path / "data"))
    failed = grid.run([good[0], bad, good[1]], 2, "cpu", lines.append)
    assert len(failed) == 1 and failed[0].startswith(bad.settings.id) and "mini-imagenet" in failed[0]
    assert "\n" not in failed[0]
    assert len(lines) == 4 and lines[0].startswith("0 runs are recorded, 3 are missing")
    assert sum("query accuracy" in line for line in lines) == 2 and "min left" in lines[-1]
    found = [(store / one.settings.id / "measures.csv").read_bytes() for one in good]
    again = []
    assert grid.run(good, 2, "cpu", again.append) == [] and len(again) == 1  # nothing was missing
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    assert [(experiment.run(one.settings, "cpu").path / "measures.csv").read_bytes() for one in good] == found


def test_grid_killed_and_asked_again(store, tmp_path, monkeypatch):
    longer = replace(TINY, iterations=60)
    script = (
        "import sys, json; from metanb import grid; from metanb.settings import from_dict; "
        "grid.run([grid.Planned('a', from_dict(json.loads(sys.argv[1])))], 1, 'cpu', print)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(longer.to_dict())], start_new_session=True, stdout=subprocess.DEVNULL
    )
    checkpoint = store / f"{longer.id}.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # the grid and its run
    process.wait()
    assert records.find(longer) is None and "begun" in grid.table([Planned("a", longer)], []).state.tolist()
    assert grid.run([Planned("a", longer)], 1, "cpu", lambda line: None) == []
    resumed = records.find(longer)
    assert resumed.provenance["resumed"] == 1
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    assert experiment.run(longer, "cpu").measures.equals(resumed.measures)


def test_list_of_an_empty_store(store, monkeypatch):
    monkeypatch.setattr(records, "places", lambda: [store])
    done = CliRunner().invoke(cli, ["grid", "quick", "--list", "--only", "few-classes"])
    assert done.exit_code == 0, done.output
    assert done.output.count("missing") == 10 and "10 runs, 0 recorded" in done.output


def test_claims_prints_the_ledger(store, monkeypatch):
    monkeypatch.setattr(records, "places", lambda: [store])
    done = CliRunner().invoke(cli, ["claims"])
    assert done.exit_code == 1 and "metanb grid quick" in done.output
    for seed in range(3):
        experiment.run(replace(TINY, seed=seed), "cpu")
    done = CliRunner().invoke(cli, ["claims"])
    assert done.exit_code == 0 and "C1, first peak" in done.output and "Holm" in done.output
    done = CliRunner().invoke(cli, ["claims", "--json", "--records", str(store)])
    assert {row["claim"] for row in json.loads(done.output)} >= {"C1", "C2", "C3", "C4", "C5", "C6"}


def test_a_failing_grid_ends_in_one_line_and_not_zero(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METANB_DATA", str(tmp_path / "data"))
    bad = preset("smoke", "mini-imagenet", iterations=10)
    monkeypatch.setitem(grid.GRIDS, "quick", lambda: [Planned("absent", bad), Planned("there", TINY)])
    monkeypatch.setattr(sys, "argv", ["metanb", "grid", "quick", "--only", "absent"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and err.startswith(f"Error: 1 of 1 runs failed: {bad.id}")
    assert err.count("\n") == 1 and "FAILED" in out and TINY.id not in out
