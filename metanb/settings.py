"""What defines a run: one frozen dataclass, its checks, its identity, and the three scales.

Device, chunk size and number of threads are not here: they change a run's speed and its last bits,
never its meaning. They are recorded in its provenance instead.
"""

import hashlib
import json
import math
import numbers
import re
from collections.abc import Collection
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any, Literal, get_args

from metanb.labels import ALGORITHMS, DATASETS, NETWORKS, OWN_DATASET

TestHead = Literal["fresh", "shared", "zero", "centred"]
InnerHead = Literal["learnt", "zero", "shared"]
Regulariser = Literal["none", "adapted", "through", "outer", "random", "agreement", "within"]
Adapts = Literal["all", "head", "body"]
InnerLoss = Literal["mean", "sum"]
HeadInit = Literal["torch", "finn", "zero"]
Scale = Literal["smoke", "quick", "paper"]

# Settings of earlier versions, by name, each with the one value that is still accepted: records
# hold them.
RETIRED: dict[str, Any] = {"partition": "vinyals", "adapt_norm": True}
# By algorithm, the regularisers that compare a task with its meta-batch, and change nothing in a
# batch of one task. In second order, `adapted` and `through` change the gradient all the same.
OF_SEVERAL_TASKS = {
    "maml": ("random", "outer", "agreement"),
    "fomaml": ("adapted", "random", "agreement"),
}
# By setting, the heads that score all classes alike, whatever the body does: from there, no step
# moves the body. A head that is drawn once for all tasks tells the classes apart.
ALIKE_HEADS = {"head_init": ("zero",), "inner_head": ("zero", "shared"), "test_head": ("zero",)}
REGISTERED = ("algorithm", "network")  # settings whose choices one's own code adds to
SEEDS = (0, 2**31 - 1)  # the least and the greatest seed


class SettingsError(ValueError):
    """A setting has an impossible value; the message names it, its value and what is allowed."""


