"""Algorithms of one's own: registered, trained and recorded like the others.

Evidence: an algorithm that is MAML under another name has MAML's numbers.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

from metanb import preset, run
from metanb.labels import ALGORITHMS, Algorithm, learn_names
from metanb.maml.algorithms import GRADIENTS, add_gradient, algorithm, finetune, meta_train
from metanb.runs import archive, plugins, records, weights
from metanb.runs.store import store_folder
from tests.support.bad_days import shown
from tests.support.processes import Process

TINY = {"filters": 4, "iterations": 4, "epoch_iterations": 2, "test_tasks": 4, "test_queries": 2}


@pytest.fixture
def twin():
    """MAML under another name."""
    algorithm("mamltwin", Algorithm("MAML's twin", ("none", "adapted")))(meta_train)
    yield "mamltwin"
    del ALGORITHMS["mamltwin"], GRADIENTS["mamltwin"]


def test_an_algorithm_of_ones_own_is_trained_and_recorded(twin, tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    ours, mamls = (
        run(preset("smoke", "glyphs", **TINY, algorithm=name), "cpu") for name in (twin, "maml")
    )
    assert ours.settings.id.startswith("glyphs-5w1s-mamltwin-s0-")
    assert ours.measures.equals(mamls.measures)


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    """Settings and entry of an algorithm that is finetuning under another name."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    entry = Algorithm("Supervised", first_order=True, episodic=False)
    algorithm("supervised", entry)(finetune)
    yield preset("smoke", "glyphs", **TINY, algorithm="supervised", test_head="shared"), entry
    ALGORITHMS.pop("supervised", None)
    GRADIENTS.pop("supervised", None)


def forget():
    """As in another process, which does not know it."""
    del ALGORITHMS["supervised"], GRADIENTS["supervised"]


def test_a_record_tells_what_sets_an_algorithm_of_ones_own_apart(supervised, tmp_path, monkeypatch):
    settings, entry = supervised
    record = run(settings, "cpu", until=2)
    assert run(settings, "cpu").provenance["algorithm"] == {  # after it was resumed, too
        "label": "Supervised",
        "regularisers": ["none"],
        "first_order": True,
        "episodic": False,
    }
    record = records.read_record(store_folder() / settings.id)
    weights.keep_weights(record)
    (packed,) = archive.pack_runs([settings], tmp_path / "packed", "runs")
    forget()
    assert records.read_record(record.path).settings == settings
    assert ALGORITHMS["supervised"] == entry
    # An earlier version assumed otherwise; what is told afterwards counts.
    ALGORITHMS.pop("supervised")
    learn_names({"algorithm": "supervised"})
    assert ALGORITHMS["supervised"].episodic
    assert records.read_record(record.path).settings == settings
    assert ALGORITHMS["supervised"] == entry
    # The same where the record comes from an archive.
    ALGORITHMS.pop("supervised")
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "elsewhere"))
    archive.unpack_runs(packed)
    assert ALGORITHMS["supervised"] == entry
    assert "algorithm" not in run(preset("smoke", "glyphs", **TINY), "cpu").provenance


def test_a_record_of_an_unknown_algorithm_is_not_called_damaged(supervised):
    """One of an earlier version, which does not tell what sets the algorithm apart."""
    settings, entry = supervised
    record = run(settings, "cpu")
    path = record.path / "provenance.json"
    values = json.loads(path.read_text())
    del values["algorithm"]
    path.write_text(json.dumps(values))
    forget()
    with pytest.raises(records.RecordError) as error:
        records.read_record(record.path)
    assert str(error.value) == (
        f"record {record.path} does not fit what is known here of algorithm='supervised', which is "
        "one's own: test_head='shared' belongs to algorithm='finetune'; register it as it was "
        "then, or name its file with --plugin"
    )
    algorithm("supervised", entry)(finetune)
    assert records.read_record(record.path).settings == settings
    # An entry that is none is damage.
    path.write_text(json.dumps(values | {"algorithm": {"label": 3}}))
    with pytest.raises(records.RecordError, match="is damaged: the entry of an algorithm does not"):
        records.read_record(record.path)


def test_names_are_checked(twin):
    for name, words in (("maml", "already"), (twin, "already"), ("My algorithm", "small letters")):
        with pytest.raises(ValueError, match=words):
            algorithm(name, Algorithm("x"))(returns(None))


