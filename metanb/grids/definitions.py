"""The grids of runs as data: the runs that the results of each scale rest on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from metanb.grids.interventions import BASE, BY_NAME, INTERVENTIONS, ON_20_WAYS, intervention_runs
from metanb.settings import Scale, Settings, preset

# The regulariser's strength, by N: under `adapted` it first moves theta~_i by about 15 % of its
# distance from theta_s. In 20-way tasks that distance is smaller, and the move is in proportion to
# gamma / distance^2: at a strength of 1 it would be ten times as large, and training fails.
GAMMA = {5: 1.0, 20: 0.1}
# At paper scale, 20-way: first moves of 6, 18 and 60 % of the distance.
PAPER_GAMMAS = (0.1, 0.3, 1.0)
# Five steps and few tasks per iteration, which overfit on few meta-train classes.
FEW: dict[str, Any] = {
    "inner_steps": 5,
    "test_steps": 5,
    "inner_lr": 0.1,
    "meta_batch": 4,
    "rotations": False,
}
# Ways to adapt a finetuned network that work: all parameters, and the head alone. Each is the best
# of its kind among 36 on meta-validation tasks of seed 0 at quick scale: heads of zeros and fresh
# ones, 1, 5 and 20 steps, step sizes from 0.01 to 4.
FAIR: tuple[dict[str, Any], ...] = (
    {"test_head": "zero", "test_steps": 5, "inner_lr": 0.2},
    {"test_head": "zero", "test_steps": 20, "inner_lr": 0.2, "adapts": "head"},
)
# The beginning of meta-training, measured closely enough to see a first peak.
BEGINNING: dict[str, Any] = {"iterations": 1_000, "epoch_iterations": 25}
# The readings of the regulariser and its control "random", by algorithm.
READINGS = {"maml": ("adapted", "random", "through", "outer"), "fomaml": ("adapted", "random")}


@dataclass(frozen=True)
class Planned:
    """A run of a grid, and the part of the grid that it belongs to."""

    group: str
    settings: Settings


def base_runs(
    scale: Scale,
    dataset: str,
    ways: int,
    shots: int,
    seeds: Iterable[int],
    algorithms: Iterable[str] = ("maml", "fomaml", "finetune"),
) -> list[Settings]:
    """Plain runs of one setting: all seeds of the first algorithm, then of the second, and so on.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        seeds: of the runs of each algorithm.
        algorithms: of "maml", "fomaml" and "finetune".

    Example:
        >>> for settings in base_runs("smoke", "glyphs", 5, 1, seeds=[0, 1], algorithms=["maml"]):
        ...     print(settings.id)
        glyphs-5w1s-maml-s0-77069715
        glyphs-5w1s-maml-s1-bc415453
    """
    seeds = list(seeds)
    cells = (preset(scale, dataset, ways, shots, algorithm=name) for name in algorithms)
    return [settings for cell in cells for settings in _with_seeds(seeds, cell)]


def few_class_runs(
    scale: Scale,
    dataset: str,
    ways: int,
    shots: int,
    classes: Iterable[int],
    draws: Iterable[int],
    algorithm: str = "fomaml",
) -> list[Settings]:
    """Runs that overfit: five inner steps on a few meta-train classes, see FEW.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        classes: numbers of meta-train classes.
        draws: of the classes; each draw is one run, with that number as its seed, too.
        algorithm: "fomaml" or "maml".
    """
    few = preset(scale, dataset, ways, shots, algorithm=algorithm, **FEW)
    draws = list(draws)
    return [
        replace(few, train_classes=n, class_seed=draw, seed=draw) for n in classes for draw in draws
    ]


def beginning_runs(
    dataset: str, ways: int, shots: int, seeds: Iterable[int], algorithm: str
) -> list[Settings]:
    """The first iterations of the quick scale, measured closely, one run per seed.

    They are for C1's first peak and for no other claim, see `is_beginning`.

    Args:
        dataset: the image set.
        ways: N.
        shots: K.
        seeds: of the runs.
        algorithm: "maml" or "fomaml".

    Example:
        >>> (run,) = beginning_runs("glyphs", 5, 1, [0], "maml")
        >>> run.iterations, run.epochs, is_beginning(run)
        (1000, 40, True)
    """
    return _with_seeds(
        seeds, preset("quick", dataset, ways, shots, algorithm=algorithm, **BEGINNING)
    )


def is_beginning(settings: Settings) -> bool:
    """Whether a run is one of `beginning_runs`."""
    return all(getattr(settings, name) == value for name, value in BEGINNING.items())


def begun_run(settings: Settings) -> Settings:
    """The run of the quick scale that a run of `beginning_runs` is the beginning of.

    Example:
        >>> (run,) = beginning_runs("glyphs", 5, 1, [0], "maml")
        >>> begun_run(run) == preset("quick", "glyphs", algorithm="maml")
        True
    """
    usual = preset("quick", settings.dataset, settings.ways, settings.shots)
    return replace(settings, **{name: getattr(usual, name) for name in BEGINNING})


def regularised_runs(
    scale: Scale,
    dataset: str,
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
        gamma: its strength; None: that of GAMMA for this N.
    """
    if gamma is None:
        gamma = GAMMA[5] if ways < 20 else GAMMA[20]
    options = {"algorithm": algorithm, "regulariser": regulariser, "gamma": gamma}
    return _with_seeds(seeds, preset(scale, dataset, ways, shots, **options))


