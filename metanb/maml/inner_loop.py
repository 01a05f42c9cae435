"""The inner loop, by `higher`: a few SGD steps on each task's support set, once for a whole chunk of tasks.

`higher`'s functional net is handed the shared parameters expanded over the tasks, [T, ...], and
takes SGD steps on the sum of the tasks' mean losses: no task's loss depends on another's
parameters, so each takes exactly its own SGD step. Adapted parameters are flat, [T, P], in the
order of `net.parameters()`.
"""

from __future__ import annotations

from typing import Any

import higher
import torch
import torch.nn.functional as F
from torch import Tensor

from metanb.data.tasks import Tasks
from metanb.maml.network import ConvNet, Patches


def flatten(net: ConvNet) -> Tensor:
    """The net's parameters as one vector [P], differentiable."""
    return torch.cat([p.flatten() for p in net.parameters()])


def unflatten(net: ConvNet, params: Tensor) -> list[Tensor]:
    """Flat parameters [T, P] -> one tensor [T, *shape] for each of `net.parameters()`, differentiable."""
    shapes = [p.shape for p in net.parameters()]
    parts = params.split([shape.numel() for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


class _StraightThrough(torch.autograd.Function):
    """The adapted parameters' values, with the identity as their derivative by the initial parameters."""

    @staticmethod
    def forward(ctx: Any, initial: Tensor, adapted: Tensor) -> Tensor:
        return adapted.view_as(adapted)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def adapt(
    net: ConvNet,
    tasks: Tasks,
    lr: float,
    steps: int,
    *,
    first_order: bool = False,
    adapt_norm: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    """Parameters [T, P] after `steps` SGD steps of rate `lr` on each task's support set (the paper's theta~_i).

    They are differentiable with respect to the net's parameters; with `first_order` their values
    are the same and their derivative is the identity (first-order MAML). `adapt_norm=False` leaves
    batch norm's gamma and beta as they are. All the tasks are adapted together: split large batches
    into chunks.

    Args:
        net: the network; its parameters are theta_s.
        tasks: T tasks.
        lr: step size.
        steps: number of steps.
        first_order: whether the inner gradients count as constants.
        adapt_norm: whether gamma and beta take part.
        start: [T, P], where each task starts in place of theta_s; the result is differentiable by
            it instead.

    Raises:
        ValueError: lr <= 0 or steps < 0.
    """
    if lr <= 0:
        raise ValueError(f"lr is {lr}: the inner loop needs a learning rate above 0")
    if steps < 0:
        raise ValueError(f"steps is {steps}: the inner loop needs 0 steps or more")
    initial = flatten(net).expand(len(tasks), -1) if start is None else start
    if steps == 0:
        return initial
    fixed = () if adapt_norm else ("gamma", "beta")
    optimiser = torch.optim.SGD(
        [p for name, p in net.named_parameters() if not name.endswith(fixed)], lr=lr
    )
    differentiable = torch.is_grad_enabled() and not first_order
    with (
        torch.enable_grad(),
        higher.innerloop_ctx(
            net, optimiser, copy_initial_weights=False, track_higher_grads=differentiable
        ) as (fnet, inner),
    ):
        parts = (
            [p.expand(len(tasks), *p.shape) for p in net.parameters()]
            if start is None
            else unflatten(net, start)
        )
        fnet.update_params(
            parts if differentiable else [p.detach().requires_grad_() for p in parts]
        )
        support = net.patches(tasks.support_x)  # the same in every step
        for _ in range(steps):
            # an alias a step: else `higher` would differentiate by gamma through the earlier steps
            if not adapt_norm:
                fnet.update_params([p.view_as(p) for p in fnet.parameters()])
            inner.step(_losses(fnet(support), tasks.support_y).sum())
        adapted = torch.cat([p.flatten(1) for p in fnet.parameters()], dim=1)
    return adapted if differentiable else _StraightThrough.apply(initial, adapted.detach())


def logits(net: ConvNet, params: Tensor, x: Tensor | Patches) -> Tensor:
    """Each task's logits by its own parameters: params [T, P], x [T, B, C, H, W] or its patches -> [T, B, ways]."""
    names = [name for name, _ in net.named_parameters()]
    return torch.func.functional_call(
        net, dict(zip(names, unflatten(net, params), strict=True)), (x,)
    )


def losses(net: ConvNet, params: Tensor, x: Tensor | Patches, y: Tensor) -> Tensor:
    """Each task's mean cross-entropy by its own parameters: arguments as for `logits`, and y [T, B] -> [T]."""
    return _losses(logits(net, params, x), y)


def accuracy(net: ConvNet, params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Each task's share of right answers, [T]: arguments as for `losses`."""
    return (logits(net, params, x).argmax(-1) == y).float().mean(1)


def _losses(output: Tensor, y: Tensor) -> Tensor:
    return (
        F.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    )
