"""What the account of chapter 7 predicts of each intervention, and what the runs say.

Chapter 7 says what coherence measures in these networks: the answer that a head gives to every task
alike before it adapts. If that is right, coherence is no cause of accuracy. Then what takes
coherence away leaves accuracy where it is, and what adds coherence does not raise it. Each
prediction was committed before its runs; the provenance of the runs tells when they were made.

An intervention's runs are paired with the base's by their seeds, and compared at the end of
meta-training: accuracy on the further meta-test tasks, all else on those of the epochs. Each
expectation has one rule, on the 95 % interval of the effect, over runs and tasks
(`metanb.claims.run_stats.interval`):

    STAYS      the difference in percentage points: predicted if its interval lies within +-MARGIN,
               refuted if it lies wholly outside
    COLLAPSES  the ratio of the measure's mean to the base's: predicted if its interval
               (`metanb.claims.run_stats.ratio_interval`) lies below HALF, refuted if it lies above
    RISES      the difference: predicted if its interval lies above 0, refuted if it lies below
    FALLS      the same with the signs changed
    FOLLOWS    the slope of the measure's logarithm on that of the inner step size, over all step
               sizes of a seed: predicted if its interval lies within -1 +- 0.5, refuted if it lies
               wholly outside

Everything between is open. The interval of COLLAPSES was mended after the runs: it had taken the
base's mean as known, and was too narrow. The ledger's page names the outcomes that this changed.

MARGIN is small beside what C5 would promise. In the recorded base runs of first-order MAML
(Omniglot 5-way 1-shot, quick scale) a line through accuracy against trajectory coherence rises by
76 points per unit. By that line the loss of half of the final 0.21 would cost 8 points.
"""

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd

from metanb.claims.cells import group_into_cells, pair_by_seed, value_at_the_end
from metanb.claims.run_stats import Interval, interval, ratio_interval
from metanb.claims.verdicts import MIN_RUNS
from metanb.grids.interventions import BASE, BY_NAME, INNER_STEPS, find_intervention
from metanb.labels import describe_measure, name_of
from metanb.runs.records import Record, keep_furthest, keep_new
from metanb.settings import scale_of

MARGIN = 3.0  # percentage points of accuracy
HALF = 0.5
FIRST_ORDER = ("fomaml",)
BOTH = ("maml", "fomaml")


class Expectation(StrEnum):
    """What a measure is expected to do; each is its own text."""

    STAYS = "stays"
    COLLAPSES = "falls to less than half"
    RISES = "rises"
    FALLS = "falls"
    FOLLOWS = "is in proportion to 1 / step size"


class Outcome(StrEnum):
    """What the runs say about a prediction; each is its own text."""

    PREDICTED = "as predicted"
    REFUTED = "not as predicted"
    OPEN = "cannot tell"
    TOO_FEW = f"no outcome: fewer than {MIN_RUNS} pairs"


@dataclass(frozen=True)
class Prediction:
    """A prediction from the account of chapter 7.

    Attributes:
        intervention: the name of the intervention.
        measure: what is predicted; "final_accuracy" for accuracy.
        expected: what it does.
        algorithms: under which it is predicted. Where the base has hardly any coherence, as under
            MAML, nothing can collapse.
    """

    intervention: str
    measure: str
    expected: Expectation
    algorithms: tuple[str, ...] = BOTH


def _without_coherence(name: str) -> tuple[Prediction, ...]:
    """Coherence goes, accuracy stays."""
    return (
        Prediction(name, "trajectory_coherence", Expectation.COLLAPSES, FIRST_ORDER),
        Prediction(name, "gradient_coherence", Expectation.COLLAPSES, FIRST_ORDER),
        Prediction(name, "final_accuracy", Expectation.STAYS),
    )


def _changed(name: str, measure: str, expected: Expectation) -> tuple[Prediction, ...]:
    """A measure is pushed, accuracy stays."""
    return (
        Prediction(name, measure, expected),
        Prediction(name, "final_accuracy", Expectation.STAYS),
    )


