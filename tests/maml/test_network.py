"""The network against one of torch's own layers (nn.Conv2d, F.batch_norm, F.max_pool2d)."""

import math

import pytest
import torch
import torch.nn.functional as F

from metanb.maml.network import ConvNet
from tests.support.networks import Reference, make

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 84, 84), (1, 9, 12)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_network_is_the_one_of_torchs_layers(shape):
    net = make(shape)
    reference = Reference(net)
    x = torch.rand(6, *shape, dtype=torch.float64)
    logits = net(x)
    expected = reference(x, norm=lambda z: F.batch_norm(z, None, None, training=True))
    assert logits.shape == (6, 5)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)
    labels = torch.arange(6) % 5
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(net.parameters()))
    F.cross_entropy(expected, labels).backward()
    named = {name: p.grad for name, p in reference.named_parameters()}
    torch.testing.assert_close(
        torch.cat([g.flatten() for g in gradients]),
        reference.in_order(named),
        rtol=1e-8,
        atol=1e-11,
    )


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_many_tasks_at_once_are_each_task_alone(shape):
    nets = [make(shape), make(shape)]
    with torch.no_grad():
        for p in nets[1].parameters():
            p += 0.1 * torch.randn_like(p)
    x = torch.rand(2, 5, *shape, dtype=torch.float64)
    params = {
        name: torch.stack([p, dict(nets[1].named_parameters())[name]])
        for name, p in nets[0].named_parameters()
    }
    together = torch.func.functional_call(nets[0], params, (x,))
    torch.testing.assert_close(
        together, torch.stack([net(images) for net, images in zip(nets, x, strict=True)])
    )


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_patches_taken_once_serve_as_the_images_do(shape):
    net = make(shape)
    x = torch.rand(1, 5, *shape, dtype=torch.float64)
    torch.testing.assert_close(net(net.patches(x)), net(x), rtol=1e-10, atol=1e-12)


def test_constant_images_stay_finite():
    net = make((1, 28, 28))
    x = torch.zeros(5, 1, 28, 28, dtype=torch.float64)
    assert net(x).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "init", "std"),
    [
        ((1, 28, 28), "torch", 1 / math.sqrt(3 * 64)),
        ((1, 28, 28), "finn", 1.0),
        ((3, 84, 84), "torch", 1 / math.sqrt(3 * 1600)),
        ((3, 84, 84), "finn", math.sqrt(2 / (1600 + 20))),
        ((1, 28, 28), "zero", 0.0),
    ],
)
def test_initial_head_has_the_stated_spread(shape, init, std):
    torch.manual_seed(0)
    net = ConvNet(shape, ways=20, head_init=init)
    assert net.head.weight.std().item() == pytest.approx(std, rel=0.05)
    if init == "torch":
        assert net.head.bias.abs().max() > 0
    else:
        assert not net.head.bias.any()


def test_initial_body_is_xavier_uniform():
    torch.manual_seed(0)
    net = ConvNet((3, 84, 84), ways=5)
    for block, inputs in zip(net.blocks, (3, 64, 64, 64), strict=True):
        bound = math.sqrt(6 / (9 * (inputs + 64)))
        assert block.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert block.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert (block.gamma == 1).all() and (block.beta == 0).all()


def test_number_of_parameters():
    """A count by hand: convolutions without bias, gamma and beta, head."""
    omniglot = sum(p.numel() for p in ConvNet((1, 28, 28), ways=5).parameters())
    mini_imagenet = sum(p.numel() for p in ConvNet((3, 84, 84), ways=5, filters=32).parameters())
    assert omniglot == 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64 + 64 * 5 + 5
    assert mini_imagenet == 9 * 3 * 32 + 3 * 9 * 32 * 32 + 4 * 2 * 32 + 800 * 5 + 5


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="head_init is 'ones': use one of torch, finn, zero"):
        ConvNet((1, 28, 28), ways=5, head_init="ones")
    with pytest.raises(ValueError, match=r"image_shape is \(3, 84, 12\)"):
        ConvNet((3, 84, 12), ways=5)
