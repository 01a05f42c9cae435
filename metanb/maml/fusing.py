"""Chains of elementwise operations as one kernel each: `torch.compile` on a GPU, for training alone.

Eager PyTorch runs batch norm's gradient as a dozen kernels, each of which reads and writes whole
activations. On a GPU memory is what they wait for. Compiled, a chain reads and writes once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from metanb.maml.engine import warn_without

_active = False  # inside `fused`
_failed = False  # a kernel could not be compiled: the process goes on without


def fusible(function: Callable[..., Any]) -> Callable[..., Any]:
    """A pure function of tensors that is compiled for each of its arguments' shapes inside `fused`, if it can be.

    After the first failure to compile, on a GPU that nobody has tried or without a compiler, all
    fusible functions run as they are.
    """
    variants: dict[Any, Callable[..., Any]] = {}

    @wraps(function)
    def call(*args: Any) -> Any:
        global _failed
        if not _active or _failed:
            return function(*args)
        shapes = tuple(_shape(argument) for argument in args)
        try:
            if shapes not in variants:
                variants[shapes] = torch.compile(_copy(function, len(variants)), dynamic=False)
            return variants[shapes](*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in ways of its own
            _failed = True
            warn_without("compile", error)
            return function(*args)

    return call


def failed() -> bool:
    """Whether a kernel could not be compiled, so that none is."""
    return _failed


@contextmanager
def fused(active: bool) -> Iterator[None]:
    """Inside, `fusible` functions are compiled, if `active`."""
    global _active
    before, _active = _active, active
    try:
        yield
    finally:
        _active = before


def _shape(argument: Any) -> Any:
    return (argument.shape, argument.dtype) if isinstance(argument, Tensor) else argument


def _copy(function: Any, number: int) -> Any:
    """The function with a code object of its own.

    torch compiles one code object for a few shapes only, and gives up without a word at the next.
    The limit can be raised for the calling thread, but gradients are computed in another one.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    return FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
