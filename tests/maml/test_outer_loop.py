"""Meta-gradients of all algorithms and regularisers against autograd over a loop, in float64."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metanb.data import image_sets
from metanb.data.tasks import Tasks, sample_tasks
from metanb.labels import ALGORITHMS
from metanb.landscape.lanczos import random_directions
from metanb.maml.algorithms import GRADIENTS, add_gradient
from metanb.maml.inner_loop import flatten
from metanb.maml.kernels import EPS
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import chunk_size, meta_gradient, supervised_gradient
from metanb.maml.regulariser import agreement_direction, omega, pull
from metanb.settings import CHOICES, preset


@pytest.fixture
def setup():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((5, 6, 1, 28, 28)))
    y = torch.arange(3).repeat(5, 2)
    torch.manual_seed(0)
    return ConvNet((1, 28, 28), 3, filters=4).double(), Tasks(x[:, :3], y[:, :3], x, y)


def gradient(net, tasks, **options):
    net.zero_grad()
    if options.get("regulariser") == "random":
        options.setdefault("direction", direction(net))
    outcome = meta_gradient(net, tasks, 0.3, 2, **({"first_order": False, "chunk": 5} | options))
    return outcome, torch.cat([p.grad.flatten() for p in net.parameters()])


def direction(net, seed=3):
    """A random one, as the control takes."""
    return random_directions(1, flatten(net).numel(), seed).to(net.head.weight)


@pytest.mark.parametrize("regulariser", CHOICES["regulariser"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_change_nothing(setup, first_order, chunk, regulariser):
    if first_order and regulariser not in ALGORITHMS["fomaml"].regularisers:
        return
    options = {"first_order": first_order, "regulariser": regulariser}
    options["gamma"] = 0.0 if regulariser == "none" else 0.5
    whole, by_whole = gradient(*setup, **options)
    parts, by_parts = gradient(*setup, chunk=chunk, **options)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)
    assert (by_parts - by_whole).norm() < 1e-10 * by_whole.norm()


def _plain(params, x):
    """The network of torch's convolution and batch norm in primitives: any order of derivatives."""
    for weight, gamma, beta in zip(*[iter(params[:-2])] * 3, strict=True):
        x = F.conv2d(x, weight.permute(0, 3, 1, 2), stride=2, padding=1)
        centred = x - x.mean((0, 2, 3), keepdim=True)
        x = centred * (centred.square().mean((0, 2, 3), keepdim=True) + EPS).rsqrt()
        x = (x * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1)).relu()
    return F.linear(x.mean((2, 3)), *params[-2:])


def _by_hand(net, tasks, first_order, regulariser="none", gamma=0.0, e=None):
    """Losses, moves and the meta-gradient, task by task, every derivative autograd's."""
    thetas, adapted = [], []
    theta = [p.detach().requires_grad_() for p in net.parameters()]
    for t in range(len(tasks)):
        start = [p.view_as(p) for p in theta]
        params = start
        for _ in range(2):
            loss = F.cross_entropy(_plain(params, tasks.support_x[t]), tasks.support_y[t])
            slopes = torch.autograd.grad(loss, params, create_graph=True)
            params = [
                p - 0.3 * (g.detach() if first_order else g)
                for p, g in zip(params, slopes, strict=True)
            ]
        thetas.append(start)
        adapted.append(params)

    def flat(parts):
        return torch.cat([p.flatten() for p in parts])

    us = [flat(a) - flat(s) for a, s in zip(adapted, thetas, strict=True)]
    d_mu = torch.stack([u / u.norm() for u in us]).mean(0).detach()
    agreements = [(u @ sum(us)).item() for u in us]
    weights = [len(us) * a / sum(map(abs, agreements)) for a in agreements]
    losses, moves, total = [], [], 0.0
    for t, (start, params, u) in enumerate(zip(thetas, adapted, us, strict=True)):
        omega = -(u / u.norm()) @ d_mu
        by_adapted = flat(torch.autograd.grad(omega, params, create_graph=True))
        if regulariser == "through":
            move = -gamma * flat(torch.autograd.grad(omega, start, create_graph=True))
        elif regulariser == "random":
            d = u / u.norm()
            across = e - (e @ d) * d
            move = gamma * by_adapted.norm() * across / across.norm()
        else:
            move = -gamma * by_adapted if regulariser == "adapted" else torch.zeros_like(u)
        sizes = [p.numel() for p in params]
        moved = [p + m.view_as(p) for p, m in zip(params, move.split(sizes), strict=True)]
        losses.append(F.cross_entropy(_plain(moved, tasks.query_x[t]), tasks.query_y[t]))
        moves.append(move.norm() / u.norm())
        penalty, weight = 0.0, 1.0
        if regulariser == "outer":
            penalty = gamma * omega
        if regulariser == "within":
            support, query = (
                flat(
                    torch.autograd.grad(
                        F.cross_entropy(_plain(start, x[t]), y[t]), start, create_graph=True
                    )
                )
                for x, y in ((tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y))
            )
            penalty = -gamma * F.cosine_similarity(support, query, dim=0)
        if regulariser == "agreement":
            weight = (1 - gamma) + gamma * weights[t]
        total = total + (weight * losses[-1] + penalty) / len(tasks)
    return torch.stack(losses), torch.stack(moves), flat(torch.autograd.grad(total, theta))


