"""C7, orthogonality: baselines that work and that do not, known levels, and noise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from metanb.claims import rules
from metanb.claims.verdicts import Verdict
from tests.support.noise import CELLS, ERRORS, LEVEL, RUNS, Bare, bare, noise
from tests.support.records import EPOCHS, QUICK, cell, record, verdict


def coherent(level, fit=0.5, accuracy=0.6, **settings):
    """Runs of this trajectory coherence; adaptation takes the support loss from 1 to `fit`."""
    curves = {"trajectory_coherence": level, "support_loss": fit, "query_accuracy": accuracy}
    return cell({measure: np.full(EPOCHS, value) for measure, value in curves.items()}, **settings)


def beside_maml(runs):
    (row,) = (row for row in rules.judge(runs) if row.variant == "fresh head, beside MAML")
    return row


def test_orthogonality():
    def judged(ours, theirs, **baseline):
        return beside_maml(coherent(ours, algorithm="finetune", **baseline) + theirs).verdict

    assert judged(0.01, coherent(0.3)) == Verdict.REPRODUCED
    assert judged(0.01, coherent(0.3), fit=0.0) == Verdict.REPRODUCED  # a perfect fit
    assert judged(0.01, coherent(0.01)) == Verdict.NOT_SET_APART
    assert judged(0.01, coherent(0.03)) == Verdict.NOT_SET_APART  # apart, and near 0 all the same
    assert judged(0.2, coherent(0.3)) == Verdict.CONTRARY
    assert judged(0.05, coherent(0.3)) == Verdict.NOT_SEEN
    assert judged(0.01, []) == Verdict.TOO_FEW
    assert judged(0.01, coherent(0.3)[:2]) == Verdict.TOO_FEW


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(
    "baseline", [{"fit": 10.0}, {"fit": 1.0}, {"accuracy": 0.1}, {"accuracy": 0.2}], ids=str
)
def test_orthogonality_of_a_baseline_that_does_not_work_is_not_testable(level, baseline):
    """Either adaptation does not lower the support loss, or meta-training does not raise accuracy.

    The untrained network's accuracy is 0.2.
    """
    row = beside_maml(
        coherent(level, algorithm="finetune", wobble=1e-4, **baseline) + coherent(0.3)
    )
    assert row.verdict == Verdict.NO_BASELINE and not row.verdict.is_judged
    assert f"support loss from 1.00 to {baseline.get('fit', 0.5):.2f}; its accuracy " in row.detail
    assert row.detail.endswith("%, untrained 20.0 %")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.009, 0.010, 0.011), (0.01, 0.2, 0.3), Verdict.NOT_SET_APART),  # not for sure
        ((0.0, 0.04, 0.08), (0.89, 0.9, 0.91), Verdict.NOT_SEEN),
        ((0.009, 0.010, 0.011), (0.2, 0.3, 0.4), Verdict.REPRODUCED),
        ((0.0, 0.01, 0.02), (0.89, 0.9, 0.91), Verdict.REPRODUCED),
    ],
)
def test_orthogonal_has_the_larger_p_of_what_it_rests_on(ours, theirs, expected):
    """Each p by scipy: finetuning is below 0.05; for *reproduced*, meta-training is above it."""
    runs = []
    for algorithm, levels in (("finetune", ours), ("maml", theirs)):
        for seed, level in enumerate(levels):
            curves = {
                "trajectory_coherence": np.full(EPOCHS, level),
                "support_loss": np.full(EPOCHS, 0.5),
            }
            runs.append(record(seed, curves, wobble=0.0, algorithm=algorithm))
    p = [stats.ttest_1samp(values, 0.05).pvalue for values in (ours, theirs)]
    row = beside_maml(runs)
    assert row.verdict == expected
    assert row.p == pytest.approx(max(p) if expected == Verdict.REPRODUCED else p[0])


@pytest.mark.parametrize(
    ("ours", "theirs"), [(0.0, 0.01), (0.0, rules.ORTHOGONAL)], ids=["near 0", "at the bound"]
)
def test_noise_does_not_set_finetuning_apart(ours, theirs):
    """Finetuning is near 0, and meta-training is near 0 or at the bound.

    The verdict is *reproduced* in 2.5 % of cells at most.
    """
    rng, names = np.random.default_rng(6), []
    with bare():
        for _ in range(CELLS):
            runs = {"finetune": [], "maml": []}
            for algorithm, level in (("finetune", ours), ("maml", theirs)):
                for seed in range(RUNS):
                    curves = {"trajectory_coherence": level + 0.002 * noise(rng, 0.5, 1)[0]}
                    curves |= {
                        "support_loss_before": np.ones(EPOCHS),
                        "support_loss": 0.5 + 0.1 * rng.random(EPOCHS),
                    }
                    curves |= {"query_accuracy": 0.6 + 0.1 * rng.random(EPOCHS)}
                    runs[algorithm].append(
                        Bare(replace(QUICK, seed=seed, algorithm=algorithm), curves)
                    )
            names.append(rules._judge_orthogonality(runs["finetune"], runs["maml"], "maml").verdict)
    assert set(names) <= {Verdict.REPRODUCED, Verdict.NOT_SET_APART}
    assert names.count(Verdict.REPRODUCED) / CELLS < LEVEL + ERRORS


def test_every_test_head_is_set_beside_meta_training():
    runs = (
        coherent(0.01, algorithm="finetune", test_head="zero")
        + coherent(0.3)
        + coherent(0.4, algorithm="fomaml")
    )
    for name in ("MAML", "first-order MAML"):
        assert verdict(runs, "C7", f"zero head, beside {name}", "finetune") == Verdict.REPRODUCED


def test_a_baseline_that_adapts_in_its_own_way_stands_beside_the_usual_meta_training():
    own_way = {"test_head": "zero", "test_steps": 20, "inner_lr": 0.2, "adapts": "head"}
    runs = coherent(0.01, algorithm="finetune", **own_way) + coherent(0.3)
    assert verdict(runs, "C7", "zero head, beside MAML", "finetune") == Verdict.REPRODUCED
    # other meta-training is no partner
    runs = coherent(0.01, algorithm="finetune", **own_way) + coherent(0.3, inner_lr=0.2)
    assert verdict(runs, "C7", "zero head, beside MAML", "finetune") == Verdict.TOO_FEW


def test_orthogonal_compares_with_the_same_settings_only():
    runs = coherent(0.01, algorithm="finetune") + coherent(0.3, filters=16)
    assert verdict(runs, "C7", "fresh head, beside MAML", "finetune") == Verdict.TOO_FEW


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (0.001, 0.001, Verdict.REPRODUCED),
        (0.001, 0.2, Verdict.NOT_SET_APART),
        (0.1, 0.001, Verdict.NOT_SEEN),
    ],
)
def test_coherences_carry_their_errors_over_tasks(ours, theirs, expected):
    """Finetuning is at 0.01, meta-training at 0.3: either may be 0.05 by the choice of tasks."""
    runs = []
    for error, coherence, algorithm in ((ours, 0.01, "finetune"), (theirs, 0.3, "maml")):
        curves = {
            "trajectory_coherence": np.full(EPOCHS, coherence),
            "support_loss": np.full(EPOCHS, 0.5),
        }
        errors = {"trajectory_coherence": error}
        runs += [record(seed, curves, errors=errors, algorithm=algorithm) for seed in range(3)]
    assert beside_maml(runs).verdict == expected
