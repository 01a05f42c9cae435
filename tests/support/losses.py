"""Losses whose landscapes are known: quadratics of a given spectrum, and a small network."""

import torch

from metanb.maml.inner_loop import flatten, losses
from metanb.maml.network import ConvNet


def rand(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def quadratic(spectra, generator):
    """Losses whose Hessians have given eigenvalues [T, P], in random directions, and parameters."""
    rotation, _ = torch.linalg.qr(
        randn(generator, len(spectra), spectra.shape[1], spectra.shape[1])
    )

    def loss(params):
        return (
            spectra.to(params) * torch.einsum("tij,tj->ti", rotation.to(params), params).square()
        ).sum(1) / 2

    return loss, randn(generator, *spectra.shape)


def conv_net(generator, dtype=torch.float64, tasks=3):
    """Losses of a small ConvNet on random tasks, and different parameters [T, P] for each task."""
    torch.manual_seed(0)
    net = ConvNet((1, 28, 28), 3, filters=2).to(dtype)
    x, y = rand(generator, tasks, 6, 1, 28, 28).to(dtype), torch.arange(3).repeat(tasks, 2)
    theta = flatten(net).detach()
    params = theta + 0.1 * randn(generator, tasks, len(theta)).to(dtype)
    return (lambda p: losses(net, p, x[: len(p)], y[: len(p)])), params


def dense_eigenvalues(loss, params):
    """Eigenvalues [T, P] of each task's own block of the Hessian of the summed loss."""
    hessian = torch.autograd.functional.hessian(lambda p: loss(p).sum(), params, vectorize=False)
    return torch.linalg.eigvalsh(torch.stack([hessian[t, :, t] for t in range(len(params))]))
