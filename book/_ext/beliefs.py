"""What a reader may believe now: an item per question, for the discussion.

Every conclusion in words is chosen by a condition on the records, so that other records give other
words.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from claim_results import accuracy_without, name_interventions, verdicts_in_words
from formats import PLACES, capitalise, enumerate_words
from published import GAIN_SETTING

from metanb.claims import predictions, rules
from metanb.claims.companions import SUBJECTS, MeasureRole, Role, find_roles
from metanb.claims.paper import PAPER_GAIN
from metanb.claims.predictions import Outcome, PredictionRow
from metanb.claims.verdicts import Row, Verdict
from metanb.grids.definitions import base_runs
from metanb.labels import name_of
from metanb.runs.records import Record
from metanb.settings import scale_of

# The data, ways and shots with most runs and with all interventions: chapters begin with them.
MAIN = ("omniglot", 5, 1)
# Where accuracy and coherence are seen to rise together over epochs.
TOGETHER = (Verdict.TREND_ONLY, Verdict.WITHIN_RUNS, Verdict.POWERLESS, Verdict.REPRODUCED)
# Where finetuning's trajectories are nearly orthogonal, whatever meta-training's are.
NEARLY_ORTHOGONAL = (Verdict.NOT_SET_APART, Verdict.REPRODUCED)


def share_words(rows: Sequence[Row]) -> str:
    """Of how many judged rows the claim is reproduced: "4 of 5"."""
    judged = [row for row in rows if row.verdict.is_judged]
    return f"{sum(row.verdict == Verdict.REPRODUCED for row in judged)} of {len(judged)}"


def reproduced_share(rows: Sequence[Row]) -> float:
    """The share of judged rows that are reproduced; NaN without any."""
    judged = [row.verdict == Verdict.REPRODUCED for row in rows if row.verdict.is_judged]
    return float(np.mean(judged)) if judged else np.nan


def belief_in_flatness(rows: Sequence[Row]) -> str:
    """C1: whether solutions become flatter, and whether they do so by a second measure."""
    phrases = []
    for scale, place in PLACES.items():
        of_scale = [row for row in rows if row.claim == "C1" and row.scale == scale]
        plain = [row for row in of_scale if row.as_in_paper]
        scale_free = [row for row in of_scale if row.variant == rules.SCALE_FREE]
        if not any(row.verdict.is_judged for row in plain):
            continue
        phrase = (
            f"{place} the Hessian norm falls in {share_words(plain)} cells, and adaptive "
            f"sharpness (scale-free) in {share_words(scale_free)}"
        )
        seldom = reproduced_share(scale_free) < reproduced_share(plain) / 2
        phrases.append(phrase + (", less than half as often" if seldom else ""))
    if not phrases:
        return ""
    return f"**Are adapted solutions flatter?** {capitalise('; '.join(phrases))}."


def belief_in_worse(rows: Sequence[Row]) -> str:
    """C4: where accuracy falls at all, and what flatness does there."""
    c4 = [row for row in rows if row.claim == "C4"]
    plain = [row for row in c4 if row.as_in_paper]
    judged = [row for row in plain if row.verdict.is_judged]
    cells = sum(row.verdict != Verdict.TOO_FEW for row in plain)
    text = "**Does flatness go with generalisation?** "
    if not judged:
        return (
            text + f"Accuracy is seen to fall in none of {cells} cells, so nothing here tests it."
        )
    scale_free = [row for row in c4 if row.variant == rules.SCALE_FREE and row.verdict.is_judged]
    at_paper = sum(row.scale == "paper" for row in judged)
    text += f"Accuracy is seen to fall in {len(judged)} of {cells} cells, {at_paper or 'none'} of "
    text += "them at the paper's settings. In these cells the Hessian norm goes on falling in "
    text += f"{share_words(judged)}, and the scale-free measure in {share_words(scale_free)}"
    if reproduced_share(scale_free) == 1:
        text += ": a flatter solution is not a better one"
    rises = sum(row.verdict == Verdict.CONTRARY for row in scale_free)
    if rises:
        text += f"; it rises in {rises}"
    return text + "."


def belief_in_coherence(rows: Sequence[Row], outcomes: Sequence[PredictionRow]) -> str:
    """C5 and C6: a shared trend or more, what happens where accuracy falls, and interventions."""
    judged = [row for row in rows if row.claim in ("C5", "C6") and row.verdict.is_judged]
    if not judged:
        return ""
    together = sum(row.verdict in TOGETHER for row in judged)
    whole = sum(row.verdict == Verdict.REPRODUCED for row in judged)
    text = (
        f"**Does coherence go with accuracy?** The two rise together over epochs in {together} of "
        f"{len(judged)} tests, and in {whole or 'none'} of these also from epoch to epoch, beyond "
        "the trend that all runs share, and from run to run."
    )
    steps = sum(row.verdict == Verdict.POWERLESS for row in judged)
    if steps:
        text += (
            f" In {steps} they go together beyond that trend, with too few runs to compare across "
            "them."
        )
    falling = {row.ids for row in rows if row.claim == "C4" and row.verdict.is_judged}
    there = [row for row in judged if row.ids in falling]
    if there:
        verdicts = [
            f"{claim} {verdicts_in_words(of_claim)}".removesuffix(" in the one cell")
            for claim in ("C5", "C6")
            if (of_claim := [row for row in there if row.claim == claim])
        ]
        text += (
            " The verdicts over all epochs, where accuracy falls late in training: "
            f"{'; '.join(verdicts)}. [Chapter 5](../notebooks/5-overfitting.ipynb) has the halves "
            "where classes are few."
        )
    text += accuracy_without_coherence(outcomes)
    if not whole:
        text += " Nothing here shows that coherence is a cause."
    return text


def accuracy_without_coherence(outcomes: Iterable[PredictionRow]) -> str:
    """Sentences on which interventions take trajectory coherence away and leave accuracy."""
    rows = accuracy_without(outcomes, "trajectory_coherence")
    if not rows:
        return ""
    names = name_interventions(rows)
    stays = [names[row] for row in rows if row.outcome == Outcome.PREDICTED]
    changes = [names[row] for row in rows if row.outcome != Outcome.PREDICTED]
    margin = f"within ± {predictions.MARGIN:g} points"
    text = f" {_place_of(rows)}, without most of the coherence, "
    if stays:
        text += f"accuracy stays {margin} under {enumerate_words(stays)}"
    if changes:
        text += ", and not " if stays else f"accuracy does not stay {margin} "
        text += f"under {enumerate_words(changes)}"
        text += " ([why that does not decide](../notebooks/8-causes.ipynb))" if stays else ""
    return f"{text}."


def _place_of(rows: Iterable[PredictionRow]) -> str:
    """The algorithms, settings and scales of some predictions, as a sentence begins with them."""
    places = {
        f"under {name_of(row.algorithm)} on {name_of(row.dataset)} {row.setting} "
        f"{PLACES[row.scale]}"
        for row in rows
    }
    return capitalise(enumerate_words(sorted(places)))


def belief_in_finetuning(rows: Sequence[Row]) -> str:
    """C7: how many cells have a baseline that works, and what sets them apart from meta-training.

    A finetuned cell has a row beside MAML and another beside first-order MAML.
    """
    fresh = [row for row in rows if row.claim == "C7" and row.as_in_paper]
    works = [row for row in fresh if row.verdict.is_judged]
    broken = [row for row in fresh if row.verdict == Verdict.NO_BASELINE]
    if not works and not broken:
        return ""
    cells = count_cells(works)
    text = (
        "**Is finetuning nearly orthogonal?** The finetuned network works in "
        f"{cells} of {count_cells(works + broken)} cells"
    )
    if not works:
        return text + "."
    orthogonal = [row for row in works if row.verdict in NEARLY_ORTHOGONAL]
    text += f", and its trajectories are nearly orthogonal in {count_cells(orthogonal)} of these"
    return f"{text}. {set_apart(orthogonal)}" if orthogonal else f"{text}."


def count_cells(rows: Iterable[Row]) -> int:
    """How many finetuned cells some rows of C7 are about."""
    return len({(row.dataset, row.setting, row.scale, row.apart) for row in rows})


def set_apart(rows: Iterable[Row]) -> str:
    """A sentence: in how many comparisons each algorithm's coherence lies above the bound of C7."""
    by_partner: dict[str, list[Row]] = {}
    for row in rows:
        by_partner.setdefault(row.beside, []).append(row)
    phrases = [f"under {name} in {share_words(of_name)}" for name, of_name in by_partner.items()]
    return (
        f"Meta-training's coherence is seen to lie above {rules.ORTHOGONAL:g} "
        f"{enumerate_words(phrases)}."
    )


