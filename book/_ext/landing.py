"""Sphinx extension: the findings on the book's first page, computed when the book is built.

A finding is a sentence with numbers from the records, and the condition under which it is true.
Where the records no longer support a finding, the build stops: its words have to change.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from beliefs import (
    MAIN,
    NEARLY_ORTHOGONAL,
    TOGETHER,
    count_cells,
    reproduced_share,
    set_apart,
    share_words,
)
from committed import committed_runs, judged_on_paper_data
from formats import format_iterations
from published import GAIN_SETTING, pairs_of_gain
from sphinx.errors import ExtensionError

from metanb.claims import rules
from metanb.claims.agreement import late
from metanb.claims.cells import curves_with_accuracy, late_values
from metanb.claims.paper import PAPER_GAIN
from metanb.claims.predictions import MARGIN, compare_interventions
from metanb.claims.run_stats import (
    Interval,
    correlate_over_epochs,
    correlate_own_steps,
    correlation_power,
    interval,
)
from metanb.claims.verdicts import Row, Verdict
from metanb.grids.interventions import BY_NAME, intervention_runs
from metanb.labels import name_of
from metanb.runs.records import Record
from metanb.settings import Scale, preset

CENTRED = "centred head at meta-test"
OTHER_HEADS = ("zero head", "shared head")  # take coherence away in meta-training


class FindingError(ExtensionError):
    """The records no longer support a finding of the first page."""


@dataclass(frozen=True)
class Finding:
    """A finding of the first page.

    Attributes:
        text: Markdown, with its numbers.
        holds: whether the records support every word of it.
    """

    text: str
    holds: bool


NO_CELLS = Finding("The cells that this finding names are not there.", holds=False)


@dataclass(frozen=True)
class Evidence:
    """The records, and the verdicts on them."""

    records: Sequence[Record]
    rows: Sequence[Row]

    def judged(self, claim: str, form: str = "", scale: str = "") -> list[Row]:
        """The judged rows of a claim.

        Args:
            claim: "C1" to "C8".
            form: a control's name; "": the paper's own form.
            scale: of the runs; "": all.
        """
        return [
            row
            for row in self.rows
            if row.claim == claim
            and (row.variant == form if form else row.as_in_paper)
            and scale in ("", row.scale)
            and row.verdict.is_judged
        ]

    def runs(self, ids: Collection[str]) -> list[Record]:
        """The records of these runs."""
        return [run for run in self.records if run.settings.id in ids]

    def correlate_late(self, ids: Collection[str], measure: str) -> tuple[Interval, Interval]:
        """A measure's correlation with accuracy over the second half of a cell's epochs.

        Returns:
            That of the values, and that of the runs' own steps.
        """
        pairs = [
            (x[len(x) // 2 :], y[len(y) // 2 :])
            for x, y in curves_with_accuracy(self.runs(ids), measure)
        ]
        return correlate_over_epochs(pairs), correlate_own_steps(pairs)

    def raises_coherence(self, row: Row) -> bool:
        """Whether the regulariser of a row of C8 is seen to raise late trajectory coherence."""
        by_id = {run.settings.id: run for run in self.records}
        with_it, without = (
            late_values(runs, "trajectory_coherence") for runs in pairs_of_gain(row, by_id)
        )
        return interval(with_it - without).low > 0

    def base_runs(
        self, algorithm: str, setting: tuple[str, int, int] = MAIN, scale: Scale = "quick"
    ) -> list[Record]:
        """The runs of a setting in which nothing else differs from its scale."""
        base = preset(scale, *setting, algorithm=algorithm).unseeded
        return [run for run in self.records if run.settings.unseeded == base]


def committed_evidence() -> Evidence:
    """The committed runs, and the verdicts on the paper's own data."""
    return Evidence(committed_runs(), judged_on_paper_data())


def count(rows: Sequence[Row], verdict: Verdict) -> int:
    """How many rows have a verdict."""
    return sum(row.verdict == verdict for row in rows)


def find_flatness(evidence: Evidence) -> Finding:
    """C1 and C3, and their controls."""
    falls = evidence.judged("C1")
    small, large = (evidence.judged("C1", rules.SCALE_FREE, scale) for scale in ("quick", "paper"))
    further = evidence.judged("C3")
    whole = [row for row in large if not row.reached]
    relative_small, relative = (
        evidence.judged("C3", rules.RELATIVE, scale) for scale in ("quick", "paper")
    )
    back = count(relative, Verdict.CONTRARY)
    text = (
        "**Adapted solutions get flatter by the paper's measure, often not by a scale-free one.** "
        f"The Hessian norm falls over meta-training in {share_words(falls)} cells. Growing weights "
        "alone would lower it, too. Adaptive sharpness, which stays the same when convolutions are "
        f"rescaled, falls in {share_words(small)} cells of the smaller version, rises in "
        f"{count(small, Verdict.CONTRARY)}, and falls in {share_words(large)} at the paper's "
        f"settings ({share_words(whole)} at full length). The distance to the adapted solution "
        f"grows in {share_words(further)} cells. Relative to the weights' norm it grows in "
        f"{share_words(relative_small)} of the smaller version, and shrinks in {back} of "
        f"{len(relative)} at the paper's settings."
    )
    most = [reproduced_share(rows) > 0.5 for rows in (falls, large, further, relative_small)]
    holds = all(most) and reproduced_share(small) <= 0.5 and back > len(relative) / 2
    return Finding(text, holds and bool(whole))


