"""Each claim's test on records: an effect, its interval, and a verdict by a rule written first.

A cell is one (data set, setting, algorithm, scale): its runs differ by the seeds alone. The
statistics are those of `metanb.claims.run_stats`, and know nothing of claims; a claim says only
which sign the paper expects. Where a rule asks for a 95 % interval on one side of 0, noise
satisfies it in 2.5 % of cells. Many cells are tested, so each row also has Holm's corrected
p-value.

Runs of a cell are measured on the same tasks. The error of having drawn these tasks is in the
interval as far as the records hold it, see `metanb.claims.run_stats.interval`: they hold the error
over tasks of each epoch, not how the errors of two epochs correlate. Where it is not in the
interval, a row's detail says RUNS_ALONE.

    C1 to C3  `_judge_trend`, the trend of a curve over meta-training; `_judge_first_peak`, C1's
              first peak by itself
    C4        `_judge_flatter_while_worse`
    C5, C6    `_judge_correlation`
    C7        `_judge_orthogonality`
    C8        `_judge_regulariser`

The verdicts in these rules are those of `metanb.claims.verdicts.Verdict`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from metanb.claims.cells import (
    curve,
    curves_with_accuracy,
    cut_to_common_epoch,
    cut_to_common_length,
    final_accuracy,
    group_into_cells,
    late_errors,
    late_gains,
    late_values,
    pair_by_seed,
    untrained,
)
from metanb.claims.paper import BY_NAME, CLAIMS, PAPER, PAPER_GAIN, Claim
from metanb.claims.run_stats import (
    NO_EFFECT,
    Interval,
    correlate_over_epochs,
    correlate_own_steps,
    correlation,
    correlation_power,
    detrend,
    first_peak,
    fitted_change,
    fitted_change_error,
    holm,
    interval,
    trend,
    trend_error,
)
from metanb.claims.verdicts import MIN_RUNS, Row, Unit, Verdict
from metanb.grids.definitions import begun_run, is_beginning
from metanb.grids.interventions import find_intervention
from metanb.labels import ALGORITHMS, name_of
from metanb.runs.records import Record, keep_furthest, keep_new
from metanb.settings import Settings, differences_from_scale, preset, scale_of

ACROSS = 5  # runs from which a correlation across runs is judged
STRONG = 0.8  # a true correlation across runs that a test should see
POWER = 0.8  # a test that sees it less often than this tells nothing where it sees none
RUNS_ALONE = "over runs alone"  # without the choice of tasks
ORTHOGONAL = 0.05  # a mean cosine below this counts as near 0
MIN_EPOCHS = 4  # a run must have reached this many to be judged
DETRENDABLE = 6  # epochs: a quadratic leaves nothing but +-1 of the correlation of four
PEAK_BY = 50  # iterations by which the first epoch must be measured for a first peak to be missed
FALLING = 4  # epochs that the second half must have before a fall can be seen
SCALE_FREE = "scale-free"  # on a measure that rescaling weights leaves alone
RELATIVE = "over the weights' norm"  # not free of scale, but of its growth by a common factor

# the readings of the paper's regulariser and its control; C8 is about no other regulariser
OF_COHERENCE = ("adapted", "through", "outer", "random")
# settings that act at meta-test alone where the algorithm is finetuning
AT_META_TEST = ("inner_lr", "test_steps", "adapts")
# settings that a row shows elsewhere than in `apart`
_SHOWN_ELSEWHERE = ("train_classes", "head_init", "test_head", "regulariser", "gamma")


def verdict_by_interval(effect: Interval, runs: int, direction: int) -> Verdict:
    """The verdict on an effect of claimed sign `direction`, by its 95 % interval over `runs` runs.

    The first line that holds gives the verdict:

        TOO_FEW     fewer than MIN_RUNS runs
        NOT_SEEN    the interval holds 0, or is no number
        REPRODUCED  it lies on the claimed side of 0
        CONTRARY    it lies on the other side
    """
    if runs < MIN_RUNS:
        return Verdict.TOO_FEW
    if not (effect.low > 0 or effect.high < 0):  # NaN, too
        return Verdict.NOT_SEEN
    return Verdict.REPRODUCED if (effect.low > 0) == (direction > 0) else Verdict.CONTRARY


def judge(records: Iterable[Record]) -> list[Row]:
    """Judge every claim on every cell that it is about, in the claims' order.

    Runs that were stopped early count, see `metanb.claims.cells.cut_to_common_length`. Runs of
    fewer than MIN_EPOCHS epochs are left out, and so are the interventions' runs, which
    `metanb.claims.predictions` judges. Runs of the beginning of meta-training alone are judged for
    C1's first peak and for nothing else. Of a run that is there twice, the furthest record
    counts. Smoke runs get rows with their effects, and the verdict SMOKE in place of any other.

    Raises:
        metanb.runs.records.RecordError: a run's curve has gaps or is not finite.

    Example:
        >>> from metanb import preset
        >>> from metanb.runs.records import find_record
        >>> runs = [find_record(preset("quick", "omniglot", seed=seed)) for seed in range(5)]
        >>> for row in judge(runs):
        ...     if row.claim in ("C2", "C3"):
        ...         print(row.name, row.change, row.verdict, sep=" | ")
        C2 | × 0.03 (0.03 to 0.04) | reproduced
        C3 | × 1.36 (1.31 to 1.41) | reproduced
        C3, over the weights' norm | × 1.16 (1.12 to 1.21) | reproduced
    """
    # a regulariser's runs are cut when they are paired, all others to their cell's common length
    long_enough = [
        run
        for run in keep_furthest(records)
        if run.epochs >= MIN_EPOCHS and not find_intervention(run.settings)
    ]
    whole = group_into_cells(long_enough)
    cut = [cut_to_common_length(cell) for cell in whole]
    plain = [cell for cell in cut if _is_plain_meta_training(cell[0].settings)]
    learners = [cell for cell in plain if not is_beginning(cell[0].settings)]
    beginnings = [cell for cell in plain if is_beginning(cell[0].settings)]

    # the rows, in the claims' order
    measures = (("hessian_norm", ""), ("adaptive_sharpness", SCALE_FREE))
    rows: list[Row] = []
    for claim in CLAIMS[:3]:
        rows += [row for cell in learners for row in _judge_curve(claim, cell)]
        if claim.name == "C1":
            rows += map(_judge_first_peak, beginnings)
    rows += [
        _judge_flatter_while_worse(cell, measure, variant)
        for cell in learners
        for measure, variant in measures
    ]
    rows += [_judge_correlation(BY_NAME[name], cell) for name in ("C5", "C6") for cell in learners]
    rows += _judge_baselines(cut)
    rows += _judge_regularisers(whole)

    return _correct_by_holm(rows)


def judge_apart(book: Iterable[Record], own: Iterable[Record]) -> list[Row]:
    """Judge the book's runs alone, and then the cells that one's own runs belong to.

    A row with own runs judges them together with the book's runs of its cell. Such rows are a
    family of their own in Holm's correction, so one's own runs change no number of the book's rows.

    Args:
        book: the book's records.
        own: one's own. One that reaches no further than the book's record of the same run adds
            nothing.

    Returns:
        The book's rows, then those with own runs, whose ids stand in `Row.own`.

    Raises:
        metanb.runs.records.RecordError: as `judge` does.
    """
    book = list(book)
    added = keep_new(own, book)
    rows = judge(book)
    if not added:
        return rows
    added_ids = {run.settings.id for run in added}
    with_own = [
        replace(row, own=tuple(run_id for run_id in row.ids if run_id in added_ids))
        for row in judge([*book, *added])
        if not added_ids.isdisjoint(row.ids)
    ]
    return rows + _correct_by_holm(with_own)


def _correct_by_holm(rows: list[Row]) -> list[Row]:
    """The rows with Holm's p-values; the family is the rows that are judged."""
    judged = [i for i, row in enumerate(rows) if row.verdict.is_judged]
    corrected = list(rows)
    for i, p in zip(judged, holm([rows[i].p for i in judged]), strict=True):
        corrected[i] = replace(rows[i], p_holm=float(p))
    return corrected


