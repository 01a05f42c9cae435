"""TF32 in software: matrix products and convolutions of rounded factors.

Factors have ten bits of fraction, as on a GPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm,
    _aten.bmm,
    _aten.addmm,
    _aten.baddbmm,
    _aten.convolution,
    _aten.convolution_backward,
}
SUMMED = {_aten.addmm, _aten.baddbmm}  # their first argument is added, and not rounded
DROPPED = 13  # bits of float32's fraction that TF32 does not have


def rounded(x: Tensor) -> Tensor:
    """Round to the nearest TF32 number; ties go away from 0."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).view(torch.float32)


class TF32(TorchDispatchMode):
    """In its block, float32 products have rounded factors, and are summed in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in PRODUCTS:
            kept = 1 if packet in SUMMED else 0
            args = (*args[:kept], *tree_map_only(Tensor, rounded, args[kept:]))
        return func(*args, **(kwargs or {}))
