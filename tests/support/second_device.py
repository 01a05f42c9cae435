"""A second device in software, where there is no GPU.

Its tensors lie elsewhere, and operations that mix both devices are refused.

Operations run on the CPU. But torch is told another device, so that the code for a GPU runs, and an
operation on tensors of both devices is an error, as it is on a GPU. Rounding, speed and memory of a
GPU are not simulated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

SECOND = torch.device("meta")  # the one device without hardware that autograd supports
_aten = torch.ops.aten
CROSSING = {_aten._to_copy, _aten.copy_}  # may read one device and write another
# takes indices from the CPU, too
INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class Elsewhere(Tensor):
    """A tensor on the second device: `inner` has its values."""

    inner: Tensor
    is_meta = False  # to torch, tensors there have no values to load or to print

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        """`inner`'s shape and type, and the second device."""
        options: dict[str, Any] = {
            "strides": inner.stride(),
            "storage_offset": inner.storage_offset(),
        }
        options |= {"dtype": inner.dtype, "device": SECOND}
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, **options)
        wrapper.inner = inner
        return wrapper

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor on the CPU: what reads it names the device."""
        return self.inner.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """The values; torch has none to give for a subclass."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device; inside, `.to` and `device=` lead to it."""
    with _Mode():
        yield SECOND


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    is_second = [isinstance(x, Elsewhere) for x in tensors]
    packet = func.overloadpacket
    if packet not in CROSSING:
        checked = tensors[:1] if packet in INDEXING and is_second[0] else tensors
        if any(is_second) and any(x.dim() and not isinstance(x, Elsewhere) for x in checked):
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} got some of each"
            )
    on_second = any(is_second)
    # `skip_init` means the real "meta"
    if packet is not _aten.empty and (device := kwargs.get("device")) is not None:
        on_second = torch.device(device) == SECOND
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda x: x.inner, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    written = _written(func, args, kwargs)
    if written is not None:  # in place, or into `out`: the very tensor that was handed in
        return written
    return tree_map_only(Tensor, Elsewhere, result) if on_second else result


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The argument that an operation writes to and returns."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return kwargs[argument.name] if argument.name in kwargs else args[i]
    return None
