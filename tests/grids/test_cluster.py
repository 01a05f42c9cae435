"""Grids as jobs: what the Snakefile asks of metanb, and Snakemake itself on the tiniest of runs.

Evidence: counts worked out by hand; records of `metanb train`, made by no Snakemake; and where
Snakemake is installed, its exit codes and the files that it leaves. A real SLURM is tried by hand:
tests/slurm.sh.
"""

import importlib.util
import os
import subprocess
import sys

import pandas as pd
import pytest

from metanb.grids import definitions, progress
from metanb.grids.definitions import Planned
from metanb.runs import experiment, records
from metanb.runs import store as run_store
from metanb.settings import preset, scale_of
from tests.support.paths import ROOT

needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None,
    reason="Snakemake is not installed: pip install 'metanb[cluster]'",
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def snakemake(folder, *config, options=("--cores", "1", "--keep-going")):
    """Run Snakemake on the repository's Snakefile, in a folder of its own: exit code and output."""
    words = [
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        folder,
        *options,
        "--config",
        *config,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_smoke_is_well_formed():
    runs = [planned.settings for planned in definitions.smoke_grid()]
    assert len({run.id for run in runs}) == len(runs) == 6
    assert all(scale_of(run) == "smoke" and run.dataset == "glyphs" for run in runs)
    assert [run.seed for run in runs] == [0, 0, 0, 1, 1, 1]
    assert {run.algorithm for run in runs} == {"maml", "fomaml", "finetune"}


def test_missing_by_hand(tmp_path):
    def record(settings, epochs):
        return records.Record(settings, pd.DataFrame({"epoch": range(epochs + 1)}), {}, tmp_path)

    # 4 epochs of 15 iterations
    settings = [preset("smoke", "glyphs", seed=seed) for seed in range(3)]
    planned = [Planned("a", run) for run in settings]
    recorded = [record(settings[0], 4), record(settings[1], 2)]
    assert progress.find_missing(planned, recorded) == settings[1:]
    assert progress.find_missing(planned, recorded, until=30) == settings[2:]
    assert progress.find_missing(planned, recorded, until=31) == settings[1:]


def test_texts_of_jobs_beside_the_records_are_no_records(store):
    tiny = preset(
        "smoke", "glyphs", filters=4, iterations=4, epoch_iterations=2, test_tasks=3, test_queries=2
    )
    record = experiment.run(tiny, "cpu")
    for ending in ("out", "log"):
        (store / f"{tiny.id}.{ending}").write_text("a job's\n")
    assert [run.path for run in records.read_records(store)] == [record.path]
    assert records.find_record(tiny).path == record.path


@needs_snakemake
def test_what_is_recorded_is_no_job_and_what_is_missing_is_one(store, tmp_path):
    code, output = snakemake(tmp_path, "grid=smoke", "only=*-s1-*", options=("--dry-run",))
    assert code == 0 and "0 runs are recorded, 3 are missing" in output, output
    missing = definitions.select_runs(definitions.smoke_grid(), "*-s1-*")
    assert all(f"run={run.settings.id}" in output for run in missing)
    assert not list(tmp_path.glob("store/*"))
    quick = [planned.settings for planned in definitions.quick_grid()]
    committed = next(run for run in quick if (ROOT / "results" / run.id).is_dir())
    code, output = snakemake(tmp_path, "grid=quick", f"only={committed.id}", options=("--dry-run",))
    assert code == 0 and "1 runs are recorded, 0 are missing" in output, output
    assert "rule train" not in output, output


@needs_snakemake
def test_a_torn_checkpoint_fails_its_job_alone_and_keeps_its_log(store, tmp_path):
    """Without the cause, the same command makes that job, and a longer run goes on from there."""
    planned = definitions.select_runs(definitions.smoke_grid(), "*finetune*")
    bad, good = (run.settings for run in planned)
    store.mkdir()
    run_store.checkpoint_path(bad.id).write_text("torn")
    call = ("grid=smoke", "only=*finetune*", "until=10")
    code, output = snakemake(tmp_path, *call)
    assert code != 0 and bad.id in output, output
    assert "cannot be read" in (store / f"{bad.id}.log").read_text()
    assert not (store / f"{bad.id}.out").exists()
    assert run_store.checkpoint_path(bad.id).read_text() == "torn"
    made = records.find_record(good, 1)
    assert made.iterations == 10 and made.provenance["threads"] == 1
    assert str(made.path) in (store / f"{good.id}.out").read_text()
    run_store.checkpoint_path(bad.id).unlink()
    code, output = snakemake(tmp_path, *call)
    assert code == 0 and "1 runs are recorded, 1 are missing" in output, output
    assert records.find_record(bad, 1).iterations == 10
    # its .out of until=10 is there
    code, output = snakemake(tmp_path, "grid=smoke", f"only={good.id}", "until=20")
    assert code == 0, output
    further = records.find_record(good, 2)
    assert further.provenance["resumed"] == 1 and not made.path.exists()


@needs_snakemake
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("untill=10", "unknown config untill: choose from grid, only, until, device, store"),
        ("grid=huge", "grid=huge is not one of smoke, quick, paper"),
        ("only=nothing", "no run of the grid matches 'nothing'"),
        ("until=abc", "until=abc is not a whole number of iterations above 0"),
        ("device=tpu", "device=tpu is not one of cpu, cuda"),
    ],
)
def test_what_is_mistyped_is_refused(config, words, store, tmp_path):
    code, output = snakemake(tmp_path, config, options=("--dry-run",))
    assert code != 0 and words in output and "Traceback" not in output
