"""Tables that explore the records: made-up runs whose answers are known by hand."""

import numpy as np
import pytest

from metanb.claims.companions import (
    STOPPED_BY,
    between_cells,
    points_lost,
    rank_correlations,
    stopping_table,
)
from metanb.labels import MEASURES
from tests.support.records import EPOCHS, cell, record

ACCURACY = np.r_[0.3, 0.4, 0.8, np.full(EPOCHS - 3, 0.7)]


def peak_at(epoch, height=2.0):
    curve = np.ones(EPOCHS)
    curve[epoch] = height
    return curve


@pytest.mark.parametrize(
    ("by", "curve", "lost"),
    [
        ("valid_accuracy", peak_at(2), 0),
        ("trajectory_coherence", peak_at(0), 50),
        ("gradient_coherence", peak_at(5), 10),
        ("hessian_norm", peak_at(1, 0.5), 40),
        ("support_loss", peak_at(2, 0.5), 0),
        (None, None, 10),
    ],
)
def test_points_lost_by_stopping_where_a_measure_is_best(by, curve, lost):
    run = record(0, {"query_accuracy": ACCURACY, by: curve}, wobble=0)
    assert points_lost(run, by) == pytest.approx(lost)


def test_the_table_has_means_over_runs_and_all_ways():
    runs = [
        record(seed, {"query_accuracy": ACCURACY, "hessian_norm": peak_at(seed, 0.5)}, wobble=0)
        for seed in (0, 2)
    ]
    table = stopping_table([runs])
    assert table["Hessian norm at adapted solutions"].tolist() == pytest.approx([25])
    assert set(table) == {*(MEASURES[name].label for name in STOPPED_BY), "the last epoch"}


def test_ranks_between_networks_of_a_setting():
    """Six cells: the flatter, the more accurate; a seventh of another setting is alone."""
    records = []
    for i in range(6):
        curves = {"query_accuracy": np.full(EPOCHS, 0.5 + 0.05 * i)}
        curves["hessian_norm"] = np.full(EPOCHS, np.exp(-i))
        curves["distance"] = np.full(EPOCHS, [1, 2, 3, 3, 2, 1][i])
        records += cell(curves, inner_lr=0.1 * (i + 1))
    table = between_cells(records + cell({}, ways=3), ["hessian_norm", "distance"])
    assert len(table) == 7 and set(table.runs) == {3}
    correlations = rank_correlations(table, ["hessian_norm", "distance"])
    (setting,) = correlations.index
    assert setting == "omniglot, 5-way 1-shot, quick"
    assert correlations.loc[setting, "cells"] == 6
    assert correlations.loc[setting, "hessian_norm"] == pytest.approx(-1)
    assert abs(correlations.loc[setting, "distance"]) < 0.5
