"""Stochastic Lanczos quadrature and the Gauss-Newton part, in float64, against dense matrices.

Eigenvalues and powers of dense Hessians of a small net, matrices of known spectrum, closed forms of
Hutchinson's variance, and `torch.autograd.functional`'s Jacobian and Hessian.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metanb.landscape import spectrum
from metanb.landscape.lanczos import LandscapeError, random_directions
from metanb.maml.inner_loop import flatten, logits
from metanb.maml.network import ConvNet
from tests.support.losses import conv_net, dense_eigenvalues, quadratic, randn

TASKS = 2


@pytest.fixture(scope="module")
def net():
    """Losses of a small net, parameters [T, P], and the dense Hessians [T, P, P] there."""
    loss, params = conv_net(torch.Generator().manual_seed(0), tasks=TASKS)
    whole = torch.autograd.functional.hessian(lambda p: loss(p).sum(), params)
    return loss, params, torch.stack([whole[t, :, t] for t in range(TASKS)])


@pytest.fixture(scope="module")
def form(net):
    """The quadratic form of those Hessians: products with it are quick, and there may be many."""
    _, params, dense = net
    return (lambda p: torch.einsum("ti,tij,tj->t", p, dense, p) / 2), params


@pytest.fixture(scope="module")
def everywhere(form):
    """The quadrature from every axis of parameter space: its average over directions is exact."""
    axes = torch.eye(form[1].shape[1], dtype=torch.float64)[:, None].expand(-1, TASKS, -1)
    return spectrum.quadrature(*form, axes, 30)


def random_starts(n, params):
    return torch.stack([random_directions(len(params), params.shape[1], seed) for seed in range(n)])


def test_moments_of_a_direction_are_those_of_the_dense_hessian(net):
    """The k nodes integrate powers below 2 k exactly: the sum of w theta^p is v H^p v."""
    loss, params, dense = net
    starts = random_starts(3, params)
    quadrature = spectrum.quadrature(loss, params, starts, 4)
    assert quadrature.nodes.shape == quadrature.weights.shape == (TASKS, 3, 4)
    assert quadrature.size == params.shape[1]
    powered = starts.transpose(0, 1)[..., None]  # [T, V, P, 1]
    for power in range(8):
        true = (starts.transpose(0, 1) * powered[..., 0]).sum(-1)
        torch.testing.assert_close(
            (quadrature.weights * quadrature.nodes**power).sum(-1), true, rtol=1e-9, atol=1e-12
        )
        powered = dense[:, None] @ powered
    true = (starts.transpose(0, 1) * powered[..., 0]).sum(-1)
    # the first that is not exact
    assert ((quadrature.weights * quadrature.nodes**8).sum(-1) < true * (1 - 1e-6)).all()


def test_trace_and_squares_over_all_axes_are_the_dense_ones(net, everywhere):
    _, _, dense = net
    torch.testing.assert_close(
        spectrum.moment(everywhere, 1), torch.einsum("tii->t", dense), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        spectrum.moment(everywhere, 2), dense.square().sum((1, 2)), rtol=1e-9, atol=1e-9
    )


def test_trace_from_random_directions_is_as_far_off_as_theory_says(net, form):
    """On the sphere the variance of P v H v is 2 P^2 / (P (P + 2)) (tr H^2 - (tr H)^2 / P)."""
    (_, params, dense), n = net, 100
    size = params.shape[1]
    trace, squares = torch.einsum("tii->t", dense), dense.square().sum((1, 2))
    sigma = (2 * size / (size + 2) * (squares - trace**2 / size) / n).sqrt()
    quadrature = spectrum.quadrature(*form, random_starts(n, params), 2)
    assert ((spectrum.moment(quadrature, 1) - trace).abs() < 4 * sigma).all()
    by_direction = size * (quadrature.weights * quadrature.nodes).sum(-1)  # [T, V]
    assert torch.allclose(by_direction.std(1), sigma * n**0.5, rtol=0.5)


def test_smoothed_density_is_the_dense_spectrums(net, form, everywhere):
    _, params, dense = net
    eigenvalues = torch.linalg.eigvalsh(dense)
    width = 0.02 * float(eigenvalues.max() - eigenvalues.min())
    at = torch.linspace(
        float(eigenvalues.min()) - 5 * width, float(eigenvalues.max()) + 5 * width, 400
    )
    normal = torch.distributions.Normal(eigenvalues[..., None], width)
    true = normal.log_prob(at.double()).exp().mean(1)
    smoothed = spectrum.density(everywhere, at, width)
    assert (smoothed - true).abs().max() < 1e-3 * true.max()
    assert torch.allclose(
        torch.trapezoid(smoothed, at.double(), dim=1),
        torch.ones(TASKS, dtype=torch.float64),
        atol=1e-4,
    )
    estimate = spectrum.density(
        spectrum.quadrature(*form, random_starts(100, params), 30), at, width
    )
    assert (estimate - true).abs().max() < 0.15 * true.max()


@pytest.mark.parametrize("width", [0, -0.1, float("nan"), torch.tensor([[0.1, 0.0]])])
def test_a_width_that_is_not_above_0_is_refused(everywhere, width):
    with pytest.raises(ValueError, match="it must be above 0"):
        spectrum.density(everywhere, torch.zeros(2), width)


def test_counts_are_the_dense_spectrums(net, everywhere):
    eigenvalues = torch.linalg.eigvalsh(net[2])
    gaps = eigenvalues.diff(dim=1)
    for task in range(TASKS):  # in the widest gaps, where no node of a converged eigenvalue is near
        below = gaps[task].topk(6).indices
        at = (eigenvalues[task, below] + eigenvalues[task, below + 1]) / 2
        true = (eigenvalues[task] > at[:, None]).sum(1)
        assert torch.allclose(spectrum.count_above(everywhere, at)[task], true.double(), atol=0.1)


def test_ends_and_outliers_are_the_dense_ones(net):
    loss, params, dense = net
    eigenvalues = torch.linalg.eigvalsh(dense)
    quadrature = spectrum.quadrature(loss, params, random_starts(2, params), 50)
    torch.testing.assert_close(
        spectrum.largest(quadrature, 5), eigenvalues.flip(1)[:, :5], rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(
        spectrum.smallest(quadrature, 3), eigenvalues[:, :3], rtol=1e-6, atol=1e-9
    )
    above_bulk = (eigenvalues > -eigenvalues[:, :1]).sum(1).tolist()
    assert spectrum.outliers(quadrature).tolist() == above_bulk != [0, 0]


def test_there_are_no_more_ends_than_nodes(net):
    loss, params, _ = net
    quadrature = spectrum.quadrature(loss, params, random_starts(2, params), 2)
    nodes = quadrature.nodes
    assert torch.equal(spectrum.largest(quadrature, 3), nodes.flip(2).amax(1))
    assert torch.equal(spectrum.smallest(quadrature, 3), nodes.amin(1))
    closed = replace(quadrature, nodes=nodes.index_fill(2, torch.tensor([1]), torch.nan))
    assert (spectrum.largest(closed, 2)[:, 1] == -torch.inf).all()
    assert (spectrum.smallest(closed, 2)[:, 1] == torch.inf).all()


def test_float32_sees_the_same_spectrum(net):
    loss32, params32 = conv_net(torch.Generator().manual_seed(0), torch.float32, tasks=TASKS)
    quadrature = spectrum.quadrature(loss32, params32, random_starts(1, params32), 50)
    eigenvalues = torch.linalg.eigvalsh(net[2])
    assert quadrature.nodes.dtype == quadrature.weights.dtype == torch.float64
    torch.testing.assert_close(
        spectrum.largest(quadrature, 5), eigenvalues.flip(1)[:, :5], rtol=1e-4, atol=1e-4
    )


SPECTRA = {  # Krylov spaces that close early: few different eigenvalues
    "identity": torch.full((40,), 3.0),
    "zero": torch.zeros(40),
    "three eigenvalues": torch.arange(40) % 3 + 1.0,
    "five outliers": torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0] + 17 * [0.5] + 18 * [-1.0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_closed_krylov_spaces(name, dtype):
    """Nothing that comes after the end has a weight, or lies outside the spectrum."""
    spectra = SPECTRA[name].double().expand(TASKS, -1)
    loss, params = quadratic(spectra, torch.Generator().manual_seed(1))
    axes = torch.eye(40, dtype=torch.float64)[:, None].expand(-1, TASKS, -1)
    quadrature = spectrum.quadrature(loss, params.to(dtype), axes, 40)
    near = 1e-4 if dtype == torch.float32 else 1e-9
    assert (spectrum.largest(quadrature, 1)[:, 0] - spectra.amax(1)).abs().max() <= near * 10
    assert (spectrum.smallest(quadrature, 1)[:, 0] - spectra.amin(1)).abs().max() <= near * 10
    torch.testing.assert_close(
        spectrum.moment(quadrature, 1), spectra.sum(1), rtol=near, atol=40 * near
    )
    at = torch.tensor([-0.9, 0.6, 1.5, 2.5, 5.5])
    true = (spectra[:, None] > at[:, None]).sum(2).double()
    assert torch.allclose(spectrum.count_above(quadrature, at), true, atol=40 * near)
    if name == "five outliers":
        assert spectrum.outliers(quadrature).tolist() == TASKS * [5]
        assert (spectrum.largest(quadrature, 5) - torch.arange(9, 4, -1)).abs().max() < near * 10


def test_gauss_newton_part_is_the_dense_one():
    """J^T (d2l/dz2) J with autograd's Jacobian and Hessian of the cross-entropy by the logits."""
    torch.manual_seed(0)
    net = ConvNet((1, 28, 28), 3, filters=2).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(TASKS, 4, 1, 28, 28, generator=generator, dtype=torch.float64)
    params = flatten(net).detach() + 0.3 * randn(generator, TASKS, len(flatten(net)))
    eigenvalues = spectrum.gauss_newton(lambda p: logits(net, p, x), params)
    assert eigenvalues.shape == (TASKS, 4 * 2)
    for t in range(TASKS):
        its_x = x[t : t + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda p, its_x=its_x: logits(net, p[None], its_x).flatten(), params[t]
        )
        z = logits(net, params[t : t + 1], its_x)[0].detach()
        y = torch.tensor([0, 2, 1, 1])  # any labels
        outer = torch.autograd.functional.hessian(
            lambda z, y=y: F.cross_entropy(z.view(4, 3), y), z.flatten()
        )
        true = torch.linalg.eigvalsh(jacobian.T @ outer @ jacobian).flip(0)
        torch.testing.assert_close(eigenvalues[t], true[:8], rtol=1e-8, atol=1e-10)
        assert true[8:].abs().max() < 1e-10 < eigenvalues[t, -1]