class AlgorithmError(SettingsError):
    """A setting that the algorithm does not take, by its entry in `metanb.labels.ALGORITHMS`.

    Args:
        cause: the setting, its value and the algorithm.
        remedy: of who made the settings.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause = cause

    def __str__(self) -> str:
        return ": ".join(self.args)


def _choice(default: Any, choices: Collection[Any], meaning: str) -> Any:
    """A field that takes one of `choices`; the command line and the book show its meaning."""
    return field(default=default, metadata={"help": meaning, "choices": choices})


def _number(default: float, low: float, high: float, meaning: str) -> Any:
    """A field that takes a number from `low` to `high`: whole if the default is whole."""
    return field(default=default, metadata={"help": meaning, "range": (low, high)})


def _text(default: str, pattern: str, meaning: str) -> Any:
    """A field that takes a text that a regular expression matches as a whole."""
    return field(default=default, metadata={"help": meaning, "pattern": pattern})


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run's numbers, up to floating-point noise.

    What we take for the paper's settings are those of Finn et al. (2017). Where our sources are
    silent, the default is our choice, and the method page of the book says so.

    Raises:
        SettingsError: an unknown choice, a value out of range, or two settings that exclude each
            other.

    Example:
        >>> settings = Settings(dataset="omniglot", ways=20, iterations=3_000)
        >>> settings.setting, settings.epochs
        ('20-way 1-shot', 3)
        >>> Settings(ways=1)
        Traceback (most recent call last):
        metanb.settings.SettingsError: ways=1 is not a whole number from 2 to 100
    """

    dataset: str = _text(
        "glyphs",
        OWN_DATASET.pattern,
        f"the image set: {', '.join(DATASETS)}, or a folder of your own under METANB_DATA",
    )
    content: str = _text(
        "",
        r"(\d+x\d+x\d+-[0-9a-f]{16})?",
        "shape and digest of the images in a folder of your own; read from them",
    )
    rotations: bool = _choice(
        False,
        (False, True),
        "add Omniglot's meta-train classes rotated by 90, 180 and 270 degrees, as further classes",
    )
    train_classes: int = _number(
        0, 0, 100_000, "number of meta-train classes kept; 0: all; with few, meta-training overfits"
    )
    class_seed: int = _number(
        0,
        *SEEDS,
        "seed of the choice of classes; subsets are nested: the first 10 are among the first 20",
    )
    ways: int = _number(5, 2, 100, "N, classes per task")
    shots: int = _number(1, 1, 100, "K, support images per class")
    queries: int = _number(1, 1, 100, "query images per class in meta-training")
    test_queries: int = _number(
        15, 1, 100, "query images per class in meta-test and meta-validation"
    )
    network: str = _choice(
        "convnet", NETWORKS, "the network: convnet, or one registered from Python"
    )
    filters: int = _number(64, 1, 1024, "channels of each convolution")
    head_init: HeadInit = _choice(
        "torch",
        get_args(HeadInit),
        "initialisation of the head; torch: PyTorch's default; finn: standard normal weights, as "
        "in Finn's code; zero: all zero",
    )
    algorithm: str = _choice(
        "maml",
        ALGORITHMS,
        "maml; fomaml: first-order MAML; or finetune: supervised training over all meta-train "
        "classes",
    )
    test_head: TestHead = _choice(
        "fresh",
        get_args(TestHead),
        "N-way head at meta-test. After finetuning: fresh: drawn anew for each task; shared: one "
        "for all tasks; zero: all zero. After meta-training: fresh: the learnt head; zero: all "
        "zero; centred: the learnt head without its common answer",
    )
    inner_head: InnerHead = _choice(
        "learnt",
        get_args(InnerHead),
        "head that each inner loop starts from, in meta-training and at meta-test; learnt: the "
        "meta-learnt head; zero: all zero; shared: one meta-learnt vector for all N classes",
    )
    regulariser: Regulariser = _choice(
        "none",
        get_args(Regulariser),
        "the coherence regulariser; adapted: our reading of the paper; through, outer: further "
        "readings; random: a control; agreement: weights tasks by their agreement; within: rewards "
        "the cosine of a task's own support and query gradient",
    )
    gamma: float = _number(0.0, 0.0, 1e6, "strength of the regulariser")
    inner_lr: float = _number(0.4, 1e-6, 100.0, "step size of the inner SGD")
    inner_steps: int = _number(1, 1, 100, "inner SGD steps in meta-training")
    test_steps: int = _number(1, 1, 100, "inner SGD steps at meta-test")
    adapts: Adapts = _choice(
        "all",
        get_args(Adapts),
        "parameters that the inner loop adapts; all: every one; head: the last layer alone (ANIL); "
        "body: all but the last layer (BOIL)",
    )
    inner_loss: InnerLoss = _choice(
        "mean",
        get_args(InnerLoss),
        "loss of the inner SGD; mean: the mean cross-entropy of the support images; sum: N times "
        "the mean, as in Finn's code",
    )
    meta_batch: int = _number(32, 1, 1024, "tasks per meta-training iteration")
    outer_lr: float = _number(1e-3, 1e-8, 1.0, "step size of Adam")
    sam_radius: float = _number(
        0.0,
        0.0,
        100.0,
        "sharpness-aware minimisation: how far uphill the meta-gradient is taken; 0: not at all",
    )
    iterations: int = _number(60_000, 1, 10**7, "meta-training iterations")
    epoch_iterations: int = _number(
        1_000, 1, 10**6, "iterations per epoch; measures are taken after each epoch"
    )
    test_tasks: int = _number(
        60,
        2,
        10_000,
        "number of fixed meta-test tasks for the measures, and as many meta-validation tasks",
    )
    final_tasks: int = _number(
        0, 0, 100_000, "number of further meta-test tasks, for accuracy alone, once at the end"
    )
    seed: int = _number(0, *SEEDS, "seed of the initial weights and the meta-training tasks")
    task_seed: int = _number(
        0, *SEEDS, "seed of the fixed meta-test and meta-validation tasks; independent of seed"
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            _check_value(setting, value)
            # 1 and 1.0 are one setting, and one run; so are 1 and numpy's 1.
            if "range" in setting.metadata:
                plain = float if isinstance(setting.default, float) else int
                object.__setattr__(self, setting.name, plain(value))
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raise SettingsError where two settings exclude each other."""
        if self.iterations % self.epoch_iterations:
            raise SettingsError(
                f"iterations={self.iterations} is not a whole number of epochs of epoch_iterations="
                f"{self.epoch_iterations}: choose a multiple"
            )
        algorithm = ALGORITHMS[self.algorithm]
        if self.dataset in DATASETS and self.content:
            raise SettingsError(
                f"content={self.content!r} belongs to a data set of one's own, not to "
                f"{self.dataset!r}: leave it out"
            )
        if self.dataset != "omniglot" and self.rotations:
            raise SettingsError(
                f"rotations belong to dataset='omniglot', not {self.dataset!r}: leave them out"
            )
        if algorithm.episodic and self.test_head == "shared":
            raise AlgorithmError(
                "test_head='shared' belongs to algorithm='finetune'", "leave it out"
            )
        if not algorithm.episodic and self.test_head == "centred":
            raise AlgorithmError(
                f"test_head='centred' belongs to a head that is meta-learnt, not to algorithm="
                f"{self.algorithm!r}",
                "leave it out",
            )
        if not algorithm.episodic and self.inner_head != "learnt":
            raise AlgorithmError(
                f"inner_head={self.inner_head!r} belongs to meta-training, not to algorithm="
                f"{self.algorithm!r}",
                "give a test_head",
            )
        for name in ("test_head", "head_init"):
            head = getattr(self, name)
            if self.inner_head == "zero" and head != getattr(Settings, name):
                raise SettingsError(
                    f"{name}={head!r} has no effect with inner_head='zero', which puts a head of "
                    "zeros in its place: leave one of them out"
                )
        for name, heads in ALIKE_HEADS.items():
            head = getattr(self, name)
            if self.adapts == "body" and head in heads:
                raise SettingsError(
                    f"adapts='body' with {name}={head!r} moves nothing: adapt the head too, or "
                    f"leave {name} out"
                )
        if (self.regulariser == "none") != (self.gamma == 0):
            raise SettingsError(
                f"regulariser={self.regulariser!r} with gamma={self.gamma:g}: give a regulariser "
                "and a gamma above 0"
            )
        if self.regulariser not in algorithm.regularisers:
            raise AlgorithmError(
                f"regulariser={self.regulariser!r} has no effect under algorithm="
                f"{self.algorithm!r}",
                f"choose from {', '.join(algorithm.regularisers)}",
            )
        if self.meta_batch == 1 and self.regulariser in OF_SEVERAL_TASKS.get(self.algorithm, ()):
            raise SettingsError(
                f"regulariser={self.regulariser!r} with meta_batch=1 has no effect under algorithm="
                f"{self.algorithm!r}: take 2 tasks or more"
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
        """Number of epochs, without epoch 0, the untrained network."""
        return self.iterations // self.epoch_iterations

    def epoch_of(self, until: int | None) -> int:
        """The epoch that reaches iteration `until`; the last epoch if that is later or None."""
        if until is None:
            return self.epochs
        return min(self.epochs, math.ceil(until / self.epoch_iterations))

    def ending(self, epoch: int) -> "Settings":
        """The settings of a run that ends after this epoch, from 1 on.

        Random draws do not depend on a run's length, so the shorter run has the weights that this
        run has after the epoch. These settings themselves, if the epoch is the last one or later.
        """
        if epoch >= self.epochs:
            return self
        return replace(self, iterations=epoch * self.epoch_iterations, final_tasks=0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images.

        Raises SettingsError for a data set of one's own whose content is not known yet.
        """
        if self.dataset in DATASETS:
            return DATASETS[self.dataset].shape
        if not self.content:
            raise SettingsError(
                f"dataset={self.dataset!r} is one's own, and its content is not known: run it "
                "first, and take the settings of the record"
            )
        channels, height, width = map(int, self.content.partition("-")[0].split("x"))
        return channels, height, width

    @property
    def first_order(self) -> bool:
        """Whether the meta-gradient leaves out the derivative through the inner gradient."""
        return ALGORITHMS[self.algorithm].first_order

    @property
    def setting(self) -> str:
        """Ways and shots, as readers write them."""
        return f"{self.ways}-way {self.shots}-shot"

    @cached_property
    def unseeded(self) -> "Settings":
        """These settings with seed and class_seed 0: equal for all runs of a cell."""
        return replace(self, seed=0, class_seed=0)

    @cached_property
    def id(self) -> str:
        """The run's name on disk: readable words, then a hash of the settings that are no defaults.

        Defaults stay out of the hash, so a setting that is added later does not rename old runs.
        """
        changed = {
            setting.name: getattr(self, setting.name)
            for setting in fields(self)
            if getattr(self, setting.name) != setting.default
        }
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        classes = f"-{self.train_classes}c" if self.train_classes else ""
        reading = f"-{self.regulariser}" if self.regulariser != "none" else ""
        data = f"{self.dataset}{classes}-{self.ways}w{self.shots}s"
        return f"{data}-{self.algorithm}{reading}-s{self.seed}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for JSON."""
        return asdict(self)


# By a setting's name: its choices, or else its least and greatest value, from the fields above.
CHOICES: dict[str, Collection[Any]] = {
    setting.name: setting.metadata["choices"]
    for setting in fields(Settings)
    if "choices" in setting.metadata
}
RANGES: dict[str, tuple[float, float]] = {
    setting.name: setting.metadata["range"]
    for setting in fields(Settings)
    if "range" in setting.metadata
}


def from_dict(values: dict[str, Any]) -> Settings:
    """Make settings from names and values; a setting that is left out takes its default.

    A retired setting that has its one value is dropped.

    Raises:
        SettingsError: an unknown name, and as `Settings` does.
    """
    known = [setting.name for setting in fields(Settings)]
    values = {name: value for name, value in values.items() if not _is_retired(name, value)}
    for name in values:
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}: choose from {', '.join(known)}")
    return Settings(**values)


