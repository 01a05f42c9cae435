"""Figures of portraits whose values are made by hand, read back from the SVG and from the data."""

import math
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from metanb.figures import portraits as views
from metanb.landscape.portrait import ALPHAS, BEYOND, COUNTED
from metanb.runs.portraits import Portrait
from metanb.settings import preset

MADE = {
    "drawn": "2026-01-02T03:04:05+00:00",
    "device": "a processor",
    "torch": "2.0",
    "code": "abc",
    "weights": {},
}


def portrait(values, algorithm="maml", seed=0):
    weights = {"code": f"w{seed}", "device": "another", "trained": "2026-01-01"}
    settings = preset("smoke", "glyphs", algorithm=algorithm, seed=seed)
    return Portrait(settings, values, MADE | {"weights": weights}, Path("nowhere"))


def parsed(figure):
    root = ElementTree.fromstring(figure.svg)
    words = [
        "".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert figure.alt and root.get("aria-label") == figure.alt
    return words


def bowl(scale):
    """A surface: scale times 0.01 plus the squared distance from (1, 0)."""
    at = np.linspace(*(edge * 2 for edge in BEYOND), 13)
    loss = scale * (0.01 + (at[None] - 1) ** 2 + at[:, None] ** 2)
    paths = [[[0, 0], [2, 0]], [[0, 0], [1, math.sqrt(3)]]]
    stages = [
        {"epoch": e, "support_loss": loss.tolist(), "query_loss": loss.tolist(), "paths": paths}
        for e in (0, 3)
    ]
    return {"at": at.tolist(), "stages": stages}


def test_angle_in_the_plane():
    assert views.angle_between_paths(bowl(1)["stages"][0]) == pytest.approx(60)


def test_surfaces_label_their_levels_and_carry_their_data():
    figure = views.draw_surfaces(
        [portrait(bowl(1)), portrait(bowl(3), "fomaml")], "support_loss", "plane", "Look."
    )
    words = parsed(figure)
    stages = ("untrained", "iteration 45")
    assert {f"{name}, {at}" for name in ("MAML", "first-order MAML") for at in stages} <= set(words)
    assert {"0.3", "1", "3", "10"} <= set(words)  # of the lines
    assert "60° apart" in figure.alt and figure.alt.count("2 and 2 long") == 4
    assert len(figure.data) == 2 * 2 * 13
    row = figure.data[(figure.data.algorithm == "fomaml") & (figure.data.epoch == 3)].iloc[4]
    a = np.array([float(name) for name in figure.data.columns[4:]]) * float(row.unit)
    true = 3 * (0.01 + (a - 1) ** 2 + (float(row.b) * float(row.unit)) ** 2)
    assert np.allclose(row.iloc[4:].astype(float), true, rtol=1e-2)


def test_a_stage_with_small_differences_has_contours_of_its_own():
    """The untrained network's losses span less than one level of the trained one's."""
    values = bowl(1)
    flat = values["stages"][0]
    flat["support_loss"] = (1.2 + np.array(flat["support_loss"]) / 20).tolist()
    words = parsed(views.draw_surfaces([portrait(values)], "support_loss", "plane", "Look."))
    in_flat = {float(word) for word in words if re.fullmatch(r"1\.\d", word)}
    assert len(in_flat) >= 3 and "0.3" in words


@pytest.mark.parametrize(
    "low, high, levels", [(0.02, 20, 6), (0.4, 9, 8), (1.4, 1.6, 5), (1e-4, 100, 7)]
)
def test_levels_are_round_inside_and_enough(low, high, levels):
    values = views._contour_levels(np.array([low, high]))
    assert (
        levels - 2 <= len(values) <= levels + 4
        and (np.diff(values) > 0).all()
        and (values > 0).all()
    )
    assert all(len(f"{level:g}".replace("0.", "").strip("0")) <= 5 for level in values)
    assert values[1] >= low and values[-2] <= high


def test_labels_of_contours_are_clear_of_markers_edges_and_each_other():
    turn = np.linspace(0, 2 * np.pi, 200)
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)
    small, wide, corner = ring * 0.3 + (2, 0), ring * 1.2 + (2, 0), ring * 0.4 + (3.9, 3.9)
    level = np.stack([np.linspace(-1, 4, 100), np.full(100, 2.0)], 1)
    above, paths = level + np.array([0, 0.05]), [[[0, 0], [2, 0]], [[0, 0], [0, 2]]]
    spots = views._place_labels(
        [[small], [wide, corner], [np.empty((0, 2))], [level], [above]], paths, -1, 4
    )
    assert len(spots) == 3  # none around a marker, none at the edge
    assert (wide == spots[0]).all(1).any() and spots[1][1] == 2 and spots[2][1] == 2.05
    for x, y in spots:
        assert -0.6 <= min(x, y) and max(x, y) <= 3.6
        assert all(
            math.hypot(x - a, y - b) >= 0.4 for a, b in ((0, 0), (2, 0), (0, 2), (1, 0), (0, 1))
        )
    assert all(math.dist(a, b) >= 0.8 for a, b in combinations(spots, 2))


