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
from metanb.landscape.hessian import HessianNorms, hessian_norms
from metanb.maml.inner_loop import adapt, flatten, logits, losses, starting_head, unflatten
from metanb.maml.network import ConvNet, Patches
from metanb.maml.per_task import for_tasks, in_head
from metanb.maml.regulariser import unit
from metanb.settings import Settings

ENDS_TOL = 0.03  # error of the ends of a Hessian's spectrum, relative to its norm
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

    @cached_property
    def query_gradient(self) -> Tensor:
        """The gradient of the query loss at theta_s, [T, P]."""
        with torch.enable_grad():
            start = self.start.clone().requires_grad_()
            by_task = losses(self.net, start, self.tasks.query_x, self.tasks.query_y)
            return torch.autograd.grad(by_task.sum(), start)[0]

    @cached_property
    def hessian(self) -> HessianNorms:
        """The norm and both ends of the support loss's Hessian at the adapted solutions."""
        return hessian_norms(self.support_loss, self.adapted, ends_tol=ENDS_TOL)

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

    They are the network itself and theta_s for all tasks, with the head that the settings
    `inner_head` and `test_head` ask for. After an algorithm that is not episodic (finetuning) the
    trained body gets an N-way head: "fresh", drawn anew for each task; "shared", one draw for all
    tasks; or "zero". A task's head depends on the run's seed, the stream and the task's number, so
    it is the same after each epoch.

    Raises:
        ValueError: a "centred" head, see `require_head`.
    """
    require_head(settings)
    theta = flatten(net).detach().unsqueeze(0)
    return starting_points_together(net, theta, [settings], n_tasks, stream)


def require_head(settings: Settings) -> None:
    """Raise ValueError for a "centred" head, which takes tasks of meta-train classes to make."""
    if settings.test_head == "centred":
        raise ValueError(
            "test_head='centred' needs tasks of meta-train classes, which are not given here: put "
            "the weights of metanb.landscape.solutions.without_common_answer into the network, and "
            "give settings with test_head='fresh'"
        )


def starting_points_together(
    net: nn.Module, theta: Tensor, runs: Sequence[Settings], n_tasks: int, stream: int
) -> tuple[nn.Module, Tensor]:
    """Return what `starting_points` does for S runs: starts are [S*n_tasks, P], run after run.

    Args:
        net: a network of the runs' design; its weights are not used.
        theta: [S, P], the weights of each run; a "centred" head has lost its common answer in them
            already, see `without_common_answer`.
        runs: the S runs' settings.
        n_tasks: tasks per run.
        stream: the stream of random numbers of fresh heads.
    """
    if ALGORITHMS[runs[0].algorithm].episodic:
        head = "zero" if runs[0].test_head == "zero" else runs[0].inner_head
        weights = starting_head(net, theta, head)
        return net, weights.unsqueeze(1).expand(-1, n_tasks, -1).flatten(0, 1)
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


def without_common_answer(net: nn.Module, weights: Tensor, tasks: Tasks) -> Tensor:
    """Take out of the head what it answers to the mean image: weights [P] -> [P], detached.

    A head that gives most images of any task the same answer does so by its product with the mean
    feature, and by its bias. Here the mean feature's direction is taken out of each row of the
    head's weight, and the bias becomes 0: then the mean image gets the same score for each class.
    Nothing else changes, and nothing is trained.

    Args:
        net: a network whose head is linear, in `weight` and `bias`; its own weights are not used.
        weights: [P], theta_s.
        tasks: T tasks of meta-train classes, in whose images the mean feature is taken. Each task's
            support and query images pass as one batch.

    Raises:
        ValueError: the head is not a weight [N, features] and a bias [N].
    """
    parts = unflatten(net, weights.detach())
    heads = [i for i, is_head in enumerate(in_head(net)) if is_head]
    if [parts[i].dim() for i in heads] != [2, 1]:
        raise ValueError(
            f"the head of {type(net).__name__} is no weight [N, features] with a bias [N]: its "
            "common answer is not defined"
        )
    weight_place, bias_place = heads

    # The mean feature is the gradient of an output's mean by that output's row of the weight.
    images = torch.cat([tasks.support_x, tasks.query_x], dim=1)
    starts = weights.detach().expand(len(tasks), -1).clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(logits(net, starts, images)[..., 0].mean(), starts)
    mean_feature = unflatten(net, slope.sum(0))[weight_place][0]

    # Take its direction out of each row; a mean feature of 0 has none.
    direction = unit(mean_feature[None])[0]
    weight = parts[weight_place]
    parts[weight_place] = weight - torch.outer(weight @ direction, direction)
    parts[bias_place] = torch.zeros_like(parts[bias_place])
    return torch.cat([part.flatten() for part in parts])


def _draw_head(learner: ConvNet, settings: Settings, stream: int, number: int) -> Tensor:
    """Parameters of a new head, flat; torch's own random state stays as it is."""
    rng = np.random.default_rng([settings.seed, HEAD, stream, number])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        learner.reset_head("zero" if settings.test_head == "zero" else settings.head_init)
    return torch.cat([p.detach().flatten() for p in learner.head.parameters()])


def adapt_at_test(
    net: nn.Module, tasks: Tasks, start: Tensor, settings: Settings, steps: int | None = None
) -> Tensor:
    """Return the parameters [T, P] after some steps from start [T, P], detached.

    `steps` is their number; None: the meta-test steps of the settings.
    """
    adapted = adapt(
        net,
        tasks,
        settings.inner_lr,
        settings.test_steps if steps is None else steps,
        first_order=True,
        adapts=settings.adapts,
        inner_loss=settings.inner_loss,
        start=start,
    )
    return adapted.detach()
