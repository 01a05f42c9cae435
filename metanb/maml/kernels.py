"""3x3 convolution with a weight for each task, and batch norm, both closed under differentiation.

MAML differentiates a gradient. A convolution, its gradient by the input and its gradient by the
weight are three bilinear maps, each the derivative of the others: written as three
`torch.autograd.Function`s they run one fast kernel each, to any order. Images are [T, B, H, W, C]
(channels last: a pixel's channels, and a row of a 3x3 patch, lie side by side), weights [T, O, 3,
3, C].

Two kernels: a batched matrix product over extracted patches, for all tasks at once; and on a CPU,
where the tasks are large, oneDNN's convolution, task by task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from metanb.maml.fusing import fusible

EPS = 1e-5  # added to the variance in batch norm
DIRECT_FROM = 400  # output pixels of a task from which oneDNN's convolution is the faster kernel
# a GPU's matrix product is made in tiles of this side, and it wants this many to be busy
TILE, TILES = 64, 256


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Each task's 3x3 convolution, padding 1: x [T, B, H, W, C], weight [T, O, 3, 3, C] -> [T, B, H', W', O]."""
    return _Convolve.apply(x, weight, stride)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> Tensor:
    """Each task's batch norm of x [T, B, H, W, C] by its own statistics, gamma and beta [T, C]; then ReLU, if `relu`.

    Differentiable to any order, the first and the second derivative by one pass each.
    """
    return _BatchNorm.apply(x, gamma, beta, relu)


def max_pool(x: Tensor) -> Tensor:
    """The greatest of each 2x2 window: x [T, B, H, W, C] -> [T, B, H // 2, W // 2, C]; an odd last row is left out."""
    return _Pool.apply(x.flatten(0, 1), None).unflatten(0, x.shape[:2])


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """Each task's rows [T, K, P], which are constants, times its weight [T, O, P]: [T, K, O]."""
    return _Linear.apply(rows, weight)


def moments(a: Tensor, b: Tensor) -> Tensor:
    """Each task's sum of outer products of rows: a [T, K, M], b [T, K, N] -> [T, M, N].

    A GPU makes a matrix product tile by tile, each by one of its hundred processors. Here the tiles
    are few and their sums long, so it is given the rows in parts, whose products are summed.
    """
    parts = _parts(a, b)
    a, b = (x.reshape(len(x) * parts, -1, x.shape[-1]) for x in (a, b))
    product = torch.bmm(a.transpose(1, 2), b)
    return product if parts == 1 else product.unflatten(0, (-1, parts)).sum(1)


