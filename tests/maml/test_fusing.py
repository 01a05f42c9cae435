"""Compiled chains against the same chains uncompiled, in float64; and a compiler that fails.

`test_gpu.py` tries the compiler itself, on a GPU.
"""

import numpy as np
import pytest
import torch

from metanb.data.tasks import Tasks
from metanb.maml import fusing, kernels
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import meta_gradient
from tests.support.bad_days import shown


@pytest.fixture
def fresh(monkeypatch):
    """No failure so far, and none that outlasts the test."""
    monkeypatch.setattr(fusing, "_failed", False)


def gradient(side):
    torch.manual_seed(0)
    net = ConvNet((1, side, side), 2, filters=4).double()
    x = torch.from_numpy(np.random.default_rng(0).random((2, 2, 1, side, side)))
    y = torch.arange(2).expand(2, 2)
    meta_gradient(net, Tasks(x, y, x.flip(3), y), 0.1, 2, first_order=False, chunk=2)
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def test_compiled_chains_give_the_gradient_that_they_give_as_written(fresh, monkeypatch, capsys):
    """By matrix products over patches, as on a GPU; traced by torch.compile, and run as traced."""
    monkeypatch.setattr(kernels, "_is_direct", lambda *_: False)
    honest, compiled = torch.compile, []

    def traced(function, **options):
        compiled.append(function.__name__)
        return honest(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    expected = gradient(28)
    assert not compiled
    with fusing.fused(True):
        fused_gradient = gradient(28)
    assert {name.rstrip("0123456789") for name in compiled} == {
        "_patches_",
        "_overlap_add_",
        "_normalise_",
        "_norm_gradient_",
        "_norm_second_traced_",
    }
    assert (fused_gradient - expected).norm() < 1e-12 * expected.norm()
    assert not capsys.readouterr().err


def test_one_function_is_compiled_for_more_shapes_than_torch_compiles_one_code_object_for(
    fresh, monkeypatch
):
    """At its limit, 8, torch silently runs a function uncompiled, and does not call the backend."""
    honest, graphs = torch.compile, []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    @fusing.fusible
    def doubled(x):
        return x * 2

    monkeypatch.setattr(
        torch, "compile", lambda function, **options: honest(function, backend=counted, **options)
    )
    with fusing.fused(True):
        for size in range(2, 14):
            assert torch.equal(doubled(torch.ones(size)), torch.full((size,), 2.0))
    assert len(graphs) == 12


def test_a_compiler_that_fails_is_named_once_and_done_without(fresh, monkeypatch, capsys):
    def fails(function, **_):
        def call(*args):
            raise RuntimeError("no compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(kernels, "_is_direct", lambda *_: False)
    expected = gradient(20)  # shapes that no other test has compiled
    with fusing.fused(True):
        assert torch.equal(gradient(20), expected)
    warning = capsys.readouterr().err
    shown("A GPU cannot do what is done for speed", warning)
    assert len(warning.splitlines()) == 1 and "no compiler;" in warning
