"""Runs, bit for bit: repeated, killed and resumed, asked for twice.

One run's measures are compared with a plain loop by hand.
"""

import random
import signal
import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metanb.data import image_sets
from metanb.data.tasks import sample_tasks
from metanb.files import LockedError
from metanb.labels import ALGORITHMS
from metanb.landscape import hessian
from metanb.maml import algorithms
from metanb.runs import checkpoint, cohorts, experiment, machine, records, training
from metanb.runs import store as store_of_runs
from metanb.settings import CHOICES, preset
from tests.support.bad_days import shown
from tests.support.cohorts import new_cohort
from tests.support.processes import Process
from tests.support.runs import SMALL

VARIED = SMALL | {"test_tasks": 3, "iterations": 4, "epoch_iterations": 2}
TINY = preset("smoke", "glyphs", **VARIED)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    return tmp_path


def measures(folder, settings=TINY):
    return (folder / settings.id / "measures.csv").read_bytes()


def test_seed_repeats_a_run_to_the_bit(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        monkeypatch.setenv("METANB_STORE", str(tmp_path / folder))
        experiment.run(TINY, "cpu")
    assert measures(tmp_path / "a") == measures(tmp_path / "b")
    other_seed = experiment.run(replace(TINY, seed=1), "cpu")
    assert measures(tmp_path / "b", other_seed.settings) != measures(tmp_path / "b")


def test_a_recorded_run_is_read_not_trained(store, monkeypatch):
    first = experiment.run(TINY, "cpu")
    monkeypatch.setattr(training, "train_together", None)  # calling it would raise
    assert experiment.run(TINY, "cpu").path == first.path


def test_measures_are_there_at_each_epoch(store):
    record = experiment.run(TINY, "cpu")
    by_epoch = record.measures.groupby("epoch").measure.agg(set)
    assert list(by_epoch.index) == [0, 1, 2]
    assert by_epoch[0] | {"train_loss"} == by_epoch[2]
    assert np.isfinite(record.measures[["mean", "median", "std", "sem"]]).all().all()
    assert record.provenance["data"].keys() == {"train", "valid", "test"}


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_processors_of_one_name_are_told_apart(monkeypatch, capability):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(
        "pathlib.Path.read_text", lambda _: "flags\t: avx2\nmodel name\t: AMD EPYC\n"
    )
    assert machine.device_name(torch.device("cpu")) == f"AMD EPYC ({capability})"


def test_measures_against_a_plain_loop(store):
    """Loss, accuracy, distance and gradients, task by task, without higher or chunks."""
    record = experiment.run(TINY, "cpu")
    net = experiment.trained_net(TINY, "cpu").double()
    rng = np.random.default_rng([0, cohorts.TEST])
    tasks = sample_tasks(image_sets.load_images("glyphs", "test"), 3, 3, 1, 2, rng)
    expected = {"support_loss_before": [], "support_loss": [], "query_accuracy": [], "distance": []}
    gradients = []
    for t in range(3):
        theta = dict(net.named_parameters())
        loss = F.cross_entropy(net(tasks.support_x[t].double()), tasks.support_y[t])
        slope = torch.autograd.grad(loss, list(theta.values()))
        moved = {
            name: p - TINY.inner_lr * g for (name, p), g in zip(theta.items(), slope, strict=True)
        }
        output = torch.func.functional_call(net, moved, (tasks.query_x[t].double(),))
        after = torch.func.functional_call(net, moved, (tasks.support_x[t].double(),))
        gradients.append(torch.cat([g.flatten() for g in slope]))
        expected["support_loss_before"].append(loss)
        expected["support_loss"].append(F.cross_entropy(after, tasks.support_y[t]))
        expected["query_accuracy"].append((output.argmax(1) == tasks.query_y[t]).double().mean())
        expected["distance"].append(TINY.inner_lr * gradients[-1].norm())
    for name, values in expected.items():
        last = record.curve(name).iloc[-1]
        assert last["mean"] == pytest.approx(float(sum(values).detach() / 3), rel=1e-4), name
        assert last["n"] == 3
    inner = torch.stack(
        [a @ b for i, a in enumerate(gradients) for j, b in enumerate(gradients) if i != j]
    ).mean()
    assert record.curve("gradient_coherence").iloc[-1]["mean"] == pytest.approx(
        float(inner), rel=1e-3
    )


def test_every_algorithm_has_a_gradient_of_its_own():
    gradients = {}
    for algorithm in CHOICES["algorithm"]:
        settings = replace(TINY, algorithm=algorithm, inner_steps=2)
        cohort = new_cohort([settings])
        cohort.gradient(*cohort._draw([0]))
        body = sum(p.numel() for p in cohort.net.blocks.parameters())
        gradients[algorithm] = cohort.weights[0].grad[:body].clone()
    for first, second in combinations(gradients, 2):
        assert not torch.allclose(gradients[first], gradients[second], rtol=1e-3), (
            f"{first} trains as {second} does"
        )


VARIANTS = (
    *({"algorithm": name} for name in ALGORITHMS),
    {"algorithm": "finetune", "test_head": "shared"},
    {"adapts": "head", "inner_loss": "sum"},
    {"regulariser": "through", "gamma": 0.5},
    {"algorithm": "fomaml", "regulariser": "random", "gamma": 0.5},
    {"train_classes": 6, "class_seed": 1},
)


@pytest.mark.parametrize("options", VARIANTS)
def test_every_kind_of_run_repeats_to_the_bit(tmp_path, monkeypatch, options):
    settings = replace(TINY, iterations=2, **options)
    for folder in ("a", "b"):
        monkeypatch.setenv("METANB_STORE", str(tmp_path / folder))
        run = experiment.run(settings, "cpu")
    assert measures(tmp_path / "a", settings) == measures(tmp_path / "b", settings)
    assert (
        np.isfinite(
            run.measures[["mean", "sem"]].drop(index=run.measures[run.measures.n == 0].index)
        )
        .all()
        .all()
    )
    moves = set(run.measures.measure) & {"relative_move"}
    assert bool(moves) == ("regulariser" in options)
    if moves:
        assert (run.curve("relative_move")["mean"] > 0).all()


def test_finetuning_learns_all_classes_and_its_body_is_kept(store):
    """The loss over all meta-train classes falls from about ln(classes); weights are read back."""
    options = {"ways": 5, "filters": 8, "iterations": 60, "epoch_iterations": 20, "outer_lr": 0.01}
    settings = replace(TINY, algorithm="finetune", **options)
    run = experiment.run(settings, "cpu")
    net = experiment.trained_net(settings, "cpu")
    classes = len(image_sets.load_images("glyphs", "train").classes)
    state = checkpoint.read_checkpoint(store_of_runs.checkpoint_path(settings.id))["net"]
    assert len(state["head.bias"]) == classes and net.head.out_features == settings.ways
    assert torch.equal(net.blocks[3].weight, state["blocks.3.weight"])
    losses = run.curve("train_loss")["mean"]
    assert (
        losses.iloc[0] == pytest.approx(np.log(classes), abs=0.7)
        and losses.iloc[-1] < losses.iloc[0] - 0.1
    )


def test_few_classes_are_the_data_that_a_run_records(store):
    few = experiment.run(replace(TINY, iterations=2, train_classes=6), "cpu")
    other_classes = experiment.run(
        replace(TINY, iterations=2, train_classes=6, class_seed=1), "cpu"
    )
    kept = training.load_split(few.settings, "train")
    assert len(kept.classes) == 6 and few.provenance["data"]["train"] == kept.digest
    assert other_classes.provenance["data"]["train"] != kept.digest
    assert other_classes.provenance["data"]["test"] == few.provenance["data"]["test"]


def _start(settings, folder):
    names = ("dataset", *VARIED)
    options = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in names]
    return Process(folder, "train", "--scale", "smoke", "--device", "cpu", *options)


