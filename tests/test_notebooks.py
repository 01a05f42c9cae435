"""Notebooks run with parameters of one's own: what is checked before, and what an interrupt leaves.

A word typed is read as papermill's own `-p` reads it.
"""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from papermill.cli import _resolve_type

from metanb import notebooks
from tests.support.bad_days import shown
from tests.support.command_line import call

PARAMETERS = """
ways = 5
rate: float = 0.5
dataset = "glyphs"  # or "omniglot"
seeds = [
    0,  # of the first
    1,
]
algorithms = ["maml", "fomaml"]
mixed = [1, "two"]
gamma = None
half = ways / 2
plain = True
"""


def write(path, *sources, kernel="python3", parameters=PARAMETERS):
    """A notebook with a cell of parameters; of no kernel if that is empty."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": kernel, "display_name": "Python"}} if kernel else {}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return notebooks.read_notebook(write(tmp_path / "a.ipynb"))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ways", "010", 10),
        ("ways", "3", 3),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2),
        ("dataset", "omniglot", "omniglot"),
        ("dataset", "010", "010"),
        ("dataset", "a: b: c", "a: b: c"),
        ("dataset", "'no'", "no"),
        ("seeds", "7", [7]),
        ("seeds", "[010, 1]", [10, 1]),
        ("seeds", "[]", []),
        ("algorithms", "fomaml", ["fomaml"]),
        ("algorithms", "[fomaml, finetune]", ["fomaml", "finetune"]),
        ("algorithms", "no", ["no"]),
        ("mixed", "[three]", ["three"]),
        ("gamma", "0.3", 0.3),
        ("gamma", "null", None),
        ("half", "[1]", [1]),
        ("plain", "false", False),
    ],
)
def test_values_are_of_the_notebooks_types(notebook, name, text, value):
    (read,) = notebooks.read_values(notebook, "a.ipynb", None, [(name, text)]).values()
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    ["010", "-3", "+3", "1.5", "1e-3", "fomaml", "yes", "0x10", "1:30", "2020-01-01", "None"],
)
def test_single_values_are_read_as_papermill_reads_them(notebook, text):
    assert notebooks.read_values(notebook, "", None, [("gamma", text)]) == {
        "gamma": _resolve_type(text)
    }


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("ways", "three", "ways='three' is not a whole number"),
        ("ways", "2.5", "ways=2.5 is not a whole number"),
        ("ways", "true", "ways=True is not a whole number"),
        ("ways", "null", "ways=None is not a whole number"),
        ("ways", "[3]", "ways=[3] is not a whole number"),
        ("rate", "fast", "rate='fast' is not a number"),
        ("plain", "1", "plain=1 is not true or false"),
        ("seeds", "zero", "seeds='zero' is not a list of whole numbers"),
        ("seeds", "[0, one]", "seeds=[0, 'one'] is not a list of whole numbers"),
        ("algorithms", "[1, 2]", "algorithms=[1, 2] is not a list of words"),
    ],
)
def test_another_type_is_refused(notebook, name, text, words):
    with pytest.raises(notebooks.NotebookError, match=".*") as caught:
        notebooks.read_values(notebook, "a.ipynb", None, [(name, text)])
    assert str(caught.value).startswith(f"{words}, as a.ipynb has it: {name} = ")


def test_a_file_of_parameters_and_typed_ones_win(capsys, monkeypatch, tmp_path):
    """From end to end; one of the file's three is given anew, and one is to become a list."""
    path = write(tmp_path / "a.ipynb", "print(ways, rate, algorithms, dataset)")
    (tmp_path / "p.yml").write_text("ways: 010\nalgorithms: finetune\ndataset: glyphs\n")
    options = ["-f", tmp_path / "p.yml", "-p", "dataset", "omniglot", "-o", tmp_path / "out.ipynb"]
    code, _, err = call(capsys, monkeypatch, "run", path, *options)
    assert code == 0, err
    assert "Executing" not in err  # no bar where nobody watches
    (output,) = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert output.text == "10 0.5 ['finetune'] omniglot\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1\n", "is no mapping"),
        ("ways: [1, 2\n", "cannot be read as YAML: while parsing"),
        ("ways: !!bool x\n", "cannot be read as YAML: 'x'"),
        ("wyas: 3\n", "no parameter 'wyas': choose from ways, rate"),
        ("seeds: zero\n", "seeds='zero' is not a list of whole numbers"),
        ("dataset: 5\n", "dataset=5 is not a word"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(content, words, capsys, monkeypatch, tmp_path):
    (tmp_path / "p.yml").write_text(content)
    path = write(tmp_path / "a.ipynb")
    code, _, err = call(capsys, monkeypatch, "run", path, "-f", tmp_path / "p.yml")
    assert code == 2 and err.count("Error: ") == 1 and words in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("kernel", "options", "error"),
    [
        ("conda-env-x", [], "a.ipynb asks for kernel 'conda-env-x', which is not installed: "),
        ("", [], "a.ipynb names no kernel: "),
        ("python3", ["-k", "julia"], "no kernel 'julia' is installed: "),
    ],
)
def test_a_kernel_that_is_not_there_is_named(kernel, options, error, capsys, monkeypatch, tmp_path):
    path = write(tmp_path / "a.ipynb", kernel=kernel)
    output = tmp_path / "out.ipynb"
    code, _, err = call(capsys, monkeypatch, "run", path, *options, "-o", output)
    assert code == 2 and not output.exists()
    assert err.splitlines()[-1].startswith(f"Error: {error}choose one with -k: ")
    assert "python3" in err.splitlines()[-1].split(": ")[-1]
    if kernel == "conda-env-x":
        shown("A notebook's kernel is not installed", err)


