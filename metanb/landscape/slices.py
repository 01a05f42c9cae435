"""Slices of the loss: on the plane through three points of parameter space, and along lines.

All functions are functions of tensors. A slice shows the loss on that plane or line, and nothing of
the other dimensions (planes: Li et al., NeurIPS 2018; lines: Goodfellow, Vinyals and Saxe, ICLR
2015).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 1e-3  # sine of the least angle between two directions that span a plane


@dataclass(frozen=True)
class Plane:
    """The points origin + a axes[0] + b axes[1], all in float64.

    The axes have length 1 and are at right angles, so a and b are distances.
    """

    origin: Tensor  # [P]
    axes: Tensor  # [2, P]

    def at(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the points with coordinates a and b, [n] each: [n, P]."""
        return self.origin + torch.stack([a, b], 1).to(self.axes) @ self.axes

    def coordinates(self, points: Tensor) -> Tensor:
        """Return coordinates [n, 2] of points [n, P], or of their nearest points on the plane."""
        return (points.double() - self.origin) @ self.axes.T


def plane_through(origin: Tensor, first: Tensor, second: Tensor) -> Plane:
    """Return the plane through three points [P], by Gram and Schmidt.

    `first` lies on the positive a axis, and `second` has b > 0.

    Raises:
        ValueError: the points lie on a line, or nearly.

    Example:
        >>> import torch
        >>> plane = plane_through(*torch.tensor([[0.0, 0, 0], [2, 0, 0], [1, 3, 0]]))
        >>> plane.coordinates(torch.tensor([[1.0, 3.0, 7.0]]))
        tensor([[1., 3.]], dtype=torch.float64)
    """
    origin, u, v = (point.detach().double() for point in (origin, first, second))
    u = u - origin
    v = v - origin
    lengths = u.norm(), v.norm()
    if min(lengths) > 0:
        u = u / lengths[0]
        for _ in range(2):  # the second pass removes what rounding leaves
            v = v - (v @ u) * u
        if v.norm() > SMALL * lengths[1]:
            return Plane(origin, torch.stack([u, v / v.norm()]))
    raise ValueError(
        f"the points lie on a line ({lengths[0]:.3g} and {lengths[1]:.3g} from the origin): "
        "they span no plane"
    )


def losses_on_plane(
    loss_fn: Callable[[Tensor], Tensor], plane: Plane, a: Tensor, b: Tensor, like: Tensor
) -> Tensor:
    """Compute losses on the grid of a [A] and b [B]: [B, A] float64, one row per b, for contours.

    Args:
        loss_fn: params [n, P] -> losses [n].
        plane: the plane.
        a: coordinates along the first axis, [A].
        b: coordinates along the second, [B].
        like: a tensor of the type and on the device that loss_fn takes.
    """
    with torch.no_grad():
        rows = [loss_fn(plane.at(a, y.expand(len(a))).to(like)).double().cpu() for y in b]
    return torch.stack(rows)


def values_along_line(
    values_fn: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, alphas: Tensor
) -> Tensor:
    """Compute values at start + alpha (end - start): [A, T] float64, on the CPU.

    Args:
        values_fn: params [T, P] -> values [T], value t depending on row t alone.
        start: [T, P], where alpha is 0.
        end: [T, P], where alpha is 1.
        alphas: [A]; values below 0 and above 1 lie beyond the two ends.
    """
    with torch.no_grad():
        return torch.stack(
            [values_fn(start + float(x) * (end - start)).double().cpu() for x in alphas]
        )