def belief_in_gain(rows: Sequence[Row]) -> str:
    """C8 where the paper gives its figure: our gains beside the paper's."""
    dataset, ways, shots = GAIN_SETTING
    judged = [
        row
        for row in rows
        if row.claim == "C8"
        and row.as_in_paper
        and (row.dataset, row.setting) == (dataset, f"{ways}-way {shots}-shot")
        and row.verdict.is_judged
    ]
    if not judged:
        return ""
    text = (
        f"**Does the regulariser help?** The paper reports a gain of {PAPER_GAIN:.2f} points, by "
        "our source under MAML. "
    )
    phrases = []
    for row in sorted(judged, key=lambda row: list(PLACES).index(row.scale)):
        if row.low > 0:
            conclusion = "which is a gain"
        elif row.high < PAPER_GAIN:
            conclusion = "which is less than the paper's"
        else:
            conclusion = "which includes both no gain and the paper's"
        reached = f", {row.reached}" if row.reached else ""
        phrases.append(
            f"{row.change} under {name_of(row.algorithm)} {PLACES[row.scale]}{reached}, "
            f"{conclusion}"
        )
    place = f"{name_of(dataset)} {ways}-way {shots}-shot"
    return text + f"Our change on {place}, at strengths of our choice: {'; '.join(phrases)}."


