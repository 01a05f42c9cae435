"""Archives: packed runs come out elsewhere to the byte and go on there.

An archive that is damaged or foreign is refused.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch

from metanb.files import DiskError
from metanb.runs import archive, checkpoint, experiment, records, training, weights
from metanb.runs import store as run_store
from metanb.runs.archive import ArchiveError
from metanb.settings import preset
from tests.support.bad_days import shown
from tests.support.runs import SMALL

TINY = preset("smoke", "glyphs", iterations=9, epoch_iterations=3, **SMALL)
STOPPED = replace(TINY, seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a finished run and a run stopped after epoch 2; its undisturbed measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("whole")))
        whole = (experiment.run(STOPPED, "cpu").path / "measures.csv").read_bytes()
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("made")))
        experiment.run(TINY, "cpu")
        _stop_after(2, patch)
        return run_store.store_folder(), whole


@pytest.fixture
def stores(made, tmp_path, monkeypatch):
    """To choose the store in use; "first", which is, begins as a copy of what was made."""
    shutil.copytree(made[0], tmp_path / "first")

    def use(name):
        monkeypatch.setenv("METANB_STORE", str(tmp_path / name))
        return tmp_path / name

    use("first")
    return use


def _stop_after(epochs, monkeypatch):
    honest = training.measure_together
    calls = []

    def stops(*arguments):
        calls.append(1)
        if len(calls) > epochs + 1:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(training, "measure_together", stops)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(STOPPED, "cpu")
    monkeypatch.setattr(training, "measure_together", honest)
    experiment.record_so_far(STOPPED, "cpu")


def _members(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def _rezip(path, members, digests=None):
    """The members as an archive with a true manifest, or with the digests given."""
    members = {name: content for name, content in members.items() if name != archive.MANIFEST}
    digests = digests or {
        name: hashlib.sha256(content).hexdigest() for name, content in members.items()
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {**members, archive.MANIFEST: json.dumps(digests).encode()}.items():
            file.writestr(name, content)
    return path


def test_runs_come_out_elsewhere_and_go_on_there(stores, tmp_path, made):
    (path,) = archive.pack_runs([TINY, STOPPED, replace(TINY, seed=2)], tmp_path / "out", "tiny")
    assert path.name == "tiny-01.zip" and path.stat().st_size < 16 * 2**20
    stopped = f"{STOPPED.id}-to-6"
    files = ("settings.json", "provenance.json", "measures.csv")
    expected = {f"{folder}/{file}" for folder in (TINY.id, stopped) for file in files}
    # no finished checkpoint
    assert _members(path).keys() == expected | {archive.MANIFEST, f"{STOPPED.id}.pt"}
    first = stores("first")
    second = stores("second")
    lines = archive.unpack_runs(path)
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    for name in expected:
        assert (second / name).read_bytes() == (first / name).read_bytes()
    record = experiment.run(STOPPED, "cpu")
    assert record.provenance["resumed"] == 1
    assert (record.path / "measures.csv").read_bytes() == made[1]
    assert not (second / stopped).exists()


def test_a_shorter_record_with_weights_is_packed_beside_the_longer_one(stores, tmp_path):
    shorter = records.find_record(STOPPED, 0)
    weights.keep_weights(shorter)
    longer = experiment.run(STOPPED, "cpu")
    (path,) = archive.pack_runs([STOPPED], tmp_path / "out", "tiny")
    second = stores("second")
    assert archive.unpack_runs(path) == [
        f"record {second / shorter.path.name}",
        f"record {second / longer.path.name}",
    ]
    for record in (shorter, longer):
        for file in record.path.iterdir():
            assert (second / record.path.name / file.name).read_bytes() == file.read_bytes()
    kept = weights.find_weights(STOPPED, shorter.epochs)
    assert kept.path == second / shorter.path.name and weights.load_weights(kept)


def test_runs_of_a_data_set_with_to_in_its_name_come_out_elsewhere(stores, tmp_path):
    content = "1x28x28-0123456789abcdef"
    whole, stopped = (
        replace(settings, dataset="apple-to-orange", content=content)
        for settings in (TINY, STOPPED)
    )
    for settings, glyphs in ((whole, TINY), (stopped, STOPPED)):
        record = records.find_record(glyphs, 0)
        rows = record.measures.to_dict("records")
        records.write_record(settings, rows, record.provenance, stores("first"))
        shutil.copy(run_store.checkpoint_path(glyphs.id), run_store.checkpoint_path(settings.id))
    (path,) = archive.pack_runs([whole, stopped], tmp_path / "out", "fruit")
    second = stores("second")
    assert archive.unpack_runs(path) == [
        f"record {second / whole.id}",
        f"record {second / stopped.id}-to-6",
        f"checkpoint {second / stopped.id}.pt, epoch 2",
    ]
    assert {path.stem for path in second.glob("*.lock")} == {whole.id, stopped.id}


def test_a_run_that_was_killed_before_its_record_is_packed(stores, tmp_path):
    shutil.rmtree(stores("first") / TINY.id)
    (path,) = archive.pack_runs([TINY], tmp_path / "out", "tiny")
    assert _members(path).keys() == {archive.MANIFEST, f"{TINY.id}.pt"}


def test_packing_twice_gives_the_same_bytes(stores, tmp_path):
    first, second = (
        archive.pack_runs([TINY, STOPPED], tmp_path / name, "tiny")[0].read_bytes()
        for name in ("a", "b")
    )
    assert first == second


def test_what_is_as_far_stays(stores, tmp_path):
    (path,) = archive.pack_runs([STOPPED], tmp_path / "out", "tiny")
    experiment.run(STOPPED, "cpu")
    before = {file: file.read_bytes() for file in stores("first").rglob("*") if file.is_file()}
    record, kept = archive.unpack_runs(path)
    assert record == f"record {records.find_record(STOPPED).path}" and kept.endswith(
        "is as far already"
    )
    assert {
        file: file.read_bytes() for file in stores("first").rglob("*") if file.is_file()
    } == before


def test_volumes_hold_whole_runs_below_the_limit(stores, tmp_path, monkeypatch):
    size = sum(
        map(len, _members(archive.pack_runs([STOPPED], tmp_path / "one", "tiny")[0]).values())
    )
    monkeypatch.setattr(archive, "LIMIT", size)
    paths = archive.pack_runs([TINY, STOPPED], tmp_path / "out", "tiny")
    assert [path.name for path in paths] == ["tiny-01.zip", "tiny-02.zip"]
    assert [any(name.endswith(".pt") for name in _members(path)) for path in paths] == [False, True]
    monkeypatch.setattr(archive, "LIMIT", 1000)
    with pytest.raises(ArchiveError, match=TINY.id):
        archive.pack_runs([TINY], tmp_path / "other", "tiny")


def test_an_archive_is_not_replaced_by_one_that_holds_less(stores, tmp_path, monkeypatch):
    size = sum(
        map(len, _members(archive.pack_runs([STOPPED], tmp_path / "out", "tiny")[0]).values())
    )
    with pytest.raises(
        ArchiveError, match=rf"tiny-01.zip holds runs .*{STOPPED.id}: name another folder"
    ):
        archive.pack_runs([TINY], tmp_path / "out", "tiny")
    unrelated = tmp_path / "out" / "tiny-01.2024.zip"  # somebody else's
    unrelated.write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "LIMIT", size)
        assert len(archive.pack_runs([TINY, STOPPED], tmp_path / "out", "tiny")) == 2
    (path,) = archive.pack_runs([TINY, STOPPED], tmp_path / "out", "tiny")
    # no volume of the earlier two is left
    assert sorted((tmp_path / "out").iterdir()) == [unrelated, path]


def _train_anew(stores, name, *, until):
    """As after a loss of the store: the run is trained again, and stopped early."""
    stores(name)
    return experiment.run(TINY, "cpu", until=until)


def _refuses(folder, settings, what):
    """Whether an archive is not replaced, because it holds more of the run than the store."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArchiveError) as error:
        archive.pack_runs([settings], folder, "tiny")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return str(error.value) == (
        f"archive {folder / 'tiny-01.zip'} holds more of run {settings.id} than the store, such as "
        f"{what}: import it first, or name another folder"
    )


