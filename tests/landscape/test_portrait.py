"""The numbers of portraits against single points, `measure` and dense spectra."""

import math
from dataclasses import replace

import pytest
import torch

from metanb.data.tasks import Tasks
from metanb.landscape import hessian, portrait, task_stats
from metanb.landscape.lanczos import LandscapeError, random_directions
from metanb.landscape.measures import measure
from metanb.maml.inner_loop import flatten, logits, losses
from metanb.runs import experiment, training
from metanb.settings import preset

TINY = preset(
    "smoke", "glyphs", filters=3, test_tasks=5, test_queries=2, inner_steps=2, test_steps=3
)


@pytest.fixture(scope="module")
def both():
    """Two stages: a fresh network, and the same with other weights."""
    images = training.load_split(TINY, "train")
    nets = [training.new_network(replace(TINY, seed=seed), images) for seed in (0, 1)]
    tasks = experiment.meta_test_tasks(TINY)
    epochs = zip((0, 3), nets, strict=True)
    return [portrait.adapt_at_stage(TINY, epoch, net, tasks) for epoch, net in epochs]


@pytest.fixture(scope="module")
def measured(both):
    tasks = both[0].tasks
    names = ["support_loss_before", "support_loss", "query_loss", "query_accuracy", "distance"]
    return [measure(stage.net, tasks, tasks, TINY, names) for stage in both]


def test_stage_keeps_each_inner_step(both):
    for stage in both:
        assert stage.paths.shape == (4, 5, flatten(stage.net).numel())
        assert torch.equal(stage.paths[0], flatten(stage.net).detach().expand(5, -1))
        # one SGD step, by hand
        for before, after in zip(stage.paths, stage.paths[1:], strict=False):
            at = before.clone().requires_grad_()
            loss = losses(stage.net, at, stage.tasks.support_x, stage.tasks.support_y).sum()
            (gradient,) = torch.autograd.grad(loss, at)
            torch.testing.assert_close(
                after, before - TINY.inner_lr * gradient, rtol=1e-4, atol=1e-6
            )


