"""Slices of the loss: on the plane through three points of parameter space, and along lines; functions of tensors.

Slices show the loss as it is there, and nothing of the other P - 2 dimensions (Li et al., NeurIPS
2018; along lines Goodfellow, Vinyals and Saxe, ICLR 2015).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 1e-3  # sine of the least angle between two directions that span a plane


@dataclass(frozen=True)
class Plane:
    """origin + a axes[0] + b axes[1], all in float64: axes of length 1 at right angles, so a and b are distances."""

    origin: Tensor  # [P]
    axes: Tensor  # [2, P]

    def at(self, a: Tensor, b: Tensor) -> Tensor:
        """The points of coordinates a and b, [n] each: [n, P]."""
        return self.origin + torch.stack([a, b], 1).to(self.axes) @ self.axes

    def coordinates(self, points: Tensor) -> Tensor:
        """Where points [n, P], or their feet if they lie outside the plane, are: [n, 2]."""
        return (points.double() - self.origin) @ self.axes.T


def plane_through(origin: Tensor, first: Tensor, second: Tensor) -> Plane:
    """The plane through three points [P], by Gram and Schmidt: `first` lies on the positive a axis, `second` has b > 0.

    Raises ValueError if they lie on a line, or nearly.
    """
    origin, u, v = (point.detach().double() for point in (origin, first, second))
    u, v = u - origin, v - origin
    lengths = u.norm(), v.norm()
    if min(lengths) > 0:
        u = u / lengths[0]
        for _ in range(2):  # the second pass takes what rounding leaves
            v = v - (v @ u) * u
        if v.norm() > SMALL * lengths[1]:
            return Plane(origin, torch.stack([u, v / v.norm()]))
    raise ValueError(
        f"the points lie on a line ({lengths[0]:.3g} and {lengths[1]:.3g} from the origin): they span no plane"
    )


def losses_on_plane(
    loss_fn: Callable[[Tensor], Tensor], where: Plane, a: Tensor, b: Tensor, like: Tensor
) -> Tensor:
    """Losses on the grid of a [A] and b [B]: [B, A], float64, a row for each b as contour plots want it.

    Args:
        loss_fn: params [n, P] -> losses [n].
        where: the plane.
        a: coordinates along the first axis, [A].
        b: coordinates along the second, [B].
        like: a tensor of the type and on the device that loss_fn takes.
    """
    with torch.no_grad():
        rows = [loss_fn(where.at(a, y.expand(len(a))).to(like)).double().cpu() for y in b]
    return torch.stack(rows)


def values_along_line(
    values_fn: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, alphas: Tensor
) -> Tensor:
    """Values at start + alpha (end - start), for each alpha and task: [A, T] float64, on the CPU.

    Args:
        values_fn: params [T, P] -> values [T], value t depending on row t alone.
        start: [T, P], where alpha is 0.
        end: [T, P], where alpha is 1.
        alphas: [A]; below 0 and above 1 they lead beyond.
    """
    with torch.no_grad():
        return torch.stack(
            [values_fn(start + float(x) * (end - start)).double().cpu() for x in alphas]
        )
