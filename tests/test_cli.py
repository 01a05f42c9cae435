"""The command line as its user meets it: one-line errors, exit codes, results on stdout."""

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios

import nbformat
import pytest

from metanb.cli import cli
from metanb.grids import definitions
from metanb.runs import records
from metanb.runs import store as run_store
from metanb.settings import preset
from tests.support.bad_days import shown
from tests.support.command_line import call
from tests.support.fresh_process import require_no_torch
from tests.support.paths import ROOT
from tests.support.processes import Process


@pytest.mark.parametrize(
    ("arguments", "expected", "words"),
    [
        (["train", "--ways", "1"], 1, ["ways=1", "2 to 100"]),
        (["train", "--algorithm", "maml3"], 1, ["maml3", "fomaml"]),
        (["train", "--sede", "1"], 2, ["--sede", "--seed"]),
        (["train", "--scale", "fast"], 2, ["fast", "smoke"]),
        (["train", "--device", "tpu"], 1, ["tpu", "cpu"]),
        (["train", "--device", "cpu:foo"], 1, ["cpu:foo", "auto"]),
        (["train", "--iterations", "7"], 1, ["iterations=7", "epoch_iterations=15"]),
        (["train", "--dataset", "mini-imagenet"], 1, ["mini-imagenet"]),
        (["grid", "smoke", "--only", "nowhere"], 1, ["nowhere"]),
        (["grid", "smoke", "--budget", "nan"], 2, ["--budget nan", "minutes"]),
        (["data", "fetch", "imagenet"], 2, ["imagenet", "mini-imagenet"]),
        (["run", "nowhere.ipynb"], 2, ["nowhere.ipynb"]),
    ],
)
def test_errors_are_one_line_and_their_code_is_as_documented(
    arguments, expected, words, capsys, monkeypatch, tmp_path
):
    """book/commands.md says when it is 1 and when 2."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path))
    if "mini-imagenet" in arguments:
        monkeypatch.setenv("METANB_DATA", str(tmp_path))
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == expected
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
        2,
        "--epoch-iterations",
        2,
        "--test-tasks",
        2,
        "--device",
        "cpu",
    ]
    code, out, _ = call(capsys, monkeypatch, "train", *options)
    assert code == 0
    assert "query_accuracy" in out
    record = out.strip().splitlines()[-1].removeprefix("record: ")
    assert (tmp_path / record / "measures.csv").is_file()


def on_a_terminal(store, *arguments, columns=80):
    """Standard output of a command, and what it writes on a terminal that is its standard error."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = Process(store, *arguments, terminal=os.ttyname(its_end))
    shown = b""
    is_running = True
    while is_running:
        is_running = process.poll() is None  # what it wrote before its end is read after it
        while select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096)
    os.close(its_end)
    os.close(terminal)
    assert process.wait() == 0
    return process.out, shown.decode()


TINY = "--filters 4 --iterations 4 --epoch-iterations 2 --test-tasks 2 --final-tasks 3".split()
TRAIN = ["train", *TINY, "--device", "cpu"]


def test_a_terminal_shows_a_bar_and_what_is_done(tmp_path):
    """At 80 columns the bar has at least 10; the run's id stands above it."""
    out, shown = on_a_terminal(tmp_path, *TRAIN)
    lines = [line.strip("\x1b[A ") for line in re.split("[\r\n]+", shown)]
    bars = [line for line in lines if "%|" in line]
    assert lines[0] == "loading PyTorch, which takes seconds"
    assert re.fullmatch(r"run glyphs-5w1s-maml-s0-\w{8}: 4 iterations, 2 epochs", lines[1])
    assert {bar.split(":")[0].strip() for bar in bars} == {"training", "measuring"}
    assert min(len(bar.split("|")[1]) for bar in bars) >= 10 and max(map(len, bars)) <= 80
    *table, last = out.splitlines()
    assert "%|" not in out and last.startswith("record: ") and max(map(len, table)) <= 80


def test_a_log_has_no_bar(monkeypatch, tmp_path):
    """Nor if a notebook that is open in Jupyter starts the command."""
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    process = Process(tmp_path, *TRAIN)
    assert process.wait() == 0 and "\r" not in process.err and "%" not in process.err
    assert [line.split()[0] for line in process.err.splitlines()] == ["loading", "run"]


