"""CUDA graphs: a function of tensors, captured once and then replayed.

A step of a small model is hundreds of kernels of a few microseconds each, and launching them takes
the program longer than running them takes a GPU; a graph is a single launch. A replay reads and
writes the memory that was used during capture: inputs are copied into static buffers, and every
other tensor that the function changes (gradients, weights) must keep its address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CapturedFunction = Callable[[Sequence[Tensor]], Tensor]


class NotCapturable(Exception):
    """A driver or a kernel does not support capture: the function must be called eagerly."""


# Eager calls before capture, so that one-time work such as compilation is not captured
# (torch's CUDA graph notes).
WARM_UPS = 3


class Graph:
    """A captured `function`: `graph(inputs)` does the same as `function(inputs)`, but the tensor
    it returns is overwritten by the next call.

    `function` is called WARM_UPS times on `inputs` and then captured; `reset` undoes the changes
    of these calls. Graphs that share a `pool` share the memory of their intermediate results.
    Raises NotCapturable, and any exception that the function raises.
    """

    # Of all graphs: cuBLAS keeps a workspace for each stream, of 32 MB on Hopper.
    warm_up: torch.cuda.Stream | None = None

    def __init__(
        self,
        function: CapturedFunction,
        inputs: Sequence[Tensor],
        reset: Callable[[], None] = lambda: None,
        pool: Any = None,
    ):
        self.inputs = [tensor.clone() for tensor in inputs]
        Graph.warm_up = stream = Graph.warm_up or torch.cuda.Stream()
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
            torch.cuda.set_stream(current)  # torch does not if ending the capture fails too
            cause = error.__context__ or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise NotCapturable(str(cause).partition("\n")[0]) from cause

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output
