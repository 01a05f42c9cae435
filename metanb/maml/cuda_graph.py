"""CUDA graphs: a GPU repeats thousands of small kernels without a launch of each from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metanb.maml.engine import warn_without

WARM_UP = 2  # calls before the recording, in which libraries make handles and choose kernels


class Replayed:
    """A function of tensors that a GPU records at the first call and replays at later ones.

    Where it cannot be recorded, or `recorded` is false, it is called each time.

    A meta-gradient of five steps has some four thousand kernels of a few microseconds each, less
    than the time to launch them. The function must do the same for all values: it may not read a
    tensor from Python or draw random numbers. Its outputs (results, and gradients that were None
    before) have the memory of the recording. The next call overwrites them: copy what you keep.
    """

    def __init__(
        self, function: Callable[..., Any], device: torch.device, recorded: bool = True
    ) -> None:
        self.function = function
        self.device = device
        self.recorded = recorded and device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.results: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Return the function's results for inputs on any device.

        On a GPU their shapes must be those of the first call.
        """
        # Record at the first call, or fall back to plain calls.
        if self.recorded and self.graph is None:
            self.inputs = [x.to(self.device, copy=True) for x in inputs]
            try:
                self.graph = self._record()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a kernel that cannot be recorded
                # The end of a failed recording hides the error of a full memory.
                if isinstance(error.__context__, torch.OutOfMemoryError):
                    raise error.__context__ from None
                self.recorded = False
                warn_without("graph", error)
        if self.graph is None:
            return self.function(*(x.to(self.device) for x in inputs))
        # Replay on the memory of the recording.
        for recorded_input, new_input in zip(self.inputs, inputs, strict=True):
            recorded_input.copy_(new_input)
        self.graph.replay()
        return self.results

    def _record(self) -> torch.cuda.CUDAGraph:
        """The function's graph, recorded after a warm-up on a stream of its own."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.function(*self.inputs)
            current.wait_stream(side)
            with torch.cuda.graph(graph):
                self.results = self.function(*self.inputs)
        return graph