def test_lines_average_runs_and_show_each():
    def values(shift):
        mean = np.exp(-ALPHAS) + shift
        loss = {"mean": mean.tolist(), "low": (mean / 2).tolist(), "high": (mean * 2).tolist()}
        return {
            "alpha": ALPHAS.tolist(),
            "n": 7,
            "stages": [{"epoch": 0, "support_loss": loss, "query_loss": loss}],
        }

    figure = views.draw_interpolations(
        [portrait(values(0.1)), portrait(values(0.3), seed=1)], "lines", "Look."
    )
    words = parsed(figure)
    assert {"support loss, MAML", "query loss, MAML", "loss (nats)"} <= set(words)
    assert words.count("untrained") == 1  # one legend for all panels
    query = figure.data[figure.data.measure == "query_loss"]
    assert np.allclose(query["mean"], np.exp(-ALPHAS) + 0.2) and np.allclose(
        query["high"], 2 * query["mean"]
    )
    assert f"{math.exp(-1) + 0.2:.2g}" in figure.alt


def test_spectra():
    def values(scale):
        at = np.linspace(-1, 3, 50) * scale
        density = 1e4 * np.exp(-np.abs(at) / scale)
        stage = {
            "epoch": 4,
            "density_at": at.tolist(),
            "density": density.tolist(),
            "smallest": [-scale],
            "largest": [scale],
        }
        # a task of two images in two classes has no more of the Gauss-Newton part
        stage |= {"top": [scale / (i + 1) for i in range(20)], "gauss_newton_top": [0.0] * 2}
        stage |= {
            "above": (100 * scale / COUNTED).tolist(),
            "below": (10 * scale / COUNTED).tolist(),
        }
        return {"size": 10_000, "n": 16, "counted": COUNTED.tolist(), "stages": [stage]}

    figure = views.draw_densities(
        [portrait(values(1)), portrait(values(2), "fomaml")], "densities", "Look."
    )
    assert "the 10,000 eigenvalues, mean over 16 tasks" in figure.caption
    assert {"largest eigenvalues", "largest of the Gauss-Newton part", "MAML, iteration 60"} <= set(
        parsed(figure)
    )
    assert "first-order MAML, iteration 60: from -2 to 2" in figure.alt and len(figure.data) == 100
    figure = views.draw_eigenvalue_counts(
        [portrait(values(1)), portrait(values(3), seed=1)], "counts", "Look."
    )
    parsed(figure)
    above = figure.data[figure.data.side == "above"]
    assert np.allclose(above.number * above.x, 200)  # the mean of 100 and 300
    (x,) = {float(x) for x in re.findall(r"At x = ([\d.]+)", figure.alt)}
    assert f"{20 / x:.0f} below" in figure.alt or f"{20 / x - 1:.0f} below" in figure.alt


def test_a_table_by_stage_has_a_row_a_run_and_stage():
    runs = [
        portrait({"unit": 2, "stages": [{"epoch": 0, "x": 1.0}, {"epoch": 4, "x": 3.0}]}, *options)
        for options in (("maml", 0), ("fomaml", 4))
    ]
    table = views.table_by_stage(runs, lambda run, stage: {"x": stage["x"] * run.values["unit"]})
    assert table.index.names == ["algorithm", "seed", "epoch"]
    assert table.x.to_dict() == {
        ("MAML", 0, 0): 2,
        ("MAML", 0, 4): 6,
        ("first-order MAML", 4, 0): 2,
        ("first-order MAML", 4, 4): 6,
    }


def test_means_are_over_runs_and_changes_have_a_verb():
    runs = [
        portrait({"stages": [{"epoch": 0, "x": x}, {"epoch": 4, "x": y}]}, algorithm, seed)
        for algorithm, seed, x, y in (
            ("maml", 0, 4.0, 1.0),
            ("maml", 1, 2.0, 2.0),
            ("fomaml", 0, 2.0, 1.0),
            ("finetune", 0, 2.0, 2.04),
        )
    ]
    means = views.means_by_stage(runs, lambda run, stage: {"x": stage["x"]})
    assert means.x.tolist() == [3, 1.5, 2, 1, 2, 2.04]
    assert views.describe_change(means, "x", ".1f") == (
        "falls from 3.0 to 1.5 under MAML and from 2.0 to 1.0 under first-order MAML "
        "and stays at 2.0 under finetuning"
    )
    assert views.describe_change(-means, "x", ".0f").startswith("rises from -3 to -2 under MAML")


def test_numbers_of_a_line():
    loss = {"mean": [5.0, 3.0, 4.0]}
    support = {"mean": [2.0, 1.0, 7.0]}
    stage = {"epoch": 4, "query_loss": loss, "support_loss": support, "distance": 1.5}
    run = portrait({"alpha": [0.5, 1.0, 2.0], "stages": [stage]})
    assert views.summarise_line(run, stage) == {
        "best alpha": 1,
        "lowest query loss": 3,
        "query at 1": 3,
        "query at 2": 4,
        "support at 1": 1,
        "support at 2": 7,
        "distance": 1.5,
    }


def test_numbers_of_a_spectrum():
    """By hand, of two tasks whose Hessians have the eigenvalues 4, -1, 0 and 2, 1, -1."""
    stage = {"largest": [4.0, 2.0], "smallest": [-1.0, -1.0], "trace": [3.0, 2.0]}
    stage |= {"outliers": [1, 1], "gauss_newton": [3.0, 1.5], "squares": [17.0, 6.0]}
    assert views.summarise_spectrum(portrait({}), stage) == pytest.approx(
        {
            "largest": 3,
            "most negative": -1,
            "trace": 2.5,
            "outliers": 1,
            "negative / largest": 1 / 3,
            "Gauss-Newton / largest": 0.75,
            "share": (16 / 17 + 4 / 6) / 2,
        }
    )


def test_origin_names_each_machine_and_code_once():
    origin = views.describe_portraits([portrait({}), portrait({}, seed=1)])
    assert origin == (
        "Drawn 2026-01-02 on a processor, torch 2.0, code abc; "
        "weights trained by code w0, w1 on another."
    )