def test_an_archive_that_holds_a_further_record_is_not_replaced(stores, tmp_path):
    (path,) = archive.pack_runs([TINY], tmp_path / "out", "tiny")
    _train_anew(stores, "second", until=3)
    assert _refuses(tmp_path / "out", TINY, "the record of epoch 3")
    # The remedy: what is imported is packed again. The same run, packed again, is no less.
    archive.unpack_runs(path)
    assert archive.pack_runs([TINY], tmp_path / "out", "tiny") == [path]
    assert f"{TINY.id}/measures.csv" in _members(path)
    assert archive.pack_runs([TINY], tmp_path / "out", "tiny") == [path]


def test_an_archive_that_holds_weights_is_not_replaced_by_one_without(stores, tmp_path):
    """Those of the whole record, and those of a shorter one."""
    shutil.copytree(stores("first"), stores("second"))
    stores("first")
    for settings in (TINY, STOPPED):
        record = records.find_record(settings, 0)
        weights.keep_weights(record)
        folder = tmp_path / settings.id
        archive.pack_runs([settings], folder, "tiny")
        stores("second")
        experiment.run(settings, "cpu")  # STOPPED goes on to its end
        assert _refuses(folder, settings, f"the weights of record {record.path.name}")
        stores("first")


def test_an_archive_that_holds_a_later_measure_is_not_replaced_by_one_without(stores, tmp_path):
    shutil.copytree(stores("first"), stores("second"))
    stores("first")
    _take_later(records.find_record(TINY), 1.0, "mine", "yours")
    archive.pack_runs([TINY], tmp_path / "out", "tiny")
    stores("second")
    bare = records.find_record(TINY)
    _take_later(bare, 2.0, "mine")
    assert _refuses(tmp_path / "out", TINY, f"measure 'yours' of record {TINY.id}")
    _take_later(bare, 2.0, "yours")
    assert len(archive.pack_runs([TINY], tmp_path / "out", "tiny")) == 1


