"""Algorithms of one's own: registered, trained and recorded like the others.

Evidence: an algorithm that is MAML under another name has MAML's numbers.
"""

import subprocess
import sys

import pytest

from metanb import preset, run
from metanb.labels import ALGORITHMS, Algorithm
from metanb.maml.algorithms import GRADIENTS, algorithm, meta_train
from metanb.runs import plugins
from tests.support.bad_days import shown

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


def test_names_are_checked(twin):
    for name, words in (("maml", "already"), (twin, "already"), ("My algorithm", "small letters")):
        with pytest.raises(ValueError, match=words):
            algorithm(name, Algorithm("x"))


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (lambda *arguments: None, "'mamltwin' returned None: return a dict .* train_loss"),
        (lambda *arguments: {"train_loss": 1.0}, "'mamltwin' left theta.grad empty"),
    ],
)
def test_what_an_algorithm_leaves_out_is_named(twin, tmp_path, monkeypatch, gradient, words):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    monkeypatch.setitem(GRADIENTS, twin, gradient)
    with pytest.raises(ValueError, match=words):
        run(preset("smoke", "glyphs", **TINY, algorithm=twin), "cpu")


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
    command = [sys.executable, "-m", "metanb", "train", "--device", "cpu", "--algorithm", "mine"]
    environment = {"METANB_STORE": str(tmp_path / "store"), "PATH": "/usr/bin:/bin"}
    environment["OMP_NUM_THREADS"] = "1"  # two threads of a small network wait for each other
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment | {"HOME": "/tmp"}
    )
    assert done.returncode == 1 and "'mine' is not one of 'maml'" in done.stderr
    done = subprocess.run(
        [*command, *options, "--plugin", plugin],
        capture_output=True,
        text=True,
        env=environment | {"HOME": "/tmp"},
    )
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "store").glob("glyphs-*/provenance.json")
    assert '"plugins": "mine.py ' in record.read_text()
    plugin.write_text("import nowhere\n")
    done = subprocess.run(
        [*command, "--plugin", plugin], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
    shown("A plugin fails", done.stderr)
