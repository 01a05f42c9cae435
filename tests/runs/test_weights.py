"""Weights beside a record: they are those that were trained, to the bit.

Reading them needs neither training nor images.

Evidence: the checkpoint's own tensors; the file read by safetensors itself, without metanb; copies
of the store taken before each rename; damage done to the files.
"""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from metanb import trained_net
from metanb.cli import cli
from metanb.data import image_sets
from metanb.grids import definitions
from metanb.grids.definitions import Planned
from metanb.labels import DATASETS, NETWORKS
from metanb.maml.network import BUILDERS, network
from metanb.runs import checkpoint, experiment, portraits, records, training, weights
from metanb.runs import store as run_store
from metanb.runs.records import RecordError
from metanb.settings import preset
from tests.support.bad_days import shown
from tests.support.command_line import call
from tests.support.runs import SMALL

TINY = preset("smoke", "glyphs", iterations=12, epoch_iterations=3, **SMALL)
STOPPED = replace(TINY, seed=1)  # after 6 of its 12 iterations
FINETUNED = replace(TINY, iterations=3, algorithm="finetune")
RUNS = (TINY, STOPPED, FINETUNED)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with three records and their checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("made")))
        experiment.run(TINY, "cpu")
        experiment.run(STOPPED, "cpu", until=6)
        experiment.run(FINETUNED, "cpu")
        return run_store.store_folder()


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of that store, and no other place with records."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(run_store, "record_folders", lambda: [run_store.store_folder()])
    return shutil.copytree(made, tmp_path / "store")


def record_of(settings):
    return records.find_record(settings, 0)


def trained(settings):
    """The tensors of the run's checkpoint; instead of finetuning's head, one of zeros."""
    state = checkpoint.read_checkpoint(run_store.checkpoint_path(settings.id))["net"]
    if settings.algorithm == "finetune":
        features = state["head.weight"].shape[1]
        assert len(state["head.weight"]) > settings.ways  # one row per meta-train class
        zeros = torch.zeros(settings.ways, features), torch.zeros(settings.ways)
        state |= dict(zip(("head.weight", "head.bias"), zeros, strict=True))
    return state


def same(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in expected
    )


@pytest.fixture
def only_weights(monkeypatch):
    """To call before a read that must neither train nor look at images, nor at a checkpoint."""

    def forbid():
        def forbidden(*_, **__):
            raise AssertionError("only the kept weights are to be read")

        monkeypatch.setattr(training, "train_together", forbidden)
        monkeypatch.setattr(image_sets, "load_images", forbidden)
        monkeypatch.setattr(checkpoint, "read_checkpoint", forbidden)

    return forbid