def test_killed_at_four_moments_and_resumed_equals_unkilled(tmp_path):
    settings = replace(TINY, iterations=24)
    checkpoint = tmp_path / "killed" / f"{settings.id}.pt"
    chance = random.Random(0)
    saved = None
    for _ in range(4):
        process = _start(settings, tmp_path / "killed")
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == saved:
            assert process.poll() is None, process.err
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))  # in an iteration, a measurement or a checkpoint
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = checkpoint.stat().st_mtime_ns
        assert not (tmp_path / "killed" / settings.id).exists()
    for folder in ("killed", "whole"):
        process = _start(settings, tmp_path / folder)
        assert process.wait() == 0, process.err
    assert measures(tmp_path / "killed", settings) == measures(tmp_path / "whole", settings)
    assert records.read_record(tmp_path / "killed" / settings.id).provenance["resumed"] == 4


def test_terminated_it_says_how_to_go_on(tmp_path):
    settings = replace(TINY, iterations=6000)
    process = _start(settings, tmp_path)
    while not (tmp_path / f"{settings.id}.pt").exists():
        assert process.poll() is None, process.err
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    shown("You press Ctrl-C, or a scheduler ends the job", process.err)
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".lock"}


def test_two_processes_share_one_run(tmp_path):
    processes = [_start(TINY, tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0], processes[0].err + processes[1].err
    assert processes[0].out == processes[1].out != ""
    assert "it/s" not in processes[0].err  # no progress bar where nobody watches
    assert len(list(tmp_path.glob("*/measures.csv"))) == 1


def test_divergence_names_the_iteration_and_keeps_the_checkpoint(store, monkeypatch):
    honest = algorithms.meta_gradient
    calls = []

    def diverges(*args, **kwargs):
        calls.append(1)
        outcome = honest(*args, **kwargs)
        return outcome._replace(losses=outcome.losses * (float("nan") if len(calls) == 4 else 1.0))

    monkeypatch.setattr(algorithms, "meta_gradient", diverges)
    with pytest.raises(
        experiment.DivergedError,
        match=rf"{TINY.id}: loss is nan.*iteration 3.*inner_lr.*epoch 1 is kept",
    ):
        experiment.run(TINY, "cpu")
    assert torch.load(store / f"{TINY.id}.pt", weights_only=True)["epoch"] == 1
    assert records.find_record(TINY) is None


def test_torn_checkpoint_is_refused_by_name(store):
    (store / f"{TINY.id}.pt").write_bytes(b"torn")
    with pytest.raises(records.RecordError, match=rf"{TINY.id}.pt.*delete it") as error:
        experiment.run(TINY, "cpu")
    shown("A checkpoint is torn", f"Error: {error.value}")
    (store / f"{TINY.id}.pt").unlink()
    assert experiment.run(TINY, "cpu").finished


def test_checkpoint_of_other_data_is_refused(store, monkeypatch):
    honest = image_sets.load_images
    experiment.run(TINY, "cpu")
    (store / TINY.id).rename(store / "elsewhere")

    def other(dataset, split, **options):
        return replace(honest(dataset, split, **options), digest="0" * 16)

    monkeypatch.setattr(image_sets, "load_images", other)
    with pytest.raises(
        records.RecordError, match=rf"{TINY.id}.pt was made from other data: delete it"
    ) as error:
        experiment.run(TINY, "cpu")
    shown("A checkpoint was made from other data", f"Error: {error.value}")
    monkeypatch.setattr(image_sets, "load_images", honest)
    assert experiment.run(TINY, "cpu").provenance["resumed"] == 1


def test_uncertain_measure_ends_the_run_by_name(store, monkeypatch):
    def fails(*_):
        raise training.LandscapeError("no Hessian norm there")

    monkeypatch.setattr(hessian, "hessian_norms", fails)
    with pytest.raises(
        experiment.DivergedError,
        match=rf"{TINY.id}: no Hessian norm there, after epoch 0.*inner_lr",
    ):
        experiment.run(TINY, "cpu")


def test_a_stopped_run_is_recorded_as_far_as_it_got_and_goes_on(store, monkeypatch, tmp_path):
    settings = replace(TINY, iterations=6, final_tasks=5)
    honest = training.measure_together

    def stops(*arguments):
        if len(stops.calls) == 3:
            raise KeyboardInterrupt
        stops.calls.append(1)
        return honest(*arguments)

    assert experiment.record_so_far(settings, "cpu") is None
    monkeypatch.setattr(training, "measure_together", stops)
    stops.calls = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        experiment.run(settings, "cpu")
    # the untrained network alone is no run
    assert experiment.record_so_far(settings, "cpu") is None
    stops.calls = [1]
    with pytest.raises(KeyboardInterrupt):
        experiment.run(settings, "cpu")
    monkeypatch.setattr(training, "measure_together", honest)
    stopped = experiment.record_so_far(settings, "cpu")
    assert (
        stopped.epochs == 2 and not stopped.finished and stopped.path.name == f"{settings.id}-to-4"
    )
    whole = experiment.run(settings, "cpu")
    assert whole.finished and whole.provenance["resumed"] == 2 and not stopped.path.exists()
    early = whole.measures[(whole.measures.epoch <= 2)].reset_index(drop=True)
    is_final = stopped.measures.measure.str.startswith("final_accuracy")
    assert early.equals(stopped.measures[~is_final])
    assert list(stopped.curve("final_accuracy").index) == [2] and list(
        whole.curve("final_accuracy").index
    ) == [3]
    assert experiment.record_so_far(settings, "cpu").path == whole.path


def test_a_run_until_an_iteration_is_the_whole_runs_beginning(store):
    settings = replace(TINY, iterations=8)
    part = experiment.run(settings, "cpu", until=5)  # epochs of 2: the third reaches it
    assert part.epochs == 3 and part.path.name == f"{settings.id}-to-6"
    assert experiment.run(settings, "cpu", until=6).path == part.path  # read, not trained
    whole = experiment.run(settings, "cpu")
    assert whole.finished and whole.upto(3).measures.equals(part.measures)
    assert experiment.run(settings, "cpu", until=4).path == whole.path
    assert experiment.run(TINY, "cpu", until=1000).finished


def test_until_is_an_iteration(store):
    assert experiment.run(TINY, "cpu", until=0).epochs == 0
    with pytest.raises(ValueError, match="^until is -5: give an iteration, 0 or later$"):
        experiment.run(TINY, "cpu", until=-5)


@pytest.mark.parametrize("epoch", [-1, 3])
def test_networks_after_epochs_that_a_run_does_not_have_are_refused(store, monkeypatch, epoch):
    monkeypatch.setattr(training, "train_together", None)  # calling it would raise
    with pytest.raises(ValueError, match=f"^epoch is {epoch}: give one from 0 to 2$"):
        experiment.nets_after(TINY, iter([1, epoch]), "cpu")
    assert list(store.iterdir()) == []


def test_recording_a_run_that_another_process_trains_names_it(store):
    experiment.run(TINY, "cpu", until=2)
    with store_of_runs.lock_run(TINY.id), pytest.raises(LockedError) as error:
        experiment.record_so_far(TINY, "cpu")
    assert str(error.value).startswith(
        f"run {TINY.id} is still in use by another process after 5 s"
    )


def test_final_accuracies_against_a_plain_loop(store):
    """130 tasks, drawn in parts of 60 from streams of their own, each adapted by hand."""
    settings = replace(TINY, iterations=2, final_tasks=130)
    record = experiment.run(settings, "cpu")
    net = experiment.trained_net(settings, "cpu").double()
    test = image_sets.load_images("glyphs", "test")
    for measure, queries in (("final_accuracy", 2), ("final_accuracy_finn", 1)):
        accuracies = []
        for part, n in enumerate((60, 60, 10)):
            tasks = sample_tasks(test, n, 3, 1, queries, np.random.default_rng([0, 3 + part]))
            for x, y, query_x, query_y in zip(
                tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True
            ):
                theta = dict(net.named_parameters())
                loss = F.cross_entropy(net(x.double()), y)
                slope = torch.autograd.grad(loss, list(theta.values()))
                moved = {
                    name: p - settings.inner_lr * g
                    for (name, p), g in zip(theta.items(), slope, strict=True)
                }
                output = torch.func.functional_call(net, moved, (query_x.double(),))
                accuracies.append(float((output.argmax(1) == query_y).double().mean()))
        last = record.curve(measure).iloc[-1]
        assert last["n"] == 130, measure
        assert last["mean"] == pytest.approx(np.mean(accuracies), abs=2e-3), measure


def test_finn_et_als_meta_test():
    omniglot, many, colour = (
        training.as_finn_et_al_test(preset("paper", *setting))
        for setting in (("omniglot", 5, 1), ("omniglot", 20, 5), ("mini-imagenet", 5, 5))
    )
    assert (omniglot.test_queries, omniglot.test_steps) == (1, 3)
    assert (many.test_queries, many.test_steps) == (5, 5)
    assert (colour.test_queries, colour.test_steps) == (5, 10)


def test_unknown_device(store):
    with pytest.raises(ValueError, match="'tpu'.*'cpu'"):
        experiment.run(TINY, "tpu")


def test_chunks_change_a_run_by_rounding_alone(tmp_path, monkeypatch):
    """One task at a time gives the same measures."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "whole"))
    whole = experiment.run(TINY, "cpu").measures
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "single"))
    monkeypatch.setattr(algorithms, "chunk_size", lambda *_: 1)
    single = experiment.run(TINY, "cpu").measures
    assert not single.equals(whole)  # the chunks were others
    assert np.allclose(whole["mean"], single["mean"], rtol=1e-3, atol=1e-4)
