"""The grids of runs as data: what a scale's results rest on, and what there is of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from metanb.settings import Dataset, Scale, Settings, preset

# The regulariser's strength, by ways: under `adapted` it first moves theta~_i by about 15 % of its
# way from theta_s. 20-way tasks take shorter ways, and the move goes with gamma / r^2: at 1 it
# would be ten times that, and training fails.
GAMMA = {5: 1.0, 20: 0.1}
PAPER_GAMMAS = (0.1, 0.3, 1.0)  # at paper scale, 20-way: first moves of 6, 18 and 60 % of the way
FEW: dict[str, Any] = {
    "algorithm": "fomaml",
    "inner_steps": 5,
    "test_steps": 5,
    "inner_lr": 0.1,
    "meta_batch": 4,
    "rotations": False,
}
READINGS = {"maml": ("adapted", "random", "through", "outer"), "fomaml": ("adapted", "random")}


@dataclass(frozen=True)
class Planned:
    """A run of a grid, and the part of the grid that it belongs to."""

    group: str
    settings: Settings


def base_runs(
    scale: Scale,
    dataset: Dataset,
    ways: int,
    shots: int,
    seeds: Iterable[int],
    algorithms: Iterable[str] = ("maml", "fomaml", "finetune"),
) -> list[Settings]:
    """Plain runs of one setting: every seed of the first algorithm, then of the second, and so on."""
    seeds = list(seeds)
    return [
        preset(scale, dataset, ways, shots, algorithm=algorithm, seed=seed)
        for algorithm in algorithms
        for seed in seeds
    ]


def few_class_runs(
    scale: Scale,
    dataset: Dataset,
    ways: int,
    shots: int,
    classes: Iterable[int],
    draws: Iterable[int],
) -> list[Settings]:
    """Runs that overfit: first-order MAML, five steps, on a few meta-train classes.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        classes: numbers of meta-train classes.
        draws: of the classes; each draw has a seed of its own.
    """
    draws = list(draws)
    return [
        preset(scale, dataset, ways, shots, train_classes=n, class_seed=draw, seed=draw, **FEW)
        for n in classes
        for draw in draws
    ]


def regularised_runs(
    scale: Scale,
    dataset: Dataset,
    ways: int,
    shots: int,
    seeds: Iterable[int],
    algorithm: str,
    regulariser: str,
    gamma: float | None = None,
) -> list[Settings]:
    """Runs with the coherence regulariser, one per seed, under one of its readings.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        seeds: of the runs.
        algorithm: "maml" or "fomaml".
        regulariser: the reading, see READINGS.
        gamma: its strength; None: the grid's for so many ways, see GAMMA.
    """
    if gamma is None:
        gamma = GAMMA[5] if ways < 20 else GAMMA[20]
    options: dict[str, Any] = {"algorithm": algorithm, "regulariser": regulariser, "gamma": gamma}
    return [preset(scale, dataset, ways, shots, seed=seed, **options) for seed in seeds]


def first_head_runs(
    scale: Scale,
    dataset: Dataset,
    ways: int,
    shots: int,
    seeds: Iterable[int],
    algorithm: str,
    head_init: str,
) -> list[Settings]:
    """Runs from another initialisation of the head, one per seed."""
    options = {"algorithm": algorithm, "head_init": head_init}
    return [preset(scale, dataset, ways, shots, seed=seed, **options) for seed in seeds]


def new_head_runs(
    scale: Scale, dataset: Dataset, ways: int, shots: int, seeds: Iterable[int], test_head: str
) -> list[Settings]:
    """Finetuning that meets meta-test tasks with another N-way head, one run per seed."""
    options = {"algorithm": "finetune", "test_head": test_head}
    return [preset(scale, dataset, ways, shots, seed=seed, **options) for seed in seeds]


def quick_grid() -> list[Planned]:
    """The quick grid, one seed of everything before the second of anything; hours on two cores in all.

    base: every algorithm on every setting. few-classes: meta-training that overfits, by class count
    and class draw. regulariser: its readings and controls, beside the base runs of the same seeds.
    head: its initialisation, and what finetuning meets a task with.
    """
    seeds: list[list[Planned]] = []
    for seed in range(5):
        runs = _group("base", base_runs("quick", "omniglot", 5, 1, [seed]))
        runs += _group("few-classes", few_class_runs("quick", "omniglot", 5, 1, (10, 20), [seed]))
        runs += _regularised("quick", 5, seed, READINGS)
        runs += _group("base", base_runs("quick", "glyphs", 5, 1, [seed]))
        if seed < 3:
            runs += _group("base", base_runs("quick", "omniglot", 20, 1, [seed]))
            runs += _group("base", base_runs("quick", "omniglot", 5, 5, [seed]))
            runs += _heads(seed)
            runs += _regularised("quick", 20, seed, {"maml": ("adapted",), "fomaml": ("adapted",)})
        seeds.append(runs)
    return [planned for runs in seeds for planned in runs]


def paper_grid() -> list[Planned]:
    """The paper's experiments, the most informative first: one seed of everything before the second of anything.

    Within a seed: the regulariser where the paper reports its gain, at the middle strength;
    first-order MAML on mini-ImageNet, where accuracy is said to fall; the other settings; the other
    strengths; the regulariser's control.
    """
    weak, middle, strong = PAPER_GAMMAS
    readings = {"fomaml": ("adapted",), "maml": ("adapted",)}
    five_shot: tuple[tuple[Dataset, int], ...] = (
        ("omniglot", 5),
        ("omniglot", 20),
        ("mini-imagenet", 5),
    )
    runs: list[Planned] = []
    for seed in range(5):
        runs += _group("base", base_runs("paper", "omniglot", 20, 1, [seed], ("fomaml", "maml")))
        runs += _regularised("paper", 20, seed, readings, middle)
        runs += _group("base", base_runs("paper", "mini-imagenet", 5, 1, [seed], ("fomaml",)))
        runs += _group("base", base_runs("paper", "omniglot", 5, 1, [seed]))
        runs += _group("base", base_runs("paper", "omniglot", 20, 1, [seed], ("finetune",)))
        runs += _group(
            "base", base_runs("paper", "mini-imagenet", 5, 1, [seed], ("maml", "finetune"))
        )
        for dataset, ways in five_shot:
            runs += _group("base", base_runs("paper", dataset, ways, 5, [seed]))
        for gamma in (weak, strong):
            runs += _regularised("paper", 20, seed, readings, gamma)
        runs += _regularised(
            "paper", 20, seed, {"fomaml": ("random",), "maml": ("random",)}, middle
        )
    return runs


def smoke_grid() -> list[Planned]:
    """Seconds each, and no data set to fetch: it shows that a machine, or a cluster, does what the others ask of it."""
    return [
        planned
        for seed in range(2)
        for planned in _group("base", base_runs("smoke", "glyphs", 5, 1, [seed]))
    ]


GRIDS: dict[str, Callable[[], list[Planned]]] = {
    "smoke": smoke_grid,
    "quick": quick_grid,
    "paper": paper_grid,
}


def select_runs(planned: Iterable[Planned], *patterns: str) -> list[Planned]:
    """Those whose group or run id matches a pattern of the shell, or contains it; all where no pattern is given.

    Of several patterns, those of the first come first, each pattern's in the grid's order. Raises
    ValueError for a pattern that nothing matches.
    """
    planned = list(planned)
    if not patterns:
        return planned
    chosen: dict[Planned, None] = {}
    for pattern in patterns:
        glob = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
        matched = [
            one for one in planned if fnmatch(one.group, glob) or fnmatch(one.settings.id, glob)
        ]
        if not matched:
            groups = ", ".join(sorted({one.group for one in planned}))
            raise ValueError(
                f"no run of the grid matches {pattern!r}: give a part of an id, or of a group: {groups}"
            )
        chosen |= dict.fromkeys(matched)
    return list(chosen)


def _group(name: str, runs: Iterable[Settings]) -> list[Planned]:
    return [Planned(name, settings) for settings in runs]


def _regularised(
    scale: Scale,
    ways: int,
    seed: int,
    readings: Mapping[str, tuple[str, ...]],
    gamma: float | None = None,
) -> list[Planned]:
    """One seed of the regulariser on Omniglot 1-shot, under several algorithms and readings."""
    runs: list[Planned] = []
    for algorithm, names in readings.items():
        for name in names:
            runs += _group(
                "regulariser",
                regularised_runs(scale, "omniglot", ways, 1, [seed], algorithm, name, gamma),
            )
    return runs


def _heads(seed: int) -> list[Planned]:
    """One seed of other heads on Omniglot 5-way 1-shot: at the start of training, and at meta-test."""
    runs: list[Planned] = []
    for algorithm in ("maml", "fomaml"):
        for head in ("finn", "zero"):
            runs += _group(
                "head", first_head_runs("quick", "omniglot", 5, 1, [seed], algorithm, head)
            )
    for head in ("shared", "zero"):
        runs += _group("head", new_head_runs("quick", "omniglot", 5, 1, [seed], head))
    return runs
