"""Claims: known curves give each verdict, intervals agree with scipy's t-test, and noise rarely gives a verdict."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from metanb import claims
from metanb.records import Record
from metanb.settings import preset

EPOCHS = 20


def record(seed, slope, rng=None, algorithm="maml"):
    """A run whose three curves change by a factor exp(slope) from start to end, with noise of 1 % at least."""
    rng = rng or np.random.default_rng(seed)
    settings = preset("quick", "omniglot", seed=seed, algorithm=algorithm)
    level = np.exp(slope * np.arange(EPOCHS + 1) / EPOCHS + 0.01 * rng.normal(size=EPOCHS + 1))
    level[0] = 1000.0  # the untrained network must not count
    table = pd.concat(
        pd.DataFrame(
            {"epoch": range(EPOCHS + 1), "iteration": range(EPOCHS + 1), "measure": claim.measure, "mean": level}
        )
        for claim in claims.CLAIMS
    )
    return Record(settings, table, {}, Path(settings.id))


def verdicts(runs):
    return {row.claim: row.verdict for row in claims.ledger(runs)}


def test_falling_curves():
    found = verdicts([record(seed, -1.0) for seed in range(3)])
    assert found == {"C1": claims.REPRODUCED, "C2": claims.REPRODUCED, "C3": claims.CONTRARY}


def test_rising_curves():
    found = verdicts([record(seed, 1.0) for seed in range(3)])
    assert found == {"C1": claims.CONTRARY, "C2": claims.CONTRARY, "C3": claims.REPRODUCED}


def test_seeds_that_disagree_and_too_few_seeds():
    mixed = [record(0, -1.0), record(1, 1.0), record(2, 0.1)]
    assert set(verdicts(mixed).values()) == {claims.NOT_SEEN}
    assert set(verdicts(mixed[:2]).values()) == {claims.TOO_FEW}


def test_cells_differ_by_seed_alone():
    rows = claims.ledger([record(s, -1.0, algorithm=a) for s in (2, 0, 1) for a in ("maml", "fomaml")])
    assert [(row.claim, row.algorithm, row.runs) for row in rows if row.claim == "C1"] == [
        ("C1", "maml", 3),
        ("C1", "fomaml", 3),
    ]
    assert all(row.scale == "quick" and row.setting == "5-way 1-shot" for row in rows)


def test_trend_in_closed_form():
    curve = np.array([8.0, 4.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0])  # quarters of two: (8+4)/2 = 6, (2+1)/2 = 1.5
    assert claims.trend(curve) == pytest.approx(np.log(1.5 / 6.0))
    with pytest.raises(ValueError, match="4 epochs"):
        claims.trend(curve[:3])
    with pytest.raises(ValueError, match="positive"):
        claims.trend(-curve)


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=5)
    mean, low, high = claims.interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx(values.mean())
    assert claims.interval([1.0]) == (1.0, -np.inf, np.inf)


@pytest.mark.parametrize("runs", [3, 5])
def test_noise_gets_a_verdict_as_rarely_as_its_level_says(runs):
    """2,000 cells of noise around a level: 2.5 % on each side are expected, within four binomial standard errors."""
    rng = np.random.default_rng(1)
    curves = np.exp(0.2 * rng.normal(size=(2000, runs, EPOCHS)))
    found = [
        claims.verdict(*claims.interval(claims.trend(curve) for curve in cell)[1:], runs, direction=-1)
        for cell in curves
    ]
    allowed = 4 * np.sqrt(0.025 * 0.975 / 2000)
    for name in (claims.REPRODUCED, claims.CONTRARY):
        assert abs(found.count(name) / 2000 - 0.025) < allowed
