"""The paper's measures of the loss landscape, as functions of tensors.

theta_s is the meta-train solution, theta~_i task i's adapted solution. With one row a task:

    flatness              |lambda|_max of the Hessian of task i's support loss at theta~_i     `hessian_norms`
    trajectory coherence  d_i = (theta~_i - theta_s) / norm; mean over i != j of d_i . d_j     `trajectory_coherence`
    gradient coherence    g_i = -grad L(D_i; theta_s); mean over i != j of g_i . g_j           `gradient_coherence`
    distance              mean of norm(theta~_i - theta_s)                                     `distance`

Beside the paper's: `adaptive_sharpness`, a flatness that rescaling weights leaves alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metanb.landscape.lanczos import (
    LandscapeError,
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

    norms: Tensor  #: [T] max |lambda|: at most the true norm, up to rounding, and below it by at most tol
    smallest: Tensor  #: [T] smallest eigenvalue as Lanczos sees it: accurate to tol if its magnitude is the larger
    largest: Tensor  #: [T] the largest likewise; the other lies inside the spectrum and may not have converged
    residuals: Tensor  #: [T] norm(H y - lambda y) / |lambda| of the dominant eigenpair, 0 where the norm is 0
    products: (
        Tensor  #: [T] int64: Hessian-vector products each task needed; max() of it were computed
    )


def hessian_norms(
    loss_fn: Callable[[Tensor], Tensor],
    params: Tensor,
    *,
    tol: float = 1e-3,
    risk: float = 0.01,
    max_products: int = 200,
    seed: int = 0,
) -> HessianNorms:
    """Spectral norm of the Hessian of each task's loss at its own parameters (the paper's flatness, lower is flatter).

    Lanczos for all tasks at once, from one random direction, with full reorthogonalisation. A task
    is done when two tests agree. The residual of the dominant Ritz pair is at most tol * norm: then
    *some* eigenvalue is that near. And the start can hide no larger one. After k products the next
    Lanczos vector is p(H) v_1 / (beta_1 ... beta_k), where the roots of p are the k Ritz values.
    Its length is 1, so an eigenvector u of an eigenvalue x beyond them has |u . v_1| <= beta_1 ...
    beta_k / |p(x)|, ever less as |x| grows; and a random v_1 is that close to orthogonal to u with
    probability at most sqrt(2 P / pi) times as much, which must be under `risk` at both x = (1 +
    tol) norm and x = -(1 + tol) norm (van Dorsselaer, Hochstenbach and van der Vorst, SIAM J.
    Matrix Anal. Appl. 22, 2000). Some tasks have two eigenvalues half a percent apart at the top:
    either test alone takes one for the other too often.

    A task stops by itself, and all start in the same direction, so its norm does not depend on the
    tasks beside it. Give large batches in chunks: `lanczos` tells what memory they take.

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P], the tasks' parameters; float32 will do for tol >= 1e-5.
        tol: relative error of the norms.
        risk: bound on the probability, over starts, that a larger eigenvalue stays hidden, at each
            end of the spectrum.
        max_products: when to give up.
        seed: of the start.

    Raises:
        LandscapeError: a loss or product is not finite, or a task has not converged after
            max_products.
        ValueError: params is not [T, P], loss_fn does not give [T], or an option is not above 0.
    """
    if not min(tol, risk, max_products) > 0:
        raise ValueError(
            f"tol, risk and max_products are {tol}, {risk} and {max_products}: all must be above 0"
        )
    product = hessian_product(loss_fn, params)
    n_tasks, size = params.shape
    start = random_directions(1, size, seed).to(params).expand(n_tasks, -1)
    found = torch.zeros(4, n_tasks, dtype=torch.float64)  # norm, smallest, largest, residual
    products = torch.zeros(n_tasks, dtype=torch.int64)  # 0: not done
    enough = math.log(math.sqrt(2 * size / math.pi) / risk)

    for k, (alpha, beta) in enumerate(lanczos(product, start, max_products), start=1):
        open_ = products == 0
        require_finite(
            torch.where(open_, alpha[:, -1] + beta[:, -1], 0.0), "Hessian-vector product"
        )
        alpha, beta = alpha[open_], beta[open_]  # what is done needs no further look
        ritz, vectors = tridiagonal_eigen(alpha, beta)
        norm, which = ritz.abs().max(1)
        residual = beta[:, -1] * vectors[:, -1].gather(1, which[:, None])[:, 0].abs()
        found[:, open_] = torch.stack([norm, ritz[:, 0], ritz[:, -1], residual])
        bound = (1 + tol) * norm[:, None]
        hidden = torch.stack(
            [((x - ritz).abs() / beta).log().sum(1) for x in (bound, -bound)]
        ).amin(0)
        # Nothing is left to see where the Krylov space is closed under the Hessian, or is the whole
        # space.
        seen = is_closed(alpha, beta, params.dtype)[:, -1] | (k == size)
        done = seen | ((residual <= tol * norm) & (hidden >= enough))
        products[open_.nonzero()[done, 0]] = k
        if products.all():
            norm, smallest, largest, residual = found
            return HessianNorms(
                norm, smallest, largest, torch.where(norm > 0, residual / norm, 0.0), products
            )
    worst = int((products == 0).nonzero()[0])
    raise LandscapeError(
        f"Hessian norm of task {worst} is still uncertain after {max_products} products (so far {found[0, worst]:.4g}, "
        f"residual {found[3, worst]:.1g}): raise max_products or tol ({tol:g})"
    )


def adaptive_sharpness(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor, **options: Any
) -> HessianNorms:
    """Curvature by relative changes of the parameters: the spectral norm of diag(w) H diag(w), w the parameters.

    H itself changes when a filter is rescaled under batch norm, though the function does not (Dinh
    et al. 2017). By relative changes nothing changes: this is the element-wise adaptive sharpness
    of Kwon et al. (ASAM, ICML 2021), to second order, of either sign of curvature. It is the
    Hessian norm by z, at z = 1, of the loss at params * z.

    Args and errors are those of `hessian_norms`.
    """
    weights = params.detach()
    return hessian_norms(lambda z: loss_fn(weights * z), torch.ones_like(weights), **options)
