"""Features for speed and their switches; and the error of TF32, in software, against float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from metanb.data import image_sets
from metanb.data.tasks import Tasks, sample_tasks
from metanb.maml import engine
from metanb.maml.engine import Engine
from metanb.maml.inner_loop import flatten
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import meta_gradient
from metanb.settings import preset
from tests.support.rounding import TF32, rounded

GPU = torch.device("cuda")


def test_everything_is_on_for_a_gpu_less_what_is_left_out_and_tf32_on_request(monkeypatch):
    cpu, on = torch.device("cpu"), Engine(engine.TOGETHER, resident=True, compile=True, graph=True)
    for variable in ("METANB_WITHOUT", "METANB_WITH"):
        monkeypatch.delenv(variable, raising=False)
    assert engine.choose_engine(cpu) == Engine() and engine.choose_engine(
        cpu, together=3
    ) == Engine(3)
    assert engine.choose_engine(GPU) == on
    assert engine.choose_engine(GPU, together=3).together == 3
    assert (on.features, on.precision) == ("resident compile graph", "float32")
    monkeypatch.setenv("METANB_WITH", "tf32")
    assert (
        engine.choose_engine(GPU) == replace(on, tf32=True)
        and engine.choose_engine(GPU).precision == "TF32"
    )
    assert engine.choose_engine(cpu) == Engine()
    monkeypatch.setenv("METANB_WITHOUT", "graph, together")
    assert engine.choose_engine(GPU, together=5) == Engine(
        1, resident=True, compile=True, tf32=True
    )
    assert engine.choose_engine(cpu, together=5) == Engine()
    monkeypatch.setenv("METANB_WITHOUT", "speed")
    with pytest.raises(
        ValueError, match="'speed': choose from together, resident, compile, graph, tf32"
    ):
        engine.choose_engine(GPU)


def test_precision_is_put_back(monkeypatch):
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), engine.precision(True):
        assert torch.get_float32_matmul_precision() == "high"
        with engine.precision(False):
            assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_rounding_by_hand():
    """Beside 1, TF32's next number is 1 + 2**-10."""
    step = 2.0**-10
    numbers = torch.tensor([1.0, 1 + 0.4 * step, 1 + 0.6 * step, -1 - 0.6 * step, 3e-5, 0.0])
    nearest = rounded(numbers)
    assert nearest[:4].tolist() == [1.0, 1.0, 1 + step, -1 - step] and nearest[5] == 0
    assert ((nearest - numbers).abs() <= numbers.abs() * step / 2).all()
    a, b = torch.rand(2, 30, 30, generator=torch.Generator().manual_seed(0))
    with TF32():
        product = a @ b
    torch.testing.assert_close(product, rounded(a) @ rounded(b), rtol=0, atol=0)
    assert not torch.equal(product, a @ b)


@pytest.mark.parametrize("order", ["maml", "fomaml"])
def test_tf32_is_not_harmless(order):
    """The gradient is at least 5 % off where float32 is exact.

    An untrained network, printed characters, the paper's 20-way setting.

    So TF32 is off by default. Batch norm divides by the deviation of its inputs. Early on that is
    small, a difference of products that are large.
    """
    settings = preset("paper", "glyphs", 20, algorithm=order)
    tasks = sample_tasks(
        image_sets.load_images("glyphs", "train"), 2, 20, 1, 1, np.random.default_rng(0)
    )
    torch.manual_seed(0)
    single = ConvNet(tuple(tasks.support_x.shape[2:]), 20, settings.filters)
    in_double = Tasks(*(x.double() if x.is_floating_point() else x for x in tasks.tensors()))
    exact = gradient(copy.deepcopy(single).double(), in_double, settings)
    plain = gradient(single, tasks, settings)
    with TF32():
        coarse = gradient(single, tasks, settings)
    assert (plain - exact).norm() < 1e-4 * exact.norm()
    assert (coarse - exact).norm() > 0.05 * exact.norm()
    assert (coarse - exact).norm() < exact.norm()  # but it points the same way


def gradient(net, tasks, settings):
    theta = flatten(net).detach()[None].requires_grad_()
    meta_gradient(
        net,
        tasks,
        settings.inner_lr,
        settings.inner_steps,
        first_order=settings.first_order,
        chunk=2,
        theta=theta,
    )
    return theta.grad[0].double()
