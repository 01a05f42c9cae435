"""Sphinx extension: the notebook that `make book` executed becomes the page "On this machine".

It is a copy of another chapter with live outputs, so it gets a title and an introduction of its own
(notebook, parameters, start, duration, versions), and its headings go one level down.
"""

import json
import platform
import re
from importlib.metadata import version
from typing import Any

import nbformat

PAGE = "book/on-this-machine"
PACKAGES = ("metanb", "torch", "torchvision", "higher", "numpy", "matplotlib")


INTRODUCTION = (
    "This page was made when you typed `make book`: the notebook *Flatter, lower, further* was "
    "executed here, and its networks on Glyphs were trained live. These runs are tiny: they show "
    "that everything works from end to end, and are no evidence for or against any claim. What the "
    "page says of other settings rests on the book's recorded runs."
)


def introduction(metadata: dict[str, Any]) -> str:
    """The page's opening, in Markdown, from papermill's entries in the notebook's metadata."""
    run = metadata["papermill"]
    parameters = ", ".join(f"`{name}={value!r}`" for name, value in run["parameters"].items())
    python = metadata["language_info"]["version"]
    rows = [
        ("Notebook", f"`{run['input_path']}`"),
        ("Parameters", parameters),
        ("Started", f"{run['start_time'][:16].replace('T', ' ')} UTC"),
        ("Took", f"{run['duration']:.0f} seconds"),
        ("Python", f"{python} on {platform.system()} {platform.machine()}"),
        ("Packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES)),
    ]
    first, *rest = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["# On this machine", "", INTRODUCTION, "", first, "|---|---|", *rest])


def edit_source(_: Any, docname: str, source: list[str]) -> None:
    """Sphinx's event `source-read`: edit the source of that one page."""
    if docname != PAGE:
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^(#+ )", r"#\1", "".join(cell["source"]), flags=re.MULTILINE)
            # A link target may exist once: the chapter keeps its own.
            cell["source"] = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.MULTILINE)
    opening = nbformat.v4.new_markdown_cell(introduction(notebook["metadata"]))
    notebook["cells"].insert(0, opening)
    source[0] = json.dumps(notebook)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", edit_source)
    return {"parallel_read_safe": True}
