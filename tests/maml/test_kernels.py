"""The kernels in float64: finite differences, and torch's conv2d, unfold and batch_norm."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad, gradcheck, gradgradcheck

from metanb.maml import kernels
from metanb.maml.kernels import EPS, batch_norm, convolve, linear, max_pool, moments, patches

T, B, C, OUT = 2, 2, 2, 3


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def conv2d(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The convolution of torch, task by task, in this module's layout."""
    tasks = zip(x.permute(0, 1, 4, 2, 3), weight.permute(0, 1, 4, 2, 3), strict=True)
    return torch.stack(
        [F.conv2d(a, w, stride=stride, padding=1).permute(0, 2, 3, 1) for a, w in tasks]
    )


@pytest.fixture(params=["direct", "matrix product", "in parts"])
def kernel(request, monkeypatch) -> str:
    """All kernels, whatever the device and the size of the images."""
    monkeypatch.setattr(kernels, "DIRECT_FROM", 0 if request.param == "direct" else 10**9)
    if request.param == "in parts":
        monkeypatch.setattr(kernels, "_count_parts", lambda a, b: 2)
    return request.param


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shared", [False, True], ids=["a weight each", "one weight"])
@pytest.mark.parametrize("size", [(4, 3), (1, 2)], ids=str)
def test_convolution_is_torchs_to_third_order(kernel, stride, shared, size):
    x, weight = randn(T, B, *size, C), randn(1 if shared else T, OUT, 3, 3, C, seed=1)
    ours, theirs = [], []
    for results, convolution_ in ((ours, convolve), (theirs, conv2d)):
        value = convolution_(x, weight.expand(T, -1, -1, -1, -1), stride)
        results.append(value)
        for _ in range(3):
            by_x, by_weight = grad(value.sin().sum(), (x, weight), create_graph=True)
            results += [by_x, by_weight]
            value = (
                by_x.square().sum() * by_weight / (by_x.square().sum() * by_weight.norm()).detach()
            )
    for mine, torchs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_by_finite_differences(kernel, stride):
    inputs = randn(T, B, 3, 4, C), randn(T, OUT, 3, 3, C, seed=1)
    assert gradcheck(lambda x, w: convolve(x, w, stride), inputs)
    assert gradgradcheck(lambda x, w: convolve(x, w, stride), inputs)


def test_rows_times_a_weight_by_finite_differences(kernel):
    rows, weight = randn(T, 4, 5).detach(), randn(T, OUT, 5, seed=1)
    torch.testing.assert_close(linear(rows, weight), torch.einsum("tkp,top->tko", rows, weight))
    torch.testing.assert_close(moments(rows, rows), torch.einsum("tkm,tkn->tmn", rows, rows))
    assert gradcheck(lambda w: linear(rows, w).square(), weight)
    assert gradgradcheck(lambda w: linear(rows, w).square(), weight)


