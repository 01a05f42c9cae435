"""Measures of a network against a plain loop over tasks, in float64, and dense Hessians."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from metanb.data.tasks import Tasks
from metanb.labels import MEASURES, Measure
from metanb.landscape import measures, task_stats
from metanb.landscape.coherence import trajectory_coherence
from metanb.landscape.hessian import LandscapeError, adaptive_sharpness, hessian_norms
from metanb.landscape.measures import measure
from metanb.landscape.solutions import ENDS_TOL, starting_points, without_common_answer
from metanb.maml.inner_loop import flatten, logits, losses
from metanb.maml.network import ConvNet
from metanb.maml.per_task import quarters_of_body
from metanb.runs import training
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
    assert TASKS > task_stats.tasks_at_once(torch.device("cpu"), 1)
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


@pytest.fixture(scope="module")
def at_the_ends():
    """A network and two tasks; where the plain loop takes these; the dense Hessians there."""
    net, two_tasks = new_net(), tasks(1)[:2]
    theta = flatten(net).detach().expand(2, -1)
    _, vectors = by_hand(net, two_tasks, theta, 0.2, 1)
    ends = theta + vectors["displacement"].detach()
    hessians = []
    for t in range(2):
        task = two_tasks[t : t + 1]
        hessian = torch.autograd.functional.hessian(
            lambda p, task=task: losses(net, p[None], task.support_x, task.support_y)[0], ends[t]
        )
        hessians.append(hessian.numpy())
    return net, two_tasks, ends.numpy(), hessians


def test_flatness_is_measured_where_the_tasks_end(at_the_ends):
    """Both measures of flatness are means over dense Hessians, where the plain loop ends."""
    net, two_tasks, ends, hessians = at_the_ends
    names = ["hessian_norm", "adaptive_sharpness"]
    stats = measure(net, two_tasks, two_tasks, settings(inner_lr=0.2), names)
    norms = [np.linalg.norm(hessian, 2) for hessian in hessians]
    sharpnesses = [
        np.linalg.norm(end[:, None] * hessian * end, 2)
        for end, hessian in zip(ends, hessians, strict=True)
    ]
    # its tolerance is 1e-3
    assert stats["hessian_norm"].mean == pytest.approx(np.mean(norms), rel=2e-3)
    assert stats["adaptive_sharpness"].mean == pytest.approx(np.mean(sharpnesses), rel=2e-3)
    assert stats["hessian_norm"].n == 2


def test_measures_within_a_task_are_those_of_plain_gradients():
    """Support and query gradient at theta_s by autograd; spread and curvature step by step."""
    net, four_tasks = new_net(), tasks(1)[:4]
    run_settings = settings(inner_lr=0.3, test_steps=3)
    theta = flatten(net).detach()

    def loss(params, x, y):
        return losses(net, params[None], x[None], y[None])[0]

    def gradient(params, x, y):
        return torch.autograd.functional.jacobian(lambda p: loss(p, x, y), params)

    def adapted_path(task, y):
        path = [theta]
        for _ in range(run_settings.test_steps):
            slope = gradient(path[-1], task.support_x[0], y)
            path.append(path[-1] - run_settings.inner_lr * slope)
        return path

    values = {"gradient_norm": [], "within_product": [], "within_cosine": []}
    values |= {"path_curvature": [], "permutation_spread": []}
    for t in range(4):
        task = four_tasks[t : t + 1]
        x, y = task.support_x[0], task.support_y[0]
        support = gradient(theta, x, y)
        query = gradient(theta, task.query_x[0], task.query_y[0])
        values["gradient_norm"].append(support.norm())
        values["within_product"].append(support @ query)
        values["within_cosine"].append(support @ query / support.norm() / query.norm())

        curvatures = []
        for params in adapted_path(task, y)[:-1]:
            g = gradient(params, x, y)
            _, hg = torch.autograd.functional.hvp(lambda p, x=x, y=y: loss(p, x, y), params, g)
            curvatures.append(g @ hg / (g @ g))
        values["path_curvature"].append(torch.stack(curvatures).mean())

        accuracies = []
        for permuted in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):  # all shifts of three classes
            permuted = torch.tensor(permuted)
            end = adapted_path(task, permuted[y])[-1]
            answers = logits(net, end[None], task.query_x)[0].argmax(1)
            accuracies.append((answers == permuted[task.query_y[0]]).double().mean().item())
        values["permutation_spread"].append(torch.tensor(np.std(accuracies, ddof=1)))
    stats = measure(net, four_tasks, four_tasks, run_settings, list(values))
    for name, by_task in values.items():
        # accuracies are taken in float32
        tolerance = 1e-6 if name == "permutation_spread" else 1e-9
        assert stats[name].mean == pytest.approx(
            float(torch.stack(by_task).mean()), rel=tolerance
        ), name
    assert stats["permutation_spread"].mean > 0


def test_ends_of_the_spectrum_are_those_of_dense_hessians(at_the_ends):
    net, two_tasks, _, hessians = at_the_ends
    names = ["hessian_smallest", "hessian_largest"]
    stats = measure(net, two_tasks, two_tasks, settings(inner_lr=0.2), names)
    spectra = np.linalg.eigvalsh(np.stack(hessians))
    margin = ENDS_TOL * np.abs(spectra).max(1).mean()
    assert stats["hessian_largest"].mean == pytest.approx(spectra[:, -1].mean(), abs=margin)
    assert stats["hessian_smallest"].mean == pytest.approx(spectra[:, 0].mean(), abs=margin)
    assert spectra[:, 0].mean() < -2 * margin  # there is a negative end to find


def test_shares_of_coherence_by_block_add_up_to_the_bodys():
    net, body = new_net(), "trajectory_coherence_body"
    names = [f"{body}{i}" for i in (1, 2, 3, 4)]
    stats = measure(net, tasks(1), tasks(1), settings(), [*names, body])
    shares = [stats[name].mean for name in names]
    assert sum(shares) == pytest.approx(stats[body].mean)
    assert len(set(shares)) == 4
    sizes = [sum(p.numel() for p in block.parameters()) for block in net.blocks]
    slices = quarters_of_body(net)
    assert [part.stop - part.start for part in slices] == sizes
    assert slices[-1].stop == flatten(net).numel() - sum(p.numel() for p in net.head.parameters())


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


@pytest.mark.parametrize("options", [{"inner_head": "zero"}, {"test_head": "zero"}])
def test_a_head_of_zeros_stands_before_the_inner_loop(options):
    net = new_net()
    _, starts = starting_points(net, settings(**options), 4, stream=0)
    n_head = sum(p.numel() for p in net.head.parameters())
    assert torch.equal(starts[:, :-n_head], flatten(net).detach()[:-n_head].expand(4, -1))
    assert (starts[:, -n_head:] == 0).all()


def test_a_centred_head_answers_the_mean_image_alike():
    """Two runs: the mean feature by the blocks themselves, task after task."""
    nets, seen = [new_net(), new_net()], tasks(2)
    with torch.no_grad():
        flat = torch.randn(flatten(nets[1]).shape, dtype=torch.float64)
        torch.nn.utils.vector_to_parameters(flat, nets[1].parameters())
    before = torch.stack([flatten(net).detach() for net in nets])
    after = torch.stack([without_common_answer(nets[0], row, seen) for row in before])
    n_head = sum(p.numel() for p in nets[0].head.parameters())
    assert torch.equal(after[:, :-n_head], before[:, :-n_head])
    for net, row in zip(nets, after, strict=True):
        features = []
        for t in range(TASKS):
            x = torch.cat([seen.support_x[t], seen.query_x[t]])
            x = x.permute(0, 2, 3, 1)[None]
            for block in net.blocks:
                x = block(x)
            features.append(x[0].mean((1, 2)).detach())
        mean = torch.cat(features).mean(0)
        old = net.head.weight.detach()
        weight, bias = row[-n_head:].split([old.numel(), WAYS])
        weight = weight.view_as(old)
        assert (weight @ mean).abs().max() < 1e-10 * (old @ mean).abs().max()
        assert (bias == 0).all()
        # only that direction is gone
        other = torch.randn(len(mean), dtype=torch.float64)
        other -= other @ mean / (mean @ mean) * mean
        torch.testing.assert_close(weight @ other, old @ other)


def test_a_centred_head_takes_tasks_of_meta_train_classes():
    centred = settings(test_head="centred")
    for take in (
        lambda: measure(new_net(), tasks(1), tasks(1), centred),
        lambda: starting_points(new_net(), centred, 1, stream=0),
    ):
        with pytest.raises(
            ValueError, match="test_head='centred' needs .*: put the weights of"
        ) as e:
            take()
        assert "\n" not in str(e.value)


def test_a_mean_feature_of_0_leaves_the_heads_weight():
    class Zeros(torch.nn.Module):
        def forward(self, x):
            return 0 * x

    head = torch.nn.Linear(784, WAYS)
    net = torch.nn.Sequential(torch.nn.Flatten(), Zeros(), head).double()
    weights = without_common_answer(net, flatten(net), tasks(1))
    assert torch.equal(weights[:-WAYS], head.weight.detach().flatten())
    assert not weights[-WAYS:].any()


def test_only_a_linear_head_can_be_centred():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, WAYS, bias=False)).double()
    with pytest.raises(ValueError, match=r"head of Sequential is no weight \[N, features\] with"):
        without_common_answer(net, flatten(net), tasks(1))


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
        measures.per_task("distance")(lambda at: at.gradient)
    measures.per_task("wrong_shape", Measure("x"))(lambda at: at.gradient)
    try:
        with pytest.raises(ValueError, match=r"'wrong_shape' gave \[8, \d+\] for 8 tasks"):
            measure(new_net(), tasks(1), tasks(1), settings(), ["wrong_shape"])
        measures.PER_TASK["wrong_shape"] = lambda at: [0.0] * 8
        with pytest.raises(ValueError, match="'wrong_shape' gave a list for 8 tasks"):
            measure(new_net(), tasks(1), tasks(1), settings(), ["wrong_shape"])
    finally:
        del measures.PER_TASK["wrong_shape"], MEASURES["wrong_shape"]
    measures.over_tasks("no_stat", Measure("x"))(lambda vectors: 0.0)
    try:
        with pytest.raises(ValueError, match="'no_stat' gave a float: give a Stat"):
            measure(new_net(), tasks(1), tasks(1), settings(), ["no_stat"])
    finally:
        del measures.OVER_TASKS["no_stat"], MEASURES["no_stat"]


@pytest.mark.parametrize("register", [measures.per_task, measures.over_tasks])
def test_names_of_measures_are_checked(register):
    for name in ("", "NA", "my measure", "a,b", "1st", "x" * 61, 5, None, lambda at: at.gradient):
        with pytest.raises(ValueError, match="a measure .*: use small letters") as error:
            register(name)
        assert "\n" not in str(error.value)
    for name in ("nan", "null"):
        read = pd.read_csv(io.StringIO(f"measure,mean\n{name},1\n"))
        assert read.measure.isna().all()
        with pytest.raises(ValueError, match=f"{name}' is a missing value in a table"):
            register(name)
    taken = ["train_loss", "relative_move", *training.FINAL_MEASURES, *measures.known_measures()]
    for name in taken:
        with pytest.raises(ValueError, match=f"there is a measure '{name}' already"):
            register(name)(lambda at: at.gradient)


def test_settings_of_the_inner_loop_count_for_a_module_of_ones_own():
    """Each setting that `measure` lists changes a measure, and none besides them does."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.Linear(6, 3))
    x, y = torch.rand(2, 4, 3, 1, 8, 8), torch.arange(3).expand(4, 3)
    given = Tasks(x[0], y, x[1], y)
    base = preset("smoke", "glyphs", 3)
    others = {"inner_lr": 0.1, "test_steps": 2, "inner_loss": "sum", "test_head": "zero"}
    others |= {"inner_head": "shared", "adapts": "head"}
    unused = {"filters": 9, "head_init": "zero", "inner_steps": 7, "seed": 3, "algorithm": "fomaml"}

    def distance(**changes):
        changed = replace(base, **changes)
        return measure(net, given, given, changed, ["distance"])["distance"].mean

    assert all(distance(**{name: value}) != distance() for name, value in others.items())
    assert all(distance(**{name: value}) == distance() for name, value in unused.items())


