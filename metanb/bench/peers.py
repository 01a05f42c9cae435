"""Peers: the same meta-gradients and Hessian norms by plain `higher` and by other libraries.

A peer of the meta-gradient takes (net, tasks, lr, steps, first_order) and leaves the gradient of
the mean query loss in the net's `.grad`. All peers share one plain network with the weights of
metanb's own, so that only the method differs.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from metanb.data.tasks import Tasks
from metanb.maml.kernels import EPS
from metanb.maml.network import Block, ConvNet
from metanb.settings import Settings

Peer = Callable[[nn.Module, Tasks, float, int, bool], None]


class PrimitiveNorm(nn.Module):
    """Batch norm by the batch's own statistics, computed from mean, variance and rsqrt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        centred = x - x.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        scale = self.weight[:, None, None] * (variance + EPS).rsqrt()
        return centred * scale + self.bias[:, None, None]


class NativeNorm(PrimitiveNorm):
    """Batch norm by `F.batch_norm`, whose second derivative is wrong under `torch.func.vmap`."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=EPS)


def plain_net(net: ConvNet, norm: type[PrimitiveNorm] = PrimitiveNorm) -> nn.Sequential:
    """The paper's ConvNet in ordinary layers, for one task at a time, with the weights of `net`."""
    layers: list[nn.Module] = []
    for block in net.blocks:
        assert isinstance(block, Block)
        outputs, _, _, inputs = block.weight.shape
        conv = nn.Conv2d(inputs, outputs, 3, stride=block.stride, padding=1, bias=False)
        conv.weight = _copy_parameter(_channels_first(net, block.weight))
        batch_norm = norm(outputs)
        batch_norm.weight = _copy_parameter(block.gamma)
        batch_norm.bias = _copy_parameter(block.beta)
        layers += [conv, batch_norm, nn.ReLU()]
        if block.pool:
            layers.append(nn.MaxPool2d(2))
    layers.append(_SpatialMean() if net.strided else nn.Flatten())
    head = nn.Linear(*reversed(net.head.weight.shape))
    head.weight = _copy_parameter(_channels_first(net, net.head.weight))
    head.bias = _copy_parameter(net.head.bias)
    return nn.Sequential(*layers, head)


def _copy_parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))


class _SpatialMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def gradient(net: nn.Module) -> Tensor:
    """The `.grad`s of a plain network, or of a ConvNet, as one vector [P] in the plain layout."""
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    if isinstance(net, ConvNet):
        grads = [_channels_first(net, grad) for grad in grads]
    return torch.cat([grad.flatten() for grad in grads])


def _channels_first(net: ConvNet, weight: Tensor) -> Tensor:
    """Turn a ConvNet's weight, or its gradient, into a plain layer's layout.

    A ConvNet keeps the channels of a pixel side by side; plain layers keep each channel's pixels.
    """
    if weight.dim() == 4:
        return weight.permute(0, 3, 1, 2)
    if weight.dim() == 2 and not net.strided:
        side = net.image_shape[1] // 16
        return weight.unflatten(1, (side, -1, net.filters)).permute(0, 3, 1, 2).flatten(1)
    return weight


def each_task(tasks: Tasks) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Iterate over tasks: support images and labels, query images and labels."""
    return zip(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True)


def plain_higher(net: nn.Module, tasks: Tasks, lr: float, steps: int, first_order: bool) -> None:
    """Use `higher`, one task at a time, as its documentation shows it."""
    import higher

    sgd = torch.optim.SGD(net.parameters(), lr=lr)
    for x, y, query_x, query_y in each_task(tasks):
        with higher.innerloop_ctx(
            net, sgd, copy_initial_weights=False, track_higher_grads=not first_order
        ) as (fast, inner):
            for _ in range(steps):
                inner.step(F.cross_entropy(fast(x), y))
            loss = F.cross_entropy(fast(query_x), query_y) / len(tasks)
            if not first_order:
                loss.backward()
                continue
            # First order: the gradient at the adapted weights counts as that of the initial ones.
            slopes = torch.autograd.grad(loss, list(fast.parameters()))
            for p, slope in zip(net.parameters(), slopes, strict=True):
                p.grad = slope if p.grad is None else p.grad + slope


def bare_loop(net: nn.Module, tasks: Tasks, lr: float, steps: int, first_order: bool) -> None:
    """Use autograd alone, one task at a time: functional weights and a plain SGD update."""
    names, theta = zip(*net.named_parameters(), strict=True)

    def loss(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        named = dict(zip(names, params, strict=True))
        return F.cross_entropy(torch.func.functional_call(net, named, (x,)), y)

    for x, y, query_x, query_y in each_task(tasks):
        params = theta
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(params, x, y), params, create_graph=not first_order)
            params = tuple(p - lr * slope for p, slope in zip(params, slopes, strict=True))
        (loss(params, query_x, query_y) / len(tasks)).backward()


def torchopt(net: nn.Module, tasks: Tasks, lr: float, steps: int, first_order: bool) -> None:
    """Use TorchOpt's MetaSGD, one task at a time."""
    import torchopt as library

    start = library.extract_state_dict(net, by="reference")
    for x, y, query_x, query_y in each_task(tasks):
        inner = library.MetaSGD(net, lr=lr)
        for _ in range(steps):
            inner.step(F.cross_entropy(net(x), y))
        (F.cross_entropy(net(query_x), query_y) / len(tasks)).backward()
        library.recover_state_dict(net, start)


