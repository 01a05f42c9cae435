"""Lanczos iteration by Hessian-vector products, for all tasks at once.

Norms (`hessian`) and spectra (`spectrum`) of Hessians are built on it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class LandscapeError(ArithmeticError):
    """A curvature that cannot be computed: not finite, or not converged.

    The message names the task and the value.

    Args:
        reason: what is wrong, with the value.
        task: the number of the task where it is wrong; None: of no single task.
    """

    def __init__(self, reason: str, task: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.task = task

    def __str__(self) -> str:
        return self.reason if self.task is None else f"task {self.task}: {self.reason}"


@contextmanager
def number_tasks(first: int, n_tasks: int) -> Iterator[None]:
    """In its block, of a chunk of tasks, a LandscapeError names the task's number and not its row.

    Row 0 of the chunk is the task `first`. Numbers begin again after n_tasks, those of a run.
    """
    try:
        yield
    except LandscapeError as error:
        if error.task is not None:
            error.task = (first + error.task) % n_tasks
        raise


def hessian_product(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the map v [T, P] -> H v [T, P], where H is each task's Hessian at its parameters.

    Arguments and errors are those of `gradient_and_product`.
    """
    return gradient_and_product(loss_fn, params)[1]


def gradient_and_product(
    loss_fn: Callable[[Tensor], Tensor], params: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return each task's gradient, [T, P], detached, and the map v [T, P] -> H v [T, P].

    Args:
        loss_fn: params [T, P] -> losses [T], twice differentiable, loss t depending on row t alone.
        params: [T, P].

    Raises:
        LandscapeError: a loss is not finite.
        ValueError: params is not [T, P], or loss_fn does not give [T].
    """
    if params.dim() != 2 or not params.numel():
        raise ValueError(
            f"params has shape {tuple(params.shape)}: give one row of parameters per task, [T, P]"
        )
    at = params.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss_fn(at)
        if losses.shape != (len(at),):
            raise ValueError(
                f"loss_fn gave shape {tuple(losses.shape)} for {len(at)} tasks: "
                "give one loss per task, [T]"
            )
        require_finite(losses.detach(), "loss")
        # The gradient's graph serves every product.
        if not losses.requires_grad:
            raise ValueError(
                "loss_fn does not depend on params: use them in it, without detach() or no_grad()"
            )
        (gradient,) = torch.autograd.grad(losses.sum(), at, create_graph=True)
    if not gradient.requires_grad:  # the loss is linear
        return gradient, torch.zeros_like

    def product(v: Tensor) -> Tensor:
        # A parameter that the loss is linear in has no second derivative: zero.
        (products,) = torch.autograd.grad(
            gradient, at, v, retain_graph=True, materialize_grads=True
        )
        return products

    return gradient.detach(), product


def random_directions(n: int, size: int, seed: int) -> Tensor:
    """Draw random directions, uniform on the sphere: [n, size] float64 of length 1.

    They are drawn on the CPU, so that a seed gives the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, size, generator=generator, dtype=torch.float64)
    return normal / normal.norm(dim=1, keepdim=True)


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run Lanczos for all tasks at once, with full reorthogonalisation.

    The basis takes T P numbers per product (60 tasks, P = 112,000, 20 products in float32: 540 MB),
    and the gradient's graph comes on top. Split large batches into chunks; on a CPU 4 to 8 tasks
    are fastest.

    Args:
        product: v [T, P] -> H v [T, P], H symmetric.
        start: [T, P], rows of length 1; its type is that of the basis.
        most: the largest number of products; there are never more than P.

    Yields:
        After the k-th product the diagonals of the tridiagonal matrices, float64 on the CPU: alpha
        [T, k], and beta [T, k], whose last column is the length of the next Lanczos vector before
        it is normalised. Once that length is 0 but for rounding (`is_closed`), the columns that
        follow mean nothing.
    """
    n_tasks, size = start.shape
    most = min(most, size)
    basis = start.new_empty(n_tasks, min(32, most), size)
    basis[:, 0] = start
    alpha, beta = torch.zeros(2, n_tasks, 0, dtype=torch.float64)
    for k in range(1, most + 1):
        w = product(basis[:, k - 1])
        # Make w orthogonal to the basis. In exact arithmetic the last two vectors would do; the
        # second pass, over all vectors, removes what rounding leaves. One pass over all is not
        # enough: its errors multiply from step to step.
        w, coefficients = _orthogonalise(w, basis[:, max(k - 2, 0) : k])
        w, _ = _orthogonalise(w, basis[:, :k])
        # The next column of each diagonal.
        # The squares of small entries would be zero in single precision.
        length = torch.linalg.vector_norm(w, dim=1, dtype=torch.float64)
        alpha = torch.cat([alpha, coefficients[:, -1].double().cpu()[:, None]], 1)
        beta = torch.cat([beta, length.cpu()[:, None]], 1)
        yield alpha, beta
        # The next basis vector; the basis doubles when it is full.
        if k == basis.shape[1] and k < most:
            basis = torch.cat([basis, torch.empty_like(basis)], 1)
        if k < most:
            least = torch.finfo(w.dtype).tiny
            basis[:, k] = w / length.clamp_min(least)[:, None].to(w)


def is_closed(alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    """Return after which products the Krylov space is closed under H, [T, k].

    Then no further product adds to it, up to rounding of the basis' dtype.
    """
    scale = torch.maximum(alpha.abs(), beta).cummax(1).values
    return beta <= 10 * torch.finfo(dtype).eps * scale


def tridiagonal_eigen(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Ritz values [T, k], ascending, and eigenvectors [T, k, k] of `lanczos`' matrices."""
    off = beta[:, :-1]
    tridiagonal = torch.diag_embed(alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return torch.linalg.eigh(tridiagonal)


def require_finite(values: Tensor, name: str) -> None:
    """Require that values [T] are all finite.

    Raises:
        LandscapeError: a value is not; the message gives its name, the task and the value.
    """
    if not bool(values.isfinite().all()):
        task = int((~values.isfinite()).nonzero()[0])
        raise LandscapeError(f"{name} is {float(values[task])}, no curvature there", task)


def _orthogonalise(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from w [T, P] its projection on the orthonormal rows of basis [T, k, P].

    Returns the rest and w's coefficients on the rows, [T, k]. Both products are row vector times
    matrix: on the CPU `torch.bmm` takes four times as long for matrix times column.
    """
    row = w[:, None]
    coefficients = torch.bmm(row, basis.transpose(1, 2))
    return torch.baddbmm(row, coefficients, basis, alpha=-1)[:, 0], coefficients[:, 0]