def test_surfaces(both):
    surfaces = portrait.compute_surfaces(both)
    at = surfaces["at"]
    reach = max(float(stage["paths"].abs().max()) for stage in surfaces["stages"])
    assert float(at[0]) == pytest.approx(portrait.BEYOND[0] * reach) and len(at) == portrait.DRAWN
    for stage, drawn in zip(both, surfaces["stages"], strict=True):
        moved = (stage.paths[-1, :2] - stage.paths[0, :2]).double()
        lengths, cosine = moved.norm(dim=1), torch.cosine_similarity(*moved, dim=0)
        (first, second) = drawn["paths"]
        assert first.shape == (4, 2) and first[0].tolist() == [0, 0]
        torch.testing.assert_close(
            first[-1], torch.stack([lengths[0], torch.tensor(0.0)]).double(), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(second[-1].norm(), lengths[1])
        assert float(second[-1, 0] / second[-1].norm()) == pytest.approx(float(cosine), abs=1e-6)
        u = moved[0] / lengths[0]
        v = moved[1] - (moved[1] @ u) * u
        task = stage.tasks[0:1]
        for i, j in ((0, 0), (7, 15), (18, 3)):
            point = (stage.paths[0, 0] + at[j] * u + at[i] * v / v.norm()).float()[None]
            sets = [
                ("support", task.support_x, task.support_y),
                ("query", task.query_x, task.query_y),
            ]
            for name, x, y in sets:
                true = float(losses(stage.net, point, x, y))
                assert float(drawn[f"{name}_loss"][i, j]) == pytest.approx(true, rel=1e-4)


def test_films(both, measured):
    film = portrait.compute_film(both)
    surfaces = portrait.compute_surfaces(both)
    at = film["at"]
    assert film["n"] == 5 and len(at) == portrait.FILMED
    assert (at[0], at[-1]) == (surfaces["at"][0], surfaces["at"][-1])
    for i, (stage, drawn, stats) in enumerate(zip(both, film["stages"], measured, strict=True)):
        assert torch.equal(drawn["paths"], surfaces["stages"][i]["paths"])
        # the grids share their corners and their middle
        coarse, fine = surfaces["stages"][i]["support_loss"], drawn["support_loss"]
        torch.testing.assert_close(fine[::12, ::12], coarse[::9, ::9], rtol=1e-5, atol=1e-6)
        task = stage.tasks[0:1]
        for when, place in (("before", 0), ("after", -1)):
            params = stage.paths[place]
            true = losses(stage.net, params[:1], task.support_x, task.support_y)
            assert float(drawn[f"support_loss_{when}"]) == pytest.approx(float(true), rel=1e-5)
            answers = logits(stage.net, params, stage.tasks.query_x).argmax(-1)
            right = (answers == stage.tasks.query_y).float().mean()
            assert float(drawn[f"accuracy_{when}"]) == pytest.approx(float(right), rel=1e-5)
        assert float(drawn["accuracy_after"]) == pytest.approx(stats["query_accuracy"].mean)


def test_interpolations(both, measured):
    interpolations = portrait.compute_interpolations(both)
    alpha = interpolations["alpha"].tolist()
    assert interpolations["n"] == 5 and (alpha[0], alpha[-1]) == (-0.5, 2) and {0, 1} <= set(alpha)
    for stage, drawn, stats in zip(both, interpolations["stages"], measured, strict=True):
        end = alpha.index(1)
        for name in ("support_loss", "query_loss"):
            assert float(drawn[name]["mean"][end]) == pytest.approx(stats[name].mean, rel=1e-5)
        assert float(drawn["support_loss"]["mean"][alpha.index(0)]) == pytest.approx(
            stats["support_loss_before"].mean
        )
        for name in ("distance", "query_accuracy"):
            assert float(drawn[name]) == pytest.approx(stats[name].mean, rel=1e-5)
        params = 3 * stage.paths[-1] / 2 - stage.paths[0] / 2
        # of 5: the 2nd, 4th
        values = losses(stage.net, params, stage.tasks.query_x, stage.tasks.query_y).sort().values
        low, high = (float(drawn["query_loss"][side][alpha.index(1.5)]) for side in ("low", "high"))
        assert (low, high) == pytest.approx((float(values[1]), float(values[3])), rel=1e-4)


def test_spectra_against_dense_ones(both, monkeypatch):
    monkeypatch.setattr(portrait, "DIRECTIONS", 10)
    monkeypatch.setattr(portrait, "SPECTRUM_TASKS", 2)
    stage = both[0]
    spectra = portrait.compute_spectra([stage])
    (drawn,) = spectra["stages"]
    x, y = stage.tasks.support_x.double(), stage.tasks.support_y
    net = training.new_network(TINY, training.load_split(TINY, "train")).double()
    theta = stage.paths[-1].double()
    dense = [
        torch.autograd.functional.hessian(
            lambda p, t=t: losses(net, p[None], x[t : t + 1], y[t : t + 1])[0], theta[t]
        )
        for t in range(2)
    ]
    true = torch.linalg.eigvalsh(torch.stack(dense))
    assert spectra["n"] == 2 and spectra["size"] == true.shape[1]
    torch.testing.assert_close(drawn["largest"], true[:, -1], rtol=1e-3, atol=0)
    torch.testing.assert_close(drawn["smallest"], true[:, 0], rtol=1e-3, atol=0)
    torch.testing.assert_close(drawn["top"][:10], true.flip(1)[:, :10].mean(0), rtol=1e-3, atol=0)
    squares = true.square().sum(1)
    noise = 4 * (2 * squares / 10).sqrt()
    assert ((drawn["trace"] - true.sum(1)).abs() < noise).all()
    assert ((drawn["squares"] / squares).log().abs() < 0.5).all()
    assert math.isclose(
        float(torch.trapezoid(drawn["density"], drawn["density_at"])), spectra["size"], rel_tol=1e-2
    )
    for side, sign in (("above", 1), ("below", -1)):
        at = int((spectra["counted"] - 0.3).abs().argmin())
        count = (sign * true > spectra["counted"][at]).sum(1).double().mean()
        assert float(drawn[side][at]) == pytest.approx(float(count), rel=0.3)
    norms = hessian.hessian_norms(
        lambda p: losses(stage.net, p, stage.tasks[0:2].support_x, y[:2]), stage.paths[-1, :2]
    )
    torch.testing.assert_close(
        torch.maximum(drawn["largest"], -drawn["smallest"]), norms.norms, rtol=2e-3, atol=0
    )
    assert (drawn["gauss_newton"] > 0).all() and len(drawn["gauss_newton_top"]) == 20


@pytest.fixture(scope="module")
def more_tasks():
    """A stage with more tasks than a CPU measures at once."""
    settings = replace(TINY, test_tasks=10)
    net = training.new_network(TINY, training.load_split(TINY, "train"))
    return portrait.adapt_at_stage(settings, 0, net, experiment.meta_test_tasks(settings))


@pytest.mark.parametrize("at_once", [3, 20])
def test_spectra_do_not_depend_on_how_many_tasks_are_measured_at_once(
    more_tasks, monkeypatch, at_once
):
    monkeypatch.setattr(portrait, "PRODUCTS", 4)
    (expected,) = portrait.compute_spectra([more_tasks])["stages"]
    monkeypatch.setattr(portrait, "tasks_at_once", lambda *_: at_once)
    (drawn,) = portrait.compute_spectra([more_tasks])["stages"]
    for name in ("largest", "smallest", "trace", "squares"):
        torch.testing.assert_close(drawn[name], expected[name], rtol=1e-3, atol=1e-3)


def test_directions_of_the_recorded_spectra():
    """They were drawn on a CPU, 8 tasks at once."""
    recorded = [
        torch.cat([random_directions(8, 50, seed=first + i) for first in (0, 16)]) for i in (0, 1)
    ]
    assert torch.equal(portrait._draw_directions(16, 50), torch.stack(recorded))


def test_an_error_names_the_task_and_not_its_row_among_those_measured_at_once(
    more_tasks, monkeypatch
):
    monkeypatch.setattr(portrait, "PRODUCTS", 4)
    paths = more_tasks.paths.clone()
    paths[-1, 9] = torch.nan
    with pytest.raises(LandscapeError, match="^task 9: loss is nan"):
        portrait.compute_spectra([replace(more_tasks, paths=paths)])


@pytest.mark.parametrize("vectors", [portrait.BASIS, portrait.SPECTRUM_BASIS])
def test_as_many_tasks_are_taken_at_once_as_fit(more_tasks, vectors):
    assert chunk_sizes(more_tasks, vectors) == [8, 2]
    size = task_stats.CPU_BYTES // (4 * vectors * 3)  # with other memory, three tasks are too many
    x, y = torch.zeros(10, 3, 1, 8, 8), torch.zeros(10, 3, dtype=torch.long)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    paths = torch.zeros(1, 1, 1).expand(2, 10, size)  # which takes no memory
    large = portrait.Stage(0, net, Tasks(x, y, x, y), paths)
    assert chunk_sizes(large, vectors) == 5 * [2]


def chunk_sizes(stage, vectors):
    return [part.stop - part.start for part in portrait._chunks(stage, 10, vectors)]
