"""A second device in software, where there is no GPU.

Its tensors lie elsewhere, and operations that mix both devices are refused.

Operations run on the CPU. But torch is told another device, so that the code for a GPU runs, and an
operation on tensors of both devices is an error, as it is on a GPU. Rounding, speed and memory of a
GPU are not simulated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
    tensors = [x for x in _flatten([args, *kwargs.values()]) if isinstance(x, Tensor)]
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
    plain_kwargs = {name: _map(_inner, value) for name, value in kwargs.items()}
    result = func(*_map(_inner, args), **plain_kwargs)
    written = _written(func)
    if written is not None:  # in place, or into `out`: the very tensor that was handed in
        place, name = written
        return kwargs[name] if name in kwargs else args[place]
    return _map(_elsewhere, result) if on_second else result


# torch's own functions for nested arguments take most of an operation's time
def _flatten(values: Any) -> Iterator[Any]:
    """What is in lists and tuples, however nested."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and tuples, with each item changed."""
    if isinstance(value, list | tuple):
        return type(value)([_map(change, item) for item in value])
    return change(value)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _elsewhere(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) else value


@cache
def _written(func: Any) -> tuple[int, str] | None:
    """Place and name of the argument that an operation writes to and returns."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return place, argument.name
    return None
