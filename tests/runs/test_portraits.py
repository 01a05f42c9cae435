"""Portraits on disk: drawn once, read the same, refused when damaged, whole after a kill.

Evidence: files compared byte for byte, damage done to them, checkpoints of runs that were stopped
at the same epoch.
"""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from metanb import files
from metanb.data.image_sets import DataError
from metanb.landscape import portrait as stages
from metanb.runs import checkpoint, experiment, portraits, records, training
from metanb.runs import store as run_store
from metanb.runs.portraits import portrait
from metanb.settings import preset
from tests.support.images import change_an_image, write_images
from tests.support.runs import SMALL

TINY = preset("smoke", "glyphs", iterations=8, epoch_iterations=2, **SMALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store where a portrait of TINY was drawn, with the runs that were trained for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("made")))
        return portrait("interpolation", TINY, "cpu").path


@pytest.fixture
def path(made, tmp_path, monkeypatch):
    """The portrait in a copy of that store, which is the one in use."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    return shutil.copytree(made.parent, tmp_path / "store") / made.name


@pytest.fixture
def drawn(path):
    """The portrait's text."""
    return path.read_text()


@pytest.fixture
def store(path):
    """That store without the portrait."""
    path.unlink()
    return path.parent


@pytest.mark.parametrize("kind", portraits.KINDS)
def test_drawn_once_then_read(kind, store, monkeypatch):
    monkeypatch.setattr(stages, "PRODUCTS", 25)
    first = portrait(kind, TINY, "cpu")
    assert first.path == store / f"{TINY.id}.{kind}.json" and first.path.stat().st_size < 50_000
    epochs = [stage["epoch"] for stage in first.values["stages"]]
    assert epochs == ([0, 1, 2, 3, 4] if kind == "film" else [0, 2, 4])
    assert (
        first.provenance["weights"]["device"] == first.provenance["device"]
        and first.provenance["drawn"]
    )
    assert not list(store.glob("*.metanb-*"))
    content = first.path.read_bytes()
    monkeypatch.setattr(portraits, "_draw", None)  # calling it would raise
    again = portrait(kind, TINY, "cpu")
    assert again == first and first.path.read_bytes() == content
    assert (
        len(records.read_records(store)) == len(epochs) - 1
    )  # a portrait is no record; the run and its parts are