def main_roles(recorded: Iterable[Record]) -> list[MeasureRole]:
    """What each measure in SUBJECTS is to accuracy, by the interventions in the main setting."""
    base = {settings.unseeded for settings in base_runs("quick", *MAIN, [0], ["maml", "fomaml"])}
    of_main = [
        run
        for run in recorded
        if (run.settings.dataset, run.settings.ways, run.settings.shots) == MAIN
        and scale_of(run.settings) == "quick"
    ]
    plain = [run for run in of_main if run.settings.unseeded in base]
    return find_roles(of_main, plain, list(SUBJECTS))


def belief_in_causes(roles: Iterable[MeasureRole]) -> str:
    """Which measures move while accuracy stays, and are no main causes of it; by algorithm."""
    ruled_out: dict[str, list[str]] = {}
    for role in roles:
        if role.role in (Role.COMPANION, Role.NEITHER):
            ruled_out.setdefault(role.algorithm, []).append(SUBJECTS[role.measure])
    if not ruled_out:
        return ""
    dataset, ways, shots = MAIN
    phrases = [f"under {name_of(key)} {enumerate_words(names)}" for key, names in ruled_out.items()]
    return (
        f"**What is no main cause of accuracy?** On {name_of(dataset)}, {ways}-way {shots}-shot, "
        "interventions move these more than twofold while accuracy stays within "
        f"± {predictions.MARGIN:g} points: {'; '.join(phrases)}. "
        "[Chapter 8](../notebooks/8-causes.ipynb) has the interventions, and what they leave open."
    )


def belief_in_inner_loss(pairs: Iterable[tuple[Row, Row]]) -> str:
    """How many verdicts in the paper's form another inner loss leaves, and which it changes."""
    pairs = [pair for pair in pairs if pair[0].as_in_paper]
    if not pairs:
        return ""
    differ = [mean for mean, summed in pairs if mean.verdict != summed.verdict]
    text = (
        "**Does the choice of inner loss matter?** The sum of Finn's code in place of the mean "
        f"leaves {len(pairs) - len(differ)} of {len(pairs)} verdicts as they are"
    )
    if differ:
        claims = enumerate_words(sorted({row.claim for row in differ}))
        text += f", and changes some of {claims}"
    return f"{text} ([both](inner-losses))."


def beliefs(
    rows: Sequence[Row],
    outcomes: Sequence[PredictionRow],
    roles: Iterable[MeasureRole],
    inner_losses: Iterable[tuple[Row, Row]],
) -> str:
    """What a reader may believe now, an item per question."""
    texts = [
        belief_in_flatness(rows),
        belief_in_worse(rows),
        belief_in_coherence(rows, outcomes),
        belief_in_causes(roles),
        belief_in_finetuning(rows),
        belief_in_gain(rows),
        belief_in_inner_loss(inner_losses),
    ]
    return "\n".join(f"- {text}" for text in texts if text)
