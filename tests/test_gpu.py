"""What a GPU alone can show: its gradients and whole runs are the CPU's, but for rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metanb.data import image_sets
from metanb.data.tasks import sample_tasks, scale_pixels
from metanb.labels import ALGORITHMS
from metanb.landscape.measures import measure
from metanb.maml import fusing
from metanb.maml.engine import Engine, choose_engine, precision
from metanb.maml.fusing import fused
from metanb.runs import cohorts, experiment, training
from metanb.settings import preset
from tests.support.cohorts import new_cohort

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")
SMALL = preset(
    "smoke",
    "glyphs",
    filters=8,
    iterations=6,
    epoch_iterations=2,
    inner_steps=2,
    test_steps=2,
    test_tasks=6,
    test_queries=3,
    final_tasks=6,
)
GRADIENTS = [{"algorithm": "finetune"}] + [
    {"algorithm": algorithm, "regulariser": name, "gamma": 0.0 if name == "none" else 0.3}
    for algorithm in ("maml", "fomaml")
    for name in ALGORITHMS[algorithm].regularisers
]


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(
    "options", GRADIENTS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_everything_on_gives_the_cpus_gradients_in_double_precision(options, runs, monkeypatch):
    """Three in a row: the second and third are not those of the recording; the weights change."""
    monkeypatch.setattr(cohorts, "scale_pixels", lambda pixels: scale_pixels(pixels).double())
    settings = [replace(SMALL, seed=seed, **options) for seed in range(runs)]
    on_cpu = new_cohort(settings, dtype=torch.float64)
    on_gpu = new_cohort(settings, choose_engine(GPU), GPU, dtype=torch.float64)
    monkeypatch.setattr(fusing, "_failed", False)

    def gradient(cohort, iteration):
        batch = cohort._draw([iteration] * runs)
        return cohort.gradient(*(x.double() if x.is_floating_point() else x for x in batch))

    with fused(True):
        for iteration in range(3):
            expected = gradient(on_cpu, iteration)
            values = gradient(on_gpu, iteration)
            assert on_gpu.gradient.graph is not None and on_gpu.pool.on_device is not None
            for name, value in expected.items():
                torch.testing.assert_close(values[name].cpu(), value, rtol=1e-9, atol=1e-12)
            for weight, reference in zip(on_gpu.weights, on_cpu.weights, strict=True):
                torch.testing.assert_close(weight.grad.cpu(), reference.grad, rtol=1e-7, atol=1e-10)
            on_cpu.optimiser.step()
            on_gpu.optimiser.step()
    assert not fusing.failed()


def test_tf32_rounds_where_it_is_asked_for():
    """It is on, and it is not harmless: `test_engine.py` has the same in software."""
    settings = [preset("paper", "glyphs", 20, filters=64, meta_batch=2)]
    gradients = {}
    for tf32 in (False, True):
        cohort = new_cohort(settings, replace(choose_engine(GPU), tf32=tf32), GPU)
        with precision(tf32):
            cohort.gradient(*cohort._draw([0]))
        gradients[tf32] = cohort.weights[0].grad.clone()
    error = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert 1e-3 < float(error) < 1


def test_what_is_left_out_is_off(monkeypatch):
    monkeypatch.setenv("METANB_WITHOUT", "compile,graph,resident,tf32,together")
    assert choose_engine(GPU) == Engine()
    cohort = new_cohort([SMALL], choose_engine(GPU), GPU)
    cohort.gradient(*cohort._draw([0]))
    assert cohort.gradient.graph is None and cohort.pool.on_device is None


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "finetune"])
def test_measures_are_the_cpus(algorithm):
    settings = replace(SMALL, algorithm=algorithm, filters=16)
    net = training.new_network(settings, training.load_split(settings, "train"))
    rng = np.random.default_rng(0)
    pool = image_sets.load_images("glyphs", "test")
    test, valid = (sample_tasks(pool, 9, settings.ways, 1, 3, rng) for _ in range(2))
    expected = measure(net, test, valid, settings)
    values = measure(net.to(GPU), test.to(GPU), valid.to(GPU), settings)
    for name, value in expected.items():
        assert values[name].mean == pytest.approx(value.mean, rel=2e-2, abs=1e-3), name


def test_a_run_that_is_stopped_and_resumed_is_that_of_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "cpu"))
    expected = experiment.run(SMALL, "cpu").measures
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "gpu"))
    experiment.run(SMALL, "cuda", until=2)
    # begun alone, ended together
    record, second = experiment.run_all([SMALL, replace(SMALL, seed=1)], "cuda")
    assert record.provenance["resumed"] == 1 and record.provenance["together"] == "1, 2"
    assert second.provenance["together"] == "2, 1"
    assert second.provenance["precision"] == "float32"
    assert record.provenance["device"] == torch.cuda.get_device_name()
    assert (record.measures.measure == expected.measure).all()
    assert record.measures["mean"].to_numpy() == pytest.approx(
        expected["mean"].to_numpy(), rel=2e-2, abs=2e-2
    )
