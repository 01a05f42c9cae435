"""The reference pages: every module and command is on them, in an order that holds.

Evidence: the modules' own syntax trees, click's command objects, and the built pages, parsed by
BeautifulSoup.
"""

import ast
import re
import tomllib
from types import SimpleNamespace

import click
import pytest
import yaml
from bs4 import BeautifulSoup

from metanb.cli import cli
from tests.support.paths import ROOT

PAGES = ("api", "api-measures", "api-runs", "api-claims", "api-figures")
LISTED = [
    name
    for page in PAGES
    for name in re.findall(r"automodule:: metanb\.([\w.]+)", (ROOT / f"book/{page}.md").read_text())
]
TREES = {
    ".".join(path.relative_to(ROOT / "metanb").with_suffix("").parts): ast.parse(path.read_text())
    for path in (ROOT / "metanb").rglob("*.py")
    if path.stem[0] != "_" and path.parent.name != "cli"  # commands have a page of their own
}

launch, reference = pytest.importorskip("launch"), pytest.importorskip("reference")


def test_every_module_is_listed_once():
    assert sorted(LISTED) == sorted(TREES)


def test_the_pages_follow_the_folders():
    """Folders stand in the order of the contract, each in one piece."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [rule["layers"] for rule in contract["contracts"] if rule["type"] == "layers"]
    order = [name for layer in reversed(layers) for name in re.split(r" \| ", layer)]
    folders = list(dict.fromkeys(name.split(".")[0] for name in LISTED))
    places = [order.index(folder) for folder in folders if folder not in ("grids", "claims")]
    assert places == sorted(places)
    assert [name.split(".")[0] for name in LISTED] == sorted(
        (name.split(".")[0] for name in LISTED), key=folders.index
    )


def test_every_public_name_has_its_place():
    ids = set()
    for page in PAGES:
        built = ROOT / "_build" / "html" / "book" / f"{page}.html"
        if not built.exists():
            pytest.fail(f"{built} is not there: run `make book` first", pytrace=False)
        ids |= {
            element["id"]
            for element in BeautifulSoup(built.read_text(), "html.parser").find_all(id=True)
        }
    public = {
        f"metanb.{module}.{node.name}"
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert public <= ids
    assert "metanb.data.tasks.Tasks.support_x" in ids  # a field's comment is its documentation


def test_docstrings_become_what_docutils_reads():
    lines = [
        "Norms `|x|` of *x*, x_:",
        "",
        "    a   as it is | so",
        "",
        "Args:",
        "    x: `a`s.",
        "",
        "        further",
        "",
        "Example:",
        "    >>> f(a_, *b)",
    ]
    assert reference.to_restructured_text(lines) == [
        r"Norms ``|x|`` of \*x\*, x\_:",
        "",
        ".. code-block:: none",
        "",
        "    a   as it is | so",
        "",
        "Args:",
        r"    x: ``a``\ s.",
        "",
        "        further",
        "",
        "Example:",
        "    >>> f(a_, *b)",
    ]


def test_every_command_is_on_the_page():
    shown = re.findall(r"\{help\} ?([\w ]*)\n", (ROOT / "book" / "commands.md").read_text())
    commands = {"", *cli.commands}
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            commands |= {f"{name} {inner}" for inner in command.commands}
    assert sorted(shown) == sorted(commands)


def test_buttons_wait_for_an_address():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    theme = config["html_theme_options"]
    # thebe stays out
    assert theme["launch_buttons"].keys() == {"notebook_interface", "binderhub_url", "colab_url"}
    for url, kept in (("", False), ("https://github.com/somebody/metanb", True)):
        options = {"repository_url": url, "launch_buttons": dict(theme["launch_buttons"])}
        launch.remove_buttons_without_address(None, SimpleNamespace(html_theme_options=options))
        assert bool(options["launch_buttons"]) == kept
