"""Any module with weights per task, to second order, in float64, against a plain loop over tasks.

The loop calls the module itself, task by task: no map, no `higher`, torch's own kernels.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

from metanb.data.tasks import Tasks
from metanb.landscape.measures import measure
from metanb.maml import per_task
from metanb.maml.outer_loop import meta_gradient as inner_loop_gradient
from metanb.maml.per_task import NetworkError, for_tasks
from metanb.maml.per_task import _plain_attention as plain_attention
from metanb.settings import preset

T, B, CLASSES = 3, 6, 3
LABELS = torch.arange(B).remainder(CLASSES).expand(T, B)


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(T, B, *shape, generator=generator, dtype=torch.float64)


class Pooled(nn.Module):
    """A sequence model with a head on the mean over time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        out = self.layer(x)
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


class Residual(nn.Module):
    """Two convolutions and a skip connection."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        x = self.first(x)
        x = F.relu(x + self.second(F.relu(self.norm(x))))
        return self.head(x.mean((2, 3)))


def convolutional(*norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
    )


def tied() -> nn.Module:
    net = nn.Sequential(
        nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 3)
    )
    net[2].weight = net[0].weight
    return net


IMAGE = images(3, 8, 8)
MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)), images(10)),
    "tied weights": (tied, images(10)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 3)),
        images(10),
    ),
    "cnn": (convolutional, IMAGE),
    "cnn, batch norm": (lambda: convolutional(nn.BatchNorm2d(8, track_running_stats=False)), IMAGE),
    "cnn, running statistics": (lambda: convolutional(nn.BatchNorm2d(8)).eval(), IMAGE),
    "cnn, group norm": (lambda: convolutional(nn.GroupNorm(2, 8)), IMAGE),
    "cnn, instance norm": (lambda: convolutional(nn.InstanceNorm2d(8, affine=True)), IMAGE),
    "residual": (lambda: Residual(nn.BatchNorm2d(8, track_running_stats=False)), IMAGE),
    "residual, running statistics": (lambda: Residual(nn.BatchNorm2d(8)).eval(), IMAGE),
    "transformer": (
        lambda: Pooled(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)),
        images(5, 8),
    ),
    "transformer, eval": (
        lambda: Pooled(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval(),
        images(5, 8),
    ),
    "dropout, eval": (
        lambda: nn.Sequential(nn.Linear(10, 16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 3)).eval(),
        images(10),
    ),
}  # each: how it is built, and its inputs


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, x = MODULES[name]
    net = make().double()
    for buffer in net.buffers():  # running statistics other than their first values
        if buffer.is_floating_point():
            buffer.add_(0.5 * torch.rand_like(buffer))
    return net, x


def starts(net: nn.Module) -> list[torch.Tensor]:
    """Weights of each task, which differ."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            p.detach() + 0.05 * torch.randn(T, *p.shape, generator=generator, dtype=p.dtype)
        ).requires_grad_()
        for p in net.parameters()
    ]


