"""Statistics over tasks, and how many tasks to measure at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Memory for measuring: a card may have 24 GB, and it holds training's memory, too.
GPU_BYTES = 8 * 2**30
CPU_BYTES = 6 * 2**30


def tasks_at_once(device: torch.device, bytes_each: float) -> int:
    """Return how many tasks to measure at once, where each takes `bytes_each` on the device.

    On a CPU the number is 8, or as many as CPU_BYTES hold: the Lanczos basis of more would leave
    the processor's cache. A GPU is slow on few tasks, so there it is as many as GPU_BYTES hold. The
    rule does not look at free memory, so that a seed gives the same bits each time.
    """
    if device.type == "cpu":
        return min(8, max(1, int(CPU_BYTES / bytes_each)))
    return max(1, int(GPU_BYTES / bytes_each))


@dataclass(frozen=True)
class Stat:
    """A measure over n tasks.

    A NaN among the values makes every statistic NaN. A statistic is also NaN where n is too small
    for it.
    """

    mean: float
    median: float
    std: float  # with n - 1
    sem: float  # standard error of the mean
    n: int


def summarise(values: Tensor) -> Stat:
    """Summarise one value per task, [T]; sem = std / sqrt(n).

    Raises:
        ValueError: there is no value.

    Example:
        >>> import torch
        >>> summarise(torch.tensor([1.0, 2.0, 6.0])).mean
        3.0
    """
    if values.dim() != 1 or not len(values):
        raise ValueError(f"values has shape {tuple(values.shape)}: give at least one value, [T]")
    values = values.detach().double().cpu()
    n = len(values)
    std = float(values.std()) if n > 1 else math.nan
    return Stat(float(values.mean()), float(values.quantile(0.5)), std, std / math.sqrt(n), n)


def distance(displacements: Tensor) -> Stat:
    """Summarise the lengths of the tasks' displacements theta~_i - theta_s, [T, P]."""
    return summarise(displacements.detach().double().norm(dim=1))
