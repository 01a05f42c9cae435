"""Whatever takes a device keeps to it: on a second device in software, beside the CPU."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from metanb.bench import peers, units
from metanb.data.tasks import Tasks
from metanb.labels import ALGORITHMS
from metanb.landscape import hessian, portrait, solutions
from metanb.landscape.lanczos import random_directions
from metanb.maml.engine import Engine
from metanb.maml.inner_loop import flatten
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import meta_gradient
from metanb.runs import experiment, portraits
from metanb.runs import store as run_store
from metanb.settings import preset
from tests.support.second_device import SECOND, Elsewhere, second_device

TINY = preset(
    "smoke",
    "glyphs",
    ways=2,
    filters=2,
    iterations=2,
    epoch_iterations=1,
    test_tasks=2,
    test_queries=2,
    inner_steps=2,
    test_steps=2,
    final_tasks=2,
)
GRADIENTS = [
    (28, algorithm, name)
    for algorithm in ("fomaml", "maml")
    for name in ALGORITHMS[algorithm].regularisers
]
GRADIENTS += [(32, "fomaml", "none"), (32, "maml", "none")]  # pooling in place of strides


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes the second device the one that "auto" finds."""
    for module in (experiment, portraits):
        monkeypatch.setattr(module, "resolve_device", lambda name: SECOND)
    with second_device():
        yield


@pytest.fixture
def few_products(monkeypatch):
    """Hessian norms that are content with few products: each does the same on a device."""
    monkeypatch.setitem(hessian.hessian_norms.__kwdefaults__, "tol", 0.3)
    monkeypatch.setitem(hessian.hessian_norms.__kwdefaults__, "risk", 10.0)
    monkeypatch.setattr(solutions, "ENDS_TOL", 0.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with the runs whose weights the portraits of TINY need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METANB_STORE", str(tmp_path_factory.mktemp("trained")))
        experiment.nets_after(TINY, (1, 2), "cpu")
        return run_store.store_folder()


def test_it_refuses_what_a_gpu_refuses():
    on_cpu = torch.ones(2, 3)
    with second_device() as device:
        on_second = on_cpu.to(device)
        assert isinstance(on_second, Elsewhere) and on_second.device == SECOND
        for mixed in (
            lambda: on_second + on_cpu,
            lambda: on_cpu @ on_second.T,
            lambda: torch.cat([on_cpu, on_second]),
            lambda: on_cpu[on_second[0].long()],
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        # a scalar may come from the CPU, and so may an index
        assert torch.equal((on_second * 2 + on_cpu.sum()).cpu(), on_cpu * 2 + 6)
        assert torch.equal(on_second[:, torch.tensor([1])].cpu(), on_cpu[:, :1])


@pytest.mark.usefixtures("few_products")
def test_a_run_stays_on_its_device_and_finds_what_the_cpu_finds(tmp_path, monkeypatch, request):
    settings = replace(TINY, algorithm="finetune")
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "cpu"))
    expected = experiment.run(settings, "cpu").measures
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "second"))
    request.getfixturevalue("elsewhere")
    experiment.run(settings, until=1)
    record = experiment.run(settings)  # resumed
    assert record.provenance["resumed"] == 1
    assert (record.measures.measure == expected.measure).all()
    assert record.measures["mean"].to_numpy() == pytest.approx(
        expected["mean"].to_numpy(), rel=1e-3, abs=1e-4
    )


@pytest.mark.usefixtures("few_products")
def test_a_run_on_the_cpu_leaves_the_random_state_of_gpus_alone(tmp_path, monkeypatch):
    """Its network, the heads of its tasks, and the network that is read again."""
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    settings = replace(TINY, algorithm="finetune")
    experiment.run(settings, "cpu")
    experiment.trained_net(settings)
    assert not seeds