def _is_retired(name: str, value: Any) -> bool:
    """Whether it is a retired setting at the value that is still accepted.

    Raises SettingsError for a retired setting at another value.
    """
    if name not in RETIRED:
        return False
    if value != RETIRED[name]:
        raise SettingsError(
            f"{name}={value!r}: this setting is retired, and {name}={RETIRED[name]!r} is what is "
            "left: leave it out"
        )
    return True


def _check_value(setting: Field[Any], value: Any) -> None:
    """Raise SettingsError unless the value is one of the field's choices, or in its range."""
    kind = type(setting.default)
    if choices := setting.metadata.get("choices"):
        # False == 0 and True == 1, so `in` alone takes a number for a switch; it fails for a list.
        if not isinstance(value, kind) or value not in choices:
            is_own = setting.name in REGISTERED and isinstance(value, str)
            hint = ": if it is your own, name its file with --plugin, or register it first"
            raise SettingsError(
                f"{setting.name}={value!r} is not one of {', '.join(map(repr, choices))}"
                + (hint if is_own else "")
            )
        return
    if pattern := setting.metadata.get("pattern"):
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise SettingsError(f"{setting.name}={value!r} does not match {pattern}")
        return
    low, high = setting.metadata["range"]
    accepted = numbers.Real if kind is float else numbers.Integral
    is_number = isinstance(value, accepted) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        noun = "a number" if kind is float else "a whole number"
        raise SettingsError(f"{setting.name}={value!r} is not {noun} from {low} to {high}")


