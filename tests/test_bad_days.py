"""Bad days, for real: a full disk, a read-only store, a kill at the worst moments, no memory.

Evidence: after each, the same command makes the very bytes of an undisturbed run, the store holds
no scrap, and a neighbour's record is as it was. What is said is what the book's page shows; some of
its rows are tests elsewhere, and the first test here sees to it that none is without.
"""

import ast
import http.server
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from metanb.data import omniglot
from metanb.grids import runner
from metanb.grids.definitions import GRIDS, Planned
from metanb.maml import outer_loop
from metanb.runs import checkpoint, experiment, records
from metanb.runs import store as run_store
from metanb.settings import preset
from tests.support.bad_days import rows, shown
from tests.support.command_line import call
from tests.support.processes import Process
from tests.support.runs import SMALL

TINY = SMALL | {"iterations": 2, "epoch_iterations": 1}
RUN, NEIGHBOUR = (preset("smoke", "glyphs", **TINY, seed=seed) for seed in (0, 1))
OPTIONS = [
    word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
TRAIN = ["train", "--device", "cpu", *OPTIONS]


def test_each_row_of_the_page_is_shown_by_a_test():
    calls = [
        node.args[0].value
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "shown"
    ]
    days = [day for day, _ in rows()]
    assert len(days) == len(set(days)) and set(days) == set(calls)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A store where both runs went well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("undisturbed")))
        for settings in (RUN, NEIGHBOUR):
            experiment.run(settings, "cpu")
        return run_store.store_folder()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def store(tmp_path, undisturbed, monkeypatch):
    """A store with a neighbour's record, which must be as it was in the end."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    shutil.copytree(undisturbed / NEIGHBOUR.id, tmp_path / "store" / NEIGHBOUR.id)
    yield tmp_path / "store"
    assert content(tmp_path / "store" / NEIGHBOUR.id) == content(undisturbed / NEIGHBOUR.id)


@pytest.fixture
def metanb(capsys, monkeypatch):
    """The command line, in this process: what a command that went well says, by its two streams."""

    def run(*arguments):
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def metanb_fails(capsys, monkeypatch):
    """The same for a command that must fail: exit code 1 or 2, one line of error, no result.

    It returns standard error.
    """

    def run(*arguments):
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert code in (1, 2) and "Traceback" not in err + out
        assert (
            sum(line.startswith("Error: ") for line in err.splitlines()) == 1
            and "record: " not in out
        )
        return err

    return run


def is_undisturbed(store, undisturbed, besides=()):
    """Whether the store has the run to the byte, with its checkpoint and lock, and no scrap."""
    names = {RUN.id, f"{RUN.id}.pt", f"{RUN.id}.lock", NEIGHBOUR.id}
    same = (store / RUN.id / "measures.csv").read_bytes() == (
        undisturbed / RUN.id / "measures.csv"
    ).read_bytes()
    return same and {path.name for path in store.iterdir()} - set(besides) == names


# What was typed


def test_a_mistyped_parameter(metanb_fails, store):
    shown("A parameter is mistyped", metanb_fails("train", "--ways", 1))
    assert "--seed" in metanb_fails("train", "--sede", 1)  # the nearest name
    assert [path.name for path in store.iterdir()] == [NEIGHBOUR.id]


def test_a_device_that_is_not_there(metanb_fails, store):
    shown("There is no GPU", metanb_fails(*TRAIN, "--device", "cuda:99"))


# The disk


@contextmanager
def mounted(folder, size):
    """A small disk of its own."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def file_limit(size):
    """No file may grow beyond this size: what fails is `write`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def filled(folder):
    """Nothing more fits on this disk."""
    filler = folder.parent / "filler"
    try:
        with open(filler, "wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
            while True:
                stream.write(bytes(4096))
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_a_full_disk(metanb, metanb_fails, tmp_path, undisturbed, monkeypatch, request, kind):
    """Full as a checkpoint is saved, and again as the record is written."""
    if kind == "disk":
        disk_ = mounted(tmp_path / "disk", "1m")
        disk_.__enter__()
        request.addfinalizer(lambda: disk_.__exit__(None, None, None))
    store = tmp_path / "disk" / "store"
    shutil.copytree(undisturbed / NEIGHBOUR.id, store / NEIGHBOUR.id)
    monkeypatch.setenv("METANB_STORE", str(store))
    metanb(*TRAIN, "--until", 1)
    before = (
        checkpoint.read_checkpoint(store / f"{RUN.id}.pt")["epoch"],
        content(store / f"{RUN.id}-to-1"),
    )

    with filled(store) if kind == "disk" else file_limit(1000):
        shown("The disk is full", metanb_fails(*TRAIN))
    assert (
        checkpoint.read_checkpoint(store / f"{RUN.id}.pt")["epoch"],
        content(store / f"{RUN.id}-to-1"),
    ) == before
    metanb(*TRAIN)
    assert (
        is_undisturbed(store, undisturbed) and records.find_record(RUN).provenance["resumed"] == 1
    )

    shutil.rmtree(store / RUN.id)
    with filled(store) if kind == "disk" else file_limit(1000):
        shown("The disk is full", metanb_fails(*TRAIN))
    assert not list(store.glob(".*")) and records.find_record(RUN) is None
    metanb(*TRAIN)
    assert is_undisturbed(store, undisturbed)
    assert content(store / NEIGHBOUR.id) == content(undisturbed / NEIGHBOUR.id)


def test_a_store_that_may_not_be_written(
    metanb, metanb_fails, tmp_path, undisturbed, monkeypatch, request
):
    store = tmp_path / "store"
    if os.getuid() == 0:  # whom no permission stops, but a disk that is mounted read-only
        disk_ = mounted(store, "1m")
        disk_.__enter__()
        request.addfinalizer(lambda: disk_.__exit__(None, None, None))
    shutil.copytree(undisturbed, store, dirs_exist_ok=True)
    shutil.rmtree(store / RUN.id)
    if os.getuid() == 0:
        subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
    else:
        store.chmod(0o555)
        request.addfinalizer(lambda: store.chmod(0o755))
    monkeypatch.setenv("METANB_STORE", str(store))
    shown("The store may not be written", metanb_fails(*TRAIN))
    assert str(store / NEIGHBOUR.id) in metanb(*TRAIN, "--seed", 1)[0]  # what is recorded is read


def test_a_truncated_record(metanb, metanb_fails, store, undisturbed):
    metanb(*TRAIN)
    table = store / RUN.id / "measures.csv"
    os.truncate(table, table.stat().st_size // 2)
    shown("A record is truncated", metanb_fails(*TRAIN))
    shown("A record is truncated", metanb_fails("claims", "--records", store))
    shutil.rmtree(table.parent)  # the remedy
    metanb(*TRAIN)
    # from the checkpoint
    assert (
        is_undisturbed(store, undisturbed) and records.find_record(RUN).provenance["resumed"] == 1
    )


# Processes and power


def test_a_kill_or_a_power_cut_at_each_moment(metanb, store, undisturbed, tmp_path, monkeypatch):
    """The store is copied before each rename: that is what a kill would leave.

    Each file that gets its name is on the disk by then.
    """
    moments = []
    synced = set()
    honest = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(number):
        synced.add(os.fstat(number).st_ino)
        honest["fsync"](number)

    def watched(name):
        def act(path, target):
            if store in Path(path).parents:
                files = Path(path).iterdir() if Path(path).is_dir() else [Path(path)]
                assert {file.stat().st_ino for file in files} <= synced
                moments.append(shutil.copytree(store, tmp_path / f"moment{len(moments)}"))
            honest[name](path, target)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", watched("replace"))
        patch.setattr(os, "rename", watched("rename"))
        metanb(*TRAIN, "--until", 1)
        metanb(*TRAIN)
    # checkpoints; the record so far; the whole one, for which the former makes way
    assert len(moments) == 3 + 1 + 2
    shown("The process is killed, or the power fails", "")
    shorter = f"{RUN.id}-to-1"
    for moment in moments:
        monkeypatch.setenv("METANB_STORE", str(moment))
        records.read_records(moment)  # none is torn
        metanb(*TRAIN)
        assert is_undisturbed(
            moment, undisturbed, besides=[shorter] if moment == moments[-1] else []
        )


def test_two_processes_want_one_run(store, tmp_path):
    """The second says that it waits; when the first is killed, it goes on from there.

    The first is held up for this.
    """
    settings = preset("smoke", "glyphs", **TINY | {"iterations": 6})
    first = Process(store, *TRAIN, "--iterations", 6)
    while not (store / f"{settings.id}.pt").exists():
        assert first.poll() is None, first.err
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = Process(store, *TRAIN, "--iterations", 6)
    while second.err.count("\n") < 3:
        assert second.poll() is None, second.err
        time.sleep(0.01)
    shown("Two processes want one run", second.err.splitlines()[2])
    assert first.poll() is None, "the first was done before it was held up"
    first.send_signal(signal.SIGKILL)
    assert second.wait() == 0 and "record: " in second.out and second.err.count("\n") == 3
    record = records.read_record(store / settings.id)
    assert record.provenance["resumed"] == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path / "other"))
        whole = experiment.run(settings, "cpu")
    assert whole.provenance["data"] == record.provenance["data"]
    pd.testing.assert_frame_equal(whole.measures, record.measures, check_exact=True)


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_the_gpu_runs_out_of_memory(metanb, metanb_fails, store, undisturbed, monkeypatch, error):
    """In the last epoch. The errors are torch's own; the GPU is not there."""
    honest = outer_loop.losses
    calls = []

    def losses(*arguments, **options):
        calls.append(1)
        if len(calls) == RUN.iterations:
            raise error
        return honest(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(outer_loop, "losses", losses)
        shown("The GPU runs out of memory", metanb_fails(*TRAIN))
    assert checkpoint.read_checkpoint(store / f"{RUN.id}.pt")["epoch"] == 1
    metanb(*TRAIN)
    assert is_undisturbed(store, undisturbed)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="Linux alone tells how much memory a process has"
)
@pytest.mark.parametrize("room", [3 * 2**29, 2**29])
def test_the_machine_runs_out_of_memory(store, room):
    """After epoch 0, for one large array: torch's of 2.4 GB, or numpy's before it, of a quarter.

    A large request leaves room to report the failure. A library short of its last few bytes may
    crash instead.
    """
    large = ["--ways", "40", "--queries", "19", "--meta-batch", "1024"]
    process = Process(store, *TRAIN, *large, room=room)
    assert process.wait() == 1 and process.out == "" and "Traceback" not in process.err, process.err
    shown("The machine runs out of memory", process.err)
    assert [checkpoint.read_checkpoint(path)["epoch"] for path in store.glob("*.pt")] == [0]


