"""Records: what is written is read back, and every way of being damaged is refused by name."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metanb.runs import records
from metanb.runs.records import PROVENANCE, Record, RecordError
from metanb.settings import Settings
from tests.support.bad_days import shown

SETTINGS = Settings(iterations=2, epoch_iterations=1, filters=3)


def rows(epochs=3):
    stat = {"mean": 1 / 3, "median": 0.25, "std": 0.5, "sem": 0.1, "n": 8}
    return [
        {"epoch": e, "iteration": e, "measure": m} | stat
        for e in range(epochs)
        for m in ("distance", "support_loss")
    ]


def write(folder):
    return records.write_record(SETTINGS, rows(), dict.fromkeys(PROVENANCE, "x"), folder)


def test_round_trip(tmp_path):
    record = write(tmp_path)
    assert record.settings == SETTINGS
    assert record.path == tmp_path / SETTINGS.id
    opened = pd.read_csv(record.path / "measures.csv")
    pd.testing.assert_frame_equal(opened, pd.DataFrame(rows()), rtol=1e-8)
    assert list(record.curve("distance").index) == [0, 1, 2]
    with pytest.raises(RecordError, match=r"flatness.*distance, support_loss") as error:
        record.curve("flatness")
    shown("A record is of an older version", f"Error: {error.value}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [SETTINGS.id]


def test_measures_keep_names_that_pandas_takes_for_missing(tmp_path):
    renamed = [row | {"measure": {"distance": "null"}.get(row["measure"], "NA")} for row in rows()]
    renamed[0]["sem"] = float("nan")
    provenance = dict.fromkeys(PROVENANCE, "x")
    record = records.write_record(SETTINGS, renamed, provenance, tmp_path)
    assert list(record.measures.measure) == ["null", "NA"] * 3
    assert record.curve("null")["sem"].isna().tolist() == [True, False, False]
    assert record.curve("NA")["mean"].tolist() == pytest.approx([1 / 3] * 3)


def test_values_and_curve_are_the_rows_of_a_measure_and_copies_of_them():
    """Rows in no order of measures, and one measure with a gap."""
    rng = np.random.default_rng(0)
    places = [(e, m) for e in range(4) for m in rng.permutation(["b", "a", "c"])]
    places.remove((2, "a"))
    table = pd.DataFrame(places, columns=["epoch", "measure"])
    table[["mean", "sem"]] = rng.normal(size=(len(table), 2))
    record = Record(SETTINGS, table, {}, Path("by-hand"))
    for _ in range(2):
        for measure in "abc":
            expected = table[table.measure == measure]
            curve = record.curve(measure)
            assert curve.index.tolist() == expected.epoch.tolist()
            assert curve["sem"].tolist() == expected["sem"].tolist()
            epochs, means = record.values(measure)
            assert epochs.tolist() == expected.epoch.tolist()
            assert means.tolist() == expected["mean"].tolist()
            # what a caller does to them stays with the caller
            curve["sem"] = 0.0
            epochs[:], means[:] = 0, 0.0


def test_a_record_up_to_an_epoch(tmp_path):
    record = write(tmp_path)
    assert [record.upto(epoch).epochs for epoch in (0, 1, 2, 9)] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="^epochs is -1: give an epoch, 0 or later$"):
        record.upto(-1)


def test_a_compressed_table_is_the_same_record(tmp_path):
    record = write(tmp_path)
    compress(record.path)
    again = records.read_record(record.path)
    pd.testing.assert_frame_equal(again.measures, record.measures)
    assert again.provenance == record.provenance
    # whoever trains it anew finds it, and leaves it as it is
    assert records.find_record(SETTINGS) is None and write(tmp_path).path == record.path
    assert not (record.path / "measures.csv").exists()


def damage_csv(path):
    content = (path / "measures.csv").read_text()
    (path / "measures.csv").write_text(content[: len(content) // 2])


def damage_number(path):
    content = (path / "measures.csv").read_text()
    (path / "measures.csv").write_text(content.replace("0.25", "0.75", 1))


def damage_json(path):
    (path / "settings.json").write_text('{"ways": 5,')


def foreign(path):
    values = json.loads((path / "settings.json").read_text())
    (path / "settings.json").write_text(json.dumps(values | {"seed": 1}))


def unknown(path):
    values = json.loads((path / "settings.json").read_text())
    (path / "settings.json").write_text(json.dumps(values | {"wayz": 1}))


def no_device(path):
    values = json.loads((path / "provenance.json").read_text())
    del values["device"]
    (path / "provenance.json").write_text(json.dumps(values))


def missing(path):
    os.remove(path / "measures.csv")


def missing_settings(path):
    os.remove(path / "settings.json")


def not_text(path):
    (path / "settings.json").write_bytes(b"\xff\xfe")


def list_for_word(path):
    values = json.loads((path / "settings.json").read_text())
    (path / "settings.json").write_text(json.dumps(values | {"algorithm": ["maml"]}))


def nested_settings(path):
    (path / "settings.json").write_text("[" * 100_000)


def nested_provenance(path):
    (path / "provenance.json").write_text('{"metanb": ' + "[" * 100_000)


def empty(path):
    (path / "provenance.json").write_text("null")


def compress(path):
    """Put measures.csv.gz in place of measures.csv, as `gzip -9n` does."""
    table = path / "measures.csv"
    (path / "measures.csv.gz").write_bytes(gzip.compress(table.read_bytes(), mtime=0))
    table.unlink()


def damage_compressed(path):
    compress(path)
    content = (path / "measures.csv.gz").read_bytes()
    (path / "measures.csv.gz").write_bytes(content[: len(content) // 2])


def no_compressed(path):
    compress(path)
    (path / "measures.csv.gz").write_bytes(b"epoch,iteration")


DAMAGES = [
    damage_compressed,
    no_compressed,
    damage_csv,
    damage_number,
    damage_json,
    foreign,
    unknown,
    no_device,
    missing,
    missing_settings,
    not_text,
    list_for_word,
    nested_settings,
    nested_provenance,
    empty,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_record_is_refused_by_name(tmp_path, damage):
    record = write(tmp_path)
    damage(record.path)
    with pytest.raises(RecordError, match=SETTINGS.id) as error:
        records.read_record(record.path)
    assert "delete the folder" in str(error.value)
    with pytest.raises(RecordError, match=SETTINGS.id):
        records.read_records(tmp_path)
    assert "\n" not in str(error.value)


def test_epochs_with_a_gap_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(RecordError, match="epochs 0, 1, 2 and so on"):
        records.write_record(
            SETTINGS, [rows()[0], rows()[-1]], dict.fromkeys(PROVENANCE, "x"), tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_is_told_apart_and_gives_way_to_a_longer_one(tmp_path, monkeypatch):
    store = tmp_path / "store"
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("METANB_STORE", str(store))
    stopped = records.write_record(SETTINGS, rows(epochs=2), dict.fromkeys(PROVENANCE, "x"), store)
    assert (
        stopped.path.name == f"{SETTINGS.id}-to-1" and stopped.epochs == 1 and not stopped.finished
    )
    assert records.find_record(SETTINGS) is None  # it is to be trained on
    whole = write(store)
    assert (
        whole.finished
        and records.find_record(SETTINGS).path == whole.path
        and not stopped.path.exists()
    )
    again = records.write_record(SETTINGS, rows(epochs=2), dict.fromkeys(PROVENANCE, "x"), store)
    assert again.path == whole.path and [path.name for path in store.iterdir()] == [SETTINGS.id]
    stopped = records.write_record(
        SETTINGS, rows(epochs=2), dict.fromkeys(PROVENANCE, "x"), elsewhere
    )
    # the furthest of the two
    assert [run.epochs for run in records.read_records(elsewhere, store)] == [2]
    stopped.path.rename(elsewhere / f"{SETTINGS.id}-to-2")
    with pytest.raises(RecordError, match="it holds 1 epochs"):
        records.read_records(elsewhere)


@pytest.mark.parametrize("file", [records.WEIGHTS, records.LATER])
def test_a_shorter_record_with_weights_or_later_measures_stays(tmp_path, monkeypatch, file):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    provenance = dict.fromkeys(PROVENANCE, "x")
    stopped = records.write_record(SETTINGS, rows(epochs=2), provenance, tmp_path)
    if file == records.WEIGHTS:
        records.attach_weights(stopped, b"weights")
    else:
        records.add_later(stopped, [rows(epochs=2)[-1] | {"measure": "mine"}], [{}])
    before = {path: path.read_bytes() for path in stopped.path.iterdir()}
    whole = write(tmp_path)
    assert {path: path.read_bytes() for path in stopped.path.iterdir()} == before
    assert file in {path.name for path in before}
    # Who asks for the run gets the longer one.
    assert records.find_record(SETTINGS, 1).path == whole.path
    assert [record.path for record in records.read_records(tmp_path)] == [whole.path]
    assert write(tmp_path).path == whole.path and stopped.path.exists()


def test_what_a_kill_leaves_is_cleared_and_what_is_no_record_is_let_be(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    shorter = records.write_record(
        SETTINGS, rows(epochs=2), dict.fromkeys(PROVENANCE, "x"), tmp_path
    ).path
    shorter.with_name(f"{shorter.name}.bak").mkdir()  # somebody's own

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            records.shutil,
            "rmtree",
            lambda path, **kwargs: killed() if path.name.endswith("old") else None,
        )
        write(tmp_path)
    assert records.find_record(SETTINGS).finished
    shorter.with_name(f"{shorter.name}.bak").rmdir()
    assert [record.epochs for record in records.read_records(tmp_path)] == [
        2
    ]  # nothing torn is seen
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SETTINGS.id]


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_find_looks_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    assert records.find_record(SETTINGS) is None
    write(tmp_path)
    record = records.find_record(SETTINGS)
    assert record is not None and record.finished and record.path.parent == tmp_path
    assert [record.path for record in records.read_records(tmp_path)] == [record.path]


def test_what_is_no_record_is_left_alone(tmp_path):
    """A store may be a disk of its own, or hold other things; it may not be there yet."""
    record = write(tmp_path)
    for name in ("lost+found", "data", ".hidden", "notes-s1-draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.txt").write_text("not ours")
    assert [run.path for run in records.read_records(tmp_path)] == [record.path]
    assert records.read_records(tmp_path / "not-there-yet") == []
    # What is named like a record is one, and a damaged one is not passed over.
    (tmp_path / "birds-5w1s-maml-s0-0123abcd").mkdir()
    with pytest.raises(RecordError, match="birds-5w1s-maml-s0-0123abcd is damaged"):
        records.read_records(tmp_path)
