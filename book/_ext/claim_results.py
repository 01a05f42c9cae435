"""Each claim's verdicts in words, and what interventions say beside them.

Every conclusion in words is chosen by a condition on the records, so that other records give other
words.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from formats import PLACES, capitalise

from metanb.claims import rules
from metanb.claims.paper import CLAIMS
from metanb.claims.predictions import Expectation, Outcome, PredictionRow
from metanb.claims.verdicts import Row, Verdict
from metanb.labels import name_of


def verdicts_in_words(rows: Iterable[Row]) -> str:
    """How many cells got which verdict, in Markdown, the most frequent verdict first.

    Rows of too few runs are left out, and so is what follows a verdict's colon. The rows of C7 are
    comparisons: each cell of finetuning meets two algorithms.
    """
    tested = [row for row in rows if row.verdict != Verdict.TOO_FEW]
    if not tested:
        return "not yet run"
    noun = "comparison" if tested[0].claim == "C7" else "cell"
    counts = Counter(str(row.verdict).partition(":")[0] for row in tested).most_common()
    if len(counts) == 1:
        number = f"the one {noun}" if len(tested) == 1 else f"all {len(tested)} {noun}s"
        return f"**{counts[0][0]}** in {number}"
    listed = ", ".join(f"**{word}** in {n}" for word, n in counts)
    return f"{listed}, of {len(tested)} {noun}s"


def at_both_scales(rows: Sequence[Row]) -> str:
    """The verdicts at the paper's settings, and in the smaller version."""
    phrases = [
        f"{place}: {verdicts_in_words(row for row in rows if row.scale == scale)}"
        for scale, place in PLACES.items()
        if any(row.scale == scale for row in rows)
    ]
    return "; ".join(phrases)


def is_control(row: Row) -> bool:
    """Whether a row asks what else could explain a claim that holds in the paper's form."""
    form = row.variant.split(",")[0]
    if row.claim == "C7":
        return form != "fresh head"
    return form in (rules.SCALE_FREE, rules.RELATIVE, "random")


CONTROL_PHRASES = {
    "C1": "By a measure that rescaling the convolutions does not change",
    "C3": "Divided by the norm of the weights",
    "C4": "By a measure that rescaling the convolutions does not change",
    "C7": "With other heads for the finetuned network",
    "C8": "With a random direction in place of the common one",
}


def claim_results(rows: Sequence[Row], outcomes: Sequence[PredictionRow]) -> str:
    """An item per claim: its verdicts at both scales, then the control that may change them.

    Args:
        rows: the ledger.
        outcomes: what came of the predictions, the control of C5 and C6.
    """
    items = []
    sentences: list[str] = []  # what interventions do, said once
    for claim in CLAIMS:
        of_claim = [row for row in rows if row.claim == claim.name]
        verdicts = at_both_scales([row for row in of_claim if row.as_in_paper])
        item = f"- **{claim.name}**, {claim.text}. {capitalise(verdicts or 'not yet run')}."
        controls = [row for row in of_claim if is_control(row)]
        if controls:
            item += f" {CONTROL_PHRASES[claim.name]}, {at_both_scales(controls)}."
        if claim.name in ("C5", "C6"):
            text = without_coherence(outcomes, claim.measure)
            item += (
                " The same interventions take this coherence away." if text in sentences else text
            )
            sentences += [text] if text else []
        items.append(item)
    return "\n".join(items)


def accuracy_without(outcomes: Iterable[PredictionRow], measure: str) -> list[PredictionRow]:
    """What accuracy does under the interventions that are seen to take most of a coherence away.

    Args:
        outcomes: what came of the predictions.
        measure: the coherence.
    """
    outcomes = list(outcomes)
    taken = {
        row.comparison
        for row in outcomes
        if row.prediction.measure == measure
        and row.prediction.expected == Expectation.COLLAPSES
        and row.outcome == Outcome.PREDICTED
    }
    return [
        row
        for row in outcomes
        if row.comparison in taken
        and row.prediction.measure == "final_accuracy"
        and row.prediction.expected == Expectation.STAYS
    ]


def without_coherence(outcomes: Iterable[PredictionRow], measure: str) -> str:
    """A sentence on accuracy where a coherence is taken away; empty where it was taken nowhere."""
    rows = accuracy_without(outcomes, measure)
    if not rows:
        return ""
    names = name_interventions(rows)
    effects = "; ".join(f"{row.change} by {names[row]}" for row in rows)
    algorithms = " and ".join(sorted({name_of(row.algorithm) for row in rows}))
    many = len(rows) > 1
    return (
        f" The intervention{'s' if many else ''} that take{'' if many else 's'} most of this "
        f"coherence away from {algorithms} change{'' if many else 's'} accuracy: {effects}."
    )


def name_interventions(rows: Sequence[PredictionRow]) -> dict[PredictionRow, str]:
    """Interventions as a sentence names them, with their settings where these differ."""
    differ = len({(row.dataset, row.setting) for row in rows}) > 1
    return {
        row: f"the {row.prediction.intervention.removesuffix(' at meta-test')}"
        + (f" ({name_of(row.dataset)}, {row.setting})" if differ else "")
        for row in rows
    }