@pytest.mark.parametrize("runs", [1, 2])
def test_an_error_names_the_task_and_not_its_row_among_those_measured_at_once(runs):
    """With two runs the second is broken: its first task is row 10, the third of its chunk."""
    given, net = tasks(1), new_net()
    weights = flatten(net).detach().expand(runs, -1).clone()
    if runs == 1:
        given.support_x[9] = torch.nan
    else:
        weights[1] = torch.nan
    together = [settings(seed=seed) for seed in range(runs)]
    with pytest.raises(LandscapeError, match=f"^task {9 if runs == 1 else 0}: loss is nan"):
        measures.measure_together(net, weights, given, given, together, ["hessian_norm"])


def test_short_gradients_have_the_cosine_of_long_ones():
    gradient, query_gradient = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0))
    cosines = []
    for scale in (1.0, 2.0**-45):  # the latter makes lengths of 1e-12
        at = SimpleNamespace(gradient=scale * gradient, query_gradient=scale * query_gradient)
        cosines.append(measures.PER_TASK["within_cosine"](at))
    assert torch.equal(cosines[0], F.cosine_similarity(gradient, query_gradient))
    torch.testing.assert_close(*cosines)


def test_some_measures_are_those_of_all():
    everything = measure(new_net(), tasks(1), tasks(1), settings())
    names = ["distance", "body_norm", "valid_accuracy", "query_loss"]
    assert measure(new_net(), tasks(1), tasks(1), settings(), names) == {
        name: everything[name] for name in everything if name in names
    }
    assert list(everything) == measures.known_measures()
