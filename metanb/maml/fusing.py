"""Chains of elementwise operations as one kernel each: `torch.compile` on a GPU, for training.

Eager PyTorch runs batch norm's gradient as a dozen kernels, and each kernel reads and writes whole
activations. On a GPU their speed is limited by memory. A compiled chain reads and writes once.
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
_failed = False  # a kernel could not be compiled: the process compiles no more


def fusible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a pure function of tensors: inside `fused` it is compiled for each set of shapes.

    After the first failure to compile, for example on an untried GPU or without a compiler, all
    fusible functions run uncompiled.
    """
    variants: dict[Any, Callable[..., Any]] = {}

    @wraps(function)
    def call(*args: Any) -> Any:
        global _failed
        if not _active or _failed:
            return function(*args)
        shapes = tuple(_shape_and_type(argument) for argument in args)
        try:
            if shapes not in variants:
                variant = _copy_function(function, len(variants))
                variants[shapes] = torch.compile(variant, dynamic=False)
            return variants[shapes](*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler raises errors of many types
            _failed = True
            warn_without("compile", error)
            return function(*args)

    return call


def failed() -> bool:
    """Return whether a kernel could not be compiled, so that none is compiled any more."""
    return _failed


@contextmanager
def fused(active: bool) -> Iterator[None]:
    """Compile `fusible` functions inside the context, if `active`."""
    global _active
    before = _active
    _active = active
    try:
        yield
    finally:
        _active = before


def _shape_and_type(argument: Any) -> Any:
    """A tensor's shape and type; any other argument itself."""
    return (argument.shape, argument.dtype) if isinstance(argument, Tensor) else argument


def _copy_function(function: Any, number: int) -> Any:
    """A copy of the function with a code object of its own.

    torch compiles one code object for a few shapes only; for later shapes it silently compiles
    nothing. The limit can be raised for the calling thread, but gradients are computed in another
    thread.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    return FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
