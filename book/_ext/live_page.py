"""Sphinx extension: the notebook that `make book` executed becomes the page "On this machine".

It is a copy of another chapter with live outputs, so it gets a title and an introduction of its own
(what was run, when, for how long, with which versions), and its headings go one level down.
"""

import json
import platform
import re
from importlib.metadata import version
from typing import Any

import nbformat

PAGE = "book/on-this-machine"
PACKAGES = ("metanb", "torch", "torchvision", "higher", "numpy", "matplotlib")


def introduction(metadata: dict[str, Any]) -> str:
    """The page's opening, in Markdown, from what papermill recorded in the notebook."""
    run = metadata["papermill"]
    given = ", ".join(f"`{name}={value!r}`" for name, value in run["parameters"].items())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            "# On this machine",
            "",
            "This page was made when you typed `make book`: the notebook *Flatter, lower, further* was executed here, and "
            "its networks were trained live. The runs are tiny. They show that the road works from end to end, and are no "
            "evidence for or against any claim.",
            "",
            f"| Notebook | `{run['input_path']}` |",
            "|---|---|",
            f"| Parameters | {given} |",
            f"| Started | {run['start_time'][:16].replace('T', ' ')} UTC |",
            f"| Took | {run['duration']:.0f} seconds |",
            f"| Python | {metadata['language_info']['version']} on {platform.system()} {platform.machine()} |",
            f"| Packages | {versions} |",
        ]
    )


def source_read(_: Any, docname: str, source: list[str]) -> None:
    """Sphinx's event of that name: edit the source of that one page."""
    if docname != PAGE:
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^(#+ )", r"#\1", "".join(cell["source"]), flags=re.MULTILINE)
            # link targets stay the chapter's
            cell["source"] = re.sub(r"^\(\w+\)=\n", "", text, flags=re.MULTILINE)
    opening = nbformat.v4.new_markdown_cell(introduction(notebook["metadata"]))
    notebook["cells"].insert(0, opening)
    source[0] = json.dumps(notebook)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", source_read)
    return {"parallel_read_safe": True}
