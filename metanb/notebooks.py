"""Run a notebook with parameters of one's own, through papermill.

What was asked for is checked before the kernel starts: the file, the kernel, the parameters' names
and types.
"""

import ast
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from papermill.execute import ERROR_MARKER_TAG

from metanb.files import parse_json

# What a type is called, alone and in a list.
_NOUNS: dict[type, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a word", "words"),
    dict: ("a mapping", "mappings"),
    list: ("a list", "lists"),
}


class NotebookError(ValueError):
    """A notebook cannot be run as asked; the message names the thing, the value and the remedy."""


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are decimal, as papermill reads them: 010 is 10, and 1e-3 is a number.

    "yes", "on" and dates are words.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for tag, pattern, starts in (
    ("null", r"~|null|Null|None|", ["~", "n", "N", ""]),
    ("bool", r"true|True|false|False", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.inf|\.nan", list("-+.")),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), starts
    )
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, in nbformat's version 4.

    Raises:
        NotebookError: the file is no notebook.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8, too
        raise NotebookError(f"{path} is no notebook: it is no JSON ({error})") from None
    if not isinstance(content, dict) or "nbformat" not in content:
        raise NotebookError(f"{path} is no notebook: it is JSON without nbformat and cells")
    try:
        notebook = nbformat.reads(json.dumps(content), as_version=4)
        _require_types(notebook)
        return notebook
    except (
        nbformat.ValidationError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = str(error).partition("\n")[0] or "nbformat cannot read it"
        raise NotebookError(f"{path} is no notebook: {reason}") from None


def _require_types(notebook: nbformat.NotebookNode) -> None:
    """Raise TypeError for a part that is read here and is of another type than the format's."""
    if not isinstance(notebook.metadata.get("kernelspec", {}), dict):
        raise TypeError("its kernelspec is no mapping")
    for number, cell in enumerate(notebook.cells):
        if not isinstance(cell.get("source"), str):
            raise TypeError(f"the source of cell {number} is no text")
        if not isinstance(cell.metadata.get("tags", []), list):
            raise TypeError(f"the tags of cell {number} are no list")


def choose_kernel(notebook: nbformat.NotebookNode, name: str, kernel: str | None) -> str:
    """The kernel to run a notebook with: the one that is given, or else the notebook's own.

    Args:
        notebook: as `read_notebook` gives it.
        name: of the notebook, for messages.
        kernel: the kernel's name; None: the notebook's own.

    Raises:
        NotebookError: that kernel is not installed; the message names those that are.
    """
    own = notebook.metadata.get("kernelspec", {}).get("name")
    wanted = kernel or own
    installed = sorted(KernelSpecManager().find_kernel_specs())
    if wanted in installed:
        return str(wanted)
    if kernel:
        problem = f"no kernel {kernel!r} is installed"
    elif own:
        problem = f"{name} asks for kernel {own!r}, which is not installed"
    else:
        problem = f"{name} names no kernel"
    remedy = "choose one with -k" if installed else "install one, such as ipykernel"
    raise NotebookError(f"{problem}: {remedy}{': ' * bool(installed)}{', '.join(installed)}")


def read_defaults(notebook: nbformat.NotebookNode, name: str) -> dict[str, Any]:
    """The parameters of a Python notebook: names and values in its cell tagged "parameters".

    The value is None where the notebook computes it.

    Raises:
        NotebookError: the cell cannot be read.
    """
    sources = [
        cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    try:
        statements = ast.parse(sources[0] if sources else "").body
    except SyntaxError as error:
        raise NotebookError(f"{name}: its cell of parameters is no Python: {error}") from None
    defaults = {}
    for statement in statements:
        targets: list[ast.expr] = []
        match statement:
            case ast.Assign():
                targets = statement.targets
            case ast.AnnAssign():
                targets = [statement.target]
            case _:
                continue
        for target in targets:
            if isinstance(target, ast.Name):
                defaults[target.id] = _evaluate(statement.value)
    return defaults


def _evaluate(expression: ast.expr | None) -> Any:
    """The value of a literal; None for what has to be computed."""
    try:
        return ast.literal_eval(expression) if expression else None
    except ValueError:
        return None


def read_values(
    notebook: nbformat.NotebookNode, name: str, file: Path | None, given: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The parameters' values, of the types that the notebook's own have.

    A single value is made a list where the notebook has one.

    Args:
        notebook: as `read_notebook` gives it.
        name: of the notebook, for messages.
        file: a YAML mapping of values by name; None: no file.
        given: names and values as typed, which win over those of the file.

    Raises:
        NotebookError: the notebook has no such parameter, a value cannot be read, or it is of
            another type.
    """
    values = _read_file(file) if file else {}
    if not values and not given:
        return {}
    defaults = read_defaults(notebook, name)
    for parameter in (*values, *(parameter for parameter, _ in given)):
        if parameter not in defaults:
            raise NotebookError(
                f"{name} has no parameter {parameter!r}: choose from {', '.join(defaults)}"
                if defaults
                else f"{name} has no parameter {parameter!r}: it has no cell tagged 'parameters'"
            )
    values |= {
        parameter: _read_text(parameter, text, defaults[parameter]) for parameter, text in given
    }
    fitted = {}
    for parameter, value in values.items():
        try:
            fitted[parameter] = _fit(value, defaults[parameter])
        except TypeError:
            own = defaults[parameter]
            raise NotebookError(
                f"{parameter}={value!r} is not {_describe_type(own)}, as {name} has it: "
                f"{parameter} = {own!r}"
            ) from None
    return fitted


def _load_yaml(text: str) -> Any:
    """The value that a text in YAML stands for.

    Raises:
        ValueError: it cannot be read, or is tagged as something that it is not.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    # A value with a wrong tag of its own, such as !!bool x, fails inside of the loader.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _read_file(path: Path) -> dict[str, Any]:
    """The values in a YAML file, by name."""
    try:
        values = _load_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad UTF-8, too
        raise NotebookError(f"-f {path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise NotebookError(f"-f {path} is no mapping: write a line NAME: VALUE per parameter")
    return values


def _read_text(name: str, text: str, default: Any) -> Any:
    """A value as typed, read as YAML; where the notebook has a word, anything is a word."""
    try:
        value = _load_yaml(text)
    except ValueError:
        if isinstance(default, str):
            return text
        raise NotebookError(
            f"{name}={text!r} cannot be read: write a word, a number or a [list]"
        ) from None
    if isinstance(default, str):
        return value if isinstance(value, str) else text
    if _element_type(default) is str and not isinstance(value, list):
        return value if isinstance(value, str) else text
    return value


def _element_type(default: Any) -> type | None:
    """The type of a list's elements, if they have one in common."""
    kinds = {type(element) for element in default} if isinstance(default, list) else set()
    return kinds.pop() if len(kinds) == 1 else None


def _fit(value: Any, default: Any) -> Any:
    """The value, in a list where the default is a list.

    Raises:
        TypeError: it is of another type than the default.
    """
    if default is None:
        return value
    if isinstance(default, list):
        values = value if isinstance(value, list) else [value]
        if kind := _element_type(default):
            for element in values:
                _check_type(element, kind)
        return values
    _check_type(value, type(default))
    return value


def _check_type(value: Any, kind: type) -> None:
    """Raise TypeError unless the value is of that type; a whole number is a number, too."""
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise TypeError


def _describe_type(default: Any) -> str:
    """The type of a default, in words."""
    if kind := _element_type(default):
        return f"a list of {_NOUNS.get(kind, ('', 'such values'))[1]}"
    return _NOUNS.get(type(default), (type(default).__name__, ""))[0]


def execute(path: Path, output: Path, values: Mapping[str, Any], kernel: str) -> None:
    """Execute a notebook in its own folder, and write it cell by cell as it goes.

    If it is interrupted, or its kernel dies, the output says so in its first cell.

    Args:
        path: of the notebook, which stays as it is.
        output: the file to write; its folder must exist.
        values: the parameters' values.
        kernel: the kernel's name.

    Raises:
        papermill.PapermillExecutionError: a cell raised an error.
        KeyboardInterrupt: as it came.
        nbclient.exceptions.DeadKernelError: the kernel died.
    """
    # Nobody watches the bars that the notebook itself would draw.
    os.environ.pop("JPY_SESSION_NAME", None)
    started = time.time()
    try:
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters=dict(values),
            kernel_name=kernel,
            language=KernelSpecManager().get_kernel_spec(kernel).language,
            cwd=str(path.parent),
            progress_bar=sys.stderr.isatty(),
        )
    except (KeyboardInterrupt, DeadKernelError):
        # An output of an earlier time is none of this run.
        if output.exists() and output.stat().st_mtime >= started:
            _mark_interrupted(output)
            print(f"interrupted: {output} has the cells that were executed", file=sys.stderr)
        raise


def _mark_interrupted(output: Path) -> None:
    """Say in the first cell that the notebook was interrupted, and which cells were not reached."""
    notebook = nbformat.read(output, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pending = [cell for cell in cells if cell.execution_count is None]
    for cell in pending:  # papermill calls them completed
        cell.metadata.papermill["status"] = "pending"
    note = nbformat.v4.new_markdown_cell(
        f"**Interrupted.** The run of this notebook was stopped before its end: {len(pending)} of "
        f"{len(cells)} code cells were not reached, and the one before them may be incomplete.",
        # papermill leaves this cell out when the output is executed in its turn
        metadata={"tags": [ERROR_MARKER_TAG]},
    )
    notebook.cells.insert(0, note)
    nbformat.write(notebook, output)
