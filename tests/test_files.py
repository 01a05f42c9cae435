"""Files that are whole or absent: what is replaced, and what beside it is left alone."""

import pickle
import subprocess
import sys

import pytest
from filelock import Timeout

from metanb import files


def test_neighbours_of_a_replaced_file_stay(tmp_path):
    """Names that a user may choose, which begin like the file's own."""
    names = ["mine.2024", "mine.svg", ".mine.pdf.1", ".mine.pdf.metanb-notes", ".mine[1].pdf"]
    for name in names:
        (tmp_path / name).write_text(name)
    for name in ("mine.pdf", "mine[1].pdf"):
        files.replace(tmp_path / name, b"figure")
        assert (tmp_path / name).read_bytes() == b"figure"
    assert {path.name for path in tmp_path.iterdir()} == {*names, "mine.pdf", "mine[1].pdf"}
    assert all((tmp_path / name).read_text() == name for name in names)


@pytest.mark.parametrize("name", ["mine.pdf", "mine[1].pdf", "mine"])
def test_what_a_killed_process_left_is_removed(tmp_path, name):
    killed = (
        "import os, sys; from pathlib import Path; from metanb import files\n"
        "with files.replacing(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'half')\n"
        "    stream.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / name
    path.write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", killed, path]).returncode == -9
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    files.replace(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_two_processes_that_write_one_path_do_not_break_each_other(tmp_path):
    """The first one has begun when the second writes, and ends after it."""
    slow = (
        "import sys; from pathlib import Path; from metanb import files\n"
        "with files.replacing(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'first')\n"
        "    print('begun', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    path = tmp_path / "mine.pdf"
    with subprocess.Popen(
        [sys.executable, "-c", slow, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout.readline() == b"begun\n"
        files.replace(path, b"second")
        assert path.read_bytes() == b"second"
        first.communicate(b"")
    assert first.returncode == 0 and path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_no_process_can_have_is_a_leftover(tmp_path):
    (tmp_path / f".mine.pdf.metanb-{10**30}").write_bytes(b"half")
    files.replace(tmp_path / "mine.pdf", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pdf"]


def test_a_process_of_another_user_is_running(monkeypatch, tmp_path):
    def refuse(process, signal):
        raise PermissionError

    monkeypatch.setattr(files.os, "kill", refuse)
    (tmp_path / ".mine.pdf.metanb-1").write_bytes(b"half")
    files.replace(tmp_path / "mine.pdf", b"whole")
    assert len(list(tmp_path.iterdir())) == 2


def test_several_files_are_replaced_or_none(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    with pytest.raises(files.DiskError, match="absent"):
        files.replace_all({old: b"x", new: b"y", tmp_path / "absent" / "file": b"z"})
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]
    files.replace_all({old: b"x", new: b"y"})
    assert (old.read_bytes(), new.read_bytes()) == (b"x", b"y") and len(
        list(tmp_path.iterdir())
    ) == 2


def test_a_lock_that_stays_held_is_told_of_in_one_line(tmp_path, capsys):
    path = tmp_path / "mine.lock"
    with (
        files.locked(path, "run mine"),
        pytest.raises(files.LockedError) as error,
        files.locked(path, "run mine", patience=0.1),
    ):
        pass
    assert str(error.value) == (
        "run mine is still in use by another process after 0.1 s of waiting: try again when that "
        "process has ended"
    )
    assert isinstance(error.value, Timeout) and error.value.lock_file == str(path)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert capsys.readouterr().err == "waiting for run mine: another process is using it\n"
