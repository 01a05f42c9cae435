"""The inner loop in float64: finite differences, plain autograd, `higher` on one task at a time."""

import gc
import platform
import subprocess
import sys

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad

from metanb.data.tasks import Tasks
from metanb.maml.inner_loop import (
    accuracy,
    adapt,
    flatten,
    logits,
    losses,
    select_parameters,
    starting_head,
    unflatten,
)
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import meta_gradient as meta_gradient_of_runs
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


# By what adapts: the names of those parameters in `Reference`.
PARTS = {
    "all": ("convs", "gammas", "betas", "head"),
    "head": ("head",),
    "body": ("convs", "gammas", "betas"),
    ("blocks.0", "head.bias"): ("convs.0", "gammas.0", "betas.0", "head.bias"),
    ("blocks.0.weight", "blocks.1.weight", "blocks.2.weight", "blocks.3.weight", "head"): (
        "convs",
        "head",
    ),  # all but batch norm's scale and shift
}


def one_at_a_time(net, tasks, lr, steps, first_order=False, adapts="all") -> torch.Tensor:
    """The meta-gradient by `higher` as documented: a context per task, a net of torch's layers."""
    reference = Reference(net)
    names = [name for name, _ in reference.named_parameters()]
    adapted = [p for name, p in reference.named_parameters() if name.startswith(PARTS[adapts])]
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
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapts", PARTS, ids=str)
def test_meta_gradient_is_that_of_one_task_at_a_time(shape, steps, first_order, adapts):
    net, tasks = make(shape), make_tasks(2, shape)
    options = {"first_order": first_order, "adapts": adapts}
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


@pytest.mark.parametrize("adapts", PARTS, ids=str)
@pytest.mark.parametrize("frozen", ["", "blocks.0", "head"])
def test_what_does_not_adapt_stays_on_every_path(adapts, frozen):
    """In second order, in first order, from given starts, and without gradients."""
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = not (frozen and name.startswith(frozen))
    if (adapts, frozen) == ("head", "head"):
        with pytest.raises(ValueError, match="nothing is left to adapt"):
            adapt(net, tasks, 0.1, 2, adapts=adapts)
        return
    start = flatten(net).detach().expand(2, -1)
    paths = [{}, {"first_order": True}, {"start": start}, {"start": start, "first_order": True}]
    after = [adapt(net, tasks, 0.1, 2, adapts=adapts, **options) for options in paths]
    with torch.no_grad():
        after.append(adapt(net, tasks, 0.1, 2, adapts=adapts))
    wanted = {"all": ("",), "head": ("head",), "body": ("blocks",)}.get(adapts, adapts)
    for adapted in after:
        parts = unflatten(net, adapted)
        for (name, before), part in zip(net.named_parameters(), parts, strict=True):
            stays = torch.equal(part, before.expand_as(part))
            moves = name.startswith(wanted) and before.requires_grad
            assert stays != moves, name


@pytest.mark.parametrize(
    ("net", "adapts", "reason"),
    [
        (nn.Linear(2, 2), "body", "the network has one layer with parameters, which is its head"),
        (nn.Linear(2, 2).requires_grad_(False), "all", "parameters with requires_grad=False stay"),
        (nn.Linear(2, 2), [], "no name is given"),
        (nn.ReLU(), "all", "the network has no parameters"),
        (nn.ReLU(), "body", "the network has no parameters"),
    ],
)
def test_why_nothing_adapts_is_said(net, adapts, reason):
    with pytest.raises(ValueError, match=f"nothing is left to adapt, since {reason}"):
        select_parameters(net, adapts)


