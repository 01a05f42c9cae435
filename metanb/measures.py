"""All measures of one network on fixed tasks: the paper's, and those that tell what they are made of."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metanb import landscape
from metanb.adapt import accuracy, adapt, flatten, logits, losses
from metanb.landscape import Stat
from metanb.nets import ConvNet
from metanb.settings import Settings
from metanb.tasks import Tasks

HEAD = 3  # the stream of random numbers of fresh heads


def measure(net: ConvNet, test: Tasks, valid: Tasks, settings: Settings) -> dict[str, Stat]:
    """Every measure of theta_s, each over tasks unless said otherwise.

    Adapted solutions of meta-test tasks: `support_loss`, `query_loss`, `query_accuracy`, `hessian_norm`,
    `adaptive_sharpness` and `distance`.

    At theta_s, before adapting, on the support set: `support_loss_before`; `entropy_before`, of an image's prediction,
    in nats; `majority_before`, the share of a task's images that are given its most frequent answer (1: all of them).

    Coherence: `trajectory_coherence` (n: tasks that moved), and the shares that the head's and the other parameters
    have in it, `trajectory_coherence_head` and `_body`; `gradient_coherence`; `gradient_cosine`. The support gradient
    is linear in the labels: g = g_uniform + g_label, where g_uniform belongs to labels that are 1/N for each class.
    `gradient_coherence_uniform` and `_label` are the coherence of each part.

    On meta-validation tasks: `valid_accuracy`. Of the network: `body_norm` and `head_norm`, the L2 norms of the
    convolutions' weights and of the head's.
    """
    learner, theta = starts(net, settings, len(test), stream=0)
    values: dict[str, list[Tensor]] = {}
    at_once = landscape.tasks_at_once(theta.device)
    for first in range(0, len(test), at_once):
        chosen = slice(first, first + at_once)
        for name, value in _of_tasks(learner, theta[chosen], test[chosen], settings).items():
            values.setdefault(name, []).append(value)
    whole = {name: torch.cat(parts) for name, parts in values.items()}
    moved, gradient, uniform = (whole.pop(name) for name in ("displacement", "gradient", "uniform"))
    stats = {name: landscape.summarise(value) for name, value in whole.items()}
    head = slice(-sum(p.numel() for p in learner.head.parameters()), None)
    body = slice(None, head.start)
    stats["distance"] = landscape.distance(moved)
    stats["trajectory_coherence"], _ = landscape.trajectory_coherence(moved)
    stats["trajectory_coherence_head"], _ = landscape.trajectory_coherence(moved, head)
    stats["trajectory_coherence_body"], _ = landscape.trajectory_coherence(moved, body)
    stats["gradient_coherence"] = landscape.gradient_coherence(gradient)
    stats["gradient_coherence_uniform"] = landscape.gradient_coherence(uniform)
    stats["gradient_coherence_label"] = landscape.gradient_coherence(gradient - uniform)
    stats["gradient_cosine"], _ = landscape.trajectory_coherence(gradient)
    stats["valid_accuracy"] = landscape.summarise(accuracies(net, valid, settings, stream=1))
    body_weights = [block.get_parameter("weight") for block in net.blocks]
    for part, weights in (("body", body_weights), ("head", [net.head.weight])):
        norm = float(torch.cat([weight.detach().flatten() for weight in weights]).norm())
        stats[f"{part}_norm"] = Stat(norm, norm, 0.0, 0.0, 1)
    return stats


def accuracies(net: ConvNet, tasks: Tasks, settings: Settings, stream: int) -> Tensor:
    """Share of right answers on each task's query images after adapting, [T]; `stream` is that of fresh heads."""
    learner, theta = starts(net, settings, len(tasks), stream)
    at_once, device = landscape.tasks_at_once(theta.device), theta.device
    found = []
    for part, start in zip(tasks.split(at_once), theta.split(at_once), strict=True):
        part = part.to(device)
        found.append(accuracy(learner, adapt_at_test(learner, part, start, settings), part.query_x, part.query_y))
    return torch.cat(found)


def starts(net: ConvNet, settings: Settings, n_tasks: int, stream: int) -> tuple[ConvNet, Tensor]:
    """The N-way network that adapts, and where each task starts, [n_tasks, P], detached.

    Under MAML they are the network itself and theta_s for all. Under finetuning the trained body gets an N-way head:
    "fresh", drawn for each task anew; "shared", one draw for all; or "zero". A task's head depends on the run's seed,
    the stream and the task's number, so that it is the same after each epoch.
    """
    if settings.algorithm != "finetune":
        return net, flatten(net).detach().expand(n_tasks, -1)
    learner = ConvNet(net.image_shape, settings.ways, settings.filters).to(net.head.weight)
    learner.blocks.load_state_dict(net.blocks.state_dict())
    rows = []
    for task in range(1 if settings.test_head == "shared" else n_tasks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([settings.seed, HEAD, stream, task]).integers(2**63)))
            learner.cpu().reset_head("zero" if settings.test_head == "zero" else settings.head_init)
        rows.append(flatten(learner).detach())
    theta = torch.stack(rows).to(net.head.weight)
    return learner.to(net.head.weight), theta.expand(n_tasks, -1)


def _of_tasks(net: ConvNet, theta: Tensor, tasks: Tasks, settings: Settings) -> dict[str, Tensor]:
    """Values [T] of a chunk of tasks; displacements, gradients and uniform gradients [T, P]."""
    start = theta.clone().requires_grad_()
    support = net.patches(tasks.support_x)  # the same for every measure
    log_p = F.log_softmax(logits(net, start, support), -1)  # [T, N*K, N]
    before = F.nll_loss(log_p.flatten(0, 1), tasks.support_y.flatten(), reduction="none").view(len(tasks), -1).mean(1)
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
            "hessian_norm": landscape.hessian_norms(support_loss, adapted).norms,
            "adaptive_sharpness": landscape.adaptive_sharpness(support_loss, adapted).norms,
            "displacement": adapted - theta,
            "gradient": gradient,
            "uniform": uniform,
        }


def adapt_at_test(net: ConvNet, tasks: Tasks, start: Tensor, settings: Settings) -> Tensor:
    """Parameters [T, P] after the meta-test steps from start [T, P], detached."""
    how = (settings.inner_lr, settings.test_steps)
    return adapt(net, tasks, *how, first_order=True, adapt_norm=settings.adapt_norm, start=start).detach()
