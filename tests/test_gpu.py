"""What a GPU alone can show: replayed gradients are the CPU's, and whole runs are those of the CPU but for rounding."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from metanb import experiment, images
from metanb.adapt import flatten
from metanb.measures import measure
from metanb.replay import Replayed
from metanb.settings import REGULARISERS, preset
from metanb.tasks import sample_tasks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")
SMALL = preset("smoke", "glyphs", filters=8, iterations=6, epoch_iterations=2, inner_steps=2, test_steps=2,
               test_tasks=6, test_queries=3, final_tasks=6)  # fmt: skip
GRADIENTS = [{"algorithm": "finetune"}] + [
    {"algorithm": algorithm, "regulariser": name, "gamma": 0.0 if name == "none" else 0.3}
    for algorithm in ("maml", "fomaml") for name in REGULARISERS[algorithm]
]  # fmt: skip


@pytest.mark.parametrize("options", GRADIENTS, ids=lambda one: "-".join(map(str, one.values())))
def test_replays_are_the_cpus_gradients_in_double_precision(options):
    """Three in a row, so that the second and third are not those of the recording; the weights change between."""
    settings = replace(SMALL, **options)
    train = experiment.load(settings, "train")
    here = experiment.new_net(settings, train).double()
    there = copy.deepcopy(here).to(GPU)
    plain, replayed = experiment._gradient(here, settings), Replayed(experiment._gradient(there, settings), GPU)
    for iteration in range(3):
        drawn = [x.double() if x.is_floating_point() else x
                 for x in experiment._drawn(train, settings, iteration, flatten(here).numel())]  # fmt: skip
        expected, found = plain(*drawn), replayed(*drawn)
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-9), name
        for mine, theirs in zip(there.parameters(), here.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.cpu(), theirs.grad, rtol=1e-7, atol=1e-10)
            with torch.no_grad():
                theirs -= 0.1 * theirs.grad
                mine -= 0.1 * mine.grad


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "finetune"])
def test_measures_are_the_cpus(algorithm):
    settings = replace(SMALL, algorithm=algorithm, filters=16)
    net = experiment.new_net(settings, experiment.load(settings, "train"))
    rng = np.random.default_rng(0)
    pool = images.load("glyphs", "test")
    test, valid = (sample_tasks(pool, 9, settings.ways, 1, 3, rng) for _ in range(2))
    expected = measure(net, test, valid, settings)
    found = measure(net.to(GPU), test.to(GPU), valid.to(GPU), settings)
    for name, value in expected.items():
        assert found[name].mean == pytest.approx(value.mean, rel=2e-2, abs=1e-3), name


def test_a_run_that_is_stopped_and_resumed_is_that_of_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "cpu"))
    expected = experiment.run(SMALL, "cpu").measures
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "gpu"))
    experiment.run(SMALL, "cuda", until=2)
    record = experiment.run(SMALL, "cuda")
    assert record.provenance["resumed"] == 1
    assert record.provenance["device"] == torch.cuda.get_device_name()
    assert (record.measures.measure == expected.measure).all()
    assert record.measures["mean"].to_numpy() == pytest.approx(expected["mean"].to_numpy(), rel=2e-2, abs=2e-2)
