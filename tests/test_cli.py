"""The command line as its user meets it: one-line errors, exit codes, results on stdout."""

import subprocess
import sys

import nbformat
import pytest

from metanb.cli import cli
from tests.support.bad_days import shown
from tests.support.command_line import call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--ways", "1"], ["ways=1", "2 to 100"]),
        (["train", "--algorithm", "maml3"], ["maml3", "fomaml"]),
        (["train", "--sede", "1"], ["--sede", "--seed"]),
        (["train", "--scale", "fast"], ["fast", "smoke"]),
        (["train", "--device", "tpu"], ["tpu", "cpu"]),
        (["train", "--device", "cpu:foo"], ["cpu:foo", "auto"]),
        (["train", "--iterations", "7"], ["iterations=7", "epoch_iterations=10"]),
        (["train", "--dataset", "mini-imagenet"], ["mini-imagenet"]),
        (["data", "check", "imagenet"], ["imagenet", "mini-imagenet"]),
        (["run", "nowhere.ipynb"], ["nowhere.ipynb"]),
    ],
)
def test_errors_are_one_line_and_not_zero(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    if "mini-imagenet" in arguments:
        monkeypatch.setenv("METANB_DATA", str(tmp_path))
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code != 0
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0]


def test_train_tells_where_the_record_is(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    options = [
        "--filters",
        4,
        "--iterations",
        4,
        "--epoch-iterations",
        2,
        "--test-tasks",
        3,
        "--device",
        "cpu",
    ]
    code, out, _ = call(capsys, monkeypatch, "train", *options)
    assert code == 0
    assert "query_accuracy" in out
    record = out.strip().splitlines()[-1].removeprefix("record: ")
    assert (tmp_path / record / "measures.csv").is_file()


MODULES = "metanb.cli, metanb.claims.rules, metanb.claims.verdicts, metanb.runs.records"


@pytest.mark.parametrize(
    "code",
    [f"import {MODULES}", "from metanb.cli import cli; cli(['claims'], standalone_mode=False)"],
    ids=["imports", "claims"],
)
def test_judging_claims_loads_no_torch(code):
    """In a process of its own, which starts without torch; torch takes seconds to load."""
    script = f"import sys\n{code}\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bench_offers_what_it_can_time():
    """Meta-gradients, Hessian norms and whole iterations."""
    (unit,) = [option for option in cli.commands["bench"].params if option.name == "units"]
    assert list(unit.type.choices) == ["U1", "U2", "U3", "U4", "H", "HR", "R1", "R2"]


def notebook(path, source):
    cells = [
        nbformat.v4.new_code_cell("ways = 5\nseeds = [0]", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_run_passes_parameters_as_values(capsys, monkeypatch, tmp_path):
    path = notebook(tmp_path / "sum.ipynb", "print(ways + sum(seeds))")
    code, out, _ = call(
        capsys,
        monkeypatch,
        "run",
        path,
        "-p",
        "ways",
        "3",
        "-p",
        "seeds",
        "[1, 2]",
        "-o",
        tmp_path / "out" / "sum.ipynb",
    )
    assert code == 0
    assert "executed:" in out
    executed = nbformat.read(tmp_path / "out" / "sum.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "6\n"


def test_run_refuses_a_parameter_that_the_notebook_lacks(capsys, monkeypatch, tmp_path):
    path = notebook(tmp_path / "sum.ipynb", "print(ways)")
    code, _, err = call(
        capsys, monkeypatch, "run", path, "-p", "wyas", "3", "-o", tmp_path / "out.ipynb"
    )
    assert code != 0
    assert "'wyas'" in err and "ways, seeds" in err
    shown("A notebook's parameter is mistyped", err)
    assert not (tmp_path / "out.ipynb").exists()


def test_run_refuses_a_value_that_cannot_be_read(capsys, monkeypatch, tmp_path):
    path = notebook(tmp_path / "sum.ipynb", "print(ways)")
    code, _, err = call(
        capsys, monkeypatch, "run", path, "-p", "seeds", "[1, 2", "-o", tmp_path / "out.ipynb"
    )
    assert code != 0
    assert "seeds='[1, 2'" in err and "Traceback" not in err


def test_run_names_the_cell_that_failed(capsys, monkeypatch, tmp_path):
    path = notebook(tmp_path / "bad.ipynb", "1 / 0")
    code, _, err = call(capsys, monkeypatch, "run", path, "-o", tmp_path / "out.ipynb")
    assert code == 1
    assert "bad.ipynb, cell 2: ZeroDivisionError" in err
    shown("A notebook stops with an error", err)
