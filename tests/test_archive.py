"""Archives: what is packed comes out elsewhere to the byte and goes on there; what is damaged or foreign is refused."""

import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch

from metanb import archive, checkpoint, experiment, records, training
from metanb.archive import ArchiveError
from metanb.settings import preset
from tests.bad_days import shown

TINY = preset("smoke", "glyphs", filters=4, iterations=12, epoch_iterations=3, test_tasks=4, test_queries=2)
STOPPED = replace(TINY, seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a finished run and one stopped after its second epoch; and what the latter measures undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("whole")))
        whole = (experiment.run(STOPPED, "cpu").path / "measures.csv").read_bytes()
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("made")))
        experiment.run(TINY, "cpu")
        _stop_after(2, patch)
        return records.store(), whole


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
    honest, calls = training.measure_together, []

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
    digests = digests or {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {**members, archive.MANIFEST: json.dumps(digests).encode()}.items():
            file.writestr(name, content)
    return path


def test_runs_come_out_elsewhere_and_go_on_there(stores, tmp_path, made):
    (path,) = archive.write([TINY, STOPPED, replace(TINY, seed=2)], tmp_path / "out", "tiny")
    assert path.name == "tiny-01.zip" and path.stat().st_size < 16 * 2**20
    stopped = f"{STOPPED.id}-to-6"
    files = ("settings.json", "provenance.json", "measures.csv")
    expected = {f"{folder}/{file}" for folder in (TINY.id, stopped) for file in files}
    assert _members(path).keys() == expected | {archive.MANIFEST, f"{STOPPED.id}.pt"}  # no finished checkpoint
    first, second = stores("first"), stores("second")
    said = archive.read(path)
    assert len(said) == 3 and all("\n" not in line for line in said)
    for name in expected:
        assert (second / name).read_bytes() == (first / name).read_bytes()
    record = experiment.run(STOPPED, "cpu")
    assert record.provenance["resumed"] == 1
    assert (record.path / "measures.csv").read_bytes() == made[1]
    assert not (second / stopped).exists()


def test_a_run_that_was_killed_before_its_record_is_packed(stores, tmp_path):
    shutil.rmtree(stores("first") / TINY.id)
    (path,) = archive.write([TINY], tmp_path / "out", "tiny")
    assert _members(path).keys() == {archive.MANIFEST, f"{TINY.id}.pt"}


def test_packing_twice_gives_the_same_bytes(stores, tmp_path):
    one, two = (archive.write([TINY, STOPPED], tmp_path / name, "tiny")[0].read_bytes() for name in ("a", "b"))
    assert one == two


def test_what_is_as_far_stays(stores, tmp_path):
    (path,) = archive.write([STOPPED], tmp_path / "out", "tiny")
    experiment.run(STOPPED, "cpu")
    there = {file: file.read_bytes() for file in stores("first").rglob("*") if file.is_file()}
    record, kept = archive.read(path)
    assert record == f"record {records.find(STOPPED).path}" and kept.endswith("is as far already")
    assert {file: file.read_bytes() for file in stores("first").rglob("*") if file.is_file()} == there


def test_volumes_hold_whole_runs_below_the_limit(stores, tmp_path, monkeypatch):
    size = sum(map(len, _members(archive.write([STOPPED], tmp_path / "one", "tiny")[0]).values()))
    monkeypatch.setattr(archive, "LIMIT", size)
    paths = archive.write([TINY, STOPPED], tmp_path / "out", "tiny")
    assert [path.name for path in paths] == ["tiny-01.zip", "tiny-02.zip"]
    assert [any(name.endswith(".pt") for name in _members(path)) for path in paths] == [False, True]
    monkeypatch.setattr(archive, "LIMIT", 1000)
    with pytest.raises(ArchiveError, match=TINY.id):
        archive.write([TINY], tmp_path / "other", "tiny")


def test_an_archive_is_not_replaced_by_one_that_holds_less(stores, tmp_path, monkeypatch):
    size = sum(map(len, _members(archive.write([STOPPED], tmp_path / "out", "tiny")[0]).values()))
    with pytest.raises(ArchiveError, match=rf"tiny-01.zip holds runs .*{STOPPED.id}: name another folder"):
        archive.write([TINY], tmp_path / "out", "tiny")
    other = tmp_path / "out" / "tiny-01.2024.zip"  # somebody else's
    other.write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "LIMIT", size)
        assert len(archive.write([TINY, STOPPED], tmp_path / "out", "tiny")) == 2
    (path,) = archive.write([TINY, STOPPED], tmp_path / "out", "tiny")
    assert sorted((tmp_path / "out").iterdir()) == [other, path]  # no volume of the earlier two is left


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


