"""Measures of a network against a plain loop over tasks, in float64, and dense Hessians."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metanb.data.tasks import Tasks
from metanb.labels import MEASURES, Measure
from metanb.landscape import measures, task_stats
from metanb.landscape.coherence import trajectory_coherence
from metanb.landscape.hessian import adaptive_sharpness, hessian_norms
from metanb.landscape.measures import measure
from metanb.landscape.solutions import starting_points
from metanb.maml.inner_loop import flatten, losses
from metanb.maml.network import ConvNet
from metanb.settings import preset

WAYS, TASKS = 3, 10  # more tasks than are measured at once


def tasks(shots, seed=0):
    rng = np.random.default_rng(seed)
    images = {n: torch.from_numpy(rng.random((TASKS, WAYS * n, 1, 28, 28))) for n in (shots, 4)}
    labels = {n: torch.arange(WAYS).repeat_interleave(n).repeat(TASKS, 1) for n in (shots, 4)}
    return Tasks(images[shots], labels[shots], images[4], labels[4])


def settings(**options):
    return preset("smoke", "glyphs", WAYS, filters=3, **options)


def new_net(outputs=WAYS):
    torch.manual_seed(0)
    return ConvNet((1, 28, 28), outputs, 3).double()


def by_hand(net, tasks, starts, lr, steps):
    """Means over tasks by autograd alone, task task at a time, and the vectors of all tasks."""
    names = [name for name, _ in net.named_parameters()]
    values_by_name = {}
    sizes = [p.numel() for p in net.parameters()]
    rows = {"displacement": [], "gradient": [], "uniform": []}
    for t in range(len(tasks)):
        shapes = [p.shape for p in net.parameters()]
        theta = [
            part.view(shape).clone().requires_grad_()
            for part, shape in zip(starts[t].split(sizes), shapes, strict=True)
        ]

        def forward(params, x):
            return torch.func.functional_call(net, dict(zip(names, params, strict=True)), (x,))

        x, y = tasks.support_x[t], tasks.support_y[t]
        output = forward(theta, x)
        p = output.softmax(-1)
        even = torch.full_like(output, 1 / WAYS)
        for name, target in (("gradient", y), ("uniform", even)):
            slopes = torch.autograd.grad(F.cross_entropy(output, target), theta, retain_graph=True)
            rows[name].append(torch.cat([slope.flatten() for slope in slopes]))
        params = theta
        for _ in range(steps):
            slopes = torch.autograd.grad(F.cross_entropy(forward(params, x), y), params)
            params = [
                (q - lr * g).detach().requires_grad_() for q, g in zip(params, slopes, strict=True)
            ]
        rows["displacement"].append(
            torch.cat([(q - s).flatten() for q, s in zip(params, theta, strict=True)])
        )
        after = forward(params, tasks.query_x[t])
        values = {
            "support_loss_before": F.cross_entropy(output, y),
            "entropy_before": torch.distributions.Categorical(p).entropy().mean(),
            "majority_before": torch.tensor(np.bincount(p.argmax(1)).max() / len(y)),
            "support_loss": F.cross_entropy(forward(params, x), y),
            "query_loss": F.cross_entropy(after, tasks.query_y[t]),
            "query_accuracy": (after.argmax(1) == tasks.query_y[t]).double().mean(),
            "distance": rows["displacement"][-1].norm(),
        }
        for name, value in values.items():
            values_by_name.setdefault(name, []).append(value.item())
    means = {name: np.mean(values) for name, values in values_by_name.items()}
    return means, {name: torch.stack(vectors) for name, vectors in rows.items()}


def pairs(rows):
    return np.mean(
        [(a @ b).item() for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    )


@pytest.mark.parametrize("algorithm", ["maml", "finetune"])
def test_measures_are_those_of_a_plain_loop(algorithm):
    run_settings = settings(algorithm=algorithm, shots=2, inner_steps=2, test_steps=2)
    net, test, valid = new_net(WAYS if algorithm == "maml" else 11), tasks(2), tasks(2, seed=1)
    stats = measure(net, test, valid, run_settings)
    learner, theta = starting_points(net, run_settings, TASKS, stream=0)
    # so that they are measured in chunks
    assert TASKS > task_stats.tasks_at_once(torch.device("cpu"))
    expected, rows = by_hand(learner, test, theta, run_settings.inner_lr, 2)
    for name, value in expected.items():
        tolerance = 1e-7 if "accuracy" in name else 1e-9
        assert stats[name].mean == pytest.approx(value, rel=tolerance), name
        assert stats[name].n == TASKS
    moved = rows["displacement"] / rows["displacement"].norm(dim=1, keepdim=True)
    head = sum(p.numel() for p in learner.head.parameters())
    gradient, uniform = rows["gradient"], rows["uniform"]
    coherences = {
        "trajectory_coherence": moved,
        "trajectory_coherence_head": moved[:, -head:],
        "trajectory_coherence_body": moved[:, :-head],
        "gradient_coherence": gradient,
        "gradient_coherence_uniform": uniform,
        "gradient_coherence_label": gradient - uniform,
        "gradient_cosine": gradient / gradient.norm(dim=1, keepdim=True),
    }
    for name, vectors in coherences.items():
        assert stats[name].mean == pytest.approx(pairs(vectors), rel=1e-7, abs=1e-12), name
    learner, theta = starting_points(net, run_settings, TASKS, stream=1)
    of_valid, _ = by_hand(learner, valid, theta, run_settings.inner_lr, 2)
    assert stats["valid_accuracy"].mean == pytest.approx(of_valid["query_accuracy"], rel=1e-7)
    squares = sum(
        float(value) ** 2 for block in net.blocks for value in block.weight.detach().flatten()
    )
    assert stats["body_norm"].mean == pytest.approx(squares**0.5)
    assert stats["head_norm"].mean == pytest.approx(
        np.linalg.norm(net.head.weight.detach().numpy())
    )


def test_shares_of_coherence_add_up():
    vectors = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, *parts = (
        trajectory_coherence(vectors, part)[0].mean
        for part in (slice(None), slice(7), slice(7, None))
    )
    assert whole == pytest.approx(sum(parts))


def flatness_setup():
    net, two_tasks = new_net(), tasks(1)[0:2]

    def loss(params):
        return losses(net, params, two_tasks.support_x, two_tasks.support_y)

    return net, loss, flatten(net).detach().expand(2, -1)


def test_adaptive_sharpness_is_the_norm_of_the_rescaled_dense_hessian():
    """Two tasks with parameters of their own; Hessians by torch, eigenvalues by numpy."""
    _, loss, params = flatness_setup()
    params = params * torch.tensor([[1.0], [1.3]], dtype=torch.float64)
    result = adaptive_sharpness(loss, params, tol=1e-6)
    for t in range(2):
        hessian = torch.autograd.functional.hessian(
            lambda p, t=t: loss(torch.stack([p, p]))[t], params[t]
        )
        rescaled = params[t][:, None] * hessian * params[t]
        assert float(result.norms[t]) == pytest.approx(
            np.abs(np.linalg.eigvalsh(rescaled)).max(), rel=1e-5
        )


def test_flatness_is_measured_where_the_tasks_end():
    """Both measures of flatness are means over dense Hessians, where the plain loop ends."""
    net, two_tasks, run_settings = new_net(), tasks(1)[:2], settings(inner_lr=0.2)
    stats = measure(net, two_tasks, two_tasks, run_settings)
    theta = flatten(net).detach().expand(2, -1)
    _, vectors = by_hand(net, two_tasks, theta, run_settings.inner_lr, 1)
    ends = theta + vectors["displacement"].detach()
    norms, sharpnesses = [], []
    for t in range(2):
        task = two_tasks[t : t + 1]
        hessian = torch.autograd.functional.hessian(
            lambda p, task=task: losses(net, p[None], task.support_x, task.support_y)[0], ends[t]
        )
        norms.append(np.linalg.norm(hessian.numpy(), 2))
        sharpnesses.append(np.linalg.norm((ends[t][:, None] * hessian * ends[t]).numpy(), 2))
    # its tolerance is 1e-3
    assert stats["hessian_norm"].mean == pytest.approx(np.mean(norms), rel=2e-3)
    assert stats["adaptive_sharpness"].mean == pytest.approx(np.mean(sharpnesses), rel=2e-3)
    assert stats["hessian_norm"].n == 2


def test_adaptive_sharpness_ignores_the_scale_that_batch_norm_removes():
    """Filters ten times larger: the same function up to batch norm's epsilon, another norm."""
    net, loss, params = flatness_setup()
    before = (
        hessian_norms(loss, params).norms,
        adaptive_sharpness(loss, params, tol=1e-5).norms,
        loss(params),
    )
    with torch.no_grad():
        for block in net.blocks:
            block.weight.mul_(10)
    params = flatten(net).detach().expand(2, -1)
    after = (
        hessian_norms(loss, params).norms,
        adaptive_sharpness(loss, params, tol=1e-5).norms,
        loss(params),
    )
    assert torch.allclose(after[2], before[2], rtol=2e-2)  # the epsilon
    assert torch.allclose(after[1], before[1], rtol=5e-2)
    assert (after[0] < 0.9 * before[0]).all()