def torch_func(net: nn.Module, tasks: Tasks, lr: float, steps: int, first_order: bool) -> None:
    """Use `torch.func`: vmap of a task's adaptation over all tasks, then backward.

    PyTorch's own MAML example does the same.
    """
    theta: dict[str, Tensor] = dict(net.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    def query_loss(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        params = theta
        for _ in range(steps):
            slope = torch.func.grad(loss)(params, x, y)
            if first_order:
                slope = {name: value.detach() for name, value in slope.items()}
            params = {name: p - lr * slope[name] for name, p in params.items()}
        return loss(params, query_x, query_y)

    query_losses = torch.func.vmap(query_loss)(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y
    )
    query_losses.mean().backward()


def hessian_norm_pyhessian(
    net: nn.Module, x: Tensor, y: Tensor, products: int, tol: float = 1e-3
) -> float:
    """Largest |lambda| of one task's Hessian by PyHessian: power iteration.

    It stops after this number of products, or where one changes the value by a smaller part than
    tol.
    """
    from pyhessian import hessian

    operator = hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=x.is_cuda)
    eigenvalues, _ = operator.eigenvalues(maxIter=products, tol=tol, top_n=1)
    return abs(eigenvalues[0])


def hessian_norm_curvlinops(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Largest |lambda| of one task's Hessian by curvlinops' operator and scipy's Lanczos.

    The relative tolerance is 1e-3.
    """
    from curvlinops import HessianLinearOperator

    operator = HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)])
    eigenvalues = eigsh(operator.to_scipy(), k=1, which="LM", tol=1e-3, return_eigenvectors=False)
    return float(abs(eigenvalues[0]))


def exact_gradient(net: ConvNet, tasks: Tasks, settings: Settings) -> Tensor:
    """The meta-gradient [P] in float64, by autograd alone, one task at a time, on the CPU."""
    lr, steps, first_order = settings.inner_lr, settings.inner_steps, settings.first_order
    plain = plain_net(net).double().cpu()
    names, theta = zip(*plain.named_parameters(), strict=True)
    total = torch.zeros(sum(p.numel() for p in theta), dtype=torch.float64)
    for x, y, query_x, query_y in each_task(tasks.to("cpu")):
        params = list(theta)
        # The inner steps; then the query loss, whose gradient is with respect to theta.
        batches = [(x, y, False)] * steps + [(query_x, query_y, True)]
        for images, labels, is_query in batches:
            named = dict(zip(names, params, strict=True))
            logits = torch.func.functional_call(plain, named, (images.double(),))
            slopes = torch.autograd.grad(
                F.cross_entropy(logits, labels),
                theta if is_query else params,
                create_graph=not (is_query or first_order),
            )
            params = [p - lr * slope for p, slope in zip(params, slopes, strict=True)]
        total += torch.cat([slope.flatten() for slope in slopes]) / len(tasks)
    return total


def exact_norm(plain: nn.Module, x: Tensor, y: Tensor) -> float:
    """Largest |lambda| of one task's Hessian in float64, by scipy's Lanczos, right to 1e-6."""
    double = deepcopy(plain).double().cpu()
    params = list(double.parameters())
    loss = F.cross_entropy(double(x.cpu().double()), y.cpu())
    slopes = torch.autograd.grad(loss, params, create_graph=True)
    slope = torch.cat([part.flatten() for part in slopes])

    def hessian_product(vector: np.ndarray) -> np.ndarray:
        products = torch.autograd.grad(slope, params, torch.from_numpy(vector), retain_graph=True)
        return torch.cat([part.flatten() for part in products]).numpy()

    size = len(slope)
    operator = LinearOperator((size, size), matvec=hessian_product, dtype=np.float64)
    (eigenvalue,) = eigsh(
        operator, k=1, which="LM", tol=1e-6, return_eigenvectors=False, v0=np.ones(size)
    )
    return float(abs(eigenvalue))


# name -> (function, library it needs)
HESSIAN_PEERS: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], float], str]] = {
    "PyHessian, at most 20 iterations": (partial(hessian_norm_pyhessian, products=20), "pyhessian"),
    "PyHessian, at most 100 iterations": (
        partial(hessian_norm_pyhessian, products=100),  # its defaults
        "pyhessian",
    ),
    "PyHessian, tolerance 1e-5, at most 1,000 iterations": (
        partial(hessian_norm_pyhessian, products=1_000, tol=1e-5),
        "pyhessian",
    ),
    "curvlinops + scipy eigsh": (hessian_norm_curvlinops, "curvlinops"),
}

# name -> (function, norm of its network, library it needs, orders it supports)
PEERS: dict[str, tuple[Peer, type[PrimitiveNorm], str, str]] = {
    "higher, one task at a time": (plain_higher, PrimitiveNorm, "higher", "second first"),
    "higher, F.batch_norm": (plain_higher, NativeNorm, "higher", "second first"),
    "bare autograd loop, F.batch_norm": (bare_loop, NativeNorm, "torch", "second first"),
    "TorchOpt": (torchopt, PrimitiveNorm, "torchopt", "second"),
    "torch.func vmap, own batch norm": (torch_func, PrimitiveNorm, "torch", "second first"),
    "torch.func vmap, F.batch_norm": (torch_func, NativeNorm, "torch", "second first"),
}


def is_installed(library: str) -> bool:
    """Whether a peer's library can be imported; the extra `bench` installs all of them."""
    return find_spec(library) is not None