@pytest.mark.parametrize(
    "shape", [(4, 529200, 32, 27), (16, 980, 64, 576), (1, 7, 64, 64), (2, 62, 3, 3)]
)
def test_rows_in_parts_are_whole_and_keep_a_gpu_busy(shape):
    n_tasks, rows, m, n = shape
    a, b = (torch.empty(n_tasks, rows, size, device="meta") for size in (m, n))
    parts = kernels._count_parts(a, b)
    tiles = n_tasks * parts * -(-m // kernels.TILE) * -(-n // kernels.TILE)
    assert moments(a, b).shape == (n_tasks, m, n)
    assert rows % parts == 0
    assert kernels.TILES // 2 < tiles <= 2 * kernels.TILES or parts == 1


def test_no_gradient_that_is_not_asked_for():
    x, weight = randn(T, B, 4, 4, C), randn(T, OUT, 3, 3, C).detach()
    (by_x,) = grad(convolve(x, weight, 2).square().sum(), x, create_graph=True)
    names, nodes = set(), [by_x.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    assert "_InputGradientBackward" in names
    assert "_WeightGradientBackward" not in names


@pytest.mark.parametrize("stride", [1, 2])
def test_single_precision_kernels_agree(stride, monkeypatch):
    """Only single precision uses oneDNN: its kernels, at a size of the paper's nets."""
    x, weight, u = (
        randn(*shape).float()
        for shape in ((2, 5, 14, 14, 64), (2, 64, 3, 3, 64), (2, 64, 3, 3, 64))
    )
    results = []
    for threshold in (0, 10**9):
        monkeypatch.setattr(kernels, "DIRECT_FROM", threshold)
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = convolve(x, weight, stride)
        (by_weight,) = grad(y.square().sum(), weight, create_graph=True)
        results.append([y, by_weight, *grad((by_weight * u).sum(), (x, weight))])
    for direct, product in zip(*results, strict=True):
        assert (direct - product).norm() < 1e-5 * product.norm()


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_unfolded_images(stride):
    x = randn(T, B, 5, 4, C)
    # [T*B, C*9, rows]
    unfolded = F.unfold(x.flatten(0, 1).permute(0, 3, 1, 2), 3, padding=1, stride=stride)
    expected = unfolded.view(T, B, C, 9, -1).permute(0, 1, 4, 3, 2).reshape(T, -1, 9 * C)
    assert torch.equal(patches(x, stride), expected)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_is_torchs_with_its_second_derivatives(relu):
    x, gamma, beta = randn(1, B, 3, 4, C), randn(1, C, seed=1), randn(1, C, seed=2)
    torchs = F.batch_norm(
        x[0].permute(0, 3, 1, 2), None, None, gamma[0], beta[0], training=True, eps=EPS
    )
    torchs = torchs.permute(0, 2, 3, 1).unsqueeze(0)
    ours = batch_norm(x, gamma, beta, relu)
    derivatives = []
    for y in (ours, torchs.relu() if relu else torchs):
        first = grad(y.pow(3).sum(), (x, gamma, beta), create_graph=True)
        second = grad(sum(g.pow(2).sum() for g in first), (x, gamma, beta))
        derivatives.append([y, *first, *second])
    for mine, theirs in zip(*derivatives, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_by_finite_differences(relu):
    inputs = randn(T, B, 2, 3, C), randn(T, C, seed=1), randn(T, C, seed=2)
    assert gradcheck(lambda *z: batch_norm(*z, relu), inputs)
    assert gradgradcheck(lambda *z: batch_norm(*z, relu), inputs)


@pytest.mark.parametrize("relu", [False, True])
def test_third_derivatives_of_batch_norm_are_those_of_its_primitives(relu):
    def primitive(x, gamma, beta):
        samples = x.flatten(1, 3)
        centred = samples - samples.mean(1, keepdim=True)
        y = (
            centred * (centred.square().mean(1, keepdim=True) + EPS).rsqrt() * gamma[:, None]
            + beta[:, None]
        )
        return (y.relu() if relu else y).view_as(x)

    inputs = randn(T, B, 2, 3, C), randn(T, C, seed=1), randn(T, C, seed=2)
    derivatives = []
    for y in (batch_norm(*inputs, relu), primitive(*inputs)):
        value = y.pow(4).sum()
        for _ in range(3):
            slopes = grad(value, inputs, create_graph=True)
            value = sum(slope.pow(2).sum() for slope in slopes)
        derivatives.append(slopes)
    for ours, theirs in zip(*derivatives, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(4, 6), (5, 3)], ids=str)
def test_max_pooling_is_torchs_to_third_order(size):
    x = randn(T, B, *size, C)
    torchs = F.max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2)
    torchs = torchs.permute(0, 2, 3, 1).unflatten(0, (T, B))
    derivatives = []
    for y in (max_pool(x), torchs):
        assert y.shape == (T, B, size[0] // 2, size[1] // 2, C)
        value, slopes = y, []
        for _ in range(3):
            (slope,) = grad(value.pow(5).sum(), x, create_graph=True)
            slopes.append(slope)
            value = slope / slope.norm().detach()
        derivatives.append([y, *slopes])
    for mine, theirs in zip(*derivatives, strict=True):
        assert mine.any()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_max_pooling_by_finite_differences():
    x = randn(T, B, 5, 4, C)
    assert gradcheck(lambda z: max_pool(z).square(), x)
    assert gradgradcheck(lambda z: max_pool(z).square(), x)


def test_second_derivative_of_max_pooling_keeps_channels_last():
    x = randn(T, B, 4, 4, C)
    g = randn(T, B, 2, 2, C, seed=1)
    (slope,) = grad(max_pool(x), x, g, create_graph=True)
    (by_g,) = grad(slope, g, randn(*x.shape, seed=2))
    assert slope.is_contiguous() and by_g.is_contiguous()
