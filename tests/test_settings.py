"""Settings: refusals by name, identity on disk, and the scales against the paper's settings.

Evidence: the paper's settings and recorded ids, written out by hand; gradients, where settings are
refused because they have no effect.
"""

import itertools
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from metanb.data.image_sets import ORIGINS
from metanb.data.tasks import Tasks
from metanb.labels import ALGORITHMS, DATASETS
from metanb.landscape.solutions import Solutions, starting_points_together
from metanb.maml.algorithms import GRADIENTS
from metanb.maml.inner_loop import flatten, unflatten
from metanb.maml.network import ConvNet, build_network
from metanb.maml.outer_loop import meta_gradient
from metanb.maml.per_task import in_head
from metanb.maml.regulariser import READINGS, unit
from metanb.settings import CHOICES, RANGES, Settings, SettingsError, from_dict, preset, scale_of


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ways": 1}, ["ways", "1", "2 to 100"]),
        ({"ways": 5.0}, ["ways", "whole number"]),
        ({"ways": True}, ["ways", "True"]),
        ({"inner_lr": float("nan")}, ["inner_lr", "nan"]),
        ({"inner_lr": "0.4"}, ["inner_lr", "'0.4'"]),
        ({"algorithm": "mamal"}, ["mamal", "'maml'", "'fomaml'"]),
        ({"rotations": 1}, ["rotations", "False, True"]),
        ({"algorithm": ["maml"]}, ["algorithm=['maml']", "'fomaml'"]),
        ({"network": {"convnet": 1}}, ["network={'convnet': 1}", "'convnet'"]),
        ({"adapt_norm": False}, ["adapt_norm=False", "retired", "leave it out"]),
        ({"partition": "background"}, ["partition='background'", "retired"]),
        ({"waves": 5}, ["waves", "ways"]),
        (
            {"iterations": 10, "epoch_iterations": 3},
            ["iterations=10", "epoch_iterations=3", "multiple"],
        ),
        ({"dataset": "glyphs", "rotations": True}, ["rotations", "omniglot"]),
        ({"gamma": 1.0}, ["regulariser='none'", "gamma=1", "above 0"]),
        ({"regulariser": "adapted"}, ["'adapted'", "gamma=0"]),
        (
            {"algorithm": "fomaml", "regulariser": "outer", "gamma": 1.0},
            ["'outer'", "'fomaml'", "adapted"],
        ),
        (
            {"algorithm": "finetune", "regulariser": "adapted", "gamma": 1.0},
            ["'adapted'", "'finetune'"],
        ),
        ({"test_head": "shared"}, ["test_head='shared'", "finetune"]),
        ({"algorithm": "finetune", "test_head": "centred"}, ["'centred'", "meta-learnt"]),
        ({"algorithm": "finetune", "inner_head": "zero"}, ["inner_head='zero'", "test_head"]),
        ({"train_classes": 4}, ["train_classes=4", "ways=5"]),
        ({"class_seed": 1}, ["class_seed=1", "train_classes"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values, words):
    with pytest.raises(SettingsError) as error:
        from_dict(values)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", CHOICES)
def test_a_name_that_ones_own_code_may_register_comes_with_a_hint(name):
    with pytest.raises(SettingsError) as error:
        from_dict({name: "mine"})
    hint = ": if it is your own, name its file with --plugin, or register it first"
    assert str(error.value).endswith(hint) == (name in ("algorithm", "network"))
    with pytest.raises(SettingsError) as error:
        from_dict({name: 5})
    assert "--plugin" not in str(error.value)


def test_every_setting_is_checked():
    names = [setting.name for setting in fields(Settings)]
    assert sorted(names) == sorted([*CHOICES, *RANGES, "dataset", "content"])
    for name in names:
        with pytest.raises(SettingsError, match=f"^{name}='non/sense' (is not|does not match) "):
            from_dict({name: "non/sense"})


def test_every_algorithm_and_data_set_has_what_the_book_needs_of_it():
    assert GRADIENTS.keys() == ALGORITHMS.keys() and ORIGINS.keys() == DATASETS.keys()
    for algorithm in ALGORITHMS.values():
        assert {"none"} <= set(algorithm.regularisers) <= READINGS.keys()


def test_records_of_retired_settings_are_read():
    values = preset("quick", "omniglot").to_dict() | {"partition": "vinyals", "adapt_norm": True}
    assert from_dict(values) == preset("quick", "omniglot")


def test_id_is_stable_and_tells_settings_apart():
    # a recorded name: a change of defaults or of the hash would orphan every committed record
    assert Settings().id == "glyphs-5w1s-maml-s0-44136fa3"
    recorded = preset("quick", "omniglot", algorithm="fomaml", seed=1)
    assert recorded.id == "omniglot-5w1s-fomaml-s1-79c37b62"
    few = preset(
        "quick", "omniglot", algorithm="fomaml", regulariser="adapted", gamma=1.0, train_classes=10
    )
    assert few.id.startswith("omniglot-10c-5w1s-fomaml-adapted-s0-")
    base = Settings(regulariser="adapted", gamma=1.0, train_classes=100)
    ids = {
        replace(base, **{name: high}).id
        for name, (_, high) in RANGES.items()
        if name != "epoch_iterations"
    }
    assert len(ids | {base.id}) == len(RANGES)
    assert Settings(inner_lr=1).id == Settings(inner_lr=1.0).id


def test_paper_scale_is_the_papers():
    expected = dict(
        filters=64,
        inner_lr=0.4,
        inner_steps=1,
        meta_batch=32,
        iterations=60_000,
        outer_lr=1e-3,
        rotations=True,
    )
    five_way = preset("paper", "omniglot", 5, 1)
    assert {name: getattr(five_way, name) for name in expected} == expected
    twenty_way = preset("paper", "omniglot", 20, 1)
    assert (twenty_way.inner_lr, twenty_way.inner_steps, twenty_way.meta_batch) == (0.1, 5, 16)
    mini = preset("paper", "mini-imagenet", 5, 5)
    assert (mini.filters, mini.inner_lr, mini.inner_steps, mini.test_steps) == (32, 0.01, 5, 10)
    assert (mini.meta_batch, mini.queries) == (2, 15)


def test_quick_differs_from_paper_in_size_and_length_only():
    size = {"filters", "meta_batch", "iterations", "epoch_iterations", "final_tasks"}
    for ways, shots, fewer in ((5, 1, set()), (20, 5, {"test_tasks"})):
        quick = preset("quick", "omniglot", ways, shots).to_dict()
        paper = preset("paper", "omniglot", ways, shots).to_dict()
        assert {name for name in quick if quick[name] != paper[name]} == size | fewer


@pytest.mark.parametrize("dataset", DATASETS)
def test_scales_follow_the_paper_for_every_task(dataset):
    """Queries, inner loop and quick's share of the paper's tasks, by ways and shots."""
    for ways, shots in itertools.product((2, 5, 19, 20, 50), (1, 2, 5)):
        paper, quick, smoke = (
            preset(scale, dataset, ways, shots) for scale in ("paper", "quick", "smoke")
        )
        mini = dataset == "mini-imagenet"
        assert paper.queries == (15 if mini else shots)
        assert quick.meta_batch == max(2, paper.meta_batch // 4)
        lr, steps, test_steps = (0.01, 5, 10) if mini else (0.1, 5, 5) if ways > 19 else (0.4, 1, 1)
        for settings in (paper, quick, smoke):
            assert (settings.inner_lr, settings.inner_steps) == (lr, steps)
            assert settings.test_steps == test_steps
            assert settings.rotations == (dataset == "omniglot")


def test_scale_of_knows_presets_and_custom():
    for scale in ("smoke", "quick", "paper"):
        assert scale_of(preset(scale, "omniglot", 20, 1, algorithm="fomaml", seed=3)) == scale
    few = preset("quick", "omniglot", train_classes=10, gamma=1.0, regulariser="adapted")
    assert scale_of(few) == "quick"
    assert scale_of(preset("quick", "omniglot", filters=64)) == "custom"
    with pytest.raises(SettingsError, match="'fast'.*'quick'"):
        preset("fast")


@pytest.mark.parametrize("algorithm", ["maml", "finetune"])
@pytest.mark.parametrize("name", ["head_init", "inner_head", "test_head"])
def test_a_body_that_no_step_can_move_is_refused(algorithm, name):
    """A head is refused exactly where the body's gradient is 0 before the first step."""
    for head in CHOICES[name]:
        values = {"algorithm": algorithm, "filters": 4, name: head}
        try:
            settings = preset("smoke", "glyphs", **values)
        except SettingsError:  # with whatever adapts
            continue
        torch.manual_seed(0)
        net = build_network(settings, (1, 28, 28), 5)
        theta = flatten(net).detach().unsqueeze(0)
        net, start = starting_points_together(net, theta, [settings], 2, 0)
        x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
        gradient = Solutions(net, Tasks(x, y, x, y), start, settings).gradient
        body = torch.tensor(in_head(net)).logical_not()
        lengths = torch.stack([part.norm() for part in unflatten(net, gradient)])
        is_moved = bool((lengths[body] > 1e-6).any())
        assert lengths[~body].max() > 1e-3  # only the body is at rest
        if is_moved:
            assert preset("smoke", "glyphs", **values, adapts="body").adapts == "body"
        else:
            words = f"adapts='body' with {name}='{head}' moves nothing"
            with pytest.raises(SettingsError, match=words):
                preset("smoke", "glyphs", **values, adapts="body")


@pytest.mark.parametrize(
    ("name", "head"),
    [("test_head", "zero"), ("test_head", "centred"), ("head_init", "zero"), ("head_init", "finn")],
)
def test_a_head_that_a_head_of_zeros_replaces_is_refused(name, head):
    with pytest.raises(SettingsError, match=f"{name}='{head}' has no effect with inner_head="):
        preset("smoke", "glyphs", inner_head="zero", **{name: head})


def test_numbers_of_numpy_are_plain_numbers():
    """As in `for seed in numpy.arange(3)`: the same run, whose settings JSON can hold."""
    plain = Settings(seed=1, shots=2, inner_lr=0.5)
    settings = Settings(seed=np.int64(1), shots=np.uint8(2), inner_lr=np.float32(0.5))
    assert settings == plain and settings.id == plain.id
    assert json.loads(json.dumps(settings.to_dict())) == plain.to_dict()
    for name, value in (("seed", np.float64(1)), ("seed", np.bool_(True)), ("inner_lr", "1")):
        with pytest.raises(SettingsError, match=name):
            Settings(**{name: value})


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
@pytest.mark.parametrize("regulariser", [name for name in READINGS if name != "none"])
def test_a_regulariser_without_effect_on_one_task_is_refused(algorithm, regulariser):
    """A regulariser is refused exactly where the gradient of one task is that of `none`.

    `random` moves as far as `adapted`, which is not at all but for rounding errors, whose
    derivative says nothing: of `random`, the move alone is compared.
    """
    if regulariser not in ALGORITHMS[algorithm].regularisers:
        return
    torch.manual_seed(0)
    net = ConvNet((1, 8, 8), ways=3, filters=4).double()
    (x, query_x), y = torch.rand(2, 1, 3, 1, 8, 8).double(), torch.arange(3).unsqueeze(0)
    direction = unit(torch.rand_like(flatten(net)).unsqueeze(0))
    gradients = []
    for options in ({}, {"regulariser": regulariser, "gamma": 1.0, "direction": direction}):
        net.zero_grad()
        first_order = ALGORITHMS[algorithm].first_order
        tasks = Tasks(x, y, query_x, y)
        at = meta_gradient(net, tasks, 0.4, 2, first_order=first_order, chunk=1, **options)
        gradients.append(torch.cat([part.grad.flatten() for part in net.parameters()]))
    has_effect = not torch.allclose(*gradients, rtol=0, atol=1e-9)
    if regulariser == "random":
        has_effect = at.moves.item() > 1e-9
    values = {"algorithm": algorithm, "regulariser": regulariser, "gamma": 1.0}
    assert preset("smoke", "glyphs", **values, meta_batch=2).meta_batch == 2
    if has_effect:
        assert preset("smoke", "glyphs", **values, meta_batch=1).meta_batch == 1
    else:
        with pytest.raises(SettingsError, match=f"'{regulariser}' with meta_batch=1 has no effect"):
            preset("smoke", "glyphs", **values, meta_batch=1)
