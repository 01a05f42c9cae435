"""The outer loop: one meta-gradient of MAML (Finn et al. 2017), second order or first order."""

import math

import torch
from torch import Tensor

from metanb.adapt import adapt, losses
from metanb.nets import ConvNet
from metanb.settings import Settings
from metanb.tasks import Tasks


def meta_gradient(
    net: ConvNet, tasks: Tasks, lr: float, steps: int, *, first_order: bool, adapt_norm: bool, chunk: int
) -> Tensor:
    """Add to the `.grad` of the net's parameters the gradient of the mean query loss after adaptation.

    The tasks go through in chunks of `chunk` at a time, each chunk's graph freed before the next is built: the sum is
    the same up to rounding, the memory is that of one chunk.

    Returns:
        The query loss of each task at its adapted parameters, [T], detached.
    """
    values = []
    for part in tasks.split(chunk):
        params = adapt(net, part, lr, steps, first_order=first_order, adapt_norm=adapt_norm)
        query_losses = losses(net, params, part.query_x, part.query_y)
        (query_losses.sum() / len(tasks)).backward()
        values.append(query_losses.detach())
    return torch.cat(values)


def chunk_size(settings: Settings, device: torch.device) -> int:
    """How many tasks go through the network at once: on a GPU all, on a CPU a power of two.

    Few tasks leave a fixed cost a chunk and small matrix products, many leave the processor's cache; between is a flat
    optimum near a million pixels. A rule rather than a timing, so that a seed gives the same bits each time.
    """
    if device.type != "cpu":
        return settings.meta_batch
    side = 84 if settings.dataset == "mini-imagenet" else 28
    pixels = settings.ways * (settings.shots + settings.queries) * side**2
    return min(settings.meta_batch, 2 ** int(math.log2(max(1.0, 2**20 / pixels))))