def _is_plain_meta_training(settings: Settings) -> bool:
    return settings.regulariser == "none" and ALGORITHMS[settings.algorithm].episodic


def _judge_baselines(cells: list[list[Record]]) -> Iterator[Row]:
    """C7: each finetuning cell beside each algorithm of meta-training with the same settings.

    Of a baseline that adapts in its own way at meta-test, see AT_META_TEST, the partner is the cell
    that adapts in its scale's way.
    """
    by_settings = {cell[0].settings.unseeded: cell for cell in cells}
    for settings, cell in by_settings.items():
        if settings.algorithm == "finetune":
            for algorithm in ("maml", "fomaml"):
                partner = replace(settings, algorithm=algorithm, test_head="fresh")
                if (scale := scale_of(settings)) != "custom":
                    task = settings.dataset, settings.ways, settings.shots
                    usual = preset(scale, *task)
                    usual_way = {name: getattr(usual, name) for name in AT_META_TEST}
                    partner = replace(partner, **usual_way)
                pair = cut_to_common_epoch(cell, by_settings.get(partner, []))
                yield _judge_orthogonality(*pair, algorithm)


def _judge_regularisers(cells: list[list[Record]]) -> Iterator[Row]:
    """C8: each cell with a regulariser beside the one without."""
    by_settings = {cell[0].settings.unseeded: cell for cell in cells}
    for settings, cell in by_settings.items():
        if settings.regulariser in OF_COHERENCE:
            without = replace(settings, regulariser="none", gamma=0.0)
            yield _judge_regulariser(cell, by_settings.get(without, []))


