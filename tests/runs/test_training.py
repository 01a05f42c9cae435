"""Runs side by side against the same runs alone, killed or not.

In float64 they agree to 1e-12, in float32 within rounding.
"""

import gc
import json
import random
import signal
import sys
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tqdm import tqdm

from metanb.cli import main
from metanb.data.tasks import scale_pixels
from metanb.labels import ALGORITHMS
from metanb.maml import algorithms
from metanb.maml.engine import Engine
from metanb.runs import checkpoint, cohorts, experiment, records, training
from metanb.runs import store as run_store
from metanb.settings import preset
from tests.support.bad_days import shown
from tests.support.cohorts import new_cohort
from tests.support.command_line import call
from tests.support.processes import Process
from tests.support.runs import SMALL

TINY = preset("smoke", "glyphs", iterations=4, epoch_iterations=2, **SMALL)
KINDS = [{"algorithm": "finetune"}, {"train_classes": 6}] + [
    {"algorithm": order, "regulariser": name, "gamma": 0.0 if name == "none" else 0.3}
    for order in ("maml", "fomaml")
    for name in ALGORITHMS[order].regularisers
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    return tmp_path


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setattr(cohorts, "scale_pixels", lambda pixels: scale_pixels(pixels).double())


def seeds(n, **options):
    """Runs that differ by seeds alone; with few classes, by those that are kept, too."""
    few = "train_classes" in options
    return [replace(TINY, seed=seed, class_seed=seed if few else 0, **options) for seed in range(n)]


def trained(cohort, epochs):
    """The statistics of some epochs, and the weights after them."""
    stats = []
    for _ in range(epochs):
        with tqdm(disable=True) as bar:
            stats.append(cohort.train(bar))
        cohort.keep()
        for state in cohort.states:
            state.epoch += 1
    return stats, cohort.theta


@pytest.mark.parametrize("options", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_together_they_learn_what_they_learn_alone(options, double):
    """Four iterations in float64; the images read from the host, or once for all runs."""
    runs = seeds(2, inner_steps=2, **options)
    alone = [trained(new_cohort([settings], dtype=torch.float64), 2) for settings in runs]
    for resident in (False, True):
        stats, theta = trained(new_cohort(runs, Engine(resident=resident), dtype=torch.float64), 2)
        for i, (expected, weights) in enumerate(alone):
            assert (theta[i] - weights[0]).norm() < 1e-12 * weights.norm()
            for epoch in range(2):
                assert stats[epoch][i].keys() == expected[epoch][0].keys()
                for name, stat in expected[epoch][0].items():
                    assert stats[epoch][i][name].mean == pytest.approx(stat.mean, rel=1e-11), name
        assert (theta[0] - theta[1]).norm() > 0.1 * theta[0].norm()


@pytest.mark.parametrize("algorithm", ["maml", "finetune"])
def test_records_are_those_of_runs_alone_but_for_rounding(tmp_path, monkeypatch, algorithm):
    runs = seeds(3, algorithm=algorithm, final_tasks=5)
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "alone"))
    alone = experiment.run_all(runs, "cpu")
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "together"))
    together = experiment.run_all([*runs, runs[0]], "cpu", together=3)
    assert together[0].path == together[3].path  # asked for twice, it is one run
    for by_itself, in_batch, settings in zip(alone, together, runs, strict=False):
        assert by_itself.settings == in_batch.settings == settings
        assert (by_itself.provenance["together"], in_batch.provenance["together"]) == (1, 3)
        assert in_batch.provenance["shared_seconds"] == pytest.approx(
            in_batch.provenance["wall_seconds"] / 3, abs=0.2
        )
        assert by_itself.measures[["epoch", "measure", "n"]].equals(
            in_batch.measures[["epoch", "measure", "n"]]
        )
        assert np.allclose(
            by_itself.measures["mean"], in_batch.measures["mean"], rtol=2e-3, atol=1e-4
        )


