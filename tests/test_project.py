"""The project's own promises: files agree with each other, are small, and `make` explains itself.

Evidence: the files themselves, read with general parsers (TOML, YAML, packaging's requirements) and
with git and make.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from metanb import __version__
from metanb.runs import records
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Spelt in pieces, so that this file may name what no file may.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("deb", "debian", "org"),
    )
]
LIMIT = 12 * 2**20  # bytes of all tracked files


def tracked() -> list[Path]:
    """The files that git tracks, and new ones that it does not ignore. Skips outside a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_environment_yml_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    assert sorted(entry.split()[0] for entry in plain) == ["pip", "python"]
    (python,) = [entry.split(maxsplit=1)[1] for entry in plain if entry.startswith("python")]
    version = re.fullmatch(r"=(3\.\d+)", python)[1]  # Binder reads a version in this form alone
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert pip == ["-e .[book,test]"]
    assert {"book", "test"} <= PROJECT["optional-dependencies"].keys()


def test_version_is_one():
    assert importlib.metadata.version("metanb") == __version__, (
        "installed from other sources: delete .venv and `make install`"
    )
    assert re.search(
        rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_a_checkout_that_is_not_installed_runs(tmp_path):
    """Where its dependencies are: the version comes from the package itself."""
    hidden = (  # as if `pip install` had never been called
        "import importlib.metadata as metadata\n"
        "version = metadata.version\n"
        "def without_metanb(name):\n"
        "    if name == 'metanb':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = without_metanb\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hidden)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    script = (
        "import torch; from metanb.runs import machine\n"
        "print(machine.describe_environment(torch.device('cpu'))['metanb'])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == __version__, done.stderr


def test_tables_of_published_records_are_compressed():
    """A run of the paper's length has 190 kB of numbers, a third of it compressed."""
    folders = [path.parent for path in (ROOT / "results").glob("*/settings.json")]
    assert len(folders) > 200
    for folder in folders:
        assert (folder / f"{records.MEASURES}.gz").is_file(), folder
        assert not (folder / records.MEASURES).exists(), f"gzip -9n {folder / records.MEASURES}"


def test_installed_packages_satisfy_pyproject():
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["book"], *extras["test"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(
            importlib.metadata.version(requirement.name), prereleases=True
        ), line


def test_what_the_book_depends_on_is_pinned():
    loose = [
        line
        for line in PROJECT["optional-dependencies"]["book"]
        if not re.fullmatch(r"[\w.-]+==[\w.]+", line)
    ]
    assert loose == []


def test_tracked_files_are_small():
    sizes = {path: path.stat().st_size for path in tracked()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
    assert sum(sizes.values()) < LIMIT, (
        f"largest: {', '.join(str(path.relative_to(ROOT)) for path in largest)}"
    )


def test_no_file_names_a_package_registry():
    named = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        for host in REGISTRIES
        if host.encode() in path.read_bytes()
    ]
    assert named == []


def test_what_is_vendored_is_noticed_and_has_its_licence():
    """Folders in book/_static hold the work of others; our own files lie beside them."""
    folders = {path.name: path for path in (ROOT / "book" / "_static").iterdir() if path.is_dir()}
    noticed = re.findall(r"^book/_static/(\S+)    \S", (ROOT / "NOTICE").read_text(), re.MULTILINE)
    assert sorted(noticed) == sorted(folders)
    for folder in folders.values():
        licence = (folder / "LICENSE").read_text()
        assert re.search(
            r"MIT License|Apache License|SIL OPEN FONT LICENSE Version 1.1|BSD", licence
        ), folder


def test_font_and_uplot_are_those_noticed():
    static = ROOT / "book" / "_static"
    assert {path.name for path in (static / "fonts").iterdir()} == {
        "LICENSE",
        "stix-two-math.woff2",
    }
    assert "uPlot (v1.6.32)" in (static / "uplot" / "uPlot.iife.min.js").read_text()[:100]


def test_citations_agree_with_the_project():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    bib = (ROOT / "book" / "metanb.bib").read_text()
    (paper,) = cff["references"]
    assert cff["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= cff.keys()
    assert str(cff["version"]) == __version__ and f"version = {{{__version__}}}" in bib
    assert cff["license"] == PROJECT["license"] and cff["authors"] == PROJECT["authors"]
    assert cff["title"] in bib.replace("{Towards", "Towards").replace("Learning}", "Learning")
    entry = re.search(
        r"@misc\{guiroy2019,(.*?)\n\}", (ROOT / "book" / "references.bib").read_text(), re.DOTALL
    )[1]
    assert f"title = {{{paper['title']}}}" in entry and f"year = {{{paper['year']}}}" in entry
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in entry
    names = [f"{name['family-names']}, {name['given-names']}" for name in paper["authors"]]
    assert f"author = {{{' and '.join(names)}}}" in entry


def test_a_wheel_holds_what_the_package_reads(tmp_path):
    """As `pip wheel --no-deps .` makes it, by the build backend, from the files that git tracks."""
    for path in tracked():
        name = path.relative_to(ROOT)
        if name.parts[0] == "metanb" or len(name.parts) == 1 or name.name == "LICENSE":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / name)
    command = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT)) for path in tracked() if path.is_relative_to(ROOT / "metanb")
    }
    assert package <= held
    assert {"metanb/py.typed", "metanb/data/vinyals.csv"} <= held
    licences = f"metanb-{__version__}.dist-info/licenses/"
    assert {f"{licences}LICENSE", f"{licences}NOTICE"} <= held
    assert {name.split("/")[0] for name in held} == {"metanb", f"metanb-{__version__}.dist-info"}

    # Install it, and import every module from there; the libraries are those of this environment.
    installed = tmp_path / "installed"
    command = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", installed]
    subprocess.run([sys.executable, *command, wheel], check=True)
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "metanb").rglob("*.py")
        if path.name != "__main__.py"  # it runs the command line
    ]
    code = (
        "import importlib, sys; "
        "files = [importlib.import_module(name).__file__ for name in sys.argv[2:]]; "
        "assert all(file.startswith(sys.argv[1]) for file in files), files"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, installed, *modules]
    subprocess.run(command, cwd=installed, env=environment, check=True)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_python_reads_the_package(version, tmp_path):
    """Syntax alone: to compile is not to run."""
    places = [
        shutil.which(f"python{version}"),
        *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    works = [
        place
        for place in places
        if place and not subprocess.run([place, "-c", ""], capture_output=True).returncode
    ]
    if not works:
        pytest.skip(f"no Python {version} here")
    command = [
        works[0],
        "-X",
        f"pycache_prefix={tmp_path}",
        "-W",
        "error",
        "-m",
        "compileall",
        "-q",
        "metanb",
        "tests",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_alone_prints_its_targets_and_builds_nothing():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    printed = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True
    ).stdout
    makefile = (ROOT / "Makefile").read_text()
    declared, _ = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert re.findall(r"^make (\w+) ", printed, re.MULTILINE) == declared.split()


def test_make_says_so_when_the_folder_was_moved(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "pip").write_text("#!/elsewhere/.venv/bin/python3\n")
    command = ["make", "-C", tmp_path]
    done = subprocess.run([*command, "book"], capture_output=True, text=True)
    assert done.returncode != 0 and "made in another folder: run  make clean  first" in done.stderr
    assert subprocess.run([*command, "clean"], capture_output=True).returncode == 0
    assert not scripts.exists()


def test_a_clone_that_changes_line_ends_keeps_records_whole(tmp_path):
    """As git does on Windows: `core.autocrlf`."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "-c", "core.autocrlf=true", "-c", "safe.directory=*", "clone", "--quiet"]
    subprocess.run([*command, "--depth", "1", f"file://{ROOT}", tmp_path / "clone"], check=True)
    read = records.read_records(tmp_path / "clone" / "results")
    assert len(read) > 100 and len(read) == len(records.read_records(ROOT / "results"))


def test_make_refuses_another_python_in_one_line(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # answers as Python 3.9 would: it runs the check with another version_info
    old = tmp_path / "python"
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec python3 -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", tmp_path, "install", f"PYTHON={old}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.9 found, 3.11 to 3.13 needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_style():
    """Ruff, its formatting and the rules of pyproject.toml."""
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_types():
    """The package's type hints, by mypy in strict mode; py.typed shows them to other projects."""
    assert (ROOT / "metanb" / "py.typed").is_file()
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


OWN_MODULE = """
import torch
from torch import Tensor, nn
from metanb.labels import Algorithm, Measure
from metanb.landscape.measures import per_task
from metanb.landscape.solutions import Solutions
from metanb.maml.algorithms import algorithm, meta_train
from metanb.maml.inner_loop import adapt
from metanb.maml.network import network
from metanb.data.tasks import Tasks
from metanb.settings import Settings

class Mine(nn.Module):
    def __init__(self, pixels: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x.flatten(1))
        return outputs

@network("mine")
def build(shape: tuple[int, ...], outputs: int, settings: Settings) -> nn.Module:
    return Mine(shape[0] * shape[1] * shape[2], outputs)

@per_task("twice", Measure("twice the loss"))
def twice(at: Solutions) -> Tensor:
    return 2 * at.loss_before

algorithm("again", Algorithm("MAML again"))(meta_train)

def distances(tasks: Tasks) -> list[float]:
    net = Mine(784, 5)
    adapt(net, tasks, lr=0.1, steps="two")  # type: ignore[arg-type]
    adapted = adapt(net, tasks, lr=0.1, steps=2, adapts=["layer.bias"])
    return [float(row[0]) for row in adapted]
"""


# What pyproject.toml takes from strict mode.
STRICT = """
[[tool.mypy.overrides]]
module = "mine"
warn_return_any = true
disallow_subclassing_any = true
untyped_calls_exclude = []
"""


def test_types_of_ones_own_module(tmp_path):
    """Mypy in strict mode accepts what chapter 9 does, and sees that a number is no word."""
    (tmp_path / "mine.py").write_text(OWN_MODULE)
    # The package as in `test_types`, which left it in the cache; her module without exceptions.
    config = (ROOT / "pyproject.toml").read_text().replace('packages = ["metanb"]', "")
    (tmp_path / "pyproject.toml").write_text(config + STRICT)
    command = [sys.executable, "-m", "mypy", f"--config-file={tmp_path / 'pyproject.toml'}"]
    done = subprocess.run(
        [*command, tmp_path / "mine.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_test_imports_from_another():
    """What tests share is in tests/support/."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        imported = re.findall(r"^\s*(?:from|import) (tests\S*)", path.read_text(), re.MULTILINE)
        assert all(name.startswith("tests.support") for name in imported), path


def test_folders_import_downwards():
    """By import-linter, as pyproject.toml says; figures, verdicts and settings load no torch."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