def meta_gradient(outputs, weights) -> torch.Tensor:
    """The gradient through two SGD steps, of the sum of the tasks' losses after them: flat."""
    fast = weights
    for _ in range(2):
        loss = sum(map(F.cross_entropy, outputs(fast), LABELS))
        slopes = torch.autograd.grad(loss, fast, create_graph=True)
        fast = [w - 0.1 * slope for w, slope in zip(fast, slopes, strict=True)]
    loss = sum(map(F.cross_entropy, outputs(fast), LABELS))
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, weights)])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.filterwarnings("ignore:.*scaled_dot_product_attention")
def test_the_inner_loop_takes_any_module(name, first_order):
    """`meta_gradient`, by `higher`, beside plain autograd on the module itself, task by task."""
    net, x = build(name)
    tasks = Tasks(x, LABELS, x.flip(1), LABELS)
    inner_loop_gradient(net, tasks, 0.1, 2, first_order=first_order, chunk=2)
    ours = torch.cat([p.grad.flatten() for p in net.parameters()])
    names, total = [name for name, _ in net.named_parameters()], 0
    for task in range(T):
        fast = list(net.parameters())

        def call(weights, images, task=task):
            outputs = functional_call(net, dict(zip(names, weights, strict=True)), (images[task],))
            return F.cross_entropy(outputs, LABELS[task])

        with plain_attention():
            for _ in range(2):
                slopes = torch.autograd.grad(call(fast, x), fast, create_graph=not first_order)
                fast = [w - 0.1 * slope for w, slope in zip(fast, slopes, strict=True)]
            total = total + call(fast, x.flip(1)) / T
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(net.parameters()))])
    assert float((ours - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("name", ["mlp", "residual", "transformer, eval"])
def test_measures_of_any_module(name):
    """Hessian norms beside dense Hessians; distance and losses by a plain loop."""
    net, x = build(name)
    settings = preset("smoke", "glyphs", ways=CLASSES, inner_lr=0.1, test_steps=2)
    stats = measure(net, Tasks(x, LABELS, x.flip(1), LABELS), Tasks(x, LABELS, x, LABELS), settings)
    names, shapes = zip(*[(name, p.shape) for name, p in net.named_parameters()], strict=True)
    norms, distances, losses = [], [], []
    for task in range(T):
        theta = torch.cat([p.detach().flatten() for p in net.parameters()])

        def loss(flat, images=x[task], task=task):
            parts = flat.split([shape.numel() for shape in shapes])
            weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            return F.cross_entropy(functional_call(net, weights, (images,)), LABELS[task])

        adapted = theta.clone().requires_grad_()
        with plain_attention():
            for _ in range(2):
                (slope,) = torch.autograd.grad(loss(adapted), adapted)
                adapted = (adapted - 0.1 * slope).detach().requires_grad_()
            dense = torch.autograd.functional.hessian(loss, adapted.detach())
            losses.append(float(loss(adapted, x[task].flip(0))))
        norms.append(float(torch.linalg.eigvalsh(dense).abs().max()))
        distances.append(float((adapted - theta).norm()))
    assert stats["hessian_norm"].mean == pytest.approx(sum(norms) / T, rel=1e-3)
    assert stats["distance"].mean == pytest.approx(sum(distances) / T, rel=1e-10)
    assert stats["query_loss"].mean == pytest.approx(sum(losses) / T, rel=1e-10)


@pytest.mark.parametrize("name", ["cnn, batch norm", "tied weights", "transformer, eval"])
def test_large_modules_loop_over_tasks_with_the_same_result(name, monkeypatch):
    net, x = build(name)
    tasks = Tasks(x, LABELS, x.flip(1), LABELS)
    gradients = []
    for limit in (per_task.LOOP_FROM, 0):
        monkeypatch.setattr(per_task, "LOOP_FROM", limit)
        net.zero_grad()
        inner_loop_gradient(net, tasks, 0.1, 2, first_order=False, chunk=T)
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-12


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:.*scaled_dot_product_attention")
def test_second_order_equals_a_loop_over_tasks(name):
    net, x = build(name)
    mapped, weights = for_tasks(net), starts(net)
    inner = [name for name, _ in net.named_parameters()]
    outer = [name for name, _ in mapped.named_parameters()]

    def together(fast):
        return functional_call(mapped, dict(zip(outer, fast, strict=True)), (x,))

    def one_by_one(fast):
        with plain_attention():
            return [
                functional_call(
                    net, dict(zip(inner, [w[task] for w in fast], strict=True)), (x[task],)
                )
                for task in range(T)
            ]

    by_map, by_loop = meta_gradient(together, weights), meta_gradient(one_by_one, weights)
    assert float((by_map - by_loop).norm() / by_loop.norm()) < 1e-12
    assert all(a is b for a, b in zip(mapped.parameters(), net.parameters(), strict=True))


def test_plain_weights_are_the_module_itself():
    net, x = build("cnn, running statistics")
    assert torch.allclose(for_tasks(net)(x[0]), net(x[0]), rtol=1e-12, atol=0)


def test_a_mapped_gradient_of_batch_norm_is_wrong():
    """Why the map is over `forward` alone. Should torch mend it, this test fails."""
    net, x = build("cnn, batch norm")
    names, weights = [name for name, _ in net.named_parameters()], starts(net)

    def loss(fast, x, y):
        return F.cross_entropy(functional_call(net, dict(zip(names, fast, strict=True)), (x,)), y)

    def after_a_step(fast, x, y):
        slopes = torch.func.grad(loss)(fast, x, y)
        return loss(tuple(w - 0.1 * slope for w, slope in zip(fast, slopes, strict=True)), x, y)

    mapped = vmap(after_a_step)(tuple(weights), x, LABELS).sum()
    one_by_one = sum(
        after_a_step(tuple(w[task] for w in weights), x[task], LABELS[task]) for task in range(T)
    )
    wrong, right = (
        torch.cat([slope.flatten() for slope in torch.autograd.grad(total, weights)])
        for total in (mapped, one_by_one)
    )
    assert torch.allclose(mapped, one_by_one, rtol=1e-12)  # the loss is right
    assert float((wrong - right).norm() / right.norm()) > 1e-6


def test_dropout_draws_for_each_task_anew():
    torch.manual_seed(0)
    net = for_tasks(nn.Sequential(nn.Linear(4, 200, bias=False), nn.Dropout()))
    weights = [p.expand(T, *p.shape) for p in net.parameters()]
    x = torch.ones(T, 1, 4)
    out = functional_call(net, {"p0": weights[0]}, (x,))
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_fused_recurrent_kernels_are_refused(kind):
    with pytest.raises(
        NetworkError, match=rf"layer 'layer' \({kind.__name__}\).*{kind.__name__}Cell"
    ):
        for_tasks(Pooled(kind(8, 8, batch_first=True)))


def test_running_statistics_are_refused_in_training_mode():
    net = convolutional(nn.BatchNorm2d(8))
    with pytest.raises(
        NetworkError, match=r"layer '1' \(BatchNorm2d\) updates running statistics.*eval"
    ):
        for_tasks(net)
    mapped = for_tasks(net.eval())
    net.train()
    with pytest.raises(NetworkError, match="updates running statistics"):
        mapped(images(3, 8, 8).float()[0])


def test_nothing_to_adapt_is_said():
    with pytest.raises(NetworkError, match="Flatten has no parameters"):
        for_tasks(nn.Flatten())


@pytest.mark.parametrize("inside", [True, False])
def test_a_layer_whose_weight_is_split_is_one_layer(inside):
    """By a weight norm: torch lists its bias and the parts of its weight under several names."""
    head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), head) if inside else head
    body = [False] * 2 if inside else []
    assert per_task.in_head(net) == body + [True] * 3
    assert per_task.head_size(net) == 2 + 2 + 8
