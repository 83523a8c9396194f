"""The training step as two CUDA graphs: what lm/train_step.py does, captured once and then replayed.

One graph is forward and backward over a micro-batch, the other clips and updates. A graph has one
shape and fixed addresses: a step of another shape is captured anew, and gradients are set to zero
in place. Where capture is refused, the step is the eager one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lm.cuda_graph import CapturedFunction, Graph, NotCapturable
from lm.train_step import TrainStep


class CapturedTrainStep(TrainStep):
    """A TrainStep for one GPU whose gradients no other process averages."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.refused = ""  # the reason, once capture was refused
        self._pool = torch.cuda.graph_pool_handle()
        self._key: tuple[torch.Size, bool] | None = None  # of the two graphs
        self._forward_backward: Graph | None = None
        self._update: Graph | None = None

    def forward_backward(self, inputs: Sequence[Tensor], positions: Sequence[str], heads_reach_trunk: bool) -> Tensor:
        eager = partial(super().forward_backward, positions=positions, heads_reach_trunk=heads_reach_trunk)
        key = (inputs[0].shape, heads_reach_trunk)
        if key != self._key and not self.refused:  # in the first micro-batch of a step: there are no gradients yet
            try:
                self._capture(eager, inputs)
                self._key = key
            except NotCapturable as error:
                self.refused = str(error)
                self.reset()
        if not self._forward_backward:
            return eager(inputs)
        return self._forward_backward(inputs).clone()  # graphs share memory: it may be overwritten

    def update(self, inputs: Sequence[Tensor]) -> Tensor:
        self.is_updating = True
        return self._update(inputs) if self._update else super().update(inputs)

    def _capture(self, forward_backward: CapturedFunction, inputs: Sequence[Tensor]) -> None:
        """Capture both graphs, after freeing the previous ones: both pairs would need twice the memory."""
        self.reset()
        try:
            self._forward_backward = Graph(forward_backward, inputs, self.clear, self._pool)
            unsound = torch.full((1 + len(self.measures),), math.nan, dtype=torch.float64, device=self.world.device)
            self._update = Graph(super().update, (unsound, self.numbers(1)), self.clear, self._pool)
        finally:
            self.is_updating = False  # what is captured, or fails, changes nothing

    def clear(self) -> None:
        """Set the gradients to zero, where they are."""
        parameters = [parameter for part in self.clipped_apart for parameter in part]
        if self.refused:
            super().clear()
        elif gradients := [parameter.grad for parameter in parameters if parameter.grad is not None]:
            torch._foreach_zero_(gradients)

    def reset(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()  # the last step may still be running
        self._key = self._forward_backward = self._update = None
        self._pool = torch.cuda.graph_pool_handle()  # a pool is freed with its graphs
        super().clear()
