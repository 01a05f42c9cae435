"""The whole spectrum of each task's Hessian, by stochastic Lanczos quadrature.

All functions are functions of tensors. For a direction v of length 1 the spectral measure of H seen
from v gives eigenvalue lambda_i the weight (u_i . v)^2, where u_i is its eigenvector. k products of
Lanczos from v turn that measure into k nodes and weights that integrate every polynomial of degree
below 2 k exactly. Averaged over random directions the weight of each eigenvalue is 1 / P. So P
times the average of an integral is the sum over all P eigenvalues (Ubaru, Chen and Saad, SIAM J.
Matrix Anal. Appl. 38, 2017; for networks Ghorbani, Krishnan and Xiao, ICML 2019).

`gauss_newton` gives the exact eigenvalues of one part of the Hessian. With logits z and
cross-entropy l the Hessian is a sum of two parts: J^T (d2l/dz2) J, which is positive semidefinite
and of rank N K (N - 1) at most for N K images of N classes; and the contribution of the curvature
of z itself, of either sign.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metanb.landscape.lanczos import (
    hessian_product,
    is_closed,
    lanczos,
    require_finite,
    tridiagonal_eigen,
)


@dataclass(frozen=True)
class Quadrature:
    """The spectra of T Hessians, as seen from V directions each; float64, on the CPU."""

    #: [T, V, k] Ritz values, ascending; NaN at the end where a direction has fewer than k
    nodes: Tensor
    #: [T, V, k] the nodes' weights: the k weights of a direction sum to 1
    weights: Tensor
    #: P, the number of parameters
    size: int


def quadrature(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor, starts: Tensor, products: int
) -> Quadrature:
    """Compute nodes and weights for the Hessian of each task's loss at its own parameters.

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P], the tasks' parameters; their type is that of the Lanczos basis.
        starts: [V, T, P], rows of length 1: the directions, for example of `random_directions`.
        products: k, Hessian-vector products for each direction; P at most are made.

    Raises:
        LandscapeError: a loss or product is not finite.
        ValueError: params is not [T, P], starts does not fit, products is below 1, or loss_fn does
            not give [T].

    Example:
        >>> import torch
        >>> eigenvalues = torch.tensor([[-1.0, 0.0, 3.0]])
        >>> def loss(params):
        ...     return (eigenvalues * params**2).sum(1) / 2
        >>> starts = torch.full((1, 1, 3), 3**-0.5)  # one direction, to which all contribute
        >>> spectra = quadrature(loss, torch.ones(1, 3), starts, products=3)
        >>> largest(spectra, 1).round(decimals=3), moment(spectra, 1).round(decimals=3)
        (tensor([[3.]], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    if products < 1:
        raise ValueError(f"products is {products}: at least 1")
    if starts.dim() != 3 or not len(starts) or starts.shape[1:] != params.shape:
        raise ValueError(
            f"starts has shape {tuple(starts.shape)}: give one or more of {tuple(params.shape)}"
        )
    product = hessian_product(loss_fn, params)
    nodes, weights = [], []
    for start in starts:
        alpha, beta = _last_of_lanczos(product, start.to(params), products)
        its_nodes, its_weights = _nodes_and_weights(alpha, beta, params.dtype)
        nodes.append(its_nodes)
        weights.append(its_weights)
    return Quadrature(torch.stack(nodes, 1), torch.stack(weights, 1), params.shape[1])


def density(spectra: Quadrature, at: Tensor, width: Tensor | float) -> Tensor:
    """Estimate the density of eigenvalues at [N]: [T, N], of integral 1.

    Each eigenvalue is spread by a Gaussian of standard deviation `width`.

    Raises:
        ValueError: a width is not above 0.
    """
    if not bool((torch.as_tensor(width) > 0).all()):
        raise ValueError(f"width is {width}: it must be above 0")
    z = (at.double() - spectra.nodes.nan_to_num(0.0)[..., None]) / width  # [T, V, k, N]
    bells = torch.exp(-z.square() / 2) / (width * (2 * torch.pi) ** 0.5)
    return (spectra.weights[..., None] * bells).sum(2).mean(1)


def count_above(spectra: Quadrature, at: Tensor) -> Tensor:
    """Estimate the number of eigenvalues above each of the values `at` [N]: [T, N]."""
    above = spectra.nodes[..., None] > at.double()
    return spectra.size * (spectra.weights[..., None] * above).sum(2).mean(1)


def moment(spectra: Quadrature, power: int) -> Tensor:
    """Estimate the sum of the eigenvalues' powers, [T].

    Power 1 gives the trace, power 2 the squared Frobenius norm.
    """
    powers = spectra.nodes.nan_to_num(0.0) ** power
    return spectra.size * (spectra.weights * powers).sum(2).mean(1)


def largest(spectra: Quadrature, n: int) -> Tensor:
    """Return the n largest eigenvalues, descending, [T, n]; all k nodes, [T, k], if n is above k.

    They are at most the true ones (Cauchy), and near them once Lanczos has converged. Equal
    eigenvalues may appear as one. Where all directions of a task have fewer, the rest is -inf.
    """
    return spectra.nodes.nan_to_num(-torch.inf).sort(2, descending=True).values[..., :n].amax(1)


def smallest(spectra: Quadrature, n: int) -> Tensor:
    """Return the n smallest eigenvalues, ascending, [T, n]; all k nodes, [T, k], if n is above k.

    They are at least the true ones. Where all directions of a task have fewer, the rest is inf.
    """
    return spectra.nodes.nan_to_num(torch.inf)[..., :n].amin(1)


def outliers(spectra: Quadrature) -> Tensor:
    """Count the eigenvalues above the bulk, [T]: those larger than minus the smallest eigenvalue.

    A random symmetric matrix has a bulk that is as wide to the right as to the left, so eigenvalues
    beyond it have structure. As Ritz values lie inside the spectrum, eigenvalues near the edge of
    the bulk may count or not.
    """
    return (spectra.nodes > -smallest(spectra, 1)[..., None].clamp_max(0)).sum(2).amax(1)


def gauss_newton(logits_fn: Callable[[Tensor], Tensor], params: Tensor) -> Tensor:
    """Compute the eigenvalues of J^T (d2l/dz2) J that can be above 0, descending.

    l is the mean cross-entropy of B images. The eigenvalues do not depend on the labels. The
    computation takes B N backward passes, for all tasks at once.

    Args:
        logits_fn: params [T, P] -> logits [T, B, N], those of task t depending on row t alone.
        params: [T, P].

    Returns:
        [T, B (N - 1)] float64, on the CPU.
    """
    # The Jacobian, row by row: one backward pass per image and class.
    at = params.detach().requires_grad_()
    with torch.enable_grad():
        z = logits_fn(at)
        rows = [
            torch.autograd.grad(output.sum(), at, retain_graph=True)[0].double().cpu()
            for output in z.flatten(1).unbind(1)
        ]
    jacobian = torch.stack(rows, 1)  # [T, B N, P]
    # d2l/dz2 of an image is diag(p) - p p^T = root^T root, root = diag(sqrt p) (I - 1 p^T).
    _, images, ways = z.shape
    p = z.detach().double().cpu().softmax(-1)
    root = p.sqrt()[..., None] * (torch.eye(ways, dtype=p.dtype) - p[..., None, :])  # [T, B, N, N]
    # With half = root J / sqrt(B), half half^T has the eigenvalues of half^T half, and is small.
    half = (root @ jacobian.unflatten(1, (images, ways))).flatten(1, 2) / images**0.5  # [T, B N, P]
    return torch.linalg.eigvalsh(half @ half.transpose(1, 2)).flip(1)[:, : images * (ways - 1)]


def _last_of_lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, products: int
) -> tuple[Tensor, Tensor]:
    """Diagonals alpha and beta [T, k] after all products."""
    *_, (alpha, beta) = lanczos(product, start, products)
    return alpha, beta


def _nodes_and_weights(alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes and weights [T, k] of a Lanczos run.

    Columns after the end of a closed Krylov space give NaN, of weight 0.
    """
    # Cut the tridiagonal matrix after the column where the Krylov space closes.
    is_end = is_closed(alpha, beta, dtype)
    is_after = is_end.cumsum(1) - is_end.long() > 0
    alpha = torch.where(is_after, 0.0, alpha)
    beta = torch.where(is_end | is_after, 0.0, beta)
    require_finite((alpha + beta).sum(1), "Hessian-vector product")
    # Fill the rest of the diagonal with a value above every eigenvalue (Gershgorin): sorted, the
    # filled columns come last.
    beyond = 1 + 2 * (alpha.abs() + 2 * beta).amax(1, keepdim=True)
    nodes, vectors = tridiagonal_eigen(torch.where(is_after, beyond, alpha), beta)
    k = alpha.shape[1]
    is_filled = torch.arange(k) >= k - is_after.sum(1, keepdim=True)
    weights = vectors[:, 0].square()
    return nodes.masked_fill(is_filled, torch.nan), weights.masked_fill(is_filled, 0.0)
