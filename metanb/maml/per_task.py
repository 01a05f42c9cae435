"""Any `nn.Module` with a copy of its weights for each task.

The inner loop hands a network weights of shape [T, ...] and images of shape [T, B, ...]. `ConvNet`
takes them as they are. `for_tasks` makes any other module take them: `torch.func.vmap` maps the
module's own `forward` over the tasks, and autograd differentiates the mapped call from outside. (To
map a gradient instead is silently wrong for batch norm, see the tests.) What cannot be mapped:

    attention           its fused kernels have no second derivative: the plain ones are used
    LSTM, GRU, RNN      one fused kernel each: refused
    running statistics  updated in place in training mode, and tasks would share them: refused

A module may instead take weights [T, ...] by itself, and say so: `takes_tasks = True`. Then it has
to keep tasks apart, to take its own weights and images [B, ...] as well, both of which
`metanb.maml.check.check_network` tries, and to have a method `patches`, which is called once on
images that pass several times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

# Parameters from which tasks are computed one after the other: a large convolution with weights of
# its own for each task is slower than several plain ones (ResNet-18 on a CPU: half as fast).
LOOP_FROM = 1_000_000


class NetworkError(ValueError):
    """A network that cannot adapt to tasks; the message names the layer and the remedy."""


class PerTask(nn.Module):
    """A module whose parameters may carry a leading task dimension.

    Its parameters are the module's own, in the same order. With weights [T, ...] it maps images
    [T, B, ...] to outputs [T, B, ...], each task by its own weights; with plain weights it is the
    module. Buffers, training mode and hooks stay those of the module.

    Args:
        module: any module of one input. Raises NetworkError for one that cannot be mapped.
    """

    takes_tasks = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        require_mappable(module)
        self.template = (module,)  # in a tuple, so that its parameters are not registered twice
        self.names = [name for name, _ in module.named_parameters()]
        for i, parameter in enumerate(module.parameters()):
            self.register_parameter(f"p{i}", parameter)
        self.shapes = [parameter.shape for parameter in module.parameters()]
        self.size = sum(shape.numel() for shape in self.shapes)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for images x [T, B, ...], or [B, ...] with plain weights."""
        (module,) = self.template
        require_mappable(module)  # it may have been put into training mode since
        weights = tuple(getattr(self, f"p{i}") for i in range(len(self.names)))

        def call(weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
            return torch.func.functional_call(
                module, dict(zip(self.names, weights, strict=True)), x
            )

        with _plain_attention():
            if all(w.dim() == len(shape) for w, shape in zip(weights, self.shapes, strict=True)):
                return call(weights, x)
            if len(x) > 1 and self.size < LOOP_FROM:
                return torch.func.vmap(call, randomness="different")(weights, x)
            by_task = zip(*(w.unbind() for w in weights), strict=True)
            outputs = [call(of_task, images) for of_task, images in zip(by_task, x, strict=True)]
            return torch.stack(outputs)

    def patches(self, x: Tensor) -> Tensor:
        """The images as they are: nothing is computed once for several inner steps."""
        return x


def for_tasks(net: nn.Module) -> Any:
    """The network in a form whose weights may carry a leading task dimension.

    That is the network itself where it says so (`takes_tasks = True`, as `ConvNet` does), else a
    `PerTask` over its parameters.

    Raises:
        NetworkError: the network has no parameters, or a layer that cannot be mapped.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(3, 2)
        >>> mapped = for_tasks(net)
        >>> weights = [p.expand(4, *p.shape) for p in net.parameters()]
        >>> names = [name for name, _ in mapped.named_parameters()]
        >>> x = torch.ones(4, 5, 3)
        >>> torch.func.functional_call(mapped, dict(zip(names, weights)), x).shape
        torch.Size([4, 5, 2])
    """
    if getattr(net, "takes_tasks", False):
        return net
    if next(net.parameters(), None) is None:
        raise NetworkError(f"{type(net).__name__} has no parameters: there is nothing to adapt")
    return PerTask(net)


def in_head(net: nn.Module) -> list[bool]:
    """Return which of `net.parameters()` are the head's: the layer of the last parameter.

    Example:
        >>> in_head(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        [False, False, True, True]
    """
    layers = [_layer_of(name) for name, _ in net.named_parameters()]
    return [layer == layers[-1] for layer in layers]


def _layer_of(parameter: str) -> str:
    """The name of the layer that has a parameter, also where a weight norm has split its weight."""
    layer, split, _ = f".{parameter}".partition(".parametrizations.")
    return layer.removeprefix(".") if split else parameter.rpartition(".")[0]


def head_size(net: nn.Module) -> int:
    """Return the number of the head's parameters; they come last."""
    parameters = zip(net.parameters(), in_head(net), strict=True)
    return sum(p.numel() for p, is_head in parameters if is_head)


def quarters_of_body(net: nn.Module) -> list[slice]:
    """Return the parameters of the body's layers by quarters of the layers, as four slices of P.

    The body is all but the head, see `in_head`. `ConvNet` has one block in each quarter. A body of
    fewer than four layers leaves quarters empty.

    Example:
        >>> net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)), nn.Linear(2, 3))
        >>> quarters_of_body(net)  # 6 parameters per layer, of 5 layers
        [slice(0, 6, None), slice(6, 12, None), slice(12, 18, None), slice(18, 30, None)]
    """
    named = zip(net.named_parameters(), in_head(net), strict=True)
    sizes: dict[str, int] = {}  # by layer, in order
    for (name, parameter), is_head in named:
        if not is_head:
            layer = _layer_of(name)
            sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    ends = [0, *itertools.accumulate(sizes.values())]
    layers = [number * len(sizes) // 4 for number in range(5)]
    return [slice(ends[first], ends[last]) for first, last in itertools.pairwise(layers)]


def count_activations(net: nn.Module, image: Tensor) -> int:
    """Return how many numbers the layers of a network put out for one image, [1, ...].

    `ConvNet` knows it: `activations`.
    """
    if isinstance(known := getattr(net, "activations", None), int):
        return known
    counts: list[int] = []

    def count(_: nn.Module, inputs: Any, outputs: Any) -> None:
        counts.extend(x.numel() for x in tree_leaves(outputs) if isinstance(x, Tensor))

    layers = [layer for layer in net.modules() if next(layer.children(), None) is None]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def require_mappable(module: nn.Module) -> None:
    """Raise NetworkError for a layer that cannot be mapped over tasks."""
    for name, layer in module.named_modules():
        label = f"layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
        if isinstance(layer, nn.RNNBase):
            raise NetworkError(
                f"{label} is one fused kernel, which cannot be mapped over tasks: use "
                f"nn.{type(layer).__name__}Cell in a loop over time"
            )
        updates = getattr(layer, "track_running_stats", False) and layer.training
        if updates and getattr(layer, "running_mean", None) is not None:
            raise NetworkError(
                f"{label} updates running statistics, which tasks would share: call .eval() on it "
                "to freeze them, or build it with track_running_stats=False"
            )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Inside, attention is computed by kernels that have a second derivative."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