def test_a_run_begun_alone_goes_on_among_others_and_the_other_way(tmp_path, monkeypatch):
    """They stand at different epochs, and each goes on from its own."""
    runs = seeds(3, iterations=3, epoch_iterations=1)
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "whole"))
    whole = experiment.run_all(runs, "cpu")
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "parts"))
    experiment.run(runs[1], "cpu", until=1)
    experiment.run_all(runs[:2], "cpu", until=2, together=2)
    experiment.run(runs[0], "cpu")
    parts = experiment.run_all(runs, "cpu", together=3)
    assert [record.provenance["resumed"] for record in parts] == [1, 2, 0]
    assert [str(record.provenance["together"]) for record in parts] == ["2, 1", "1, 2", "2, 1"]
    for undisturbed, in_parts in zip(whole, parts, strict=True):
        assert undisturbed.measures[["epoch", "measure"]].equals(
            in_parts.measures[["epoch", "measure"]]
        )
        assert np.allclose(
            undisturbed.measures["mean"], in_parts.measures["mean"], rtol=2e-2, atol=2e-3
        )


def test_a_checkpoint_of_the_first_version_goes_on(tmp_path, monkeypatch):
    """It lacks what is noted since: how many runs shared the time, and how it was computed."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    experiment.run(TINY, "cpu", until=2)
    path = run_store.checkpoint_path(TINY.id)
    values = torch.load(path, weights_only=True)
    del values["shared"]
    for name in ("together", "precision", "engine"):
        del values["origin"][name]
    torch.save(values, path)
    assert checkpoint.read_checkpoint(path)["shared"] == values["wall"]
    record = experiment.run(TINY, "cpu")
    assert (
        record.finished
        and record.provenance["together"] == 1
        and record.provenance["precision"] == "float32"
    )


def diverging(monkeypatch, run, call):
    """From its `call`-th iteration on, the loss of one run of three is not a number."""
    honest = algorithms.meta_gradient
    calls = []

    def diverges(*args, **kwargs):
        calls.append(1)
        outcome = honest(*args, **kwargs)
        losses = outcome.losses.clone().view(len(kwargs["theta"]), -1)
        if len(losses) == 3 and len(calls) >= call:
            losses[run] = float("nan")
        return outcome._replace(losses=losses.flatten())

    monkeypatch.setattr(algorithms, "meta_gradient", diverges)


def test_a_value_with_a_comma_is_noted_once():
    xeon = "Intel Xeon Processor (Skylake, IBRS) (AVX2)"
    state = checkpoint.State(preset("smoke"), None, None, {})
    for _ in range(3):
        state.note("device", xeon)
    assert state.origin["device"] == xeon
    for device in ("NVIDIA A", xeon, "NVIDIA A", "NVIDIA", xeon):
        state.note("device", device)
    assert state.origin["device"] == f"{xeon}, NVIDIA A, NVIDIA"
    for number in (1, 10, 1, 0, 10):
        state.note("together", number)
    assert state.origin["together"] == "1, 10, 0"


def test_a_run_that_diverges_is_set_aside_and_the_others_go_on(store, monkeypatch, capsys):
    runs = seeds(3)
    diverging(monkeypatch, run=1, call=4)
    with pytest.raises(
        cohorts.DivergedError, match=rf"{runs[1].id}: loss is nan.*iteration 3.*epoch 1 is kept"
    ):
        experiment.run_all(runs, "cpu", together=3)
    shown("A run of a batch diverges", capsys.readouterr().err)
    assert (
        records.find_record(runs[1]) is None
        and checkpoint.read_checkpoint(store / f"{runs[1].id}.pt")["epoch"] == 1
    )
    for settings in (runs[0], runs[2]):
        record = records.find_record(settings)
        assert record.finished and np.isfinite(record.measures["mean"]).all()
    assert experiment.run(runs[1], "cpu").finished  # alone, its loss is a number here


def test_a_run_without_curvature_is_set_aside_and_the_others_are_measured(
    store, monkeypatch, capsys
):
    """Measured together they fail; one by one the culprit is told."""
    runs = seeds(3)
    honest = training.measure_together

    def fails(net, theta, test, valid, settings):
        if runs[2] in settings and measured.append(len(settings)) is None and len(measured) > 1:
            raise training.LandscapeError("loss of task 3 is nan")
        return honest(net, theta, test, valid, settings)

    measured = []
    monkeypatch.setattr(training, "measure_together", fails)
    with pytest.raises(
        cohorts.DivergedError, match=rf"{runs[2].id}: loss of task 3 is nan, after epoch 1"
    ):
        experiment.run_all(runs, "cpu", together=3)
    assert measured == [3, 3, 1]
    assert all(records.find_record(settings).finished for settings in runs[:2])


def test_a_batch_that_does_not_fit_is_halved_and_said(store, monkeypatch, capsys):
    runs = seeds(5)
    honest = algorithms.meta_gradient
    sizes = []

    def full(*args, **kwargs):
        sizes.append(len(kwargs["theta"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return honest(*args, **kwargs)

    monkeypatch.setattr(algorithms, "meta_gradient", full)
    made = experiment.run_all(runs, "cpu", together=5)
    assert [record.settings for record in made] == runs and all(record.finished for record in made)
    assert sizes[0] == 5 and sizes[1] == 3 and set(sizes[2:]) == {1, 2}
    lines = capsys.readouterr().err.splitlines()
    shown("A batch of runs does not fit into the GPU's memory", lines[0])
    assert lines == [
        "5 runs together do not fit into memory: going on with 3 at a time",
        "3 runs together do not fit into memory: going on with 2 at a time",
    ]


def test_a_run_that_diverges_in_one_half_leaves_the_other_half_alone(store, monkeypatch, capsys):
    """Four runs fit in pairs alone; one of the first pair diverges."""
    runs = seeds(4)
    honest = algorithms.meta_gradient

    def full(*args, **kwargs):
        if len(kwargs["theta"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        outcome = honest(*args, **kwargs)
        calls.append(1)
        losses = outcome.losses.clone().view(len(kwargs["theta"]), -1)
        if len(calls) == 3:  # of the first pair
            losses[0] = float("nan")
        return outcome._replace(losses=losses.flatten())

    calls = []
    monkeypatch.setattr(algorithms, "meta_gradient", full)
    with pytest.raises(cohorts.DivergedError, match=rf"{runs[0].id}: loss is nan"):
        experiment.run_all(runs, "cpu", together=4)
    assert records.find_record(runs[0]) is None and all(
        records.find_record(settings).finished for settings in runs[1:]
    )


def test_a_torn_checkpoint_sets_its_run_aside_alone(store, capsys):
    runs = seeds(3)
    experiment.run_all(runs, "cpu", until=2, together=3)
    path = run_store.checkpoint_path(runs[1].id)
    path.write_bytes(b"torn")
    with pytest.raises(records.RecordError, match=rf"{runs[1].id}.pt cannot be read"):
        experiment.run_all(runs, "cpu", together=3)
    assert f"set aside: checkpoint {path} cannot be read" in capsys.readouterr().err
    assert all(records.find_record(settings).finished for settings in (runs[0], runs[2]))


def test_a_cohort_that_is_dropped_is_gone_at_once():
    """Its memory, a GPU's graph above all, must not wait for the collector."""
    gc.disable()
    try:
        cohort = new_cohort(seeds(2))
        cohort.gradient(*cohort._draw([0, 0]))
        alive = weakref.ref(cohort)
        del cohort
        assert alive() is None
    finally:
        gc.enable()