def find_worse(evidence: Evidence) -> Finding:
    """C4, where accuracy falls: with few classes, and with another inner loss."""
    plain = evidence.judged("C4")
    scale_free = evidence.judged("C4", rules.SCALE_FREE)
    if len(plain) != 2:
        return NO_CELLS
    by_id = {run.settings.id: run.settings for run in evidence.records}
    settings = [by_id[row.ids[0]] for row in plain]
    text = (
        "**Flatter need not mean better.** Accuracy on new tasks is seen to fall late in "
        f"{len(plain)} cells. In one, with {settings[0].train_classes} classes to "
        "learn from, the Hessian norm goes on falling meanwhile, as the paper says: "
        f"{plain[0].change}. In the other, whose inner loss is the sum in the code of Finn et "
        f"al. (2017), it is not seen to fall: {plain[1].change}. Adaptive sharpness falls in "
        "neither, and rises in the second."
    )
    holds = [row.verdict for row in plain] == [Verdict.REPRODUCED, Verdict.NOT_SEEN]
    holds &= [row.verdict for row in scale_free] == [Verdict.NOT_SEEN, Verdict.CONTRARY]
    holds &= [of_cell.inner_loss for of_cell in settings] == ["mean", "sum"]
    holds &= [of_cell.train_classes > 0 for of_cell in settings] == [True, False]
    return Finding(text, holds)


def find_coherence(evidence: Evidence) -> Finding:
    """C5 and C6: the trend, seldom more; and where their sign turns."""
    rows = evidence.judged("C5") + evidence.judged("C6")
    together = sum(row.verdict in TOGETHER for row in rows)
    trend = count(rows, Verdict.TREND_ONLY)
    turned = [row for row in evidence.judged("C5") if row.verdict == Verdict.OPPOSITE_TREND]
    whole = [row for row in turned if row.scale == "paper" and not row.reached]
    falling = [row.ids for row in evidence.judged("C4")]
    if len(whole) != 1 or len(falling) != 2:
        return NO_CELLS
    drifts, steps = zip(
        *(evidence.correlate_late(ids, "gradient_coherence") for ids in falling), strict=True
    )
    text = (
        "**Coherence and accuracy often rise together; hardly more than a shared trend is seen.** "
        f"Over epochs they go together in {together} of {len(rows)} comparisons; in {trend} of "
        "these nothing is seen beyond the trend that all runs of the cell share. No cell has "
        "enough runs to show that the more coherent ones are the more accurate ones. In "
        f"{len(turned)} cells trajectory coherence goes *against* accuracy, again as a shared "
        f"trend; one of them has the paper's settings and full length (first-order MAML, "
        f"r = {whole[0].change}). Where accuracy falls late, in {len(falling)} cells, gradient "
        "coherence goes against it, too, as a shared trend (over the second half of training, a "
        "cut that we chose after seeing the runs)."
    )
    rising = [
        row.ids for row in evidence.rows if row.claim == "C4" and row.verdict == Verdict.NO_CASE
    ]
    holds = not count(rows, Verdict.REPRODUCED) and trend > 0.9 * together
    holds &= not count(evidence.judged("C5"), Verdict.CONTRARY)
    holds &= correlation_power(max(row.runs for row in rows), rules.STRONG) < rules.POWER
    holds &= whole[0].algorithm == "fomaml" and whole[0].ids in rising
    holds &= all(r.high < 0 for r in drifts) and all(r.high > 0 for r in steps)
    return Finding(text, holds)


