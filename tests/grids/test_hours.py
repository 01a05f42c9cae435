"""How long runs take, by kind of device: shares, estimates and limits, on synthetic records.

Evidence: values worked out by hand; a loop over seconds for the shares; the recorded benchmark,
whose times are measured, for the weights of the work model.
"""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from metanb.bench import units
from metanb.cli import cli
from metanb.grids import definitions, hours
from metanb.grids.definitions import Planned
from metanb.grids.hours import CORE, Timings
from metanb.runs import machine, records
from metanb.runs import store as run_store
from metanb.runs.records import Record
from metanb.settings import preset

H200 = "NVIDIA H200"
H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-80GB"
PROCESSOR = "Intel(R) Xeon(R) Processor (AVX512)"
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
PAPER = preset("paper", "omniglot", 20)  # 120 epochs
MINI = preset("paper", "mini-imagenet", algorithm="fomaml")


def record(settings, seconds, device=PROCESSOR, epochs=None, start=0.0, **provenance):
    """A record of a run that was in progress for so long from so many seconds after midnight."""
    measures = pd.DataFrame({"epoch": range((settings.epochs if epochs is None else epochs) + 1)})
    origin = {
        "device": device,
        "started": (MIDNIGHT + timedelta(seconds=start)).isoformat(),
        "finished": (MIDNIGHT + timedelta(seconds=start + seconds)).isoformat(),
        "wall_seconds": float(seconds),
        "cpu_seconds": float(seconds),
    }
    return Record(settings, measures, origin | provenance, Path(settings.id))


def minutes(timings, settings, kind, together=1.0):
    return timings.estimate(settings, kind, together).minutes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.02, "0.0 min"),
        (1.26, "1.3 min"),
        (45.4, "45 min"),
        (119, "119 min"),
        (120, "2.0 h"),
        (318, "5.3 h"),
        (2879, "48.0 h"),
        (2880, "2.0 days"),
        (3024, "2.1 days"),
        (math.nan, "unknown"),
    ],
)
def test_units(value, text):
    assert hours.format_minutes(value) == text


