"""All measures of one network on fixed tasks: the paper's, their parts, and one's own.

A measure is a function of `Solutions` that gives a value per task, or one of vectors of all tasks
that gives a statistic. `per_task` and `over_tasks` register it under its name; then `measure`
computes it, and each later run records it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.labels import MEASURES, OWN_MEASURE, Measure, require_free_name, require_name
from metanb.landscape import coherence, hessian, task_stats
from metanb.landscape.lanczos import number_tasks
from metanb.landscape.solutions import (
    Solutions,
    adapt_at_test,
    require_head,
    starting_points_together,
)
from metanb.landscape.task_stats import Stat
from metanb.maml.inner_loop import accuracy, flatten, losses, unflatten
from metanb.maml.per_task import count_activations, head_size, quarters_of_body
from metanb.settings import Settings


class Vectors(NamedTuple):
    """Vectors of all T tasks of one run."""

    displacement: Tensor  #: [T, P] theta~_i - theta_s
    gradient: Tensor  #: [T, P] of the support loss at theta_s
    uniform: Tensor  #: [T, P] the same for labels of 1/N for each class
    head: slice  #: the head's parameters among P; they come last
    #: the parameters of the body's layers: its first quarter of layers, its second, and so on
    quarters: list[slice]


ValuesPerTask = Callable[[Solutions], Tensor]
StatOverTasks = Callable[[Vectors], Stat]
PER_TASK: dict[str, ValuesPerTask] = {}
OVER_TASKS: dict[str, StatOverTasks] = {}
# Measures with a definition of their own, below: of the network, and on meta-validation tasks.
OF_NETWORK = ("body_norm", "head_norm")
VALID = "valid_accuracy"
# Measures that a run records besides these: of its training, and after its last epoch.
OF_TRAINING = ("train_loss", "relative_move")
OF_RUNS = (*OF_TRAINING, "final_accuracy", "final_accuracy_finn")
# pandas reads these words in a column of a table as missing values
_MISSING_VALUES = ("nan", "null")
BASIS = 33  # vectors of the Lanczos basis of a Hessian norm, and one beside it
PERMUTATIONS = 5  # of a task's labels, at most: cyclic shifts that are evenly spread

Function = TypeVar("Function", ValuesPerTask, StatOverTasks)


def per_task(name: str, entry: Measure | None = None) -> Callable[[ValuesPerTask], ValuesPerTask]:
    """Register a function of `Solutions` that gives a measure's value for each task, [T].

    Gradients are off when it is called; `torch.enable_grad()` turns them on.

    Args:
        name: of the measure, in records.
        entry: what figures call it; None: its name.

    Raises:
        ValueError: the name is taken by another function, or is not made of small letters, digits
            and underscores.

    Example:
        >>> @per_task("gradient_norm_example", Measure("norm of the support gradient", log=True))
        ... def norm_of_gradient(at: Solutions) -> Tensor:
        ...     return at.gradient.norm(dim=1)
        >>> MEASURES["gradient_norm_example"].label
        'norm of the support gradient'
        >>> del PER_TASK["gradient_norm_example"], MEASURES["gradient_norm_example"]  # it is gone
    """
    return _register(name, entry, PER_TASK)


def over_tasks(name: str, entry: Measure | None = None) -> Callable[[StatOverTasks], StatOverTasks]:
    """Register a function of `Vectors` that gives a measure's statistic over all tasks.

    Arguments and errors are those of `per_task`.
    """
    return _register(name, entry, OVER_TASKS)


def known_measures() -> list[str]:
    """Return the names of all measures that `measure` computes."""
    return [*PER_TASK, *OVER_TASKS, VALID, *OF_NETWORK]


def require_free_measure(name: str, function: object = None) -> None:
    """Raise ValueError unless values of one's own may be recorded under a name.

    It is made of small letters, digits and underscores, and is not that of a measure, unless this
    is the same function; see `require_free_name`.
    """
    _require_name(name)
    taken = {**PER_TASK, **OVER_TASKS, **dict.fromkeys((VALID, *OF_NETWORK, *OF_RUNS))}
    require_free_name("a measure", name, taken, function)


def _require_name(name: str) -> None:
    """Raise ValueError for what cannot be a measure's name in a record."""
    require_name("a measure", name, OWN_MEASURE)
    if name in _MISSING_VALUES:
        raise ValueError(f"a measure {name!r} is a missing value in a table: choose another name")


