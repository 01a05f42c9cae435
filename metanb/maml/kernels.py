"""Layers with weights per task; a reader may skip this module, which is here for speed alone.

3x3 convolution, batch norm and max-pooling compute what torch's own layers compute, for all tasks
at once, and are closed under differentiation. MAML differentiates a gradient. A convolution, its
gradient by the input and its gradient by the weight are three bilinear maps, each the derivative of
the others. Written as three `torch.autograd.Function`s they run one fast kernel each, to any order.

Images are [T, B, H, W, C] (channels last: a pixel's channels, and a row of a 3x3 patch, lie side by
side), weights [T, O, 3, 3, C].

A convolution has two kernels: a batched matrix product over extracted patches, for all tasks at
once; and oneDNN's convolution, task by task, on a CPU where the tasks are large.
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
TILE = 64  # side of the tiles in which a GPU computes a matrix product
TILES = 256  # tiles that keep a GPU busy


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute each task's 3x3 convolution, with padding 1: [T, B, H', W', O].

    Args:
        x: images, [T, B, H, W, C].
        weight: [T, O, 3, 3, C].
        stride: 1 or 2.
    """
    return _Convolve.apply(x, weight, stride)


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> Tensor:
    """Compute each task's batch norm by its own statistics, and then ReLU, if `relu`.

    It is differentiable to any order; the first and the second derivative take one pass each.

    Args:
        x: [T, B, H, W, C].
        gamma: [T, C].
        beta: [T, C].
        relu: whether ReLU follows.
    """
    return _BatchNorm.apply(x, gamma, beta, relu)


def max_pool(x: Tensor) -> Tensor:
    """Compute the maximum of each 2x2 window of x [T, B, H, W, C]: [T, B, H // 2, W // 2, C].

    An odd last row or column is left out.
    """
    return _Pool.apply(x.flatten(0, 1), None).unflatten(0, x.shape[:2])


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply each task's rows [T, K, P], as constants, by its weight [T, O, P]: [T, K, O]."""
    return _Linear.apply(rows, weight)


def moments(a: Tensor, b: Tensor) -> Tensor:
    """Compute each task's sum of outer products of rows: a [T, K, M], b [T, K, N] -> [T, M, N].

    A GPU computes a matrix product tile by tile, each tile on one of its hundred processors. Here
    the tiles are few and their sums long. So the rows are split into parts, and the products of the
    parts are summed.
    """
    parts = _count_parts(a, b)
    a = a.reshape(len(a) * parts, -1, a.shape[-1])
    b = b.reshape(len(b) * parts, -1, b.shape[-1])
    product = torch.bmm(a.transpose(1, 2), b)
    return product if parts == 1 else product.unflatten(0, (-1, parts)).sum(1)


