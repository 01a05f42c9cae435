"""What each algorithm does with a batch of images: one function each, by the setting's name.

`algorithm` registers one of one's own; then settings, training, records and figures know it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from metanb.data.tasks import split_into_tasks
from metanb.labels import ALGORITHMS, Algorithm, require_free_name, require_name
from metanb.maml.outer_loop import chunk_size, meta_gradient, supervised_gradient
from metanb.maml.regulariser import unit
from metanb.settings import Settings, SettingsError


class Gradient(Protocol):
    """Adds one gradient of S runs side by side to the `.grad` of their weights."""

    def __call__(
        self,
        net: nn.Module,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        settings: Settings,
        direction: Tensor | None,
    ) -> dict[str, Tensor]:
        """Add the gradient.

        Args:
            net: the network; its own weights are not used.
            theta: [S, P], the weights of each run, differentiable.
            x: images. If the algorithm is episodic, those of a meta-batch per run, [S*T, n, C, H,
                W], each task's support images first; else those of a mini-batch per run, [S, n, C,
                H, W].
            y: labels [S*T, n], or classes [S, n].
            settings: those of the runs; the seeds are not used.
            direction: [S, P], each of length 1, for the regulariser `random` alone.

        Returns:
            By measure one value per run, [S]: at least `train_loss`.
        """


def meta_train(
    net: nn.Module,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    direction: Tensor | None,
) -> dict[str, Tensor]:
    """Add the meta-gradient of `maml` or `fomaml`; see `Gradient`."""
    outcome = meta_gradient(
        net,
        split_into_tasks(x, y, settings.ways * settings.shots),
        settings.inner_lr,
        settings.inner_steps,
        first_order=settings.first_order,
        adapts=settings.adapts,
        inner_loss=settings.inner_loss,
        inner_head=settings.inner_head,
        chunk=chunk_size(settings, x.shape[-2:], theta.device),
        regulariser=settings.regulariser,
        gamma=settings.gamma,
        direction=direction,
        theta=theta,
    )
    values = {"train_loss": outcome.losses}
    if settings.regulariser != "none":
        values["relative_move"] = outcome.moves
    # The mean is taken run by run, to give the same bits as for a run alone.
    n_runs = len(theta)
    return {
        name: torch.stack([rows.mean() for rows in by_task.view(n_runs, -1)])
        for name, by_task in values.items()
    }


def finetune(
    net: nn.Module,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    direction: Tensor | None,
) -> dict[str, Tensor]:
    """Add the gradient of supervised training over all meta-train classes; see `Gradient`.

    `metanb.landscape.solutions` has the other half: the new head that it gets at meta-test.
    """
    return {"train_loss": supervised_gradient(net, x, y, theta)}


GRADIENTS: dict[str, Gradient] = {"maml": meta_train, "fomaml": meta_train, "finetune": finetune}


def algorithm(name: str, entry: Algorithm) -> Callable[[Gradient], Gradient]:
    """Register the gradient of an algorithm of one's own, see `Gradient`.

    Args:
        name: of the setting `algorithm`.
        entry: what readers call it, and what sets it apart.

    Raises:
        ValueError: the name is taken by another function, or is not made of small letters and
            digits.

    Example:
        >>> from metanb.settings import preset
        >>> @algorithm("slowmaml", Algorithm("MAML at half the gradient"))
        ... def half_of_maml(net, theta, x, y, settings, direction):
        ...     values = meta_train(net, theta, x, y, settings, direction)
        ...     theta.grad.div_(2)
        ...     return values
        >>> preset("smoke", "glyphs", algorithm="slowmaml").id
        'glyphs-5w1s-slowmaml-s0-a17c5d06'
        >>> del ALGORITHMS["slowmaml"], GRADIENTS["slowmaml"]  # and it is gone
    """
    require_name("an algorithm", name)

    def register(gradient: Gradient) -> Gradient:
        require_free_name("an algorithm", name, GRADIENTS, gradient)
        ALGORITHMS[name] = entry
        GRADIENTS[name] = gradient
        return gradient

    return register


def find_gradient(settings: Settings) -> Gradient:
    """Return the gradient of the settings' algorithm.

    Raises:
        SettingsError: the algorithm is one's own, and it is not registered here.
    """
    if settings.algorithm not in GRADIENTS:
        raise SettingsError(
            f"algorithm={settings.algorithm!r} is one's own: register it first, or name its file "
            "with --plugin"
        )
    return GRADIENTS[settings.algorithm]


def add_gradient(
    net: nn.Module,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    direction: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute one gradient of the settings' algorithm, sharpness-aware if they say so.

    With `sam_radius` the gradient is that at theta + sam_radius g / norm(g), where g is the
    gradient at theta (SAM, Foret et al. 2021; on MAML's outer step, Abbas et al. 2022).

    Arguments and errors are those of `Gradient` and `find_gradient`; ValueError for an algorithm
    that gives no gradient, or values that are not one per run.

    Returns:
        The algorithm's values at theta, and the gradient, [S, P].
    """
    add = find_gradient(settings)
    values = _require_one_per_run(settings, add(net, theta, x, y, settings, direction), theta)
    gradient = theta.grad
    if gradient is None:
        raise ValueError(
            f"algorithm={settings.algorithm!r} left theta.grad empty: call backward on the loss"
        )
    if settings.sam_radius:
        # Each run climbs along its own gradient; a gradient of zeros leaves it where it is.
        uphill = settings.sam_radius * unit(gradient)
        higher_up = (theta.detach() + uphill).requires_grad_()
        add(net, higher_up, x, y, settings, direction)
        assert higher_up.grad is not None
        gradient = higher_up.grad
    return values, gradient


def _require_one_per_run(settings: Settings, values: object, theta: Tensor) -> dict[str, Tensor]:
    """What the settings' algorithm returned; raise ValueError unless it is one value per run."""
    algorithm = f"algorithm={settings.algorithm!r}"
    if not isinstance(values, dict) or "train_loss" not in values:
        shown = list(values) if isinstance(values, dict) else f"a {type(values).__name__}"
        raise ValueError(
            f"{algorithm} returned {shown}: return a dict of values per run, train_loss among them"
        )
    n_runs, place = len(theta), theta.device.type
    for name, value in values.items():
        is_tensor = isinstance(value, Tensor)
        if not is_tensor or value.shape != (n_runs,) or value.device.type != place:
            shown = f"a {type(value).__name__}"
            if is_tensor:
                shown = f"a tensor {list(value.shape)} on {value.device.type}"
            raise ValueError(
                f"{algorithm} returned {shown} for {name!r}: give one value per run, a tensor "
                f"[{n_runs}] on {place}"
            )
    return values
