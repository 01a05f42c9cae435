"""How far runs have got, in words, on synthetic records."""

from dataclasses import replace

import numpy as np
import reach

from metanb.claims import rules
from metanb.claims.run_stats import correlation_power
from tests.support.records import FALLS, PAPER, TIME, at_paper_settings, cell, stopped_run


def test_runs_of_one_seed_that_were_trained_apart():
    """They end 2 points of accuracy apart, and a factor of e in the Hessian norm."""
    once = cell({"query_accuracy": np.full(12, 0.5)}, wobble=0.0)
    curves = {"query_accuracy": np.full(12, 0.52), "hessian_norm": np.full(12, np.e)}
    again = cell(curves, wobble=0.0, final_tasks=600)
    assert reach.twins(once + again) == (
        "2.0 points of accuracy and 172 % of the Hessian norm (root mean square over 3 pairs)"
    )


def test_what_has_a_verdict_at_the_papers_scale_is_told_from_what_has_none():
    runs = [stopped_run(seed, 0.9, epochs) for seed, epochs in enumerate((10, 10, 8))]
    too_few = runs[:2]
    too_short = [run.upto(2) for run in runs]
    for unjudged in (too_few, too_short):
        rows = rules.judge(unjudged)
        assert reach.paper_reach(unjudged, rows) == "of which none has a verdict yet"
        missing = reach.paper_missing(unjudged, rows)
        assert "Omniglot 5-way 1-shot (MAML, first-order MAML, finetuning, MAML with" in missing
        assert missing.count("the regulariser under") == 2 and "further" not in missing
    rows = rules.judge(runs)
    assert reach.paper_reach(runs, rows) == "trained for 4,000 to 5,000 of 60,000 iterations"
    missing = reach.paper_missing(runs, rows)
    summed = ", ".join(
        f"{name} with the sum as inner loss" for name in ("MAML", "first-order MAML", "finetuning")
    )
    assert f"Omniglot 5-way 1-shot (first-order MAML, finetuning, {summed})" in missing
    place = PAPER | {
        "ways": 20,
        "meta_batch": 16,
        "inner_lr": 0.1,
        "inner_steps": 5,
        "test_steps": 5,
        "test_tasks": 60,
    }
    with_it = cell({}, regulariser="adapted", gamma=0.3, **place)
    pairs = [run.upto(10) for run in with_it + cell({}, **place)]
    missing = reach.paper_missing(pairs, rules.judge(pairs))
    assert "further strengths of the regulariser under MAML" in missing
    assert "the regulariser under first-order MAML" in missing


def test_lengths_and_seeds_are_counted():
    runs = at_paper_settings({}) + at_paper_settings({}, algorithm="fomaml", epochs=8)
    text = reach.lengths(runs)
    assert text.startswith("none of 6 runs at the paper's settings are whole, 60,000 iterations; ")
    assert text.endswith("the others stop at 4,000 to 5,000")
    few = reach.seeds(rules.judge(runs))
    power = 100 * correlation_power(3, rules.STRONG)
    assert few.startswith("3 runs at the paper's settings") and f"in {power:.0f} % of cases" in few


def test_a_norm_that_rises_once_is_not_monotone():
    falling = at_paper_settings({"hessian_norm": FALLS}, [0, 1], wobble=0)
    once = FALLS.copy()
    once[5] = once[4] * 1.1
    (rising,) = at_paper_settings({"hessian_norm": once}, [2], wobble=0)
    text = reach.monotone([*falling, rising])
    assert (
        text == "in 2 of 3 runs the norm falls after every epoch; it falls after 96 % of all epochs"
    )


def test_accuracy_that_rises_in_the_second_half_is_counted():
    runs = at_paper_settings({"query_accuracy": TIME}) + at_paper_settings({}, algorithm="fomaml")
    assert reach.still_rising(runs) == "1 of 2"


def test_machines_are_told_by_their_kind():
    names = ("AMD EPYC (AVX2)", "NVIDIA H200", "NVIDIA H200, AMD EPYC (AVX2)", "Intel(R) Xeon(R)")
    runs = [
        replace(run, provenance=run.provenance | {"device": name})
        for run, name in zip(cell({}, range(4)), names, strict=True)
    ]
    assert reach.devices(runs) == (
        "in the smaller version 2 runs on CPUs, 1 runs on an NVIDIA H200, "
        "1 runs partly on CPUs and partly on an NVIDIA H200"
    )
