"""The grid as data, and its runner against `run`: the same records, killed or not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner

from metanb.cli import cli, main
from metanb.grids import definitions, progress, runner
from metanb.grids.definitions import Planned
from metanb.grids.hours import CORE, Estimate, Timings
from metanb.runs import checkpoint, experiment, records
from metanb.runs import store as run_store
from metanb.settings import preset, scale_of
from tests.support.bad_days import shown
from tests.support.processes import Child
from tests.support.runs import SMALL

TINY = preset("smoke", "glyphs", iterations=6, epoch_iterations=3, **SMALL)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def forked(monkeypatch):
    """Runs are trained in forked processes, which saves the seconds that loading torch takes."""
    monkeypatch.setattr(runner, "Popen", Child)


def states(planned, recorded):
    return progress.grid_table(planned, recorded, Timings(recorded), CORE).state.tolist()


def test_quick_is_well_formed():
    planned = definitions.quick_grid()
    ids = [run.settings.id for run in planned]
    assert len(set(ids)) == len(ids)
    seeds = [run.settings.seed for run in planned]
    assert seeds == sorted(seeds)  # one seed of everything before the second of anything
    settings = {run.settings for run in planned}
    for run in planned:
        if run.settings.regulariser != "none":
            assert replace(run.settings, regulariser="none", gamma=0.0) in settings
        if run.settings.train_classes:
            assert run.settings.class_seed == run.settings.seed
    base = [run.settings for run in planned if run.group == "base"]
    for dataset, ways, shots, runs in (
        ("omniglot", 5, 1, 5),
        ("glyphs", 5, 1, 5),
        ("omniglot", 20, 1, 3),
    ):
        for algorithm in ("maml", "fomaml", "finetune"):
            cell = [
                s
                for s in base
                if (s.dataset, s.ways, s.shots, s.algorithm) == (dataset, ways, shots, algorithm)
            ]
            assert len(cell) == runs


def test_select():
    planned = definitions.quick_grid()
    assert {run.group for run in definitions.select_runs(planned, "few-classes")} == {"few-classes"}
    assert {
        run.settings.algorithm for run in definitions.select_runs(planned, "*-5w1s-maml-s0-*")
    } == {"maml"}
    assert all("20w" in run.settings.id for run in definitions.select_runs(planned, "20w"))
    assert definitions.select_runs(planned) == planned
    runs = [
        run.settings.id for run in definitions.select_runs(planned, "*-maml-s1-*", "*-maml-s[01]-*")
    ]
    assert len(runs) == len(set(runs)) > 2
    assert ["-s1-" in run for run in runs] == sorted(("-s1-" in run for run in runs), reverse=True)
    with pytest.raises(ValueError, match="'nothing'.*few-classes"):
        definitions.select_runs(planned, "nothing")


@pytest.mark.parametrize("which", [0, 5, -1])
def test_command_trains_the_very_settings(which, monkeypatch):
    settings = definitions.quick_grid()[which].settings
    asked = []

    def run_all(wanted, device, until, together):
        asked.append((*wanted, device, until))
        raise ValueError("enough")

    monkeypatch.setattr(experiment, "run_all", run_all)
    CliRunner().invoke(cli, runner.command(settings, "cpu")[3:])
    CliRunner().invoke(cli, runner.command(settings, "cpu", 700)[3:])
    assert asked == [(settings, "cpu", None), (settings, "cpu", 700)]


def test_grid_makes_the_records_of_run_and_tells_of_failures(store, forked, tmp_path, monkeypatch):
    lines = []
    good = [Planned("a", replace(TINY, seed=seed)) for seed in (0, 1)]
    bad = Planned("a", preset("smoke", "mini-imagenet"))
    monkeypatch.setenv("METANB_DATA", str(tmp_path / "data"))
    failed = runner.run_grid([good[0], bad, good[1]], 2, "cpu", lines.append)
    assert (
        len(failed) == 1 and failed[0].startswith(bad.settings.id) and "mini-imagenet" in failed[0]
    )
    assert "\n" not in failed[0]
    assert len(lines) == 4 and lines[0].startswith("0 runs are recorded, 3 are missing")
    assert sum("query accuracy" in line for line in lines) == 2 and "min left" in lines[-1]
    contents = [(store / run.settings.id / "measures.csv").read_bytes() for run in good]
    again = []
    assert (
        runner.run_grid(good, 2, "cpu", again.append) == [] and len(again) == 1
    )  # nothing was missing
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    assert [
        (experiment.run(run.settings, "cpu").path / "measures.csv").read_bytes() for run in good
    ] == contents


def test_batches_hold_what_differs_by_seeds_alone_in_the_grids_order():
    runs = [replace(TINY, seed=seed, shots=shots) for seed in range(3) for shots in (1, 2)]
    one_shot = runs[::2]
    two_shot = runs[1::2]
    assert runner.group_into_batches(runs, 5) == [tuple(one_shot), tuple(two_shot)]
    assert runner.group_into_batches(runs, 2) == [
        tuple(one_shot[:2]),
        tuple(two_shot[:2]),
        (one_shot[2],),
        (two_shot[2],),
    ]
    assert runner.group_into_batches(runs, 1) == [(settings,) for settings in runs]
    assert (runner.together_on("cpu"), runner.together_on("cuda:1")) == (1, runner.TOGETHER)


def test_a_grid_trains_batches_and_says_of_each_run_how_it_ended(
    store, forked, tmp_path, monkeypatch
):
    """Two runs of one batch, of which one has a damaged record; and a batch of one."""
    planned = [Planned("a", replace(TINY, seed=seed, iterations=3)) for seed in range(3)]
    planned.append(Planned("a", replace(TINY, iterations=3, filters=5)))
    damaged = store / planned[1].settings.id
    damaged.mkdir(parents=True)
    lines = []
    failed = runner.run_grid(planned[:1] + planned[2:], 1, "cpu", lines.append, together=5)
    assert failed == [] and sum("query accuracy" in line for line in lines) == 3
    made = progress.find_recorded(planned[:1] + planned[2:])
    assert [record.provenance["together"] for record in made] == [2, 2, 1]
    monkeypatch.setattr(progress, "find_recorded", lambda planned: [])
    (failure,) = runner.run_grid([planned[1]], 1, "cpu", lines.append, together=5)
    assert failure.startswith(planned[1].settings.id) and "damaged" in failure


def test_each_run_of_a_batch_is_told_its_own_error(store, monkeypatch):
    """The words of a batch do not hide a run's name behind a folder that is called alike."""
    planned = [Planned("a", replace(TINY, seed=seed)) for seed in range(3)]
    first, second, third = (run.settings.id for run in planned)
    lines = [
        f"set aside: {first}: loss is nan; the others go on",
        f"set aside: checkpoint /runs: the others/{second}.pt cannot be read; the others go on",
        f"Error: {third}: memory is full",
    ]
    fails = [sys.executable, "-c", f"import sys; sys.exit({chr(10).join(lines)!r})"]
    monkeypatch.setattr(runner, "_batch_command", lambda *_: fails)
    failed = runner.run_grid(planned, 1, "cpu", lambda line: None, together=3)
    named = zip((first, second, third), lines, strict=True)
    assert failed == [f"{run}: {line}" for run, line in named]