def _register(
    name: str, entry: Measure | None, table: dict[str, Function]
) -> Callable[[Function], Function]:
    _require_name(name)

    def register(function: Function) -> Function:
        require_free_measure(name, function)
        for other_table in (PER_TASK, OVER_TASKS):
            if other_table is not table:
                other_table.pop(name, None)
        table[name] = function
        if entry is not None or name not in MEASURES:
            MEASURES[name] = entry or Measure(name)
        return function

    return register


@per_task("support_loss_before")
def _support_loss_before(at: Solutions) -> Tensor:
    return at.loss_before


@per_task("entropy_before")
def _entropy_before(at: Solutions) -> Tensor:
    return -(at.log_p.exp() * at.log_p).sum(-1).mean(1)


@per_task("majority_before")
def _majority_before(at: Solutions) -> Tensor:
    answers = F.one_hot(at.log_p.argmax(-1), at.log_p.shape[-1])
    return answers.double().mean(1).amax(1)


@per_task("support_loss")
def _support_loss(at: Solutions) -> Tensor:
    return at.support_loss(at.adapted)


@per_task("query_loss")
def _query_loss(at: Solutions) -> Tensor:
    return losses(at.net, at.adapted, at.tasks.query_x, at.tasks.query_y)


@per_task("query_accuracy")
def _query_accuracy(at: Solutions) -> Tensor:
    return accuracy(at.net, at.adapted, at.tasks.query_x, at.tasks.query_y)


@per_task("hessian_norm")
def _hessian_norm(at: Solutions) -> Tensor:
    return at.hessian.norms


@per_task("hessian_largest")
def _hessian_largest(at: Solutions) -> Tensor:
    return at.hessian.largest


@per_task("hessian_smallest")
def _hessian_smallest(at: Solutions) -> Tensor:
    return at.hessian.smallest


@per_task("adaptive_sharpness")
def _adaptive_sharpness(at: Solutions) -> Tensor:
    return hessian.adaptive_sharpness(at.support_loss, at.adapted).norms


@per_task("path_curvature")
def _path_curvature(at: Solutions) -> Tensor:
    params = at.start
    curvatures = [hessian.curvature_along_gradient(at.support_loss, params)]
    for _ in range(at.settings.test_steps - 1):
        params = adapt_at_test(at.net, at.tasks, params, at.settings, steps=1)
        curvatures.append(hessian.curvature_along_gradient(at.support_loss, params))
    return torch.stack(curvatures).mean(0)


@per_task("gradient_norm")
def _gradient_norm(at: Solutions) -> Tensor:
    return at.gradient.norm(dim=1)


@per_task("within_product")
def _within_product(at: Solutions) -> Tensor:
    return (at.gradient * at.query_gradient).sum(1)


@per_task("within_cosine")
def _within_cosine(at: Solutions) -> Tensor:
    # A length below eps counts as eps; of such gradients, float32 holds the squares no longer.
    return F.cosine_similarity(at.gradient, at.query_gradient, dim=1, eps=1e-15)


