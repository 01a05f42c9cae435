"""Each claim's test on records: an effect, its 95 % interval, and a verdict by a rule written here first.

A cell is one (data set, setting, algorithm, scale): its runs differ by the seeds alone. The
statistics are those of `metanb.claims.run_stats`, and know nothing of claims; a claim says only
which sign the paper expects. A rule that asks for a 95 % interval on one side of 0 is one that
noise satisfies in 2.5 % of cells. Many cells are tested, so each row also has Holm's corrected
p-value.

Runs of a cell are measured on the same tasks. The error of having drawn these tasks is in the
interval as far as the records tell it, see `metanb.claims.run_stats.interval`: they hold each
epoch's error over tasks, not how one epoch's goes with another's. Where it is not in, a row's
detail says RUNS_ALONE.

    C1 to C3  the trend of a curve over meta-training, see `_trend`; C1's first peak apart, see `_first_peak`
    C4        `_flatter_while_worse`
    C5, C6    `_goes_with`
    C7        `_orthogonal`
    C8        `_helps`
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from metanb.claims.cells import (
    curve,
    cut_to_common_epoch,
    cut_to_common_length,
    final_accuracy,
    group_into_cells,
    late_errors,
    late_values,
    pair_by_seed,
    untrained,
)
from metanb.claims.paper import BY_NAME, CLAIMS, PAPER, PAPER_GAIN, Claim
from metanb.claims.run_stats import (
    Interval,
    correlation,
    correlation_power,
    detrend,
    first_peak,
    fitted_change,
    fitted_change_error,
    holm,
    interval,
    mean_correlation,
    trend,
    trend_error,
)
from metanb.claims.verdicts import MIN_RUNS, Row, Unit, Verdict
from metanb.labels import NAMES
from metanb.runs.records import Record
from metanb.settings import differences_from_scale, scale_of

ACROSS = 5  # runs from which a correlation across runs is judged
STRONG = 0.8  # a true correlation across runs that a test should see
POWER = 0.8  # a test that sees it less often than this tells nothing where it sees none
RUNS_ALONE = "over runs alone, without the choice of tasks"
ORTHOGONAL = 0.05  # a mean cosine below this counts as near 0
MIN_EPOCHS = 4  # a run must have reached this many to be judged
DETRENDABLE = 6  # epochs: a quadratic leaves nothing but +-1 of the correlation of four
PEAK_BY = 50  # iterations by which the first epoch must be measured for a first peak to be missed
FALLING = 4  # epochs that the second half must have before a fall can be seen


def verdict_by_interval(found: Interval, runs: int, direction: int) -> Verdict:
    """The verdict on an effect of claimed sign `direction`, by its 95 % interval, of `runs` runs."""
    if runs < MIN_RUNS:
        return Verdict.TOO_FEW
    if not (found.low > 0 or found.high < 0):  # NaN, too
        return Verdict.NOT_SEEN
    return Verdict.REPRODUCED if (found.low > 0) == (direction > 0) else Verdict.CONTRARY


def judge(records: Iterable[Record]) -> list[Row]:
    """Every claim on every cell that it is about, in the claims' order.

    Runs that were stopped early count: see `even`. Those of fewer than MIN_EPOCHS epochs are left
    out. Raises RecordError for a run whose curves have gaps or are not finite.
    """
    whole = group_into_cells(run for run in records if run.epochs >= MIN_EPOCHS)
    groups = [cut_to_common_length(cell) for cell in whole]
    by_settings = {cell[0].settings.unseeded: cell for cell in groups}
    uncut = {cell[0].settings.unseeded: cell for cell in whole}
    learners = [
        cell for cell in groups if cell[0].settings.regulariser == "none" and not _finetuned(cell)
    ]
    rows = []
    for claim in CLAIMS[:3]:
        for cell in learners:
            rows += _curve_rows(claim, cell)
    for cell in learners:
        rows += [
            _flatter_while_worse(cell, m, v)
            for m, v in (("hessian_norm", ""), ("adaptive_sharpness", SCALE_FREE))
        ]
    rows += [_goes_with(BY_NAME[name], cell) for name in ("C5", "C6") for cell in learners]
    for cell in filter(_finetuned, groups):
        for algorithm in ("maml", "fomaml"):
            other = replace(cell[0].settings.unseeded, algorithm=algorithm, test_head="fresh")
            rows.append(
                _orthogonal(*cut_to_common_epoch(cell, by_settings.get(other, [])), algorithm)
            )
    for settings, cell in uncut.items():
        if settings.regulariser != "none":
            rows.append(
                _helps(cell, uncut.get(replace(settings, regulariser="none", gamma=0.0), []))
            )
    judged = [i for i, row in enumerate(rows) if row.verdict.is_judged]
    for i, p in zip(judged, holm([rows[i].p for i in judged]), strict=True):
        rows[i] = replace(rows[i], p_holm=float(p))
    return rows


SCALE_FREE = "scale-free"  # on a measure that rescaling weights leaves alone
RELATIVE = "over the weights' norm"  # not free of scale, but of its growth by a common factor


def _curve_rows(claim: Claim, cell: list[Record]) -> list[Row]:
    """C1 to C3: the trend, and for C1 and C3 the same with an eye on the weights' scale, which changes both measures.

    C1 has a scale-free form. C3's other form divides the distance by the norm of the convolutions'
    weights: enough to tell whether it grows faster than they do, and no more.
    """
    rows = [_trend(claim, cell, claim.measure, "")]
    if claim.name == "C1":
        rows += [_trend(claim, cell, "adaptive_sharpness", SCALE_FREE), _first_peak(cell)]
    if claim.name == "C3":
        rows.append(_trend(claim, cell, "distance", RELATIVE, over="body_norm"))
    return rows


def _trend(claim: Claim, cell: list[Record], measure: str, variant: str, over: str = "") -> Row:
    """The log ratio of a curve's mean over the last quarter of epochs to that over the first, over runs and tasks."""
    units = [curve(run, over) if over else 1.0 for run in cell]
    curves, errors = (
        [curve(run, measure, column) / unit for run, unit in zip(cell, units, strict=True)]
        for column in ("mean", "sem")
    )
    found = interval(map(trend, curves), shared=map(trend_error, curves, errors))
    return _row(
        claim,
        cell,
        found,
        Unit.LOG_RATIO,
        verdict_by_interval(found, len(cell), claim.direction),
        variant=variant,
    )


