"""The paper's flatness, as a function of tensors, and the table of the paper's measures.

theta_s is the meta-train solution, theta~_i task i's adapted solution. With one row per task:

    flatness               |lambda|_max of the Hessian of task i's support loss at theta~_i
                           (`hessian_norms`)
    trajectory coherence   d_i = (theta~_i - theta_s) / norm; mean over i != j of d_i . d_j
                           (`trajectory_coherence`)
    gradient coherence     g_i = -grad L(D_i; theta_s); mean over i != j of g_i . g_j
                           (`gradient_coherence`)
    distance               mean of norm(theta~_i - theta_s) (`distance`)

`adaptive_sharpness` is ours: a flatness that does not change when convolutions before a batch norm
are rescaled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metanb.landscape.lanczos import (
    LandscapeError,
    gradient_and_product,
    hessian_product,
    is_closed,
    lanczos,
    random_directions,
    require_finite,
    tridiagonal_eigen,
)


@dataclass(frozen=True)
class HessianNorms:
    """Spectral norms of T Hessians; tensors are float64, on the CPU."""

    #: [T] max |lambda|: at most the true norm, up to rounding, and below it by at most tol
    norms: Tensor
    #: [T] smallest Ritz value: accurate to tol where its magnitude is the larger of the two ends,
    #: and with `ends_tol` to that fraction of the norm anyway
    smallest: Tensor
    #: [T] largest Ritz value, likewise; without `ends_tol` the lesser end may not have converged
    largest: Tensor
    #: [T] norm(H y - lambda y) / |lambda| of the dominant eigenpair, 0 where the norm is 0
    residuals: Tensor
    #: [T] int64: Hessian-vector products that each task needed; max() of it were computed
    products: Tensor


def hessian_norms(
    loss_fn: Callable[[Tensor], Tensor],
    params: Tensor,
    *,
    tol: float = 1e-3,
    risk: float = 0.01,
    max_products: int = 200,
    seed: int = 0,
    ends_tol: float | None = None,
) -> HessianNorms:
    """Compute the spectral norm of each task's Hessian: the paper's flatness (lower is flatter).

    One Lanczos iteration serves all tasks, with full reorthogonalisation. It stops for a task when
    two tests agree:

    The residual of the dominant Ritz pair is at most tol * norm. Then *some* eigenvalue is that
    near.

    The start hides no larger eigenvalue. After k products the next Lanczos vector is p(H) v_1 /
    (beta_1 ... beta_k), where the roots of p are the k Ritz values. Its length is 1. So for an
    eigenvalue x beyond the Ritz values, with eigenvector u, |u . v_1| is at most beta_1 ... beta_k
    / |p(x)|, a bound that falls as |x| grows. For a random v_1 the probability of that is at most
    sqrt(2 P / pi) times the bound. It must be under `risk` at both x = (1 + tol) norm and x = -(1 +
    tol) norm (van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000).

    Both tests are needed. Some tasks have two eigenvalues half a percent apart at the top, and
    either test alone takes one for the other too often.

    All tasks start in the same direction and each stops by itself, so a task's norm does not depend
    on the tasks beside it. Split large batches into chunks: `lanczos` says what memory they take.

    With `ends_tol` a task goes on until the two tests hold at both ends of its spectrum, with an
    error of ends_tol times the norm. Its norm and residual stay those of the product at which the
    norm was certain, so they are the same with and without.

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P], the parameters of each task; float32 is enough for tol >= 1e-5. The graph
            of loss_fn has to be of the same precision.
        tol: relative error of the norms.
        risk: bound on the probability, over starts, that a larger eigenvalue stays hidden, at each
            end of the spectrum.
        max_products: the number of products after which a task counts as not converged.
        seed: seed of the start direction.
        ends_tol: error of both ends of the spectrum, relative to the norm; None: the lesser end may
            not have converged.

    Raises:
        LandscapeError: a loss or product is not finite, or a task has not converged after
            max_products.
        ValueError: params is not [T, P], loss_fn does not give [T], an option is not above 0, or
            the precision of params is too low for tol.

    Example:
        >>> import torch
        >>> eigenvalues = torch.tensor([[1.0, 2.0, 3.0], [1.0, -5.0, 2.0]])
        >>> def loss(params):
        ...     return (eigenvalues * params**2).sum(1) / 2
        >>> hessian_norms(loss, torch.ones(2, 3)).norms.round(decimals=3)
        tensor([3., 5.], dtype=torch.float64)
    """
    if not all(0 < option < math.inf for option in (tol, risk, max_products)):
        raise ValueError(
            f"tol, risk and max_products are {tol}, {risk} and {max_products}: all must be above 0"
        )
    if ends_tol is not None and not 0 < ends_tol < math.inf:
        raise ValueError(f"ends_tol is {ends_tol}: it must be above 0")
    if params.is_floating_point() and tol < (least := 32 * torch.finfo(params.dtype).eps):
        raise ValueError(
            f"tol is {tol:g}, and {params.dtype} carries {least:.1g}: use params of a higher "
            "precision, or a larger tol"
        )
    product = hessian_product(loss_fn, params)
    n_tasks, size = params.shape
    start = random_directions(1, size, seed).to(params).expand(n_tasks, -1)
    # Rows of `estimates`: norm and its residual, then smallest and largest eigenvalue.
    estimates = torch.zeros(4, n_tasks, dtype=torch.float64)
    has_norm = torch.zeros(n_tasks, dtype=torch.bool)
    products = torch.zeros(n_tasks, dtype=torch.int64)  # 0: not done
    # The second test in logarithms: |p(x)| / (beta_1 ... beta_k) >= sqrt(2 P / pi) / risk.
    required_log_ratio = math.log(math.sqrt(2 * size / math.pi) / risk)

    for k, (alpha, beta) in enumerate(lanczos(product, start, max_products), start=1):
        # Look only at the tasks that are not done.
        is_open = products == 0
        last_column = torch.where(is_open, alpha[:, -1] + beta[:, -1], 0.0)
        require_finite(last_column, "Hessian-vector product")
        alpha = alpha[is_open]
        beta = beta[is_open]

        # Ritz values; a value's residual is beta_k times its eigenvector's last entry.
        ritz, vectors = tridiagonal_eigen(alpha, beta)
        residuals = beta[:, -1:] * vectors[:, -1].abs()
        norm, dominant = ritz.abs().max(1)
        residual = residuals.gather(1, dominant[:, None])[:, 0]

        def is_unlikely(x: Tensor, ritz: Tensor = ritz, beta: Tensor = beta) -> Tensor:
            """Whether an eigenvalue at x [tasks, 1] or beyond would hardly have stayed hidden."""
            return ((x - ritz).abs() / beta).log().sum(1) >= required_log_ratio

        # The norm is certain: keep it. Look beyond both ends, at the same distance from 0.
        bound = (1 + tol) * norm[:, None]
        is_certain = (residual <= tol * norm) & is_unlikely(bound) & is_unlikely(-bound)
        # Nothing is left to find where the Krylov space is closed under H or is the whole space.
        is_exhausted = is_closed(alpha, beta, params.dtype)[:, -1] | (k == size)
        is_new = ~has_norm[is_open]
        rows = is_open.nonzero()[:, 0]
        estimates[:2, rows[is_new]] = torch.stack([norm, residual])[:, is_new]
        estimates[2:, rows] = torch.stack([ritz[:, 0], ritz[:, -1]])
        has_norm[rows[is_exhausted | is_certain]] = True

        # The ends are certain, each by its own residual and just beyond itself.
        is_done = has_norm[is_open]
        if ends_tol is not None:
            margin = ends_tol * norm[:, None]
            ends_converged = (residuals[:, [0, -1]] <= margin).all(1)
            nothing_beyond = is_unlikely(ritz[:, :1] - margin) & is_unlikely(ritz[:, -1:] + margin)
            is_done = is_done & (is_exhausted | (ends_converged & nothing_beyond))
        products[rows[is_done]] = k

        if products.all():
            norm, residual, smallest, largest = estimates
            relative = torch.where(norm > 0, residual / norm, 0.0)
            return HessianNorms(norm, smallest, largest, relative, products)

    task = int((products == 0).nonzero()[0])
    raise LandscapeError(
        f"Hessian norm is still uncertain after {max_products} products (so far "
        f"{estimates[0, task]:.4g}, residual {estimates[1, task]:.1g}): raise max_products or tol "
        f"({tol:g})",
        task,
    )


def adaptive_sharpness(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor, **options: Any
) -> HessianNorms:
    """Compute the spectral norm of diag(w) H diag(w), where w are the parameters.

    This is curvature with respect to relative changes of the parameters. Under batch norm,
    rescaling a filter changes H, though the function stays the same (Dinh et al. 2017). It does not
    change this norm: to second order it is the element-wise adaptive sharpness of Kwon et al.
    (ASAM, ICML 2021), for either sign of curvature. It equals the Hessian norm by z, at z = 1, of
    the loss at params * z.

    Arguments and errors are those of `hessian_norms`.

    Example:
        >>> import torch
        >>> eigenvalues = torch.tensor([[1.0, 2.0]])
        >>> def loss(params):
        ...     return (eigenvalues * params**2).sum(1) / 2
        >>> adaptive_sharpness(loss, torch.tensor([[3.0, 1.0]])).norms  # 1 * 3**2 against 2 * 1**2
        tensor([9.0000], dtype=torch.float64)
    """
    weights = params.detach()
    return hessian_norms(lambda z: loss_fn(weights * z), torch.ones_like(weights), **options)


def curvature_along_gradient(loss_fn: Callable[[Tensor], Tensor], params: Tensor) -> Tensor:
    """Compute g'Hg / norm(g)^2 for each task, [T]: the curvature that a gradient step meets.

    g is the gradient and H the Hessian of the loss at the task's parameters, all of them: a step
    that adapts the head or the body alone takes only a part of g, and meets another curvature. The
    value is 0 for a gradient of 0. A gradient step of size lr lowers a quadratic loss where it is
    below 2 / lr.

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P].

    Raises:
        LandscapeError: a loss is not finite.
        ValueError: as `metanb.landscape.lanczos.gradient_and_product` does.

    Example:
        >>> import torch
        >>> eigenvalues = torch.tensor([[1.0, 3.0]])
        >>> def loss(params):
        ...     return (eigenvalues * params**2).sum(1) / 2
        >>> curvature = curvature_along_gradient(loss, torch.tensor([[3.0, 1.0]]))  # g is (3, 3)
        >>> curvature.round(decimals=5)
        tensor([2.])
    """
    gradient, product = gradient_and_product(loss_fn, params)
    # The squares of small entries would be zero in single precision.
    length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float64)
    direction = (gradient / torch.where(length > 0, length, 1.0)).to(gradient)
    return (direction * product(direction)).sum(1)