def returns(values):
    """An algorithm that gives each run a gradient, and returns the values."""

    def gradient(net, theta, *rest):
        theta.sum().backward()
        return values

    return gradient


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (returns(None), "'mamltwin' returned a NoneType: return a dict .* train_loss"),
        (returns({"loss": 1.0}), r"'mamltwin' returned \['loss'\]: return a dict .* train_loss"),
        (
            lambda *arguments: {"train_loss": torch.ones(1)},
            "'mamltwin' left theta.grad empty: call backward",
        ),
        *(
            (
                returns({"train_loss": torch.ones(1)} | {name: value}),
                f"'mamltwin' returned {shown} for '{name}': give one value per run, a tensor "
                r"\[1\] on cpu",
            )
            for name in ("train_loss", "my_value")
            for value, shown in (
                (1.0, "a float"),
                (np.ones(1), "a ndarray"),
                (torch.ones(()), r"a tensor \[\] on cpu"),
                (torch.ones(2), r"a tensor \[2\] on cpu"),
                (torch.ones(1, 1), r"a tensor \[1, 1\] on cpu"),
                (torch.ones(1, device="meta"), r"a tensor \[1\] on meta"),
            )
        ),
    ],
)
def test_what_an_algorithm_returns_is_one_value_per_run(twin, monkeypatch, gradient, words):
    monkeypatch.setitem(GRADIENTS, twin, gradient)
    settings = preset("smoke", "glyphs", **TINY, algorithm=twin)
    theta = torch.zeros(1, 3, requires_grad=True)
    with pytest.raises(ValueError, match=f"^algorithm={words}[^\n]*$"):
        add_gradient(nn.Linear(2, 1), theta, None, None, settings, None)


@pytest.fixture
def with_value(twin, tmp_path, monkeypatch):
    """Train an algorithm whose value under a name is 7."""

    def train(name):
        def constant(net, theta, x, y, settings, direction):
            values = meta_train(net, theta, x, y, settings, direction)
            return values | {name: torch.full((len(theta),), 7.0)}

        monkeypatch.setenv("METANB_STORE", str(tmp_path))
        monkeypatch.setitem(GRADIENTS, twin, constant)
        return run(preset("smoke", "glyphs", **TINY, algorithm=twin), "cpu")

    return train


@pytest.mark.parametrize("name", ["my_value", "slope", "relative_move", "train_loss"])
def test_values_of_ones_own_are_recorded(with_value, name):
    record = with_value(name)
    trained = record.measures[(record.measures.measure == name) & (record.measures.epoch > 0)]
    assert trained["mean"].tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *(
            (name, "there is a measure '.*' already: choose another name")
            for name in ("query_loss", "distance", "valid_accuracy", "body_norm", "final_accuracy")
        ),
        ("nan", "a measure 'nan' is a missing value in a table: .*"),
        ("my value", "a measure 'my value' does not match .*: use small letters .*"),
    ],
)
def test_a_value_of_ones_own_does_not_take_the_name_of_a_measure(with_value, name, reason):
    words = f"^algorithm='mamltwin' returned values under '{name}': {reason}$"
    with pytest.raises(ValueError, match=words):
        with_value(name)


def test_a_plugin_that_ends_the_process_is_an_error(tmp_path):
    plugin = tmp_path / "ends.py"
    plugin.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(plugins.PluginError, match="ends.py: SystemExit: 0"):
        plugins.load_plugin(plugin)


def test_a_plugin_adds_one_to_the_command_line(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from metanb.labels import Algorithm\n"
        "from metanb.maml.algorithms import algorithm, meta_train\n"
        "algorithm('mine', Algorithm('mine'))(meta_train)\n"
    )
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    command = ["train", "--device", "cpu", "--algorithm", "mine", *options]
    store = tmp_path / "store"
    process = Process(store, *command)
    assert process.wait() == 1 and "'mine' is not one of 'maml'" in process.err
    assert "if it is your own, name its file with --plugin" in process.err
    process = Process(store, *command, "--plugin", plugin)
    assert process.wait() == 0, process.err
    (record,) = store.glob("glyphs-*/provenance.json")
    assert '"plugins": "mine.py ' in record.read_text()
    plugin.write_text("import nowhere\n")
    process = Process(store, *command, "--plugin", plugin)
    assert process.wait() == 1 and "ModuleNotFoundError" in process.err
    shown("A plugin fails", process.err)