def test_an_archive_that_holds_a_further_checkpoint_is_not_replaced(stores, tmp_path):
    """One of a run that was killed before its record; a whole record stands for its checkpoint."""
    shutil.rmtree(stores("first") / f"{STOPPED.id}-to-6")
    (path,) = archive.pack_runs([STOPPED], tmp_path / "out", "tiny")
    stores("second")
    shutil.rmtree(experiment.run(STOPPED, "cpu", until=3).path)
    assert _refuses(tmp_path / "out", STOPPED, "the checkpoint of epoch 2")
    experiment.run(STOPPED, "cpu")
    assert archive.pack_runs([STOPPED], tmp_path / "out", "tiny") == [path]
    assert f"{STOPPED.id}.pt" not in _members(path)


def test_an_archive_is_not_packed_from_a_torn_checkpoint(stores, tmp_path):
    run_store.checkpoint_path(STOPPED.id).write_bytes(b"torn")
    with pytest.raises(records.RecordError, match=rf"{STOPPED.id}.pt cannot be read"):
        archive.pack_runs([STOPPED], tmp_path / "out", "tiny")


def test_a_full_disk_leaves_all_archives_as_they_were(stores, tmp_path, monkeypatch):
    """The first new one can be written, the second cannot, and the runs have changed places."""
    monkeypatch.setattr(archive, "LIMIT", 40_000)
    folder = tmp_path / "out"
    assert len(archive.pack_runs([STOPPED, TINY], folder, "tiny")) == 2
    before = {path: path.read_bytes() for path in folder.iterdir()}
    honest = os.fsync
    synced = []

    def full(number):
        synced.append(number)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"cannot write .*tiny-02.zip \(No space left"):
        archive.pack_runs([TINY, STOPPED], folder, "tiny")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert len(archive.pack_runs([TINY, STOPPED], folder, "tiny")) == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} != before