@pytest.mark.usefixtures("few_products")
def test_runs_side_by_side_stay_there_with_their_images(tmp_path, monkeypatch, request):
    """Two seeds in one batch, the images sent once; measured together, stopped, resumed."""
    options = {"algorithm": "fomaml", "adapts": "body", "regulariser": "random", "gamma": 0.1}
    runs = [replace(TINY, seed=seed, **options) for seed in range(2)]
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "cpu"))
    expected = experiment.run_all(runs, "cpu")
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "second"))
    monkeypatch.setattr(
        experiment, "choose_engine", lambda device, together: Engine(2, resident=True)
    )
    request.getfixturevalue("elsewhere")
    experiment.run_all(runs, until=1)
    for record, reference in zip(experiment.run_all(runs), expected, strict=True):
        assert (record.provenance["together"], record.provenance["engine"]) == (2, "resident")
        assert record.provenance["resumed"] == 1
        means = reference.measures["mean"].to_numpy()
        assert record.measures["mean"].to_numpy() == pytest.approx(means, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("side", "algorithm", "regulariser"), GRADIENTS)
def test_a_meta_gradient_is_that_of_the_cpu(side, algorithm, regulariser):
    net, tasks = drawn(3, (3, side, side))
    options = {"first_order": algorithm == "fomaml", "chunk": 2, "regulariser": regulariser}
    options |= {"gamma": 0.0 if regulariser == "none" else 0.01}
    if regulariser == "random":
        options["direction"] = random_directions(1, flatten(net).numel(), 0).float()
    expected = meta_gradient(net, tasks, 0.1, 2, **options)
    with second_device() as device:
        moved = copy.deepcopy(net).to(device)
        moved.zero_grad()
        if regulariser == "random":
            options["direction"] = options["direction"].to(device)
        outcome = meta_gradient(moved, tasks.to(device), 0.1, 2, **options)
        assert outcome.losses.device == device
        torch.testing.assert_close(outcome.losses.cpu(), expected.losses)
        for weight, reference in zip(moved.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(weight.grad.cpu(), reference.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", portraits.KINDS)
def test_portraits_are_drawn_there_as_on_the_cpu(kind, tmp_path, trained, monkeypatch, request):
    for name, less in (("PRODUCTS", 6), ("DRAWN", 5), ("FILMED", 5)):
        monkeypatch.setattr(portrait, name, less)
    monkeypatch.setenv("METANB_STORE", str(tmp_path / "store"))
    shutil.copytree(trained, tmp_path / "store")
    on_cpu = portraits.portrait(kind, TINY, "cpu")
    on_cpu.path.unlink()
    request.getfixturevalue("elsewhere")
    expected = numbers(on_cpu.values)
    assert numbers(portraits.portrait(kind, TINY).values) == pytest.approx(
        expected, rel=1e-2, abs=1e-2
    )


def test_the_bench_compares_there_and_leaves_the_network_there():
    net, tasks = drawn(1, (1, 28, 28))
    settings = preset("paper", "omniglot", inner_steps=2)
    plain = peers.plain_net(net)
    norm = peers.exact_norm(plain, tasks.support_x[0], tasks.support_y[0])
    exact = peers.exact_gradient(net, tasks, settings)
    assert norm > 0 and exact.norm() > 0
    with second_device() as device:
        net = copy.deepcopy(net).to(device)
        tasks = tasks.to(device)
        plain = peers.plain_net(net)
        moved_norm = peers.exact_norm(plain, tasks.support_x[0], tasks.support_y[0])
        assert moved_norm == pytest.approx(norm)
        torch.testing.assert_close(peers.exact_gradient(net, tasks, settings), exact)
        peer, *_ = peers.PEERS[units.BASE]
        peer(plain, tasks, settings.inner_lr, settings.inner_steps, False)
        torch.testing.assert_close(
            peers.gradient(plain).cpu().double(), exact, rtol=1e-3, atol=1e-5
        )


def drawn(n_tasks, image_shape):
    """A network for two classes, and tasks of random pixels."""
    torch.manual_seed(0)
    labels = torch.arange(2).expand(n_tasks, 2)
    support, query = torch.rand(2, n_tasks, 2, *image_shape)
    return ConvNet(image_shape, ways=2, filters=4), Tasks(support, labels, query, labels)


def numbers(values):
    """All numbers in nested dicts and lists, in order."""
    if isinstance(values, (dict, list)):
        parts = values.values() if isinstance(values, dict) else values
        return [number for part in parts for number in numbers(part)]
    return [values]
