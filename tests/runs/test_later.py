"""Measures taken later, of kept weights.

Evidence: what was recorded at the time; a measure whose value is known without the package.
"""

import json
import shutil

import pytest
import torch

from metanb import preset
from metanb.data.image_sets import DataError
from metanb.labels import MEASURES, Measure
from metanb.landscape import measures
from metanb.runs import archive, experiment, later, plugins, records, training, weights
from metanb.runs.records import RecordError
from metanb.runs.store import checkpoint_path, lock_run, store_folder
from tests.support.bad_days import shown
from tests.support.command_line import call
from tests.support.images import change_an_image, write_images
from tests.support.stores import store_with

TINY = {"filters": 4, "iterations": 4, "epoch_iterations": 2, "test_tasks": 4, "test_queries": 2}
SETTINGS = preset("smoke", "glyphs", **TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a run and its weights."""
    with store_with(SETTINGS, tmp_path_factory.mktemp("trained")) as folder:
        return folder


@pytest.fixture
def record(trained, tmp_path, monkeypatch):
    """A copy of that run's record."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    shutil.copytree(trained, tmp_path / "store")
    return records.read_record(store_folder() / SETTINGS.id)


@pytest.fixture
def parameters():
    """A measure that is the number of parameters, over tasks: known by hand."""
    measures.per_task("n_parameters", Measure("number of parameters"))(
        lambda at: torch.full((len(at.tasks),), float(at.adapted.shape[1]))
    )
    yield 4 * 9 + 3 * (4 * 4 * 9) + 4 * (4 + 4) + (4 * 5 + 5)
    del measures.PER_TASK["n_parameters"], MEASURES["n_parameters"]


def test_a_new_measure_joins_an_old_record(record, parameters):
    after = later.measure_later(record, device="cpu")
    (row,) = after.curve("n_parameters").itertuples()
    assert (row.Index, row.iteration, row.mean, row.sem, row.n) == (2, 4, parameters, 0.0, 4)
    # What was recorded stays byte by byte.
    for file in records.FILES:
        assert (after.path / file).read_bytes() == (record.path / file).read_bytes()
    (origin,) = json.loads((after.path / records.LATER).read_text())["origins"]
    assert origin["measures"] == ["n_parameters"] and origin["device"] and origin["taken"]
    assert origin["weights_sha256"] == record.provenance["weights_sha256"]
    # Nothing is left to measure, and nothing is measured twice.
    assert later.measure_later(after, device="cpu").measures.equals(after.measures)
    with pytest.raises(RecordError, match="has measure 'n_parameters' already"):
        later.measure_later(after, ["n_parameters"], "cpu")


def test_measures_are_those_of_the_time(record, monkeypatch):
    """Taken from a record that lacks them, they are what training recorded."""
    at_the_time = record.measures[record.measures.epoch == 2].set_index("measure")
    names = ["query_accuracy", "hessian_norm", "trajectory_coherence", "valid_accuracy"]
    # As if an earlier version had recorded the run.
    rows = record.measures[~record.measures.measure.isin(names)].to_dict("records")
    content = (record.path / records.WEIGHTS).read_bytes()
    provenance = {k: v for k, v in record.provenance.items() if k != "weights_sha256"}
    shutil.rmtree(record.path)
    old = records.write_record(SETTINGS, rows, provenance, store_folder())
    records.attach_weights(old, content)
    after = later.measure_later(records.read_record(old.path), device="cpu")
    for name in names:
        row = after.curve(name).iloc[0]
        assert row["mean"] == pytest.approx(at_the_time.loc[name, "mean"], rel=1e-6)
        assert row["sem"] == pytest.approx(at_the_time.loc[name, "sem"], rel=1e-6)


def test_a_measure_of_earlier_epochs_alone_is_taken_of_the_last(record, monkeypatch):
    """As where a plugin was there when the run began, and not when it was resumed."""
    early = record.measures.measure.eq("query_loss") & record.measures.epoch.eq(2)
    content = (record.path / records.WEIGHTS).read_bytes()
    provenance = {k: v for k, v in record.provenance.items() if k != "weights_sha256"}
    shutil.rmtree(record.path)
    rows = record.measures[~early].to_dict("records")
    old = records.write_record(SETTINGS, rows, provenance, store_folder())
    records.attach_weights(old, content)
    assert old.curve("query_loss").index.tolist() == [0, 1]
    after = later.measure_later(old, ["query_loss"], "cpu")
    at_the_time = record.curve("query_loss")
    assert after.curve("query_loss").index.tolist() == [0, 1, 2]
    assert after.curve("query_loss")["mean"].tolist() == pytest.approx(at_the_time["mean"].tolist())
    with pytest.raises(RecordError, match="has measure 'query_loss' already"):
        later.measure_later(after, ["query_loss"], "cpu")
    assert later.measure_later(after, device="cpu").measures.equals(after.measures)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a data set of one's own, "mine"."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("METANB_DATA", str(tmp_path / "data"))
    return write_images(tmp_path / "data" / "mine")


OF_OWN = TINY | {"ways": 2, "test_tasks": 2, "final_tasks": 2}


def run_of_earlier(monkeypatch, **changes):
    """A run on these images by a version that did not have the measure "within_product"."""
    with monkeypatch.context() as patch:
        # A table without it: taken out and put back, it would come last in later tests.
        others = {name: f for name, f in measures.PER_TASK.items() if name != "within_product"}
        patch.setattr(measures, "PER_TASK", others)
        return experiment.run(preset("smoke", "mine", **OF_OWN | changes), "cpu")


@pytest.mark.parametrize(
    ("split", "head"), [("test", "fresh"), ("valid", "fresh"), ("train", "centred")]
)
def test_other_images_than_the_runs_are_refused(own, monkeypatch, split, head):
    record = run_of_earlier(monkeypatch, test_head=head)
    path = own / split / f"{split}0" / "0.png"
    before = path.read_bytes()
    change_an_image(own, split)
    now = training.load_split(record.settings, split).digest
    with pytest.raises(DataError) as error:
        later.measure_later(record, ["within_product"], "cpu")
    assert str(error.value) == (
        f"data set 'mine', {split}, is {now}, and the run is of "
        f"{record.provenance['data'][split]}: put the earlier images back, or train the run anew"
    )
    assert not (record.path / records.LATER).exists()
    # With the images of then it is measured, and the origin names them.
    path.write_bytes(before)
    after = later.measure_later(record, ["within_product"], "cpu")
    (origin,) = json.loads((after.path / records.LATER).read_text())["origins"]
    splits = ["train", "valid", "test"] if head == "centred" else ["valid", "test"]
    assert origin["data"] == {split: record.provenance["data"][split] for split in splits}


def test_images_are_not_compared_where_a_record_has_no_digest(own, monkeypatch):
    record = run_of_earlier(monkeypatch)
    weights.keep_weights(record)
    path = record.path / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {}}))
    change_an_image(own, "test")
    after = later.measure_later(records.read_record(record.path), ["within_product"], "cpu")
    assert len(after.curve("within_product")) == 1


