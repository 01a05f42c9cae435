"""The inner loop, by `higher`: a few SGD steps on each task's support set, for many tasks at once.

`higher`'s functional net gets the shared parameters expanded over the tasks, [T, ...], and takes
SGD steps on the sum of the tasks' mean losses. No task's loss depends on another task's parameters,
so each task takes exactly its own SGD step. Adapted parameters are flat, [T, P], in the order of
`net.parameters()`.
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
    """Return the net's parameters as one vector [P], differentiable."""
    return torch.cat([p.flatten() for p in net.parameters()])


def unflatten(net: ConvNet, params: Tensor) -> list[Tensor]:
    """Split flat parameters [T, P] into one tensor [T, *shape] for each of `net.parameters()`.

    The result is differentiable.
    """
    shapes = [p.shape for p in net.parameters()]
    parts = params.split([shape.numel() for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


class _StraightThrough(torch.autograd.Function):
    """The adapted parameters, whose derivative by the initial parameters is the identity."""

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
    """Adapt the net to each task: return theta~_i [T, P] after SGD steps on the support set.

    They are differentiable with respect to the net's parameters. With `first_order` their values
    are the same and their derivative is the identity (first-order MAML). All tasks are adapted
    together: split large batches into chunks.

    Args:
        net: the network; its parameters are theta_s.
        tasks: T tasks.
        lr: step size.
        steps: number of steps.
        first_order: whether the inner gradients count as constants.
        adapt_norm: whether batch norm's gamma and beta take part; if not, they stay as they are.
        start: [T, P], where each task starts in place of theta_s; the result is then
            differentiable with respect to it instead.

    Raises:
        ValueError: lr <= 0 or steps < 0.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> x, y = torch.rand(3, 2, 1, 8, 8), torch.arange(2).expand(3, 2)
        >>> adapted = adapt(net, Tasks(x, y, x, y), lr=0.1, steps=2)
        >>> adapted.shape == (3, flatten(net).numel())
        True
        >>> bool((losses(net, adapted, x, y) < losses(net, flatten(net).expand(3, -1), x, y)).all())
        True
    """
    if lr <= 0:
        raise ValueError(f"lr is {lr}: the inner loop needs a learning rate above 0")
    if steps < 0:
        raise ValueError(f"steps is {steps}: the inner loop needs 0 steps or more")
    initial = flatten(net).expand(len(tasks), -1) if start is None else start
    if steps == 0:
        return initial

    # An SGD optimiser of the parameters that are adapted: `higher` makes it differentiable.
    fixed = () if adapt_norm else ("gamma", "beta")
    adaptable = [p for name, p in net.named_parameters() if not name.endswith(fixed)]
    optimiser = torch.optim.SGD(adaptable, lr=lr)
    is_differentiable = torch.is_grad_enabled() and not first_order
    with (
        torch.enable_grad(),
        higher.innerloop_ctx(
            net, optimiser, copy_initial_weights=False, track_higher_grads=is_differentiable
        ) as (fnet, inner),
    ):
        # Give each task its own parameters, [T, ...]. In first order they start a new graph.
        if start is None:
            parameters = [p.expand(len(tasks), *p.shape) for p in net.parameters()]
        else:
            parameters = unflatten(net, start)
        if not is_differentiable:
            parameters = [p.detach().requires_grad_() for p in parameters]
        fnet.update_params(parameters)
        # Take the patches of the support images once: they are the same in every step.
        support = net.patches(tasks.support_x)
        for _ in range(steps):
            # Parameters that stay need an alias in each step; otherwise `higher` would
            # differentiate by them through the earlier steps.
            if not adapt_norm:
                fnet.update_params([p.view_as(p) for p in fnet.parameters()])
            # One step on the sum of the tasks' losses is one step of each task.
            inner.step(_mean_cross_entropy(fnet(support), tasks.support_y).sum())
        adapted = torch.cat([p.flatten(1) for p in fnet.parameters()], dim=1)
    # In first order, connect the values to theta_s by the identity.
    return adapted if is_differentiable else _StraightThrough.apply(initial, adapted.detach())


def logits(net: ConvNet, params: Tensor, x: Tensor | Patches) -> Tensor:
    """Compute each task's logits by its own parameters, [T, B, ways].

    Args:
        net: the network; its own parameters are not used.
        params: [T, P].
        x: images [T, B, C, H, W], or their patches.
    """
    names = [name for name, _ in net.named_parameters()]
    parameters = dict(zip(names, unflatten(net, params), strict=True))
    return torch.func.functional_call(net, parameters, (x,))


def losses(net: ConvNet, params: Tensor, x: Tensor | Patches, y: Tensor) -> Tensor:
    """Compute each task's mean cross-entropy by its own parameters, [T].

    Arguments are those of `logits`, and labels y [T, B].
    """
    return _mean_cross_entropy(logits(net, params, x), y)


def accuracy(net: ConvNet, params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Compute each task's share of right answers, [T]; arguments are those of `losses`."""
    return (logits(net, params, x).argmax(-1) == y).float().mean(1)


def _mean_cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy [T] of logits [T, B, ways] and labels y [T, B]."""
    by_image = F.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none")
    return by_image.view(y.shape).mean(1)
