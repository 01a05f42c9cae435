"""The measures against independent evidence, in float64.

Eigenvalues of dense Hessians (`torch.linalg.eigvalsh`), quadratic forms of known spectrum, double
loops over pairs, leave-one-out recomputation, numpy's statistics.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from metanb.landscape.coherence import (
    coherence,
    effective_rank,
    gradient_coherence,
    trajectory_coherence,
)
from metanb.landscape.hessian import LandscapeError, curvature_along_gradient, hessian_norms
from metanb.landscape.task_stats import distance, summarise
from tests.support.losses import conv_net, dense_eigenvalues, quadratic, rand, randn

TOL = 1e-3


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def relative_error(value, true):
    return float(((value - true).abs() / true.abs()).max())


def test_hessian_norms_of_a_net_equal_its_dense_eigenvalues(generator):
    loss, params = conv_net(generator)
    # the second task's Hessian is negated
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    eigenvalues = dense_eigenvalues(lambda p: loss(p) * sign, params)
    # indefinite, its negative end the larger
    assert -eigenvalues[1, 0] > 1.1 * eigenvalues[1, -1] > 0
    result = hessian_norms(lambda p: loss(p) * sign, params)
    assert relative_error(result.norms, eigenvalues.abs().amax(1)) < TOL
    assert relative_error(result.smallest[1], eigenvalues[1, 0]) < TOL
    assert relative_error(result.largest[[0, 2]], eigenvalues[[0, 2], -1]) < TOL
    assert torch.equal(result.norms, torch.maximum(result.smallest.abs(), result.largest.abs()))
    assert (result.smallest >= eigenvalues[:, 0] - 1e-9).all()
    assert (result.largest <= eigenvalues[:, -1] + 1e-9).all()
    assert result.products.max() < 40 < params.shape[1]
    loss32, params32 = conv_net(torch.Generator().manual_seed(0), torch.float32)
    assert torch.allclose(params32.double(), params, atol=1e-6)
    result32 = hessian_norms(lambda p: loss32(p) * sign.float(), params32)
    assert result32.norms.dtype == torch.float64
    assert relative_error(result32.norms, eigenvalues.abs().amax(1)) < TOL


SPECTRA = {
    "gap of 1e-3 at the top": lambda bulk: torch.cat([torch.tensor([1.0, 0.999]), 0.9 * bulk[2:]]),
    "gap of 1e-3 between the two ends": lambda bulk: torch.cat(
        [torch.tensor([0.999, -1.0]), 0.9 * bulk[2:]]
    ),
    "repeated": lambda bulk: torch.cat([torch.full((5,), 1.0), 0.9 * bulk[5:]]),
    "the same at both ends": lambda bulk: torch.cat([torch.tensor([1.0, -1.0]), 0.9 * bulk[2:]]),
    "negative definite": lambda bulk: -0.1 - bulk,
    "dense up to the top": lambda bulk: torch.linspace(0, 1, len(bulk)),
    "rank one": lambda bulk: torch.nn.functional.one_hot(torch.tensor(7), len(bulk)),
    "rank one, negative": lambda bulk: -torch.nn.functional.one_hot(torch.tensor(7), len(bulk)),
    "identity": lambda bulk: torch.ones(len(bulk)),
    "three eigenvalues": lambda bulk: torch.arange(len(bulk)) % 3 - 1.5,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("name", SPECTRA)
def test_designed_spectra(name, scale, dtype, generator):
    spectra = torch.stack([scale * SPECTRA[name](rand(generator, 120)).double() for _ in range(3)])
    loss, params = quadratic(spectra, generator)
    result = hessian_norms(loss, params.to(dtype))
    assert relative_error(result.norms, spectra.abs().amax(1)) < TOL
    assert (result.residuals <= TOL).all()


@pytest.mark.parametrize("ends_tol", [1e-3, 0.03])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_designed_spectra(name, ends_tol, generator):
    spectra = torch.stack([SPECTRA[name](rand(generator, 120)).double() for _ in range(3)])
    loss, params = quadratic(spectra, generator)
    result = hessian_norms(loss, params, ends_tol=ends_tol)
    norms = spectra.abs().amax(1)
    for end, true in ((result.smallest, spectra.amin(1)), (result.largest, spectra.amax(1))):
        assert ((end - true).abs() <= ends_tol * norms).all()
    # the norm does not depend on whether the ends are asked for
    alone = hessian_norms(loss, params)
    assert torch.equal(result.norms, alone.norms)
    assert torch.equal(result.residuals, alone.residuals)


def test_both_ends_of_a_net_equal_its_dense_eigenvalues(generator):
    loss, params = conv_net(generator)
    eigenvalues = dense_eigenvalues(loss, params)
    result, alone = (hessian_norms(loss, params, ends_tol=ends_tol) for ends_tol in (0.01, None))
    lesser = torch.minimum(eigenvalues[:, 0].abs(), eigenvalues[:, -1].abs())
    assert (lesser > 0.02 * eigenvalues.abs().amax(1)).all()  # there is something to find
    norms = eigenvalues.abs().amax(1)
    assert ((result.smallest - eigenvalues[:, 0]).abs() <= 0.01 * norms).all()
    assert ((result.largest - eigenvalues[:, -1]).abs() <= 0.01 * norms).all()
    assert torch.equal(result.norms, alone.norms) and (result.products >= alone.products).all()


def test_curvature_along_the_gradient_is_that_of_the_dense_hessian(generator):
    loss, params = conv_net(generator)
    hessian = torch.autograd.functional.hessian(lambda p: loss(p).sum(), params)
    gradient = torch.autograd.functional.jacobian(lambda p: loss(p).sum(), params)
    expected = [g @ hessian[t, :, t] @ g / (g @ g) for t, g in enumerate(gradient)]
    assert torch.allclose(curvature_along_gradient(loss, params), torch.stack(expected))
    # at a minimum there is no gradient, and no direction
    flat = curvature_along_gradient(lambda p: p.square().sum(1), torch.zeros(2, 3))
    assert flat.tolist() == [0, 0]


def test_effective_rank_equals_numpys(generator):
    """Singular values by numpy, for displacements of very different lengths; and leaving out."""
    rows = randn(generator, 7, 30) @ torch.diag(torch.logspace(0, -3, 30, dtype=torch.float64))
    rows *= torch.logspace(-2, 2, 7, dtype=torch.float64)[:, None]

    def rank(rows):
        unit_rows = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        p = np.linalg.svd(unit_rows, compute_uv=False)
        p = p / p.sum()
        return np.exp(-(p * np.log(p)).sum())

    result = effective_rank(torch.cat([rows, torch.zeros(1, 30)]))
    assert result.mean == pytest.approx(rank(rows)) and result.n == 7
    others = [rank(torch.cat([rows[:i], rows[i + 1 :]])) for i in range(7)]
    assert result.sem == pytest.approx(np.sqrt(6 / 7 * np.square(others - np.mean(others)).sum()))
    assert effective_rank(torch.eye(5)).mean == pytest.approx(5)
    of_two = effective_rank(torch.eye(2))
    assert of_two.mean == pytest.approx(2) and np.isnan([of_two.sem, of_two.std]).all()
    broken = effective_rank(torch.full((3, 3), torch.nan))
    assert np.isnan([broken.mean, broken.median, broken.std, broken.sem]).all()
    with pytest.raises(LandscapeError, match="1 of 2 tasks moved"):
        effective_rank(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_fewer_parameters_than_products(size, dtype, generator):
    spectra = randn(generator, 50, size)
    loss, params = quadratic(spectra, generator)
    result = hessian_norms(loss, params.to(dtype))
    assert relative_error(result.norms, spectra.abs().amax(1)) < TOL
    assert result.products.max() <= size


def test_zero_hessian_beside_others(generator):
    spectra = torch.stack([torch.zeros(50), torch.linspace(-2, 1, 50), torch.zeros(50)]).double()
    loss, params = quadratic(spectra, generator)
    result = hessian_norms(loss, params)
    assert result.norms[[0, 2]].tolist() == [0, 0] and result.residuals[[0, 2]].tolist() == [0, 0]
    assert result.products[[0, 2]].tolist() == [1, 1]
    assert relative_error(result.norms[1], torch.tensor(2.0)) < TOL


def test_rounding_costs_no_products(generator):
    """The eigenvalue 1 converges at once and must not come again while the dense end converges."""
    spectra = torch.cat([torch.ones(1), torch.linspace(-1.0, 0.2, 399)])[None].double()
    loss, params = quadratic(spectra, generator)
    exact, rounded = hessian_norms(loss, params), hessian_norms(loss, params.float())
    assert exact.products > 40 and rounded.products == exact.products
    assert relative_error(rounded.norms, exact.norms) < 1e-5


def power_iteration(spectrum, start):
    """The norm as commonly computed: until it changes by less than TOL between two products."""
    v, last = start / start.norm(), math.inf
    while True:
        w = spectrum * v
        norm = float(v @ w)
        if abs(norm - last) < TOL * abs(norm):
            return abs(norm)
        v, last = w / w.norm(), norm


def lanczos_by_residual(spectrum, start):
    """The norm by Lanczos, until the residual says that some eigenvalue is within TOL of it."""
    basis = [start / start.norm()]
    while True:
        q = torch.stack(basis)
        projected = (q * spectrum) @ q.T
        ritz, vectors = torch.linalg.eigh(projected)
        top = int(ritz.abs().argmax())
        w = spectrum * q[-1]
        for _ in range(2):
            w = w - q.T @ (q @ w)
        if w.norm() * vectors[-1, top].abs() < TOL * ritz[top].abs():
            return float(ritz[top].abs())
        basis.append(w / w.norm())


def test_convergence_that_power_iteration_and_residuals_only_claim(generator):
    """One eigenvalue at 1 and five at 0.995; permuting 200 Hessians makes one start 200 starts."""
    bulk = torch.cat([torch.tensor([1.0] + 5 * [0.995]), 0.9 * rand(generator, 494) ** 8]).double()
    spectra = torch.stack([bulk[torch.randperm(500, generator=generator)] for _ in range(200)])
    result = hessian_norms(
        lambda p: (spectra * p.square()).sum(1) / 2, torch.zeros(200, 500, dtype=torch.float64)
    )
    missed = int((result.norms < 1 - TOL).sum())
    starts = [randn(generator, 500) for _ in spectra]
    missed_by_residual = sum(lanczos_by_residual(bulk, start) < 1 - TOL for start in starts)
    missed_by_power = sum(power_iteration(bulk, start) < 1 - TOL for start in starts)
    assert missed <= 1
    assert missed_by_residual > 10 and missed_by_power > 100
    loose = hessian_norms(
        lambda p: (spectra * p.square()).sum(1) / 2, torch.zeros_like(spectra), risk=0.9
    )
    assert (loose.residuals <= TOL).all()
    strict = hessian_norms(
        lambda p: (spectra * p.square()).sum(1) / 2, torch.zeros_like(spectra), risk=1e-3
    )
    assert relative_error(strict.norms, torch.ones(1)) < TOL


def test_tasks_do_not_mix(generator):
    loss, params = conv_net(generator)
    result = hessian_norms(loss, params)
    moved = params.clone()
    moved[1] *= 1.5
    changed = hessian_norms(loss, moved)
    assert relative_error(changed.norms[[0, 2]], result.norms[[0, 2]]) < 1e-9
    assert relative_error(changed.norms[1], result.norms[1]) > 0.01


def test_a_task_has_the_norm_and_the_products_that_it_has_alone(generator):
    # The bulk's upper end, below an eigenvalue of 1.
    ends = torch.tensor([0.1, 0.9, 0.5, 0.99, 0.3], dtype=torch.float64)
    spectra = torch.cat([torch.ones(5, 1), ends[:, None] * rand(generator, 5, 200)], 1)

    def loss(params, rows=slice(None)):
        return (spectra[rows] * params.square()).sum(1) / 2

    result = hessian_norms(loss, torch.zeros_like(spectra))
    assert len(set(result.products.tolist())) == 5
    for t in range(5):
        alone = hessian_norms(lambda p, t=t: loss(p, [t]), torch.zeros(1, 201, dtype=torch.float64))
        assert alone.products == result.products[t]
        for name in ("norms", "smallest", "largest", "residuals"):
            assert float(getattr(alone, name)) == pytest.approx(
                float(getattr(result, name)[t]), rel=1e-6
            )


def test_more_products_than_the_first_basis_holds(generator):
    spectra = torch.linspace(0, 1, 400, dtype=torch.float64)[None]
    loss, params = quadratic(spectra, generator)
    result = hessian_norms(loss, params, tol=1e-6)
    assert result.products > 64 and relative_error(result.norms, torch.ones(1)) < 1e-6


def test_the_gradient_is_built_once_and_the_caller_left_as_it_was(generator):
    loss, params = conv_net(generator)
    calls = []
    params.requires_grad_()
    with torch.no_grad():
        result = hessian_norms(lambda p: calls.append(len(p)) or loss(p), params)
    assert calls == [3] and params.grad is None and not result.norms.requires_grad
    assert torch.equal(result.norms, hessian_norms(loss, params).norms)
    assert relative_error(hessian_norms(loss, params, seed=1).norms, result.norms) < TOL


def test_errors_name_the_task_and_the_value(generator):
    loss, params = quadratic(
        torch.linspace(0, 1, 100, dtype=torch.float64).expand(3, -1), generator
    )
    with pytest.raises(
        LandscapeError,
        match=r"^task 0: Hessian norm is still uncertain after 5 products .*residual.*max_products",
    ):
        hessian_norms(loss, params, max_products=5)
    broken = params.clone()
    broken[1, 0] = math.nan
    with pytest.raises(LandscapeError, match="^task 1: loss is nan"):
        hessian_norms(loss, broken)
    # |p|^1.5 has no second derivative at 0
    with pytest.raises(LandscapeError, match="^task 2: Hessian-vector product is (nan|inf)"):
        hessian_norms(lambda p: p.abs().pow(1.5).sum(1), torch.tensor([[1.0], [2.0], [0.0]]))
    with pytest.raises(ValueError, match=r"shape \(\) for 3 tasks"):
        hessian_norms(lambda p: loss(p).sum(), params)
    with pytest.raises(ValueError, match=r"shape \(100,\)"):
        hessian_norms(loss, params[0])
    with pytest.raises(ValueError, match="tol"):
        hessian_norms(loss, params, tol=0.0)


def pairs(vectors):
    """Mean of v_i . v_j over all i != j, one pair at a time."""
    rows = vectors.numpy()
    return np.mean([rows[i] @ rows[j] for i, j in itertools.permutations(range(len(rows)), 2)])


@pytest.mark.parametrize("seed", range(10))
def test_coherence_is_the_double_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 12, (), generator=generator))
    size = int(torch.randint(1, 40, (), generator=generator))
    vectors = randn(generator, n, size) + seed % 3 * randn(generator, size)
    rows = vectors.numpy()
    by_task = [np.mean([rows[i] @ rows[j] for j in range(n) if j != i]) for i in range(n)]
    np.testing.assert_allclose(coherence(vectors), by_task, rtol=1e-9, atol=1e-12)
    stat = gradient_coherence(vectors)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    trajectory, dropped = trajectory_coherence(vectors)
    assert stat.mean == pytest.approx(pairs(vectors)) and stat.n == n
    assert stat.median == pytest.approx(np.median(by_task))
    assert stat.std == pytest.approx(np.std(by_task, ddof=1))
    assert trajectory.mean == pytest.approx(pairs(units)) and dropped == 0
    assert -1 / (n - 1) - 1e-9 <= trajectory.mean <= 1 + 1e-9


@pytest.mark.parametrize("n", [3, 4, 11])
def test_sem_of_a_coherence_is_the_jackknife(n, generator):
    vectors = randn(generator, n, 20) + randn(generator, 20)
    without = [pairs(torch.cat([vectors[:i], vectors[i + 1 :]])) for i in range(n)]
    explicit = math.sqrt((n - 1) / n * sum((value - np.mean(without)) ** 2 for value in without))
    assert gradient_coherence(vectors).sem == pytest.approx(explicit)


def test_sem_of_a_coherence_is_its_spread_over_repetitions():
    vectors = (
        torch.randn(2000, 15, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        + 0.5
    )
    stats = [gradient_coherence(v) for v in vectors]
    assert np.mean([s.sem**2 for s in stats]) ** 0.5 == pytest.approx(
        np.std([s.mean for s in stats]), rel=0.1
    )
    # the pair mean is unbiased
    assert np.mean([s.mean for s in stats]) == pytest.approx(30 * 0.25, rel=0.02)


def test_coherence_keeps_float32_vectors_accurate(generator):
    vectors = torch.randn(6, 100_000, generator=generator) * 1e-3
    assert gradient_coherence(vectors).mean == pytest.approx(pairs(vectors.double()), rel=1e-9)


def test_a_task_that_did_not_move_is_dropped_and_counted(generator):
    vectors = randn(generator, 6, 10)
    still = torch.cat([vectors[:2], torch.zeros(1, 10), vectors[2:], torch.zeros(2, 10)])
    assert trajectory_coherence(still) == (trajectory_coherence(vectors)[0], 3)
    assert trajectory_coherence(vectors * 1e-30)[0].mean == pytest.approx(
        trajectory_coherence(vectors)[0].mean
    )
    assert distance(still).n == 9 and distance(still).mean == pytest.approx(
        float(vectors.norm(dim=1).sum()) / 9
    )


def test_after_one_sgd_step_trajectory_coherence_is_the_mean_cosine_of_gradients(generator):
    loss, params = conv_net(generator, tasks=5)
    theta = params[:1].expand(5, -1).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(loss(theta).sum(), theta)
    adapted = theta.detach() - 0.4 * gradients
    cosines = [
        torch.cosine_similarity(gradients[i], gradients[j], dim=0)
        for i, j in itertools.combinations(range(5), 2)
    ]
    assert trajectory_coherence(adapted - theta)[0].mean == pytest.approx(
        float(sum(cosines) / len(cosines)), rel=1e-9
    )


@pytest.mark.parametrize("measure", [coherence, gradient_coherence, trajectory_coherence])
def test_one_task_has_no_pairs(measure, generator):
    with pytest.raises((ValueError, LandscapeError), match="pairs"):
        measure(randn(generator, 1, 5))
    with pytest.raises(LandscapeError, match="1 of 3 tasks moved"):
        trajectory_coherence(torch.eye(3)[:1].repeat(3, 1) * torch.tensor([[1.0], [0.0], [0.0]]))


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_summarise_is_numpy(n, generator):
    values = 100 + torch.randn(n, generator=generator)
    stat, values = summarise(values), values.double().numpy()
    assert stat.mean == pytest.approx(np.mean(values), rel=1e-12) and stat.n == n
    assert stat.median == pytest.approx(np.median(values), rel=1e-12)
    if n == 1:
        assert math.isnan(stat.std) and math.isnan(stat.sem)
    else:
        assert stat.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert stat.sem == pytest.approx(stat.std / math.sqrt(n))
    assert all(type(value) is float for value in (stat.mean, stat.median, stat.std, stat.sem))
    assert type(stat.n) is int


def test_nan_shows_in_every_statistic_and_too_few_tasks_in_those_they_are_too_few_for(generator):
    values = torch.tensor([1.0, math.nan, 2.0])
    vectors = randn(generator, 4, 5)
    vectors[2, 1] = math.nan
    for stat in (
        summarise(values),
        gradient_coherence(vectors),
        trajectory_coherence(vectors)[0],
        distance(vectors),
    ):
        assert all(math.isnan(value) for value in (stat.mean, stat.median, stat.std, stat.sem))
    two = gradient_coherence(torch.eye(2))
    assert two.mean == 0 and math.isnan(two.sem)  # leaving one out leaves no pair
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        summarise(torch.zeros(0))


def test_a_loss_that_is_linear_has_norm_zero():
    """Wholly, or in some parameters."""
    ones = torch.ones(2, 4, dtype=torch.float64)
    assert (hessian_norms(lambda p: p.sum(1), ones).norms == 0).all()
    half = hessian_norms(lambda p: p[:, :2].square().sum(1) + p[:, 2:].sum(1), ones)
    assert half.norms.tolist() == pytest.approx([2.0, 2.0])
    with pytest.raises(ValueError, match="does not depend on params"):
        hessian_norms(lambda p: p.detach().sum(1), ones)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-10, 1e10])
def test_small_and_large_curvatures_keep_the_tolerance_in_single_precision(scale, generator):
    spectra = torch.tensor([[1.0, 3.0, -7.0, 2.0]], dtype=torch.float64)
    loss, params = quadratic(spectra, generator)
    spectrum = hessian_norms(lambda p: scale * loss(p), params.float())
    assert float(spectrum.norms) == pytest.approx(7 * scale, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e25])
def test_curvature_along_small_and_large_gradients(scale):
    """In single precision, where the gradient's square is 0 or infinite; by hand."""
    eigenvalues = torch.tensor([[1.0, 3.0]])
    params = torch.tensor([[3.0, 1.0]])  # the gradient is in proportion to (3, 3)
    curvature = curvature_along_gradient(
        lambda p: scale * (eigenvalues * p.square()).sum(1) / 2, params
    )
    assert float(curvature) == pytest.approx(2 * scale, rel=1e-5)


@pytest.mark.parametrize("option", ["tol", "risk", "max_products", "ends_tol"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_option_that_is_not_above_0_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        hessian_norms(lambda p: p.square().sum(1), torch.ones(1, 4), **{option: value})


def test_a_tolerance_that_the_precision_does_not_carry_is_refused():
    with pytest.raises(ValueError, match=r"tol is 0.001.*torch.bfloat16 carries 0.2"):
        hessian_norms(lambda p: p.square().sum(1), torch.ones(1, 4, dtype=torch.bfloat16))
