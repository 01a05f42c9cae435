"""The inner loop in float64: finite differences, plain autograd, `higher` on one task at a time."""

import gc
import platform
import subprocess
import sys

import higher
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

from metanb.data.tasks import Tasks
from metanb.maml.inner_loop import accuracy, adapt, flatten, logits, losses, unflatten
from metanb.maml.network import ConvNet
from tests.support.networks import Reference, make

OMNIGLOT, SMALL_IMAGENET = (1, 28, 28), (3, 32, 32)


def make_tasks(n_tasks, shape, ways=5, queries=2, dtype=torch.float64) -> Tasks:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n_tasks, ways * (1 + queries), *shape, generator=generator, dtype=dtype)
    y = torch.arange(ways).repeat(n_tasks, 1 + queries)
    return Tasks(x[:, :ways], y[:, :ways], x[:, ways:], y[:, ways:])


def meta_gradient(net, tasks, lr, steps, **options) -> torch.Tensor:
    params = adapt(net, tasks, lr, steps, **options)
    gradients = grad(
        losses(net, params, tasks.query_x, tasks.query_y).mean(), list(net.parameters())
    )
    return torch.cat([g.flatten() for g in gradients])


def one_at_a_time(net, tasks, lr, steps, first_order=False, adapt_norm=True) -> torch.Tensor:
    """The meta-gradient by `higher` as documented: a context per task, a net of torch's layers."""
    reference = Reference(net)
    names = [name for name, _ in reference.named_parameters()]
    adapted = [
        p
        for name, p in reference.named_parameters()
        if adapt_norm or not name.startswith(("gamma", "beta"))
    ]
    total = 0
    for t in range(len(tasks)):
        with higher.innerloop_ctx(
            reference,
            torch.optim.SGD(adapted, lr=lr),
            copy_initial_weights=False,
            track_higher_grads=not first_order,
        ) as (fnet, inner):
            for _ in range(steps):
                inner.step(F.cross_entropy(fnet(tasks.support_x[t]), tasks.support_y[t]))
            loss = F.cross_entropy(fnet(tasks.query_x[t]), tasks.query_y[t]) / len(tasks)
            by = list(fnet.parameters() if first_order else reference.parameters())
            total = total + reference.in_order(dict(zip(names, grad(loss, by), strict=True)))
    return total


def assert_same(ours, theirs, relative) -> None:
    assert ((ours - theirs).norm() / theirs.norm()).item() <= relative


@pytest.mark.parametrize("shape", [OMNIGLOT, SMALL_IMAGENET], ids=str)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapt_norm", [False, True])
def test_meta_gradient_is_that_of_one_task_at_a_time(shape, steps, first_order, adapt_norm):
    net, tasks = make(shape), make_tasks(2, shape)
    options = {"first_order": first_order, "adapt_norm": adapt_norm}
    expected = one_at_a_time(net, tasks, 0.1, steps, **options)
    assert_same(meta_gradient(net, tasks, 0.1, steps, **options), expected, 1e-12)