def test_data_check_shows_on_a_terminal_how_far_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("METANB_DATA", str(tmp_path))
    command = ["data", "check", "glyphs"]
    out, shown = on_a_terminal(tmp_path, *command)
    for split in ("train", "valid", "test"):
        assert re.search(rf"reading glyphs-\S*{split}: +\d+%\|", shown)
    assert "%|" not in out and "glyphs: train " in out
    process = Process(tmp_path, *command)
    assert process.wait() == 0 and process.out == out and process.err == ""


MODULES = "metanb.cli, metanb.claims.rules, metanb.claims.verdicts, metanb.runs.records"


@pytest.mark.parametrize(
    "code",
    [f"import {MODULES}", "from metanb.cli import cli; cli(['claims'], standalone_mode=False)"],
    ids=["imports", "claims"],
)
def test_judging_claims_loads_no_torch(code):
    """In a process of its own, which starts without torch; torch takes seconds to load."""
    require_no_torch(code)


@pytest.mark.parametrize("columns", ["50", "80"])
def test_help_shows_summaries_whole(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for group in ([], ["data"]):
        _, out, _ = call(capsys, monkeypatch, *group, "--help")
        assert "..." not in out.partition("Commands:")[2]
        assert max(map(len, out.splitlines())) <= int(columns)
    _, out, _ = call(capsys, monkeypatch, "--help")
    words = " ".join(out.split())
    for name, command in cli.commands.items():
        assert f" {name} {command.help.splitlines()[0]}" in words


def test_help_names_the_grids(capsys, monkeypatch):
    _, out, _ = call(capsys, monkeypatch, "grid", "--help")
    assert all(name in out.partition("Options:")[0] for name in definitions.GRIDS)


def test_train_says_something_before_torch_is_loaded():
    """In a process of its own, which the first word ends."""
    script = (
        "import sys\nfrom metanb import cli\n"
        "def echo(line, err):\n    sys.exit(0 if err and 'torch' not in sys.modules else 3)\n"
        "cli.click.echo = echo\n"
        "cli.cli(['train'], standalone_mode=False)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_bench_offers_what_it_can_time():
    """Meta-gradients, Hessian norms and whole iterations."""
    (unit,) = [option for option in cli.commands["bench"].params if option.name == "units"]
    assert list(unit.type.choices) == ["U1", "U2", "U3", "U4", "H", "HR", "R1", "R2"]


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """Three runs of the book in two cells, and a folder for one's own, which is empty."""
    book, own = tmp_path / "results", tmp_path / "own"
    own.mkdir()
    for pattern in (
        preset("quick", "glyphs").id,
        preset("quick", "glyphs", seed=1).id,
        "omniglot-5w1s-maml-adapted-s0-*",
    ):
        record = min((ROOT / "results").glob(pattern))
        shutil.copytree(record, book / record.name)
    monkeypatch.setattr(run_store, "book_folder", lambda: book)
    monkeypatch.setenv("METANB_STORE", str(own))
    return own


def test_claims_are_filtered(capsys, monkeypatch, ledger):
    code, out, err = call(capsys, monkeypatch, "claims")
    assert (code, err) == (0, "") and {"  C5:", "  C6:"} <= set(re.findall("^  C.:", out, re.M))
    assert max(map(len, out.splitlines())) <= 80
    options = ["c5", "C6", "--dataset", "glyphs", "--algorithm", "maml", "--scale", "quick"]
    code, out, _ = call(capsys, monkeypatch, "claims", *options)
    heading, *rows = out.split("\n\n")[0].splitlines()
    assert code == 0 and heading == "Glyphs, 5-way 1-shot, MAML, quick"
    assert [row[:5] for row in rows if row[2] != " "] == ["  C5:", "  C6:"]
    _, out, _ = call(capsys, monkeypatch, "claims", *options, "--json")
    assert [(row["claim"], row["dataset"]) for row in json.loads(out)] == [
        ("C5", "glyphs"),
        ("C6", "glyphs"),
    ]
    code, out, err = call(capsys, monkeypatch, "claims", "C8", "--dataset", "glyphs")
    assert (code, out, err) == (0, "", "no recorded run has such a row\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["C9"], ["CLAIM 'C9'", "C1, C2", "C8"]),
        (["C1", "--dataset", "imagenet"], ["--dataset 'imagenet'", "glyphs, omniglot"]),
        (["--algorithm", "reptile"], ["--algorithm 'reptile'", "finetune, fomaml, maml"]),
        (["--scale", "smoke"], ["--scale 'smoke'", "custom, paper, quick"]),
    ],
)
def test_claims_names_the_choices(arguments, words, capsys, monkeypatch, ledger):
    code, out, err = call(capsys, monkeypatch, "claims", *arguments)
    (error,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert code == 2 and out == "" and all(word in error for word in words)
    if arguments == ["C9"]:
        shown("A claim or a name is mistyped", err)


def put_into(folder, settings, name):
    """A record of these settings, with the curves of one of the book's."""
    source = records.read_record(ROOT / "results" / name)
    rows = source.measures[source.measures.epoch <= settings.epochs].to_dict("records")
    values = {k: v for k, v in source.provenance.items() if k != "measures_sha256"}
    return records.write_record(settings, rows, values, folder)


def test_ones_own_runs_are_marked_and_smoke_is_left_out(capsys, monkeypatch, ledger):
    """By hand: the book has two seeds of the cell, the store has the third, and a smoke run."""
    before = json.loads(call(capsys, monkeypatch, "claims", "--json")[1])
    third = preset("quick", "glyphs", seed=2)
    put_into(ledger, third, third.id)
    put_into(ledger, preset("smoke", "glyphs"), third.id)
    _, out, err = call(capsys, monkeypatch, "claims", "C2", "--dataset", "glyphs")
    assert re.findall("^Glyphs.*", out, re.M) == [
        "Glyphs, 5-way 1-shot, MAML, quick",
        "Glyphs, 5-way 1-shot, MAML, quick; yours: 1 of 3 runs",
    ]
    assert "  C2: no verdict: fewer than 3 runs; × " in out and "  C2: reproduced; × " in out
    assert err == "left out: smoke runs (1): they only show that the code works\n"
    shown("A smoke run is in the store", err)
    after = json.loads(call(capsys, monkeypatch, "claims", "--json")[1])
    assert [row for row in after if not row["own"]] == before
    assert {row["scale"] for row in after} == {"quick"}


def test_smoke_runs_alone_have_no_data_set_to_choose(capsys, monkeypatch, tmp_path):
    put_into(tmp_path, preset("smoke", "glyphs"), preset("quick", "glyphs", seed=2).id)
    options = ["--records", tmp_path, "--dataset", "glyphs"]
    code, out, err = call(capsys, monkeypatch, "claims", *options)
    assert (code, out) == (2, "") and "--dataset 'glyphs' has nothing to choose from" in err


def test_an_encoding_without_greek_does_not_stop_the_ledger(capsys, monkeypatch, ledger):
    for encoding, letter in (("cp1252", "?"), ("utf-8", "γ")):
        bytes_out = io.BytesIO()
        stdout = io.TextIOWrapper(bytes_out, encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        code, _, err = call(capsys, monkeypatch, "claims", "C8")
        stdout.flush()
        assert (code, err) == (0, "")
        assert f"C8, adapted, {letter} = 1: no verdict" in bytes_out.getvalue().decode(encoding)


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


@pytest.mark.parametrize("text", ["[1, 2", "!!bool x", "!!timestamp x", "9" * 5000, "[" * 3000])
def test_run_refuses_a_value_that_cannot_be_read(text, capsys, monkeypatch, tmp_path):
    path = notebook(tmp_path / "sum.ipynb", "print(ways)")
    code, _, err = call(
        capsys, monkeypatch, "run", path, "-p", "seeds", text, "-o", tmp_path / "out.ipynb"
    )
    assert code == 2
    assert f"seeds={text!r} cannot be read" in err.replace("\n", " ") and "Traceback" not in err


def test_run_names_the_cell_that_failed(capsys, monkeypatch, tmp_path):
    path = notebook(tmp_path / "bad.ipynb", "1 / 0")
    code, _, err = call(capsys, monkeypatch, "run", path, "-o", tmp_path / "out.ipynb")
    assert code == 1
    assert "bad.ipynb, cell 2: ZeroDivisionError" in err
    shown("A notebook stops with an error", err)