def test_mamls_starts_are_theta():
    net = new_net()
    learner, theta = starting_points(net, settings(), 4, stream=0)
    assert learner is net and torch.equal(theta, flatten(net).detach().expand(4, -1))


@pytest.mark.parametrize("head", ["fresh", "shared", "zero"])
def test_finetunings_heads(head):
    net, run_settings = new_net(11), settings(algorithm="finetune", test_head=head)
    learner, theta = starting_points(net, run_settings, 4, stream=0)
    n_head = sum(p.numel() for p in learner.head.parameters())
    body = torch.cat([p.detach().flatten() for p in net.blocks.parameters()])
    assert learner.ways == WAYS and torch.equal(theta[:, :-n_head], body.expand(4, -1))
    heads = theta[:, -n_head:]
    different = len({tuple(row.tolist()) for row in heads})
    assert different == {"fresh": 4, "shared": 1, "zero": 1}[head]
    assert (heads == 0).all() == (head == "zero")
    # the same after each epoch
    assert torch.equal(starting_points(net, run_settings, 6, stream=0)[1][:4], theta)
    if head != "zero":
        assert not torch.equal(starting_points(net, run_settings, 4, stream=1)[1], theta)
        bound = 1 / np.sqrt(net.head.in_features)  # nn.Linear's own start
        assert heads.abs().max() <= bound and heads.abs().max() > 0.8 * bound


def test_measures_of_ones_own_are_checked():
    with pytest.raises(ValueError, match="there is a measure 'distance' already"):
        measures.per_task("distance")
    measures.per_task("wrong_shape", Measure("x"))(lambda at: at.gradient)
    try:
        with pytest.raises(ValueError, match=r"'wrong_shape' gave \[8, \d+\] for 8 tasks"):
            measure(new_net(), tasks(1), tasks(1), settings(), ["wrong_shape"])
    finally:
        del measures.PER_TASK["wrong_shape"], MEASURES["wrong_shape"]


def test_some_measures_are_those_of_all():
    everything = measure(new_net(), tasks(1), tasks(1), settings())
    names = ["distance", "body_norm", "valid_accuracy", "query_loss"]
    assert measure(new_net(), tasks(1), tasks(1), settings(), names) == {
        name: everything[name] for name in everything if name in names
    }
    assert list(everything) == measures.known_measures()
