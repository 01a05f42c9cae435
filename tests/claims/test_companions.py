"""Tables that explore the records: made-up runs whose answers are known by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from metanb.claims.companions import (
    STOPPED_BY,
    Role,
    between_cells,
    find_roles,
    points_lost,
    rank_correlations,
    role_sentences,
    role_table,
    stopping_table,
)
from metanb.claims.predictions import judge_predictions
from metanb.grids.interventions import BY_NAME
from metanb.labels import MEASURES
from tests.support.interventions import made_up
from tests.support.records import EPOCHS, TIME, cell, record

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
    assert setting == "Omniglot 5-way 1-shot, quick"
    assert correlations.loc[setting, "cells"] == 6
    assert correlations.loc[setting, "hessian_norm"] == pytest.approx(-1)
    assert abs(correlations.loc[setting, "distance"]) < 0.5


def test_rank_correlations_are_scipys():
    """With ties."""
    accuracy, distance = np.random.default_rng(0).integers(5, size=(2, 20))
    table = pd.DataFrame({"setting": "a", "query_accuracy": accuracy, "distance": distance})
    expected = stats.spearmanr(accuracy, distance).statistic
    assert rank_correlations(table, ["distance"]).loc["a", "distance"] == pytest.approx(expected)


FALLING = {"hessian_norm": 2 - TIME, "query_accuracy": TIME}
WOBBLE = np.array([0.98, 1.0, 1.01, 0.99, 1.02])


def role(curves=FALLING, **ends):
    """The Hessian norm's role: by intervention, its norm and accuracy; the base has 2 and 0.8."""
    plain = cell(curves, algorithm="fomaml", seeds=range(5))
    runs = made_up("base", final_accuracy=0.8, hessian_norm=2.0)
    for name, (norm, accuracy) in ends.items():
        values = {"final_accuracy": accuracy, "hessian_norm": norm * WOBBLE}
        runs += made_up(name.replace("_", " "), **values)
    (role_of_norm,) = find_roles(runs, plain, ["hessian_norm"])
    return role_of_norm


def test_a_companion_moves_while_accuracy_stays():
    flat = role(zero_head=(1.5, 0.81), shared_head=(8.0, 0.79), body_alone_adapts=(100.0, 0.6))
    assert flat.role == Role.COMPANION and flat.along.mean < -0.9
    assert (flat.least.intervention, flat.greatest.intervention) == ("zero head", "shared head")
    assert flat.base == 2.0 and flat.better_but_worse == ()
    # from the base, a change less than twofold or one with which accuracy falls does not count
    assert flat.shown_range == "2 to 8" and "*shared head* moves it from 2 to 8" in flat.evidence


def test_two_interventions_that_differ_move_a_measure_too():
    """Neither is twofold from the base, which is 2."""
    apart = role(zero_head=(1.1, 0.81), shared_head=(3.3, 0.79))
    assert apart.role == Role.COMPANION and apart.shown_range == "1.1 to 3.3"
    assert apart.evidence == (
        "it goes from 1.1 (*zero head*) to 3.3 (*shared head*) while accuracy stays"
    )


def test_what_does_not_go_with_accuracy_is_neither():
    level = {"query_accuracy": TIME}  # in each run the norm is 1 and noise of its own
    assert role(level, shared_head=(8.0, 0.79)).role == Role.NEITHER


def test_what_moves_with_accuracy_alone_is_not_ruled_out():
    steep = role(shared_head=(8.0, 0.6), zero_head=(2.4, 0.8))
    assert steep.role == Role.OPEN and steep.shown_range == "–"
    assert "*shared head* moves it from 2 to 8 and accuracy by -20.0 points" in steep.evidence
    assert role(zero_head=(2.4, 0.8)).role == Role.UNTESTED


def test_accuracy_stays_at_a_level_for_all_interventions():
    """Within +-2 points by an interval of 95 %; within +-4 at the level for ten of them."""
    accuracy = 0.8 + np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
    others = [name for name in BY_NAME if name not in ("base", "shared head", "zero head")][:9]
    assert role(**{"shared head": (8.0, accuracy)}).role == Role.COMPANION
    among_ten = role(**{"shared head": (8.0, accuracy)} | dict.fromkeys(others, (2.0, 0.5)))
    assert len(among_ten.changes) == 11 and among_ten.role == Role.OPEN


