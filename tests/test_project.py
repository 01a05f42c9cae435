"""The project's own promises: its files agree with each other, are small, and `make` explains itself.

Evidence: the files themselves, read with general parsers (TOML, YAML, packaging's requirements) and with git and make.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Spelt in pieces, so that this file may name what no file may.
REGISTRIES = [".".join(parts) for parts in (
    ("pypi", "org"), ("files", "pythonhosted", "org"), ("registry", "npmjs", "org"), ("deb", "debian", "org"),
)]  # fmt: skip
LIMIT = 8 * 2**20  # bytes of all tracked files


def tracked() -> list[Path]:
    """The files that git tracks, and new ones that it does not ignore. Skips outside a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_environment_yml_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    assert sorted(entry.split()[0] for entry in plain) == ["pip", "python"]
    (python,) = [entry.split(maxsplit=1)[1] for entry in plain if entry.startswith("python")]
    assert SpecifierSet(python) == SpecifierSet(PROJECT["requires-python"])
    assert pip == ["-e .[book,test]"]
    assert {"book", "test"} <= PROJECT["optional-dependencies"].keys()


def test_version_is_one():
    version = PROJECT["version"]
    assert importlib.metadata.version("metanb") == version, (
        "installed from other sources: delete .venv and `make install`"
    )
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_installed_packages_satisfy_pyproject():
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["book"], *extras["test"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True), line


def test_what_the_book_depends_on_is_pinned():
    loose = [line for line in PROJECT["optional-dependencies"]["book"] if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert loose == []


def test_tracked_files_are_small():
    sizes = {path: path.stat().st_size for path in tracked()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
    assert sum(sizes.values()) < LIMIT, f"largest: {', '.join(str(path.relative_to(ROOT)) for path in largest)}"


def test_no_file_names_a_package_registry():
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        for host in REGISTRIES
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_font_is_vendored_with_its_licence():
    folder = ROOT / "book" / "_static" / "fonts"
    assert {path.name for path in folder.iterdir()} == {"LICENSE", "stix-two-math.woff2"}
    assert "SIL OPEN FONT LICENSE Version 1.1" in (folder / "LICENSE").read_text()
    assert "book/_static/fonts/LICENSE" in PROJECT["license-files"]


def test_uplot_is_vendored_with_its_licence():
    folder = ROOT / "book" / "_static" / "uplot"
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert "uPlot (v1.6.32)" in (folder / "uPlot.iife.min.js").read_text()[:100]


def test_make_alone_prints_its_targets_and_builds_nothing():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    printed = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    makefile = (ROOT / "Makefile").read_text()
    (declared,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert re.findall(r"^make (\w+) ", printed, re.MULTILINE) == declared.split()


def test_make_refuses_another_python_in_one_line(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    old = tmp_path / "python"  # answers as Python 3.9 would: it runs the check with another version_info
    old.write_text('#!/bin/sh\nexec python3 -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])" "$2"\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", tmp_path, "install", f"PYTHON={old}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Python 3.9 found, 3.11 to 3.13 needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_style():
    """Ruff, its formatting and the rules of pyproject.toml."""
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_types():
    """The package's type hints, by mypy in strict mode; py.typed tells other projects' checkers that they are there."""
    assert (ROOT / "metanb" / "py.typed").is_file()
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