def test_grid_killed_twice_and_asked_again(store, forked, tmp_path, monkeypatch):
    """After SIGKILL at random moments of its work, the record is that of an undisturbed run.

    What is killed are processes of their own, and what they started.
    """
    settings = replace(TINY, iterations=8, epoch_iterations=1)
    planned = [Planned("a", settings)]
    script = (
        "import sys, json; from metanb.grids import definitions, runner; "
        "from metanb.settings import from_dict; "
        "settings = from_dict(json.loads(sys.argv[1])); "
        "runner.run_grid([definitions.Planned('a', settings)], 1, 'cpu', print)"
    )
    command = [sys.executable, "-c", script, json.dumps(settings.to_dict())]
    rng = random.Random(0)
    path = store / f"{settings.id}.pt"
    saved = None
    for _ in range(2):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        while not path.exists() or path.stat().st_mtime_ns == saved:
            assert process.poll() is None, "the run is too short to be killed twice"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))  # in an iteration, a measurement or a checkpoint
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        saved = path.stat().st_mtime_ns
    assert states(planned, []) == ["begun"]
    assert runner.run_grid(planned, 1, "cpu", lambda line: None) == []
    resumed = records.find_record(settings)
    assert resumed.provenance["resumed"] == 2
    assert {path.suffix for path in store.iterdir()} == {".pt", ".lock", ""}  # no scraps
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    assert experiment.run(settings, "cpu").measures.equals(resumed.measures)


