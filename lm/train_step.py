"""One optimizer step: rows in, an updated model out; the guard against numbers that went wrong.

The loss is exact over the whole step: the sum over all its targets (every micro-batch, every rank) divided by their
number. Micro-batches have one shape, filled up with masked rows, so that nothing is compiled twice. Never here: where
rows come from, when to save, what is printed.

Shapes: n rows of this rank in the step, B rows a micro-batch, T seq_length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import UserError
from lm.cuda_graph import Graph, NotRecordable, Recorded
from lm.loss import further_targets, padded
from lm.optim import set_learning_rate
from lm.runtime.distributed import World
from lm.schedule import StepPlan

MAX_SKIPPED_IN_A_ROW = 5
# No sound step has such a loss (nats a token) or gradient norm of the trunk: on text they stay below 12 and 4, and a batch of
# one token over and over has a norm of 20, or 28 with further tokens to be learnt. Clipping would bound such a step, but it
# still moves weights and momenta by a fault.
ABSURD = 1_000.0


def rows_of_rank(num_rows: int, rank: int, world_size: int) -> slice:
    """A rank's part of a step's rows: consecutive, sizes differing by one at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


class MicroBatch(NamedTuple):
    tokens_BT1: Tensor  # int64, on the device
    targets_BT: Tensor  # int64, IGNORE where nothing is to be learnt
    first_row: int  # in the stream: seeds the heads' random positions


def micro_batches(tokens: np.ndarray, plan: StepPlan, world: World, batch_rows: int) -> Iterator[MicroBatch]:
    """This rank's part of a step, given the rows (num_rows, T + 1) of the whole step; at least one micro-batch."""
    part = rows_of_rank(plan.num_rows, world.rank, world.size)
    seq_length = tokens.shape[1] - 1
    num_targets = np.clip(plan.num_tokens - np.arange(plan.num_rows) * seq_length, 0, seq_length)
    for first in range(part.start, max(part.stop, part.start + 1), batch_rows):
        last = min(first + batch_rows, part.stop)
        learnt = np.arange(seq_length) < num_targets[first:last, None]
        rows, targets = padded(tokens[first:last], learnt, batch_rows)
        yield MicroBatch(_to(rows, world.device), _to(targets, world.device), plan.first_row + first)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Launched(NamedTuple):
    """A step that the device has been given; it may not be through with it."""

    num_tokens: int
    names: list[str]  # what the heads measure
    values: Tensor  # what `_finish` returns, on the CPU once it has `arrived`
    arrived: torch.cuda.Event | None  # None: at once


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean nats a token over the whole step
    gradient_norm: float  # of the trunk, before clipping, further tokens included
    skipped: bool  # the loss or a gradient was not finite, or absurdly large: nothing was changed
    heads: dict[str, float] = field(default_factory=dict)  # "head/loss" and "head/measure", means over micro-batches


