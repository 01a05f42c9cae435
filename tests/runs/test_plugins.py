"""Plugins that are edited or that fail: what was made before is told of, and so is the line."""

import sys

import pytest

from metanb import preset
from metanb.labels import ALGORITHMS, MEASURES, NETWORKS, Algorithm
from metanb.landscape import measures
from metanb.maml.algorithms import GRADIENTS, algorithm
from metanb.maml.network import BUILDERS, network
from metanb.runs import experiment, plugins
from metanb.runs.plugins import load_plugin
from metanb.runs.store import checkpoint_path
from tests.support.bad_days import shown
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


OWN = """
from metanb.labels import Algorithm, Measure
from metanb.landscape.measures import {kind}
from metanb.maml.algorithms import algorithm
from metanb.maml.network import network

@network("again", "{label}")
def build(*arguments):
    return "{label}"

@algorithm("again", Algorithm("{label}"))
def gradient(*arguments):
    return "{label}"

@{kind}("again", Measure("{label}"))
def values(at):
    return "{label}"
"""


@pytest.fixture
def forgotten():
    """What is registered as "again" in a test is forgotten after it."""
    tables = (measures.PER_TASK, measures.OVER_TASKS, MEASURES, GRADIENTS, ALGORITHMS)
    yield
    for table in (*tables, BUILDERS, NETWORKS):
        table.pop("again", None)


def test_a_cell_that_runs_again_registers_again(forgotten):
    """The later definition counts; another function, or another module's, is refused."""
    cell = {"__name__": "__main__"}
    for label, kind in (("first", "per_task"), ("second", "per_task"), ("third", "over_tasks")):
        exec(OWN.format(label=label, kind=kind), cell)
        table, other = measures.PER_TASK, measures.OVER_TASKS
        if kind == "over_tasks":
            table, other = other, table
        assert table["again"](None) == GRADIENTS["again"]() == BUILDERS["again"]() == label
        assert MEASURES["again"].label == ALGORITHMS["again"].label == NETWORKS["again"] == label
        assert "again" not in other
    decorators = [
        (measures.per_task("again"), "values", "a measure"),
        (algorithm("again", Algorithm("other")), "gradient", "an algorithm"),
        (network("again"), "build", "a network"),
    ]
    for register, name, kind in decorators:
        for module, called in (("__main__", "another"), ("elsewhere", name)):

            def function(*arguments):
                return None

            function.__module__, function.__qualname__ = module, called
            with pytest.raises(ValueError, match=f"there is {kind} 'again' already"):
                register(function)
    assert measures.OVER_TASKS["again"](None) == GRADIENTS["again"]() == "third"


def test_an_edited_plugin_is_loaded_again(forgotten, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "LOADED", {})
    path = tmp_path / "again.py"
    for label in ("first", "second"):
        path.write_text(OWN.format(label=label, kind="per_task"))
        load_plugin(path)
        assert measures.PER_TASK["again"](None) == label


def _registered():
    """What is registered, and the modules of plugins, each in its order."""
    tables = (ALGORITHMS, NETWORKS, MEASURES, GRADIENTS, BUILDERS)
    modules = {name: module for name, module in sys.modules.items() if "metanb_plugin" in name}
    tables += (measures.PER_TASK, measures.OVER_TASKS, plugins.LOADED, modules)
    return [list(table.items()) for table in tables]


FAILURES = ["raise RuntimeError('half way')", "import sys; sys.exit(1)", "raise KeyboardInterrupt"]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", ["per_task", "over_tasks"])
def test_of_a_plugin_that_fails_nothing_is_registered(
    forgotten, tmp_path, monkeypatch, failure, kind
):
    """Of a new file nothing; of one that was loaded before, what it had registered then."""
    monkeypatch.setattr(plugins, "LOADED", {})
    path = tmp_path / "again.py"
    for loaded in (False, True):
        if loaded:
            path.write_text(OWN.format(label="first", kind="per_task"))
            load_plugin(path)
        before = _registered()
        path.write_text(f"{OWN.format(label='second', kind=kind)}\n{failure}")
        with pytest.raises((plugins.PluginError, KeyboardInterrupt)):
            load_plugin(path)
        assert _registered() == before
    assert plugins.describe()["plugins"].startswith("again.py ")
    assert measures.PER_TASK["again"](None) == BUILDERS["again"]() == "first"
    # Once it is mended, it is loaded.
    path.write_text(OWN.format(label="third", kind=kind))
    load_plugin(path)
    assert BUILDERS["again"]() == GRADIENTS["again"]() == "third"