def first_head_runs(
    scale: Scale,
    dataset: str,
    ways: int,
    shots: int,
    seeds: Iterable[int],
    algorithm: str,
    head_init: str,
) -> list[Settings]:
    """Runs that start from another initialisation of the head, one per seed.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        seeds: of the runs.
        algorithm: "maml" or "fomaml".
        head_init: the initialisation, see `metanb.settings.Settings`.
    """
    options = {"algorithm": algorithm, "head_init": head_init}
    return _with_seeds(seeds, preset(scale, dataset, ways, shots, **options))


def new_head_runs(
    scale: Scale, dataset: str, ways: int, shots: int, seeds: Iterable[int], test_head: str
) -> list[Settings]:
    """Finetuning with another N-way head at meta-test, one run per seed.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        seeds: of the runs.
        test_head: the head, see `metanb.settings.Settings`.
    """
    options = {"algorithm": "finetune", "test_head": test_head}
    return _with_seeds(seeds, preset(scale, dataset, ways, shots, **options))


def quick_grid() -> list[Planned]:
    """The quick grid: hours on two cores in all.

    It has all settings with seed 0 first, then with seed 1, and so on. Its groups:

    - base: every algorithm on every setting;
    - few-classes: meta-training that overfits, by number and draw of the classes and by order;
    - regulariser: its readings and controls, to compare with the base runs of the same seeds;
    - head: its initialisation, and the head of finetuning at meta-test;
    - baseline: finetuning that adapts in a way of its own, see FAIR;
    - inner-loss: the base with the inner loss of Finn et al.'s code;
    - beginning: the first 1,000 iterations, measured every 25;
    - interventions: what decides between causes, and the base that it is compared with, see
      `metanb.grids.interventions`.

    Example:
        >>> from collections import Counter
        >>> runs = [run for run in quick_grid() if run.settings.seed == 0]
        >>> for group, n in Counter(run.group for run in runs).items():
        ...     print(group, n)
        base 12
        few-classes 8
        regulariser 8
        inner-loss 12
        head 6
        baseline 2
        beginning 2
        interventions 33
    """
    adapted_alone = {"maml": ("adapted",), "fomaml": ("adapted",)}
    runs: list[Planned] = []
    for seed in range(5):
        runs += _plan("base", base_runs("quick", "omniglot", 5, 1, [seed]))
        runs += _plan_few_classes(seed)
        runs += _plan_regularised("quick", 5, seed, READINGS)
        runs += _plan("base", base_runs("quick", "glyphs", 5, 1, [seed]))
        if seed < 3:
            runs += _plan("base", base_runs("quick", "omniglot", 20, 1, [seed]))
            runs += _plan("base", base_runs("quick", "omniglot", 5, 5, [seed]))
            runs += _plan_inner_loss(run for run in runs if run.settings.seed == seed)
            runs += _plan_heads(seed)
            runs += _plan_baselines(seed)
            runs += _plan_regularised("quick", 20, seed, adapted_alone)
        runs += _plan_beginnings(seed)
        runs += _plan_interventions(seed)
    return runs


