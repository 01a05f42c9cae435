"""The catalogue of data sets, algorithms and measures: names for readers, and basic facts."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

OWN_NAME = re.compile(r"[a-z][a-z0-9]{0,39}")  # of an algorithm or a network of one's own
OWN_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # a folder of images of one's own
OWN_MEASURE = re.compile(r"[a-z][a-z0-9_]{0,59}")  # of a measure of one's own


@dataclass(frozen=True)
class ImageKind:
    """A data set's name and the shape of its images.

    Attributes:
        label: the name, for readers.
        channels: 1 for grey, 3 for colour.
        side: height and width, pixels.
    """

    label: str
    channels: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class Algorithm:
    """An algorithm that trains a network; `metanb.maml.algorithms` has what it does.

    Attributes:
        label: the name, for readers.
        regularisers: those that can change its gradient; some act through second derivatives alone.
        first_order: whether the inner gradients count as constants.
        episodic: whether it trains on tasks. If not, it trains on mini-batches over all meta-train
            classes, and the network gets a new N-way head at meta-test.
    """

    label: str
    regularisers: tuple[str, ...] = ("none",)
    first_order: bool = False
    episodic: bool = True


@dataclass(frozen=True)
class Measure:
    """A measure of a network, recorded after each epoch.

    Attributes:
        label: the name, for readers.
        over: what the mean and its error are taken over: "tasks" (of meta-test), "iterations" (of
            the epoch), or "network" (one value).
        log: whether figures draw the measure on a logarithmic axis.
        alone: the label in a list, where `label` refers to the measure before it.
    """

    label: str
    over: str = "tasks"
    log: bool = False
    alone: str = ""


DATASETS = {
    "glyphs": ImageKind("Glyphs", 1, 28),
    "omniglot": ImageKind("Omniglot", 1, 28),
    "mini-imagenet": ImageKind("mini-ImageNet", 3, 84),
}
ALGORITHMS = {
    "maml": Algorithm(
        "MAML", ("none", "adapted", "through", "outer", "random", "agreement", "within")
    ),
    "fomaml": Algorithm(
        "first-order MAML", ("none", "adapted", "random", "agreement", "within"), first_order=True
    ),
    "finetune": Algorithm("finetuning", episodic=False),
}
# The names of these: all others are of one's own.
OF_PACKAGE = frozenset(ALGORITHMS)
# Algorithms of one's own that are known by name alone, with what is assumed of them.
_ASSUMED: dict[str, Algorithm] = {}
NETWORKS = {"convnet": "the paper's ConvNet"}
MEASURES = {
    "hessian_norm": Measure("Hessian norm at adapted solutions", log=True),
    "support_loss": Measure("support loss, adapted (nats)", log=True),
    "support_loss_before": Measure("support loss, not adapted (nats)"),
    "query_loss": Measure("query loss, adapted (nats)"),
    "query_accuracy": Measure("query accuracy"),
    "valid_accuracy": Measure("meta-validation accuracy"),
    "distance": Measure("distance from θ_s (L2)"),
    "trajectory_coherence": Measure("trajectory coherence"),
    "gradient_coherence": Measure("gradient coherence"),
    "adaptive_sharpness": Measure("adaptive sharpness (relative curvature)", log=True),
    "entropy_before": Measure("prediction entropy, not adapted (nats)"),
    "majority_before": Measure("share of a task's most frequent answer"),
    "trajectory_coherence_head": Measure(
        "the head's share of it", alone="trajectory coherence, the head's share"
    ),
    "trajectory_coherence_body": Measure(
        "the body's share of it", alone="trajectory coherence, the body's share"
    ),
    "gradient_cosine": Measure("gradient cosine"),
    "gradient_coherence_uniform": Measure("coherence of g_uniform"),
    "gradient_coherence_label": Measure("coherence of g_label"),
    "hessian_largest": Measure("largest eigenvalue of the Hessian"),
    "hessian_smallest": Measure("smallest eigenvalue of the Hessian"),
    "path_curvature": Measure("curvature along the inner path"),
    "gradient_norm": Measure("norm of the support gradient", log=True),
    "within_product": Measure("support times query gradient, within a task"),
    "within_cosine": Measure("cosine of support and query gradient, within a task"),
    "permutation_spread": Measure("spread of query accuracy over permuted labels"),
    "trajectory_coherence_body1": Measure("the first block's share of trajectory coherence"),
    "trajectory_coherence_body2": Measure("the second block's share of trajectory coherence"),
    "trajectory_coherence_body3": Measure("the third block's share of trajectory coherence"),
    "trajectory_coherence_body4": Measure("the fourth block's share of trajectory coherence"),
    "effective_rank": Measure("effective rank of the tasks' directions"),
    "relative_move": Measure("relative move by the regulariser", over="iterations"),
    "train_loss": Measure("meta-training loss (nats)", over="iterations"),
    "body_norm": Measure("L2 norm of convolution weights", over="network"),
    "head_norm": Measure("L2 norm of head weights", over="network"),
}


def describe_measure(name: str) -> Measure:
    """Return what is known of a measure; one that is not registered here keeps its name.

    Example:
        >>> describe_measure("distance").label, describe_measure("my_measure").label
        ('distance from θ_s (L2)', 'my_measure')
    """
    return MEASURES.get(name, Measure(name))


def require_name(kind: str, name: str, pattern: re.Pattern[str] = OWN_NAME) -> None:
    """Raise ValueError unless a name of something of one's own matches a pattern.

    Args:
        kind: what it is, for the message.
        name: small letters and digits.
        pattern: that the name has to match.
    """
    # A decorator without its parentheses gives a function for the name.
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(
            f"{kind} {name!r} does not match {pattern.pattern}: use small letters and digits, a "
            "letter first"
        )


def require_free_name(
    kind: str, name: str, taken: Mapping[str, object], function: object = None
) -> None:
    """Raise ValueError unless a function of one's own may be registered under a name.

    The same function that is defined again may, such as by a notebook's cell that runs again: one
    of the same module and the same name there.

    Args:
        kind: what it is, for the message.
        name: to register it under.
        taken: what is registered, by name.
        function: that is to be registered; None: no function.

    Example:
        >>> require_free_name("a measure", "mine", {"mine": name_of}, name_of)
        >>> require_free_name("a measure", "mine", {"mine": name_of}, learn_names)
        Traceback (most recent call last):
        ValueError: there is a measure 'mine' already: choose another name
    """
    if name not in taken:
        return
    earlier, now = (
        (getattr(code, "__module__", None), getattr(code, "__qualname__", None))
        for code in (taken[name], function)
    )
    if None in now or earlier != now:
        raise ValueError(f"there is {kind} {name!r} already: choose another name")


def describe_own(algorithm: str) -> dict[str, Any]:
    """What a record says of an algorithm of one's own, under "algorithm"; nothing of others.

    Example:
        >>> describe_own("maml")
        {}
    """
    if algorithm in OF_PACKAGE:
        return {}
    entry = ALGORITHMS[algorithm]
    return {"algorithm": asdict(entry) | {"regularisers": list(entry.regularisers)}}


def learn_names(settings: Mapping[str, Any], entry: Any = None) -> None:
    """Make known what a record names of one's own, an algorithm or a network, for readers.

    To train it, its code has to be registered: `metanb.maml.algorithms.algorithm`,
    `metanb.maml.network.network`.

    Args:
        settings: of a record, by name.
        entry: of the algorithm, as `describe_own` gives it; None, as in records of earlier
            versions: it is assumed to train on tasks, and to take every regulariser.

    Raises:
        ValueError: the entry is none.
    """
    algorithm, network = settings.get("algorithm"), settings.get("network")
    if isinstance(algorithm, str) and OWN_NAME.fullmatch(algorithm):
        _learn_algorithm(algorithm, entry)
    if isinstance(network, str) and OWN_NAME.fullmatch(network):
        NETWORKS.setdefault(network, network)


def _learn_algorithm(name: str, entry: Any) -> None:
    """Make an algorithm of one's own known; arguments and errors are those of `learn_names`.

    What is registered here, or stands in an earlier record, stays; what was assumed does not.
    """
    if name in OF_PACKAGE:
        return
    if entry is not None:
        recorded = _read_entry(entry)
        if name not in ALGORITHMS or ALGORITHMS[name] is _ASSUMED.get(name):
            ALGORITHMS[name] = recorded
    elif name not in ALGORITHMS:
        ALGORITHMS[name] = _ASSUMED[name] = Algorithm(name, ALGORITHMS["maml"].regularisers)


def _read_entry(values: Any) -> Algorithm:
    """The entry of an algorithm from what `describe_own` gives; ValueError for anything else."""
    kinds = {"label": str, "regularisers": list, "first_order": bool, "episodic": bool}
    if (
        not isinstance(values, dict)
        or values.keys() != kinds.keys()
        or not all(isinstance(values[name], kind) for name, kind in kinds.items())
        or not all(isinstance(name, str) for name in values["regularisers"])
    ):
        raise ValueError(f"the entry of an algorithm does not hold {', '.join(kinds)}")
    return Algorithm(**values | {"regularisers": tuple(values["regularisers"])})


def name_of(setting: str) -> str:
    """Return what readers call a data set or an algorithm; a data set of one's own keeps its name.

    Example:
        >>> name_of("fomaml"), name_of("my-birds")
        ('first-order MAML', 'my-birds')
    """
    known = DATASETS.get(setting) or ALGORITHMS.get(setting)
    return known.label if known else setting