# image shape, filters, ways, inner learning rate and steps of the paper's three settings
PAPER = {
    "5-way": ((1, 28, 28), 64, 5, 0.4, 1),
    "20-way": ((1, 28, 28), 64, 20, 0.1, 5),
    "mini": ((3, 84, 84), 32, 5, 0.01, 5),
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("setting", PAPER)
def test_meta_gradient_at_the_papers_settings(setting, first_order):
    shape, filters, ways, lr, steps = PAPER[setting]
    net, tasks = make(shape, ways=ways, filters=filters), make_tasks(2, shape, ways=ways, queries=1)
    expected = one_at_a_time(net, tasks, lr, steps, first_order=first_order)
    assert_same(meta_gradient(net, tasks, lr, steps, first_order=first_order), expected, 1e-12)


def test_a_chunk_is_its_tasks():
    net, tasks = make(OMNIGLOT), make_tasks(3, OMNIGLOT)
    together = adapt(net, tasks, 0.1, 2)
    alone = torch.cat([adapt(net, part, 0.1, 2) for part in tasks.split(1)])
    assert_same(together, alone, 1e-13)


def test_meta_gradient_by_plain_autograd():
    """Guards against `higher` itself: its inner loop written out."""
    net, tasks, lr = make(OMNIGLOT), make_tasks(1, OMNIGLOT), 0.1
    names, initial = zip(*net.named_parameters(), strict=True)
    params = list(initial)

    def loss(x, y):
        return F.cross_entropy(
            torch.func.functional_call(net, dict(zip(names, params, strict=True)), (x[0],)), y[0]
        )

    for _ in range(3):
        gradients = grad(loss(tasks.support_x, tasks.support_y), params, create_graph=True)
        params = [p - lr * g for p, g in zip(params, gradients, strict=True)]
    assert_same(adapt(net, tasks, lr, 3)[0], torch.cat([p.flatten() for p in params]), 1e-13)
    expected = grad(loss(tasks.query_x, tasks.query_y), initial)
    assert_same(meta_gradient(net, tasks, lr, 3), torch.cat([g.flatten() for g in expected]), 1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradient_by_finite_differences(steps):
    net, tasks = make((1, 12, 12), ways=3, filters=3), make_tasks(2, (1, 12, 12), ways=3)
    gradient, start, h = meta_gradient(net, tasks, 0.1, steps), flatten(net).detach(), 1e-6

    def query_loss(theta):
        torch.nn.utils.vector_to_parameters(theta, net.parameters())
        return (
            losses(net, adapt(net, tasks, 0.1, steps), tasks.query_x, tasks.query_y).mean().item()
        )

    for direction in torch.randn(5, len(start), dtype=torch.float64):
        slope = (query_loss(start + h * direction) - query_loss(start - h * direction)) / (2 * h)
        assert slope == pytest.approx((gradient @ direction).item(), rel=1e-6, abs=1e-8)


def test_hessian_vector_product_at_adapted_parameters_by_finite_differences():
    net, tasks = make((1, 12, 12), ways=3, filters=3), make_tasks(2, (1, 12, 12), ways=3)
    params = adapt(net, tasks, 0.1, 2).detach().requires_grad_()

    def gradient(at, **options):
        return grad(losses(net, at, tasks.support_x, tasks.support_y).sum(), at, **options)[0]

    v, h = torch.randn_like(params), 1e-6
    product = grad(gradient(params, create_graph=True), params, v)[0]
    assert_same(product, (gradient(params + h * v) - gradient(params - h * v)) / (2 * h), 1e-7)


def test_first_order_has_the_same_values_and_the_query_gradient_at_them():
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    params = adapt(net, tasks, 0.1, 3, first_order=True)
    assert torch.equal(params, adapt(net, tasks, 0.1, 3))
    at = params.detach().requires_grad_()
    (expected,) = grad(losses(net, at, tasks.query_x, tasks.query_y).mean(), at)
    assert_same(meta_gradient(net, tasks, 0.1, 3, first_order=True), expected.sum(0), 1e-14)


def test_adapt_norm_false_leaves_gamma_and_beta():
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    for first_order in (False, True):
        after = unflatten(net, adapt(net, tasks, 0.1, 2, first_order=first_order, adapt_norm=False))
        for (name, before), adapted in zip(net.named_parameters(), after, strict=True):
            unchanged = torch.equal(adapted, before.expand_as(adapted))
            assert unchanged == name.endswith(("gamma", "beta")), name


def test_no_steps_and_no_gradient():
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    assert torch.equal(adapt(net, tasks, 0.1, 0), flatten(net).expand(2, -1))
    with torch.no_grad():
        params = adapt(net, tasks, 0.1, 2)
    assert not params.requires_grad
    assert torch.equal(params, adapt(net, tasks, 0.1, 2))


def test_flat_parameters_come_back_as_the_nets():
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    flat = flatten(net).expand(2, -1)
    for p, back in zip(net.parameters(), unflatten(net, flat), strict=True):
        assert torch.equal(back, p.expand(2, *p.shape))
    output = logits(net, flat, tasks.query_x)
    torch.testing.assert_close(output, torch.stack([net(x) for x in tasks.query_x]))
    expected = torch.stack(
        [F.cross_entropy(o, y) for o, y in zip(output, tasks.query_y, strict=True)]
    )
    torch.testing.assert_close(losses(net, flat, tasks.query_x, tasks.query_y), expected)
    right = (output.argmax(-1) == tasks.query_y).double().mean(1)
    torch.testing.assert_close(accuracy(net, flat, tasks.query_x, tasks.query_y).double(), right)


@pytest.mark.parametrize(
    ("lr", "steps", "named"),
    [(0.0, 1, "lr is 0.0"), (-1.0, 1, "lr is -1"), (0.1, -1, "steps is -1")],
)
def test_errors_name_the_value(lr, steps, named):
    with pytest.raises(ValueError, match=named):
        adapt(make(OMNIGLOT), make_tasks(1, OMNIGLOT), lr, steps)


@pytest.mark.parametrize("first_order", [False, True])
def test_memory_stays_flat_over_many_contexts(first_order):
    """`higher` leaves cycles of objects: the collector frees them all, and they hold no tensors."""
    net = ConvNet((1, 8, 8), ways=2, filters=2)
    tasks = make_tasks(1, (1, 8, 8), ways=2, queries=1, dtype=torch.float32)

    def contexts(number) -> None:
        for _ in range(number):
            params = adapt(net, tasks, 0.1, 1, first_order=first_order)
            losses(net, params, tasks.query_x, tasks.query_y).sum().backward()

    def tensors() -> int:
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    contexts(20)
    gc.collect()
    objects = len(gc.get_objects())
    gc.disable()
    try:
        before = tensors()
        contexts(150)
        assert tensors() <= before
    finally:
        gc.enable()
    gc.collect()
    assert len(gc.get_objects()) <= objects + 100  # each context made about 190


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    """The kernel's own count: once kept, the pages of a freed tensor are not faulted in again."""
    program = """
import resource, torch
from metanb.runs.machine import keep_freed_memory
keep_freed_memory()
faults = []
for _ in range(40):
    torch.ones(10_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[39] - faults[29])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    faults = int(run.stdout)
    assert faults < 100  # of 10 tensors with 9,766 pages each, all faulted in without the call