def paper_grid() -> list[Planned]:
    """The paper's experiments, the most informative first.

    The grid has all settings with seed 0 first, then with seed 1, and so on. Within a seed come:
    the regulariser where the paper reports its gain, at the middle strength, with the base runs to
    compare; first-order MAML on mini-ImageNet, where the paper reports that accuracy falls; the
    other settings, Omniglot 5-way 1-shot with both inner losses; the other strengths; the
    regulariser's control.
    """
    weak, middle, strong = PAPER_GAMMAS
    adapted = {"fomaml": ("adapted",), "maml": ("adapted",)}
    control = {"fomaml": ("random",), "maml": ("random",)}
    not_first_order = ("maml", "finetune")
    five_shot: tuple[tuple[str, int], ...] = (
        ("omniglot", 5),
        ("omniglot", 20),
        ("mini-imagenet", 5),
    )
    runs: list[Planned] = []
    for seed in range(5):
        # The regulariser.
        runs += _plan("base", base_runs("paper", "omniglot", 20, 1, [seed], ("fomaml", "maml")))
        runs += _plan_regularised("paper", 20, seed, adapted, middle)

        # First-order MAML on mini-ImageNet.
        runs += _plan("base", base_runs("paper", "mini-imagenet", 5, 1, [seed], ("fomaml",)))

        # The other settings.
        omniglot = _plan("base", base_runs("paper", "omniglot", 5, 1, [seed]))
        runs += omniglot + _plan_inner_loss(omniglot)
        runs += _plan("base", base_runs("paper", "omniglot", 20, 1, [seed], ("finetune",)))
        runs += _plan("base", base_runs("paper", "mini-imagenet", 5, 1, [seed], not_first_order))
        for dataset, ways in five_shot:
            runs += _plan("base", base_runs("paper", dataset, ways, 5, [seed]))

        # The other strengths, and the control.
        for gamma in (weak, strong):
            runs += _plan_regularised("paper", 20, seed, adapted, gamma)
        runs += _plan_regularised("paper", 20, seed, control, middle)
    return runs


def smoke_grid() -> list[Planned]:
    """Runs of seconds each on images that are drawn: they show that a machine or cluster works."""
    return [
        planned
        for seed in range(2)
        for planned in _plan("base", base_runs("smoke", "glyphs", 5, 1, [seed]))
    ]


GRIDS: dict[str, Callable[[], list[Planned]]] = {
    "smoke": smoke_grid,
    "quick": quick_grid,
    "paper": paper_grid,
}


def select_runs(planned: Iterable[Planned], *patterns: str) -> list[Planned]:
    """The runs whose group or id matches one of some patterns.

    Args:
        planned: the runs of a grid.
        patterns: of the shell, such as "*-s0-*", or any part of an id or a group; none: all runs
            match.

    Returns:
        The runs that match the first pattern, then those that match the second, and so on; each in
        the grid's order.

    Raises:
        ValueError: a pattern matches no run.

    Example:
        >>> for run in select_runs(smoke_grid(), "*-maml-s1-*", "finetune-s0"):
        ...     print(run.group, run.settings.algorithm, run.settings.seed)
        base maml 1
        base finetune 0
    """
    planned = list(planned)
    if not patterns:
        return planned
    selected: dict[Planned, None] = {}  # a set that keeps its order
    for pattern in patterns:
        glob = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
        matched = [
            run for run in planned if fnmatch(run.group, glob) or fnmatch(run.settings.id, glob)
        ]
        if not matched:
            groups = ", ".join(sorted({run.group for run in planned}))
            raise ValueError(
                f"no run of the grid matches {pattern!r}: "
                f"give a part of an id, or of a group: {groups}"
            )
        selected |= dict.fromkeys(matched)
    return list(selected)


def _with_seeds(seeds: Iterable[int], settings: Settings) -> list[Settings]:
    """These settings with each of some seeds."""
    return [replace(settings, seed=seed) for seed in seeds]


def _plan(group: str, runs: Iterable[Settings]) -> list[Planned]:
    """Runs as members of a group."""
    return [Planned(group, settings) for settings in runs]


