"""Chapter 7's findings: sentences about made-up runs whose numbers are known by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from metanb.claims.agreement import (
    describe_before,
    describe_penalty,
    describe_ranking,
    describe_settings,
    describe_shared_part,
    gain_by_seed,
    has_decided,
    late,
    traits_by_setting,
)
from tests.support import records
from tests.support.records import EPOCHS, cell, record

NAMES = ("majority_before", "gradient_coherence_uniform", "trajectory_coherence_head")


@pytest.fixture(autouse=True)
def further_measures(monkeypatch):
    monkeypatch.setattr(records, "MEASURES", [*records.MEASURES, *NAMES])


def flat(**values):
    """Curves that stay where they are."""
    return {name: np.full(EPOCHS, value) for name, value in values.items()}


def runs(coherence, loss, accuracy, algorithm="maml", seeds=range(3), head=0.5, **settings):
    curves = flat(
        trajectory_coherence=coherence,
        trajectory_coherence_head=head * coherence,
        gradient_coherence=10 * coherence,
        gradient_coherence_uniform=9 * coherence,
        support_loss_before=loss,
        majority_before=0.75,
        query_accuracy=accuracy,
    )
    return [record(seed, curves, 0, algorithm=algorithm, **settings) for seed in seeds]


def test_late_is_the_mean_of_the_last_quarter():
    steps = np.r_[np.zeros(EPOCHS - 3), 1.0, 2.0, 6.0]
    assert late(cell({"distance": steps}), "distance") == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(("loss", "decided"), [(1.6, False), (2.4, False), (2.5, True)])
def test_a_network_has_decided_above_one_and_a_half_times_ln_n(loss, decided):
    assert has_decided(runs(0.1, loss, 0.5)) == decided  # 1.5 ln 5 = 2.414


def test_before_adapting_in_words():
    text = describe_before({"MAML": runs(0.1, 1.7, 0.8), "other": runs(0.3, 7.0, 0.7)})
    assert "MAML is undecided (75% of a task's images get one answer, at a loss of 1.70)" in text
    assert "other has decided (75%" in text and text.endswith("ln 5 = 1.61.")


def test_the_shared_part_is_that_of_the_most_coherent():
    text = describe_shared_part({"a": runs(0.1, 1.7, 0.8), "b": runs(0.3, 1.7, 0.8)})
    assert "under b, the most coherent, gradient coherence is 3, and that of" in text
    assert "is 2.7. The head has 0.150 of a trajectory coherence of 0.300." in text


@pytest.mark.parametrize(("accuracy", "word"), [(0.7, "less"), (0.9, "more")])
def test_the_ranking_in_words(accuracy, word):
    groups = {"MAML": runs(0.1, 1.7, 0.8), "other": runs(0.3, 7.0, accuracy)}
    heads = {
        ("maml", "torch"): runs(0.1, 2.0, 0.9),
        ("maml", "zero"): runs(0.2, 2.0, 0.8),
        ("fomaml", "torch"): runs(0.1, 2.0, 0.7),
        ("fomaml", "zero"): runs(0.2, 2.0, 0.8),
    }
    text = describe_ranking(groups, heads)
    assert f"other is more coherent than MAML and {word} accurate ({accuracy:.3f} against" in text
    assert text.endswith("is the most accurate under 1 of 2 algorithms.")


def test_the_penalty_in_words():
    plain, pushed = runs(0.01, 1.7, 0.80), runs(0.40, 7.0, 0.81)
    assert gain_by_seed(pushed, plain).mean == pytest.approx(1)
    noisy = [replace(run, measures=run.measures.assign(sem=0.02)) for run in plain]
    half = 2 * stats.norm.ppf(0.975)  # percentage points, with no spread over runs
    assert gain_by_seed(pushed, noisy)[1:3] == pytest.approx((1 - half, 1 + half), rel=1e-3)
    text = describe_penalty(pushed, plain)
    assert "raises trajectory coherence from 0.010 to 0.400 changes accuracy by +1.00" in text
    assert "3 of 3 runs have decided" in text
    assert "lowers trajectory coherence from 0.400 to 0.010" in describe_penalty(plain, pushed)
    alone = describe_penalty(pushed[:1], plain[:1])
    assert "+1.00 points. With it, 1 of 1" in alone  # one pair has no interval


def test_settings_count_where_both_algorithms_are():
    """Of 20 ways there are two runs of an algorithm: too few. Other losses are no plain cells."""
    made_up = [
        *runs(0.01, 1.7, 0.8),
        *runs(0.30, 7.0, 0.8, "fomaml", head=0.9),
        *runs(0.01, 3.0, 0.8, ways=20),
        *runs(0.30, 9.0, 0.8, "fomaml", seeds=range(2), ways=20),
        *runs(0.30, 9.0, 0.8, "finetune"),
        *runs(0.50, 9.0, 0.8, inner_loss="sum"),
        *(run.upto(3) for run in runs(0.01, 1.7, 0.8, shots=5)),
    ]
    traits = traits_by_setting(made_up)
    assert len(traits) == 3 and set(traits.scale) == {"quick"}
    first = traits[traits.algorithm == "first-order MAML"].iloc[0]
    assert first["loss / ln N"] == pytest.approx(7 / np.log(5))
    assert first["head part"] == pytest.approx(0.27) and first["one answer"] == 0.75
    text = describe_settings(traits)
    assert describe_settings(traits_by_setting([])).endswith("is recorded.")
    assert "of 1 settings" in text and "MAML in 1 and has decided in 1. It gives" in text
    assert "images one answer in 1, and in 1 the head has" in text
    assert text.endswith("do not count: 1.") and "Glyphs" not in text
    elsewhere = pd.concat([traits, traits[:2].assign(data="Glyphs, 3-way 1-shot")])
    assert "of 2 settings, Glyphs included, each scale" in describe_settings(elsewhere)
    first_order = traits[traits.algorithm == "first-order MAML"].assign(data="birds")
    text = describe_settings(pd.concat([traits, first_order]))
    assert text.endswith("do not count: 2; first-order MAML has decided in 1 of 1.")
