"""CUDA graphs: a GPU repeats thousands of small kernels by itself, in place of waiting for Python to launch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metanb.maml.engine import warn_without

WARM_UP = 2  # calls before the recording: libraries make their handles, and pick their kernels


class Replayed:
    """A function of tensors on a device: on a GPU recorded at its first call and replayed at each later one.

    Where it cannot be recorded, or `recorded` is false, it is called each time.

    A meta-gradient of five steps is some four thousand kernels of a few microseconds each, less
    than their launches take. The function must do the same whatever the values are: no read of a
    tensor from Python, no random numbers. What it writes (results, and gradients that it starts
    from None) lies where it lay at the recording, so whoever wants to keep it past the next call
    copies it.
    """

    def __init__(
        self, function: Callable[..., Any], device: torch.device, recorded: bool = True
    ) -> None:
        self.function, self.device = function, device
        self.recorded = recorded and device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.results: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's results for inputs from anywhere.

        On a GPU their shapes must be those of the first call.
        """
        if self.recorded and self.graph is None:
            self.inputs = [x.to(self.device, copy=True) for x in inputs]
            try:
                self.graph = self._record()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a kernel that cannot be recorded
                # which the end of the recording hides
                if isinstance(error.__context__, torch.OutOfMemoryError):
                    raise error.__context__ from None
                self.recorded = False
                warn_without("graph", error)
        if self.graph is None:
            return self.function(*(x.to(self.device) for x in inputs))
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.results

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.function(*self.inputs)
            here.wait_stream(aside)
            with torch.cuda.graph(graph):
                self.results = self.function(*self.inputs)
        return graph
