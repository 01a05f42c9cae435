"""Plugins that are edited: what was made before is told apart from what is made now."""

import pytest

from metanb import preset
from metanb.labels import NETWORKS
from metanb.maml.network import BUILDERS
from metanb.runs import experiment, plugins
from metanb.runs.plugins import load_plugin
from metanb.runs.store import checkpoint_path
from tests.support.command_line import call

SMALL = {"iterations": 4, "epoch_iterations": 2, "test_tasks": 2, "test_queries": 2}
PLUGIN = """
from torch import nn
from metanb.maml.network import network

@network("vnet")
def build(image_shape, outputs, settings):
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, outputs))
"""


@pytest.fixture
def edit(tmp_path, monkeypatch):
    """To load a plugin with a comment at its end, as a new process would."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(plugins, "LOADED", {})
    path = tmp_path / "v.py"

    def forget():
        BUILDERS.pop("vnet", None)
        NETWORKS.pop("vnet", None)
        plugins.LOADED.clear()

    def load(comment):
        forget()
        path.write_text(f"{PLUGIN}# {comment}")
        load_plugin(path)
        return path

    yield load
    forget()


def test_a_record_or_a_checkpoint_from_before_an_edit_is_told_of(edit, capsys, monkeypatch):
    edit("first")
    settings = preset("smoke", "glyphs", **SMALL, network="vnet")
    other_seed = preset("smoke", "glyphs", **SMALL, network="vnet", seed=1)
    begun = experiment.run(settings, "cpu", until=2)
    experiment.run(settings, "cpu", until=2)
    assert "v.py" not in capsys.readouterr().err

    plugin = edit("second")
    path = checkpoint_path(settings.id)
    remedy = ", or choose another name for the network or the algorithm"
    experiment.run_all([settings, settings, other_seed], "cpu", until=2)
    assert [line for line in capsys.readouterr().err.splitlines() if "v.py" in line] == [
        f"record {begun.path} was made before v.py was edited: {begun.anew}{remedy}"
    ]
    whole = experiment.run(settings, "cpu")
    assert [line for line in capsys.readouterr().err.splitlines() if "v.py" in line] == [
        f"checkpoint {path} was made before v.py was edited: the run goes on from there; delete "
        f"it to start anew{remedy}"
    ]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options += [f"--plugin={plugin}", "--network=vnet", "--device=cpu"]
    code, _, err = call(capsys, monkeypatch, "train", *options)
    assert code == 0 and err.count(f"record {whole.path} was made before v.py was edited") == 1
    call(capsys, monkeypatch, "train", *options, "--seed=1")
    assert "edited" not in call(capsys, monkeypatch, "train", *options, "--seed=1")[2]
