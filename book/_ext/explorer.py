"""Sphinx extension: the page "Explore the runs" gets the recorded curves, and scripts to draw them.

A page that is opened from a file may not fetch another file, but it may load a script: so the data
are a script. A curve is a string of numbers, which is shorter than a list. Only that page loads
them.
"""

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from committed import committed_runs
from formats import format_value

from metanb.claims.cells import group_into_cells
from metanb.labels import MEASURES, name_of
from metanb.runs.records import Record
from metanb.settings import differences_from_scale, scale_of

PAGE = "book/explore"
DATA = "explorer-data.js"  # written at build time
SCRIPTS = ("uplot/uPlot.iife.min.js", DATA, "explorer-panel.js", "explorer.js")
STYLES = ("uplot/uPlot.min.css", "explorer.css")
DIGITS = 4  # significant digits of means, at most
ERROR_DIGITS = 2  # significant digits of standard errors
EXACT_WHOLE = 2**52  # up to here a float holds every whole number, and twice as much
EXACT_POWER = 22  # up to here a float holds every power of ten
PALE = ("#fbafe4", "#ece133")  # colours of the palette that fade on white

Curve = tuple[list[float], list[float]]  # means over tasks, and their standard errors


def curves_of_cells(records: Iterable[Record]) -> dict[str, Any]:
    """The data that the page draws.

    Returns:
        measures: for each of MEASURES its name, its label, and whether its axis starts
            logarithmic.
        colours: of lines; colour-blind readers can tell them apart, too.
        cells: in the order of `metanb.claims.cells.group_into_cells`. In words: dataset, setting,
            scale, algorithm and variant (the settings that differ from the scale's). Then
            iterations, those of the epochs 0, 1, ...; and runs, each with its id and its seed.
        means, errors: means over tasks, and their standard errors; a mean is rounded by less than
            a twentieth of its error, or to four digits. For each of `measures` a list of all runs'
            curves, in the order of `cells` and their runs. A curve is one string with one number
            per epoch; of an unrecorded measure it is empty. Curves of one measure begin alike, so
            the data pack better than by run. Means are written as steps, see `_write_as_steps`.
    """
    measures = []
    for name, measure in MEASURES.items():
        label = measure.alone or measure.label
        capitalised = label[0].upper() + label[1:]
        measures.append({"name": name, "label": capitalised, "log": measure.log})
    palette = sns.color_palette("colorblind").as_hex()
    cells = group_into_cells(records)
    curves = [
        [
            (_column(run, name, "mean"), _column(run, name, "sem")) if run.has(name) else ([], [])
            for cell in cells
            for run in cell
        ]
        for name in MEASURES
    ]
    return {
        "measures": measures,
        "colours": [colour for colour in palette if colour not in PALE],
        "cells": [_describe_cell(cell) for cell in cells],
        "means": [
            [_write_as_steps(curve) for curve in of_measure]
            for of_measure in _join_curves(curves, _format_mean)
        ],
        "errors": _join_curves(curves, lambda _, error: f"{error:.{ERROR_DIGITS}g}"),
    }


def _describe_cell(cell: list[Record]) -> dict[str, Any]:
    """One entry of `cells`."""
    settings = cell[0].settings
    changes = differences_from_scale(settings)
    epochs = range(max(run.epochs for run in cell) + 1)
    return {
        "dataset": name_of(settings.dataset),
        "setting": settings.setting,
        "scale": scale_of(settings),
        "algorithm": name_of(settings.algorithm),
        "variant": ", ".join(f"{name}={format_value(value)}" for name, value in changes.items()),
        "iterations": [epoch * settings.epoch_iterations for epoch in epochs],
        "runs": [{"id": run.settings.id, "seed": run.settings.seed} for run in cell],
    }


def _join_curves(
    curves: list[list[Curve]], write: Callable[[float, float], str]
) -> list[list[str]]:
    """`means` or `errors` of runs.

    Args:
        curves: of each measure and run; empty if the measure is not recorded.
        write: a number from a mean and its standard error.
    """
    return [[_join_numbers(map(write, *curve)) for curve in of_measure] for of_measure in curves]


def _column(run: Record, measure: str, column: str) -> list[float]:
    """The values after the epochs 0, 1, 2 and so on; NaN after one that lacks the measure."""
    epochs, recorded = run.values(measure, column)
    values = np.full(run.epochs + 1, np.nan)
    values[epochs] = recorded
    return values.tolist()


def _join_numbers(texts: Iterable[str]) -> str:
    """Numbers in as few characters as possible, separated by spaces; a missing one is NaN."""
    finite = ("NaN" if text in ("nan", "inf", "-inf") else text for text in texts)
    short = (text.replace("e-0", "e-") for text in finite)  # 1e-05 as 1e-5
    return " ".join(
        text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text for text in short
    )


def _write_as_steps(curve: str) -> str:
    """A curve as "DECIMALS:FIRST STEP STEP ...", whole numbers in units of the last decimal.

    So ".25 .3 .28" becomes "2:25 5 -2": steps are shorter than the numbers that they lead to. A
    curve with a NaN stays as it is, and so does one whose whole numbers a script could not add, or
    not divide again, without error.
    """
    if not curve or "NaN" in curve:
        return curve
    numbers = [Decimal(number) for number in curve.split()]
    decimals = max(0, *(-int(number.as_tuple().exponent) for number in numbers))
    counts = [int(number.scaleb(decimals)) for number in numbers]
    if decimals > EXACT_POWER or max(map(abs, counts)) > EXACT_WHOLE:
        return curve
    steps = (after - before for before, after in pairwise(counts))
    return f"{decimals}:{' '.join(map(str, [counts[0], *steps]))}"


def _format_mean(mean: float, error: float) -> str:
    """A mean to a tenth of its error's first digit, and to DIGITS digits at most."""
    digits = DIGITS
    if mean and math.isfinite(mean) and error > 0:
        first, last = (math.floor(math.log10(abs(value))) for value in (mean, error))
        digits = min(DIGITS, max(1, first - last + 2))
    return f"{mean:.{digits}g}"


def write_data(app: Any) -> None:
    """Sphinx's event `builder-inited`: write the data into the built book, and nowhere else.

    It is packed, gzip in base 85, whose letters a script holds as they are: a page that is read
    from a folder may load a script and no file.
    """
    if app.builder.format == "html":
        curves = curves_of_cells(committed_runs())
        text = json.dumps(curves, separators=(",", ":"), ensure_ascii=False)
        packed = base64.b85encode(gzip.compress(text.encode(), mtime=0)).decode()
        target = Path(app.outdir) / "_static" / DATA
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f'window.METANB_RUNS="{packed}";\n', encoding="utf-8")


def add_assets(app: Any, pagename: str, *_: Any) -> None:
    """Sphinx's event `html-page-context`: add scripts and styles to that one page."""
    if pagename == PAGE:
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")
        for name in STYLES:
            app.add_css_file(name)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_data)
    app.connect("html-page-context", add_assets)
    return {"parallel_read_safe": True}
