"""Notebooks: complete as committed, executed in order, clean, and alive with other parameters.

That each gives the outputs it was committed with is nbval's to say: `make test` runs it in strict
mode over notebooks/.
"""

import ast
import html
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from metanb.figures import svg
from metanb.grids import definitions
from tests.support.command_line import call
from tests.support.paths import ROOT

NOTEBOOKS = sorted(
    (ROOT / "notebooks").glob("*.ipynb"), key=lambda path: int(path.name.partition("-")[0])
)
MAX_LINES, MAX_WIDTH = 8, 90  # of a code cell; blank lines, imports and parameters do not count


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    numbers = [int(path.name.partition("-")[0]) for path in NOTEBOOKS]
    assert numbers == list(range(len(NOTEBOOKS))) and len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_with_outputs_and_in_order(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        shows = isinstance(ast.parse(cell.source).body[-1], ast.Expr)
        assert cell.outputs or not shows, (
            f"this cell shows something, but has no output:\n{cell.source}"
        )
        assert not any(
            output.output_type == "error" or output.get("name") == "stderr"
            for output in cell.outputs
        )
    assert sum(bool(cell.outputs) for cell in cells) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_reads_well(path):
    """Prose before each cell, short cells, one parameters cell, assertions last, no traces."""
    notebook = nbformat.read(path, 4)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert "code code" not in " ".join(kinds)
    for cell in code_cells(path):
        lines = [
            line
            for line in cell.source.splitlines()
            if line and not line.startswith(("import ", "from "))
        ]
        assert len(lines) <= MAX_LINES or "parameters" in cell.metadata.get("tags", []), cell.source
        assert max(map(len, lines), default=0) <= MAX_WIDTH, cell.source
    tags = [tag for cell in code_cells(path) for tag in cell.metadata.get("tags", [])]
    known = {"parameters", "hide-input", "nbval-ignore-output"}
    assert tags.count("parameters") == 1 and set(tags) <= known
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall("^## .*", prose, re.MULTILINE)[-1] == "## Verifying the claim"
    assert (
        "assert " in notebook.cells[-1].source and "verified" in notebook.cells[-1].outputs[0].text
    )
    assert "papermill" not in json.dumps(
        [notebook.metadata, *(cell.metadata for cell in notebook.cells)]
    )
    assert str(Path.home()) not in path.read_text()


RHYTHM = (
    r"The claims?",
    r"How (it is|they are) measured",
    "What we see",
    r"The verdicts?",
    "What would change our mind",
    "The controls",
    "At the paper's scale",
    "Run it yourself",
    "Verifying the claim",
)
CLAIM_PAGES = ("2-flatness", "3-trajectories", "4-gradients", "5-overfitting", "6-regularizer")


@pytest.mark.parametrize("name", CLAIM_PAGES)
def test_every_claim_page_has_the_same_rhythm(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(headings) == len(RHYTHM), headings
    for heading, expected in zip(headings, RHYTHM, strict=True):
        assert re.fullmatch(expected, heading)


@pytest.mark.parametrize("name", CLAIM_PAGES)
def test_what_a_reader_is_told_to_type_is_understood(name):
    """The notebook and its parameters exist, and a grid's pattern matches runs."""
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    cells = nbformat.reads(text, 4).cells
    (block,) = re.findall(
        r"```bash\n(.*?)```",
        "\n".join(c.source for c in cells if c.cell_type == "markdown"),
        re.DOTALL,
    )
    lines = [shlex.split(line) for line in block.splitlines()]
    assert lines[0][:3] == ["metanb", "run", f"notebooks/{name}.ipynb"] and len(lines) >= 2
    (parameters,) = (
        cell.source
        for cell in code_cells(ROOT / "notebooks" / f"{name}.ipynb")
        if "parameters" in cell.metadata.get("tags", [])
    )
    for flag, given in itertools.pairwise(lines[0]):
        assert flag != "-p" or re.search(rf"^{given} = ", parameters, re.MULTILINE), given
    for words in lines[1:]:
        assert words[:2] == ["metanb", "grid"] and words[3] == "--only" and len(words) == 5
        assert definitions.select_runs(definitions.GRIDS[words[2]](), words[4])


def test_readme_shows_what_the_notebook_drew():
    """The picture is that of the first figure of 2-flatness, black on white."""
    (figure,) = (
        output.data["text/html"]
        for cell in code_cells(ROOT / "notebooks" / "2-flatness.ipynb")
        for output in cell.outputs
        if 'download="flatness.csv"' in output.get("data", {}).get("text/html", "")
    )
    alt = html.unescape(re.search(r'role="img" aria-label="([^"]*)"', figure)[1])
    first, *panels = re.findall(r"<svg.*?</svg>", figure)
    # one drawing, or a legend and panels
    picture = svg.standalone(svg.join([[first], panels], alt) if panels else first)
    assert picture == (ROOT / "book" / "_static" / "flatness.svg").read_text()


# Makes smoke runs smaller still: as many epochs, of less.
SHORT = """from metanb import settings

small = {"filters": 4, "iterations": 8, "epoch_iterations": 2, "test_tasks": 3}
settings.SCALE_ROWS["smoke"] += (settings._PresetRow(small),)"""
# Parameters other than those committed, and the runs that must come of it. In some two seeds give
# intervals; a smoke run has no verdict, however many there are.
SHARED = {"dataset": "glyphs", "ways": 2, "scale": "smoke", "device": "cpu"}
LIVE = {
    "2-flatness": ({"ways": 3, "shots": 2, "seeds": [5, 6], "algorithms": ["maml"]}, 2),
    "3-trajectories": ({"seeds": [5], "heads": ["fresh", "zero"], "head_seeds": [5]}, 4),
    "4-gradients": ({"seeds": [5, 6], "algorithms": ["fomaml"]}, 2),
    "5-overfitting": ({"classes": [6], "draws": [1, 2]}, 2),
    "6-regularizer": (
        {"seeds": [5], "many_ways": 3, "many_algorithms": ["fomaml"], "many_seeds": [5]},
        10,
    ),
    "7-what-coherence-measures": (
        {"seeds": [5], "head_algorithms": ["fomaml"], "head_seeds": [5]},
        5,
    ),
    # the run, and one that ends half-way
    "0-what-it-looks-like": ({"seeds": [5], "algorithms": ["maml"]}, 2),
    "8-causes": (
        {"seeds": [5], "algorithms": ["fomaml"], "chosen": ["zero head", "inner step 0.1"]},
        4,
    ),
}


@pytest.mark.parametrize("name", LIVE)
def test_runs_live_with_other_parameters(name, capsys, monkeypatch, tmp_path):
    values, runs = LIVE[name]
    options = [
        word
        for key, value in (SHARED | values).items()
        for word in ("-p", key, json.dumps(value).strip('"'))
    ]
    store, executed = tmp_path / "store", tmp_path / "out.ipynb"
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORT))
    nbformat.write(notebook, tmp_path / "in.ipynb")
    monkeypatch.setenv("METANB_STORE", str(store))
    arguments = ["run", tmp_path / "in.ipynb", *options, "-o", executed]
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 0, err
    assert len(list(store.glob("*/measures.csv"))) == runs
    assert code_cells(executed)[-1].outputs[0].text.startswith("verified")


def test_every_notebook_that_trains_is_run_live():
    under_nbval = {"1-maml", "9-your-own"}  # these two train live there
    assert {path.stem for path in NOTEBOOKS} == {*LIVE, *under_nbval}


def test_flatness_runs_by_plain_papermill(tmp_path, monkeypatch):
    """As committed, with no word of metanb's command line, from another folder."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "2-flatness.ipynb"),
        "out.ipynb",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "verified" in code_cells(tmp_path / "out.ipynb")[-1].outputs[0].text
