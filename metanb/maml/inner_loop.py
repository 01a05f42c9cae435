"""The inner loop, by `higher`: a few SGD steps on each task's support set, for many tasks at once.

`higher`'s functional net gets the shared parameters expanded over the tasks, [T, ...], and takes
SGD steps on the sum of the tasks' mean losses. No task's loss depends on another task's parameters,
so each task takes exactly its own SGD step. Adapted parameters are flat, [T, P], in the order of
`net.parameters()`. The network may be any module, see `metanb.maml.per_task`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.maml.network import Patches
from metanb.maml.per_task import for_tasks, in_head

# What the inner loop adapts: "all", "head", "body", or names of parameters or of layers.
Adapts: TypeAlias = str | Sequence[str]
# A loss of one task: "mean", "sum", or a function of outputs [B, ...] and targets [B, ...].
Loss: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]


def flatten(net: nn.Module) -> Tensor:
    """Return the net's parameters as one vector [P], differentiable."""
    return torch.cat([p.flatten() for p in net.parameters()])


def unflatten(net: nn.Module, params: Tensor) -> list[Tensor]:
    """Split flat parameters [T, P] into one tensor [T, *shape] for each of `net.parameters()`.

    The result is differentiable.
    """
    shapes = [p.shape for p in net.parameters()]
    parts = params.split([shape.numel() for shape in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def select_parameters(net: nn.Module, adapts: Adapts = "all") -> list[bool]:
    """Return which of `net.parameters()` the inner loop adapts.

    Parameters with `requires_grad=False` never adapt.

    Args:
        net: the network.
        adapts: "all"; "head", the last layer that has parameters; "body", all other layers; or
            names of parameters or of layers, such as ["blocks.0", "head.bias"].

    Raises:
        ValueError: an unknown word, a name that the network does not have, or nothing to adapt.

    Example:
        >>> from metanb.maml.network import ConvNet
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> select_parameters(net, "head").count(True), select_parameters(net, "body").count(True)
        (2, 12)
        >>> select_parameters(net, ["head.bias"]).index(True)
        13
    """
    names = [name for name, _ in net.named_parameters()]
    if isinstance(adapts, str):
        if adapts not in ("all", "head", "body"):
            raise ValueError(
                f"adapts is {adapts!r}: use 'all', 'head', 'body', or a list of names of parameters"
            )
        selected = [adapts == "all" or (adapts == "head") == is_head for is_head in in_head(net)]
    else:
        for wanted in adapts:
            if not any(_is_part(name, wanted) for name in names):
                raise ValueError(
                    f"adapts names {wanted!r}, which the network does not have: its parameters are "
                    f"{', '.join(names)}"
                )
        selected = [any(_is_part(name, wanted) for wanted in adapts) for name in names]
    learns = [
        is_selected and parameter.requires_grad
        for is_selected, parameter in zip(selected, net.parameters(), strict=True)
    ]
    if not any(learns):
        if any(selected):
            reason = "parameters with requires_grad=False stay as they are"
        elif not names:
            reason = "the network has no parameters"
        elif adapts == "body":
            reason = "the network has one layer with parameters, which is its head"
        else:
            reason = "no name is given"
        raise ValueError(f"adapts is {adapts!r}: nothing is left to adapt, since {reason}")
    return learns


def _is_part(name: str, wanted: str) -> bool:
    """Whether a parameter is the one that is wanted, or belongs to the layer that is."""
    return name == wanted or name.startswith(f"{wanted}.")


def starting_head(net: nn.Module, weights: Tensor, inner_head: str = "learnt") -> Tensor:
    """Return the weights [S, P] with the head that each inner loop starts from, differentiable.

    Args:
        net: the network; its own parameters are not used.
        weights: [S, P], theta_s of S runs.
        inner_head: "learnt", as the weights have it; "zero", a head of zeros (the zeroing trick,
            Kao et al. 2022), which then learns nothing; "shared", the mean over the classes of the
            head's rows, the same for each class, so that no order of the classes is preferred (Ye
            and Chao 2022).

    Raises:
        ValueError: another `inner_head`; or the head is to be replaced, and `requires_grad=False`
            says that it stays.

    Example:
        >>> net = nn.Linear(1, 2)
        >>> starting_head(net, torch.tensor([[1.0, 3.0, 4.0, 6.0]]), "shared")
        tensor([[2., 2., 5., 5.]])
    """
    if inner_head == "learnt":
        return weights
    if inner_head not in ("zero", "shared"):
        raise ValueError(f"inner_head is {inner_head!r}: use 'learnt', 'zero' or 'shared'")
    parts = unflatten(net, weights)
    named = zip(net.named_parameters(), in_head(net), strict=True)
    for i, ((name, parameter), is_head) in enumerate(named):
        if not is_head:
            continue
        if not parameter.requires_grad:
            raise ValueError(
                f"inner_head is {inner_head!r}, which replaces the head, and its {name!r} has "
                "requires_grad=False: use inner_head='learnt', or let the head learn"
            )
        if inner_head == "zero":
            parts[i] = torch.zeros_like(parts[i])
        else:
            parts[i] = parts[i].mean(1, keepdim=True).expand_as(parts[i])
    return torch.cat([part.flatten(1) for part in parts], dim=1)


class _StraightThrough(torch.autograd.Function):
    """The adapted parameters, whose derivative by the initial parameters is the identity."""

    @staticmethod
    def forward(ctx: Any, initial: Tensor, adapted: Tensor) -> Tensor:
        return adapted.view_as(adapted)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def adapt(
    net: nn.Module,
    tasks: Tasks,
    lr: float | Tensor,
    steps: int,
    *,
    first_order: bool = False,
    adapts: Adapts = "all",
    inner_loss: Loss = "mean",
    start: Tensor | None = None,
) -> Tensor:
    """Adapt the net to each task: return theta~_i [T, P] after SGD steps on the support set.

    They are differentiable with respect to the net's parameters. With `first_order` their values
    are the same and their derivative is the identity (first-order MAML). All tasks are adapted
    together: split large batches into chunks.

    Args:
        net: the network; its parameters are theta_s.
        tasks: T tasks.
        lr: step size; a tensor [] that is learnt gets its gradient.
        steps: number of steps.
        first_order: whether the inner gradients count as constants.
        adapts: which parameters adapt, see `select_parameters`; the others stay as they are.
        inner_loss: what each task descends on its support set, see `task_losses`.
        start: [T, P], where each task starts in place of theta_s; the result is then
            differentiable with respect to it instead.

    Raises:
        ValueError: lr is not above 0 and finite, or is learnt in first order; steps < 0; and as
            `select_parameters` and `task_losses` do.

    Example:
        >>> import torch
        >>> from metanb.maml.network import ConvNet
        >>> _ = torch.manual_seed(0)
        >>> net = ConvNet((1, 8, 8), ways=2, filters=4)
        >>> x, y = torch.rand(3, 2, 1, 8, 8), torch.arange(2).expand(3, 2)
        >>> adapted = adapt(net, Tasks(x, y, x, y), lr=0.1, steps=2)
        >>> adapted.shape == (3, flatten(net).numel())
        True
        >>> bool((losses(net, adapted, x, y) < losses(net, flatten(net).expand(3, -1), x, y)).all())
        True
    """
    step_size = float(lr.detach()) if isinstance(lr, Tensor) else lr
    if not 0 < step_size < math.inf:
        raise ValueError(f"lr is {step_size}: the inner loop needs a learning rate above 0")
    is_learnt = isinstance(lr, Tensor) and lr.requires_grad and torch.is_grad_enabled()
    if is_learnt and first_order:
        raise ValueError(
            "lr is learnt, and in first order it would get no gradient: use first_order=False, or "
            "lr.detach()"
        )
    if steps < 0:
        raise ValueError(f"steps is {steps}: the inner loop needs 0 steps or more")
    selected = select_parameters(net, adapts)
    mapped = for_tasks(net)
    initial = flatten(net).expand(len(tasks), -1) if start is None else start
    if steps == 0:
        return initial

    # An SGD optimiser of the parameters that are adapted: `higher` makes it differentiable.
    parameters_and_use = zip(net.parameters(), selected, strict=True)
    adaptable = [p for p, is_selected in parameters_and_use if is_selected]
    optimiser = torch.optim.SGD(adaptable, lr=step_size)
    override = {"lr": [lr]} if isinstance(lr, Tensor) else None
    starts_are_learnt = start is None or start.requires_grad
    is_differentiable = (
        torch.is_grad_enabled() and not first_order and (starts_are_learnt or is_learnt)
    )
    with (
        torch.enable_grad(),
        higher.innerloop_ctx(
            mapped, optimiser, copy_initial_weights=False, track_higher_grads=is_differentiable
        ) as (fnet, inner),
    ):
        # Give each task its own parameters, [T, ...]. They start a new graph in first order, and
        # where nothing before them is learnt.
        if start is None:
            parameters = [p.expand(len(tasks), *p.shape) for p in net.parameters()]
        else:
            parameters = unflatten(net, start)
        if not (is_differentiable and starts_are_learnt):
            parameters = [p.detach().requires_grad_() for p in parameters]
        fnet.update_params(parameters)
        # Take the patches of the support images once: they are the same in every step.
        support = mapped.patches(tasks.support_x)
        for _ in range(steps):
            # Parameters that stay need an alias in each step; otherwise `higher` would
            # differentiate by them through the earlier steps.
            if not all(selected):
                fnet.update_params([p.view_as(p) for p in fnet.parameters()])
            # One step on the sum of the tasks' losses is one step of each task.
            by_task = task_losses(fnet(support), tasks.support_y, inner_loss)
            inner.step(by_task.sum(), override=override)
        adapted = torch.cat([p.flatten(1) for p in fnet.parameters()], dim=1)
    # In first order, connect the values to theta_s by the identity.
    return adapted if is_differentiable else _StraightThrough.apply(initial, adapted.detach())


def logits(net: nn.Module, params: Tensor, x: Tensor | Patches) -> Tensor:
    """Compute each task's logits by its own parameters, [T, B, ways].

    Args:
        net: the network; its own parameters are not used.
        params: [T, P].
        x: images [T, B, C, H, W], or their patches.
    """
    mapped = for_tasks(net)
    names = [name for name, _ in mapped.named_parameters()]
    parameters = dict(zip(names, unflatten(net, params), strict=True))
    return torch.func.functional_call(mapped, parameters, (x,))


def losses(
    net: nn.Module, params: Tensor, x: Tensor | Patches, y: Tensor, loss: Loss = "mean"
) -> Tensor:
    """Compute each task's loss by its own parameters, [T].

    Arguments are those of `logits` and `task_losses`.
    """
    return task_losses(logits(net, params, x), y, loss)


def accuracy(net: nn.Module, params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Compute each task's share of right answers, [T]; arguments are those of `losses`."""
    return (logits(net, params, x).argmax(-1) == y).float().mean(1)


def task_losses(outputs: Tensor, y: Tensor, loss: Loss = "mean") -> Tensor:
    """Compute the loss of each task, [T].

    Args:
        outputs: [T, B, ...], logits [T, B, N] for the losses that have a name.
        y: labels [T, B], or targets [T, B, ...] of a function.
        loss: "mean", the mean cross-entropy; "sum", N times that, which is the sum of Finn et
            al.'s code: it divides by the shots alone; or a function of one task's outputs [B, ...]
            and targets [B, ...], such as `torch.nn.functional.mse_loss`, that returns a scalar.

    Raises:
        ValueError: an unknown name, or a function that does not return a scalar per task.

    Example:
        >>> outputs, y = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
        >>> task_losses(outputs, y), task_losses(outputs, y, "sum")
        (tensor([1.3863, 1.3863]), tensor([5.5452, 5.5452]))
        >>> task_losses(outputs, outputs + 2, F.mse_loss)
        tensor([4., 4.])
    """
    if callable(loss):
        by_task = torch.func.vmap(loss)(outputs, y)
        if by_task.shape != outputs.shape[:1]:
            raise ValueError(
                f"the loss of {len(outputs)} tasks is {list(by_task.shape)}, not a scalar each: "
                "reduce over the images"
            )
        return by_task
    if loss not in ("mean", "sum"):
        raise ValueError(f"loss is {loss!r}: use 'mean', 'sum', or a function")
    by_image = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none")
    mean = by_image.view(y.shape).mean(1)
    return mean if loss == "mean" else outputs.shape[-1] * mean
