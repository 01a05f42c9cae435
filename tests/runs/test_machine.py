"""Which code a record names: the package's own commit, and no other repository's.

Evidence: repositories made here with git.
"""

import shutil
import subprocess

import pytest

from metanb.runs import machine

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]


def repository(folder):
    """A repository with one commit of all that is there; the commit's short name."""
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    command = [*GIT, "describe", "--always"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()


def place(folder, monkeypatch):
    """The module as if it were in a package in this folder."""
    path = folder / "metanb" / "runs" / "machine.py"
    path.parent.mkdir(parents=True)
    path.write_text("")
    monkeypatch.setattr(machine, "__file__", str(path))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_code_is_that_of_the_packages_own_repository(tmp_path, monkeypatch):
    place(tmp_path / "own", monkeypatch)
    commit = repository(tmp_path / "own")
    assert machine.code_version() == commit
    (tmp_path / "own" / "metanb" / "runs" / "machine.py").write_text("# changed")
    assert machine.code_version() == f"{commit}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_package_installed_inside_another_repository_is_installed(tmp_path, monkeypatch):
    place(tmp_path / "other" / ".venv" / "site-packages", monkeypatch)
    repository(tmp_path / "other")
    assert machine.code_version() == "installed"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_hook_of_git_does_not_lead_elsewhere(tmp_path, monkeypatch):
    """Git tells a hook its repository: the package's own, seen from its folder, or another."""
    place(tmp_path / "own", monkeypatch)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    commit = repository(tmp_path / "own")
    repository(tmp_path / "other")
    for repository_of_hook in ("own", "other"):
        monkeypatch.setenv("GIT_DIR", str(tmp_path / repository_of_hook / ".git"))
        assert machine.code_version() == commit
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "none"))
    assert machine.code_version() == commit


def test_without_a_repository_it_is_installed(tmp_path, monkeypatch):
    place(tmp_path / "plain", monkeypatch)
    assert machine.code_version() == "installed"