PREDICTIONS = (
    *_without_coherence("centred head at meta-test"),
    *_without_coherence("zero head"),
    *_without_coherence("shared head"),
    Prediction("head alone adapts", "final_accuracy", Expectation.STAYS),
    Prediction("body alone adapts", "final_accuracy", Expectation.STAYS),
    *_changed("cosine within a task", "within_cosine", Expectation.RISES),
    *_changed("agreement weights", "trajectory_coherence", Expectation.RISES),
    *_changed("sharpness-aware", "hessian_norm", Expectation.FALLS),
    *_changed("coherent", "trajectory_coherence", Expectation.RISES),
    Prediction("sharpness-aware and coherent", "hessian_norm", Expectation.FALLS),
    *_changed("sharpness-aware and coherent", "trajectory_coherence", Expectation.RISES),
    Prediction("base", "hessian_norm", Expectation.FOLLOWS),
    *(Prediction(name, "final_accuracy", Expectation.STAYS) for name in INNER_STEPS),
)


@dataclass(frozen=True)
class PredictionRow:
    """A prediction on the runs of one setting, algorithm and scale.

    Attributes:
        prediction: what was predicted.
        algorithm: the algorithm's key.
        dataset: the data set's key.
        setting: ways and shots.
        scale: of the runs.
        before: the base's mean at the end of meta-training.
        after: the intervention's.
        effect: what the expectation's rule is about, see the module.
        low: lower end of its 95 % interval.
        high: upper end of that interval.
        runs: number of pairs.
        outcome: what the runs say.
        over_runs_alone: what they would say on these very tasks, without the choice of tasks.
        ids: ids of the runs.
    """

    prediction: Prediction
    algorithm: str
    dataset: str
    setting: str
    scale: str
    before: float
    after: float
    effect: float
    low: float
    high: float
    runs: int
    outcome: Outcome
    over_runs_alone: Outcome
    ids: tuple[str, ...]

    @property
    def comparison(self) -> tuple[str, ...]:
        """The intervention, and where it is compared: the same for all measures."""
        return (
            self.prediction.intervention,
            self.algorithm,
            self.dataset,
            self.setting,
            self.scale,
        )

    @property
    def shown_ends(self) -> str:
        """The measure before and after, accuracy in per cent, as its effect is in points.

        "–" where the effect is a slope over several step sizes.
        """
        if self.prediction.expected == Expectation.FOLLOWS:
            return "–"
        if self.prediction.expected == Expectation.STAYS:
            return f"{100 * self.before:.1f} %, {100 * self.after:.1f} %"
        return f"{self.before:.3g}, {self.after:.3g}"

    @property
    def change(self) -> str:
        """The effect as people read it, with its interval if there are several pairs."""
        formats = {
            Expectation.STAYS: ("{} points", "+.1f"),
            Expectation.COLLAPSES: ("× {}", ".2f"),
            Expectation.FOLLOWS: ("slope {}", ".2f"),
        }
        form, number = formats.get(self.prediction.expected, ("{}", "+.3g"))
        effect = form.format(f"{self.effect:{number}}")
        if self.runs < 2:
            return f"{effect} (no interval)"
        if math.isinf(self.low) and math.isinf(self.high):
            return f"{effect} (no bounds: the base may be 0 or less)"
        return f"{effect} ({self.low:{number}} to {self.high:{number}})"


def compare_interventions(
    records: Iterable[Record], measures: Sequence[str] = ("trajectory_coherence", "hessian_norm")
) -> pd.DataFrame:
    """What each intervention changes, beside the base, at the end of meta-training.

    Args:
        records: runs of interventions in one setting and at one scale; others are left out.
        measures: besides accuracy.

    Returns:
        A row per algorithm and intervention, the base first: `algorithm`, `intervention`, `pairs`;
        `gain`, `low`, `high`: the change of accuracy with its 95 % interval over pairs and tasks,
        percentage points (of the base 0); and each measure's mean.

    Raises:
        metanb.runs.records.RecordError: a measure of a run is missing.
        ValueError: the runs are of several settings, scales or sets of images.
    """
    rows = []
    for algorithm, cells in group_by_algorithm(records).items():
        for name in (name for name in BY_NAME if name in cells and BASE.name in cells):
            pairs = pair_by_seed(cells[name], cells[BASE.name])
            if not pairs:
                continue
            after, base = values_at_the_end(pairs, "final_accuracy")
            gain = Interval(0.0, 0.0, 0.0, 1.0)
            if name != BASE.name:
                gain = effect_of(Expectation.STAYS, after, base)
            row = {"algorithm": algorithm, "intervention": name, "pairs": len(pairs)}
            row |= {"gain": gain.mean, "low": gain.low, "high": gain.high}
            for measure in measures:
                row[measure] = np.mean([value_at_the_end(run, measure)[0] for run, _ in pairs])
            rows.append(row)
    return pd.DataFrame(rows)


