"""All measures of one network on fixed tasks: the paper's, and those that tell what they are made of."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metanb.data.tasks import Tasks
from metanb.landscape import coherence, hessian, task_stats
from metanb.landscape.task_stats import Stat
from metanb.maml.inner_loop import accuracy, adapt, flatten, logits, losses, unflatten
from metanb.maml.network import ConvNet
from metanb.settings import Settings

HEAD = 3  # the stream of random numbers of fresh heads


def measure(net: ConvNet, test: Tasks, valid: Tasks, settings: Settings) -> dict[str, Stat]:
    """Every measure of theta_s, each over tasks unless said otherwise.

    Adapted solutions of meta-test tasks: `support_loss`, `query_loss`, `query_accuracy`,
    `hessian_norm`, `adaptive_sharpness` and `distance`.

    At theta_s, before adapting, on the support set: `support_loss_before`; `entropy_before`, of an
    image's prediction, in nats; `majority_before`, the share of a task's images that are given its
    most frequent answer (1: all of them).

    Coherence: `trajectory_coherence` (n: tasks that moved), and the shares that the head's and the
    other parameters have in it, `trajectory_coherence_head` and `_body`; `gradient_coherence`;
    `gradient_cosine`. The support gradient is linear in the labels: g = g_uniform + g_label, where
    g_uniform belongs to labels that are 1/N for each class. `gradient_coherence_uniform` and
    `_label` are the coherence of each part.

    On meta-validation tasks: `valid_accuracy`. Of the network: `body_norm` and `head_norm`, the L2
    norms of the convolutions' weights and of the head's.
    """
    return measure_together(net, flatten(net).detach().unsqueeze(0), test, valid, [settings])[0]


def measure_together(
    net: ConvNet, theta: Tensor, test: Tasks, valid: Tasks, runs: Sequence[Settings]
) -> list[dict[str, Stat]]:
    """The measures of S runs that differ by seeds alone, on the same tasks, as `measure` takes those of one.

    All tasks of all runs go through one Lanczos iteration, chunk by chunk.

    Args:
        net: a network of the runs' design; its weights are not used.
        theta: [S, P], the weights of each run.
        test: the meta-test tasks.
        valid: the meta-validation tasks.
        runs: the S runs' settings.
    """
    learner, starts = starting_points_together(net, theta, runs, len(test), stream=0)
    values: dict[str, list[Tensor]] = {}
    for chosen, part in _chunks(learner, starts, test, len(runs)):
        for name, value in _of_tasks(learner, starts[chosen], part, runs[0]).items():
            values.setdefault(name, []).append(value)
    whole = {name: torch.cat(parts).unflatten(0, (len(runs), -1)) for name, parts in values.items()}
    right = _accuracies(net, theta, valid, runs, stream=1)
    return [
        _stats(
            learner,
            unflatten(net, theta[i]),
            {name: value[i] for name, value in whole.items()},
            right[i],
        )
        for i in range(len(runs))
    ]


def _stats(
    learner: ConvNet, weights: list[Tensor], values: dict[str, Tensor], right: Tensor
) -> dict[str, Stat]:
    """One run's statistics: of values over tasks, of accuracies [T] on meta-validation tasks, of its weights."""
    moved, gradient, uniform = (
        values.pop(name) for name in ("displacement", "gradient", "uniform")
    )
    stats = {name: task_stats.summarise(value) for name, value in values.items()}
    head = slice(-sum(p.numel() for p in learner.head.parameters()), None)
    body = slice(None, head.start)
    stats["distance"] = task_stats.distance(moved)
    stats["trajectory_coherence"], _ = coherence.trajectory_coherence(moved)
    stats["trajectory_coherence_head"], _ = coherence.trajectory_coherence(moved, head)
    stats["trajectory_coherence_body"], _ = coherence.trajectory_coherence(moved, body)
    stats["gradient_coherence"] = coherence.gradient_coherence(gradient)
    stats["gradient_coherence_uniform"] = coherence.gradient_coherence(uniform)
    stats["gradient_coherence_label"] = coherence.gradient_coherence(gradient - uniform)
    stats["gradient_cosine"], _ = coherence.trajectory_coherence(gradient)
    stats["valid_accuracy"] = task_stats.summarise(right)
    convolutions, head_weight = [w for w in weights if w.dim() == 4], weights[-2]
    for part, tensors in (("body", convolutions), ("head", [head_weight])):
        norm = float(torch.cat([weight.flatten() for weight in tensors]).norm())
        stats[f"{part}_norm"] = Stat(norm, norm, 0.0, 0.0, 1)
    return stats


def accuracies_after_adapting(
    net: ConvNet, tasks: Tasks, settings: Settings, stream: int
) -> Tensor:
    """Share of right answers on each task's query images after adapting, [T]; `stream` is that of fresh heads."""
    return _accuracies(net, flatten(net).detach().unsqueeze(0), tasks, [settings], stream)[0]


def _accuracies(
    net: ConvNet, theta: Tensor, tasks: Tasks, runs: Sequence[Settings], stream: int
) -> Tensor:
    """The same for S runs at once, [S, T]."""
    learner, starts = starting_points_together(net, theta, runs, len(tasks), stream)
    parts = []
    for chosen, part in _chunks(learner, starts, tasks, len(runs)):
        part = part.to(theta.device)
        adapted = adapt_at_test(learner, part, starts[chosen], runs[0])
        parts.append(accuracy(learner, adapted, part.query_x, part.query_y))
    return torch.cat(parts).unflatten(0, (len(runs), -1))


