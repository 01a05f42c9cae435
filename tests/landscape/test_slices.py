"""Slices of a loss against closed forms (quadratics, distances) and single points."""

import math

import pytest
import torch

from metanb.landscape import slices
from tests.support.losses import conv_net, randn


@pytest.fixture
def points():
    return randn(torch.Generator().manual_seed(0), 3, 50)


def test_plane_runs_through_its_points_at_their_distances(points):
    plane = slices.plane_through(*points)
    torch.testing.assert_close(
        plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-14
    )
    u, v = points[1] - points[0], points[2] - points[0]
    cosine = float(u @ v / (u.norm() * v.norm()))
    coordinates = plane.coordinates(points)
    true = [
        [0, 0],
        [float(u.norm()), 0],
        [cosine * float(v.norm()), math.sqrt(1 - cosine**2) * float(v.norm())],
    ]
    torch.testing.assert_close(
        coordinates, torch.tensor(true, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(plane.at(*coordinates.T), points, rtol=0, atol=1e-12)
    outside = points[0] + randn(torch.Generator().manual_seed(1), 50)
    foot = plane.at(*plane.coordinates(outside[None]).T)[0]
    assert (plane.axes @ (outside - foot)).abs().max() < 1e-12  # the nearest point


def test_loss_on_the_plane_is_the_closed_form(points):
    """|p|^2 is |origin|^2 + 2 a u.origin + 2 b v.origin + a^2 + b^2."""
    plane = slices.plane_through(*points)
    a, b = torch.linspace(-1, 2, 5).double(), torch.linspace(-3, 1, 4).double()
    values = slices.losses_on_plane(lambda p: p.square().sum(1), plane, a, b, like=points)
    (u, v), o = plane.axes @ plane.origin, plane.origin
    true = o @ o + 2 * a * u + a**2 + (2 * b * v + b**2)[:, None]
    assert values.shape == (4, 5)
    torch.testing.assert_close(values, true, rtol=1e-12, atol=0)


def test_loss_of_a_net_on_the_plane_and_line_is_the_loss_at_each_point():
    loss, params = conv_net(torch.Generator().manual_seed(0))

    def first_loss(p):  # the first task's loss of any parameters
        return torch.cat([loss(row[None]) for row in p])

    plane = slices.plane_through(*params)
    a, b = torch.tensor([0.0, 1.5]), torch.tensor([0.0, -0.5, 2.0])
    values = slices.losses_on_plane(first_loss, plane, a, b, like=params)
    for i, y in enumerate(b):
        for j, x in enumerate(a):
            point = params[0] + float(x) * plane.axes[0] + float(y) * plane.axes[1]
            assert float(values[i, j]) == pytest.approx(float(loss(point[None])), rel=1e-9)
    alphas = torch.tensor([-0.5, 0.0, 1.0, 2.0])
    start, end = params, params.flip(0)
    values = slices.values_along_line(loss, start, end, alphas)
    assert values.shape == (4, 3) and not values.requires_grad
    for i, alpha in enumerate((-0.5, 0, 1, 2)):
        torch.testing.assert_close(
            values[i], loss((1 - alpha) * start + alpha * end).detach(), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("second", [lambda o, u: o, lambda o, u: u, lambda o, u: 2 * o - u])
def test_points_on_a_line_are_refused(points, second):
    with pytest.raises(ValueError, match="line .* span no plane"):
        slices.plane_through(points[0], points[1], second(points[0], points[1]))
    with pytest.raises(ValueError, match="line"):
        slices.plane_through(points[0], points[0], points[1])