class _Place(NamedTuple):
    """Where interventions are compared: all but the intervention and the seed is the same.

    Attributes:
        dataset: the data set's key.
        content: of images of one's own.
        setting: ways and shots, as rows name them.
        scale: "quick" or "paper".
        algorithm: the algorithm's key.
    """

    dataset: str
    content: str
    setting: str
    scale: str
    algorithm: str


def group_by_algorithm(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Finished runs of one setting by algorithm and by intervention.

    Raises:
        ValueError: the runs are of several settings, scales or sets of images.
    """
    places = _group_by_place(records)
    several = {place[:-1] for place in places}
    if len(several) > 1:
        names = " and ".join(" ".join(filter(None, names)) for names in sorted(several))
        raise ValueError(f"runs of {names} cannot be compared: give those of one")
    return {place.algorithm: cells for place, cells in places.items()}


def _group_by_place(records: Iterable[Record]) -> dict[_Place, dict[str, list[Record]]]:
    """Finished runs by place and by intervention."""
    places: dict[_Place, dict[str, list[Record]]] = {}
    finished = [run for run in keep_furthest(records) if run.finished]
    for cell in group_into_cells(finished):
        settings = cell[0].settings
        if known := find_intervention(settings):
            scale, intervention = known
            images = settings.dataset, settings.content
            place = _Place(*images, settings.setting, scale, settings.algorithm)
            places.setdefault(place, {})[intervention.name] = cell
    return places


def judge_predictions(records: Iterable[Record]) -> list[PredictionRow]:
    """Judge each prediction on each setting, scale and algorithm that has runs of it.

    Runs of no intervention are left out, and so are runs that were stopped early.

    Raises:
        metanb.runs.records.RecordError: a measure of a run is missing.
    """
    places = _group_by_place(records)
    rows = []
    for prediction in PREDICTIONS:
        for place, cells in places.items():
            is_there = prediction.intervention in cells and BASE.name in cells
            if is_there and place.algorithm in prediction.algorithms:
                if row := _judge_prediction(prediction, place, cells):
                    rows.append(row)
    return rows


def judge_predictions_apart(
    book: Iterable[Record], own: Iterable[Record]
) -> tuple[list[PredictionRow], list[PredictionRow]]:
    """Judge the book's runs alone, and then the predictions that one's own runs belong to.

    A row with own runs judges them together with the book's. Smoke runs are left out.

    Args:
        book: the book's records.
        own: one's own. One that reaches no further than the book's record of the same run adds
            nothing.

    Returns:
        The book's rows, and those with own runs.

    Raises:
        metanb.runs.records.RecordError: as `judge_predictions` does.
    """
    book, own = ([run for run in runs if scale_of(run.settings) != "smoke"] for runs in (book, own))
    added = {run.settings.id for run in keep_new(own, book)}
    joint = judge_predictions([*book, *own]) if added else []
    return judge_predictions(book), [row for row in joint if not added.isdisjoint(row.ids)]


def _judge_prediction(
    prediction: Prediction, place: _Place, cells: dict[str, list[Record]]
) -> PredictionRow | None:
    """The row of one prediction in one place, where its cell and the base's are.

    None if they have no seed in common, or if the rule takes several step sizes and only the base's
    is there.
    """
    pairs = pair_by_seed(cells[prediction.intervention], cells[BASE.name])
    if not pairs:
        return None
    after, base = values_at_the_end(pairs, prediction.measure)
    if prediction.expected == Expectation.FOLLOWS:
        if not any(name in cells for name in INNER_STEPS):
            return None
        slopes, errors, compared = _slopes(cells, prediction.measure)
        effect = interval(slopes, shared=errors)
        alone = interval(slopes)
        runs = len(slopes)
    else:
        compared = [run for pair in pairs for run in pair]
        effect = effect_of(prediction.expected, after, base)
        alone = effect_of(prediction.expected, after * [1, 0], base * [1, 0])
        runs = len(pairs)
    return PredictionRow(
        prediction=prediction,
        algorithm=place.algorithm,
        dataset=place.dataset,
        setting=place.setting,
        scale=place.scale,
        before=float(base[:, 0].mean()),
        after=float(after[:, 0].mean()),
        effect=effect.mean,
        low=effect.low,
        high=effect.high,
        runs=runs,
        outcome=outcome_by_interval(prediction.expected, effect, runs),
        over_runs_alone=outcome_by_interval(prediction.expected, alone, runs),
        ids=tuple(dict.fromkeys(run.settings.id for run in compared)),
    )


def values_at_the_end(
    pairs: Sequence[tuple[Record, Record]], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """What `cells.value_at_the_end` gives, [pairs, 2]: of the interventions, and of their bases."""
    after, base = (
        np.array([value_at_the_end(run, measure) for run in runs])
        for runs in zip(*pairs, strict=True)
    )
    return after, base


def effect_of(expected: Expectation, after: np.ndarray, base: np.ndarray) -> Interval:
    """The effect that the expectation's rule is about.

    Args:
        expected: what is expected.
        after: the intervention's values and their errors, [pairs, 2].
        base: the base's, likewise.
    """
    if expected == Expectation.COLLAPSES:
        return ratio_interval(after[:, 0], base[:, 0], after[:, 1], base[:, 1])
    unit = 100 if expected == Expectation.STAYS else 1
    return change_of(unit * after, unit * base)


def change_of(after: np.ndarray, base: np.ndarray, level: float = 0.95) -> Interval:
    """The change from the base, over pairs of runs and tasks.

    Args:
        after: the intervention's values and their errors, [pairs, 2].
        base: the base's, likewise.
        level: of the interval.
    """
    errors = np.hypot(after[:, 1], base[:, 1])
    return interval(after[:, 0] - base[:, 0], level=level, shared=errors)


def _slopes(
    cells: dict[str, list[Record]], measure: str
) -> tuple[list[float], list[float], list[Record]]:
    """Slopes of log measure on log step size, one per seed that has all step sizes.

    Returns:
        The slopes, their standard errors over tasks, and the runs.
    """
    names = [BASE.name, *INNER_STEPS]
    by_seed: dict[int, list[Record]] = {}
    for name in names:
        for run in cells.get(name, []):
            by_seed.setdefault(run.settings.seed, []).append(run)
    complete = [runs for runs in by_seed.values() if len(runs) == len(names)]

    slopes, errors = [], []
    for runs in complete:
        log_sizes = np.log([run.settings.inner_lr for run in runs])
        values = np.array([value_at_the_end(run, measure) for run in runs])
        weights = log_sizes - log_sizes.mean()
        weights /= weights @ weights
        slopes.append(float(weights @ np.log(values[:, 0])))
        errors.append(float(np.linalg.norm(weights * values[:, 1] / values[:, 0])))
    return slopes, errors, [run for runs in complete for run in runs]


def outcome_by_interval(expected: Expectation, effect: Interval, runs: int) -> Outcome:
    """What the runs say about a prediction, by the interval of its effect.

    Args:
        expected: what is expected; the module says what its rule is.
        effect: its mean and interval.
        runs: number of pairs.
    """
    if runs < MIN_RUNS:
        return Outcome.TOO_FEW
    low, high = _expected_range(expected)
    if low < effect.low and effect.high < high:
        return Outcome.PREDICTED
    # Refuted beyond the range; beyond 0 where the range begins there.
    return Outcome.REFUTED if effect.low > high or effect.high < low else Outcome.OPEN


def _expected_range(expected: Expectation) -> tuple[float, float]:
    """Where the interval of the effect lies if the prediction is right."""
    ranges = {
        Expectation.STAYS: (-MARGIN, MARGIN),
        Expectation.COLLAPSES: (-np.inf, HALF),
        Expectation.RISES: (0.0, np.inf),
        Expectation.FALLS: (-np.inf, 0.0),
        Expectation.FOLLOWS: (-1.5, -0.5),
    }
    return ranges[expected]


def prediction_table(rows: Sequence[PredictionRow]) -> pd.DataFrame:
    """The predictions for people: one row each, all as text."""
    columns = {
        "intervention": [row.prediction.intervention for row in rows],
        "algorithm": [name_of(row.algorithm) for row in rows],
        "data": [f"{name_of(row.dataset)}, {row.setting}, {row.scale}" for row in rows],
        "predicted": [
            f"{label_of(row.prediction.measure)} {row.prediction.expected}" for row in rows
        ],
        "before, after": [row.shown_ends for row in rows],
        "effect, 95 % interval": [row.change for row in rows],
        "pairs": [str(row.runs) for row in rows],
        "outcome": [row.outcome.value for row in rows],
    }
    return pd.DataFrame(columns)


def describe_predictions(rows: Sequence[PredictionRow]) -> str:
    """How many predictions came true, in a sentence of Markdown: in all, and kind by kind.

    Args:
        rows: the predictions.

    Example:
        >>> describe_predictions([])
        'No prediction is tested here.'
    """
    if not rows:
        return "No prediction is tested here."
    tested = [row for row in rows if row.outcome != Outcome.TOO_FEW]
    kinds: dict[str, list[Outcome]] = {}
    for row in tested:
        kind = f"{label_of(row.prediction.measure)} {row.prediction.expected}"
        kinds.setdefault(kind, []).append(row.outcome)
    counts = [
        f"{sum(row.outcome == outcome for row in rows)} {outcome}"
        for outcome in Outcome
        if any(row.outcome == outcome for row in rows)
    ]
    by_kind = [
        f"{kind}: {outcomes.count(Outcome.PREDICTED)} of {len(outcomes)}"
        for kind, outcomes in kinds.items()
    ]
    text = f"**The predictions**, {len(rows)} of them: {', '.join(counts)}."
    if empty := _empty_predictions(tested):
        text += (
            f" {len(empty)} of those as predicted {'shows' if len(empty) == 1 else 'show'} "
            "nothing: accuracy stays, but the intervention is not seen to move what it is meant to "
            "move."
        )
    if by_kind:
        text += f" Kind by kind, as predicted: {'; '.join(by_kind)}."
    return text


def _empty_predictions(rows: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Those that accuracy stays, and does, under interventions that are seen to move nothing."""
    moving = (Expectation.COLLAPSES, Expectation.RISES, Expectation.FALLS)
    outcomes: dict[tuple[str, ...], set[Outcome]] = {}
    for row in rows:
        if row.prediction.expected in moving:
            outcomes.setdefault(row.comparison, set()).add(row.outcome)
    return [
        row
        for row in rows
        if row.prediction.expected == Expectation.STAYS
        and row.outcome == Outcome.PREDICTED
        and outcomes.get(row.comparison) == {Outcome.OPEN}
    ]


def predictions_in_lines(rows: Iterable[PredictionRow], width: int = 80) -> str:
    """The predictions for a terminal: a heading per setting and algorithm, lines per prediction.

    Args:
        rows: the predictions.
        width: columns that a line may take.
    """
    groups: dict[str, list[PredictionRow]] = {}
    for row in rows:
        place = f"{name_of(row.dataset)}, {row.setting}, {name_of(row.algorithm)}, {row.scale}"
        groups.setdefault(place, []).append(row)
    blocks = []
    for place, of_place in groups.items():
        lines = [place]
        for row in of_place:
            expected = f"{label_of(row.prediction.measure)} {row.prediction.expected}"
            text = (
                f"{row.prediction.intervention}: {expected}: {row.outcome}; {row.change}, "
                f"{row.runs} {'pair' if row.runs == 1 else 'pairs'}"
            )
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def predictions_as_json(
    rows: Iterable[PredictionRow], own_rows: Iterable[PredictionRow] = ()
) -> str:
    """The predictions for machines: a list of objects; a number that is not finite becomes null.

    Args:
        rows: the predictions.
        own_rows: those to which one's own runs belong; their objects have "own": true.
    """
    objects = []
    for row, is_own in [*((row, False) for row in rows), *((row, True) for row in own_rows)]:
        values = asdict(row)
        prediction = values.pop("prediction")
        del prediction["algorithms"]
        numbers = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in values.items()
        }
        objects.append(prediction | numbers | {"own": is_own})
    return json.dumps(objects, indent=1)


def label_of(measure: str) -> str:
    """What readers call a measure."""
    return "accuracy" if measure == "final_accuracy" else describe_measure(measure).label