def test_a_core_takes_what_its_like_took_or_scaled_work():
    planned = preset("quick", "omniglot", seed=3)
    like = [record(replace(planned, seed=seed), seconds) for seed, seconds in ((0, 60), (1, 120))]
    assert minutes(Timings(like), planned, CORE) == 1.5
    half = record(planned, 30, epochs=planned.epochs // 2)
    assert minutes(Timings([half]), planned, CORE) == 1.0
    twice = replace(planned, iterations=3600, epoch_iterations=300)
    assert 1.5 < minutes(Timings(like), twice, CORE) < 3.0  # twice the training, the same measuring
    alone = Timings([]).estimate(planned, CORE)
    assert alone.basis == "work model"
    first_order = replace(twice, algorithm="fomaml")
    fomaml_record = record(first_order, 240 * minutes(Timings([]), first_order, CORE))
    assert Timings([fomaml_record]).estimate(planned, CORE).basis == "scaled"
    assert minutes(Timings([fomaml_record]), planned, CORE) == pytest.approx(4 * alone.minutes)


def test_a_core_prefers_runs_of_the_same_way_of_training():
    planned = preset("quick", "omniglot")
    same = replace(planned, iterations=3600)
    on_glyphs = [record(preset("quick", "glyphs", seed=seed), 6000) for seed in range(5)]
    expected = minutes(Timings([record(same, 600)]), planned, CORE)
    assert minutes(Timings([record(same, 600), *on_glyphs]), planned, CORE) == expected


def test_a_core_counts_the_seconds_that_a_run_had_of_it():
    """Two processes on one core: each waits half of its time."""
    run = record(PAPER, 7200, cpu_seconds=3600.0)
    assert Timings([run]).run_time(run).minutes == 60
    assert Timings([run]).run_time(run).together == 1


def test_two_devices_never_mix():
    on_core = record(PAPER, 36_000)
    on_gpu = record(replace(PAPER, seed=1), 600, H200)
    both = Timings([on_core, on_gpu])
    assert minutes(both, PAPER, CORE) == 600 and minutes(both, PAPER, H200) == 10
    assert not Timings([on_core]).estimate(PAPER, H200).known
    first_order = replace(PAPER, algorithm="fomaml")  # no like anywhere
    assert minutes(both, first_order, CORE) == minutes(Timings([on_core]), first_order, CORE)
    moved = record(PAPER, 60, f"Intel(R) Xeon(R) Processor, {H200}")
    for kind in (CORE, H200):
        assert minutes(Timings([moved, on_core, on_gpu]), PAPER, kind) == minutes(both, PAPER, kind)
    assert hours.kind_of("AMD EPYC, Intel(R) Xeon(R) Processor (AVX2)") == CORE
    assert hours.kind_of("Intel Xeon Processor (Skylake, IBRS) (AVX2)") == CORE
    assert Timings([moved, on_gpu]).gpus == [H200]


def test_overlapping_runs_share_a_gpu():
    first, second, third = (replace(PAPER, seed=seed) for seed in range(3))
    runs = [record(first, 600, H200), record(second, 300, H200)]
    runs.append(record(third, 150, H200, start=300))
    elsewhere = [record(MINI, 600, H100), record(replace(MINI, seed=1), 600)]
    timings = Timings([*runs, *elsewhere])
    # 300 s with the second, 150 s with the third, 150 s alone.
    assert [60 * timings.run_time(run).minutes for run in runs] == [375, 150, 75]
    assert (
        timings.run_time(runs[0]).together == 600 / 375 and timings.run_time(runs[1]).together == 2
    )
    assert timings.run_time(elsewhere[0]).minutes == 10
    recorded_share = Timings([record(first, 600, H200, shared_seconds=120.0), *runs[1:]])
    assert (
        recorded_share.run_time(runs[0]).minutes == 2
        and recorded_share.run_time(runs[0]).together == 5
    )
    assert recorded_share.run_time(runs[1]).minutes == 2.5
    further = record(first, 600, H200, epochs=60)  # the same run, as it stood before: no other run
    assert Timings([further, *runs]).run_time(runs[0]).minutes == 375 / 60


def test_shares_are_those_of_a_loop_over_seconds():
    rng = np.random.default_rng(0)
    begin = rng.integers(0, 200, 12)
    length = rng.integers(1, 150, 12)
    times = zip(range(12), length.tolist(), begin.tolist(), strict=True)
    runs = [record(replace(PAPER, seed=i), wall, H200, start=start) for i, wall, start in times]
    shares = np.zeros(12)
    for second in range(400):
        in_progress = (begin <= second) & (second < begin + length)
        shares[in_progress] += 1 / max(1, in_progress.sum())
    timings = Timings(runs)
    assert [60 * timings.run_time(run).minutes for run in runs] == pytest.approx(shares)


def test_a_run_that_was_stopped_and_resumed_shares_in_proportion():
    """600 s of training in 6,000 s: it is beside another run for a tenth of that one's time."""
    resumed = record(PAPER, 6000, H200)
    resumed.provenance["wall_seconds"] = 600.0
    whole = record(replace(PAPER, seed=1), 1100, H200, start=1000)
    timings = Timings([resumed, whole])
    assert 60 * timings.run_time(whole).minutes == pytest.approx(1000)
    # In 1,100 of its 6,000 s it has half of the GPU.
    assert 60 * timings.run_time(resumed).minutes == pytest.approx(600 * (1 - 1100 / 6000 / 2))


@pytest.mark.parametrize("seconds", [0, -5])
def test_a_run_that_begins_and_ends_within_one_second_has_the_share_of_that_second(seconds):
    """It has a third of the GPU beside two runs; without them, all of it."""
    short = record(PAPER, seconds, H200, start=100)
    short.provenance["wall_seconds"] = 0.6
    long = [record(replace(PAPER, seed=seed), 600, H200) for seed in (1, 2)]
    timings = Timings([short, *long])
    assert 60 * timings.run_time(short).minutes == pytest.approx(0.2)
    assert timings.run_time(short).together == pytest.approx(3)
    assert [timings.run_time(run).minutes for run in long] == [5, 5]
    assert 60 * Timings([short]).run_time(short).minutes == pytest.approx(0.6)


def test_runs_in_progress_share_a_gpu_too(monkeypatch):
    now = datetime.now(UTC)
    begun = (now - timedelta(seconds=300) - MIDNIGHT).total_seconds()
    run = record(PAPER, 300, H200, start=begun)
    running = [(H200, now - timedelta(seconds=400))] * 2 + [(H100, now - timedelta(seconds=400))]
    assert 60 * Timings([run], running).run_time(run).minutes == pytest.approx(100, abs=1)


def test_a_gpu_is_scaled_within_one_way_of_training_alone():
    timings = Timings([record(PAPER, 1200, H200)])
    five_way = timings.estimate(preset("paper", "omniglot", 5), H200)
    both = PAPER, preset("paper", "omniglot", 5)
    work = [minutes(Timings([]), settings, CORE) for settings in both]
    assert five_way.basis == "scaled" and five_way.minutes == pytest.approx(20 * work[1] / work[0])
    unlike = [
        *(replace(PAPER, algorithm=name) for name in ("fomaml", "finetune")),
        replace(PAPER, filters=32),
        replace(PAPER, regulariser="adapted", gamma=0.1),
        preset("paper", "mini-imagenet"),
    ]
    for settings in unlike:
        assert timings.estimate(settings, H200) == hours.Estimate()
        assert timings.estimate(settings, CORE).known
    adapted = replace(PAPER, regulariser="adapted", gamma=0.3)
    control = replace(adapted, regulariser="random")
    timings = Timings([record(adapted, 1200, H200)])
    stronger = replace(adapted, gamma=1.0)
    assert minutes(timings, control, H200) == minutes(timings, stronger, H200) == 20


def test_another_gpu_is_estimated_by_memory_bandwidth():
    timings = Timings([record(MINI, 600, H200), record(PAPER, 600, CORE)])
    estimate = timings.estimate(MINI, A100)
    assert estimate.basis == "bandwidth" and estimate.minutes == pytest.approx(10 * 4.8 / 2.0)
    assert not timings.estimate(PAPER, A100).known
    assert not timings.estimate(MINI, "NVIDIA Unheard Of").known
    nearer = Timings([record(MINI, 600, H200), record(replace(MINI, seed=1), 1000, H100)])
    assert minutes(nearer, MINI, A100) == pytest.approx(1000 / 60 * 3.35 / 2.0)
    own = Timings([record(MINI, 600, H200), record(replace(MINI, seed=1), 1000, A100)])
    assert own.estimate(MINI, A100).basis == "like runs"
    assert minutes(own, MINI, A100) == pytest.approx(1000 / 60)


def test_runs_that_shared_as_wanted_are_preferred():
    alone = record(PAPER, 1200, H200)
    shared = [record(replace(PAPER, seed=seed), 3600, H200, start=10_000) for seed in range(1, 9)]
    timings = Timings([alone, *shared])
    assert timings.estimate(PAPER, H200, 1) == hours.Estimate(20, 1, "like runs")
    for together in (6, 8, 9):
        assert timings.estimate(PAPER, H200, together) == hours.Estimate(60 / 8, 8, "like runs")
    assert timings.estimate(PAPER, H200, 8).by_the_clock == 60


def test_what_is_left_by_hand():
    settings = [preset("smoke", "glyphs", seed=seed) for seed in range(3)]  # 4 epochs
    recorded = [record(settings[0], 240), record(settings[1], 120, epochs=2)]  # a minute an epoch
    timings = Timings(recorded)
    assert timings.time_left(settings, recorded, CORE).minutes == pytest.approx(0 + 2 + 4)
    assert timings.time_left(settings[2:], recorded, CORE, until=30).minutes == pytest.approx(2)
    nothing = timings.time_left(settings[:1], recorded, CORE, until=30)
    assert nothing.minutes == 0 and nothing.describe_elapsed(2) == "about 0.0 min left"
    left = timings.time_left(settings, recorded, CORE)
    assert left.describe(2) == "about 6.0 min of one CPU core, 3.0 min with 2 at a time"
    assert left.describe_elapsed(2) == "about 3.0 min left"


def test_a_gpu_is_told_with_those_who_share_it_and_what_is_unknown():
    runs = [record(replace(MINI, seed=seed), 3600, H200) for seed in range(4)]
    timings = Timings(runs)
    wanted = [replace(MINI, seed=seed) for seed in range(10)] + [PAPER]
    left = timings.time_left(wanted, runs[:2], H200, 4)
    assert (left.minutes, left.by_the_clock, left.unknown, left.runs) == (8 * 15, 8 * 60, 1, 9)
    words = "about 2.0 h of one NVIDIA H200, shared by 4 runs at a time"
    assert left.describe(4) == f"{words}, and unknown time for 1 of them"
    assert left.describe_elapsed(4) == "about 2.0 h left, and unknown time for 1 runs"
    assert "by memory bandwidth" in timings.time_left(wanted, [], A100).describe()
    unknown = timings.time_left([PAPER], [], H200)
    assert unknown.describe(4).startswith("unknown time on one NVIDIA H200")
    assert unknown.describe_elapsed(4) == "unknown time left"


def test_limits_are_of_the_clock():
    """What the Snakefile asks of a cluster."""
    runs = [record(replace(MINI, seed=seed), 3600, H200) for seed in range(4)] + [
        record(PAPER, 7200, cpu_seconds=600.0)
    ]
    timings = Timings(runs)
    assert timings.limit(replace(MINI, seed=5), [], H200) == 10 + 2 * 60
    assert timings.limit(replace(MINI, seed=5), [], H200, until=30_000) == 10 + 60
    assert timings.limit(PAPER, [], CORE) == 10 + 2 * 10
    assert timings.limit(PAPER, runs, CORE) == 10  # recorded
    assert timings.limit(PAPER, [], H200) == hours.LIMIT_IF_UNKNOWN == 1440
    short = record(replace(PAPER, seed=1), 61, cpu_seconds=61.0, epochs=1)
    assert Timings([short]).limit(short.settings, [short], CORE, until=1000) == 13


def test_the_work_model_weighs_as_the_recorded_benchmark_within_a_third():
    path = Path(hours.__file__).parents[2] / "results" / "bench.json"
    ratios = []
    for timing in json.loads(path.read_text())["timings"]:
        if timing["candidate"] == units.OURS and timing["unit"] in units.UNITS:
            algorithm = "maml" if timing["order"] == "second" else "fomaml"
            unit = replace(units.UNITS[timing["unit"]][1], algorithm=algorithm)
            unmeasured = replace(unit, epoch_iterations=unit.iterations, test_tasks=2)
            ratios.append(minutes(Timings([]), unmeasured, CORE) / timing["ms"])
    assert len(ratios) == 8
    assert all(3 / 4 < ratio / np.median(ratios) < 4 / 3 for ratio in ratios), ratios


def test_the_kind_of_device_that_is_there(monkeypatch):
    most = [record(replace(MINI, seed=seed), 60, H200) for seed in range(2)]
    timings = Timings([record(PAPER, 60, H100), *most])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices = ("cpu", "auto", "cuda", "cuda:0")
    assert [timings.kind_here(device) for device in devices] == [CORE, CORE, H200, H200]
    assert Timings([]).kind_here("cuda") == "GPU"
    with pytest.raises(ValueError, match="'abacus'"):
        timings.kind_here("abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: A100)
    assert [timings.kind_here(device) for device in devices] == [CORE, A100, A100, A100]
    assert hours.kind_of(machine.device_name(torch.device("cpu"))) == CORE


def test_times_come_from_every_record_that_can_be_read(tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("committed", "absent", "store")]
    monkeypatch.setattr(run_store, "record_folders", lambda: places)
    tiny = preset("smoke", "glyphs", filters=4, iterations=12, epoch_iterations=3)

    def write(folder, settings, epochs):
        rows = [dict.fromkeys(records.COLUMNS, 0) | {"epoch": epoch} for epoch in range(epochs + 1)]
        origin = dict.fromkeys(records.PROVENANCE, "")
        return records.write_record(settings, rows, origin, tmp_path / folder)

    write("committed", tiny, 2)
    further = write("store", tiny, 4)
    torn = write("store", replace(tiny, seed=1), 4)
    (torn.path / "measures.csv").write_text("torn")
    (tmp_path / "store" / f"{tiny.id}.pt").write_text("a checkpoint")
    assert [(run.path, run.epochs) for run in hours.recorded_anywhere()] == [(further.path, 4)]


def test_list_tells_the_device(tmp_path, monkeypatch):
    """Of a part of a grid, too, what shared a GPU with other parts counts."""
    runs = [record(replace(MINI, seed=seed), 3600, H200, epochs=60) for seed in range(2)]
    runs.append(record(PAPER, 3600, H200))
    monkeypatch.setattr(hours, "recorded_anywhere", lambda: runs)
    monkeypatch.setattr(run_store, "record_folders", lambda: [tmp_path])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned = [Planned("a", MINI), Planned("b", preset("paper", "glyphs"))]
    monkeypatch.setitem(definitions.GRIDS, "paper", lambda: planned)
    command = "grid paper --list --device cuda --processes 3"
    done = CliRunner().invoke(cli, command.split())
    assert done.exit_code == 0, done.output
    _, known, unknown, total = done.output.splitlines()
    assert known.split()[-5:] == ["missing", "40", "min", "like", "runs"]
    assert unknown.split()[-3:] == ["missing", "unknown", "unknown"]
    assert total == (
        "2 runs, 0 recorded; the others take about 40 min of one NVIDIA H200, shared by 3 runs "
        "at a time, and unknown time for 1 of them"
    )
