"""Pure noise of four kinds gets each verdict as rarely as the level of its rule says."""

from collections import Counter

import numpy as np
import pytest

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from tests.support.noise import CELLS, ERRORS, KEPT, KINDS, LEVEL, Bare, bare, noise
from tests.support.records import MEASURES, TIME


def noisy_ledger(rng, rho):
    """MAML, finetuning and a regulariser over RUNS seeds, all of one distribution, uncorrelated.

    Accuracy's noise is in half shared by validation and test. One measure does change: adaptive
    sharpness falls, so C4's scale-free verdict hangs on accuracy alone.
    """
    runs = []
    for _, settings in KEPT:
        shared, *noises = noise(rng, rho, 1 + len(MEASURES))
        curves = {
            measure: np.exp(0.2 * values) for measure, values in zip(MEASURES, noises, strict=True)
        }
        curves["adaptive_sharpness"] *= np.exp(-5 * TIME)
        for measure in ("query_accuracy", "valid_accuracy"):
            curves[measure] = 0.7 + 0.02 * (shared + 5 * np.log(curves[measure]))
        curves["support_loss"] *= 0.1  # adaptation works
        curves["trajectory_coherence"] = rules.ORTHOGONAL + 0.1 * np.log(
            curves["trajectory_coherence"]
        )
        runs.append(Bare(settings, curves))
    return rules.judge(runs)


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def rates(request):
    """How often each verdict comes, by claim and variant, over ledgers of noise."""
    rng, counts = np.random.default_rng(5), {}
    with bare():
        for _ in range(CELLS):
            for row in noisy_ledger(rng, request.param):
                counts.setdefault((row.claim, row.variant), Counter())[row.verdict] += 1
    return counts


SEEN = (
    Verdict.REPRODUCED,
    Verdict.TREND_ONLY,
    Verdict.WITHIN_RUNS,
    Verdict.NOT_SET_APART,
    Verdict.POWERLESS,
)
OPPOSITE = (Verdict.CONTRARY, Verdict.OPPOSITE_TREND)


# by claim and variant: the verdicts that noise gets at the nominal rate, each set on its own
RULES = {
    ("C1", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C1", "first peak"): [SEEN],
    ("C2", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C3", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C3", rules.RELATIVE): [SEEN, (Verdict.CONTRARY,)],
    ("C4", ""): [SEEN, (Verdict.CONTRARY,)],
    ("C4", rules.SCALE_FREE): [SEEN, (Verdict.CONTRARY,)],
    ("C5", ""): [SEEN, OPPOSITE],
    ("C6", ""): [SEEN, OPPOSITE],
    ("C7", "fresh head, beside MAML"): [SEEN, (Verdict.CONTRARY,)],
    ("C8", "adapted, γ = 1"): [SEEN, (Verdict.CONTRARY,)],
}


@pytest.mark.parametrize(("claim", "variant"), RULES)
def test_noise_gets_a_verdict_as_rarely_as_its_level_says(rates, claim, variant):
    counts = rates[claim, variant]
    assert counts.total() == CELLS
    for names in RULES[claim, variant]:
        assert sum(counts[name] for name in names) / CELLS < LEVEL + ERRORS, names


def test_noise_is_judged_and_what_is_no_noise_is_seen(rates):
    """The rules do see: the one measure that falls, in every ledger; chance, in some."""
    assert rates["C1", rules.SCALE_FREE] == {Verdict.REPRODUCED: CELLS}
    for key in (("C1", ""), ("C5", ""), ("C8", "adapted, γ = 1"), ("C3", rules.RELATIVE)):
        assert sum(count for name, count in rates[key].items() if name in (*SEEN, *OPPOSITE)) > 0, (
            key
        )
    for claim in ("C5", "C6"):  # asks for three findings at once
        assert rates[claim, ""][Verdict.REPRODUCED] < 0.02 * CELLS
