"""What tasks agree on before they adapt: the findings of chapter 7, each as a sentence.

A value is *late*, the mean over the last quarter of meta-training and over runs. A network *has
decided* before it adapts if its support loss there is above DECIDED times ln N, where ln N is the
loss of the network that gives each of N classes the same probability.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from metanb.claims.cells import cut_to_common_length, group_into_cells, late_gains, late_values
from metanb.claims.rules import MIN_EPOCHS
from metanb.claims.run_stats import Interval, interval
from metanb.claims.verdicts import MIN_RUNS
from metanb.labels import name_of
from metanb.runs.records import Record
from metanb.settings import differences_from_scale, scale_of

DECIDED = 1.5  # times ln N
TRACK = "trajectory_coherence"


def late(runs: Iterable[Record], measure: str) -> float:
    """A measure late in meta-training, the mean over runs."""
    return float(late_values(runs, measure).mean())


def relative_losses(runs: Sequence[Record]) -> np.ndarray:
    """The late support loss before adapting over ln N, [runs]."""
    ways = np.array([run.settings.ways for run in runs])
    return np.asarray(late_values(runs, "support_loss_before") / np.log(ways))


def has_decided(runs: Sequence[Record]) -> bool:
    """Whether the networks, on average, have decided before they adapt."""
    return bool(relative_losses(runs).mean() > DECIDED)


def describe_before(groups: Mapping[str, Sequence[Record]]) -> str:
    """What networks say before they adapt, in a sentence of Markdown.

    Args:
        groups: runs of one number of classes, by what readers call them.
    """
    parts = []
    for name, runs in groups.items():
        parts.append(
            f"{name} {'has decided' if has_decided(runs) else 'is undecided'} "
            f"({late(runs, 'majority_before'):.0%} of a task's images get one answer, at a loss of "
            f"{late(runs, 'support_loss_before'):.2f})"
        )
    ways = next(iter(groups.values()))[0].settings.ways
    return (
        f"**Before adapting**, {' and '.join(parts)}. The same probability for each class costs "
        f"ln {ways} = {np.log(ways):.2f}."
    )


def describe_shared_part(groups: Mapping[str, Sequence[Record]]) -> str:
    """What the coherence of the most coherent group consists of, in a sentence of Markdown.

    Args:
        groups: runs by what readers call them.
    """
    name, runs = max(groups.items(), key=lambda item: late(item[1], TRACK))
    whole, uniform = (
        late(runs, measure) for measure in ("gradient_coherence", "gradient_coherence_uniform")
    )
    return (
        f"**What tasks agree on** carries no label: under {name}, the most coherent, gradient "
        f"coherence is {whole:.3g}, and that of the part that knows no label is {uniform:.3g}. "
        f"The head has {late(runs, f'{TRACK}_head'):.3f} of a trajectory coherence of "
        f"{late(runs, TRACK):.3f}."
    )


def describe_ranking(
    groups: Mapping[str, Sequence[Record]], heads: Mapping[tuple[str, str], Sequence[Record]]
) -> str:
    """Whether the more coherent are the more accurate, in a sentence of Markdown.

    Args:
        groups: two or more groups of runs, by what readers call them.
        heads: runs by algorithm and first head.
    """
    ranked = sorted(groups.items(), key=lambda item: -late(item[1], TRACK))
    first, last = (late(runs, "query_accuracy") for _, runs in (ranked[0], ranked[-1]))
    word = "more" if first > last else "less"
    algorithms = dict.fromkeys(algorithm for algorithm, _ in heads)
    agree = sum(
        most_with(heads, algorithm, TRACK) == most_with(heads, algorithm, "query_accuracy")
        for algorithm in algorithms
    )
    return (
        f"**Coherence and accuracy**: {ranked[0][0]} is more coherent than {ranked[-1][0]} and "
        f"{word} accurate ({first:.3f} against {last:.3f}). Of the first heads, the most coherent "
        f"is the most accurate under {agree} of {len(algorithms)} algorithms."
    )


def most_with(
    heads: Mapping[tuple[str, str], Sequence[Record]], algorithm: str, measure: str
) -> str:
    """The first head with which a measure is greatest under an algorithm.

    Args:
        heads: runs by algorithm and first head.
        algorithm: the algorithm's key.
        measure: the measure.
    """
    of_algorithm = {head: runs for (name, head), runs in heads.items() if name == algorithm}
    return max(of_algorithm, key=lambda head: late(of_algorithm[head], measure))


def gain_by_seed(runs: Sequence[Record], plain: Sequence[Record]) -> Interval:
    """The difference of late accuracy, percentage points, of runs with the same seeds in order.

    Its interval is over runs and tasks, as if two runs of a seed had met different ones.
    """
    gains, errors = late_gains(runs, plain)
    return interval(gains, shared=errors)


def describe_penalty(pushed: Sequence[Record], plain: Sequence[Record]) -> str:
    """What a penalty on incoherent trajectories does, in a sentence of Markdown.

    Args:
        pushed: runs with the penalty.
        plain: the runs without it, with the same seeds in the same order.
    """
    before, after = late(plain, TRACK), late(pushed, TRACK)
    decided = int((relative_losses(pushed) > DECIDED).sum())
    gain = gain_by_seed(pushed, plain)
    several = len(pushed) > 1  # one run has no interval
    shown = gain.describe("+.2f", "points") if several else f"{gain.mean:+.2f} points"
    return (
        f"**A penalty** that {'raises' if after > before else 'lowers'} trajectory coherence from "
        f"{before:.3f} to {after:.3f} changes accuracy by {shown}. "
        f"With it, {decided} of {len(pushed)} runs have decided before they adapt."
    )


def traits_by_setting(records: Iterable[Record]) -> pd.DataFrame:
    """What chapter 7 measures, late, in each plain cell of MIN_RUNS runs and MIN_EPOCHS epochs.

    Runs that were stopped early are cut to what the furthest MIN_RUNS have in common.

    Args:
        records: of algorithms that adapt in meta-training. Others are left out, and so are cells
            that differ from their scale, in a head or an inner loss, and those that are too small.

    Returns:
        A row per cell: `data`, `scale`, `algorithm`, `coherence`, `head part` of it, `loss / ln N`
        before adapting, and `one answer`, the share of a task's images that get one.
    """
    rows = []
    for cell in map(cut_to_common_length, group_into_cells(records)):
        settings = cell[0].settings
        is_plain = not differences_from_scale(settings).keys() - {"content"}
        is_large = len(cell) >= MIN_RUNS and cell[0].epochs >= MIN_EPOCHS
        if settings.algorithm == "finetune" or not is_plain or not is_large:
            continue
        rows.append(
            {
                "data": f"{name_of(settings.dataset)}, {settings.setting}",
                "scale": scale_of(settings),
                "algorithm": name_of(settings.algorithm),
                "coherence": late(cell, TRACK),
                "head part": late(cell, f"{TRACK}_head"),
                "loss / ln N": float(relative_losses(cell).mean()),
                "one answer": late(cell, "majority_before"),
            }
        )
    return pd.DataFrame(rows)


def describe_settings(traits: pd.DataFrame) -> str:
    """In how many settings first-order MAML does what it does in chapter 7, in a sentence.

    Args:
        traits: as `traits_by_setting` gives them; a setting counts if it has both algorithms.
    """
    names = [name_of("fomaml"), name_of("maml")]
    if traits.empty or not set(names) <= set(traits.algorithm):
        return "**Elsewhere**: no setting with both algorithms is recorded."
    by_algorithm = traits.pivot(index=["data", "scale"], columns="algorithm")
    wide = by_algorithm.dropna()
    alone = by_algorithm.drop(wide.index)
    first_order, maml = (wide.xs(name, axis=1, level=1) for name in names)
    ahead = int((first_order["coherence"] > maml["coherence"]).sum())
    decided = int((first_order["loss / ln N"] > DECIDED).sum())
    one_answer = int((first_order["one answer"] > 0.5).sum())
    in_head = int((first_order["head part"] > first_order["coherence"] / 2).sum())
    has_glyphs = any(data.startswith(name_of("glyphs")) for data in wide.index.unique("data"))
    glyphs = "Glyphs included, " if has_glyphs else ""
    return (
        f"**Elsewhere**: of {len(wide)} settings, {glyphs}each scale counted by itself, "
        f"first-order MAML is more coherent than MAML in {ahead} and has decided in {decided}. It "
        f"gives more than half of a task's images one answer in {one_answer}, and in {in_head} the "
        "head has more than half of its coherence."
        + (f" {_describe_alone(alone)}" if len(alone) else "")
    )


def _describe_alone(traits: pd.DataFrame) -> str:
    """The settings that have one of the two algorithms, in a sentence."""
    losses = traits["loss / ln N"].get(name_of("fomaml"), pd.Series(dtype=float)).dropna()
    text = f"Settings with one of the two alone do not count: {len(traits)}"
    if len(losses):
        text += f"; first-order MAML has decided in {(losses > DECIDED).sum()} of {len(losses)}"
    return f"{text}."
