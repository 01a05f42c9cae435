"""A GPU's memory, counted in software: by a GPU's kernels, for one task at the real size."""

import pytest
import torch

from metanb.data.tasks import Tasks
from metanb.grids import definitions
from metanb.labels import DATASETS
from metanb.landscape import hessian, measures, portrait, solutions, spectrum, task_stats
from metanb.landscape.solutions import Solutions
from metanb.maml import kernels
from metanb.maml.inner_loop import flatten
from metanb.maml.network import ConvNet
from metanb.maml.outer_loop import meta_gradient
from metanb.settings import preset
from tests.support.memory import Peak

CARD = 24e9 - 1e9  # bytes of a card of 24 GB, less what the driver and the libraries take
CELLS = {
    (s.dataset, s.ways, s.shots, s.algorithm, s.regulariser): s
    for s in (planned.settings for planned in definitions.paper_grid())
    if s.algorithm != "finetune" and s.regulariser in ("none", "adapted")
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "_is_direct", lambda *_: False)


def one_task(settings, queries):
    """The network of a run, and one task of its shape, of random pixels."""
    torch.manual_seed(0)
    shape = DATASETS[settings.dataset].shape
    sets = []
    for per_class in (settings.shots, queries):
        labels = torch.arange(settings.ways).repeat_interleave(per_class)[None]
        sets += [torch.rand(1, labels.shape[1], *shape), labels]
    return ConvNet(shape, settings.ways, settings.filters), Tasks(*sets)


def test_the_count_is_right_where_it_can_be_done_by_hand():
    with Peak() as peak:
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        del a
        c = b.view(10, 100)  # a view: still 4,000
        d = c * 2  # 8,000
        del b, c, d
    assert peak.bytes == 8000


def test_five_seeds_of_every_cell_of_the_papers_grid_fit_a_card_of_24_gb():
    """Memory of one task, times the meta-batch, times five, and the memory for measuring."""
    assert len(CELLS) == 14
    for cell, settings in CELLS.items():
        net, tasks = one_task(settings, settings.queries)
        theta = flatten(net).detach()[None].requires_grad_()
        with Peak() as peak:
            meta_gradient(
                net,
                tasks,
                settings.inner_lr,
                settings.inner_steps,
                first_order=settings.first_order,
                chunk=1,
                regulariser=settings.regulariser,
                gamma=settings.gamma,
                theta=theta,
            )
        assert 5 * settings.meta_batch * peak.bytes + task_stats.GPU_BYTES < CARD, cell


@pytest.mark.parametrize(
    ("dataset", "ways", "shots"), [("omniglot", 5, 1), ("omniglot", 20, 5), ("mini-imagenet", 5, 1)]
)
def test_measuring_a_task_takes_no_more_than_is_set_aside_for_it(dataset, ways, shots, monkeypatch):
    """A basis of 33 vectors is counted whole, although ten products are enough to see the peak."""
    settings = preset("paper", dataset, ways, shots)
    for module in (hessian, solutions):  # each uses the function by its own name
        monkeypatch.setattr(module, "hessian_norms", few_products(module.hessian_norms))
    net, tasks = one_task(settings, settings.test_queries)
    theta = flatten(net).detach()[None]
    with Peak() as peak, torch.no_grad():
        at = Solutions(net, tasks, theta, settings)
        for compute in measures.PER_TASK.values():
            compute(at)
    set_aside = measures.bytes_per_task(net, theta, tasks)
    assert 0.2 * set_aside < peak.bytes < set_aside
    assert (
        task_stats.tasks_at_once(torch.device("cuda"), set_aside)
        == task_stats.GPU_BYTES // set_aside
    )
    assert task_stats.tasks_at_once(torch.device("cpu"), set_aside) == 8


def test_the_spectrum_of_a_task_takes_no_more_than_is_set_aside_for_it(monkeypatch):
    settings = preset("paper", "omniglot")
    net, tasks = one_task(settings, settings.test_queries)
    stage = portrait.Stage(0, net, tasks, flatten(net).detach().expand(1, 1, -1))
    set_aside = []

    def one_at_once(device, bytes_each):
        set_aside.append(bytes_each)
        return 1

    monkeypatch.setattr(portrait, "tasks_at_once", one_at_once)
    monkeypatch.setattr(portrait, "DIRECTIONS", 1)
    monkeypatch.setattr(spectrum, "gauss_newton", lambda *_: torch.zeros(1, 1))  # on the host
    with Peak() as peak:
        portrait.compute_spectra([stage])
    assert 0.2 * set_aside[0] < peak.bytes < set_aside[0]


def few_products(honest):
    return lambda *args, **options: honest(
        *args, **{**options, "tol": 0.5, "risk": 100.0, "ends_tol": None}
    )