@pytest.mark.parametrize("settings", RUNS, ids=["finished", "stopped", "finetuned"])
def test_weights_are_kept_to_the_bit(store, settings):
    before = record_of(settings)
    assert weights.load_weights(before) is None
    path = weights.keep_weights(before)
    assert path == before.path / "weights.safetensors"
    with safe_open(path, "pt") as file:  # as somebody without metanb opens it
        kept = {name: file.get_tensor(name) for name in file.keys()}
        origin = {"run": settings.id, "epoch": before.epochs}
        assert json.loads(file.metadata()["metanb"]) == origin
    assert same(kept, trained(settings)) and {t.dtype for t in kept.values()} == {torch.float32}
    after = record_of(settings)
    assert same(weights.load_weights(after), trained(settings))
    added = {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert after.provenance == before.provenance | added and after.measures.equals(before.measures)
    assert sorted(file.name for file in after.path.iterdir()) == sorted([*records.FILES, path.name])


def test_a_finetuned_network_of_an_older_file_loses_its_head_too(store):
    """Files that kept the head of the meta-train classes are read as those of today."""
    weights.keep_weights(record_of(FINETUNED))
    whole = checkpoint.read_checkpoint(run_store.checkpoint_path(FINETUNED.id))["net"]
    listed(record_of(FINETUNED), save(whole))
    assert same(trained_net(FINETUNED, "cpu").state_dict(), trained(FINETUNED))


def test_keeping_twice_changes_nothing(store):
    files = {}
    for _ in range(2):
        path = weights.keep_weights(record_of(TINY))
        files = files or {file: file.read_bytes() for file in path.parent.iterdir()}
        run_store.checkpoint_path(TINY.id).unlink(missing_ok=True)  # no longer needed
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == files


@pytest.mark.parametrize("settings", [TINY, FINETUNED], ids=["maml", "finetuned"])
def test_a_trained_net_is_read_without_training_or_images(store, only_weights, settings):
    expected = trained(settings)
    weights.keep_weights(record_of(settings))
    run_store.checkpoint_path(settings.id).unlink()
    only_weights()
    before = torch.get_rng_state()
    net = trained_net(settings)
    assert same(net.state_dict(), expected) and torch.equal(torch.get_rng_state(), before)
    assert net.image_shape == (1, 28, 28) and net.head_init == settings.head_init


def test_weights_kept_come_before_the_checkpoint(store):
    weights.keep_weights(record_of(TINY))
    expected = trained(TINY)
    shutil.copy(
        run_store.checkpoint_path(STOPPED.id), run_store.checkpoint_path(TINY.id)
    )  # of another seed
    assert same(trained_net(TINY, "cpu").state_dict(), expected)


def test_the_net_of_a_checkpoint_needs_no_images_and_no_lock(store, monkeypatch):
    """As from a store that others may only read."""
    monkeypatch.setattr(image_sets, "load_images", None)  # calling it would raise
    monkeypatch.setattr(run_store, "lock_run", None)
    assert same(trained_net(FINETUNED, "cpu").state_dict(), trained(FINETUNED))


def test_networks_on_the_way_are_those_kept_beside_stopped_runs(store, only_weights, monkeypatch):
    expected = trained(STOPPED)
    weights.keep_weights(record_of(STOPPED))
    run_store.checkpoint_path(STOPPED.id).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_together", None)
        fresh, kept = experiment.nets_after(STOPPED, [0, 2], "cpu").values()
    assert same(kept.state_dict(), expected) and not same(fresh.state_dict(), expected)
    # What is kept has no checkpoint to go on from: the next epochs are trained from the start.
    assert same(experiment.nets_after(STOPPED, [2, 3], "cpu")[2].state_dict(), expected)
    only_weights()
    assert same(experiment.nets_after(STOPPED, [2], "cpu")[2].state_dict(), expected)


def test_a_portrait_tells_of_kept_weights_where_they_are_from(store):
    weights.keep_weights(record_of(TINY))
    run_store.checkpoint_path(TINY.id).unlink()
    origin = portraits.portrait("interpolation", TINY, "cpu").provenance["weights"]
    provenance = record_of(TINY).provenance
    assert origin["trained"] == provenance["finished"] and origin["code"] == provenance["code"]
    assert origin.keys() == {"code", "torch", "device", "threads", "trained"}
    assert not run_store.checkpoint_path(TINY.id).exists()


@pytest.mark.parametrize("dataset", DATASETS)
def test_shapes_of_images_are_those_of_the_sets(dataset):
    try:
        shape = image_sets.load_images(dataset, "valid").images.shape[2:]
    except image_sets.DataError:
        pytest.skip(f"no {dataset} here")
    assert shape == DATASETS[dataset].shape


class OwnNetwork(nn.Module):
    """A linear network behind a layer that a test decides; it may compute in float64."""

    def __init__(self, layer, outputs):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(28 * 28, outputs)

    def forward(self, x):
        """Logits, [B, outputs]."""
        return self.head(self.layer(x.to(self.head.weight.dtype)).flatten(1))


def normalised(outputs):
    return OwnNetwork(nn.BatchNorm2d(1), outputs).eval()  # num_batches_tracked is a whole number


def float64(outputs):
    return OwnNetwork(nn.Identity(), outputs).double()


def tied(outputs):
    net = OwnNetwork(nn.Sequential(nn.Linear(28, 28), nn.Linear(28, 28)), outputs)
    net.layer[1].weight = net.layer[0].weight
    return net


def channels_last(outputs):
    convolutions = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    return OwnNetwork(convolutions, outputs).to(memory_format=torch.channels_last)


@pytest.fixture
def train_own(tmp_path, monkeypatch):
    """To train a network of one's own, out of its number of outputs, in an empty store."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "own"))
    monkeypatch.setattr(run_store, "record_folders", lambda: [run_store.store_folder()])

    def train(build):
        network("mine")(lambda image_shape, outputs, settings: build(outputs))
        return experiment.run(replace(TINY, iterations=3, network="mine"), "cpu")

    yield train
    BUILDERS.pop("mine", None)
    NETWORKS.pop("mine", None)


@pytest.mark.parametrize("build", [normalised, float64, tied, channels_last])
def test_weights_of_any_kind_are_kept_and_read(train_own, build, only_weights):
    record = train_own(build)
    expected = trained(record.settings)
    weights.keep_weights(record)
    run_store.checkpoint_path(record.settings.id).unlink()
    kept = weights.load_weights(record_of(record.settings))
    assert same(kept, expected)
    assert {name: t.dtype for name, t in kept.items()} == {n: t.dtype for n, t in expected.items()}
    only_weights()
    assert same(trained_net(record.settings, "cpu").state_dict(), expected)


# Refusals


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("buffer", "kind"),
    [
        (torch.zeros(2, dtype=torch.complex128), "torch.complex128, torch.strided"),
        (torch.eye(2).to_sparse(), "torch.float32, torch.sparse_coo"),
    ],
)
def test_weights_that_the_format_cannot_hold_are_refused_by_name(train_own, buffer, kind):
    def build(outputs):
        net = OwnNetwork(nn.Identity(), outputs)
        net.layer.register_buffer("mine", buffer.clone())
        return net

    record = train_own(build)
    with pytest.raises(weights.NoWeightsError, match=rf"layer.mine \({kind}\)") as error:
        weights.keep_weights(record)
    assert str(record.path) in str(error.value) and "\n" not in str(error.value)
    assert sorted(file.name for file in record.path.iterdir()) == sorted(records.FILES)
    assert "weights_sha256" not in record_of(record.settings).provenance


def no_checkpoint(path):
    path.unlink()


def further(path):
    values = checkpoint.read_checkpoint(path)
    torch.save(values | {"epoch": values["epoch"] + 1}, path)


def behind(path):
    values = checkpoint.read_checkpoint(path)
    torch.save(values | {"epoch": values["epoch"] - 1}, path)


def another_training(path):
    torch.save(checkpoint.read_checkpoint(path) | {"saved": "2020-01-01T00:00:00+00:00"}, path)


def undated(path):
    """As archives of an earlier version hold them."""
    torch.save({name: checkpoint.read_checkpoint(path)[name] for name in ("epoch", "net")}, path)


def another_network(path):
    state = checkpoint.read_checkpoint(path)["net"]
    torch.save(
        checkpoint.read_checkpoint(path) | {"net": state | {"head.bias": torch.zeros(7)}}, path
    )


REFUSED = {
    no_checkpoint: "no checkpoint .*copy it there, or delete the record's folder",
    further: "at epoch 3, further than record .* at epoch 2: train the run until it is recorded",
    behind: "another training .*to train it anew",
    another_training: "another training .*to train it anew",
    undated: "another training .*to train it anew",
    another_network: "does not hold the network .*to train it anew",
}


@pytest.mark.parametrize("change", REFUSED)
def test_weights_of_another_training_are_not_kept(store, change):
    record = record_of(STOPPED)
    change(run_store.checkpoint_path(STOPPED.id))
    with pytest.raises(weights.NoWeightsError, match=REFUSED[change]) as error:
        weights.keep_weights(record)
    assert str(record.path) in str(error.value) and "\n" not in str(error.value)
    assert sorted(file.name for file in record.path.iterdir()) == sorted(records.FILES)
    assert record_of(STOPPED).provenance == record.provenance


def cut(record):
    path = record.path / records.WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])


def flip(record):
    path = record.path / records.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def unlisted(record):
    values = {name: value for name, value in record.provenance.items() if name != "weights_sha256"}
    (record.path / "provenance.json").write_text(json.dumps(values))


def listed(record, content):
    """Other content, with the checksum to go with it."""
    records.attach_weights(record, content)


def no_tensors(record):
    listed(record, b"PK\x03\x04 no tensors")


def wider(record):
    """In the head; in the body where the head that was kept is not read, after finetuning."""
    name = "blocks.0.gamma" if record.settings == FINETUNED else "head.bias"
    listed(record, save(weights.load_weights(record) | {name: torch.zeros(7)}))


def headless(record):
    body = weights.network_with(record.settings, weights.load_weights(record)).blocks
    listed(record, save(body.state_dict()))


def nameless(record):
    listed(record, save({"weight": torch.zeros(7)}))


def doubled(record):
    listed(record, save({name: t.double() for name, t in weights.load_weights(record).items()}))


DAMAGES = [cut, flip, unlisted, no_tensors, wider, headless, nameless, doubled]


@pytest.mark.parametrize("settings", [TINY, FINETUNED], ids=["maml", "finetuned"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_by_name(store, damage, settings):
    path = weights.keep_weights(record_of(settings))
    damage(record_of(settings))
    for read in (
        lambda: weights.load_weights(record_of(settings)),
        lambda: trained_net(settings, "cpu"),
    ):
        with pytest.raises(RecordError, match="delete the file") as error:
            read()
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert record_of(settings).finished  # the record itself is read as ever
    path.unlink()  # the remedy
    assert weights.load_weights(record_of(settings)) is None
    assert same(trained_net(settings, "cpu").state_dict(), trained(settings))
    assert weights.keep_weights(record_of(settings)) == path
    assert same(weights.load_weights(record_of(settings)), trained(settings))


def test_a_weights_file_is_damaged(store, capsys, monkeypatch):
    monkeypatch.setitem(definitions.GRIDS, "smoke", lambda: [Planned("base", TINY)])
    path = weights.keep_weights(record_of(TINY))
    os.truncate(path, path.stat().st_size // 2)
    for option in (["--keep-weights"], ["--export", str(store.parent / "out")]):
        code, _, err = call(capsys, monkeypatch, "grid", "smoke", "--budget", 0, *option)
        assert code == 1
        shown("Kept weights are damaged", err)
    path.unlink()
    code, out, _ = call(capsys, monkeypatch, "grid", "smoke", "--budget", 0, "--keep-weights")
    assert code == 0 and out == f"weights: {path}\n"


def test_a_kill_between_the_two_files_leaves_a_readable_record(store, tmp_path, monkeypatch):
    moments = []
    honest = os.replace

    def watched(path, target):
        moments.append(shutil.copytree(store, tmp_path / f"moment{len(moments)}"))
        honest(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched)
        path = weights.keep_weights(record_of(TINY))
    names = sorted(file.name for file in path.parent.iterdir())
    assert len(moments) == 2  # the provenance, then the weights
    for moment in moments:
        monkeypatch.setenv("METANB_STORE", str(moment))
        assert (
            len(records.read_records(moment)) == len(RUNS)
            and weights.load_weights(record_of(TINY)) is None
        )
        again = weights.keep_weights(record_of(TINY))
        assert again.read_bytes() == path.read_bytes()
        assert sorted(file.name for file in again.parent.iterdir()) == names


def test_a_full_disk_leaves_the_record_whole(store, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="make room"):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
        weights.keep_weights(record_of(TINY))
    assert sorted(file.name for file in record_of(TINY).path.iterdir()) == sorted(records.FILES)


def test_other_files_in_a_records_folder_stay_and_do_not_count(store):
    mine = record_of(TINY).path / "weights.pt"
    mine.write_bytes(b"mine")
    assert record_of(TINY).finished and weights.load_weights(record_of(TINY)) is None
    weights.keep_weights(record_of(TINY))
    assert mine.read_bytes() == b"mine"


# The grid


def keep_by_grid(*options):
    done = CliRunner().invoke(cli, ["grid", "smoke", "--budget", "0", "--keep-weights", *options])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_grid_keeps_the_weights_of_one_run_per_plain_cell(store, monkeypatch):
    regularised = replace(TINY, regulariser="adapted", gamma=1.0)
    absent = replace(TINY, algorithm="fomaml")
    planned = [Planned("base", settings) for settings in (STOPPED, TINY, FINETUNED, absent)]
    monkeypatch.setitem(
        definitions.GRIDS, "smoke", lambda: [*planned, Planned("other", regularised)]
    )
    kept = [record_of(settings).path / records.WEIGHTS for settings in (TINY, FINETUNED)]
    lines = keep_by_grid()
    assert lines[:2] == [f"weights: {path}" for path in kept]
    assert lines[2] == f"no weights: {store} has no record of {absent.id}, nor of its other seeds"
    assert len(lines) == 3 and sorted(store.rglob(records.WEIGHTS)) == sorted(kept)
    assert keep_by_grid() == lines

    done = CliRunner().invoke(cli, ["grid", "smoke", "--keep-weights", "--only", "other"])
    assert done.exit_code == 2 and "group 'base'" in done.output
    done = CliRunner().invoke(cli, ["grid", "smoke", "--keep-weights", "--list"])
    assert done.exit_code == 2 and "--budget 0" in done.output


def test_a_grid_takes_the_lowest_seed_whose_checkpoint_is_that_of_its_record(store, monkeypatch):
    monkeypatch.setitem(
        definitions.GRIDS,
        "smoke",
        lambda: [Planned("base", settings) for settings in (TINY, STOPPED)],
    )
    another_training(run_store.checkpoint_path(TINY.id))
    (line,) = keep_by_grid()
    assert line == f"weights: {record_of(STOPPED).path / records.WEIGHTS}"
    shutil.rmtree(record_of(STOPPED).path)
    (line,) = keep_by_grid()
    assert line.startswith("no weights: checkpoint ") and "of another training" in line


def test_a_grid_passes_over_a_run_that_is_training(store, monkeypatch):
    monkeypatch.setitem(
        definitions.GRIDS,
        "smoke",
        lambda: [Planned("base", settings) for settings in (TINY, STOPPED)],
    )
    monkeypatch.setattr(weights, "PATIENCE", 0.1)
    with FileLock(store / f"{TINY.id}.lock"):
        line = keep_by_grid()[-1]
    assert line == f"weights: {record_of(STOPPED).path / records.WEIGHTS}"
