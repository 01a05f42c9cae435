"""Lanczos iteration by Hessian-vector products, for all tasks at once: what the norms and the spectra are made from."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class LandscapeError(ArithmeticError):
    """A curvature that cannot be had: not finite, or not converged.

    The message names the task and the value.
    """


def hessian_product(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor
) -> Callable[[Tensor], Tensor]:
    """The map v [T, P] -> H v [T, P] by each task's own Hessian, at its own parameters.

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P].

    Raises:
        LandscapeError: a loss is not finite.
        ValueError: params is not [T, P], or loss_fn does not give [T].
    """
    if params.dim() != 2 or not params.numel():
        raise ValueError(
            f"params has shape {tuple(params.shape)}: give one row of parameters a task, [T, P]"
        )
    at = params.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss_fn(at)
        if losses.shape != (len(at),):
            raise ValueError(
                f"loss_fn gave shape {tuple(losses.shape)} for {len(at)} tasks: give one loss a task, [T]"
            )
        require_finite(losses.detach(), "loss")
        # its graph serves every product
        (gradient,) = torch.autograd.grad(losses.sum(), at, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, at, v, retain_graph=True)[0]


def random_directions(n: int, size: int, seed: int) -> Tensor:
    """Random directions, uniform on the sphere: [n, size] float64 of length 1, the same wherever they are drawn."""
    drawn = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Lanczos for all tasks at once, with full reorthogonalisation.

    Memory: the basis takes T P numbers a product (60 tasks, P = 112,000, 20 products in float32:
    540 MB) beside the gradient's graph, so give large batches in chunks; on a CPU 4 to 8 tasks are
    fastest.

    Args:
        product: v [T, P] -> H v [T, P], H symmetric.
        start: [T, P], rows of length 1; its type is that of the basis.
        most: products at most; there are never more than P.

    Yields:
        After the k-th product the diagonals of the tridiagonal matrices, float64 on the CPU: alpha
            [T, k], and beta
        [T, k], whose last column is the length of the next Lanczos vector before it is normalised.
            Once that is 0 but
        for rounding (`closed`) the columns that follow mean nothing.
    """
    n_tasks, size = start.shape
    most = min(most, size)
    basis = start.new_empty(n_tasks, min(32, most), size)
    basis[:, 0] = start
    alpha, beta = torch.zeros(2, n_tasks, 0, dtype=torch.float64)
    for k in range(1, most + 1):
        w = product(basis[:, k - 1])
        # In exact arithmetic the last two vectors would do; the second pass takes what rounding
        # leaves of all of them. One pass over all is not enough: its errors multiply from step to
        # step.
        w, coefficients = _orthogonalise(w, basis[:, max(k - 2, 0) : k])
        w, _ = _orthogonalise(w, basis[:, :k])
        a, b = coefficients[:, -1], w.norm(dim=1)
        alpha, beta = (
            torch.cat([x, new.double().cpu()[:, None]], 1) for x, new in ((alpha, a), (beta, b))
        )
        yield alpha, beta
        if k == basis.shape[1] and k < most:
            basis = torch.cat([basis, torch.empty_like(basis)], 1)
        if k < most:
            torch.div(w, b.clamp_min(torch.finfo(b.dtype).tiny)[:, None], out=basis[:, k])


def is_closed(alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    """After which products nothing was left to see, up to rounding of the basis' dtype: [T, k].

    The Krylov space is then closed under H.
    """
    scale = torch.maximum(alpha.abs(), beta).cummax(1).values
    return beta <= 10 * torch.finfo(dtype).eps * scale


def tridiagonal_eigen(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values [T, k], ascending, and eigenvectors [T, k, k] of the tridiagonal matrices of `lanczos`."""
    off = beta[:, :-1]
    return torch.linalg.eigh(
        torch.diag_embed(alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    )


def require_finite(values: Tensor, what: str) -> None:
    """Raises LandscapeError, naming the task and the value, where values [T] are not all finite."""
    if not bool(values.isfinite().all()):
        task = int((~values.isfinite()).nonzero()[0])
        raise LandscapeError(f"{what} of task {task} is {float(values[task])}: no curvature there")


def _orthogonalise(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of w [T, P] beside the orthonormal rows of basis [T, k, P], and w's coefficients on them [T, k].

    A row vector times a matrix, both ways: on the CPU `torch.bmm` takes four times as long for
    matrix times column.
    """
    row = w[:, None]
    coefficients = torch.bmm(row, basis.transpose(1, 2))
    return torch.baddbmm(row, coefficients, basis, alpha=-1)[:, 0], coefficients[:, 0]