def find_agreement(evidence: Evidence) -> Finding:
    """Chapters 7 and 8: what first-order MAML's tasks agree on, and what comes of removing it."""
    names = ("base", CENTRED, *OTHER_HEADS)
    plans = {
        run.unseeded
        for name in names
        for run in intervention_runs("quick", *MAIN, [0], "fomaml", BY_NAME[name])
    }
    runs = [run for run in evidence.records if run.settings.unseeded in plans]
    table = compare_interventions(runs).set_index("intervention")
    base, changed = (table.loc[name] for name in names[:2])
    heads = table.loc[list(OTHER_HEADS)]
    plain, of_maml = (evidence.base_runs(algorithm) for algorithm in ("fomaml", "maml"))
    first, second = (late(cell, "trajectory_coherence") for cell in (plain, of_maml))
    answer = late(plain, "majority_before")
    small, large = (evidence.base_runs("fomaml", GAIN_SETTING, name) for name in ("quick", "paper"))
    shares = [
        late(cell, "trajectory_coherence_head") / late(cell, "trajectory_coherence")
        for cell in (small, large)
    ]
    dataset, ways, shots = MAIN
    text = (
        f"**Under first-order MAML on {name_of(dataset)}, {ways}-way {shots}-shot, what tasks "
        "agree on is one wrong answer.** In the smaller version the network gives "
        f"{100 * answer:.0f} % of a task's images the same class before it adapts, and its late "
        f"trajectory coherence is {first:.2f} (MAML's {second:.3f}). Taking this answer out of the "
        f"head at meta-test brings coherence from {base.trajectory_coherence:.2f} to "
        f"{changed.trajectory_coherence:.3f} after the last epoch, and accuracy changes by "
        f"{changed.gain:+.1f} points ({changed.low:+.1f} to {changed.high:+.1f}): most of the "
        "accuracy does not need this coherence. Two heads that are trained without it cost "
        f"{-heads.gain.max():.0f} points, and change more than coherence. On {GAIN_SETTING[1]}-way "
        f"tasks the head holds {100 * shares[0]:.0f} % of the late coherence in the smaller "
        f"version, and {100 * shares[1]:.0f} % after {format_iterations(large)} iterations at the "
        "paper's settings."
    )
    holds = first > 10 * second and answer > 2 / ways and shares[0] < 0.5 < shares[1]
    holds &= changed.trajectory_coherence < base.trajectory_coherence / 2
    holds &= -MARGIN < changed.low and changed.high < MARGIN
    holds &= heads.trajectory_coherence.max() < base.trajectory_coherence / 2
    holds &= heads.hessian_norm.min() > 2 * base.hessian_norm
    return Finding(text, bool(holds and heads.high.max() < -MARGIN))


def find_regulariser(evidence: Evidence) -> Finding:
    """C8."""
    gains = evidence.judged("C8")
    idle = [row for row in gains if not evidence.raises_coherence(row)]
    own = [row for row in gains if row.scale == "paper" and row.paper]
    if len(own) != 1:
        return NO_CELLS
    (row,) = own
    text = (
        "**The regulariser on coherence shows no gain in what could be run.** "
        f"None of {len(gains)} comparisons shows one. In {len(idle)} of them the regulariser is "
        "not seen to raise late coherence, so they hardly test it. On the paper's task, "
        f"{name_of(row.dataset)} {row.setting}, the gain is {row.change} after {row.reached} of "
        f"{name_of(row.algorithm)}, at a strength of our choice; the paper's {PAPER_GAIN:+.2f}, by "
        "our source under MAML, is neither seen nor ruled out."
    )
    holds = not count(gains, Verdict.REPRODUCED) and len(gains) / 2 < len(idle) < len(gains)
    holds &= (row.algorithm, row.verdict) == ("fomaml", Verdict.UNCLEAR)
    return Finding(text, holds)


def find_baseline(evidence: Evidence) -> Finding:
    """C7."""
    baselines = evidence.judged("C7")
    if not baselines:
        return NO_CELLS
    text = (
        "**Finetuning's trajectories are nearly orthogonal, as the paper says; only first-order "
        "MAML's are seen not to be.** Finetuning's are in all "
        f"{count_cells(baselines)} cells whose baseline works, with a fresh head. "
        f"{set_apart(baselines)}"
    )
    second_order, first_order = (
        reproduced_share([row for row in baselines if row.beside == name_of(algorithm)])
        for algorithm in ("maml", "fomaml")
    )
    holds = all(row.verdict in NEARLY_ORTHOGONAL for row in baselines)
    return Finding(text, holds and second_order == 0 and first_order == 1)


FINDINGS: tuple[Callable[[Evidence], Finding], ...] = (
    find_flatness,
    find_worse,
    find_coherence,
    find_agreement,
    find_regulariser,
    find_baseline,
)


def list_findings(evidence: Evidence) -> str:
    """The findings as a Markdown list.

    Raises:
        FindingError: the records no longer support one.
    """
    findings = [find(evidence) for find in FINDINGS]
    for finding in findings:
        if not finding.holds:
            raise FindingError(
                "the records no longer support this finding of the first page: change its words "
                f"and its condition in book/_ext/landing.py: {finding.text}"
            )
    return "\n".join(f"1. {finding.text}" for finding in findings)


def add_findings(_: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: give pages `{{ findings }}`."""
    config.myst_substitutions["findings"] = list_findings(committed_evidence())


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", add_findings)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    print(list_findings(committed_evidence()))
