"""Python files of one's own that register measures, networks or algorithms; records name them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metanb.labels import ALGORITHMS, MEASURES, NETWORKS

_PREFIX = "metanb_plugin_"  # of the names of their modules
# By a file's resolved path, the first 16 hex digits of its SHA-256.
LOADED: dict[Path, str] = {}


class PluginError(RuntimeError):
    """A file of one's own that cannot be loaded; the message names it and the error."""


def load_plugin(path: Path) -> None:
    """Run a Python file, which registers measures, networks or algorithms; again, nothing happens.

    Of a file that fails nothing is registered. If it was loaded before, and edited since then, what
    it had registered stays.

    See `metanb.landscape.measures.per_task` and `metanb.maml.algorithms.algorithm`.

    Raises:
        PluginError: the file is not there, or fails; or another file of its name is loaded: records
            name plugins without their folders.
    """
    place = path.resolve()
    name = f"{_PREFIX}{place.stem}"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if LOADED.get(place) == digest:
            return
        for loaded in LOADED:
            if loaded.stem == place.stem and loaded != place:
                raise PluginError(
                    f"plugin {path} has the name of {loaded}, which is loaded: rename one of them"
                )
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise PluginError(f"plugin {path} is no Python file: give one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        with _undone_on_failure(name):
            sys.modules[name] = module
            spec.loader.exec_module(module)
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # whatever the file does
        raise PluginError(f"plugin {path}: {type(error).__name__}: {error}") from error
    LOADED[place] = digest


@contextmanager
def _undone_on_failure(module_name: str) -> Iterator[None]:
    """Take back what the block registers, and its module, if the block fails."""
    # These load torch, which takes seconds: commands without plugins go without.
    from metanb.landscape.measures import OVER_TASKS, PER_TASK
    from metanb.maml.algorithms import GRADIENTS
    from metanb.maml.network import BUILDERS

    tables: list[dict[Any, Any]] = [ALGORITHMS, NETWORKS, MEASURES, GRADIENTS, BUILDERS]
    tables += [PER_TASK, OVER_TASKS, LOADED]
    before = [dict(table) for table in tables]
    module = sys.modules.get(module_name)
    try:
        yield
    except BaseException:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        sys.modules.pop(module_name, None)
        if module is not None:
            sys.modules[module_name] = module
        raise


def find_line(error: BaseException) -> str:
    """Return the line of a loaded file in which an error arose, or "" if it passed through none.

    Args:
        error: caught, with its traceback.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith(_PREFIX)]
    files = {module.__file__ for module in modules}
    lines = [
        f"{frame.filename}, line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files
    ]
    return lines[-1] if lines else ""


def describe() -> dict[str, str]:
    """What a record says of the files that were loaded; nothing where there is none."""
    files = "; ".join(f"{path.name} {digest}" for path, digest in LOADED.items())
    return {"plugins": files} if files else {}


def report_edited(made: str, provenance: Mapping[str, Any], anew: str) -> None:
    """Report on standard error if a record or a checkpoint is from other content of a loaded file.

    Args:
        made: the record or the checkpoint, as a message names it.
        provenance: of it.
        anew: how to have the run trained anew.
    """
    # Between two files is a semicolon, and a comma where a resumed run had others.
    entry = r"(?:^|[;,] )(.+?) ([0-9a-f]{16})(?=[;,] |$)"
    listed = re.findall(entry, provenance.get("plugins", ""))
    loaded = {path.name: digest for path, digest in LOADED.items()}
    edited = {name for name, digest in listed if loaded.get(name, digest) != digest}
    if edited:
        print(
            f"{made} was made before {', '.join(sorted(edited))} was edited: {anew}, or choose "
            "another name for the network or the algorithm",
            file=sys.stderr,
        )