@dataclass(frozen=True)
class _PresetRow:
    """A row of a preset table: values, and the tasks that take them.

    Attributes:
        values: settings by name.
        dataset: the data set that takes them; "": every data set.
        ways: the least N that takes them.
        shots: the least K that takes them.
    """

    values: dict[str, Any]
    dataset: str = ""
    ways: int = 2
    shots: int = 1

    def applies_to(self, dataset: str, ways: int, shots: int) -> bool:
        return self.dataset in ("", dataset) and ways >= self.ways and shots >= self.shots


# What a data set, its ways and its shots change, at every scale. Where several rows apply, the
# last one decides.
TASK_ROWS = (
    _PresetRow({"inner_lr": 0.4, "inner_steps": 1, "test_steps": 1, "meta_batch": 32}),
    _PresetRow({"inner_lr": 0.1, "inner_steps": 5, "test_steps": 5, "meta_batch": 16}, ways=20),
    _PresetRow({"rotations": True}, dataset="omniglot"),
    _PresetRow({"inner_lr": 0.01, "inner_steps": 5, "test_steps": 10}, dataset="mini-imagenet"),
    _PresetRow({"filters": 32, "queries": 15, "meta_batch": 4}, dataset="mini-imagenet"),
    _PresetRow({"meta_batch": 2}, dataset="mini-imagenet", shots=2),
)
# What a scale changes after that. Again the last row decides.
SHORT = {"iterations": 1_200, "epoch_iterations": 100, "test_tasks": 30}
SCALE_ROWS: dict[Scale, tuple[_PresetRow, ...]] = {
    "paper": (_PresetRow({"epoch_iterations": 500, "final_tasks": 600}),),
    "quick": (
        _PresetRow({"filters": 32, "iterations": 1_800, "epoch_iterations": 150}),
        _PresetRow(SHORT, ways=20),
        _PresetRow(SHORT, shots=2),
        # A quarter of the paper's tasks per iteration, but at least 2.
        _PresetRow({"meta_batch": 8}),
        _PresetRow({"meta_batch": 4}, ways=20),
        _PresetRow({"meta_batch": 2}, dataset="mini-imagenet"),
    ),
    "smoke": (
        _PresetRow({"filters": 16, "iterations": 60, "epoch_iterations": 15, "meta_batch": 4}),
        _PresetRow({"test_tasks": 4, "test_queries": 5}),
    ),
}