def test_final_accuracies_are_of_the_runs_images(own):
    """A run that was killed before its record, and whose images have changed since then."""
    settings = preset("smoke", "mine", **OF_OWN)
    record = experiment.run(settings, "cpu")
    shutil.rmtree(record.path)
    change_an_image(own, "test")
    with pytest.raises(DataError, match="'mine', test, is .*: put the earlier images back"):
        experiment.record_so_far(record.settings, "cpu")
    assert not record.path.exists()


def test_what_cannot_be_measured_is_said(record, capsys, monkeypatch):
    with pytest.raises(ValueError, match="no measure 'sharpness': choose from support_loss_before"):
        later.measure_later(record, ["sharpness"], "cpu")
    code, _, err = call(capsys, monkeypatch, "measure", "nowhere")
    assert code != 0 and "no record 'nowhere'" in err
    (record.path / records.WEIGHTS).unlink()
    checkpoint_path(SETTINGS.id).unlink()
    code, _, err = call(capsys, monkeypatch, "measure", SETTINGS.id)
    assert code != 0 and "weights" in err and err.count("\n") == 1


def test_weights_come_from_the_checkpoint_where_none_are_kept(record, parameters):
    (record.path / records.WEIGHTS).unlink()
    after = later.measure_later(records.read_record(record.path), device="cpu")
    assert after.curve("n_parameters")["mean"].iloc[0] == parameters
    assert (record.path / records.WEIGHTS).exists()


