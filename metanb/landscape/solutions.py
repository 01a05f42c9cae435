"""Where measures are taken: theta_s, the adapted solutions, and what several measures share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.labels import ALGORITHMS
from metanb.maml.inner_loop import adapt, flatten, logits, losses
from metanb.maml.network import ConvNet, Patches
from metanb.maml.per_task import for_tasks
from metanb.settings import Settings

HEAD = 3  # the stream of random numbers of fresh heads


class _BeforeAdapting(NamedTuple):
    """On the support set at theta_s, detached."""

    loss: Tensor  #: [T]
    log_p: Tensor  #: [T, N*K, N] logarithms of the predicted probabilities
    gradient: Tensor  #: [T, P] of the loss
    uniform: Tensor  #: [T, P] of the loss for labels of 1/N for each class


class Solutions:
    """T tasks at theta_s and at their adapted solutions; values are computed once, when asked for.

    Args:
        net: the network.
        tasks: T tasks, on the network's device.
        start: theta_s of each task, [T, P].
        settings: of the inner loop.

    Attributes:
        net, tasks, start, settings: as given.
    """

    def __init__(self, net: nn.Module, tasks: Tasks, start: Tensor, settings: Settings) -> None:
        self.net = net
        self.tasks = tasks
        self.start = start
        self.settings = settings

    @cached_property
    def support(self) -> Tensor | Patches:
        """The support images, as the network reads them: the same for every measure."""
        return for_tasks(self.net).patches(self.tasks.support_x)

    @cached_property
    def adapted(self) -> Tensor:
        """The adapted solutions, [T, P]."""
        return adapt_at_test(self.net, self.tasks, self.start, self.settings)

    @property
    def displacement(self) -> Tensor:
        """theta~_i - theta_s, [T, P]."""
        return self.adapted - self.start

    @property
    def loss_before(self) -> Tensor:
        """The support loss at theta_s, [T]."""
        return self._before.loss

    @property
    def log_p(self) -> Tensor:
        """Log-probabilities predicted for the support images at theta_s, [T, N*K, N]."""
        return self._before.log_p

    @property
    def gradient(self) -> Tensor:
        """The gradient of the support loss at theta_s, [T, P]."""
        return self._before.gradient

    @property
    def uniform(self) -> Tensor:
        """The same gradient for labels of 1/N for each class, [T, P]."""
        return self._before.uniform

    def support_loss(self, params: Tensor) -> Tensor:
        """The support loss of each task at parameters [T, P], differentiable: [T]."""
        return losses(self.net, params, self.support, self.tasks.support_y)

    @cached_property
    def _before(self) -> _BeforeAdapting:
        with torch.enable_grad():
            start = self.start.clone().requires_grad_()
            log_p = F.log_softmax(logits(self.net, start, self.support), -1)
            labels = self.tasks.support_y
            by_image = F.nll_loss(log_p.flatten(0, 1), labels.flatten(), reduction="none")
            loss = by_image.view(len(labels), -1).mean(1)
            (gradient,) = torch.autograd.grad(loss.sum(), start, retain_graph=True)
            (uniform,) = torch.autograd.grad(-log_p.mean((1, 2)).sum(), start)
        return _BeforeAdapting(loss.detach(), log_p.detach(), gradient, uniform)


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
