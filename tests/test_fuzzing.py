"""Files that people hand in, mutated at random: each is read, or refused in one line.

A hundred mutations of each kind of file, by a fixed seed: bytes flipped, cut out, doubled, or
exchanged for others; never a traceback, and never another error than the one that names the file.
"""

import gzip
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from metanb.data.image_sets import DataError, ImageSet
from metanb.files import DiskError
from metanb.runs import archive, records, weights
from metanb.runs.archive import ArchiveError
from metanb.runs.records import RecordError
from metanb.settings import SettingsError, from_dict, preset
from tests.support.command_line import call
from tests.support.stores import store_with

MUTATIONS = 100
TINY = {"filters": 2, "iterations": 2, "epoch_iterations": 1, "test_tasks": 2, "test_queries": 1}
SETTINGS = preset("smoke", "glyphs", **TINY)
PIECES = [b"", b"\x00", b"\xff\xfe", b"NaN", b"-1", b"1e999", b"{}", b"[]", b"null", b'"', b"\n"]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three random changes."""
    for _ in range(rng.integers(1, 4)):
        first, last = sorted(rng.integers(0, len(content) + 1, 2))
        last = min(last, first + 40)
        kind = rng.integers(4)
        middle = content[first:last]
        if kind == 0:
            middle = b""
        elif kind == 1:
            middle = 2 * middle
        elif kind == 2:
            middle = PIECES[rng.integers(len(PIECES))]
        elif middle:
            middle = bytes(rng.integers(0, 256, len(middle), dtype=np.uint8))
        content = content[:first] + middle + content[last:]
    return content


def mutations(content: bytes):
    rng = np.random.default_rng(0)
    return [mutate(content, rng) for _ in range(MUTATIONS)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A store with a tiny run and its weights."""
    with store_with(SETTINGS, tmp_path_factory.mktemp("recorded")) as folder:
        archive.pack_runs([SETTINGS], folder / "packed", "runs")
        return folder


def one_line(error: Exception) -> None:
    assert str(error) and "\n" not in str(error), repr(error)


@pytest.mark.parametrize("file", [*records.FILES, f"{records.MEASURES}.gz", records.LATER])
def test_records(recorded, tmp_path, file):
    copy = tmp_path / SETTINGS.id
    shutil.copytree(recorded / SETTINGS.id, copy)
    rows = [{"epoch": 2, "iteration": 2, "measure": "x", "mean": 1.0, "median": 1.0}]
    rows[0] |= {"std": 0.0, "sem": 0.0, "n": 2}
    contents = {name: (copy / name).read_bytes() for name in records.FILES}
    contents[f"{records.MEASURES}.gz"] = gzip.compress(contents[records.MEASURES])
    contents[records.LATER] = json.dumps({"rows": rows, "origins": [{}]}).encode()
    for changed in mutations(contents[file]):
        (copy / file).write_bytes(changed)
        try:
            records.read_record(copy)
        except RecordError as error:
            one_line(error)


def test_weights(recorded, tmp_path):
    copy = tmp_path / SETTINGS.id
    shutil.copytree(recorded / SETTINGS.id, copy)
    content = (copy / records.WEIGHTS).read_bytes()
    record = records.read_record(copy)
    for changed in mutations(content):
        (copy / records.WEIGHTS).write_bytes(changed)
        try:
            weights.load_weights(record)
            assert changed == content
        except RecordError as error:
            one_line(error)


def test_settings_of_a_record(recorded):
    content = (recorded / SETTINGS.id / "settings.json").read_bytes()
    for changed in mutations(content):
        try:
            values = json.loads(changed)
            assert isinstance(values, dict)
        except (ValueError, AssertionError):
            continue
        try:
            from_dict(values)
        except SettingsError as error:
            one_line(error)


def test_archives(recorded, tmp_path, monkeypatch):
    """The bytes of the file, and those of a member in a file that is whole."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    (packed,) = (recorded / "packed").iterdir()
    content = packed.read_bytes()
    with zipfile.ZipFile(packed) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    candidates = mutations(content)
    rng = np.random.default_rng(1)
    for _ in range(MUTATIONS):
        chosen = list(members)[rng.integers(len(members))]
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as changed:
            for name, member in members.items():
                changed.writestr(name, mutate(member, rng) if name == chosen else member)
        candidates.append(file.getvalue())
    for changed in candidates:
        (tmp_path / "runs-01.zip").write_bytes(changed)
        try:
            archive.unpack_runs(tmp_path / "runs-01.zip")
        except (ArchiveError, RecordError, DiskError) as error:
            one_line(error)
        shutil.rmtree(tmp_path / "store", ignore_errors=True)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tif", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_images(tmp_path, kind):
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        (tmp_path / "own" / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (ord(name), 9, 9)).save(tmp_path / "own" / split / name / "0.png")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "own" / "train" / "a" / f"1.{kind}"
    Image.fromarray(pixels).save(path)
    for changed in mutations(path.read_bytes()):
        path.write_bytes(changed)
        try:
            images = ImageSet.from_folder(tmp_path / "own", "train")
            assert images.images.dtype == np.uint8
        except DataError as error:
            one_line(error)


NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
            "source": "ways = 5",
        }
    ],
    "metadata": {"kernelspec": {"display_name": "x", "language": "python", "name": "no-such"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def test_notebooks(tmp_path, capsys, monkeypatch):
    """The kernel is not installed, so none of them can be executed: each is refused in one line."""
    path = tmp_path / "mine.ipynb"
    for changed in mutations(json.dumps(NOTEBOOK).encode()):
        path.write_bytes(changed)
        code, _, err = call(capsys, monkeypatch, "run", path, "-o", tmp_path / "out.ipynb")
        assert code != 0 and err.startswith(("Error: ", "Usage: ")), (changed, err)
        assert "Traceback" not in err


def test_parameters(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.ipynb"
    path.write_text(json.dumps(NOTEBOOK))
    for changed in mutations(b"[1, two, {three: 3.5}]"):
        value = changed.decode("latin-1").replace("\0", "")
        code, _, err = call(
            capsys, monkeypatch, "run", path, "-p", "ways", value, "-o", tmp_path / "out.ipynb"
        )
        assert code != 0 and "Traceback" not in err, (value, err)


def test_files_of_settings(tmp_path, capsys, monkeypatch):
    """`metanb train --runs`: settings as JSON; what is still right is not trained here."""
    monkeypatch.setattr("metanb.runs.experiment.run_all", lambda *_: [])
    path = tmp_path / "runs.json"
    for changed in mutations(json.dumps([SETTINGS.to_dict()]).encode()):
        path.write_bytes(changed)
        code, _, err = call(capsys, monkeypatch, "train", "--runs", path)
        assert (code == 0) == err.startswith("run "), (changed, err)
        assert "Traceback" not in err