def test_frozen_parameters_get_no_gradient_from_theta():
    """The weights of runs side by side are one leaf: its frozen entries have gradient 0."""
    net, tasks = make(OMNIGLOT), make_tasks(4, OMNIGLOT)
    net.blocks[1].requires_grad_(False)
    theta = flatten(net).detach().expand(2, -1).clone().requires_grad_()
    meta_gradient_of_runs(net, tasks, 0.1, 2, first_order=False, chunk=2, theta=theta)
    for (_, before), part in zip(net.named_parameters(), unflatten(net, theta.grad), strict=True):
        assert (part != 0).any() == before.requires_grad


@pytest.mark.parametrize("inner_head", ["zero", "shared"])
def test_a_frozen_head_is_not_replaced(inner_head):
    net = make(OMNIGLOT)
    net.head.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'head.bias' has requires_grad=False"):
        starting_head(net, flatten(net).detach()[None], inner_head)
    net.requires_grad_(True)
    net.blocks.requires_grad_(False)
    starting_head(net, flatten(net).detach()[None], inner_head)


def test_a_learnt_learning_rate_gets_its_gradient():
    """Beside a central finite difference of the query loss."""
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)

    def query_loss(lr):
        return losses(net, adapt(net, tasks, lr, 2), tasks.query_x, tasks.query_y).mean()

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (slope,) = grad(query_loss(lr), lr)
    assert slope == pytest.approx(float(query_loss(0.1 + 1e-5) - query_loss(0.1 - 1e-5)) / 2e-5)
    with pytest.raises(ValueError, match="first_order=False"):
        adapt(net, tasks, lr, 2, first_order=True)
    assert torch.equal(adapt(net, tasks, lr.detach(), 2), adapt(net, tasks, 0.1, 2))


def test_the_sum_of_finns_code_is_a_step_n_times_as_long():
    """Their loss of an image is divided by the shots, and its gradient sums over images."""
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    adapted = adapt(net, tasks, 0.1, 2, inner_loss="sum")
    assert_same(adapted, adapt(net, tasks, 5 * 0.1, 2), 1e-14)

    def finns(outputs, y):
        return F.cross_entropy(outputs, y, reduction="none").div(1).sum()  # one shot

    assert_same(adapt(net, tasks, 0.1, 2, inner_loss=finns), adapted, 1e-14)


def test_the_inner_loss_may_be_any_function():
    """Regression, beside plain autograd, task by task."""
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    targets = [
        torch.randn(2, x.shape[1], 5, dtype=x.dtype) for x in (tasks.support_x, tasks.query_x)
    ]
    tasks = Tasks(tasks.support_x, targets[0], tasks.query_x, targets[1])
    meta_gradient_of_runs(net, tasks, 0.1, 2, first_order=False, chunk=1, inner_loss=F.mse_loss)
    ours = torch.cat([p.grad.flatten() for p in net.parameters()])
    total = 0
    for t in range(2):
        params = flatten(net).unsqueeze(0)
        for _ in range(2):
            loss = F.mse_loss(logits(net, params, tasks.support_x[t : t + 1])[0], targets[0][t])
            params = params - 0.1 * grad(loss, params, create_graph=True)[0]
        query = logits(net, params, tasks.query_x[t : t + 1])[0]
        total = total + F.mse_loss(query, targets[1][t]) / 2
    expected = torch.cat([g.flatten() for g in grad(total, list(net.parameters()))])
    assert_same(ours, expected, 1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"steps": -1}, "steps is -1"),
        ({"adapts": "heads"}, "adapts is 'heads'"),
        ({"adapts": "heads", "steps": 0}, "adapts is 'heads'"),
        ({"adapts": ["blocks.9"]}, "adapts names 'blocks.9'"),
        ({"adapts": []}, "nothing is left"),
        ({"inner_loss": "summ"}, "loss is 'summ'"),
        ({"inner_loss": lambda outputs, y: outputs.sum(1)}, "not a scalar each"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    net, tasks = make(OMNIGLOT), make_tasks(2, OMNIGLOT)
    with pytest.raises(ValueError, match=words):
        adapt(net, tasks, **({"lr": 0.1, "steps": 1} | options))


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