def test_gauss_newton_is_the_whole_hessian_of_a_linear_model():
    generator = torch.Generator().manual_seed(2)
    x, y = randn(generator, 1, 6, 5), torch.arange(6) % 3
    params = randn(generator, 1, 15)

    def outputs(p):
        return x @ p.unflatten(1, (5, 3))

    true = dense_eigenvalues(lambda p: F.cross_entropy(outputs(p)[0], y)[None], params)
    eigenvalues = spectrum.gauss_newton(outputs, params)
    torch.testing.assert_close(eigenvalues[:, :12], true.flip(1)[:, :12], rtol=1e-9, atol=1e-12)


def test_refusals():
    loss, params = quadratic(
        torch.ones(2, 6, dtype=torch.float64), torch.Generator().manual_seed(0)
    )
    starts = random_starts(1, params)
    with pytest.raises(ValueError, match="products is 0"):
        spectrum.quadrature(loss, params, starts, 0)
    with pytest.raises(ValueError, match=r"starts has shape \(2, 6\)"):
        spectrum.quadrature(loss, params, starts[0], 3)
    with pytest.raises(LandscapeError, match="^task 1: loss is nan"):
        spectrum.quadrature(lambda p: loss(p) * torch.tensor([1, torch.nan]), params, starts, 3)
    # |p|^1.5 has no second derivative at 0
    with pytest.raises(LandscapeError, match="^task 0: Hessian-vector product is (nan|inf)"):
        spectrum.quadrature(lambda p: p.abs().pow(1.5).sum(1), torch.zeros_like(params), starts, 3)
