"""What defines a run: one frozen dataclass, its checks, its identity, and the three scales.

Device, chunk size and number of threads are not here: they change a run's speed and its last bits,
never its meaning. They are recorded in its provenance instead.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

Dataset = Literal["glyphs", "glyphs-all", "omniglot", "mini-imagenet"]
Algorithm = Literal["maml", "fomaml", "finetune"]
TestHead = Literal["fresh", "shared", "zero"]
Regulariser = Literal["none", "adapted", "through", "outer", "random"]
Partition = Literal["vinyals", "background"]
HeadInit = Literal["torch", "finn", "zero"]
Scale = Literal["smoke", "quick", "paper"]

CHOICES: dict[str, tuple[Any, ...]] = {
    "dataset": get_args(Dataset),
    "partition": get_args(Partition),
    "algorithm": get_args(Algorithm),
    "head_init": get_args(HeadInit),
    "test_head": get_args(TestHead),
    "regulariser": get_args(Regulariser),
    "rotations": (False, True),
    "adapt_norm": (False, True),
}
RANGES: dict[str, tuple[float, float]] = {
    "ways": (2, 100),
    "shots": (1, 100),
    "queries": (1, 100),
    "test_queries": (1, 100),
    "filters": (1, 1024),
    "inner_lr": (1e-6, 100.0),
    "inner_steps": (1, 100),
    "test_steps": (1, 100),
    "meta_batch": (1, 1024),
    "outer_lr": (1e-8, 1.0),
    "iterations": (1, 10**7),
    "epoch_iterations": (1, 10**6),
    "test_tasks": (2, 10_000),
    "final_tasks": (0, 100_000),
    "gamma": (0.0, 1e6),
    "seed": (0, 2**31 - 1),
    "task_seed": (0, 2**31 - 1),
    "train_classes": (0, 100_000),
    "class_seed": (0, 2**31 - 1),
}

REGULARISERS = {  # those that can change a meta-gradient: some act by second derivatives alone
    "maml": get_args(Regulariser),
    "fomaml": ("none", "adapted", "random"),
    "finetune": ("none",),
}


class SettingsError(ValueError):
    """A setting that cannot be; the message names it, its value and what is allowed."""


def _setting(default: Any, meaning: str) -> Any:
    """A field whose meaning the command line and the book show."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run's numbers, up to floating-point noise.

    The paper's setting is that of Finn et al. (2017); where the paper is silent the default here is
    our choice, and the method page of the book says so. Raises SettingsError for an unknown choice,
    a value out of range, or two settings that exclude each other.
    """

    dataset: Dataset = _setting("glyphs", "the image set")
    partition: Partition = _setting(
        "vinyals", "Omniglot's class split; the other sets have one only"
    )
    rotations: bool = _setting(
        False, "meta-train classes of Omniglot also rotated by 90, 180, 270 degrees, as new classes"
    )
    train_classes: int = _setting(
        0, "how many meta-train classes are kept, 0: all; few make meta-training overfit"
    )
    class_seed: int = _setting(
        0, "which ones are kept; of two numbers of classes, the fewer are among the more"
    )
    ways: int = _setting(5, "N, classes a task")
    shots: int = _setting(1, "K, support images a class")
    queries: int = _setting(1, "query images a class in meta-training")
    test_queries: int = _setting(15, "query images a class in meta-test and meta-validation")
    filters: int = _setting(64, "channels of each convolution")
    head_init: HeadInit = _setting(
        "torch",
        "how the head starts; finn: standard normal weights, as in Finn's code; zero: all zero",
    )
    algorithm: Algorithm = _setting(
        "maml",
        "maml, fomaml: first-order MAML, or finetune: supervised training over all meta-train classes",
    )
    test_head: TestHead = _setting(
        "fresh",
        "the N-way head that finetuning meets a task with: fresh for each task, one shared by all, or zero",
    )
    regulariser: Regulariser = _setting(
        "none",
        "the coherence regulariser: adapted is our reading of the paper, the others are further readings and a control",
    )
    gamma: float = _setting(0.0, "strength of the regulariser")
    inner_lr: float = _setting(0.4, "step size of the inner SGD")
    inner_steps: int = _setting(1, "inner SGD steps in meta-training")
    test_steps: int = _setting(1, "inner SGD steps at meta-test")
    adapt_norm: bool = _setting(
        True, "whether batch norm's scale and shift take part in the inner loop"
    )
    meta_batch: int = _setting(32, "tasks a meta-training iteration")
    outer_lr: float = _setting(1e-3, "step size of Adam")
    iterations: int = _setting(60_000, "meta-training iterations")
    epoch_iterations: int = _setting(1_000, "iterations an epoch: measures are taken after each")
    test_tasks: int = _setting(
        60, "fixed meta-test tasks on which measures are taken, and as many meta-validation tasks"
    )
    final_tasks: int = _setting(
        0, "further meta-test tasks on which accuracy is measured once, at the end"
    )
    seed: int = _setting(0, "initial weights and meta-training tasks")
    task_seed: int = _setting(
        0, "the fixed meta-test and meta-validation tasks: the same for all seeds"
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            _check(one.name, getattr(self, one.name), type(one.default))
            if isinstance(one.default, float):  # 1 and 1.0 are one setting, and one run
                object.__setattr__(self, one.name, float(getattr(self, one.name)))
        if self.iterations % self.epoch_iterations:
            raise SettingsError(
                f"iterations={self.iterations} is not a whole number of epochs of epoch_iterations="
                f"{self.epoch_iterations}: choose a multiple"
            )
        if self.dataset != "omniglot" and (self.rotations or self.partition != "vinyals"):
            raise SettingsError(
                f"rotations and partition belong to dataset='omniglot', not {self.dataset!r}: leave them out"
            )
        if self.algorithm != "finetune" and self.test_head != "fresh":
            raise SettingsError(
                f"test_head={self.test_head!r} belongs to algorithm='finetune': leave it out"
            )
        if (self.regulariser == "none") != (self.gamma == 0):
            raise SettingsError(
                f"regulariser={self.regulariser!r} with gamma={self.gamma:g}: give a regulariser and a gamma above 0"
            )
        if self.regulariser not in REGULARISERS[self.algorithm]:
            raise SettingsError(
                f"regulariser={self.regulariser!r} has no effect under algorithm={self.algorithm!r}: choose from "
                f"{', '.join(REGULARISERS[self.algorithm])}"
            )
        if 0 < self.train_classes < self.ways:
            raise SettingsError(
                f"train_classes={self.train_classes} are fewer than ways={self.ways}: keep more"
            )
        if self.class_seed and not self.train_classes:
            raise SettingsError(
                f"class_seed={self.class_seed} needs train_classes: all classes are kept"
            )

    @property
    def epochs(self) -> int:
        """Number of epochs; epoch 0, the untrained network, is measured besides."""
        return self.iterations // self.epoch_iterations

    def epoch_of(self, until: int | None) -> int:
        """The epoch that reaches this iteration, or the last one; that, too, for None."""
        return (
            self.epochs if until is None else min(self.epochs, -(-until // self.epoch_iterations))
        )

    def ending(self, epoch: int) -> "Settings":
        """The run that ends after this epoch, from 1 on; these settings for the last one.

        No draw depends on how long a run is: its weights are those that this run has then.
        """
        if epoch >= self.epochs:
            return self
        return replace(self, iterations=epoch * self.epoch_iterations, final_tasks=0)

    @property
    def first_order(self) -> bool:
        """Whether the meta-gradient leaves out the derivative through the inner gradient."""
        return self.algorithm == "fomaml"

    @property
    def setting(self) -> str:
        """Ways and shots, as readers write them."""
        return f"{self.ways}-way {self.shots}-shot"

    @property
    def unseeded(self) -> "Settings":
        """These settings with seed and class_seed 0: what the runs of a cell have in common."""
        return replace(self, seed=0, class_seed=0)

    @property
    def id(self) -> str:
        """The run's name on disk: readable, then a hash of every setting that differs from its default.

        Defaults stay out of the hash, so that a setting added later leaves the names of old runs as
        they are.
        """
        changed = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        what = (
            self.algorithm if self.regulariser == "none" else f"{self.algorithm}-{self.regulariser}"
        )
        kept = f"-{self.train_classes}c" if self.train_classes else ""
        return f"{self.dataset}{kept}-{self.ways}w{self.shots}s-{what}-s{self.seed}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for JSON."""
        return asdict(self)