def preset(
    scale: Scale, dataset: str = "omniglot", ways: int = 5, shots: int = 1, **changes: Any
) -> Settings:
    """Make the settings of a scale.

    `paper` has the paper's own settings (Finn et al. 2017). `quick` takes one to a few minutes on a
    CPU core. It differs from `paper` in filters, tasks per iteration, iterations, their number per
    epoch and final tasks and, from 20 ways or 2 shots on, in meta-test tasks. `smoke` takes seconds
    and shows that everything runs.

    Args:
        scale: "smoke", "quick" or "paper".
        dataset: the data set; glyphs take Omniglot's settings.
        ways: N; 20-way and above take the 20-way settings.
        shots: K.
        changes: further settings, which replace those of the scale.

    Raises:
        SettingsError: an unknown scale, and as `from_dict` does.

    Example:
        >>> settings = preset("quick", "omniglot", 20, 1, algorithm="fomaml")
        >>> settings.meta_batch, settings.inner_lr, settings.iterations
        (4, 0.1, 1200)
        >>> preset("paper", "omniglot", 20, 1).iterations
        60000
    """
    if scale not in get_args(Scale):
        raise SettingsError(
            f"scale={scale!r} is not one of {', '.join(map(repr, get_args(Scale)))}"
        )
    task = {"dataset": dataset, "ways": ways, "shots": shots}
    # The tables compare these, so they are checked first.
    for setting in fields(Settings):
        if setting.name in task:
            _check_value(setting, task[setting.name])
    values = task | {"queries": shots}  # as in Finn's code: as many query as support images
    for row in TASK_ROWS + SCALE_ROWS[scale]:
        if row.applies_to(dataset, ways, shots):
            values |= row.values
    return from_dict(values | changes)


@cache
def _preset_of_task(scale: Scale, dataset: str, ways: int, shots: int) -> Settings:
    """The preset without changes: every row and run of the ledger asks for one of a few."""
    return preset(scale, dataset, ways, shots)


def scale_of(settings: Settings) -> Scale | Literal["custom"]:
    """The scale with the filters and iterations of these settings, or "custom"."""
    size = ("filters", "iterations")
    for scale in get_args(Scale):
        base = _preset_of_task(scale, settings.dataset, settings.ways, settings.shots)
        if all(getattr(base, name) == getattr(settings, name) for name in size):
            return scale
    return "custom"


def differences_from_scale(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their scale's; those of a custom scale, from the defaults.

    Data set, ways, shots, algorithm and seeds are left out: they do not belong to a scale.
    """
    scale = scale_of(settings)
    base = Settings()
    if scale != "custom":
        base = _preset_of_task(scale, settings.dataset, settings.ways, settings.shots)
    left_out = ("dataset", "ways", "shots", "algorithm", "seed", "class_seed")
    return {
        name: value
        for name, value in asdict(settings).items()
        if name not in left_out and value != getattr(base, name)
    }
