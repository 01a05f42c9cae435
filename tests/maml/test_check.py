"""Networks that keep tasks apart, that mix them by one wrong broadcast, and that are random."""

import pytest
import torch
from torch import nn

from metanb.data.tasks import Tasks
from metanb.maml.check import check_network, check_outputs, same_values
from metanb.maml.network import ConvNet
from metanb.maml.per_task import NetworkError
from tests.support.bad_days import shown


def make_tasks(n_images=4, *shape, n_tasks=2) -> Tasks:
    torch.manual_seed(0)
    x = torch.rand(n_tasks, n_images, *(shape or (3,)))
    y = torch.arange(n_images).remainder(2).expand(n_tasks, n_images)
    return Tasks(x, y, x.flip(1), y)


class Broadcasts(nn.Module):
    """Takes weights [T, ...] and gets the bias wrong: right only where T is 1."""

    takes_tasks = True

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(2, 3)), nn.Parameter(torch.rand(2))
        self.right = right

    def patches(self, x):  # noqa: D102
        return x

    def forward(self, x):  # noqa: D102
        bias = self.bias.unsqueeze(-2) if self.right else self.bias
        return x @ self.weight.mT + bias


def test_a_network_that_keeps_tasks_apart_passes():
    assert check_network(Broadcasts(right=True), make_tasks()) < 1e-6
    assert check_network(nn.Linear(3, 2), make_tasks(), 0.1, 3) < 1e-6
    assert check_network(ConvNet((1, 8, 8), 2, 4), make_tasks(4, 1, 8, 8)) < 1e-5


def test_a_broadcast_over_images_is_found():
    """As many tasks as images: the shapes fit, and nothing else would show it."""
    with pytest.raises(NetworkError, match=r"Broadcasts mixes tasks.*takes_tasks") as error:
        check_network(Broadcasts(right=False), make_tasks(n_images=2))
    shown("Your own network mixes tasks", f"Error: {error.value}")


def test_a_broadcast_is_found_among_as_many_tasks_as_images():
    with pytest.raises(NetworkError, match="Broadcasts mixes tasks"):
        check_network(Broadcasts(right=False), make_tasks(n_images=4, n_tasks=4))
    with pytest.raises(NetworkError, match="takes one task, but not several .*broadcast"):
        check_network(Broadcasts(right=False), make_tasks(n_images=4, n_tasks=3))


class CountsFromTheFirst(Broadcasts):
    """Keeps tasks apart, but finds its bias by dimensions that only weights [T, ...] have."""

    def forward(self, x):  # noqa: D102
        return x @ self.weight.mT + self.bias.unsqueeze(1)


@pytest.mark.parametrize(
    ("n_images", "message"),
    [(4, r"takes tasks, but not images alone \("), (2, "answers images alone otherwise")],
)
def test_a_network_that_takes_nothing_but_tasks_is_refused(n_images, message):
    """With as many images as outputs the shapes fit, and the values alone are wrong."""
    with pytest.raises(NetworkError, match=f"^CountsFromTheFirst {message}.*from the last"):
        check_network(CountsFromTheFirst(right=True), make_tasks(n_images))


def test_a_network_for_a_run_also_takes_images_alone():
    class Flat(CountsFromTheFirst):
        def forward(self, x):
            return super().forward(x.flatten(-3))

    with pytest.raises(NetworkError, match="Flat takes tasks, but not images alone"):
        check_outputs(Flat(right=True), (3, 1, 1), 2)


def test_dropout_in_training_mode_is_found():
    net = nn.Sequential(nn.Linear(3, 50), nn.Dropout(), nn.Linear(50, 2))
    with pytest.raises(NetworkError, match=r"random numbers.*\.eval\(\)"):
        check_network(net, make_tasks())
    assert check_network(net.eval(), make_tasks()) < 1e-6


class Answers(nn.Module):
    """A linear head, and something done to its outputs."""

    def __init__(self, change) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.change = change

    def forward(self, x):  # noqa: D102
        return self.change(self.head(x.flatten(1)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y[:, :3], r"outputs of shape \[4, 3\] for 4 images: it needs \[4, 5\]"),
        (lambda y: y[0], r"outputs of shape \[5\] for 4 images"),
        (lambda y: y / 0 * 0, "outputs that are not finite"),
        (lambda y: y + torch.rand_like(y), "draws random numbers"),
    ],
)
def test_outputs_of_another_kind_are_refused_before_training(change, words):
    check_outputs(Answers(lambda y: y), (1, 2, 2), 5)
    with pytest.raises(NetworkError, match=f"Answers .*{words}"):
        check_outputs(Answers(change), (1, 2, 2), 5)


def test_outputs_that_are_no_numbers_do_not_pass():
    with pytest.raises(NetworkError, match="not finite"):
        check_network(Answers(lambda y: y * torch.nan), make_tasks(4, 4))


def test_one_task_is_too_few():
    with pytest.raises(ValueError, match="1 tasks: give two"):
        check_network(nn.Linear(3, 2), make_tasks()[0:1])


class Anneals(nn.Module):
    """Its temperature rises from the third pass on: two first answers are the same."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("unset", torch.tensor(float("nan")))

    def forward(self, x):  # noqa: D102
        if self.training:
            self.passes += 1
        return self.layer(x.flatten(1)) / (1 + (self.passes / 1000).floor())


def test_values_are_the_same_where_both_are_nan():
    values = torch.tensor([1.0, float("nan")])
    assert same_values(values, values.clone()) and same_values(values[:0], values[:0])
    assert not same_values(values, torch.tensor([1.0, 2.0]))
    assert not same_values(values, torch.tensor([float("nan"), 1.0]))
    assert not same_values(values, values[None])


def test_a_network_that_changes_a_buffer_is_refused():
    with pytest.raises(NetworkError, match="Anneals changes its buffer 'passes' in forward"):
        check_outputs(Anneals(), (1, 2, 2), 2)
    with pytest.raises(NetworkError, match="changes its buffer 'passes'"):
        check_network(Anneals(), make_tasks(4, 4))
    check_outputs(Anneals().eval(), (1, 2, 2), 2)