def _count_parts(a: Tensor, b: Tensor) -> int:
    """Number of equal parts of the rows: 1 on a CPU, elsewhere enough for TILES tiles."""
    if a.device.type == "cpu":
        return 1
    rows = a.shape[1]
    tiles = len(a) * -(-a.shape[2] // TILE) * -(-b.shape[2] // TILE)
    most = min(-(-TILES // tiles), max(1, rows // TILE))
    return next(parts for parts in range(most, 0, -1) if rows % parts == 0)


def patches(x: Tensor, stride: int) -> Tensor:
    """Return the 3x3 patches (padding 1) of x [T, B, H, W, C] as rows: [T, B*H'*W', 9*C].

    A row is laid out like a weight.
    """
    return _patches(x, stride)


@fusible
def _patches(x: Tensor, stride: int) -> Tensor:
    """`patches`, compiled by itself."""
    return windows(F.pad(x, (0, 0, 1, 1, 1, 1)), stride).reshape(len(x), -1, 9 * x.shape[-1])


def windows(padded: Tensor, stride: int) -> Tensor:
    """Return a view of the 3x3 patches of images with their padding: [T, B, H', W', 3, 3*C].

    Args:
        padded: [T, B, H + 2, W + 2, C].
        stride: 1 or 2.
    """
    padded = padded.contiguous()
    n_tasks, batch, height, width, channels = padded.shape
    task, image, row, column, _ = padded.stride()
    h, w = out_side(height - 2, stride), out_side(width - 2, stride)
    shape = (n_tasks, batch, h, w, 3, 3 * channels)
    return padded.as_strided(shape, (task, image, stride * row, stride * column, row, 1))


def out_side(side: int, stride: int) -> int:
    """Return the side of a 3x3 convolution's output, with padding 1."""
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
            down = slice(i, i + stride * h, stride)
            right = slice(j, j + stride * w, stride)
            padded[:, :, down, right] += rows[:, :, :, :, i, j]
    return padded[:, :, 1 : height + 1, 1 : width + 1]


def _is_direct(weight: Tensor, x_shape: Sequence[int], stride: int) -> bool:
    """Whether oneDNN's convolution, task by task, beats a batched matrix product over patches."""
    return weight.device.type == "cpu" and prod(x_shape[1:4]) >= DIRECT_FROM * stride * stride


def _fold_shared(weight: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
    """Join the images of all tasks into one task where `expand` shares one weight between them.

    That is the case in the first inner step.
    """
    if weight.stride(0) == 0 and len(weight) > 1:
        return weight[:1], *(x.flatten(0, 1).unsqueeze(0) for x in images)
    return weight, *images


def _native_convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """One task's convolution of x [B, H, W, C] with weight [O, 3, 3, C]: [B, H', W', O]."""
    x, weight = (z.permute(0, 3, 1, 2) for z in (x, weight))
    return F.conv2d(x, weight, stride=stride, padding=1).permute(0, 2, 3, 1)


def _native_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int, number: int) -> Tensor:
    """One task's gradient for g [B, H', W', O].

    Number 0 is the gradient by x [B, H, W, C], number 1 the gradient by weight [O, 3, 3, C].
    """
    g, x, weight = (z.permute(0, 3, 1, 2) for z in (g, x, weight))
    mask = [number == 0, number == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
    )
    return gradients[number].permute(0, 2, 3, 1)


def _stack_over_tasks(kernel: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """Call the kernel for each task, and stack the results."""
    if len(operands[0]) == 1:
        return kernel(*(z[0] for z in operands)).unsqueeze(0)
    out = None
    for t, task in enumerate(zip(*operands, strict=True)):
        result = kernel(*task)
        if out is None:
            out = result.new_empty(len(operands[0]), *result.shape)
        out[t] = result
    assert out is not None  # there is at least one task
    return out


class _Linear(Function):
    """rows times the transposed weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return torch.bmm(rows, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return None, _LinearGradient.apply(g, rows)


class _LinearGradient(Function):
    """The gradient of `_Linear` by the weight."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return moments(rows, g).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return _Linear.apply(rows, weight), None


class _Convolve(Function):
    """The convolution of x with weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        n_tasks, batch, height, width, _ = x.shape
        h, w = out_side(height, stride), out_side(width, stride)
        shape = (n_tasks, batch, h, w, weight.shape[1])
        weight, x = _fold_shared(weight, x)
        if _is_direct(weight, x.shape, stride):
            y = _stack_over_tasks(lambda x, w: _native_convolution(x, w, stride), x, weight)
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
    """The gradient of `_Convolve` by x, an image of `shape`, for the gradient g by its output."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, shape: torch.Size, stride: int) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.stride = stride
        weight, g = _fold_shared(weight, g)
        folded = (len(weight), g.shape[1], *shape[2:])
        if _is_direct(weight, folded, stride):
            x = g.new_empty(folded[1:])  # only its shape is read
            by_x = _stack_over_tasks(lambda g, w: _native_gradient(g, x, w, stride, 0), g, weight)
            return by_x.view(shape)
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
    """The gradient of `_Convolve` by weight, for the gradient g by its output."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.stride = stride
        shape = (g.shape[-1], 3, 3, x.shape[-1])
        weight = g.new_empty(shape)  # only its shape is read
        if _is_direct(weight, x.shape, stride):
            return _stack_over_tasks(lambda g, x: _native_gradient(g, x, weight, stride, 1), g, x)
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
        grad_y: Tensor,
        x: Tensor,
        gamma: Tensor,
        centred: Tensor,
        r: Tensor,
        y: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_x, by_gamma, by_beta, g, mean_g, mean_gn = _norm_gradient(grad_y, gamma, centred, r, y)
        ctx.save_for_backward(grad_y, x, gamma, g, centred, r, y, mean_g, mean_gn)
        return by_x.view_as(x), by_gamma, by_beta

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by grad_y, x and gamma.

        u, v and w are the cotangents of `by_x`, `by_gamma` and `by_beta`.
        """
        grad_y, x, gamma, g, centred, r, y, mean_g, mean_gn = ctx.saved_tensors
        second = _norm_second
        # For a third derivative autograd must see how these follow from grad_y and x.
        if torch.is_grad_enabled():
            g = (grad_y if y is None else _where_positive(grad_y, y)).flatten(1, 3)
            samples = x.flatten(1, 3)
            centred = samples - samples.mean(1, keepdim=True)
            r = (centred.square().mean(1, keepdim=True) + EPS).rsqrt()
            mean_g = g.mean(1, keepdim=True)
            mean_gn = (g * centred).mean(1, keepdim=True) * r
            second = _norm_second_traced
        by_g, by_x, by_gamma = second(u, v, w, gamma, g, centred, r, y, mean_g, mean_gn)
        return by_g, by_x, by_gamma, None, None, None


@fusible
def _normalise(x: Tensor, gamma: Tensor, beta: Tensor, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output y of `_BatchNorm`, the centred samples [T, B*H*W, C], and r [T, 1, C]."""
    samples = x.flatten(1, 3)
    centred = samples - samples.mean(1, keepdim=True)
    r = centred.square().mean(1, keepdim=True).add_(EPS).rsqrt_()
    y = torch.addcmul(beta.unsqueeze(1), centred, gamma.unsqueeze(1) * r).view_as(x)
    return y.relu_() if relu else y, centred, r


@fusible
def _norm_gradient(
    grad_y: Tensor, gamma: Tensor, centred: Tensor, r: Tensor, y: Tensor | None
) -> tuple[Tensor, ...]:
    """The gradients by x, gamma and beta, and three intermediates for the next derivative.

    With n = centred * r, and g = grad_y where y > 0 and 0 elsewhere, the gradients are gamma r (g -
    mean(g) - n mean(g n)), sum(g n) and sum(g). The intermediates are g, mean(g) and mean(g n).
    """
    g = (grad_y if y is None else _where_positive(grad_y, y)).flatten(1, 3)
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
    """The derivatives of `_norm_gradient`'s first three results by grad_y, x and gamma.

    u, v and w are their cotangents. x enters through n, with gradient k = v g - scale (mean(g n) u
    + mean(u n) g), and through r.
    """
    shape = u.shape
    u = u.flatten(1, 3)
    gamma = gamma.unsqueeze(1)
    v = v.unsqueeze(1)
    w = w.unsqueeze(1)
    # Means over the samples.
    scale = gamma * r
    mean_u = u.mean(1, keepdim=True)
    mean_un = (u * centred).mean(1, keepdim=True) * r
    covariance = (u * g).mean(1, keepdim=True) - mean_u * mean_g - mean_un * mean_gn
    # By g.
    v_g = v - scale * mean_un
    by_g = torch.addcmul(w - scale * mean_u, centred, v_g * r).addcmul_(u, scale).view(shape)
    # By x.
    mean_k = v_g * mean_g - scale * mean_gn * mean_u
    mean_kn = v_g * mean_gn - scale * mean_gn * mean_un
    by_x = torch.addcmul(-r * mean_k, centred, -r * r * (mean_kn + scale * covariance))
    by_x.addcmul_(u, -r * scale * mean_gn).addcmul_(g, r * v_g)
    # By gamma.
    by_gamma = (r * covariance * g.shape[1]).squeeze(1)
    return by_g if y is None else _where_positive(by_g, y), by_x.view(shape), by_gamma


_norm_second = fusible(_norm_second_traced)


class _Pool(Function):
    """One pixel of each 2x2 window of x [N, H, W, C].

    It is the maximum, or the pixel at a given index [N, C, H', W']. The second derivative of
    torch's own max-pooling does not keep channels last, and later sums of the two layouts are slow.
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
    """The transpose of `_Pool`: zeros of `shape`, with g [N, H', W', C] at the pixels' places."""

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