def _judge_curve(claim: Claim, cell: list[Record]) -> list[Row]:
    """C1 to C3: the trend, and for C1 and C3 one more that considers the weights' scale.

    Rescaling the weights changes both measures. C1 has a scale-free form. C3's other form divides
    the distance by the norm of the convolutions' weights: enough to tell whether it grows faster
    than they do, and no more.
    """
    rows = [_judge_trend(claim, cell, claim.measure, "")]
    if claim.name == "C1":
        rows.append(_judge_trend(claim, cell, "adaptive_sharpness", SCALE_FREE))
        rows.append(_judge_first_peak(cell))
    if claim.name == "C3":
        rows.append(_judge_trend(claim, cell, "distance", RELATIVE, divisor="body_norm"))
    return rows


def _judge_trend(
    claim: Claim, cell: list[Record], measure: str, variant: str, divisor: str = ""
) -> Row:
    """The log ratio of a curve's mean over the last quarter of epochs to that over the first.

    Its interval is over runs and tasks. `divisor` is a measure that the curve is divided by. Where
    a run's curve or its divisor is 0, there is no ratio: the verdict is NO_RATIO.
    """
    curves, errors = _curves_and_errors(cell, measure)
    if divisor:
        divisors = np.stack([curve(run, divisor) for run in cell])
        with np.errstate(divide="ignore", invalid="ignore"):
            curves, errors = curves / divisors, errors / divisors
    trends = []
    for run, values in zip(cell, curves, strict=True):
        try:
            trends.append(trend(values))
        except ValueError:
            name = f"{divisor or measure} of {run.settings.id}"
            return _row_without_ratio(claim, cell, name, variant)
    effect = interval(trends, shared=map(trend_error, curves, errors))
    verdict = verdict_by_interval(effect, len(cell), claim.direction)
    return _make_row(claim, cell, effect, Unit.LOG_RATIO, verdict, variant=variant)


