"""The interventions: what is changed in meta-training or at meta-test, one thing at a time.

Each is a few settings in place of the base's. What the account of chapter 7 of the book predicts of
each stands in `metanb.claims.predictions`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, get_args

from metanb.settings import Scale, Settings, preset

PARTS = 3  # epochs of a run: its measures are compared at its end
FINAL_TASKS = 600  # for accuracy at the end
# by name, the step sizes of the inner loop beside the usual 0.4
INNER_STEPS = {f"inner step {size:g}": size for size in (0.05, 0.1, 0.2, 0.8)}
# what takes most of first-order MAML's coherence away, and is asked at 20-way 1-shot, too
ON_20_WAYS = ("centred head at meta-test", "zero head")


@dataclass(frozen=True)
class Intervention:
    """A change that decides between causes.

    Attributes:
        name: for readers.
        changes: the settings that differ from the base's.
        source: where the idea is from.
        meaning: what it does, for readers.
    """

    name: str
    changes: dict[str, Any] = field(hash=False)
    source: str = ""
    meaning: str = ""


BASE = Intervention("base", {})
_ANOTHER_STEP = (
    "another inner step size. Gradient descent with steps of size α settles where the "
    "curvature is at most about 2/α (Cohen et al. 2021). One inner step is no such descent; by "
    "analogy we expected the Hessian norm in proportion to 1/α. A step size that moves curvature "
    "and accuracy is a common cause of both, and tells nothing of their order"
)
INTERVENTIONS = (
    Intervention(
        "centred head at meta-test",
        {"test_head": "centred"},
        "ours, after Kao et al.",
        "nothing is trained; the trained head loses its answer to the mean image, and nothing else",
    ),
    Intervention(
        "zero head",
        {"inner_head": "zero"},
        "Kao et al. 2022",
        "each inner loop begins with a head of zeros, which has no answer to agree on. It "
        "takes away more: such a head gives the body no gradient, so the first inner step "
        "moves the head alone. MAML's meta-gradient sees that this step depends on the body, "
        "first-order MAML's does not. So a loss under first-order MAML need not be the price "
        "of coherence",
    ),
    Intervention(
        "shared head",
        {"inner_head": "shared"},
        "Ye and Chao 2022",
        "each inner loop begins with one learnt vector for all classes, so that no class is "
        "preferred. As with a head of zeros, the first inner step moves the head alone",
    ),
    Intervention(
        "head alone adapts",
        {"adapts": "head"},
        "ANIL, Raghu et al. 2020",
        "the inner loop moves the last layer alone (ANIL)",
    ),
    Intervention(
        "body alone adapts",
        {"adapts": "body"},
        "BOIL, Oh et al. 2021",
        "the inner loop moves all layers but the last (BOIL)",
    ),
    Intervention(
        "cosine within a task",
        {"regulariser": "within", "gamma": 0.3},
        "after Nichol et al. 2018",
        "the outer loss rewards the cosine of a task's own support and query gradients",
    ),
    Intervention(
        "agreement weights",
        {"regulariser": "agreement", "gamma": 1.0},
        "Eshratifar et al. 2018",
        "a task weighs more in the outer loss if its displacement agrees with those of its batch",
    ),
    Intervention(
        "sharpness-aware",
        {"sam_radius": 0.05},
        "Abbas et al. 2022",
        "the meta-gradient is taken a short way uphill, which is meant to lead to flatter places",
    ),
    Intervention(
        "coherent",
        {"regulariser": "adapted", "gamma": 1.0},
        "the paper's regulariser",
        "each adapted solution is moved towards the mean direction of its batch before the outer "
        "loss is taken (the reading *adapted*)",
    ),
    Intervention(
        "sharpness-aware and coherent",
        {"sam_radius": 0.05, "regulariser": "adapted", "gamma": 1.0},
        "both together",
        "the two together",
    ),
    *(
        Intervention(name, {"inner_lr": size}, "Andriushchenko et al. 2023", _ANOTHER_STEP)
        for name, size in INNER_STEPS.items()
    ),
)
BY_NAME = {intervention.name: intervention for intervention in (BASE, *INTERVENTIONS)}


def intervention_runs(
    scale: Scale,
    dataset: str,
    ways: int,
    shots: int,
    seeds: Iterable[int],
    algorithm: str,
    intervention: Intervention = BASE,
) -> list[Settings]:
    """Runs of one intervention, one per seed; without one, of the base that it is compared with.

    A run has PARTS epochs and FINAL_TASKS further meta-test tasks, for at its end it is compared.
    A smoke run has 16.

    Args:
        scale: of the runs.
        dataset: the image set.
        ways: N.
        shots: K.
        seeds: of the runs.
        algorithm: "maml" or "fomaml".
        intervention: one of INTERVENTIONS, or BASE.

    Example:
        >>> zero = BY_NAME["zero head"]
        >>> (run,) = intervention_runs("quick", "omniglot", 5, 1, [0], "maml", zero)
        >>> run.inner_head, run.epochs, run.final_tasks
        ('zero', 3, 600)
    """
    plain = preset(scale, dataset, ways, shots, algorithm=algorithm)
    changed = replace(
        plain,
        epoch_iterations=plain.iterations // PARTS,
        final_tasks=16 if scale == "smoke" else FINAL_TASKS,
        **intervention.changes,
    )
    return [replace(changed, seed=seed) for seed in seeds]


def find_intervention(settings: Settings) -> tuple[str, Intervention] | None:
    """The scale and the intervention (or BASE) that a run belongs to; None for any other run.

    Example:
        >>> (run,) = intervention_runs("quick", "omniglot", 5, 1, [3], "maml", BY_NAME["zero head"])
        >>> scale, intervention = find_intervention(run)
        >>> scale, intervention.name
        ('quick', 'zero head')
        >>> find_intervention(preset("quick", "omniglot")) is None
        True
    """
    known = _known(settings.dataset, settings.ways, settings.shots, settings.algorithm)
    # The content of images of one's own is no part of a plan.
    return known.get(replace(settings.unseeded, content=""))


@cache
def _known(
    dataset: str, ways: int, shots: int, algorithm: str
) -> dict[Settings, tuple[str, Intervention]]:
    """The interventions in one setting at each scale, by the settings of their runs."""
    if algorithm not in ("maml", "fomaml"):
        return {}
    known: dict[Settings, tuple[str, Intervention]] = {}
    for scale in get_args(Scale):
        for intervention in BY_NAME.values():
            (run,) = intervention_runs(scale, dataset, ways, shots, [0], algorithm, intervention)
            # a change to what the setting has anyway is its base, which comes first
            known.setdefault(run, (scale, intervention))
    return known