def _first_peak(cell: list[Record]) -> Row:
    """C1's first peak: the highest epoch of the first half over epoch 1, its interval widened for having been chosen.

    An epoch of the first half that is two standard errors above epoch 1 is what noise gives more
    often than not, for there are several to choose from: hence the wider interval, see
    `first_peak`.

    Where none is seen it may have come before epoch 1. In an iteration Adam moves a weight by about
    the outer learning rate, 0.001, and the first weights of a convolution are about 0.02 to 0.03 in
    size: some 50 iterations can change them all. So a first peak is only missed where epoch 1 is
    measured within PEAK_BY iterations; later it is TOO_COARSE. A peak that is seen is one, however
    far apart epochs are.
    """
    found = first_peak(
        *(
            np.stack([curve(run, "hessian_norm", column) for run in cell])
            for column in ("mean", "sem")
        )
    )
    first = cell[0].settings.epoch_iterations
    if len(cell) < MIN_RUNS:
        verdict = Verdict.TOO_FEW
    elif found.low > 0:
        verdict = Verdict.REPRODUCED
    else:
        verdict = Verdict.NOT_SEEN if first <= PEAK_BY else Verdict.TOO_COARSE
    detail = f"epoch 1 is measured after {first} iterations"
    return _row(BY_NAME["C1"], cell, found, Unit.LOG_RATIO, verdict, detail, "first peak")