class TrainStep:
    """`step(tokens, plan)` on every rank together.

    `model` is the joint model, wrapped by DDP or not; `trunk` and `heads` are its parts, clipped apart so that no
    head can shrink the trunk's step. Raises UserError when MAX_SKIPPED_IN_A_ROW steps in a row had to be skipped.
    """

    def __init__(
        self,
        model: nn.Module,
        trunk: nn.Module,
        heads: nn.Module,
        draw: Callable[[int, int, torch.Generator], dict[str, Tensor]],
        optimizers: Sequence[torch.optim.Optimizer],
        world: World,
        *,
        batch_rows: int,
        gradient_clip: float,
        seed: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model, self.draw = model, draw
        parts = [list(part.parameters()) for part in (trunk, heads)]
        self.clipped_apart = [part for part in parts if part]
        self.optimizers, self.world, self.autocast = optimizers, world, autocast
        self.batch_rows, self.gradient_clip, self.seed = batch_rows, gradient_clip, seed
        # Of the step's mean loss, the trunk's gradient norm and the heads'; NaN is below nothing.
        self.bounds = torch.tensor([ABSURD, ABSURD, math.inf], dtype=torch.float64, device=world.device)
        self.skipped_in_a_row = 0
        self.measures: list[str] = []  # of the heads
        self.not_recorded = "" if world.device.type == "cuda" else "there is no GPU"  # why
        if world.gradients is not None:
            self.not_recorded = "torchrun's processes average their gradients on the way"
        self._pool = None if self.not_recorded else torch.cuda.graph_pool_handle()
        self._recorded: tuple[torch.Size, bool] | None = None  # what the two graphs are for
        self._learn_graph: Graph | None = None
        self._finish_graph: Graph | None = None

    def __call__(
        self, tokens: np.ndarray, plan: StepPlan, should_stop: Callable[[], bool] = lambda: False
    ) -> StepResult | None:
        """`launch`, waited for."""
        launched = self.launch(tokens, plan, should_stop)
        return launched and self.result_of(launched)

    def launch(
        self, tokens: np.ndarray, plan: StepPlan, should_stop: Callable[[], bool] = lambda: False
    ) -> Launched | None:
        """Rows (num_rows, T + 1) of the whole step, on every rank. Nothing here waits for a GPU, so that it never waits for
        the program: its results are to be asked for a step later.

        None: `should_stop` said so on one of the ranks, and the step was given up. Nothing is changed then.
        """
        set_learning_rate(self.optimizers, plan.learning_rate_factor)
        accumulated = self.accumulate(tokens, plan, should_stop)
        if accumulated is None:
            self.clear()
            return None
        loss_sum, heads = accumulated
        inputs = torch.stack([loss_sum, *heads.values()]), self._number(plan.num_tokens)
        values = self._finish(inputs) if self._finish_graph is None else self._finish_graph(inputs)
        self.clear()
        values, arrived = values.to("cpu", non_blocking=True), None
        if self.world.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return Launched(plan.num_tokens, list(heads), values, arrived)

    def _finish(self, inputs: Sequence[Tensor]) -> Tensor:
        """Given this rank's sums and the step's number of targets: clips, and updates if the step was sound. Returns the
        sums over all ranks, the trunk's gradient norm, and whether it was."""
        sums, num_tokens = inputs
        norms = [nn.utils.clip_grad_norm_(part, self.gradient_clip) for part in self.clipped_apart]
        # Loss and gradients are sums over ranks then: every rank has the same numbers and does the same.
        sums = self.world.sum(sums)
        checked = torch.cat([sums[:1] / num_tokens, torch.stack(norms)])
        sound = (checked < self.bounds[: len(checked)]).all()
        if sound.device.type == "cuda":  # is not asked: its kernels look for themselves
            for optimizer in self.optimizers:
                optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]  # as torch.amp tells it
                optimizer.step()
        elif sound:
            for optimizer in self.optimizers:
                optimizer.step()
        return torch.cat([sums, checked[1:2], sound.unsqueeze(0)])

    def result_of(self, launched: Launched) -> StepResult:
        """What a step came to, once it is over: to be asked once for each, in their order."""
        if launched.arrived:
            launched.arrived.synchronize()
        total, *means, trunk_norm, sound = launched.values.tolist()
        self._count(not sound)
        # What a head found nothing to measure in is NaN.
        measured = {
            name: mean / self.world.size
            for name, mean in zip(launched.names, means, strict=True)
            if not math.isnan(mean)
        }
        return StepResult(total / launched.num_tokens, trunk_norm, not sound, measured)

    def _count(self, skipped: bool) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            rate = self.optimizers[0].param_groups[0].get("peak_lr")
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row were skipped: their loss or gradients were not finite, or beyond "
                f"{ABSURD:,.0f}. The weights are those before them and the last checkpoint is intact. Lower the learning "
                f"rates in the preset, train.matrix_learning_rate first (it is {rate:.3g} now: try half), then resume."
            )

    def accumulate(
        self, tokens: np.ndarray, plan: StepPlan, should_stop: Callable[[], bool] = lambda: False
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Forward and backward over this rank's micro-batches; gradients are then those of the step's mean loss.

        Returns the sum of this rank's losses and the means of what its heads measured; None if asked to stop.
        """
        measured = []
        *batches, last = micro_batches(tokens, plan, self.world, self.batch_rows)
        for batch in batches:
            if should_stop():
                break
            with self.world.no_sync(self.model):
                measured.append(self.learn(batch, plan))
        # Ranks meet in the last micro-batch, and may have been asked at different times: they go there together, or none.
        if self.world.any(should_stop()):
            return None
        measured.append(self.learn(last, plan))
        sums_M, *heads_M = torch.stack(measured, 1)
        return sums_M.sum(), {name: values_M.nanmean() for name, values_M in zip(self.measures, heads_M, strict=True)}

    def learn(self, batch: MicroBatch, plan: StepPlan) -> Tensor:
        """Forward and backward over one micro-batch: its sum of losses and what its heads measured (float64), by the names
        in `measures`. The heads' random positions are a function of seed and row."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + batch.first_row)
        drawn = self.draw(len(batch.tokens_BT1), batch.targets_BT.shape[1], generator)
        positions = [_to(positions.numpy(), self.world.device) for positions in drawn.values()]
        scale = plan.trunk_gradient
        # DDP averages over ranks; the mean is over the whole step's tokens, hence the world size.
        numbers = [self.world.size / plan.num_tokens, scale, *plan.multi_token_weights]

        def forward_backward(inputs: Sequence[Tensor]) -> Tensor:
            tokens_BT1, targets_BT, numbers, *positions = inputs
            share, scale_, *weights = numbers.unbind()
            further = further_targets(targets_BT, weights)
            with self.autocast():
                output = self.model(
                    tokens_BT1, targets_BT, dict(zip(drawn, positions, strict=True)), scale_ if scale else 0.0, further
                )
            (output.total * share).backward()
            heads = {f"{name}/loss": loss for name, loss in output.head_losses.items()} | output.measures
            self.measures = list(heads)
            return torch.stack([value.double() for value in (output.loss_sum, *heads.values())])

        inputs = [batch.tokens_BT1, batch.targets_BT, self._number(*numbers), *positions]
        if self._pool is None:
            return forward_backward(inputs)
        key = (batch.tokens_BT1.shape, scale == 0)
        if key != self._recorded:  # in the first micro-batch of a step: there are no gradients yet
            try:
                self._record(forward_backward, inputs)
            except NotRecordable as error:
                self.not_recorded, self._pool = str(error), None
                self.forget_graphs()
                return forward_backward(inputs)
            self._recorded = key
        assert self._learn_graph, "recorded"
        return self._learn_graph(inputs).clone()  # what a graph returns may be another's scratch memory

    def _record(self, forward_backward: Recorded, inputs: Sequence[Tensor]) -> None:
        """Anew, since two graphs of a micro-batch would need the memory of two."""
        self.forget_graphs()
        self._learn_graph = Graph(forward_backward, inputs, self.clear, self._pool)
        unsound = torch.full((1 + len(self.measures),), math.nan, dtype=torch.float64, device=self.world.device)
        self._finish_graph = Graph(self._finish, (unsound, self._number(1)), self.clear, self._pool)

    def _number(self, *numbers: float) -> Tensor:
        return _to(np.array(numbers, np.float32), self.world.device)

    def clear(self) -> None:
        """No gradients; where steps are recorded, they stay where they are, as zeros."""
        parameters = [parameter for part in self.clipped_apart for parameter in part]
        if self._pool is not None and (gradients := [p.grad for p in parameters if p.grad is not None]):
            torch._foreach_zero_(gradients)
        else:
            self._drop_gradients()

    def forget_graphs(self) -> None:
        """To be called when the optimizers' state is no longer where it was."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()  # the last step may not be over
        self._recorded = self._learn_graph = self._finish_graph = None
        if self._pool is not None:  # a pool whose graphs are gone is gone itself
            self._pool = torch.cuda.graph_pool_handle()
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for part in self.clipped_apart:
            for parameter in part:
                parameter.grad = None