def test_a_spent_budget_stops_the_runs_and_records_how_far_they_got(
    store, forked, tmp_path, monkeypatch
):
    longer = replace(TINY, iterations=30_000, final_tasks=5)
    planned = [Planned("a", longer), Planned("a", replace(longer, seed=1))]
    lines = []
    reach = 0  # the epoch from which on the budget is spent

    def clock():
        path = run_store.checkpoint_path(longer.id)
        return 600.0 * (path.exists() and checkpoint.read_checkpoint(path)["epoch"] >= reach)

    monkeypatch.setattr(runner, "monotonic", clock)
    # epochs of 3 iterations
    assert runner.run_grid(planned[1:], 1, "cpu", lambda line: None, until=4) == []
    (short,) = progress.find_recorded(planned)
    assert (short.settings.seed, short.epochs) == (1, 2)
    planned = planned[:1]
    reach = 2
    assert runner.run_grid(planned, 1, "cpu", lines.append, budget=9) == []
    (stopped,) = progress.find_recorded(planned)
    assert (
        not stopped.finished
        and stopped.epochs >= 2
        and "final_accuracy" in set(stopped.measures.measure)
    )
    assert lines[-1] == f"stopped: {longer.id} at iteration {3 * stopped.epochs:,}, {stopped.path}"
    assert states(planned, [stopped]) == [f"to {3 * stopped.epochs:,}"]
    reach = stopped.epochs + 2
    assert runner.run_grid(planned[:1], 1, "cpu", lambda line: None, budget=9) == []
    (further,) = progress.find_recorded(planned)
    assert further.epochs >= reach and not stopped.path.exists()
    shared = further.measures.merge(stopped.measures, on=["epoch", "measure"])
    assert (shared.mean_x == shared.mean_y).all() and len(shared) > 20 * stopped.epochs


def test_grids_move_between_machines(store, tmp_path, monkeypatch):
    monkeypatch.setattr(run_store, "record_folders", lambda: [run_store.store_folder()])
    planned = [Planned("base", replace(TINY, seed=seed)) for seed in range(2)]
    monkeypatch.setitem(definitions.GRIDS, "paper", lambda: planned)
    options = ["--only", "s0", "--keep-weights", "--export", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, ["grid", "paper", *options])
    kept = store / TINY.id / records.WEIGHTS
    assert done.exit_code == 0, done.output
    packed = tmp_path / "out" / "paper-01.zip"
    assert done.stdout.splitlines()[-2:] == [f"weights: {kept}", f"exported: {packed}"]
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    options = ["--import", str(tmp_path / "out"), "--list"]
    done = CliRunner().invoke(cli, ["grid", "paper", *options])
    assert (
        done.exit_code == 0
        and "2 runs, 1 recorded" in done.output
        and "imported: record" in done.output
    )
    assert records.find_record(TINY) is not None
    assert (tmp_path / "other" / TINY.id / records.WEIGHTS).read_bytes() == kept.read_bytes()
    done = CliRunner().invoke(cli, ["grid", "paper", "--budget", "0"])
    assert done.exit_code == 0 and records.find_record(replace(TINY, seed=1)) is None


def test_paper_is_well_formed():
    planned = definitions.paper_grid()
    settings = [run.settings for run in planned]
    assert len({run.id for run in settings}) == len(settings)
    assert [run.seed for run in settings] == sorted(run.seed for run in settings)
    assert all(scale_of(run) == "paper" and run.iterations == 60_000 for run in settings)
    base = {(s.dataset, s.ways, s.shots, s.algorithm) for s in settings if s.regulariser == "none"}
    sets = [("omniglot", n, k) for n in (5, 20) for k in (1, 5)] + [
        ("mini-imagenet", 5, 1),
        ("mini-imagenet", 5, 5),
    ]
    assert base == {
        (*setting, algorithm) for setting in sets for algorithm in ("maml", "fomaml", "finetune")
    }
    strengths = Counter((run.regulariser, run.gamma) for run in settings if run.gamma)
    middle = definitions.PAPER_GAMMAS[1]
    assert strengths == dict.fromkeys(
        (("adapted", gamma) for gamma in definitions.PAPER_GAMMAS), 10
    ) | {("random", middle): 10}
    assert all(
        (run.dataset, run.ways, run.shots) == ("omniglot", 20, 1) for run in settings if run.gamma
    )
    assert "mini-imagenet-5w1s-fomaml-s0" in settings[4].id
    summed = [run for run in settings if run.inner_loss == "sum"]
    assert Counter(run.algorithm for run in summed) == dict.fromkeys(
        ("maml", "fomaml", "finetune"), 5
    )
    assert {replace(run, inner_loss="mean") for run in summed} == {
        run
        for run in settings
        if (run.dataset, run.ways, run.shots, run.inner_loss) == ("omniglot", 5, 1, "mean")
    }