def from_dict(values: dict[str, Any]) -> Settings:
    """Settings from names and values; those left out take their defaults.

    Raises SettingsError for an unknown name.
    """
    known = [one.name for one in fields(Settings)]
    for name in values:
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}: choose from {', '.join(known)}")
    return Settings(**values)


def _check(name: str, value: Any, kind: type) -> None:
    if name in CHOICES:
        if value not in CHOICES[name] or isinstance(value, bool) != (kind is bool):
            raise SettingsError(
                f"{name}={value!r} is not one of {', '.join(map(repr, CHOICES[name]))}"
            )
        return
    low, high = RANGES[name]
    numeric = isinstance(value, (int, float) if kind is float else int) and not isinstance(
        value, bool
    )
    if not numeric or not low <= value <= high:
        raise SettingsError(
            f"{name}={value!r} is not {'a number' if kind is float else 'a whole number'} from {low} to {high}"
        )


def preset(
    scale: Scale, dataset: Dataset = "omniglot", ways: int = 5, shots: int = 1, **others: Any
) -> Settings:
    """The settings of a scale.

    `paper` is the paper's own (Finn et al. 2017). `quick` takes a minute or a few on a CPU core,
    and differs from it in filters, tasks an iteration, iterations and their number an epoch and,
    from 20 ways or 2 shots on, in meta-test tasks. `smoke` takes seconds and shows that everything
    runs.

    Args:
        scale: "smoke", "quick" or "paper".
        dataset: glyphs follow Omniglot's settings.
        ways: N; 20-way and above take the 20-way settings.
        shots: K.
        others: further settings, which replace the scale's.
    """
    if scale not in get_args(Scale):
        raise SettingsError(
            f"scale={scale!r} is not one of {', '.join(map(repr, get_args(Scale)))}"
        )
    few = isinstance(ways, int) and ways < 20
    values: dict[str, Any] = {
        "dataset": dataset,
        "ways": ways,
        "shots": shots,
        "rotations": dataset == "omniglot",
    }
    if dataset == "mini-imagenet":
        values |= {
            "filters": 32,
            "inner_lr": 0.01,
            "inner_steps": 5,
            "test_steps": 10,
            "queries": 15,
        }
        values |= {"meta_batch": 4 if shots == 1 else 2}
    else:
        values |= (
            {"inner_lr": 0.4, "inner_steps": 1, "test_steps": 1, "meta_batch": 32}
            if few
            else {"inner_lr": 0.1, "inner_steps": 5, "test_steps": 5, "meta_batch": 16}
        )
        values |= {"queries": shots}  # as in Finn's code: as many query as support images
    if scale == "paper":
        values |= {"epoch_iterations": 500, "final_tasks": 600}
    if scale == "quick":
        values |= {"meta_batch": max(2, values["meta_batch"] // 4), "filters": 32}
        values |= (
            {"iterations": 1_800, "epoch_iterations": 150}
            if few and shots == 1
            else {"iterations": 1_200, "epoch_iterations": 100, "test_tasks": 30}
        )
    if scale == "smoke":
        values |= {"filters": 16, "meta_batch": 4, "iterations": 60, "epoch_iterations": 10}
        values |= {"test_tasks": 8, "test_queries": 5}
    return from_dict(values | others)


def scale_of(settings: Settings) -> Scale | Literal["custom"]:
    """The scale whose filters, iterations and epochs these settings have, or "custom"."""
    for scale in get_args(Scale):
        base = preset(scale, settings.dataset, settings.ways, settings.shots)
        if all(
            getattr(base, f) == getattr(settings, f)
            for f in ("filters", "iterations", "epoch_iterations")
        ):
            return scale
    return "custom"


def differences_from_scale(settings: Settings) -> dict[str, Any]:
    """What sets these settings apart from their scale's, beyond data set, ways, shots, algorithm and seeds."""
    scale = scale_of(settings)
    base = (
        preset(scale, settings.dataset, settings.ways, settings.shots)
        if scale != "custom"
        else Settings()
    )
    known = ("dataset", "ways", "shots", "algorithm", "seed", "class_seed")
    return {
        name: value
        for name, value in asdict(settings).items()
        if name not in known and value != getattr(base, name)
    }