def test_files_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "LOADED", {})
    ran = tmp_path / "ran"
    content = f"print(__file__, file=open({str(ran)!r}, 'a'))\n"
    paths = [tmp_path / folder / name for folder in "ab" for name in ("m.py", f"{folder}, m.py")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    first, own, same_name, same_content = paths
    load_plugin(first)
    load_plugin(own)
    with pytest.raises(plugins.PluginError) as error:
        load_plugin(same_name)
    assert str(error.value) == (
        f"plugin {same_name} has the name of {first}, which is loaded: rename one of them"
    )
    # Two files of one content both run; a file runs once, however it is named.
    load_plugin(same_content)
    monkeypatch.chdir(tmp_path / "a")
    load_plugin(first.relative_to(tmp_path / "a"))
    assert ran.read_text().split("\n") == [str(first), str(own), str(same_content), ""]
    listed = [entry.rpartition(" ")[0] for entry in plugins.describe()["plugins"].split("; ")]
    assert listed == ["m.py", "a, m.py", "b, m.py"]


def test_an_edited_file_with_a_comma_in_its_name_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plugins, "LOADED", {})
    path = tmp_path / "my, own.py"
    path.write_text("")
    load_plugin(path)
    before = {"plugins": f"{plugins.describe()['plugins']}, other.py {'0' * 16}"}
    plugins.report_edited("record x", before, "delete it")
    assert capsys.readouterr().err == ""
    path.write_text("# edited")
    load_plugin(path)
    plugins.report_edited("record x", before, "delete it")
    assert capsys.readouterr().err.startswith("record x was made before my, own.py was edited:")


FAILING = """
from metanb.landscape.measures import per_task
from metanb.labels import Algorithm
from metanb.maml.algorithms import algorithm

@per_task("failing")
def first_entry(at):
    return {}["first"]

@algorithm("failing", Algorithm("failing"))
def gradient(net, theta, x, y, settings, direction):
    return theta @ x  # shapes that do not fit
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A plugin with a measure and an algorithm that fail when they are called."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(plugins, "LOADED", {})
    path = tmp_path / "failing.py"
    path.write_text(FAILING)
    yield path
    for table in (measures.PER_TASK, MEASURES, GRADIENTS, ALGORITHMS):
        table.pop("failing", None)


@pytest.mark.parametrize(
    ("algorithm", "line", "words"),
    [("maml", 8, "KeyError: 'first'"), ("failing", 12, "RuntimeError: ")],
)
def test_an_error_inside_a_plugin_is_one_line_with_its_place(
    failing, capsys, monkeypatch, algorithm, line, words
):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options += [f"--plugin={failing}", f"--algorithm={algorithm}", "--device=cpu"]
    if algorithm == "failing":  # whose measures work
        failing.write_text(FAILING.replace('{}["first"]', "at.loss_before"))
    code, _, err = call(capsys, monkeypatch, "train", *options)
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"Error: plugin {failing}, line {line}: {words}")
    shown("A plugin's measure, network or algorithm fails", err)


def test_a_fault_of_metanb_keeps_its_traceback(capsys, monkeypatch):
    def fail(*arguments):
        raise KeyError("no message for a user")

    monkeypatch.setattr("metanb.data.image_sets.check_images", fail)
    with pytest.raises(KeyError, match="no message"):
        call(capsys, monkeypatch, "data", "check")