def test_list_counts_as_the_run_would(store, tmp_path, monkeypatch):
    longer = replace(TINY, iterations=12)
    monkeypatch.setattr(run_store, "record_folders", lambda: [store])
    monkeypatch.setitem(
        definitions.GRIDS,
        "paper",
        lambda: [Planned("a", replace(longer, seed=seed)) for seed in range(2)],
    )
    experiment.run(longer, "cpu", until=6)
    monkeypatch.setattr(Timings, "estimate", lambda *_: Estimate(40.0))
    for until, n, epochs in ((6, 1, 2), (9, 0, 4)):
        done = CliRunner().invoke(cli, ["grid", "paper", "--list", "--until", str(until)])
        assert f"2 runs, {n} recorded; the others take about {10 * epochs} min" in done.output, (
            done.output
        )
    done = CliRunner().invoke(cli, ["grid", "paper", "--list", "--export", str(tmp_path / "out")])
    assert done.exit_code == 2 and "--budget 0" in done.output and not (tmp_path / "out").exists()


def test_at_paper_scale_has_the_runs_of_the_groups_that_are_asked_for(store, monkeypatch):
    monkeypatch.setattr(progress, "find_recorded", list)  # as if all were recorded
    base = [record.settings for record in progress.recorded_at_paper_scale("omniglot", 20, 1)]
    assert len(base) == 15 and {s.regulariser for s in base} == {"none"}
    assert [s.algorithm for s in base] == ["maml"] * 5 + ["fomaml"] * 5 + ["finetune"] * 5
    both = [
        record.settings
        for record in progress.recorded_at_paper_scale("omniglot", 20, 1, ["base", "regulariser"])
    ]
    assert len(both) == 55 and {(s.dataset, s.ways, s.shots) for s in both} == {("omniglot", 20, 1)}


def test_list_of_an_empty_store(store, monkeypatch):
    monkeypatch.setattr(run_store, "record_folders", lambda: [store])
    done = CliRunner().invoke(cli, ["grid", "quick", "--list", "--only", "few-classes"])
    assert done.exit_code == 0, done.output
    assert done.output.count("missing") == 28 and "28 runs, 0 recorded" in done.output


def test_claims_prints_the_ledger(store, monkeypatch):
    monkeypatch.setattr(run_store, "record_folders", lambda: [store])
    done = CliRunner().invoke(cli, ["claims"])
    assert done.exit_code == 1 and "metanb grid quick" in done.output
    runs = [replace(TINY, seed=seed, iterations=12) for seed in range(3)]  # 4 epochs, the least
    experiment.run_all(runs, "cpu", together=3)
    done = CliRunner().invoke(cli, ["claims"])
    assert done.exit_code == 0 and "C1, first peak" in done.output and "Holm" in done.output
    done = CliRunner().invoke(cli, ["claims", "--json", "--records", str(store)])
    assert {row["claim"] for row in json.loads(done.output)} >= {"C1", "C2", "C3", "C4", "C5", "C6"}


def test_a_failing_grid_ends_in_one_line_and_not_zero(store, forked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METANB_DATA", str(tmp_path / "data"))
    bad = preset("smoke", "mini-imagenet")
    monkeypatch.setitem(
        definitions.GRIDS, "quick", lambda: [Planned("absent", bad), Planned("there", TINY)]
    )
    monkeypatch.setattr(sys, "argv", ["metanb", "grid", "quick", "--only", "absent"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and err.startswith(f"Error: 1 of 1 runs failed: {bad.id}")
    assert err.count("\n") == 1 and "FAILED" in out and TINY.id not in out
    shown("A run of a grid fails", err)
