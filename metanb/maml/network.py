"""The network of the paper: four convolutional blocks and a linear head (Finn et al. 2017).

One module serves one task or many at once. Its weights may carry a leading task dimension, so that
one `higher` functional net adapts a whole chunk of tasks. Images are then [T, B, C, H, W], and each
task is convolved with its own weights.

Images that pass more than once come as `Patches`. The first block then needs no pass over its
activations for batch norm. Images are constants, so the mean and the variance of its convolution
follow from the covariance of their 3x3 patches, which is computed once and holds for every inner
step. Large images that pass once are convolved directly. Small ones always become patches, which
are cheap at stride 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanb.labels import NETWORKS, require_free_name, require_name
from metanb.maml.kernels import (
    EPS,
    batch_norm,
    convolve,
    linear,
    max_pool,
    moments,
    out_side,
    windows,
)
from metanb.settings import CHOICES, Settings, SettingsError

# Strides halve images up to this side, max-pooling halves larger ones.
STRIDED_UP_TO = 28


# What builds a network from the images' shape, the number of outputs and the run's settings, by the
# setting's name.
Builder: TypeAlias = Callable[[tuple[int, ...], int, Settings], nn.Module]
BUILDERS: dict[str, Builder] = {}


def network(name: str, label: str = "") -> Callable[[Builder], Builder]:
    """Register a function that builds a network of one's own; runs, records and figures know it.

    Args:
        name: of the setting `network`.
        label: what readers call it; "": its name.

    Raises:
        ValueError: the name is taken by another function, or is not made of small letters and
            digits.

    Example:
        >>> from metanb.settings import preset
        >>> @network("tiny", "two layers")
        ... def build(image_shape, outputs, settings):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, outputs))
        >>> build_network(preset("smoke", "glyphs", network="tiny"), (1, 28, 28), 5)[1].out_features
        5
        >>> del BUILDERS["tiny"], NETWORKS["tiny"]  # and it is gone
    """
    require_name("a network", name)

    def register(builder: Builder) -> Builder:
        require_free_name("a network", name, BUILDERS, builder)
        BUILDERS[name] = builder
        NETWORKS[name] = label or name
        return builder

    return register


def build_network(settings: Settings, image_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build the untrained network of a run from torch's random state.

    Args:
        settings: of the run.
        image_shape: channels, height, width.
        outputs: of the head.

    Raises:
        SettingsError: the network is one's own, and it is not registered here, or its builder
            returns none.
    """
    if settings.network not in BUILDERS:
        raise SettingsError(
            f"network={settings.network!r} is one's own: register it first, or name its file with "
            "--plugin"
        )
    net = BUILDERS[settings.network](image_shape, outputs, settings)
    if not isinstance(net, nn.Module):
        raise SettingsError(
            f"network={settings.network!r}: its builder returned {net!r}: return an nn.Module"
        )
    return net


class Patches(NamedTuple):
    """A chunk of image batches as the first block reads them."""

    rows: Tensor  #: [T, B*H'*W', 9*C + 1]: each 3x3 patch, and a 1 for the bias
    mean: Tensor  #: [T, 9*C, 1] of the patches
    covariance: Tensor  #: [T, 9*C, 9*C] float64, of the patches
    size: tuple[int, ...]  #: B, H', W'