def _plan_regularised(
    scale: Scale,
    ways: int,
    seed: int,
    readings: Mapping[str, tuple[str, ...]],
    gamma: float | None = None,
) -> list[Planned]:
    """One seed of the regulariser on Omniglot 1-shot, under readings by algorithm."""
    runs: list[Planned] = []
    for algorithm, names in readings.items():
        for name in names:
            settings = regularised_runs(scale, "omniglot", ways, 1, [seed], algorithm, name, gamma)
            runs += _plan("regulariser", settings)
    return runs


def _plan_heads(seed: int) -> list[Planned]:
    """One seed of other heads on Omniglot 5-way 1-shot: at the start, and at meta-test."""
    setting: tuple[Scale, str, int, int] = ("quick", "omniglot", 5, 1)
    runs: list[Planned] = []
    for algorithm in ("maml", "fomaml"):
        for head_init in ("finn", "zero"):
            runs += _plan("head", first_head_runs(*setting, [seed], algorithm, head_init))
    for test_head in ("shared", "zero"):
        runs += _plan("head", new_head_runs(*setting, [seed], test_head))
    return runs


def _plan_baselines(seed: int) -> list[Planned]:
    """One seed of finetuning with each way of adapting in FAIR, on Omniglot 5-way 1-shot."""
    setting: tuple[Scale, str, int, int] = ("quick", "omniglot", 5, 1)
    ways = (preset(*setting, algorithm="finetune", seed=seed, **way) for way in FAIR)
    return _plan("baseline", ways)


def _plan_few_classes(seed: int) -> list[Planned]:
    """One draw of few classes: two numbers under first-order MAML, and more for three draws.

    Expected before the runs: under both orders accuracy falls late with 5 and 10 classes, and the
    less the more classes there are; the Hessian norm falls with any number. Then flatness does not
    tell which of them generalise.
    """
    setting: tuple[Scale, str, int, int] = ("quick", "omniglot", 5, 1)
    runs = _plan("few-classes", few_class_runs(*setting, (10, 20), [seed]))
    if seed < 3:
        runs += _plan("few-classes", few_class_runs(*setting, (5, 100), [seed]))
        runs += _plan("few-classes", few_class_runs(*setting, (5, 10, 20, 100), [seed], "maml"))
    return runs


def _plan_beginnings(seed: int) -> list[Planned]:
    """One seed of the beginning of meta-training, on Omniglot 5-way 1-shot.

    Expected before the runs: no first peak, at neither end of the spectrum. The untrained network
    is the sharpest in every run of the base, so curvature falls from the first iterations on.
    """
    return [
        planned
        for algorithm in ("maml", "fomaml")
        for planned in _plan("beginning", beginning_runs("omniglot", 5, 1, [seed], algorithm))
    ]


def _plan_inner_loss(planned: Iterable[Planned]) -> list[Planned]:
    """The base among some planned runs, with the sum as inner loss.

    Expected at the paper's length, before its runs, from those of the quick scale: accuracy is
    lower than with the mean, most of all under first-order MAML; the Hessian norm falls late in
    the paper's form and rises late in the scale-free form.
    """
    base = [run.settings for run in planned if run.group == "base"]
    return _plan("inner-loss", [replace(settings, inner_loss="sum") for settings in base])


def _plan_interventions(seed: int) -> list[Planned]:
    """One seed of the interventions on Omniglot, and of their base.

    5-way 1-shot has them all. 20-way 1-shot, where a run takes several times as long, has those of
    ON_20_WAYS under first-order MAML, and three seeds.
    """
    setting: tuple[Scale, str, int, int] = ("quick", "omniglot", 5, 1)
    runs = [
        settings
        for intervention in (BASE, *INTERVENTIONS)
        for algorithm in ("fomaml", "maml")
        for settings in intervention_runs(*setting, [seed], algorithm, intervention)
    ]
    if seed < 3:
        setting = ("quick", "omniglot", 20, 1)
        for name in (BASE.name, *ON_20_WAYS):
            runs += intervention_runs(*setting, [seed], "fomaml", BY_NAME[name])
    return _plan("interventions", runs)