def test_provenance_tells_what_was_on_and_not_what_was_asked_for(store, monkeypatch, capsys):
    monkeypatch.setattr(cohorts.TrainingImages, "_copy", out_of_memory)
    monkeypatch.setattr(
        experiment, "choose_engine", lambda device, together: Engine(2, resident=True)
    )
    (record, _) = experiment.run_all(seeds(2), "cpu", until=2)
    assert record.provenance["engine"] == "plain"


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.\nMore lines")


def test_images_that_do_not_fit_on_the_device_stay_on_the_host(monkeypatch, capsys):
    settings = seeds(2)
    expected = trained(new_cohort(settings), 1)[1]
    monkeypatch.setattr(cohorts.TrainingImages, "_copy", out_of_memory)
    assert torch.equal(trained(new_cohort(settings, Engine(resident=True)), 1)[1], expected)
    shown("An image set does not fit on the GPU", capsys.readouterr().err)


def test_runs_that_differ_in_more_than_seeds_are_batches_of_their_own(store):
    runs = [
        TINY,
        replace(TINY, inner_lr=0.1),
        replace(TINY, seed=1),
        replace(TINY, seed=1, inner_lr=0.1),
    ]
    made = experiment.run_all(runs, "cpu", until=2, together=4)
    assert [record.settings for record in made] == runs
    assert [record.provenance["together"] for record in made] == [2] * 4
    with pytest.raises(ValueError, match="together is 0: at least 1"):
        experiment.run_all(runs, "cpu", together=0)