class Block(nn.Module):
    """Convolution (3x3, padding 1), batch norm, ReLU and, if `pool`, max-pooling.

    The convolution has no bias, since batch norm would remove it. The weight is [outputs, 3, 3,
    inputs]. Parameters may carry a leading task dimension.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, pool: bool) -> None:
        super().__init__()
        weight = nn.init.xavier_uniform_(torch.empty(outputs, inputs, 3, 3))
        self.weight = nn.Parameter(weight.permute(0, 2, 3, 1).contiguous())
        self.gamma = nn.Parameter(torch.ones(outputs))
        self.beta = nn.Parameter(torch.zeros(outputs))
        self.stride, self.pool = stride, pool

    def forward(self, x: Tensor | Patches) -> Tensor:
        """Map [T, B, H, W, inputs] or `Patches` to [T, B, H', W', outputs]."""
        weight = _with_task_dimension(self.weight, 4)
        gamma = _with_task_dimension(self.gamma, 1)
        beta = _with_task_dimension(self.beta, 1)
        if isinstance(x, Patches):
            # The variance of the convolution, from the patches' covariance; in float64, because
            # neighbouring pixels are alike and an edge filter's variance is a small difference.
            weight = weight.flatten(2)
            exact = weight.double()
            variance = (exact @ x.covariance * exact).sum(-1)
            # Batch norm as part of the convolution: a scaled weight and a bias.
            weight = weight * (gamma * (variance + EPS).rsqrt().to(gamma.dtype)).unsqueeze(-1)
            bias = beta.unsqueeze(-1) - weight @ x.mean
            y = linear(x.rows, torch.cat([weight, bias], -1))
            y = y.view(-1, *x.size, y.shape[-1])
            y = y if self.pool else y.relu()
        else:
            y = batch_norm(convolve(x, weight, self.stride), gamma, beta, relu=not self.pool)
        # Pooling comes before the ReLU, which then runs on a quarter of the pixels.
        if self.pool:
            y = max_pool(y).relu()
        return y


class ConvNet(nn.Module):
    """The paper's ConvNet for images (C, H, W) and `ways` classes.

    Images up to 28x28 (Omniglot): stride-2 convolutions, spatial mean, linear head. Larger images
    (mini-ImageNet, 84x84): stride 1 and a 2x2 max-pool in each block, then all features into the
    linear head. Batch norm always uses the batch's own statistics. `head_init` is the head's
    initialisation: "torch" (that of `nn.Linear`), "finn" (as in Finn et al.'s code: standard normal
    after a spatial mean, xavier-uniform otherwise; zero bias) or "zero".

    Raises:
        ValueError: an unknown `head_init`, or images too small for four max-pools.

    Example:
        >>> import torch
        >>> net = ConvNet((1, 28, 28), ways=5)
        >>> net(torch.rand(10, 1, 28, 28)).shape
        torch.Size([10, 5])
    """

    takes_tasks = True  # weights may carry a leading task dimension, see `metanb.maml.per_task`

    def __init__(
        self, image_shape: tuple[int, ...], ways: int, filters: int = 64, head_init: str = "torch"
    ) -> None:
        super().__init__()
        if head_init not in CHOICES["head_init"]:
            raise ValueError(
                f"head_init is {head_init!r}: use one of {', '.join(CHOICES['head_init'])}"
            )
        channels, height, width = image_shape
        self.image_shape = tuple(image_shape)
        self.ways = ways
        self.filters = filters
        self.head_init = head_init
        self.strided = max(height, width) <= STRIDED_UP_TO
        if not self.strided and min(height, width) < 16:
            raise ValueError(
                f"image_shape is {self.image_shape}: "
                "four max-pools need a side of at least 16 pixels"
            )
        self.stride = 2 if self.strided else 1
        self.blocks = nn.ModuleList(
            Block(channels if i == 0 else filters, filters, self.stride, pool=not self.strided)
            for i in range(4)
        )
        features = filters if self.strided else filters * (height // 16) * (width // 16)
        self.head = nn.utils.skip_init(nn.Linear, features, ways)
        self.reset_head(head_init)

    @property
    def activations(self) -> int:
        """Number of outputs of all convolutions for one image."""
        height, width = self.image_shape[1:]
        total = 0
        for _ in self.blocks:
            height = out_side(height, self.stride)
            width = out_side(width, self.stride)
            total += height * width * self.filters
            if not self.strided:
                height //= 2
                width //= 2
        return total

    def reset_head(self, head_init: str) -> None:
        """Draw the head anew, as at the start, from torch's random state."""
        self.head.reset_parameters()
        if head_init == "finn":
            (nn.init.normal_ if self.strided else nn.init.xavier_uniform_)(self.head.weight)
            nn.init.zeros_(self.head.bias)
        elif head_init == "zero":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def patches(self, x: Tensor) -> Patches:
        """Return images [T, B, C, H, W] as the first block reads them, for any number of passes."""
        # Subtract each task's mean pixel, which batch norm removes anyway.
        padded = F.pad(x.permute(0, 1, 3, 4, 2), (0, 0, 1, 1, 1, 1))
        padded = padded - padded.mean((1, 2, 3), keepdim=True)
        # Write the patches as rows, with a column of ones.
        views = windows(padded, self.stride)
        rows = views.new_ones(*views.shape[:4], 9 * x.shape[2] + 1)
        rows[..., :-1].unflatten(-1, (3, -1)).copy_(views)
        rows = rows.flatten(1, 3)
        # Mean and covariance, in float64; the last column of the second moments is the mean.
        exact = rows.double()
        second_moments = moments(exact, exact) / rows.shape[1]
        mean = second_moments[:, :-1, -1:]
        covariance = second_moments[:, :-1, :-1] - mean @ mean.transpose(1, 2)
        return Patches(rows, mean.to(x.dtype), covariance, tuple(views.shape[1:4]))

    def forward(self, x: Tensor | Patches) -> Tensor:
        """Map x [B, C, H, W] to logits [B, ways].

        With weights [T, ...], x is [T, B, C, H, W] or `Patches`, and logits are [T, B, ways].
        """
        if isinstance(x, Tensor):
            if x.dim() == 4:
                return self(x.unsqueeze(0)).squeeze(0)
            x = self.patches(x) if self.strided else x.permute(0, 1, 3, 4, 2)
        for block in self.blocks:
            x = block(x)
        assert isinstance(x, Tensor)  # a block's output
        features = x.mean((2, 3)) if self.strided else x.flatten(2)
        weight = _with_task_dimension(self.head.weight, 2)
        bias = _with_task_dimension(self.head.bias, 1)
        return torch.baddbmm(bias.unsqueeze(1), features, weight.transpose(1, 2))


def _with_task_dimension(parameter: Tensor, dim: int) -> Tensor:
    """The parameter with a task dimension: one is added where it has `dim` dimensions."""
    return parameter.unsqueeze(0) if parameter.dim() == dim else parameter


def build_convnet(image_shape: tuple[int, ...], outputs: int, settings: Settings) -> ConvNet:
    """Build the paper's network; a `Builder`."""
    return ConvNet(image_shape, outputs, settings.filters, settings.head_init)


BUILDERS["convnet"] = build_convnet