def _chunks(net: ConvNet, starts: Tensor, tasks: Tasks, runs: int) -> Iterator[tuple[slice, Tasks]]:
    """Rows of starts [S*T, P], run after run, and the tasks that they belong to, as many as fit at once."""
    at_once = task_stats.tasks_at_once(starts.device, _bytes_of_a_task(net, starts, tasks))
    for first in range(0, len(starts), at_once):
        chosen = slice(first, min(first + at_once, len(starts)))
        if runs == 1:
            yield chosen, tasks[chosen]
        else:
            numbers = torch.arange(chosen.start, chosen.stop) % len(tasks)
            yield chosen, Tasks(*(x[numbers.to(x.device)] for x in tasks.tensors()))


def _bytes_of_a_task(net: ConvNet, starts: Tensor, tasks: Tasks) -> float:
    """What measuring a task takes on a GPU, counted generously: `tests/test_memory.py` counts it exactly.

    A Lanczos basis, a few copies of the query images' activations and patches, and more of the
    support images', whose gradient is differentiated.
    """
    support, query = (
        x.shape[1] * net.activations * starts.element_size()
        for x in (tasks.support_x, tasks.query_x)
    )
    basis = 33 * starts.shape[1] * starts.element_size()
    return basis + 3.5 * query + 8 * support


def starting_points(
    net: ConvNet, settings: Settings, n_tasks: int, stream: int
) -> tuple[ConvNet, Tensor]:
    """The N-way network that adapts, and where each task starts, [n_tasks, P], detached.

    Under MAML they are the network itself and theta_s for all. Under finetuning the trained body
    gets an N-way head: "fresh", drawn for each task anew; "shared", one draw for all; or "zero". A
    task's head depends on the run's seed, the stream and the task's number, so that it is the same
    after each epoch.
    """
    return starting_points_together(
        net, flatten(net).detach().unsqueeze(0), [settings], n_tasks, stream
    )


def starting_points_together(
    net: ConvNet, theta: Tensor, runs: Sequence[Settings], n_tasks: int, stream: int
) -> tuple[ConvNet, Tensor]:
    """As `starts`, of S runs with weights theta [S, P]: the starts are [S * n_tasks, P], run after run."""
    if runs[0].algorithm != "finetune":
        return net, theta.unsqueeze(1).expand(-1, n_tasks, -1).flatten(0, 1)
    learner = ConvNet(net.image_shape, runs[0].ways, net.filters)
    body = sum(p.numel() for p in net.blocks.parameters())
    rows = []
    for settings, weights in zip(runs, theta, strict=True):
        heads = []
        for task in range(1 if settings.test_head == "shared" else n_tasks):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(
                    int(np.random.default_rng([settings.seed, HEAD, stream, task]).integers(2**63))
                )
                learner.reset_head("zero" if settings.test_head == "zero" else settings.head_init)
            heads.append(torch.cat([p.detach().flatten() for p in learner.head.parameters()]))
        drawn = torch.stack(heads).to(weights)
        rows.append(
            torch.cat([weights[:body].expand(len(drawn), -1), drawn], dim=1).expand(n_tasks, -1)
        )
    return learner.to(theta), rows[0] if len(rows) == 1 else torch.cat(rows)


def _of_tasks(net: ConvNet, theta: Tensor, tasks: Tasks, settings: Settings) -> dict[str, Tensor]:
    """Values [T] of a chunk of tasks; displacements, gradients and uniform gradients [T, P]."""
    start = theta.clone().requires_grad_()
    support = net.patches(tasks.support_x)  # the same for every measure
    log_p = F.log_softmax(logits(net, start, support), -1)  # [T, N*K, N]
    before = (
        F.nll_loss(log_p.flatten(0, 1), tasks.support_y.flatten(), reduction="none")
        .view(len(tasks), -1)
        .mean(1)
    )
    (gradient,) = torch.autograd.grad(before.sum(), start, retain_graph=True)
    (uniform,) = torch.autograd.grad(-log_p.mean((1, 2)).sum(), start)
    log_p = log_p.detach()
    adapted = adapt_at_test(net, tasks, theta, settings)

    def support_loss(params: Tensor) -> Tensor:
        return losses(net, params, support, tasks.support_y)

    with torch.no_grad():
        return {
            "support_loss_before": before.detach(),
            "entropy_before": -(log_p.exp() * log_p).sum(-1).mean(1),
            "majority_before": F.one_hot(log_p.argmax(-1), net.ways).double().mean(1).amax(1),
            "support_loss": support_loss(adapted),
            "query_loss": losses(net, adapted, tasks.query_x, tasks.query_y),
            "query_accuracy": accuracy(net, adapted, tasks.query_x, tasks.query_y),
            "hessian_norm": hessian.hessian_norms(support_loss, adapted).norms,
            "adaptive_sharpness": hessian.adaptive_sharpness(support_loss, adapted).norms,
            "displacement": adapted - theta,
            "gradient": gradient,
            "uniform": uniform,
        }


def adapt_at_test(net: ConvNet, tasks: Tasks, start: Tensor, settings: Settings) -> Tensor:
    """Parameters [T, P] after the meta-test steps from start [T, P], detached."""
    how = (settings.inner_lr, settings.test_steps)
    return adapt(
        net, tasks, *how, first_order=True, adapt_norm=settings.adapt_norm, start=start
    ).detach()
