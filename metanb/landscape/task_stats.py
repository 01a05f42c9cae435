"""Statistics over tasks, and how many tasks to measure at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# for measuring, on a card that may have 24 GB and holds training's memory, too
GPU_BYTES = 8 * 2**30


def tasks_at_once(device: torch.device, bytes_each: float = GPU_BYTES / 20) -> int:
    """How many tasks to measure at once, where each takes so many bytes on the device.

    On a CPU the Lanczos basis of more than 8 would leave the processor's cache. A GPU is slow at
    few: it takes as many as GPU_BYTES hold. A rule and no look at what is free, so that a seed
    gives the same bits each time.
    """
    return 8 if device.type == "cpu" else max(1, int(GPU_BYTES / bytes_each))


@dataclass(frozen=True)
class Stat:
    """A measure over n tasks.

    A NaN among the values makes every statistic NaN; one that n is too small for is NaN.
    """

    mean: float
    median: float
    std: float  # with n - 1
    sem: float  # standard error of the mean
    n: int


def summarise(values: Tensor) -> Stat:
    """Statistics of one value a task, [T]; sem = std / sqrt(n).

    Raises ValueError if there is none.
    """
    if values.dim() != 1 or not len(values):
        raise ValueError(f"values has shape {tuple(values.shape)}: give at least one value, [T]")
    values = values.detach().double().cpu()
    n = len(values)
    std = float(values.std()) if n > 1 else math.nan
    return Stat(float(values.mean()), float(values.quantile(0.5)), std, std / math.sqrt(n), n)


def distance(displacements: Tensor) -> Stat:
    """Length of the tasks' displacements theta~_i - theta_s [T, P]."""
    return summarise(displacements.detach().double().norm(dim=1))
