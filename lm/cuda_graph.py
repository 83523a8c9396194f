"""A function of tensors, recorded once as a CUDA graph and played again.

A step of a small model is hundreds of kernels of a few microseconds each, and launching them takes a program longer than
running them takes a GPU. A graph is launched at once. What is recorded reads and writes the same memory each time: inputs
are copied to where they were, and whatever else the function changes (gradients, weights) has to stay where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Recorded = Callable[[Sequence[Tensor]], Tensor]


class NotRecordable(Exception):
    """What some driver or kernel does not allow: the function has to be called as it is."""


WARM_UPS = 3  # what a first call makes, compiled code among it, must not be recorded (torch's notes on CUDA graphs)


class Graph:
    """`graph(inputs)` does what `function(inputs)` does; the tensor it returns is overwritten by the next call.

    `function` is called WARM_UPS times and then recorded, on `inputs`; `reset` undoes what these calls changed. Graphs that
    share a `pool` use the same memory for what they compute in between. Raises NotRecordable, and whatever the function
    raises.
    """

    def __init__(
        self, function: Recorded, inputs: Sequence[Tensor], reset: Callable[[], None] = lambda: None, pool: Any = None
    ):
        self.inputs = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(self.inputs)
            reset()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.output = function(self.inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # torch does not, if ending the recording fails as well
            cause = error.__context__ or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise NotRecordable(str(cause).partition("\n")[0]) from cause

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output
