"""A second device in software, where there is no GPU: tensors that lie elsewhere, and refuse to meet those that do not.

Operations run on the CPU. But torch is told another device, so that the code for a GPU is taken,
and what a GPU would refuse is refused: an operation on tensors of both devices. It says nothing of
a GPU's own rounding, speed or memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

SECOND = torch.device("meta")  # autograd serves no other device that is neither here nor missing
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
        made = Tensor._make_wrapper_subclass(cls, inner.shape, **options)
        made.inner = inner
        return made

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
    there = [isinstance(x, Elsewhere) for x in tensors]
    packet = func.overloadpacket
    if packet not in CROSSING:
        checked = tensors[:1] if packet in INDEXING and there[0] else tensors
        if any(there) and any(x.dim() and not isinstance(x, Elsewhere) for x in checked):
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} got some of each"
            )
    on_second = any(there)
    # `skip_init` means the real "meta"
    if packet is not _aten.empty and (device := kwargs.get("device")) is not None:
        on_second = torch.device(device) == SECOND
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda x: x.inner, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    written = _written(func, args, kwargs)
    if written is not None:  # in place, or into `out`: the very tensor that was handed in
        return written
    return tree_map_only(Tensor, Elsewhere, found) if on_second else found


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The argument that an operation writes to and returns."""
    for i, one in enumerate(func._schema.arguments):
        if one.alias_info is not None and one.alias_info.is_write:
            return kwargs[one.name] if one.name in kwargs else args[i]
    return None