def _flatter_while_worse(cell: list[Record], measure: str, variant: str) -> Row:
    """C4: in the second half of meta-training accuracy on new tasks falls, and so does the Hessian norm.

    The changes are least-squares lines over the epochs of the second half, one a run. The half is
    fixed beforehand: from a best epoch that is chosen on the runs themselves, accuracy falls by the
    choice alone. And it must fall on the meta-test tasks and on the meta-validation tasks. Runs
    share either set, and what its tasks have in common falls or rises in all of them at once; but
    the sets have no class in common. The first line that holds gives the verdict:

        TOO_FEW     fewer than MIN_RUNS runs
        TOO_SHORT   fewer than FALLING epochs in the second half
        NO_CASE     accuracy's change does not lie below 0 on both sets, with its interval
        then        by the interval of the change of the log Hessian norm

    The error over tasks is in that interval, but not in accuracy's, where hardly a fall would be
    seen: most of accuracy's error is that some tasks are harder, of which a change on the same
    tasks is free, and the records do not tell the rest. That is what the second set of tasks is
    for.
    """
    first = cell[0].epochs // 2
    found = Interval(math.nan, -math.inf, math.inf, 1.0)
    detail = f"epochs {first + 1} to {cell[0].epochs}"
    if cell[0].epochs - first < FALLING:
        verdict = Verdict.TOO_FEW if len(cell) < MIN_RUNS else Verdict.TOO_SHORT
        return _row(BY_NAME["C4"], cell, found, Unit.LOG_RATIO, verdict, detail, variant)
    test, valid = (
        interval(100 * fitted_change(curve(run, accuracy)[first:]) for run in cell)
        for accuracy in ("query_accuracy", "valid_accuracy")
    )
    norms, errors = (
        [curve(run, measure, column)[first:] for run in cell] for column in ("mean", "sem")
    )
    relative = [error / norm for error, norm in zip(errors, norms, strict=True)]
    found = interval(
        (fitted_change(np.log(norm)) for norm in norms), shared=map(fitted_change_error, relative)
    )
    detail += f"; {RUNS_ALONE}: accuracy"
    for falls, tasks in ((test, ""), (valid, ", on meta-validation tasks")):
        detail += f"{tasks} {falls.mean:+.2f} points ({falls.low:+.2f} to {falls.high:+.2f})"
    verdict = verdict_by_interval(found, len(cell), -1)
    if len(cell) >= MIN_RUNS and not (test.high < 0 and valid.high < 0):
        verdict = Verdict.NO_CASE
    found = found._replace(p=max(found.p, test.p, valid.p))
    return _row(BY_NAME["C4"], cell, found, Unit.LOG_RATIO, verdict, detail, variant)


def _goes_with(claim: Claim, cell: list[Record]) -> Row:
    """C5, C6: the correlation over epochs of query accuracy with a coherence, over runs.

    Accuracy rises with training in every run, and whatever else drifts then correlates with it. So
    two more questions are asked: do first differences go together, and do runs that end more
    coherent end more accurate? The first line that holds gives the verdict:

        TOO_FEW     fewer than MIN_RUNS runs
        CONTRARY    the correlation's interval lies below 0
        NOT_SEEN    it holds 0
        PARTLY      that of first differences does not lie above 0: no more than a shared trend is seen
        REPRODUCED  across at least ACROSS runs, r > 0 and p < 0.05
        PARTLY      across as many, r < 0 and p < 0.05: runs say the opposite
        POWERLESS   fewer than ACROSS runs, or so few that a true r of STRONG would be seen less often than POWER
        PARTLY      otherwise: runs enough, and it is not seen across them

    The intervals are over runs alone: an error over tasks would take the covariance of tasks
    between epochs, which the records do not hold. What remains of the correlation after removing a
    quadratic in log epoch is told beside, and decides nothing: two slow drifts that are no
    quadratics still share what is left.
    """
    pairs = [(curve(run, "query_accuracy"), curve(run, claim.measure)) for run in cell]
    found = mean_correlation([correlation(a, c)[0] for a, c in pairs])
    steps = mean_correlation([correlation(np.diff(a), np.diff(c))[0] for a, c in pairs])
    detail = f"{RUNS_ALONE}: first differences r = {steps.mean:.2f} ({steps.low:.2f} to {steps.high:.2f}); "
    if cell[0].epochs >= DETRENDABLE:
        rest = mean_correlation([correlation(detrend(a), detrend(c))[0] for a, c in pairs])
        detail += f"detrended r = {rest.mean:.2f} ({rest.low:.2f} to {rest.high:.2f}); "
    else:
        detail += f"too few epochs to detrend: {cell[0].epochs}; "
    enough, power = len(cell) >= ACROSS, correlation_power(len(cell), STRONG)
    r, p = (
        correlation(*(late_values(cell, m) for m in ("query_accuracy", claim.measure)))
        if enough
        else (0.0, 1.0)
    )
    detail += (
        f"across {len(cell)} runs r = {r:.2f} (p = {p:.2g})"
        if enough
        else f"too few runs to compare across them: {len(cell)}"
    )
    detail += f"; so many runs show a true r of {STRONG:g} in {100 * power:.0f} % of cases"
    verdict = verdict_by_interval(found, len(cell), claim.direction)
    if verdict == Verdict.REPRODUCED:
        across = 0 if p >= 0.05 else int(np.sign(r))
        if steps.low > 0 and across > 0:
            found = found._replace(p=max(found.p, steps.p, p))
        elif steps.low > 0 and across == 0 and (not enough or power < POWER):
            verdict = Verdict.POWERLESS
        else:
            verdict = Verdict.PARTLY
    return _row(claim, cell, found, Unit.CORRELATION, verdict, detail)