@pytest.mark.parametrize("kernel", ["conda-env-x", ""])
def test_another_kernel_runs_it(kernel, capsys, monkeypatch, tmp_path):
    """Without a language in the notebook, too: the kernel has one."""
    path = write(tmp_path / "a.ipynb", "print(ways)", kernel=kernel)
    options = ["-k", "python3", "-p", "ways", "3", "-o", tmp_path / "out.ipynb"]
    code, _, err = call(capsys, monkeypatch, "run", path, *options)
    assert code == 0, err
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text == "3\n"


CELL = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [], "execution_count": None}
WHOLE = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [CELL]}


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}',
        "[1]",
        '{"a": ',
        "",
        "[" * 100_000,
        '{"nbformat": 4}',
        '{"nbformat": 4, "cells": [1]}',
        json.dumps(WHOLE | {"metadata": {"kernelspec": "python3"}}),
        json.dumps(WHOLE | {"nbformat_minor": "x"}),
        json.dumps(WHOLE | {"cells": [CELL | {"source": 1}]}),
        json.dumps(WHOLE | {"cells": [CELL | {"metadata": {"tags": 1}}]}),
    ],
)
def test_a_file_that_is_no_notebook_is_refused_in_one_line(content, capsys, monkeypatch, tmp_path):
    (tmp_path / "a.ipynb").write_text(content)
    code, out, err = call(capsys, monkeypatch, "run", tmp_path / "a.ipynb")
    assert code == 2 and out == "" and "Traceback" not in err
    assert f"{tmp_path / 'a.ipynb'} is no notebook: " in err.splitlines()[-1]
    shown("A file is no notebook", err)


def test_a_mistyped_type_is_told_before_the_kernel_starts(capsys, monkeypatch, tmp_path):
    path = write(tmp_path / "a.ipynb")
    monkeypatch.setattr(notebooks, "execute", None)  # calling it would fail
    _, _, err = call(capsys, monkeypatch, "run", path, "-p", "seeds", "zero")
    shown("A notebook's parameter is of another type", err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_notebook_says_so(number, capsys, monkeypatch, tmp_path):
    """Stopped for real, in its second cell; run anew, its output has no such note."""
    begun = tmp_path / "begun"
    slow = (
        "import os, time\ntime.sleep(1)\n"  # meanwhile the notebook hears that the cell began
        f"open({str(begun)!r}, 'w').close()\ntime.sleep(int(os.environ['NAP']))"
    )
    path = write(tmp_path / "a.ipynb", "print('first')", slow, "print('last')")
    command = [sys.executable, "-m", "metanb", "run", path, "-o", tmp_path / "out.ipynb"]
    environment = os.environ | {"NAP": "60"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that a shell has started in the background would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    shown("A notebook is interrupted", err)
    note, _, first, second, last = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert note.source.startswith("**Interrupted.**") and "1 of 4 code cells" in note.source
    assert first.outputs[0].text == "first\n" and second.execution_count and not last.outputs
    assert last.metadata.papermill.status == "pending"

    monkeypatch.setenv("NAP", "0")
    again = "run", tmp_path / "out.ipynb", "-o", tmp_path / "again.ipynb"
    assert call(capsys, monkeypatch, *again)[0] == 0
    whole = nbformat.read(tmp_path / "again.ipynb", 4).cells
    assert len(whole) == 4 and whole[-1].outputs[0].text == "last\n"