def test_an_archive_may_have_any_name(stores, tmp_path):
    for _ in range(2):
        (path,) = archive.pack_runs([TINY], tmp_path / "out", "a[b+")
        assert list((tmp_path / "out").iterdir()) == [path]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _swap(path):
    members = _members(path)
    digests = json.loads(members[archive.MANIFEST])
    name = next(name for name in members if name.endswith("measures.csv"))
    _rezip(path, members | {name: members[name].replace(b"distance", b"Distance")}, digests)


def _encrypted(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, _swap, _encrypted])
def test_a_damaged_archive_is_refused_by_name_and_writes_nothing(stores, tmp_path, damage):
    (path,) = archive.pack_runs([TINY, STOPPED], tmp_path / "out", "tiny")
    damage(path)
    second = stores("second")
    with pytest.raises(ArchiveError, match=r"tiny-01.zip is damaged.*copy it again") as error:
        archive.unpack_runs(path)
    assert "\n" not in str(error.value) and not second.exists()
    if damage is _truncate:
        shown("An archive is damaged", f"Error: {error.value}")


def test_a_zip_of_something_else_is_no_archive(stores, tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello", "world")
    second = stores("second")
    with pytest.raises(ArchiveError) as error:
        archive.unpack_runs(path)
    assert str(error.value) == (
        f"{path} is no archive of metanb: it has no MANIFEST.json; name a file that "
        "`metanb grid --export` wrote"
    )
    assert not second.exists()


FOREIGN = ["../evil.pt", "/tmp/evil.pt", "a/b.txt", "a/../settings.json", "weights.safetensors"]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_members_are_refused(stores, tmp_path, name):
    path = _rezip(tmp_path / "foreign.zip", {name: b"x"})
    with pytest.raises(ArchiveError, match="neither a record nor a checkpoint"):
        archive.unpack_runs(path)


def _lacking(members, record):
    del members[f"{record}/provenance.json"]


def _no_json(members, record):
    members[f"{record}/settings.json"] = b"{"


def _one_digit(members, record):
    members[f"{record}/measures.csv"] += b"1"


def _no_table(members, record):
    """As the provenance has it, but of rows that differ in length."""
    table = b"epoch\n1,2\n3,4,5\n"
    values = json.loads(members[f"{record}/provenance.json"])
    values |= {"measures_sha256": hashlib.sha256(table).hexdigest()}
    members[f"{record}/measures.csv"] = table
    members[f"{record}/provenance.json"] = json.dumps(values).encode()


def _misnamed(members, record):
    for file in records.FILES:
        members[f"other-s0-01234567/{file}"] = members.pop(f"{record}/{file}")


def _later_of_no_epoch(members, record):
    row = dict.fromkeys(records.COLUMNS, 99) | {"measure": "mine"}
    members[f"{record}/later.json"] = json.dumps({"rows": [row], "origins": [{}]}).encode()


BAD_RECORDS = {
    _lacking: "it lacks provenance.json",
    _no_json: "settings.json: Expecting property name",
    _one_digit: "measures.csv is not the file that was recorded",
    _no_table: "measures.csv is no table",
    _misnamed: "it holds 3 epochs of",
    _later_of_no_epoch: "its measures are not new",
}


@pytest.mark.parametrize("change", BAD_RECORDS)
def test_a_record_that_is_none_is_refused_by_name_and_nothing_is_written(stores, tmp_path, change):
    """Under a true manifest, behind a whole record."""
    (path,) = archive.pack_runs([STOPPED, TINY], tmp_path / "out", "tiny")
    members = _members(path)
    change(members, TINY.id)
    second = stores("second")
    changed = _rezip(tmp_path / "changed.zip", members)
    name = "other-s0-01234567" if change is _misnamed else TINY.id
    with pytest.raises(
        ArchiveError,
        match=rf"^archive {changed} holds record {name}, which is damaged: "
        rf"{BAD_RECORDS[change]}.*; ask for a whole one$",
    ):
        archive.unpack_runs(changed)
    assert not second.exists()


class _Runs:
    """Code that would run if it were unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_kept_weights_go_with_their_records(stores, tmp_path, monkeypatch):
    expected = {}
    for settings in (TINY, STOPPED):
        weights.keep_weights(records.find_record(settings, 0))
        expected[settings] = checkpoint.read_checkpoint(run_store.checkpoint_path(settings.id))[
            "net"
        ]
    store = stores("first")
    first = {path.relative_to(store): path.read_bytes() for path in _kept(store)}
    (path,) = archive.pack_runs([TINY, STOPPED], tmp_path / "out", "tiny")
    second = stores("second")
    archive.unpack_runs(path)
    assert {path.relative_to(second): path.read_bytes() for path in _kept(second)} == first
    assert len(first) == 2 and not run_store.checkpoint_path(TINY.id).exists()
    monkeypatch.setattr(training, "train_together", None)  # calling it would raise
    for settings, epoch in ((TINY, 3), (STOPPED, 2)):
        state = experiment.nets_after(settings, [epoch], "cpu")[epoch].state_dict()
        assert all(torch.equal(state[name], expected[settings][name]) for name in state)


def _kept(store):
    return sorted(store.rglob(records.WEIGHTS))


def test_weights_join_a_record_of_the_same_training_alone(stores, tmp_path):
    (bare,) = archive.pack_runs([TINY], tmp_path / "bare", "tiny")
    path = weights.keep_weights(records.find_record(TINY))
    (whole,) = archive.pack_runs([TINY], tmp_path / "whole", "tiny")
    second = stores("second")
    archive.unpack_runs(bare)
    assert _kept(second) == []
    archive.unpack_runs(whole)
    assert [kept.read_bytes() for kept in _kept(second)] == [path.read_bytes()]
    assert weights.load_weights(records.find_record(TINY)) is not None
    archive.unpack_runs(bare)
    assert len(_kept(second)) == 1  # what is there stays

    third = stores("third")
    experiment.run(TINY, "cpu")
    provenance = third / TINY.id / "provenance.json"
    values = json.loads(provenance.read_text()) | {"finished": "2020-01-01T00:00:00+00:00"}
    provenance.write_text(json.dumps(values))  # as if it had been trained at another time
    archive.unpack_runs(whole)
    assert _kept(third) == [] and json.loads(provenance.read_text()) == values


def _take_later(record, mean, *names):
    row = {"epoch": record.epochs, "iteration": record.iterations, "mean": mean, "median": mean}
    row |= {"std": 0.5, "sem": 0.25, "n": 4}
    rows = [row | {"measure": name} for name in names]
    return records.add_later(record, rows, [{"measures": list(names), "taken": f"of {mean}"}])


def _later(record):
    return {row["measure"]: row["mean"] for row in records.read_later(record.path)["rows"]}


@pytest.mark.parametrize("settings", [TINY, STOPPED])
def test_later_measures_join_a_record_of_the_same_training_alone(stores, tmp_path, settings):
    record = records.find_record(settings, 0)
    shutil.copytree(run_store.store_folder(), stores("second"))
    shutil.copytree(run_store.store_folder(), stores("third"))
    stores("first")
    _take_later(_take_later(record, 1.0, "mine", "yours"), 2.0, "ours")
    (path,) = archive.pack_runs([settings], tmp_path / "out", "tiny")

    # The store's own measure stays, the others join it; a second time nothing is new.
    folder = stores("second") / record.path.name
    there = _take_later(records.read_record(folder), 3.0, "yours")
    if settings == STOPPED:  # a record that goes further stands beside it
        experiment.run(STOPPED, "cpu")
    lines = archive.unpack_runs(path)
    assert lines[0] == (
        f"record {folder}; later measures added: mine, ours; left as they are there: yours"
    )
    assert _later(there) == {"yours": 3.0, "mine": 1.0, "ours": 2.0}
    assert records.read_record(folder).curve("mine")["mean"].tolist() == [1.0]
    origins = [
        (origin["measures"], origin["taken"]) for origin in records.read_later(folder)["origins"]
    ]
    assert origins == [(["yours"], "of 3.0"), (["mine"], "of 1.0"), (["ours"], "of 2.0")]
    assert archive.unpack_runs(path)[0] == f"record {folder}; left as they are there: yours"

    # A record of another training gets none.
    provenance = stores("third") / record.path.name / "provenance.json"
    values = json.loads(provenance.read_text()) | {"finished": "2020-01-01T00:00:00+00:00"}
    provenance.write_text(json.dumps(values))
    assert archive.unpack_runs(path)[0] == (
        f"record {provenance.parent}; left out, as another training's: later measures mine, "
        "yours, ours"
    )
    assert _later(records.read_record(provenance.parent)) == {}


def _other_bytes(members, record):
    member = f"{record}/{records.WEIGHTS}"
    return {member: members[member][:-4] + bytes(4)}


def _other_settings(members, record):
    values = json.loads(members[f"{record}/settings.json"]) | {"filters": 5}
    return {f"{record}/settings.json": json.dumps(values).encode()}


def _unlisted(members, record):
    values = json.loads(members[f"{record}/provenance.json"])
    del values["weights_sha256"]
    return {f"{record}/provenance.json": json.dumps(values).encode()}


def _no_object(members, record):
    return {f"{record}/provenance.json": b"[]"}


def _nested(members, record):
    return {f"{record}/provenance.json": b"[" * 100_000}


def _pickled(members, record):
    """Code in place of numbers, with the checksum to go with it."""
    stream = io.BytesIO()
    torch.save({"net": _Runs()}, stream)
    checksum = {"weights_sha256": hashlib.sha256(stream.getvalue()).hexdigest()}
    values = json.loads(members[f"{record}/provenance.json"]) | checksum
    return {
        f"{record}/{records.WEIGHTS}": stream.getvalue(),
        f"{record}/provenance.json": json.dumps(values).encode(),
    }


OF_WEIGHTS = [_other_bytes, _unlisted, _pickled]
UNFIT = [*OF_WEIGHTS, _other_settings, _no_object, _nested, None]


@pytest.mark.parametrize("change", UNFIT)
def test_weights_that_are_not_their_records_are_refused(stores, tmp_path, change, capsys):
    """Under a true manifest. None: the weights come without their record."""
    weights.keep_weights(records.find_record(TINY))
    (path,) = archive.pack_runs([TINY], tmp_path / "out", "tiny")
    members = _members(path)
    if change is None:
        member = f"{TINY.id}/{records.WEIGHTS}"
        members = {member: members[member]}
    else:
        members |= change(members, TINY.id)
    second = stores("second")
    changed = _rezip(tmp_path / "changed.zip", members)
    member = f"{TINY.id}/weights" if change in OF_WEIGHTS else f"record {TINY.id}, which is damaged"
    with pytest.raises(ArchiveError, match=rf"changed.zip holds {member}.*whole one") as error:
        archive.unpack_runs(changed)
    assert "\n" not in str(error.value) and "unpickled" not in capsys.readouterr().out
    assert not second.exists()


def test_an_archive_is_not_packed_from_damaged_weights(stores, tmp_path):
    path = weights.keep_weights(records.find_record(TINY))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(records.RecordError, match="delete the file"):
        archive.pack_runs([TINY], tmp_path / "out", "tiny")
    assert not (tmp_path / "out").exists()


def _earlier_archive(path, settings):
    """Pack a run as an earlier version did: its record, and `<record>.pt` beside it."""
    record = records.find_record(settings, 0).path
    values = checkpoint.read_checkpoint(run_store.checkpoint_path(settings.id))
    stream = io.BytesIO()
    torch.save({"epoch": values["epoch"], "net": values["net"]}, stream)
    members = {f"{record.name}/{file}": (record / file).read_bytes() for file in records.FILES}
    return _rezip(path, members | {f"{record.name}.pt": stream.getvalue()})


def test_weights_in_archives_of_an_earlier_version_serve_to_measure(stores, tmp_path, monkeypatch):
    trained = experiment.trained_net(TINY, "cpu").state_dict()
    path = _earlier_archive(tmp_path / "tiny-weights-01.zip", TINY)
    stores("second")
    archive.unpack_runs(path)
    assert set(checkpoint.read_checkpoint(run_store.checkpoint_path(TINY.id))) == {"epoch", "net"}
    monkeypatch.setattr(training, "train_together", None)  # calling it would raise
    state = experiment.trained_net(TINY, "cpu").state_dict()
    assert all(torch.equal(state[name], trained[name]) for name in trained)
    assert experiment.run(TINY, "cpu").finished


def test_those_of_a_stopped_run_are_from_its_last_epoch(stores, tmp_path, monkeypatch, made):
    trained, later = (
        net.state_dict() for net in experiment.nets_after(STOPPED, [2, 3], "cpu").values()
    )
    # the run is where it was stopped
    shutil.copytree(made[0], tmp_path / "first", dirs_exist_ok=True)
    shutil.rmtree(stores("first") / STOPPED.id)
    path = _earlier_archive(tmp_path / "tiny-weights-01.zip", STOPPED)
    stores("second")
    record, _ = archive.unpack_runs(path)
    assert record.endswith(f"{STOPPED.id}-to-6")
    # the run itself could not go on from weights alone
    assert not run_store.checkpoint_path(STOPPED.id).exists()
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_together", None)
        state = experiment.nets_after(STOPPED, [2], "cpu")[2].state_dict()
    assert all(torch.equal(state[name], trained[name]) for name in trained)
    state = experiment.nets_after(STOPPED, [2, 3], "cpu")[3].state_dict()  # the rest from the start
    assert all(torch.equal(state[name], later[name]) for name in later)
    weights_file = f"{STOPPED.id}-to-6.pt"
    lone = _rezip(tmp_path / "lone.zip", {weights_file: _members(path)[weights_file]})
    with pytest.raises(ArchiveError, match=f"{weights_file} without a record"):
        archive.unpack_runs(lone)


@pytest.mark.parametrize(
    "content",
    [{"epoch": 1, "net": _Runs()}, torch.zeros(2), {"epoch": 1}, {"epoch": "1", "net": {}}, None],
)
def test_only_plain_weights_are_let_in(stores, tmp_path, content, capsys):
    """Nothing is written, not even the whole record before them."""
    (whole,) = archive.pack_runs([TINY], tmp_path / "out", "tiny")
    stream = io.BytesIO(b"no checkpoint")
    if content is not None:
        stream = io.BytesIO()
        torch.save(content, stream)
    members = _members(whole) | {f"{STOPPED.id}.pt": stream.getvalue()}
    path = _rezip(tmp_path / "weights.zip", members)
    second = stores("second")
    with pytest.raises(
        ArchiveError,
        match=rf"^archive {path} holds {STOPPED.id}.pt, which cannot be read.*: ask for a whole",
    ):
        archive.unpack_runs(path)
    assert not second.exists() and "unpickled" not in capsys.readouterr().out