def _orthogonal(cell: list[Record], other: list[Record], algorithm: str) -> Row:
    """C7: finetuning's late trajectory coherence is near 0, and meta-training's is not.

    Directions that have nothing in common are orthogonal, and so are an untrained network's. So a
    baseline that does not work shows nothing, and one beside a meta-training that is near 0 itself
    shows half of the claim. Near 0 is an interval below ORTHOGONAL. The first line that holds gives
    the verdict:

        TOO_FEW      fewer than MIN_RUNS runs, of finetuning or of meta-training
        NO_BASELINE  adaptation is not seen to lower finetuning's late support loss, or its late query accuracy is not
                     seen to lie above the untrained network's: intervals over runs
        CONTRARY     finetuning's interval lies above ORTHOGONAL
        NOT_SEEN     finetuning's interval holds ORTHOGONAL
        PARTLY       meta-training's interval does not lie above ORTHOGONAL: nothing sets finetuning apart
        REPRODUCED   otherwise: the intervals are apart, with ORTHOGONAL between them
    """
    coherence, nothing = "trajectory_coherence", Interval(math.nan, -math.inf, math.inf, 1.0)
    found, beside = (
        interval(late_values(runs, coherence), ORTHOGONAL, shared=late_errors(runs, coherence))
        if runs
        else nothing
        for runs in (cell, other)
    )
    variant = f"{cell[0].settings.test_head} head, beside {NAMES[algorithm]}"
    if min(len(cell), len(other)) < MIN_RUNS:
        return _row(BY_NAME["C7"], cell, found, Unit.COSINE, Verdict.TOO_FEW, "", variant)
    losses = [late_values(cell, measure) for measure in ("support_loss_before", "support_loss")]
    accuracies = [
        np.array([untrained(run, "query_accuracy") for run in cell]),
        late_values(cell, "query_accuracy"),
    ]
    fits = interval(np.log(losses[1] / losses[0])).high < 0
    learnt = interval(accuracies[1] - accuracies[0]).low > 0
    if not (fits and learnt):
        verdict = Verdict.NO_BASELINE
    elif found.high < ORTHOGONAL:
        verdict = Verdict.REPRODUCED if beside.low > ORTHOGONAL else Verdict.PARTLY
    else:
        verdict = Verdict.CONTRARY if found.low > ORTHOGONAL else Verdict.NOT_SEEN
    if verdict == Verdict.REPRODUCED:
        found = found._replace(p=max(found.p, beside.p))
    detail = (
        f"{NAMES[algorithm]}: {beside.mean:.3f} ({beside.low:.3f} to {beside.high:.3f}); adaptation takes the "
        f"baseline's support loss from {losses[0].mean():.2f} to {losses[1].mean():.2f}; its accuracy "
        f"{100 * accuracies[1].mean():.1f} %, untrained {100 * accuracies[0].mean():.1f} %"
    )
    return _row(BY_NAME["C7"], cell, found, Unit.COSINE, verdict, detail, variant, other)


