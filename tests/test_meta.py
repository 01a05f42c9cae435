"""The meta-gradient: chunks change nothing, and first order is the gradient at the adapted parameters, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metanb import images
from metanb.meta import chunk_size, meta_gradient
from metanb.nets import ConvNet
from metanb.settings import preset
from metanb.tasks import Tasks, sample_tasks


@pytest.fixture
def setup():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((5, 6, 1, 28, 28)))
    y = torch.arange(3).repeat(5, 2)
    torch.manual_seed(0)
    return ConvNet((1, 28, 28), 3, filters=4).double(), Tasks(x[:, :3], y[:, :3], x, y)


def gradient(net, tasks, **options):
    net.zero_grad()
    values = meta_gradient(net, tasks, 0.3, 2, **({"first_order": False, "adapt_norm": True, "chunk": 5} | options))
    return values, torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_change_nothing(setup, first_order, chunk):
    whole_losses, whole = gradient(*setup, first_order=first_order)
    part_losses, part = gradient(*setup, first_order=first_order, chunk=chunk)
    assert torch.allclose(whole_losses, part_losses, rtol=1e-12)
    assert (part - whole).norm() < 1e-12 * whole.norm()


def _by_hand(net, tasks, first_order):
    """Mean query loss after two SGD steps a task, by autograd alone."""
    names, theta = zip(*net.named_parameters(), strict=True)
    total = 0.0
    for t in range(len(tasks)):
        params = list(theta)
        for _ in range(2):
            output = torch.func.functional_call(net, dict(zip(names, params, strict=True)), (tasks.support_x[t],))
            slope = torch.autograd.grad(
                F.cross_entropy(output, tasks.support_y[t]), params, create_graph=not first_order
            )
            params = [p - 0.3 * g for p, g in zip(params, slope, strict=True)]
        output = torch.func.functional_call(net, dict(zip(names, params, strict=True)), (tasks.query_x[t],))
        total = total + F.cross_entropy(output, tasks.query_y[t]) / len(tasks)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, theta)])


@pytest.mark.parametrize("first_order", [False, True])
def test_gradient_is_autograds(setup, first_order):
    expected = _by_hand(*setup, first_order)
    _, found = gradient(*setup, first_order=first_order)
    assert (found - expected).norm() < 1e-11 * expected.norm()


def test_orders_differ(setup):
    _, second = gradient(*setup)
    _, first = gradient(*setup, first_order=True)
    assert (first - second).norm() > 0.05 * second.norm()


def test_float32_is_as_exact_as_plain_float32():
    """On printed characters, whose flat background and few edges are hard on variances: rounding, and no more."""
    pool = images.load("glyphs", "test")
    for seed in range(5):
        torch.manual_seed(seed)
        single, double = ConvNet((1, 28, 28), 5, 64), ConvNet((1, 28, 28), 5, 64).double()
        double.load_state_dict(single.state_dict())
        tasks = sample_tasks(pool, 2, 5, 1, 1, np.random.default_rng(seed))
        _, found = gradient(single, tasks)
        exact = replace(tasks, support_x=tasks.support_x.double(), query_x=tasks.query_x.double())
        _, expected = gradient(double, exact)
        assert (found - expected).norm() < 1e-5 * expected.norm()


CHUNKS = [({}, 32), ({"queries": 15}, 16), ({"ways": 20}, 16), ({"ways": 20, "queries": 15}, 4), ({"meta_batch": 3}, 3)]


@pytest.mark.parametrize(("options", "chunk"), CHUNKS)
def test_chunk_is_a_rule(options, chunk):
    """By hand: 2**20 pixels over 784 times 10, 80, 40, 320, down to a power of two, never more than the batch."""
    assert chunk_size(preset("paper", "omniglot", **options), torch.device("cpu")) == chunk