@pytest.mark.parametrize(
    ("order", "regulariser"),
    [(order, name) for order in ("maml", "fomaml") for name in ALGORITHMS[order].regularisers],
)
def test_gradient_is_autograds(setup, order, regulariser):
    net, tasks = setup
    first_order, gamma = order == "fomaml", 0.5 if regulariser != "none" else 0.0
    losses, moves, expected = _by_hand(
        net, tasks, first_order, regulariser, gamma, direction(net)[0]
    )
    outcome, slopes = gradient(
        net, tasks, first_order=first_order, regulariser=regulariser, gamma=gamma, chunk=2
    )
    assert (slopes - expected).norm() < 1e-9 * expected.norm()
    assert torch.allclose(outcome.losses, losses, rtol=1e-10)
    assert torch.allclose(outcome.moves, moves, rtol=1e-9, atol=1e-14)
    if regulariser != "none":  # and it does something
        _, plain = gradient(net, tasks, first_order=first_order)
        assert (slopes - plain).norm() > 1e-3 * plain.norm()


def test_the_papers_move_in_closed_form_and_a_task_that_stays():
    """With d = (1, 0) and d_mu = (0.5, 0.5): across is (0, 0.5), over r = 2, times gamma = 4."""
    start = torch.zeros(2, 2, dtype=torch.float64)
    adapted = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    moved = pull(adapted, start, torch.tensor([0.5, 0.5], dtype=torch.float64), 4.0)
    assert moved.tolist() == [[2.0, 1.0], [0.0, 0.0]]
    assert omega(adapted, start, torch.tensor([0.5, 0.5], dtype=torch.float64)).tolist() == [
        -0.5,
        0.0,
    ]


def test_agreement_is_that_of_eshratifar_et_al():
    """By hand, for u = (1, 0), (0, 1), (-3, 0): the sum is (-2, 1), products -2, 1 and 6."""
    displacements = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]])
    vector = agreement_direction(displacements)
    assert (displacements[0] @ vector[0]).tolist() == pytest.approx([-2 / 3, 1 / 3, 2.0])
    assert agreement_direction(torch.zeros(2, 3, 4)).tolist() == torch.zeros(2, 4).tolist()


