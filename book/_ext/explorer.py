"""Sphinx extension: the page "Explore the runs" gets the recorded curves, as a script, and what draws them.

A page that is opened from a file may not fetch another file, but it may name one as a script: so
the data are one. A curve is a string of numbers, shorter than a list of them. All of it is loaded
on that page alone.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from book_numbers import all_recorded, number

from metanb.claims.cells import group_into_cells
from metanb.labels import MEASURES, NAMES
from metanb.runs.records import Record
from metanb.settings import differences_from_scale, scale_of

PAGE = "book/explore"
DATA = "explorer-data.js"  # made at build time
SCRIPTS = ("uplot/uPlot.iife.min.js", DATA, "explorer-panel.js", "explorer.js")
STYLES = ("uplot/uPlot.min.css", "explorer.css")
DIGITS, ERROR_DIGITS = 4, 2  # significant ones, of means and of their standard errors
PALE = ("#fbafe4", "#ece133")  # colours of the palette that fade on white


def explored(records: Iterable[Record]) -> dict[str, Any]:
    """What the page draws.

    Returns:
        measures: name, label, whether its axis starts logarithmic, for all of MEASURES.
        colours: of lines, apart for the colour-blind, too.
        cells: in the order of `metanb.claims.cells.group_into_cells`: dataset, setting, scale, algorithm and
            variant (what else sets the cell apart, or nothing) in words; iterations, those behind
            the epochs 0, 1, ...; runs. A run: id, seed, means and errors (standard errors of the
            means over tasks), each a string of a number an epoch for each of `measures`, in that
            order; an empty string where the measure was not recorded.
    """
    return {
        "measures": [
            {"name": name, "label": label[0].upper() + label[1:], "log": measure.log}
            for name, measure in MEASURES.items()
            for label in [measure.alone or measure.label]
        ],
        "colours": [
            colour for colour in sns.color_palette("colorblind").as_hex() if colour not in PALE
        ],
        "cells": [_cell(cell) for cell in group_into_cells(records)],
    }


def _cell(cell: list[Record]) -> dict[str, Any]:
    settings = cell[0].settings
    return {
        "dataset": NAMES[settings.dataset],
        "setting": settings.setting,
        "scale": scale_of(settings),
        "algorithm": NAMES[settings.algorithm],
        "variant": ", ".join(
            f"{name}={number(value)}" for name, value in differences_from_scale(settings).items()
        ),
        "iterations": [
            epoch * settings.epoch_iterations
            for epoch in range(max(run.epochs for run in cell) + 1)
        ],
        "runs": [_run(run) for run in cell],
    }


def _run(run: Record) -> dict[str, Any]:
    curves = {name: rows.set_index("epoch") for name, rows in run.measures.groupby("measure")}
    every = range(run.epochs + 1)
    means = [
        _numbers(curves[name]["mean"].reindex(every), DIGITS) if name in curves else ""
        for name in MEASURES
    ]
    errors = [
        _numbers(curves[name]["sem"].reindex(every), ERROR_DIGITS) if name in curves else ""
        for name in MEASURES
    ]
    return {"id": run.settings.id, "seed": run.settings.seed, "means": means, "errors": errors}


def _numbers(values: pd.Series, digits: int) -> str:
    """Numbers with a space between, as short as they get; NaN where there is none."""
    short = (f"{value:.{digits}g}" if math.isfinite(value) else "NaN" for value in values)
    return " ".join(
        text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text for text in short
    )


def write_data(app: Any) -> None:
    """Sphinx's event builder-inited: the data stand in the built book, and nowhere else."""
    if app.builder.format == "html":
        data = json.dumps(explored(all_recorded()), separators=(",", ":"), ensure_ascii=False)
        target = Path(app.outdir) / "_static" / DATA
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"window.METANB_RUNS={data};\n", encoding="utf-8")


def add_assets(app: Any, pagename: str, *_: Any) -> None:
    """Sphinx's event html-page-context: scripts and styles of that one page."""
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