def test_weights_that_are_trained_anew_give_the_same_portrait(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    assert portrait("interpolation", TINY, "cpu").values == json.loads(drawn)["values"]


def cut(text):
    return text[: len(text) // 2]


def digit(text):
    return text.replace('"alpha":[-0.5', '"alpha":[-0.6')


def other_run(text):
    return text.replace('"seed":0', '"seed":1')


def entry_lost(text):
    return json.dumps(
        {name: value for name, value in json.loads(text).items() if name != "provenance"}
    )


def other_kind(text):
    content = json.loads(text) | {"kind": "surface"}
    del content["sha256"]
    return json.dumps(content | {"sha256": portraits._digest(content)})


def no_object(_):
    return "[]"


def nested(_):
    return "[" * 100_000


def empty(_):
    return ""


@pytest.mark.parametrize(
    "damage", [cut, digit, other_run, entry_lost, other_kind, no_object, nested, empty]
)
def test_damaged_portrait_is_refused_by_name(path, drawn, damage):
    assert damage(drawn) != drawn
    path.write_text(damage(drawn))
    with pytest.raises(records.RecordError, match="delete the file to draw it anew") as error:
        portrait("interpolation", TINY, "cpu")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_text_that_is_not_utf8_is_refused(path):
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(records.RecordError, match="delete the file"):
        portrait("interpolation", TINY, "cpu")


def test_a_full_disk_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(files.DiskError, match="No space"):
        patch.setattr(files.os, "replace", full)
        portrait("interpolation", TINY, "cpu")
    assert not list(store.glob(f"*{TINY.id}.interpolation.[!l]*"))  # but for the lock
    assert portrait("interpolation", TINY, "cpu").path.exists()


def test_a_film_of_one_epoch_has_its_two_ends(store):
    film = portrait("film", replace(TINY, iterations=2), "cpu")
    assert [stage["epoch"] for stage in film.values["stages"]] == [0, 1]
    assert "earlier_weights" not in film.provenance and film.provenance["weights"]["trained"]


def test_stages_of_a_film_are_dense_at_first():
    paper = preset("paper")
    epochs = portraits._epochs_of_stages("film", paper)
    assert len(epochs) == 8 and (epochs[0], epochs[-1]) == (0, paper.epochs)
    steps = [after - before for before, after in pairwise(epochs)]
    assert steps == sorted(steps)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'density': choose from surface, .*, film"):
        portrait("density", TINY)


def test_networks_after_epochs_are_those_the_run_passes_through(store, tmp_path, monkeypatch):
    nets = experiment.nets_after(TINY, (4, 0, 2), "cpu")
    assert list(nets) == [0, 2, 4]
    with monkeypatch.context() as patch:  # what is trained needs no lock
        patch.setattr(run_store, "lock_run", None)
        again = experiment.nets_after(TINY, (2, 4), "cpu")
    for epoch, net in again.items():
        expected = nets[epoch].state_dict()
        assert all(torch.equal(expected[name], value) for name, value in net.state_dict().items())
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "other"))
    train = training.load_split(TINY, "train")
    for epoch in (2, 4):
        experiment.run(TINY, "cpu", until=2 * epoch)
        values = checkpoint.read_checkpoint(run_store.checkpoint_path(TINY.id))
        assert values["epoch"] == epoch
        assert all(
            torch.equal(values["net"][name], value)
            for name, value in nets[epoch].state_dict().items()
        )
    fresh = training.new_network(TINY, train).state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in nets[0].state_dict().items())


def test_a_longer_run_goes_on_from_the_shorter_one(store):
    """Those that the portrait's middle and end were trained by."""
    half = replace(TINY, iterations=4)
    assert (
        records.find_record(TINY).provenance["resumed"] == 1
        and records.find_record(half).provenance["resumed"] == 0
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a data set of one's own, "mine", and the settings of a run on it."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("METANB_DATA", str(tmp_path / "data"))
    folder = write_images(tmp_path / "data" / "mine")
    return folder, preset("smoke", "mine", iterations=4, epoch_iterations=2, **SMALL)


def test_a_portrait_is_of_the_runs_images(own):
    """Where the weights of all stages are there, and nothing is trained."""
    folder, settings = own
    settings = experiment.run(settings, "cpu").settings
    path = portrait("interpolation", settings, "cpu").path
    path.unlink()
    change_an_image(folder, "test")
    with pytest.raises(DataError, match="'mine', test, is .*: put the earlier images back"):
        portrait("interpolation", settings, "cpu")
    assert not path.exists()


def test_a_portrait_of_ones_own_images_is_found_by_the_same_settings(own):
    _, settings = own
    drawn = portrait("interpolation", settings, "cpu")
    whole = training.with_content(settings)
    assert whole.content and drawn.settings == whole
    assert drawn.path.name == f"{whole.id}.interpolation.json"
    for asked in (settings, whole):
        assert portraits.find_portrait("interpolation", asked) == drawn


def test_a_portrait_has_the_head_that_the_run_is_measured_with(tmp_path, monkeypatch):
    """At each stage: the accuracy and the distance are those that training recorded."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    settings = replace(TINY, test_head="centred")
    drawn = portrait("interpolation", settings, "cpu")
    record = experiment.run(settings, "cpu")
    for stage in drawn.values["stages"]:
        for name in ("distance", "query_accuracy"):
            recorded = record.curve(name)["mean"][stage["epoch"]]
            assert stage[name] == pytest.approx(recorded, rel=1e-3), (stage["epoch"], name)
