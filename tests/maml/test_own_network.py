"""Networks of one's own: trained, resumed, kept and read like the paper's.

Evidence: a network that is ConvNet under another name has ConvNet's numbers; a plain module's run
repeats, and its meta-gradient is tested elsewhere.
"""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from metanb import preset, run, run_all, trained_net
from metanb.labels import ALGORITHMS, NETWORKS, learn_names
from metanb.landscape.measures import measure
from metanb.maml.network import BUILDERS, build_convnet, network
from metanb.runs import experiment, records, weights
from metanb.runs.store import checkpoint_path, store_folder
from metanb.settings import SettingsError
from tests.support.bad_days import shown

TINY = {"filters": 4, "iterations": 4, "epoch_iterations": 2, "test_tasks": 4, "test_queries": 2}


def build_small(image_shape, outputs, settings):
    """A convolution with group norm, and a head whose first weights are zero."""
    net = nn.Sequential(
        nn.Conv2d(image_shape[0], 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, outputs),
    )
    nn.init.zeros_(net[-1].weight)
    return net


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Two networks of one's own, and a store."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    network("convtwin")(build_convnet)
    network("small", "a small one")(build_small)
    yield
    for name in ("convtwin", "small"):
        BUILDERS.pop(name, None)
        NETWORKS.pop(name, None)


def test_the_paper_s_network_under_another_name_has_its_numbers(own):
    twin, paper = (
        run(preset("smoke", "glyphs", **TINY, network=name), "cpu")
        for name in ("convtwin", "convnet")
    )
    assert twin.measures.equals(paper.measures) and twin.settings != paper.settings


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_a_plain_module_is_trained_resumed_and_kept(own, tmp_path, monkeypatch, algorithm):
    settings = preset("smoke", "glyphs", **TINY, network="small", algorithm=algorithm)
    begun = run(settings, "cpu", until=2)
    assert begun.epochs == 1
    whole = run(settings, "cpu")  # goes on from its checkpoint
    path = weights.keep_weights(whole)
    checkpoint_path(settings.id).unlink()
    net = trained_net(settings)  # from the weights beside the record
    assert isinstance(net, nn.Sequential) and net[-1].weight.abs().sum() > 0
    assert path.stat().st_size < 10_000
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "again"))
    assert run(settings, "cpu").measures.equals(whole.measures)


def test_records_of_what_is_not_registered_are_read_and_not_trained(own, tmp_path):
    settings = preset("smoke", "glyphs", **TINY, network="small")
    weights.keep_weights(run(settings, "cpu"))
    del BUILDERS["small"], NETWORKS["small"]  # as in another process
    (record,) = records.read_records(store_folder())
    assert record.settings == settings
    with pytest.raises(SettingsError, match="network='small' is one's own: register it first"):
        trained_net(settings)
    shutil.rmtree(record.path)
    checkpoint_path(settings.id).unlink()
    with pytest.raises(SettingsError, match="network='small' is one's own"):
        run(settings, "cpu")
    # The same for an algorithm.
    values = settings.to_dict() | {"algorithm": "unheard", "network": "convnet"}
    try:
        learn_names(values)
        with pytest.raises(SettingsError, match="algorithm='unheard' is one's own"):
            run(preset("smoke", "glyphs", **TINY, algorithm="unheard"), "cpu")
    finally:
        del ALGORITHMS["unheard"]


class RandomFeatures(nn.Module):
    """A head on cosines of random projections, which are drawn with the network."""

    def __init__(self, outputs, persistent) -> None:
        super().__init__()
        projections = torch.randn(28 * 28, 16) / 10
        self.register_buffer("projections", projections, persistent=persistent)
        self.head = nn.Linear(16, outputs)

    def forward(self, x):  # noqa: D102
        return self.head((x.flatten(1) @ self.projections).cos())


@pytest.mark.parametrize("persistent", [True, False])
def test_each_run_of_a_batch_has_its_own_random_buffers(own, tmp_path, monkeypatch, persistent):
    """As alone; and the trained network answers as the record says."""
    BUILDERS["small"] = lambda _, outputs, settings: RandomFeatures(outputs, persistent)
    runs = [preset("smoke", "glyphs", **TINY, network="small", seed=seed) for seed in (0, 1)]
    together = run_all(runs, "cpu", together=2)
    tasks = experiment.meta_test_tasks(runs[1])
    stat = measure(trained_net(runs[1]), tasks, tasks, runs[1], ["query_loss"])["query_loss"]
    recorded = together[1].curve("query_loss")["mean"].iloc[-1]
    assert stat.mean == pytest.approx(recorded, rel=1e-6)
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "alone"))
    alone = run_all(runs, "cpu", together=1)
    for record, expected in zip(together, alone, strict=True):
        assert np.allclose(record.measures["mean"], expected.measures["mean"], rtol=1e-4)


def test_a_builder_that_returns_no_network_is_named(own):
    BUILDERS["small"] = lambda *arguments: None
    with pytest.raises(SettingsError, match="'small': its builder returned None: return an nn"):
        run(preset("smoke", "glyphs", **TINY, network="small"), "cpu")


def test_what_is_mistyped_is_refused(own):
    with pytest.raises(SettingsError, match="network='smal' is not one of 'convnet'"):
        preset("smoke", "glyphs", network="smal")
    for name, words in (("convnet", "already"), ("My net", "small letters")):
        with pytest.raises(ValueError, match=words):
            network(name)(build_small)


def test_finetuning_needs_the_papers_network(own):
    with pytest.raises(ValueError, match="gives a new head to ConvNet alone, not to Sequential"):
        run(preset("smoke", "glyphs", **TINY, network="small", algorithm="finetune"), "cpu")


def test_a_network_that_cannot_adapt_is_named(own):
    def build(image_shape, outputs, settings):
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 26**2, outputs)
        )

    BUILDERS["small"] = build
    with pytest.raises(ValueError, match="updates running statistics") as error:
        run(preset("smoke", "glyphs", **TINY, network="small"), "cpu")
    shown("Your own network has a layer that cannot adapt", f"Error: {error.value}")
    BUILDERS["small"] = lambda *arguments: build(*arguments).eval()
    record = run(preset("smoke", "glyphs", **TINY, network="small"), "cpu")
    assert record.finished and np.isfinite(record.measures["mean"]).all()