def _curves_and_errors(cell: list[Record], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """A measure's means after each epoch, and their standard errors over tasks, [runs, epochs]."""
    means, errors = (
        np.stack([curve(run, measure, column) for run in cell]) for column in ("mean", "sem")
    )
    return means, errors


def _find_zero(cell: list[Record], measure: str, curves: np.ndarray) -> str:
    """The first run whose curve of a measure holds a 0: "MEASURE of RUN"; "" if none does."""
    has_zero = ~(curves > 0).all(axis=1)
    return f"{measure} of {cell[int(has_zero.argmax())].settings.id}" if has_zero.any() else ""


def _row_without_ratio(claim: Claim, cell: list[Record], name: str, variant: str) -> Row:
    """A row with no ratio, because a measure is 0 in a run; `name` says which, and which run."""
    verdict = Verdict.TOO_FEW if len(cell) < MIN_RUNS else Verdict.NO_RATIO
    return _make_row(claim, cell, NO_EFFECT, Unit.LOG_RATIO, verdict, name, variant)


def _judge_first_peak(cell: list[Record]) -> Row:
    """C1's first peak: the highest epoch of the first half over epoch 1.

    The interval is widened for the choice of that epoch. Noise alone gives an epoch of the first
    half that is two standard errors above epoch 1 more often than not, because there are several to
    choose from: hence the wider interval, see `first_peak`. The first line that holds gives the
    verdict:

        TOO_FEW     fewer than MIN_RUNS runs
        NO_RATIO    the norm is 0 in an epoch of the first half
        REPRODUCED  the interval lies above 0
        NOT_SEEN    epoch 1 is measured within PEAK_BY iterations
        TOO_COARSE  otherwise

    Where no peak is seen, it may have come before epoch 1. In an iteration Adam moves a weight by
    about the outer learning rate, 0.001, and the first weights of a convolution are about 0.02 to
    0.03 in size: some 50 iterations can change them all. So a first peak is only missed where epoch
    1 is measured within PEAK_BY iterations; later it is TOO_COARSE. A peak that is seen is one,
    however far apart epochs are.
    """
    norms, errors = _curves_and_errors(cell, "hessian_norm")
    if name := _find_zero(cell, "hessian_norm", norms[:, : norms.shape[1] // 2]):
        return _row_without_ratio(BY_NAME["C1"], cell, name, "first peak")
    effect = first_peak(norms, errors)
    first_epoch = cell[0].settings.epoch_iterations
    if len(cell) < MIN_RUNS:
        verdict = Verdict.TOO_FEW
    elif effect.low > 0:
        verdict = Verdict.REPRODUCED
    else:
        verdict = Verdict.NOT_SEEN if first_epoch <= PEAK_BY else Verdict.TOO_COARSE
    detail = f"epoch 1 is measured after {first_epoch} iterations"
    return _make_row(
        BY_NAME["C1"], cell, effect, Unit.LOG_RATIO, verdict, detail, variant="first peak"
    )


def _judge_flatter_while_worse(cell: list[Record], measure: str, variant: str) -> Row:
    """C4: late in meta-training accuracy on new tasks falls, and so does the Hessian norm.

    Late is the second half of meta-training. The changes are least-squares lines over its epochs,
    one per run. The half is fixed beforehand: from a best epoch that is chosen on the runs
    themselves, accuracy falls by the choice alone. And accuracy must fall on the meta-test tasks
    and on the meta-validation tasks. Runs share either set, and what its tasks have in common falls
    or rises in all of them at once; but the sets have no class in common. The first line that holds
    gives the verdict:

        TOO_FEW     fewer than MIN_RUNS runs
        TOO_SHORT   fewer than FALLING epochs in the second half
        NO_RATIO    the norm is 0 in an epoch of that half
        NO_CASE     accuracy's change does not lie below 0 on both sets, with its interval
        then        by the interval of the change of the log Hessian norm

    The error over tasks is in that interval, but not in accuracy's, where hardly a fall would be
    seen: most of accuracy's error is that some tasks are harder. A change on the same tasks is free
    of this part, and the records do not hold the rest. That is what the second set of tasks is for.
    """
    claim = BY_NAME["C4"]
    epochs = cell[0].epochs
    half = epochs // 2
    detail = f"epochs {half + 1} to {epochs}"

    # too few epochs to fit lines to
    if epochs - half < FALLING:
        verdict = Verdict.TOO_FEW if len(cell) < MIN_RUNS else Verdict.TOO_SHORT
        return _make_row(claim, cell, NO_EFFECT, Unit.LOG_RATIO, verdict, detail, variant)

    norms, errors = (values[:, half:] for values in _curves_and_errors(cell, measure))
    if name := _find_zero(cell, measure, norms):
        return _row_without_ratio(claim, cell, name, variant)

    # the changes of accuracy on both sets of tasks, and of the log Hessian norm
    test, valid = (
        interval(100 * fitted_change(curve(run, accuracy)[half:]) for run in cell)
        for accuracy in ("query_accuracy", "valid_accuracy")
    )
    changes = (fitted_change(np.log(norm)) for norm in norms)
    log_norm = interval(changes, shared=map(fitted_change_error, errors / norms))

    # without a fall on both sets there is no case to judge
    verdict = verdict_by_interval(log_norm, len(cell), claim.direction)
    if len(cell) >= MIN_RUNS and not (test.high < 0 and valid.high < 0):
        verdict = Verdict.NO_CASE

    # the verdict needs three findings: the largest p counts
    effect = log_norm._replace(p=max(log_norm.p, test.p, valid.p))
    detail += f"; {RUNS_ALONE}: accuracy {test.describe('+.2f', 'points')}"
    detail += f", on meta-validation tasks {valid.describe('+.2f', 'points')}"
    return _make_row(claim, cell, effect, Unit.LOG_RATIO, verdict, detail, variant)


def _judge_correlation(claim: Claim, cell: list[Record]) -> Row:
    """C5, C6: the correlation over epochs of query accuracy with a coherence, over runs.

    Accuracy rises with training in every run, and whatever else drifts then correlates with it. So
    two more questions are asked: do a run's own first differences go together, see
    `correlate_own_steps`, and do runs that end more coherent end more accurate? The first line that
    holds gives the verdict:

        TOO_FEW         fewer than MIN_RUNS runs
        NOT_SEEN        the correlation's interval holds 0
        CONTRARY        it lies below 0, and so does that of own first differences
        OPPOSITE_TREND  it lies below 0
        TREND_ONLY      the interval of own first differences does not lie above 0: no more than a
                        trend that all runs share is seen
        REPRODUCED      across at least ACROSS runs, r > 0 and p < 0.05
        WITHIN_RUNS     across as many, r < 0 and p < 0.05: runs say the opposite
        POWERLESS       fewer than ACROSS runs, or so few that a true r of STRONG would be seen less
                        often than POWER
        WITHIN_RUNS     otherwise: runs enough, and it is not seen across them

    The intervals are over runs alone: an error over tasks would take the covariance of tasks
    between epochs, which the records do not hold. What remains of the correlation after removing a
    quadratic in log epoch is reported, not used for the verdict: two slow drifts that are no
    quadratics still share what is left.
    """
    # over epochs: as measured, and of own first differences
    series = curves_with_accuracy(cell, claim.measure)
    over_epochs = correlate_over_epochs(series)
    steps = correlate_own_steps(series)

    # across runs, late in meta-training
    r = 0.0
    p = 1.0
    if len(cell) >= ACROSS:
        r, p = correlation(late_values(cell, "query_accuracy"), late_values(cell, claim.measure))

    # the verdict; where it needs all three findings, the largest p counts
    verdict = _verdict_on_correlation(
        verdict_by_interval(over_epochs, len(cell), claim.direction), steps, r, p, len(cell)
    )
    effect = over_epochs
    if verdict == Verdict.REPRODUCED:
        effect = effect._replace(p=max(effect.p, steps.p, p))
    if verdict == Verdict.CONTRARY:
        effect = effect._replace(p=max(effect.p, steps.p))

    # what it rests on
    detail = f"{RUNS_ALONE}: own first differences r = {steps.describe()}; "
    if cell[0].epochs >= DETRENDABLE:
        detail += f"detrended r = {correlate_over_epochs(series, detrend).describe()}; "
    else:
        detail += f"too few epochs to detrend: {cell[0].epochs}; "
    if len(cell) >= ACROSS:
        detail += f"across {len(cell)} runs r = {r:.2f} (p = {p:.2g}); "
    else:
        detail += f"too few runs to compare across them: {len(cell)}; "
    power = 100 * correlation_power(len(cell), STRONG)
    detail += f"a true r of {STRONG:g} is seen in {power:.0f} % of cases"
    return _make_row(claim, cell, effect, Unit.CORRELATION, verdict, detail)


def _verdict_on_correlation(
    over_epochs: Verdict, steps: Interval, r: float, p: float, runs: int
) -> Verdict:
    """The rule of `_judge_correlation`, line by line.

    Args:
        over_epochs: the verdict on the correlation over epochs alone.
        steps: the correlation of own first differences.
        r: the correlation across runs; 0 below ACROSS runs.
        p: its p-value; 1 below ACROSS runs.
        runs: number of runs.
    """
    if over_epochs == Verdict.CONTRARY:
        return Verdict.CONTRARY if steps.high < 0 else Verdict.OPPOSITE_TREND
    if over_epochs != Verdict.REPRODUCED:  # TOO_FEW or NOT_SEEN
        return over_epochs
    if not steps.low > 0:
        return Verdict.TREND_ONLY
    if p < 0.05 and r != 0:
        return Verdict.REPRODUCED if r > 0 else Verdict.WITHIN_RUNS
    if runs < ACROSS or correlation_power(runs, STRONG) < POWER:
        return Verdict.POWERLESS
    return Verdict.WITHIN_RUNS


def _judge_orthogonality(cell: list[Record], learners: list[Record], algorithm: str) -> Row:
    """C7: finetuning's late trajectory coherence is near 0, and meta-training's is not.

    Directions that have nothing in common are orthogonal, and so are an untrained network's. So a
    baseline that does not work shows nothing, and one beside a meta-training that is near 0 itself
    shows half of the claim. Near 0 is an interval below ORTHOGONAL. The first line that holds gives
    the verdict:

        TOO_FEW          fewer than MIN_RUNS runs, of finetuning or of meta-training
        NO_BASELINE      adaptation is not seen to lower finetuning's late support loss, or its late
                         query accuracy is not seen to lie above the untrained network's: intervals
                         over runs
        CONTRARY         finetuning's interval lies above ORTHOGONAL
        NOT_SEEN         finetuning's interval holds ORTHOGONAL
        NOT_SET_APART    meta-training's interval does not lie above ORTHOGONAL: nothing sets
                         finetuning apart
        REPRODUCED       otherwise: the intervals are apart, with ORTHOGONAL between them

    Args:
        cell: runs of finetuning.
        learners: runs of meta-training with the same settings.
        algorithm: that of `learners`, known where there are none, too.
    """
    claim = BY_NAME["C7"]
    variant = f"{cell[0].settings.test_head} head, beside {name_of(algorithm)}"

    # both coherences
    finetuned = late_coherence(cell)
    meta_trained = late_coherence(learners)
    if min(len(cell), len(learners)) < MIN_RUNS:
        return _make_row(claim, cell, finetuned, Unit.COSINE, Verdict.TOO_FEW, variant=variant)

    # whether the baseline works: adaptation fits the support images, and meta-training taught it
    losses_before = late_values(cell, "support_loss_before")
    losses = late_values(cell, "support_loss")
    untrained_accuracies = np.array([untrained(run, "query_accuracy") for run in cell])
    accuracies = late_values(cell, "query_accuracy")
    # a loss of 0 counts as the smallest number
    losses_above_0 = np.maximum(losses, np.finfo(float).tiny)
    fits = interval(np.log(losses_above_0 / losses_before)).high < 0
    learnt = interval(accuracies - untrained_accuracies).low > 0

    # the verdict; where it needs both coherences, the larger p counts
    if not (fits and learnt):
        verdict = Verdict.NO_BASELINE
    elif finetuned.low > ORTHOGONAL:
        verdict = Verdict.CONTRARY
    elif not finetuned.high < ORTHOGONAL:
        verdict = Verdict.NOT_SEEN
    else:
        is_apart = meta_trained.low > ORTHOGONAL
        verdict = Verdict.REPRODUCED if is_apart else Verdict.NOT_SET_APART
    effect = finetuned
    if verdict == Verdict.REPRODUCED:
        effect = effect._replace(p=max(finetuned.p, meta_trained.p))

    # what it rests on
    detail = (
        f"{name_of(algorithm)}: {meta_trained.describe('.3f')}; adaptation takes the baseline's "
        f"support loss from {losses_before.mean():.2f} to {losses.mean():.2f}; its accuracy "
        f"{100 * accuracies.mean():.1f} %, untrained {100 * untrained_accuracies.mean():.1f} %"
    )
    return _make_row(claim, cell, effect, Unit.COSINE, verdict, detail, variant, learners)


def late_coherence(runs: list[Record]) -> Interval:
    """Trajectory coherence late in meta-training, over runs and tasks; p is against ORTHOGONAL."""
    if not runs:
        return NO_EFFECT
    values = late_values(runs, "trajectory_coherence")
    errors = late_errors(runs, "trajectory_coherence")
    return interval(values, ORTHOGONAL, shared=errors)


def _judge_regulariser(cell: list[Record], base: list[Record]) -> Row:
    """C8: the gain in query accuracy over the same settings and seeds without the regulariser.

    It is the gain on the further tasks, which are many, where every run of every pair was measured
    on them at the epoch that the pairs are compared at; else the gain on the meta-test tasks, late
    in meta-training. The error over tasks is in the interval, as if the two runs of a pair had met
    different ones, which can only widen it. Over the few meta-test tasks it is larger than the
    paper's gain, so there no gain and the paper's can hardly be told apart.

    Controls get rows too: one that helps as much speaks against coherence as the reason. An
    interval that holds 0 and the paper's gain as well is UNCLEAR: to call that not reproduced would
    be to blame the paper for our few runs. Otherwise the verdict is by the interval.
    """
    claim = BY_NAME["C8"]
    settings = cell[0].settings
    pairs = pair_by_seed(cell, base)
    runs = [run for run, _ in pairs]
    partners = [partner for _, partner in pairs]

    # each pair's gain, on further tasks where all have them
    further = _gains_on_further_tasks(pairs)
    if further is not None:
        gains, errors = further
        tasks = f"{settings.final_tasks} tasks after the last epoch"
    else:
        gains, errors = late_gains(runs, partners)
        tasks = f"{settings.test_tasks} tasks, late in meta-training"
    effect = interval(gains, shared=errors) if pairs else NO_EFFECT

    # the verdict
    verdict = verdict_by_interval(effect, len(pairs), claim.direction)
    if verdict == Verdict.NOT_SEEN and effect.high >= PAPER_GAIN:
        verdict = Verdict.UNCLEAR

    # what it rests on; a penalty on the outer loss moves nothing
    detail = f"accuracy on {tasks}"
    # An algorithm of one's own need not record the move.
    recorded = bool(runs) and all(run.has("relative_move") for run in runs)
    if recorded and settings.regulariser != "outer":
        detail += f"; relative move {late_values(runs, 'relative_move').mean():.3f}"
    return _make_row(
        claim,
        runs or cell,
        effect,
        Unit.POINTS,
        verdict,
        detail,
        variant=f"{settings.regulariser}, γ = {settings.gamma:g}",
        compared=partners,
        count=len(pairs),
    )


def _gains_on_further_tasks(
    pairs: list[tuple[Record, Record]],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Gains on the further tasks and their standard errors, percentage points, [pairs] each.

    None without pairs, or where a run of a pair was not measured on these tasks.
    """
    ends = [(final_accuracy(run), final_accuracy(partner)) for run, partner in pairs]
    measured = [(end, without) for end, without in ends if end and without]
    if not measured or len(measured) < len(pairs):
        return None
    gains = 100 * np.array([end[0] - without[0] for end, without in measured])
    errors = 100 * np.array([np.hypot(end[1], without[1]) for end, without in measured])
    return gains, errors


def _make_row(
    claim: Claim,
    cell: list[Record],
    effect: Interval,
    unit: Unit,
    verdict: Verdict,
    detail: str = "",
    variant: str = "",
    compared: Iterable[Record] = (),
    count: int | None = None,
) -> Row:
    """A row of the ledger, before Holm's correction.

    Args:
        claim: what is judged.
        cell: the runs that it is judged on.
        effect: the effect, with its interval and p.
        unit: the effect's unit.
        verdict: the verdict of the rule; a smoke run keeps none.
        detail: what else it rests on.
        variant: which form of the claim.
        compared: the runs that those of the cell are compared with.
        count: number of runs or pairs, where it is not the cell's.
    """
    settings = cell[0].settings
    is_whole = cell[0].finished and not is_beginning(settings)
    if is_beginning(settings):
        settings = begun_run(settings)
    scale = scale_of(settings)
    if scale == "smoke":
        verdict = Verdict.SMOKE
    return Row(
        claim=claim.name,
        variant=variant,
        dataset=settings.dataset,
        setting=_describe_setting(settings),
        apart=_describe_differences(settings),
        algorithm=settings.algorithm,
        scale=scale,
        iterations=settings.iterations if is_whole else cell[0].iterations,
        full_iterations=settings.iterations,
        effect=effect.mean,
        low=effect.low,
        high=effect.high,
        unit=unit,
        p=effect.p,
        p_holm=math.nan,
        runs=len(cell) if count is None else count,
        verdict=verdict,
        detail=detail,
        paper=PAPER.get((claim.name, settings.dataset, settings.ways, settings.shots), ""),
        ids=tuple(run.settings.id for run in (*cell, *compared)),
    )


def _describe_setting(settings: Settings) -> str:
    """Ways and shots, the number of classes and the first head, where these are not the usual."""
    setting = settings.setting
    if settings.train_classes:
        setting += f", {settings.train_classes} classes"
    if settings.head_init != "torch":
        setting += f", {settings.head_init} first head"
    return setting


def _describe_differences(settings: Settings) -> str:
    """The settings that differ from their scale's, but for those that a row shows elsewhere."""
    differences = differences_from_scale(settings)
    return ", ".join(
        f"{name}={value}" for name, value in differences.items() if name not in _SHOWN_ELSEWHERE
    )