@pytest.mark.parametrize("order", ["maml", "fomaml"])
@pytest.mark.parametrize("inner_head", ["zero", "shared"])
def test_inner_loops_start_from_the_head_that_is_asked_for(setup, order, inner_head):
    """The gradient is the plain one at the changed head, and the chain rule through the change."""
    net, tasks = setup
    _, slopes = gradient(net, tasks, first_order=order == "fomaml", inner_head=inner_head, chunk=2)
    changed = deepcopy(net)
    with torch.no_grad():
        for p in (changed.head.weight, changed.head.bias):
            p.copy_(torch.zeros_like(p) if inner_head == "zero" else p.mean(0).expand_as(p))
    *body, weight, bias = _by_hand(changed, tasks, order == "fomaml")[2].split(
        [p.numel() for p in net.parameters()]
    )
    weight, bias = weight.view_as(net.head.weight), bias.view(-1)
    for p in (weight, bias):
        p.copy_(torch.zeros_like(p) if inner_head == "zero" else p.mean(0).expand_as(p).clone())
    expected = torch.cat([*body, weight.flatten(), bias])
    assert (slopes - expected).norm() < 1e-9 * expected.norm()
    _, learnt = gradient(net, tasks, first_order=order == "fomaml")
    assert (slopes - learnt).norm() > 1e-3 * learnt.norm()


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "finetune"])
def test_sharpness_aware_gradients_are_those_uphill(algorithm):
    """Two runs side by side: each climbs by the radius along its own gradient."""
    torch.manual_seed(0)
    nets = [ConvNet((1, 28, 28), 3, filters=4).double() for _ in range(2)]
    theta = torch.stack([flatten(net).detach() for net in nets])
    x = torch.rand(4 if algorithm != "finetune" else 2, 6, 1, 28, 28, dtype=torch.float64)
    y = torch.arange(3).repeat(len(x), 2)
    settings = preset("smoke", "glyphs", ways=3, algorithm=algorithm)

    def plain_gradient(theta):
        theta = theta.clone().requires_grad_()
        values = GRADIENTS[algorithm](nets[0], theta, x, y, settings, None)
        return values["train_loss"], theta.grad

    losses, here = plain_gradient(theta)
    _, uphill = plain_gradient(theta + 0.3 * here / here.norm(dim=1, keepdim=True))
    sam = replace(settings, sam_radius=0.3)
    values, slopes = add_gradient(nets[0], theta.clone().requires_grad_(), x, y, sam, None)
    torch.testing.assert_close(slopes, uphill, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(values["train_loss"], losses, rtol=1e-12, atol=0)
    assert (slopes - here).norm() > 1e-2 * here.norm()
    _, plain = add_gradient(nets[0], theta.clone().requires_grad_(), x, y, settings, None)
    assert torch.equal(plain, here)


def test_supervised_gradient_is_cross_entropys(setup):
    net, tasks = setup
    x, y = tasks.query_x[0], tasks.query_y[0]
    net.zero_grad()
    loss = supervised_gradient(net, x, y)
    params = [p.detach().requires_grad_() for p in net.parameters()]
    expected = F.cross_entropy(_plain(params, x), y)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for p, g in zip(net.parameters(), torch.autograd.grad(expected, params), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_orders_differ(setup):
    _, second = gradient(*setup)
    _, first = gradient(*setup, first_order=True)
    assert (first - second).norm() > 0.05 * second.norm()


def test_float32_is_as_exact_as_plain_float32():
    """On printed characters, whose flat background and few edges are hard on variances."""
    pool = image_sets.load_images("glyphs", "test")
    for seed in range(5):
        torch.manual_seed(seed)
        single, double = ConvNet((1, 28, 28), 5, 64), ConvNet((1, 28, 28), 5, 64).double()
        double.load_state_dict(single.state_dict())
        tasks = sample_tasks(pool, 2, 5, 1, 1, np.random.default_rng(seed))
        _, in_float32 = gradient(single, tasks)
        exact = replace(tasks, support_x=tasks.support_x.double(), query_x=tasks.query_x.double())
        _, expected = gradient(double, exact)
        assert (in_float32 - expected).norm() < 1e-5 * expected.norm()


CHUNKS = [
    ({}, 32),
    ({"queries": 15}, 16),
    ({"ways": 20}, 16),
    ({"ways": 20, "queries": 15}, 4),
    ({"meta_batch": 3}, 3),
]


@pytest.mark.parametrize(("options", "chunk"), CHUNKS)
def test_chunk_is_a_rule(options, chunk):
    """By hand: 2**20 / 784 over 10, 80, 40, 320, down to a power of two, at most the batch."""
    assert (
        chunk_size(preset("paper", "omniglot", **options), (28, 28), torch.device("cpu")) == chunk
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_control_goes_no_further_than_the_regulariser_where_that_goes_nowhere(setup, seed):
    """One task is its own mean direction: there is nothing to turn to."""
    net, tasks = setup
    net.float()
    single_task = Tasks(
        tasks.support_x[:1].float(),
        tasks.support_y[:1],
        tasks.query_x[:1].float(),
        tasks.query_y[:1],
    )
    torch.manual_seed(seed)
    net.blocks.apply(
        lambda block: [torch.nn.init.normal_(p, std=0.3) for p in block.parameters(recurse=False)]
    )
    for name in ("adapted", "random"):
        options = {"regulariser": name, "gamma": 0.5, "direction": direction(net, seed)}
        outcome, _ = gradient(net, single_task, **options)
        assert float(outcome.moves) < 1e-4


RUNS = [("finetune", "none")] + [
    (order, name) for order in ("maml", "fomaml") for name in ALGORITHMS[order].regularisers
]


@pytest.mark.parametrize(("order", "regulariser"), RUNS)
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_runs_side_by_side_have_the_gradients_that_they_have_alone(order, regulariser, chunk):
    """Three runs with weights, tasks and directions of their own; chunks that divide or do not."""
    rng = np.random.default_rng(1)
    nets, losses, moves, gradients = [], [], [], []
    x = torch.from_numpy(rng.random((9, 6, 1, 28, 28)))
    y = torch.arange(3).repeat(9, 2)
    tasks = Tasks(x[:, :3], y[:, :3], x, y)
    options = {"first_order": order == "fomaml", "chunk": chunk, "regulariser": regulariser}
    options |= {"gamma": 0.0 if regulariser == "none" else 0.5}
    for seed in range(3):
        torch.manual_seed(seed)
        nets.append(ConvNet((1, 28, 28), 3, filters=4).double())
    directions = torch.cat([direction(net, seed) for seed, net in enumerate(nets)])
    theta = torch.stack([flatten(net).detach() for net in nets]).requires_grad_()
    for run, net in enumerate(nets):
        net.zero_grad()
        rows = slice(3 * run, 3 * run + 3)
        if order == "finetune":
            losses.append(supervised_gradient(net, x[run], y[run]).view(1))
        else:
            outcome = meta_gradient(
                net, tasks[rows], 0.3, 2, **options, direction=directions[run : run + 1]
            )
            losses.append(outcome.losses)
            moves.append(outcome.moves)
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    if order == "finetune":
        together = supervised_gradient(nets[0], x[:3], y[:3], theta)
    else:
        outcome = meta_gradient(
            nets[0], tasks, 0.3, 2, **options, direction=directions, theta=theta
        )
        together = outcome.losses
        torch.testing.assert_close(outcome.moves, torch.cat(moves), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(together, torch.cat(losses), rtol=1e-12, atol=0)
    for mine, expected in zip(theta.grad, gradients, strict=True):
        assert (mine - expected).norm() < 1e-12 * expected.norm()


class _TwoLayers(nn.Module):
    """A linear body and a linear head; the body is parameters that are frozen, or constants."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        body, head = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((4, 6), (3, 4))
        )
        if constant:
            self.register_buffer("body", body)
        else:
            self.body = nn.Parameter(body, requires_grad=False)
        self.head = nn.Parameter(head)

    def forward(self, x):
        return (x.flatten(1) @ self.body.T).tanh() @ self.head.T


@pytest.mark.parametrize("regulariser", CHOICES["regulariser"])
def test_no_regulariser_moves_what_is_frozen(regulariser):
    """Losses, moves and gradients are those of a network in which it is a constant."""
    x = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tasks = Tasks(x, torch.arange(3).repeat(4, 1), x.flip(2), torch.arange(3).repeat(4, 1))
    options = {"regulariser": regulariser, "gamma": 0.0 if regulariser == "none" else 0.5}
    options |= {"first_order": False, "chunk": 2}
    frozen, constant = _TwoLayers(constant=False), _TwoLayers(constant=True)
    other = random_directions(1, 36, 3)
    outcome = meta_gradient(frozen, tasks, 0.3, 2, direction=other, **options)
    expected = meta_gradient(constant, tasks, 0.3, 2, direction=other[:, 24:], **options)
    for ours, theirs in zip(outcome, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(frozen.head.grad, constant.head.grad, rtol=1e-12, atol=1e-14)
    assert frozen.body.grad is None


def test_runs_have_as_many_tasks_each(setup):
    net, tasks = setup
    theta = flatten(net).detach().expand(2, -1)
    with pytest.raises(ValueError, match="5 tasks for 2 runs"):
        meta_gradient(net, tasks, 0.3, 2, first_order=True, chunk=5, theta=theta)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regulariser": "adaptd", "gamma": 0.5}, "'adaptd': use one of none, adapted"),
        ({"regulariser": "adapted"}, "gamma 0.0"),
        ({"gamma": 1.0}, "'none' with gamma 1.0"),
        ({"regulariser": "adapted", "gamma": float("nan")}, "gamma nan"),
        ({"regulariser": "random", "gamma": 0.5}, "without a direction"),
        ({"regulariser": "outer", "gamma": 0.5, "first_order": True}, "no effect in first order"),
        ({"chunk": 0}, "chunk is 0"),
        ({"inner_head": "ones"}, "inner_head is 'ones': use 'learnt', 'zero' or 'shared'"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    net = ConvNet((1, 28, 28), 3, filters=2)
    tasks = Tasks(torch.rand(2, 3, 1, 28, 28), torch.arange(3).repeat(2, 1), *[None] * 2)
    with pytest.raises(ValueError, match=words):
        meta_gradient(net, tasks, 0.1, 1, **({"first_order": False, "chunk": 2} | options))