def test_a_move_by_chance_is_no_move():
    """Fourfold, at the same accuracy, but the norm's error over tasks is as large as the norm."""
    plain = cell(FALLING, algorithm="fomaml", seeds=range(5))
    runs = made_up("base", final_accuracy=0.8, hessian_norm=2.0)
    runs += made_up("shared head", final_accuracy=0.8, hessian_norm=8.0 * WOBBLE)
    for error, expected in ((0.1, Role.COMPANION), (8.0, Role.UNTESTED)):
        with_error = []
        for run in runs:
            is_norm = run.measures.measure == "hessian_norm"
            measures = run.measures.assign(sem=run.measures["sem"].mask(is_norm, error))
            with_error.append(replace(run, measures=measures))
        (role_of_norm,) = find_roles(with_error, plain, ["hessian_norm"])
        assert role_of_norm.role == expected


def test_positive_values_move_by_their_ratios():
    """Ratios of 3 to 4 in each of three runs of unlike size; their differences are 6 to 3000."""
    base = np.array([2.0, 30.0, 1000.0])
    plain = cell(FALLING, algorithm="fomaml", seeds=range(5))
    for factors, expected in (([3, 3.5, 4], Role.COMPANION), ([3, 0.5, 4], Role.UNTESTED)):
        runs = made_up("base", seeds=range(3), final_accuracy=0.8, hessian_norm=base)
        norms = base * factors
        runs += made_up("shared head", seeds=range(3), final_accuracy=0.8, hessian_norm=norms)
        (role_of_norm,) = find_roles(runs, plain, ["hessian_norm"])
        assert role_of_norm.role == expected


def test_noise_around_0_seldom_moves():
    """Twelve interventions of five seeds, and nothing but noise: at most one time in twenty.

    By intervals of 95 % for each pair alone it would be every second time.
    """
    rng = np.random.default_rng(0)
    plain = cell(FALLING, algorithm="fomaml", seeds=range(5))
    chosen = [name for name in BY_NAME if name != "centred head at meta-test"][:12]
    runs = {name: made_up(name, final_accuracy=0.8) for name in chosen}

    def is_untested():
        noisy = []
        for run in itertools.chain(*runs.values()):
            is_norm = run.measures.measure == "hessian_norm"
            mean = run.measures["mean"].mask(is_norm, rng.normal())
            noisy.append(replace(run, measures=run.measures.assign(mean=mean)))
        (role_of_norm,) = find_roles(noisy, plain, ["hessian_norm"])
        return role_of_norm.role == Role.UNTESTED

    assert sum(is_untested() for _ in range(40)) >= 36


def test_other_images_are_another_setting():
    """A folder of one name holds other images than before: nothing is compared across them."""
    base, zero = made_up("base"), made_up("zero head")
    others = [
        replace(run, settings=replace(run.settings, dataset="birds", rotations=False, content=name))
        for runs, name in ((base, "1x28x28-" + "a" * 16), (zero, "1x28x28-" + "b" * 16))
        for run in runs
    ]
    with pytest.raises(ValueError, match=r"^runs of birds 1x28x28-a+ .* and birds .*: give those"):
        find_roles(others, [], ["hessian_norm"])
    assert judge_predictions(others) == []


def test_a_measure_of_ones_own_keeps_its_name():
    plain = cell(FALLING, algorithm="fomaml", seeds=range(5))
    runs = made_up("base", final_accuracy=0.8) + made_up("zero head", final_accuracy=0.8)
    mine = [
        replace(run, measures=run.measures.replace("hessian_norm", "my_measure"))
        for run in (*plain, *runs)
    ]
    roles = find_roles(mine[len(plain) :], mine[: len(plain)], ["my_measure"])
    (line,) = role_table(roles).to_dict("records")
    assert "my_measure" in line.values()
    assert "**My_measure**" in role_sentences(roles)[0]


def test_flatter_and_worse_speaks_against_flatness():
    flat = role(zero_head=(0.5, 0.7), shared_head=(8.0, 0.6))
    assert [change.intervention for change in flat.better_but_worse] == ["zero head"]


def test_roles_in_words():
    roles = [role(shared_head=(8.0, 0.8))]
    assert role_sentences(roles) == [
        "**Flatness (Hessian norm)**: **a companion, no main cause**; under first-order MAML "
        "*shared head* moves it from 2 to 8 and accuracy by +0.0 points (+0.0 to +0.0)."
    ]
    others = [replace(roles[0], algorithm="maml", role=Role.UNTESTED), *roles]
    (sentence,) = role_sentences(others)
    assert "under MAML **not tested**: no intervention here moves it" in sentence
    assert "; under first-order MAML **a companion, no main cause**: *shared head*" in sentence
    (line,) = role_table(roles).to_dict("records")
    assert line["while accuracy stays"] == "2 to 8" and line["role"] == Role.COMPANION
    assert line["r with accuracy, over meta-training"].startswith("-1.00 (")