# Runs


def test_a_run_that_diverges(metanb_fails, store):
    """Ten inner steps of 20 and third derivatives by the regulariser: nothing is made up."""
    steep = {"inner_steps": 10, "inner_lr": 20.0, "regulariser": "through", "gamma": 1e6}
    settings = preset("smoke", "glyphs", **TINY, **steep)
    options = [
        word
        for name, value in steep.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    message = metanb_fails(*TRAIN, *options)
    shown("A run diverges", message)
    kept = checkpoint.read_checkpoint(store / f"{settings.id}.pt")["epoch"]
    assert (
        f"the checkpoint of epoch {kept} is kept" in message
        and records.find_record(settings) is None
    )
    assert metanb_fails(*TRAIN, *options) == message  # it goes on from there, to the same end


def test_a_run_of_a_grid_is_killed_from_outside(metanb_fails, store, monkeypatch):
    """As by the system when memory is short: its command is replaced by one that is killed."""
    monkeypatch.setitem(GRIDS, "quick", lambda: [Planned("base", RUN), Planned("base", NEIGHBOUR)])
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(runner, "command", lambda *_: killed)
    shown("A run of a grid is killed", metanb_fails("grid", "quick"))


# Data


class CutShort(http.server.BaseHTTPRequestHandler):
    """Announces a file and sends a part of it."""

    def do_GET(self):  # noqa: D102
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "10000")
        self.end_headers()
        self.wfile.write(b"PK" * 1000)

    def log_message(self, *_):  # noqa: D102
        pass


def test_a_download_that_is_cut_short(metanb_fails, tmp_path, monkeypatch):
    """Torchvision's own download, from a server of this test: a part is not taken for the file."""
    from torchvision.datasets import Omniglot

    with http.server.HTTPServer(("127.0.0.1", 0), CutShort) as server:
        server.asked = asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            Omniglot, "download_url_prefix", f"http://127.0.0.1:{server.server_port}"
        )
        monkeypatch.setenv("METANB_DATA", str(tmp_path))
        shown("A download fails", metanb_fails("data", "fetch", "omniglot"))
        first = len(asked)
        shown("A download fails", metanb_fails("data", "fetch", "omniglot"))
        server.shutdown()
    assert len(asked) == 2 * first  # what had come was fetched anew
    assert not any(
        (tmp_path / "omniglot-py" / f"images_{half}").exists() for half in omniglot.HALVES
    )