def start(runs, folder):
    folder.mkdir(exist_ok=True)
    listed = folder / "runs.json"
    listed.write_text(json.dumps([settings.to_dict() for settings in runs]))
    return Process(folder, "train", "--device", "cpu", "--together", 3, "--runs", listed)


def test_killed_at_random_moments_and_resumed_in_other_groups_the_records_are_those_undisturbed(
    tmp_path,
):
    """Three kills of a batch of three, each time in another group; then the rest goes on."""
    runs = seeds(3, iterations=8, epoch_iterations=1)
    groups = [runs, runs[1:], [runs[2], runs[0]]]
    chance = random.Random(0)
    for group in groups:
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.pt")}
        child = start(group, tmp_path / "killed")
        while {
            path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.pt")
        } == before:
            assert child.poll() is None, child.err
            time.sleep(0.01)
        time.sleep(0.3 * chance.random())
        child.send_signal(signal.SIGKILL)
        child.wait()
    for folder, group in (("killed", runs), ("whole", runs)):
        child = start(group, tmp_path / folder)
        assert child.wait() == 0, child.err
    for settings in runs:
        killed, whole = (
            records.read_record(tmp_path / folder / settings.id) for folder in ("killed", "whole")
        )
        assert killed.finished and killed.provenance["resumed"] >= 2
        assert killed.measures[["epoch", "measure", "n"]].equals(
            whole.measures[["epoch", "measure", "n"]]
        )
        assert np.allclose(killed.measures["mean"], whole.measures["mean"], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("content", ["", "[]", "3", '["a"]', "{", "\xff", "[" * 100_000])
def test_a_list_of_runs_that_is_none(tmp_path, capsys, monkeypatch, content):
    path = tmp_path / "runs.json"
    path.write_text(content, encoding="latin-1")
    monkeypatch.setattr(sys, "argv", ["metanb", "train", "--runs", str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    shown("A list of runs is no list of runs", capsys.readouterr().err)


@pytest.mark.parametrize("setting", ["algorithm", "network", "dataset", "adapts", "ways"])
def test_a_list_where_a_word_belongs(tmp_path, capsys, monkeypatch, setting):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({setting: ["maml"]}))
    code, _, err = call(capsys, monkeypatch, "train", "--runs", path)
    assert code == 1 and err.startswith(f"Error: --runs {path}: {setting}=['maml'] ")
    assert err.count("\n") == 1


def test_runs_of_a_list_take_no_further_settings(tmp_path, capsys, monkeypatch):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(TINY.to_dict()))
    for option, value in (("--seed", "1"), ("--scale", "paper")):
        monkeypatch.setattr(sys, "argv", ["metanb", "train", "--runs", str(path), option, value])
        with pytest.raises(SystemExit):
            main()
        assert f"--runs names every setting: leave out {option}" in capsys.readouterr().err