@per_task("permutation_spread")
def _permutation_spread(at: Solutions) -> Tensor:
    ways = at.settings.ways
    accuracies = []
    for shift in range(0, ways, -(-ways // PERMUTATIONS)):
        # The same images, whose classes go to other outputs of the head.
        support_y, query_y = ((y + shift) % ways for y in (at.tasks.support_y, at.tasks.query_y))
        tasks = Tasks(at.tasks.support_x, support_y, at.tasks.query_x, query_y)
        adapted = adapt_at_test(at.net, tasks, at.start, at.settings) if shift else at.adapted
        accuracies.append(accuracy(at.net, adapted, tasks.query_x, query_y))
    return torch.stack(accuracies).std(0)


@over_tasks("distance")
def _distance(vectors: Vectors) -> Stat:
    return task_stats.distance(vectors.displacement)


@over_tasks("trajectory_coherence")
def _trajectory_coherence(vectors: Vectors) -> Stat:
    return coherence.trajectory_coherence(vectors.displacement)[0]


@over_tasks("trajectory_coherence_head")
def _trajectory_coherence_head(vectors: Vectors) -> Stat:
    return coherence.trajectory_coherence(vectors.displacement, vectors.head)[0]


@over_tasks("trajectory_coherence_body")
def _trajectory_coherence_body(vectors: Vectors) -> Stat:
    body = slice(0, vectors.head.start)
    return coherence.trajectory_coherence(vectors.displacement, body)[0]


def _quarter_of_coherence(number: int) -> StatOverTasks:
    """The share in trajectory coherence of one quarter of the body's layers, from 0 on."""
    return lambda vectors: coherence.trajectory_coherence(
        vectors.displacement, vectors.quarters[number]
    )[0]


for _number in range(4):
    over_tasks(f"trajectory_coherence_body{_number + 1}")(_quarter_of_coherence(_number))


@over_tasks("effective_rank")
def _effective_rank(vectors: Vectors) -> Stat:
    return coherence.effective_rank(vectors.displacement)


@over_tasks("gradient_coherence")
def _gradient_coherence(vectors: Vectors) -> Stat:
    return coherence.gradient_coherence(vectors.gradient)


@over_tasks("gradient_coherence_uniform")
def _gradient_coherence_uniform(vectors: Vectors) -> Stat:
    return coherence.gradient_coherence(vectors.uniform)


@over_tasks("gradient_coherence_label")
def _gradient_coherence_label(vectors: Vectors) -> Stat:
    return coherence.gradient_coherence(vectors.gradient - vectors.uniform)


@over_tasks("gradient_cosine")
def _gradient_cosine(vectors: Vectors) -> Stat:
    return coherence.trajectory_coherence(vectors.gradient)[0]


def measure(
    net: nn.Module,
    test: Tasks,
    valid: Tasks,
    settings: Settings,
    names: Collection[str] | None = None,
) -> dict[str, Stat]:
    """Compute the measures of theta_s; each is over meta-test tasks unless said otherwise.

    At the adapted solutions: `support_loss`, `query_loss`, `query_accuracy`, `hessian_norm`, the
    largest and the smallest eigenvalue `hessian_largest` and `hessian_smallest` (with an error of
    at most ENDS_TOL of the norm), `adaptive_sharpness` and `distance`.

    At theta_s, before adapting, on the support set: `support_loss_before`; `entropy_before`, the
    entropy of an image's prediction, in nats; `majority_before`, the share of a task's images that
    get its most frequent answer (1: all of them); `gradient_norm`, the length of the gradient g.

    Within a task, at theta_s: `within_product` and `within_cosine`, the inner product and the
    cosine of the gradients of its support and query loss (Nichol et al. 2018).

    Along the inner path: `path_curvature`, g'Hg / norm(g)^2 where each step begins, the mean over
    the steps; g is the whole gradient, also where a step takes only the head's or the body's part
    of it (`adapts`). Over at most PERMUTATIONS cyclic shifts of a task's labels:
    `permutation_spread`, the standard deviation of its query accuracy (Ye and Chao 2022).

    Coherence: `trajectory_coherence` (n: tasks that moved), and the shares of the head's and of the
    other parameters in it, `trajectory_coherence_head` and `_body`, the latter again by quarters of
    the layers, `_body1` (the input's) to `_body4`; the paper's ConvNet has one block in each.
    `effective_rank` of the tasks' directions, see `metanb.landscape.coherence.effective_rank`.
    `gradient_coherence`;
    `gradient_cosine`. The support gradient is linear in the labels: g = g_uniform + g_label, where
    g_uniform is the gradient for labels of 1/N for each class. `gradient_coherence_uniform` and
    `_label` are the coherence of each part.

    On meta-validation tasks: `valid_accuracy`. Of the network: `body_norm` and `head_norm`, the L2
    norms of the convolutions' weights and of the head's weight.

    Args:
        net: the network, any module that classifies; its parameters are theta_s.
        test: the meta-test tasks.
        valid: the meta-validation tasks.
        settings: the run's settings. Of a module of one's own, those of the inner loop count: N,
            inner_lr, test_steps, adapts, inner_loss, inner_head and, if it is "zero", test_head.
        names: of the measures, see `known_measures`; None: all of them.

    Raises:
        ValueError: an unknown name; or a "centred" head, see `require_head`.

    Example:
        >>> import torch
        >>> from metanb.maml.network import ConvNet
        >>> from metanb.settings import preset
        >>> _ = torch.manual_seed(0)
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> x, y = torch.rand(3, 2, 1, 8, 8), torch.arange(2).expand(3, 2)
        >>> tasks = Tasks(x, y, x, y)  # the support images are the query images, too
        >>> stats = measure(net, tasks, tasks, preset("smoke", "glyphs", ways=2))
        >>> stats["distance"].n, stats["query_loss"].mean < stats["support_loss_before"].mean
        (3, True)
    """
    require_head(settings)
    theta = flatten(net).detach().unsqueeze(0)
    return measure_together(net, theta, test, valid, [settings], names)[0]


def measure_together(
    net: nn.Module,
    theta: Tensor,
    test: Tasks,
    valid: Tasks,
    runs: Sequence[Settings],
    names: Collection[str] | None = None,
) -> list[dict[str, Stat]]:
    """Compute the measures of S runs that differ by seeds alone, on the same tasks.

    `measure` says what the measures are. All tasks of all runs share one Lanczos iteration, chunk
    by chunk.

    Args:
        net: a network of the runs' design; its weights are not used.
        theta: [S, P], the weights of each run, as `starting_points_together` takes them.
        test: the meta-test tasks.
        valid: the meta-validation tasks.
        runs: the S runs' settings.
        names: as for `measure`.
    """
    wanted = known_measures() if names is None else list(names)
    if unknown := [name for name in wanted if name not in known_measures()]:
        raise ValueError(f"no measure {unknown[0]!r}: choose from {', '.join(known_measures())}")
    values_per_task = {name: PER_TASK[name] for name in PER_TASK if name in wanted}
    stats_over_tasks = {name: OVER_TASKS[name] for name in OVER_TASKS if name in wanted}

    # Values and vectors of each task of each run, [S*T, ...], chunk by chunk.
    learner, starts = starting_points_together(net, theta, runs, len(test), stream=0)
    by_chunk: dict[str, list[Tensor]] = {}
    vectors_by_chunk: dict[str, list[Tensor]] = {}
    for rows, tasks in _split_into_chunks(learner, starts, test, len(runs)):
        at = Solutions(learner, tasks, starts[rows], runs[0])
        with torch.no_grad(), number_tasks(rows.start, len(test)):
            for name, compute in values_per_task.items():
                by_chunk.setdefault(name, []).append(_require_one_per_task(name, compute(at), at))
            if stats_over_tasks:
                for name in ("displacement", "gradient", "uniform"):
                    vectors_by_chunk.setdefault(name, []).append(getattr(at, name))
    # The same by run, [S, T, ...].
    values, vectors = (
        {name: torch.cat(parts).unflatten(0, (len(runs), -1)) for name, parts in chunks.items()}
        for chunks in (by_chunk, vectors_by_chunk)
    )

    # Statistics over the tasks of each run; the head's parameters come last.
    parts: dict[str, Any] = {
        "head": slice(starts.shape[1] - head_size(learner), starts.shape[1]),
        "quarters": quarters_of_body(learner),
    }
    stats: list[dict[str, Stat]] = []
    for run in range(len(runs)):
        stats.append({name: task_stats.summarise(rows[run]) for name, rows in values.items()})
        if stats_over_tasks:
            of_run = Vectors(**{name: rows[run] for name, rows in vectors.items()}, **parts)
            for name, summarise_run in stats_over_tasks.items():
                stats[run][name] = _require_stat(name, summarise_run(of_run))

    # Measures that are not over meta-test tasks.
    if VALID in wanted:
        accuracies = accuracies_after_adapting(net, theta, valid, runs, stream=1)
        for run, by_task in enumerate(accuracies):
            stats[run][VALID] = task_stats.summarise(by_task)
    for run in range(len(runs)):
        norms = _weight_norms(unflatten(net, theta[run]))
        stats[run] |= {name: stat for name, stat in norms.items() if name in wanted}
    return stats


def _require_one_per_task(name: str, values: Tensor, at: Solutions) -> Tensor:
    """The values, detached; raise ValueError unless there is one per task."""
    is_tensor = isinstance(values, Tensor)
    if not is_tensor or values.shape != (len(at.tasks),):
        shown = list(values.shape) if is_tensor else f"a {type(values).__name__}"
        raise ValueError(
            f"measure {name!r} gave {shown} for {len(at.tasks)} tasks: give one value per task, a "
            "tensor [T]"
        )
    return values.detach()


def _require_stat(name: str, stat: Stat) -> Stat:
    """The statistic; raise ValueError if it is something else."""
    if not isinstance(stat, Stat):
        raise ValueError(f"measure {name!r} gave a {type(stat).__name__}: give a Stat")
    return stat


def _weight_norms(weights: list[Tensor]) -> dict[str, Stat]:
    """The L2 norms of the body's and of the head's weights, without biases and scales."""
    matrices = [weight for weight in weights if weight.dim() > 1]
    norms: dict[str, Stat] = {}
    for name, tensors in zip(OF_NETWORK, (matrices[:-1], matrices[-1:]), strict=True):
        norm = float(torch.cat([weight.flatten() for weight in tensors]).norm()) if tensors else 0.0
        norms[name] = Stat(norm, norm, 0.0, 0.0, 1)
    return norms


def accuracies_after_adapting(
    net: nn.Module, theta: Tensor, tasks: Tasks, runs: Sequence[Settings], stream: int
) -> Tensor:
    """Compute the shares of right answers on each task's query images after adapting, [S, T].

    Args:
        net: a network of the runs' design; its weights are not used.
        theta: [S, P], the weights of each run.
        tasks: T tasks.
        runs: the S runs' settings.
        stream: the stream of random numbers of fresh heads.
    """
    learner, starts = starting_points_together(net, theta, runs, len(tasks), stream)
    accuracies_by_chunk = []
    for rows, part in _split_into_chunks(learner, starts, tasks, len(runs)):
        part = part.to(theta.device)
        adapted = adapt_at_test(learner, part, starts[rows], runs[0])
        accuracies_by_chunk.append(accuracy(learner, adapted, part.query_x, part.query_y))
    return torch.cat(accuracies_by_chunk).unflatten(0, (len(runs), -1))


def _split_into_chunks(
    net: nn.Module, starts: Tensor, tasks: Tasks, runs: int
) -> Iterator[tuple[slice, Tasks]]:
    """Rows of starts [S*T, P], run after run, and their tasks: as many as fit at once."""
    at_once = task_stats.tasks_at_once(starts.device, bytes_per_task(net, starts, tasks))
    for first in range(0, len(starts), at_once):
        rows = slice(first, min(first + at_once, len(starts)))
        if runs == 1:
            yield rows, tasks[rows]
        else:
            numbers = torch.arange(rows.start, rows.stop) % len(tasks)
            yield rows, Tasks(*(x[numbers.to(x.device)] for x in tasks.tensors()))


def bytes_per_task(net: nn.Module, starts: Tensor, tasks: Tasks, vectors: int = BASIS) -> float:
    """Memory that measuring a task takes on a GPU, a generous estimate.

    It holds a Lanczos basis of so many vectors, copies of the query images' activations and patches
    for a gradient, and more of the support images', whose gradient is differentiated. Exact counts:
    `tests/landscape/test_memory.py`.
    """
    bytes_per_image = count_activations(net, tasks.query_x[0, :1]) * starts.element_size()
    support = tasks.support_x.shape[1] * bytes_per_image
    query = tasks.query_x.shape[1] * bytes_per_image
    basis = vectors * starts.shape[1] * starts.element_size()
    return basis + 5 * query + 8 * support
