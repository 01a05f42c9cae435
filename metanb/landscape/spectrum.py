"""The whole spectrum of each task's Hessian, by stochastic Lanczos quadrature; functions of tensors.

For a direction v of length 1 the spectral measure of H seen from v gives eigenvalue lambda_i the
weight (u_i . v)^2, u_i its eigenvector. k products of Lanczos from v turn that measure into k nodes
and weights that integrate every polynomial of degree below 2 k exactly. Averaged over random
directions the weight of each eigenvalue is 1 / P, so P times the average of an integral is the sum
over all P eigenvalues (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017; for networks
Ghorbani, Krishnan and Xiao, ICML 2019).

Beside it the exact eigenvalues of the Gauss-Newton part. With logits z and cross-entropy l the
Hessian is J^T (d2l/dz2) J, which is positive and of rank N K (N - 1) at most for N K images of N
classes, plus what the curvature of z itself adds, of either sign.
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
    """The spectra of T Hessians of P parameters, as seen from V directions each; float64, on the CPU."""

    nodes: Tensor  # [T, V, k] Ritz values, ascending; NaN at the end where the directions saw fewer
    weights: Tensor  # [T, V, k] what they weigh: the k of a direction sum to 1
    size: int  # P


def quadrature(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor, starts: Tensor, products: int
) -> Quadrature:
    """Nodes and weights for the Hessian of each task's loss at its own parameters.

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P], the tasks' parameters; their type is that of the Lanczos basis.
        starts: [V, T, P], rows of length 1: the directions, such as `lanczos.directions` gives.
        products: k, Hessian-vector products for each direction; P at most are made.

    Raises:
        LandscapeError: a loss or product is not finite.
        ValueError: params is not [T, P], starts does not fit, products is below 1, or loss_fn does
            not give [T].
    """
    if products < 1:
        raise ValueError(f"products is {products}: at least 1")
    if starts.dim() != 3 or not len(starts) or starts.shape[1:] != params.shape:
        raise ValueError(
            f"starts has shape {tuple(starts.shape)}: give one or more of {tuple(params.shape)}"
        )
    product = hessian_product(loss_fn, params)
    seen = [_measure(*_run(product, start.to(params), products), params.dtype) for start in starts]
    nodes, weights = (torch.stack(parts, 1) for parts in zip(*seen, strict=True))
    return Quadrature(nodes, weights, params.shape[1])


def density(found: Quadrature, at: Tensor, width: Tensor | float) -> Tensor:
    """Density of eigenvalues, each spread by a Gaussian of standard deviation `width`: at [N] -> [T, N], integral 1."""
    z = (at.double() - found.nodes.nan_to_num(0.0)[..., None]) / width  # [T, V, k, N]
    bells = torch.exp(-z.square() / 2) / (width * (2 * torch.pi) ** 0.5)
    return (found.weights[..., None] * bells).sum(2).mean(1)


def count_above(found: Quadrature, at: Tensor) -> Tensor:
    """Number of eigenvalues above each of the values `at` [N], as estimated: [T, N]."""
    above = found.nodes[..., None] > at.double()
    return found.size * (found.weights[..., None] * above).sum(2).mean(1)


def moment(found: Quadrature, power: int) -> Tensor:
    """Sum of the eigenvalues' powers, as estimated, [T]: the trace for power 1, the squared Frobenius norm for 2."""
    return found.size * (found.weights * found.nodes.nan_to_num(0.0) ** power).sum(2).mean(1)


def largest(found: Quadrature, n: int) -> Tensor:
    """The n largest eigenvalues, descending, [T, n]: at most the true ones (Cauchy), and near them once converged.

    Of equal eigenvalues one may be seen alone. Where fewer than n are seen, -inf stands for the
    others.
    """
    return found.nodes.nan_to_num(-torch.inf).sort(2, descending=True).values[..., :n].amax(1)


def smallest(found: Quadrature, n: int) -> Tensor:
    """The n smallest eigenvalues, ascending, [T, n], as `largest`: at least the true ones, inf for those not seen."""
    return found.nodes.nan_to_num(torch.inf)[..., :n].amin(1)


def outliers(found: Quadrature) -> Tensor:
    """How many eigenvalues stand clear above the bulk, [T]: those larger than the smallest is negative.

    A random symmetric matrix has a bulk that is as wide to the right as to the left; what stands
    out beyond that has structure. As Ritz values lie inside the spectrum, close calls may go either
    way.
    """
    return (found.nodes > -smallest(found, 1)[..., None].clamp_max(0)).sum(2).amax(1)


def gauss_newton(logits_fn: Callable[[Tensor], Tensor], params: Tensor) -> Tensor:
    """Eigenvalues of J^T (d2l/dz2) J, l the mean cross-entropy of B images: those that can be above 0, descending.

    They do not depend on the labels. It takes B N backward passes, for all tasks at once.

    Args:
        logits_fn: params [T, P] -> logits [T, B, N], those of task t depending on row t alone.
        params: [T, P].

    Returns:
        [T, B (N - 1)] float64, on the CPU.
    """
    at = params.detach().requires_grad_()
    with torch.enable_grad():
        z = logits_fn(at)
        outputs = z.flatten(1).unbind(1)
        rows = [
            torch.autograd.grad(one.sum(), at, retain_graph=True)[0].double().cpu()
            for one in outputs
        ]
    _, images, ways = z.shape
    jacobian = torch.stack(rows, 1)  # [T, B N, P]
    p = z.detach().double().cpu().softmax(-1)
    # d2l/dz2 of an image is diag(p) - p p^T = root^T root, root = diag(sqrt p) (I - 1 p^T).
    root = p.sqrt()[..., None] * (torch.eye(ways, dtype=p.dtype) - p[..., None, :])  # [T, B, N, N]
    half = (root @ jacobian.unflatten(1, (images, ways))).flatten(1, 2) / images**0.5  # [T, B N, P]
    return torch.linalg.eigvalsh(half @ half.transpose(1, 2)).flip(1)[:, : images * (ways - 1)]


def _run(
    product: Callable[[Tensor], Tensor], start: Tensor, products: int
) -> tuple[Tensor, Tensor]:
    *_, (alpha, beta) = lanczos(product, start, products)
    return alpha, beta


def _measure(alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes and weights [T, k] of a Lanczos run; columns after a closed Krylov space give NaN, of weight 0."""
    end = is_closed(alpha, beta, dtype)
    after = end.cumsum(1) - end.long() > 0
    alpha, beta = torch.where(after, 0.0, alpha), torch.where(end | after, 0.0, beta)
    require_finite((alpha + beta).sum(1), "Hessian-vector product")
    # larger than any eigenvalue, by Gershgorin
    beyond = 1 + 2 * (alpha.abs() + 2 * beta).amax(1, keepdim=True)
    nodes, vectors = tridiagonal_eigen(torch.where(after, beyond, alpha), beta)
    unseen = torch.arange(alpha.shape[1]) >= alpha.shape[1] - after.sum(1, keepdim=True)
    return nodes.masked_fill(unseen, torch.nan), vectors[:, 0].square().masked_fill(unseen, 0.0)
