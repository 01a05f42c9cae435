"""All measures of one network on fixed tasks: the paper's, and the parts that they consist of."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.labels import ALGORITHMS
from metanb.landscape import coherence, hessian, task_stats
from metanb.landscape.task_stats import Stat
from metanb.maml.inner_loop import accuracy, adapt, flatten, logits, losses, unflatten
from metanb.maml.network import ConvNet
from metanb.maml.per_task import count_activations, for_tasks, head_size
from metanb.settings import Settings

HEAD = 3  # the stream of random numbers of fresh heads


def measure(net: nn.Module, test: Tasks, valid: Tasks, settings: Settings) -> dict[str, Stat]:
    """Compute every measure of theta_s; each is over meta-test tasks unless said otherwise.

    At the adapted solutions: `support_loss`, `query_loss`, `query_accuracy`, `hessian_norm`,
    `adaptive_sharpness` and `distance`.

    At theta_s, before adapting, on the support set: `support_loss_before`; `entropy_before`, the
    entropy of an image's prediction, in nats; `majority_before`, the share of a task's images that
    get its most frequent answer (1: all of them).

    Coherence: `trajectory_coherence` (n: tasks that moved), and the shares of the head's and of the
    other parameters in it, `trajectory_coherence_head` and `_body`; `gradient_coherence`;
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
            inner_lr, test_steps, adapts and inner_loss.

    Example:
        >>> import torch
        >>> from metanb.settings import preset
        >>> _ = torch.manual_seed(0)
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> x, y = torch.rand(3, 2, 1, 8, 8), torch.arange(2).expand(3, 2)
        >>> tasks = Tasks(x, y, x, y)  # the support images are the query images, too
        >>> stats = measure(net, tasks, tasks, preset("smoke", "glyphs", ways=2))
        >>> stats["distance"].n, stats["query_loss"].mean < stats["support_loss_before"].mean
        (3, True)
    """
    return measure_together(net, flatten(net).detach().unsqueeze(0), test, valid, [settings])[0]


def measure_together(
    net: nn.Module, theta: Tensor, test: Tasks, valid: Tasks, runs: Sequence[Settings]
) -> list[dict[str, Stat]]:
    """Compute the measures of S runs that differ by seeds alone, on the same tasks.

    `measure` says what the measures are. All tasks of all runs share one Lanczos iteration, chunk
    by chunk.

    Args:
        net: a network of the runs' design; its weights are not used.
        theta: [S, P], the weights of each run.
        test: the meta-test tasks.
        valid: the meta-validation tasks.
        runs: the S runs' settings.
    """
    # Values of each task of each run, [S*T, ...], chunk by chunk.
    learner, starts = starting_points_together(net, theta, runs, len(test), stream=0)
    values_by_chunk: dict[str, list[Tensor]] = {}
    for rows, tasks in _split_into_chunks(learner, starts, test, len(runs)):
        for name, values in _measure_tasks(learner, starts[rows], tasks, runs[0]).items():
            values_by_chunk.setdefault(name, []).append(values)
    # The same by run, [S, T, ...].
    values_by_run = {
        name: torch.cat(chunks).unflatten(0, (len(runs), -1))
        for name, chunks in values_by_chunk.items()
    }
    valid_accuracies = _compute_accuracies(net, theta, valid, runs, stream=1)
    # Statistics over the tasks of each run.
    return [
        _summarise_run(
            learner,
            unflatten(net, theta[run]),
            {name: values[run] for name, values in values_by_run.items()},
            valid_accuracies[run],
        )
        for run in range(len(runs))
    ]


def _measure_tasks(
    net: nn.Module, theta: Tensor, tasks: Tasks, settings: Settings
) -> dict[str, Tensor]:
    """Values [T] of a chunk of tasks; displacements, gradients and uniform gradients [T, P]."""
    # Predictions at theta_s on the support set.
    start = theta.clone().requires_grad_()
    support = for_tasks(net).patches(tasks.support_x)  # the same for every measure
    log_p = F.log_softmax(logits(net, start, support), -1)  # [T, N*K, N]

    # Gradients at theta_s: for the true labels, and for labels of 1/N for each class.
    loss_by_image = F.nll_loss(log_p.flatten(0, 1), tasks.support_y.flatten(), reduction="none")
    loss_before = loss_by_image.view(len(tasks), -1).mean(1)
    (gradient,) = torch.autograd.grad(loss_before.sum(), start, retain_graph=True)
    (uniform,) = torch.autograd.grad(-log_p.mean((1, 2)).sum(), start)
    log_p = log_p.detach()

    answers = F.one_hot(log_p.argmax(-1), log_p.shape[-1])

    # The adapted solutions, where flatness is measured.
    adapted = adapt_at_test(net, tasks, theta, settings)

    def support_loss(params: Tensor) -> Tensor:
        return losses(net, params, support, tasks.support_y)

    with torch.no_grad():
        return {
            "support_loss_before": loss_before.detach(),
            "entropy_before": -(log_p.exp() * log_p).sum(-1).mean(1),
            "majority_before": answers.double().mean(1).amax(1),
            "support_loss": support_loss(adapted),
            "query_loss": losses(net, adapted, tasks.query_x, tasks.query_y),
            "query_accuracy": accuracy(net, adapted, tasks.query_x, tasks.query_y),
            "hessian_norm": hessian.hessian_norms(support_loss, adapted).norms,
            "adaptive_sharpness": hessian.adaptive_sharpness(support_loss, adapted).norms,
            "displacement": adapted - theta,
            "gradient": gradient,
            "uniform": uniform,
        }


def _summarise_run(
    learner: nn.Module, weights: list[Tensor], values: dict[str, Tensor], valid_accuracies: Tensor
) -> dict[str, Stat]:
    """One run's statistics.

    Args:
        learner: the network that adapts.
        weights: the run's own parameters, in the order of `net.parameters()`.
        values: what `_measure_tasks` gives, over all tasks.
        valid_accuracies: [T], on meta-validation tasks.
    """
    # Vectors [T, P], which have statistics of their own; all other values are one per task.
    displacement = values.pop("displacement")
    gradient = values.pop("gradient")
    uniform = values.pop("uniform")
    stats = {name: task_stats.summarise(by_task) for name, by_task in values.items()}
    stats["distance"] = task_stats.distance(displacement)

    # Coherence of trajectories, whole and by its shares: the head's parameters come last.
    size = displacement.shape[1]
    head = slice(size - head_size(learner), size)
    body = slice(0, head.start)
    trajectory_coherence = coherence.trajectory_coherence
    stats["trajectory_coherence"], _ = trajectory_coherence(displacement)
    stats["trajectory_coherence_head"], _ = trajectory_coherence(displacement, head)
    stats["trajectory_coherence_body"], _ = trajectory_coherence(displacement, body)

    # Coherence of gradients, whole and by its parts; the cosine is that of directions.
    stats["gradient_coherence"] = coherence.gradient_coherence(gradient)
    stats["gradient_coherence_uniform"] = coherence.gradient_coherence(uniform)
    stats["gradient_coherence_label"] = coherence.gradient_coherence(gradient - uniform)
    stats["gradient_cosine"], _ = trajectory_coherence(gradient)

    # Measures that are not over meta-test tasks.
    stats["valid_accuracy"] = task_stats.summarise(valid_accuracies)
    matrices = [weight for weight in weights if weight.dim() > 1]  # no biases, no scales
    for part, tensors in (("body", matrices[:-1]), ("head", matrices[-1:])):
        norm = float(torch.cat([weight.flatten() for weight in tensors]).norm()) if tensors else 0.0
        stats[f"{part}_norm"] = Stat(norm, norm, 0.0, 0.0, 1)
    return stats


def accuracies_after_adapting(
    net: nn.Module, tasks: Tasks, settings: Settings, stream: int
) -> Tensor:
    """Compute the share of right answers on each task's query images after adapting, [T].

    `stream` is the stream of random numbers of fresh heads.
    """
    theta = flatten(net).detach().unsqueeze(0)
    return _compute_accuracies(net, theta, tasks, [settings], stream)[0]


def _compute_accuracies(
    net: nn.Module, theta: Tensor, tasks: Tasks, runs: Sequence[Settings], stream: int
) -> Tensor:
    """Shares of right answers of S runs with weights theta [S, P], after adapting: [S, T]."""
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
    at_once = task_stats.tasks_at_once(starts.device, _bytes_per_task(net, starts, tasks))
    for first in range(0, len(starts), at_once):
        rows = slice(first, min(first + at_once, len(starts)))
        if runs == 1:
            yield rows, tasks[rows]
        else:
            numbers = torch.arange(rows.start, rows.stop) % len(tasks)
            yield rows, Tasks(*(x[numbers.to(x.device)] for x in tasks.tensors()))


def _bytes_per_task(net: nn.Module, starts: Tensor, tasks: Tasks) -> float:
    """Memory that measuring a task takes on a GPU, a generous estimate.

    It holds a Lanczos basis, a few copies of the query images' activations and patches, and more of
    the support images', whose gradient is differentiated. Exact counts:
    `tests/landscape/test_memory.py`.
    """
    bytes_per_image = count_activations(net, tasks.query_x[0, :1]) * starts.element_size()
    support = tasks.support_x.shape[1] * bytes_per_image
    query = tasks.query_x.shape[1] * bytes_per_image
    basis = 33 * starts.shape[1] * starts.element_size()
    return basis + 3.5 * query + 8 * support


def starting_points(
    net: nn.Module, settings: Settings, n_tasks: int, stream: int
) -> tuple[nn.Module, Tensor]:
    """Return the N-way network that adapts, and each task's start, [n_tasks, P], detached.

    They are the network itself and theta_s for all tasks. After an algorithm that is not episodic
    (finetuning) the trained body gets an N-way head: "fresh", drawn anew for each task; "shared",
    one draw for all tasks; or "zero". A task's head depends on the run's seed, the stream and the
    task's number, so it is the same after each epoch.
    """
    theta = flatten(net).detach().unsqueeze(0)
    return starting_points_together(net, theta, [settings], n_tasks, stream)


def starting_points_together(
    net: nn.Module, theta: Tensor, runs: Sequence[Settings], n_tasks: int, stream: int
) -> tuple[nn.Module, Tensor]:
    """Return what `starting_points` does for S runs: starts are [S*n_tasks, P], run after run.

    Args:
        net: a network of the runs' design; its weights are not used.
        theta: [S, P], the weights of each run.
        runs: the S runs' settings.
        n_tasks: tasks per run.
        stream: the stream of random numbers of fresh heads.
    """
    if ALGORITHMS[runs[0].algorithm].episodic:
        return net, theta.unsqueeze(1).expand(-1, n_tasks, -1).flatten(0, 1)
    if not isinstance(net, ConvNet):
        raise ValueError(
            f"algorithm={runs[0].algorithm!r} gives a new head to ConvNet alone, not to "
            f"{type(net).__name__}: give the network an N-way head, and measure it under another "
            "algorithm"
        )
    learner = ConvNet(net.image_shape, runs[0].ways, net.filters)
    body_size = sum(p.numel() for p in net.blocks.parameters())
    starts_by_run = []
    for settings, weights in zip(runs, theta, strict=True):
        n_heads = 1 if settings.test_head == "shared" else n_tasks
        heads = torch.stack(
            [_draw_head(learner, settings, stream, number) for number in range(n_heads)]
        ).to(weights)
        bodies = weights[:body_size].expand(n_heads, -1)
        starts_by_run.append(torch.cat([bodies, heads], dim=1).expand(n_tasks, -1))
    starts = starts_by_run[0] if len(starts_by_run) == 1 else torch.cat(starts_by_run)
    return learner.to(theta), starts


def _draw_head(learner: ConvNet, settings: Settings, stream: int, number: int) -> Tensor:
    """Parameters of a new head, flat; torch's own random state stays as it is."""
    rng = np.random.default_rng([settings.seed, HEAD, stream, number])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        learner.reset_head("zero" if settings.test_head == "zero" else settings.head_init)
    return torch.cat([p.detach().flatten() for p in learner.head.parameters()])


def adapt_at_test(net: nn.Module, tasks: Tasks, start: Tensor, settings: Settings) -> Tensor:
    """Return the parameters [T, P] after the meta-test steps from start [T, P], detached."""
    adapted = adapt(
        net,
        tasks,
        settings.inner_lr,
        settings.test_steps,
        first_order=True,
        adapts=settings.adapts,
        inner_loss=settings.inner_loss,
        start=start,
    )
    return adapted.detach()