@pytest.mark.parametrize("name", ["hesian_norm", "final_accuracy", "hessian_norm"])
def test_a_refused_measure_writes_nothing(record, capsys, monkeypatch, name):
    """A mistyped name, one that this run does not have, and one that is recorded."""
    (record.path / records.WEIGHTS).unlink()  # the checkpoint would give them
    before = {path: path.read_bytes() for path in record.path.iterdir()}
    code, out, err = call(capsys, monkeypatch, "measure", SETTINGS.id, "--measure", name)
    reason = (
        f"{record.path} has measure {name!r} already: leave it out"
        if record.has(name)
        else f"no measure {name!r}: choose from {', '.join(measures.known_measures())}"
    )
    assert (code, out, err) == (1, "", f"Error: {reason}\n")
    assert {path: path.read_bytes() for path in record.path.iterdir()} == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_in_use_is_told_of(record, capsys, monkeypatch, kept):
    """Another process trains it, where its weights are kept and where they have to be."""
    monkeypatch.setattr(weights if not kept else later, "PATIENCE", 0.1)
    if not kept:
        (record.path / records.WEIGHTS).unlink()
    with lock_run(SETTINGS.id):
        code, _, err = call(capsys, monkeypatch, "measure", SETTINGS.id, "--device", "cpu")
    assert code == 1 and err.splitlines() == [
        f"waiting for run {SETTINGS.id}: another process is using it",
        f"Error: run {SETTINGS.id} is still in use by another process after 0.1 s of waiting: try "
        "again when that process has ended",
    ]
    shown("A run stays in use", err)


def test_the_command_measures_with_a_plugin(record, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plugins, "LOADED", {})
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from metanb.landscape.measures import per_task\n"
        "@per_task('twice_the_loss')\n"
        "def twice(at):\n"
        "    return 2 * at.loss_before\n"
    )
    try:
        options = ["--plugin", plugin, "--device", "cpu"]
        code, out, err = call(capsys, monkeypatch, "measure", SETTINGS.id, *options)
    finally:
        measures.PER_TASK.pop("twice_the_loss", None)
        MEASURES.pop("twice_the_loss", None)
    assert code == 0 and err == ""
    after = records.read_record(record.path)
    mean = 2 * record.curve("support_loss_before")["mean"].iloc[-1]
    assert after.curve("twice_the_loss")["mean"].iloc[0] == pytest.approx(mean)
    assert out.startswith(f"twice_the_loss: {mean:.6g}") and out.endswith(f"record: {after.path}\n")
    assert '"plugins": "mine.py ' in (after.path / records.LATER).read_text()


def test_later_measures_move_between_machines(record, parameters, tmp_path, monkeypatch):
    later.measure_later(record, device="cpu")
    (packed,) = archive.pack_runs([SETTINGS], tmp_path / "packed", "runs")
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "elsewhere"))
    archive.unpack_runs(packed)
    moved = records.read_record(store_folder() / SETTINGS.id)
    assert moved.curve("n_parameters")["mean"].iloc[0] == parameters


ROW = dict.fromkeys(records.COLUMNS, 2) | {"measure": "mine"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"rows": 3}',
        b'{"rows": [{}], "origins": []}',
        b'{"rows": {}, "origins": []}',
        b'{"rows": [], "origins": [3]}',
        b'{"rows": [], "origins": [{"measures": 3}]}',
        *(
            json.dumps({"rows": rows, "origins": []}).encode()
            for rows in ([ROW | {"measure": ["x"]}], [ROW | {"measure": None}], [ROW, ROW])
        ),
    ],
)
def test_a_damaged_file_is_named(record, content):
    (record.path / records.LATER).write_bytes(content)
    with pytest.raises(RecordError, match=r"later.json is damaged: .*delete the file") as error:
        records.read_record(record.path)
    assert "\n" not in str(error.value)
    shown("Later measures are damaged", f"Error: {error.value}")