def _bare(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello", "world")


@pytest.mark.parametrize("damage", [_truncate, _flip, _swap, _encrypted, _bare])
def test_a_damaged_archive_is_refused_by_name_and_writes_nothing(stores, tmp_path, damage):
    (path,) = archive.write([TINY, STOPPED], tmp_path / "out", "tiny")
    damage(path)
    second = stores("second")
    with pytest.raises(ArchiveError, match=r"tiny-01.zip is damaged.*copy it again") as error:
        archive.read(path)
    assert "\n" not in str(error.value) and not second.exists()
    if damage is _truncate:
        shown("An archive is damaged", f"Error: {error.value}")


@pytest.mark.parametrize("name", ["../evil.pt", "/tmp/evil.pt", "a/b.txt", "a/../settings.json"])
def test_foreign_members_are_refused(stores, tmp_path, name):
    path = _rezip(tmp_path / "foreign.zip", {name: b"x"})
    with pytest.raises(ArchiveError, match="neither a record nor a checkpoint"):
        archive.read(path)


def test_a_record_that_is_none_is_refused_and_leaves_nothing(stores, tmp_path):
    (path,) = archive.write([TINY], tmp_path / "out", "tiny")
    members = {name: content for name, content in _members(path).items() if not name.endswith("provenance.json")}
    second = stores("second")
    with pytest.raises(records.RecordError, match=TINY.id):
        archive.read(_rezip(path, members))
    assert {path.suffix for path in second.iterdir()} == {".lock"}


class _Runs:
    """Code that would run if it were unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_the_weights_of_a_cell_are_those_of_the_run_that_got_furthest(stores, tmp_path):
    third = replace(TINY, seed=2)
    experiment.run(third, "cpu", until=9)
    packed = [archive.write_weights(runs, tmp_path / "out", "tiny")[0] for runs in ([STOPPED], [STOPPED, third])]
    assert packed[0] == packed[1]  # that of another run of the cell takes its place
    assert [name for name in _members(packed[1]) if name.endswith(".pt")] == [f"{third.id}-to-9.pt"]
    other = replace(TINY, shots=2, iterations=3)
    experiment.run(other, "cpu")
    with pytest.raises(ArchiveError, match="holds runs that this one would not"):
        archive.write_weights([other], tmp_path / "out", "tiny")


def test_weights_of_a_stopped_run_are_those_after_its_last_epoch(stores, tmp_path, monkeypatch, made):
    trained, later = (net.state_dict() for net in experiment.nets_after(STOPPED, [2, 4], "cpu").values())
    shutil.copytree(made[0], tmp_path / "first", dirs_exist_ok=True)  # the run is where it was stopped
    shutil.rmtree(stores("first") / STOPPED.id)
    shutil.rmtree(stores("first") / TINY.id)  # weights without a record stay
    (path,) = archive.write_weights([TINY, STOPPED], tmp_path / "out", "tiny")
    weights = f"{STOPPED.id}-to-6.pt"
    assert [name for name in _members(path) if name.endswith(".pt")] == [weights]
    stores("second")
    record, _ = archive.read(path)
    assert record.endswith(f"{STOPPED.id}-to-6")
    assert not records.checkpoint(STOPPED.id).exists()  # the run itself could not go on from weights alone
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "_train", None)
        found = experiment.nets_after(STOPPED, [2], "cpu")[2].state_dict()
    assert all(torch.equal(found[name], trained[name]) for name in trained)
    found = experiment.nets_after(STOPPED, [2, 4], "cpu")[4].state_dict()  # the rest from the start
    assert all(torch.equal(found[name], later[name]) for name in later)
    lone = _rezip(tmp_path / "lone.zip", {weights: _members(path)[weights]})
    with pytest.raises(ArchiveError, match=f"{weights} without a record"):
        archive.read(lone)


@pytest.mark.parametrize("content", [{"epoch": 1, "net": _Runs()}, torch.zeros(2), {"epoch": 1}, None])
def test_only_plain_weights_are_let_in(stores, tmp_path, content, capsys):
    stream = io.BytesIO(b"no checkpoint")
    if content is not None:
        stream = io.BytesIO()
        torch.save(content, stream)
    path = _rezip(tmp_path / "weights.zip", {f"{STOPPED.id}.pt": stream.getvalue()})
    second = stores("second")
    with pytest.raises(records.RecordError, match="cannot be read"):
        archive.read(path)
    assert not list(second.glob("*.pt")) and "unpickled" not in capsys.readouterr().out


def test_weights_serve_to_measure_without_training(stores, tmp_path, monkeypatch):
    experiment.run(STOPPED, "cpu")
    committed = tmp_path / "committed"  # as `results/` of a checkout
    committed.mkdir()
    (stores("first") / TINY.id).rename(committed / TINY.id)
    monkeypatch.setattr(records, "places", lambda: [committed, records.store()])
    (path,) = archive.write_weights([STOPPED, TINY], tmp_path / "out", "tiny")
    assert path.name == "tiny-weights-01.zip"
    assert [name for name in _members(path) if name.endswith(".pt")] == [f"{TINY.id}.pt"]  # one run a cell
    trained = experiment.trained_net(TINY, "cpu").state_dict()
    stores("second")
    archive.read(path)
    assert set(checkpoint.read(records.checkpoint(TINY.id))) == {"epoch", "net"}
    monkeypatch.setattr(experiment, "_train", None)  # calling it would raise
    found = experiment.trained_net(TINY, "cpu").state_dict()
    assert all(torch.equal(found[name], trained[name]) for name in trained)
    assert experiment.run(TINY, "cpu").finished