def _helps(cell: list[Record], base: list[Record]) -> Row:
    """C8: the difference of query accuracy to the same settings and seeds without the regulariser.

    It is that of the further tasks, of which there are many, where every run of every pair was
    measured on them at the epoch that the pairs are compared at; else that of the meta-test tasks,
    late in meta-training. The error over the further tasks is in the interval, as if the two runs
    of a pair had met different ones, which can only widen it. Over the few meta-test tasks that
    would be several times the paper's gain, so there the interval is over runs alone.

    Controls get rows too: one that helps as much speaks against coherence as the reason. An
    interval that holds 0 and the paper's gain as well is UNCLEAR: to call that not reproduced would
    be to blame the paper for our few runs.
    """
    paired = pair_by_seed(cell, base)
    runs, others = [run for run, _ in paired], [other for _, other in paired]
    ends = [(final_accuracy(run), final_accuracy(other)) for run, other in paired]
    measured = [(with_it, without) for with_it, without in ends if with_it and without]
    if further := bool(paired) and len(measured) == len(paired):
        gains = 100 * np.array([with_it[0] - without[0] for with_it, without in measured])
        errors = 100 * np.array([np.hypot(with_it[1], without[1]) for with_it, without in measured])
    else:
        gains = 100 * (late_values(runs, "query_accuracy") - late_values(others, "query_accuracy"))
        errors = np.zeros(len(paired))
    found = (
        interval(gains, shared=errors) if paired else Interval(math.nan, -math.inf, math.inf, 1.0)
    )
    settings = cell[0].settings
    variant = f"{settings.regulariser}, γ = {settings.gamma:g}"
    # a penalty moves nothing
    moves = late_values(runs if settings.regulariser != "outer" else [], "relative_move")
    tasks = (
        f"{settings.final_tasks} tasks after the last epoch"
        if further
        else f"{settings.test_tasks} tasks, late in meta-training, {RUNS_ALONE}"
    )
    detail = f"accuracy on {tasks}" + (f"; relative move {moves.mean():.3f}" if len(moves) else "")
    verdict = verdict_by_interval(found, len(paired), +1)
    if verdict == Verdict.NOT_SEEN and found.high >= PAPER_GAIN:
        verdict = Verdict.UNCLEAR
    return _row(
        BY_NAME["C8"],
        runs or cell,
        found,
        Unit.POINTS,
        verdict,
        detail,
        variant,
        others,
        count=len(paired),
    )


def _row(
    claim: Claim,
    cell: list[Record],
    found: Interval,
    unit: Unit,
    verdict: Verdict,
    detail: str = "",
    variant: str = "",
    beside: Iterable[Record] = (),
    count: int | None = None,
) -> Row:
    settings = cell[0].settings
    setting = settings.setting
    setting += f", {settings.train_classes} classes" if settings.train_classes else ""
    setting += f", {settings.head_init} first head" if settings.head_init != "torch" else ""
    told = ("train_classes", "head_init", "test_head", "regulariser", "gamma")
    rest = ", ".join(
        f"{name}={value}"
        for name, value in differences_from_scale(settings).items()
        if name not in told
    )
    reached = (
        "" if cell[0].finished else f"{cell[0].iterations:,} of {settings.iterations:,} iterations"
    )
    return Row(
        claim=claim.name,
        variant=variant,
        dataset=settings.dataset,
        setting=setting,
        apart=rest,
        algorithm=settings.algorithm,
        scale=scale_of(settings),
        reached=reached,
        effect=found.mean,
        low=found.low,
        high=found.high,
        unit=unit,
        p=found.p,
        p_holm=math.nan,
        runs=len(cell) if count is None else count,
        verdict=verdict,
        detail=detail,
        paper=PAPER.get((claim.name, settings.dataset, settings.ways, settings.shots), ""),
        ids=tuple(run.settings.id for run in (*cell, *beside)),
    )


def _finetuned(cell: list[Record]) -> bool:
    return cell[0].settings.algorithm == "finetune"