def _parts(a: Tensor, b: Tensor) -> int:
    """In how many equal parts to give the rows of a and b: 1 on a CPU, elsewhere as many as make TILES tiles."""
    if a.device.type == "cpu":
        return 1
    rows, tiles = a.shape[1], len(a) * -(-a.shape[2] // TILE) * -(-b.shape[2] // TILE)
    most = min(-(-TILES // tiles), max(1, rows // TILE))
    return next(parts for parts in range(most, 0, -1) if rows % parts == 0)


def patches(x: Tensor, stride: int) -> Tensor:
    """The 3x3 patches (padding 1) of x [T, B, H, W, C] as rows: [T, B*H'*W', 9*C], a row laid out like a weight."""
    return _patches(x, stride)


@fusible
def _patches(x: Tensor, stride: int) -> Tensor:
    return windows(F.pad(x, (0, 0, 1, 1, 1, 1)), stride).reshape(len(x), -1, 9 * x.shape[-1])


def windows(padded: Tensor, stride: int) -> Tensor:
    """A view of the 3x3 patches of padded [T, B, H + 2, W + 2, C]: [T, B, H', W', 3, 3*C]."""
    padded = padded.contiguous()
    n_tasks, batch, height, width, channels = padded.shape
    task, image, row, column, _ = padded.stride()
    shape = (
        n_tasks,
        batch,
        out_side(height - 2, stride),
        out_side(width - 2, stride),
        3,
        3 * channels,
    )
    return padded.as_strided(shape, (task, image, stride * row, stride * column, row, 1))


def out_side(side: int, stride: int) -> int:
    """The side of the output of a 3x3 convolution with padding 1."""
    return (side - 1) // stride + 1


@fusible
def _overlap_add(rows: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """The transpose of `patches`: rows [T, B*H'*W', 9*C] added back into images of `shape`."""
    n_tasks, batch, height, width, channels = shape
    h, w = out_side(height, stride), out_side(width, stride)
    rows = rows.view(n_tasks, batch, h, w, 3, 3, channels)
    padded = rows.new_zeros(n_tasks, batch, height + 3, width + 3, channels)
    for i in range(3):
        for j in range(3):
            padded[:, :, i : i + stride * h : stride, j : j + stride * w : stride] += rows[
                :, :, :, :, i, j
            ]
    return padded[:, :, 1 : height + 1, 1 : width + 1]


def _direct(weight: Tensor, x_shape: Sequence[int], stride: int) -> bool:
    """Whether oneDNN's convolution, task by task, beats a batched matrix product over patches."""
    return weight.device.type == "cpu" and prod(x_shape[1:4]) >= DIRECT_FROM * stride * stride


def _fold_shared(weight: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
    """Weights that `expand` shares between the tasks, as in the first inner step: all images become one task's."""
    if weight.stride(0) == 0 and len(weight) > 1:
        return weight[:1], *(x.flatten(0, 1).unsqueeze(0) for x in images)
    return weight, *images


def _native_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, of: int) -> Tensor:
    """One task's gradient by x [B, H, W, C] (`of` 0) or by weight [O, 3, 3, C] (`of` 1), for g [B, H', W', O]."""
    g, x, weight = (z.permute(0, 3, 1, 2) for z in (g, x, weight))
    mask = [of == 0, of == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
    )
    return gradients[of].permute(0, 2, 3, 1)


def _each(kernel: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """The kernel's results for each task, stacked."""
    if len(operands[0]) == 1:
        return kernel(*(z[0] for z in operands)).unsqueeze(0)
    out = None
    for t, task in enumerate(zip(*operands, strict=True)):
        result = kernel(*task)
        if out is None:
            out = result.new_empty(len(operands[0]), *result.shape)
        out[t] = result
    assert out is not None  # there is a task at least
    return out


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return torch.bmm(rows, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return None, _LinearGradient.apply(g, rows)


class _LinearGradient(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return moments(rows, g).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return _Linear.apply(rows, weight), None


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        shape = (
            *x.shape[:2],
            out_side(x.shape[2], stride),
            out_side(x.shape[3], stride),
            weight.shape[1],
        )
        weight, x = _fold_shared(weight, x)
        if _direct(weight, x.shape, stride):
            y = _each(
                lambda x, w: F.conv2d(
                    x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), stride=stride, padding=1
                ).permute(0, 2, 3, 1),
                x,
                weight,
            )
        else:
            y = torch.bmm(patches(x, stride), weight.flatten(2).transpose(1, 2))
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(g, weight, x.shape, ctx.stride) if by_x else None,
            _WeightGradient.apply(g, x, ctx.stride) if by_weight else None,
            None,
        )


class _InputGradient(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, shape: torch.Size, stride: int) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.stride = stride
        weight, g = _fold_shared(weight, g)
        folded = (len(weight), g.shape[1], *shape[2:])
        if _direct(weight, folded, stride):
            x = g.new_empty(folded[1:])  # only its shape is read
            return _each(lambda g, w: _native_gradient(g, x, w, stride, 0), g, weight).view(shape)
        rows = torch.bmm(g.flatten(1, 3), weight.flatten(2))
        return _overlap_add(rows, folded, stride).reshape(shape)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        g, weight = ctx.saved_tensors
        by_g, by_weight, *_ = ctx.needs_input_grad
        return (
            _Convolve.apply(x, weight, ctx.stride) if by_g else None,
            _WeightGradient.apply(g, x, ctx.stride) if by_weight else None,
            None,
            None,
        )


class _WeightGradient(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.stride = stride
        shape = (g.shape[-1], 3, 3, x.shape[-1])
        weight = g.new_empty(shape)  # only its shape is read
        if _direct(weight, x.shape, stride):
            return _each(lambda g, x: _native_gradient(g, x, weight, stride, 1), g, x)
        return moments(g.flatten(1, 3), patches(x, stride)).view(-1, *shape)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        by_g, by_x, _ = ctx.needs_input_grad
        return (
            _Convolve.apply(x, weight, ctx.stride) if by_g else None,
            _InputGradient.apply(g, weight, x.shape, ctx.stride) if by_x else None,
            None,
        )


class _BatchNorm(Function):
    """y = gamma * (x - mean) * r + beta with r = 1 / sqrt(variance + EPS), then ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> Tensor:
        y, centred, r = _normalise(x, gamma, beta, relu)
        ctx.save_for_backward(x, gamma, centred, r, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_BatchNormGradient.apply(g, *ctx.saved_tensors), None


class _BatchNormGradient(Function):
    """The gradients by x, gamma and beta."""

    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        x: Tensor,
        gamma: Tensor,
        centred: Tensor,
        r: Tensor,
        y: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_x, by_gamma, by_beta, g, mean_g, mean_gn = _norm_gradient(given, gamma, centred, r, y)
        ctx.save_for_backward(given, x, gamma, g, centred, r, y, mean_g, mean_gn)
        return by_x.view_as(x), by_gamma, by_beta

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by g, x and gamma, for the cotangents u of `by_x`, v of `by_gamma` and w of `by_beta`."""
        given, x, gamma, g, centred, r, y, mean_g, mean_gn = ctx.saved_tensors
        second = _norm_second
        # for a third derivative autograd must see how these follow from g and x
        if torch.is_grad_enabled():
            g, samples = (
                (given if y is None else _where_positive(given, y)).flatten(1, 3),
                x.flatten(1, 3),
            )
            centred = samples - samples.mean(1, keepdim=True)
            r = (centred.square().mean(1, keepdim=True) + EPS).rsqrt()
            mean_g, mean_gn = g.mean(1, keepdim=True), (g * centred).mean(1, keepdim=True) * r
            second = _norm_second_traced
        by_g, by_x, by_gamma = second(u, v, w, gamma, g, centred, r, y, mean_g, mean_gn)
        return by_g, by_x, by_gamma, None, None, None


@fusible
def _normalise(x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `_BatchNorm` says, the centred samples [T, B*H*W, C], and r [T, 1, C]."""
    samples = x.flatten(1, 3)
    centred = samples - samples.mean(1, keepdim=True)
    r = centred.square().mean(1, keepdim=True).add_(EPS).rsqrt_()
    y = torch.addcmul(beta.unsqueeze(1), centred, gamma.unsqueeze(1) * r).view_as(x)
    return y.relu_() if relu else y, centred, r


@fusible
def _norm_gradient(
    given: Tensor, gamma: Tensor, centred: Tensor, r: Tensor, y: Tensor | None
) -> tuple[Tensor, ...]:
    """With n = centred * r, and g only where y > 0: gamma r (g - mean(g) - n mean(g n)), sum(g n) and sum(g).

    These are the gradients by x, gamma and beta; then g itself, its mean and mean(g n), which the
    next derivative uses.
    """
    g = (given if y is None else _where_positive(given, y)).flatten(1, 3)
    samples = g.shape[1]
    mean_g = g.mean(1, keepdim=True)
    mean_gn = (g * centred).mean(1, keepdim=True) * r
    scale = gamma.unsqueeze(1) * r
    by_x = torch.addcmul(-scale * mean_g, centred, -scale * r * mean_gn).addcmul_(g, scale)
    return by_x, (mean_gn * samples).squeeze(1), (mean_g * samples).squeeze(1), g, mean_g, mean_gn


def _norm_second_traced(
    u: Tensor,
    v: Tensor,
    w: Tensor,
    gamma: Tensor,
    g: Tensor,
    centred: Tensor,
    r: Tensor,
    y: Tensor | None,
    mean_g: Tensor,
    mean_gn: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of `_norm_gradient` by g, x and gamma, for cotangents u, v and w of its first three results.

    x enters through n, with gradient k = v g - scale (mean(g n) u + mean(u n) g), and through r.
    """
    shape, u, gamma, v, w = (
        u.shape,
        u.flatten(1, 3),
        gamma.unsqueeze(1),
        v.unsqueeze(1),
        w.unsqueeze(1),
    )
    scale = gamma * r
    mean_u = u.mean(1, keepdim=True)
    mean_un = (u * centred).mean(1, keepdim=True) * r
    covariance = (u * g).mean(1, keepdim=True) - mean_u * mean_g - mean_un * mean_gn
    v_g = v - scale * mean_un
    by_g = torch.addcmul(w - scale * mean_u, centred, v_g * r).addcmul_(u, scale).view(shape)
    mean_k = v_g * mean_g - scale * mean_gn * mean_u
    mean_kn = v_g * mean_gn - scale * mean_gn * mean_un
    by_x = torch.addcmul(-r * mean_k, centred, -r * r * (mean_kn + scale * covariance))
    by_x.addcmul_(u, -r * scale * mean_gn).addcmul_(g, r * v_g)
    by_gamma = (r * covariance * g.shape[1]).squeeze(1)
    return by_g if y is None else _where_positive(by_g, y), by_x.view(shape), by_gamma


_norm_second = fusible(_norm_second_traced)


class _Pool(Function):
    """One pixel of each 2x2 window of x [N, H, W, C]: its greatest, or the one at a given index [N, C, H', W'].

    Torch's own has a second derivative that leaves channels last, and later sums of the two layouts
    are slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor | None) -> Tensor:
        if index is None:
            y, index = F.max_pool2d(x.permute(0, 3, 1, 2), 2, return_indices=True)
            y = y.permute(0, 2, 3, 1)
        else:
            pixels = index.permute(0, 2, 3, 1)
            y = x.flatten(1, 2).gather(1, pixels.flatten(1, 2)).view(pixels.shape)
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _PoolGradient.apply(g, index, ctx.shape), None


class _PoolGradient(Function):
    """The transpose of `_Pool`: g [N, H', W', C] put back where it came from, in zeros of `shape`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(index)
        x = g.new_empty(shape)  # only its shape is read
        g, x = (z.permute(0, 3, 1, 2) for z in (g, x))
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, index
        ).permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _Pool.apply(x, index), None, None


def _where_positive(g: Tensor, y: Tensor) -> Tensor:
    """The derivative of ReLU: g where y > 0, 0 elsewhere."""
    return torch.ops.aten.threshold_backward(g, y, 0)
