"""One optimizer step: rows in, updated model out, with a guard against non-finite numbers.

The gradient is that of the sum of losses over all targets (every micro-batch, every rank), divided by
the number of the step's tokens. In conversations only some tokens are targets; dividing by all tokens
gives every target of a run the same weight. The loss that is shown is divided by the number of targets.
Micro-batches are padded to one shape with masked rows, so that nothing is compiled twice.

This is the eager step; lm/captured_step.py replays the same one on a GPU. Its forward pass is
aux_heads/joint.py: JointModel.forward, which calls the trunk (lm/model.py), the loss (lm/loss.py) and
the heads. Never here: where rows come from, when to save, what is printed.

Shapes: n rows of this rank in the step, B rows per micro-batch, T seq_length.
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

from aux_heads.joint import JointModel
from configs.errors import UserError
from lm.loss import mtp_targets, padded
from lm.loss_scale import LossScale
from lm.optim import set_learning_rate
from lm.runtime.distributed import World
from lm.schedule import StepPlan

MAX_SKIPPED_IN_A_ROW = 5
# Divergence limit of the loss (nats per token) and of the trunk's gradient norm. On text they stay
# below 12 and 4, and a batch of one repeated token has a norm of 20, or 28 with MTP targets.
# Clipping would bound a step above the limit, but a fault would still move weights and momenta.
DIVERGENCE_LIMIT = 1_000.0


def rows_of_rank(num_rows: int, rank: int, world_size: int) -> slice:
    """Return a rank's part of a step's rows: consecutive, sizes differing by one at most."""
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


class MicroBatch(NamedTuple):
    tokens_BT1: Tensor  # int64, on the device
    targets_BT: Tensor  # int64, IGNORE where there is no target
    first_row: int  # in the stream: seeds the sampling of the heads' positions


def targets_of(plan: StepPlan, seq_length: int, loss_mask: np.ndarray | None, rows: slice = slice(None)) -> np.ndarray:
    """Return which tokens of some rows (n, T) of a step are targets of the loss; of those that the plan has,
    only where `loss_mask` (num_rows, T + 1) is True."""
    first_tokens = np.arange(plan.num_rows)[rows] * seq_length
    seen = np.arange(seq_length) < np.clip(plan.num_tokens - first_tokens, 0, seq_length)[:, None]
    return seen if loss_mask is None else seen & loss_mask[rows, 1:]


def micro_batches(
    tokens: np.ndarray, plan: StepPlan, world: World, batch_rows: int, loss_mask: np.ndarray | None = None
) -> Iterator[MicroBatch]:
    """Yield this rank's part of a step, given the rows (num_rows, T + 1) of the whole step;
    at least one micro-batch."""
    part = rows_of_rank(plan.num_rows, world.rank, world.size)
    seq_length = tokens.shape[1] - 1
    for first in range(part.start, max(part.stop, part.start + 1), batch_rows):
        last = min(first + batch_rows, part.stop)
        counted = targets_of(plan, seq_length, loss_mask, slice(first, last))
        rows, targets = padded(tokens[first:last], counted, batch_rows)
        yield MicroBatch(_to(rows, world.device), _to(targets, world.device), plan.first_row + first)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Launched(NamedTuple):
    """A step that was launched on the device and may not have finished."""

    num_tokens: int
    num_targets: int  # those of its tokens that the loss counts
    values: Tensor  # returned by `update`; on the CPU once it has `arrived`
    arrived: torch.cuda.Event | None  # None: already there


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean nats per target over the whole step; 0 if it has none
    gradient_norm: float  # of the trunk, before clipping, including MTP targets
    skipped: bool  # loss or gradient not finite or above the divergence limit: nothing was changed
    heads: dict[str, float] = field(default_factory=dict)  # "head/loss" and "head/measure", means over micro-batches


class TrainStep:
    """The training step: `step(tokens, plan)`, called on every rank together.

    Trunk and heads of the `joint` model are clipped separately, so that no head can shrink the trunk's
    step. Raises UserError after MAX_SKIPPED_IN_A_ROW skipped steps in a row.
    """

    def __init__(
        self,
        joint: JointModel,
        optimizers: Sequence[torch.optim.Optimizer],
        world: World,
        *,
        batch_rows: int,
        gradient_clip: float,
        seed: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        loss_scale: LossScale | None = None,
    ):
        self.model, self.sample_positions = world.data_parallel(joint), joint.sample_positions
        parts = [list(part.parameters()) for part in (joint.trunk, joint.heads)]
        self.clipped_apart = [part for part in parts if part]
        self.optimizers, self.world, self.autocast, self.loss_scale = optimizers, world, autocast, loss_scale
        self.batch_rows, self.gradient_clip, self.seed = batch_rows, gradient_clip, seed
        self.sum_dtype = torch.float32 if world.device.type == "mps" else torch.float64  # the largest there is
        # Of the step's mean loss and the gradient norms of trunk and heads. NaN is below no bound.
        self.bounds = torch.tensor(
            [DIVERGENCE_LIMIT, DIVERGENCE_LIMIT, math.inf], dtype=self.sum_dtype, device=world.device
        )
        self.skipped_in_a_row = 0
        self.is_updating = False  # from the first change of a weight until the caller has counted the step
        self.measures: list[str] = []  # names of the heads' losses and measures

    def __call__(
        self,
        tokens: np.ndarray,
        plan: StepPlan,
        should_stop: Callable[[], bool] = lambda: False,
        loss_mask: np.ndarray | None = None,
    ) -> StepResult | None:
        """Launch a step (see `launch`) and wait for its result."""
        launched = self.launch(tokens, plan, should_stop, loss_mask)
        return launched and self.result_of(launched)

    def launch(
        self,
        tokens: np.ndarray,
        plan: StepPlan,
        should_stop: Callable[[], bool] = lambda: False,
        loss_mask: np.ndarray | None = None,
    ) -> Launched | None:
        """Launch a step over the rows (num_rows, T + 1) of the whole step, the same on every rank.

        `loss_mask` (num_rows, T + 1): whether the loss counts each token; None: all.
        This never waits for a GPU; results are collected one step later, so that the GPU never
        waits for the program. Returns None, with nothing changed, if `should_stop` returned True
        on any rank.
        """
        set_learning_rate(self.optimizers, plan.learning_rate_factor)
        accumulated = self.accumulate(tokens, plan, should_stop, loss_mask)
        if accumulated is None:
            self.clear()
            return None
        loss_sum, heads = accumulated
        num_targets = plan.num_tokens
        if loss_mask is not None:
            num_targets = int(targets_of(plan, tokens.shape[1] - 1, loss_mask).sum())
        values = self.update((torch.stack([loss_sum, *heads.values()]), self.numbers(max(1, num_targets))))
        self.clear()
        values, arrived = values.to("cpu", non_blocking=self.world.device.type == "cuda"), None
        if self.world.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return Launched(plan.num_tokens, num_targets, values, arrived)

    def update(self, inputs: Sequence[Tensor]) -> Tensor:
        """Clip the gradients, and update the parameters if the step was finite.

        Given this rank's sums and the step's number of targets, returns the sums over all ranks,
        the trunk's gradient norm, whether the step was finite and below the divergence limit, and
        whether only the scale of the loss was too large for it.
        """
        sums, num_targets = inputs
        if self.loss_scale:
            self.loss_scale.unscale(parameter for part in self.clipped_apart for parameter in part)
        norms = [nn.utils.clip_grad_norm_(part, self.gradient_clip) for part in self.clipped_apart]
        # From here on loss and gradients are sums over ranks, so every rank decides the same.
        sums = self.world.sum(sums)
        checked = torch.cat([sums[:1] / num_targets, torch.stack(norms)])
        sound = (checked < self.bounds[: len(checked)]).all()
        self.is_updating = True
        if sound.device.type == "cuda":  # no sync: as with torch.amp, the kernels check found_inf
            for optimizer in self.optimizers:
                optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
                optimizer.step()
        elif sound:
            for optimizer in self.optimizers:
                optimizer.step()
        overflowed = torch.zeros_like(sound)
        if self.loss_scale:
            overflowed = (checked[0] < self.bounds[0]) & ~checked[1:].isfinite().all() & self.loss_scale.can_shrink
            self.loss_scale.update(sound, overflowed)
        return torch.cat([sums, checked[1:2], torch.stack([sound, overflowed])])

    def result_of(self, launched: Launched) -> StepResult:
        """Wait for a launched step and return its result; to be called once each, in order."""
        if launched.arrived:
            launched.arrived.synchronize()
        total, *means, trunk_norm, sound, overflowed = launched.values.tolist()
        if not overflowed:  # which says nothing about the weights
            self._count(not sound)
        # A measure is NaN if the head had nothing to measure it on.
        measured = {
            name: mean / self.world.size
            for name, mean in zip(self.measures, means, strict=True)
            if not math.isnan(mean)
        }
        return StepResult(total / max(1, launched.num_targets), trunk_norm, not sound, measured)

    def _count(self, skipped: bool) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            rate = self.optimizers[0].param_groups[0].get("peak_lr")
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row were skipped: their loss or gradients were not finite, or above "
                f"{DIVERGENCE_LIMIT:,.0f}. The weights are those before them and the last checkpoint is intact. Lower "
                f"the learning rates in the preset, train.matrix_learning_rate first (it is {rate:.3g} now: try half), "
                "then resume."
            )

    def accumulate(
        self,
        tokens: np.ndarray,
        plan: StepPlan,
        should_stop: Callable[[], bool] = lambda: False,
        loss_mask: np.ndarray | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Run forward and backward over this rank's micro-batches; gradients are then those
        of the step's mean loss.

        Returns the sum of this rank's losses and the means of the heads' losses and
        measures; None if asked to stop.
        """
        measured = []
        *batches, last = micro_batches(tokens, plan, self.world, self.batch_rows, loss_mask)
        for batch in batches:
            if should_stop():
                break
            with self.world.no_sync(self.model):
                measured.append(self.run_micro_batch(batch, plan))
        # Ranks synchronise in the last micro-batch, and may notice a stop at different times: all
        # of them run it, or none.
        if self.world.any(should_stop()):
            return None
        measured.append(self.run_micro_batch(last, plan))
        sums_M, heads_KM = torch.stack(measured, 1).split([1, len(self.measures)])
        means_K = heads_KM.nanmean(1)  # at once: of each alone it would be five kernels on a GPU
        return sums_M.sum(), dict(zip(self.measures, means_K.unbind(), strict=True))

    def run_micro_batch(self, batch: MicroBatch, plan: StepPlan) -> Tensor:
        """Run forward and backward over one micro-batch.

        Returns its sum of losses, then the heads' losses and measures (`sum_dtype`), which `measures`
        names. The heads' sampled positions are a function of seed and row.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + batch.first_row)
        sampled = self.sample_positions(len(batch.tokens_BT1), batch.targets_BT.shape[1], generator)
        positions = [_to(positions.numpy(), self.world.device) for positions in sampled.values()]
        # DDP averages over ranks; the mean is over the whole step's tokens, hence the world size.
        numbers = self.numbers(self.world.size / plan.num_tokens, plan.trunk_gradient, *plan.multi_token_weights)
        inputs = [batch.tokens_BT1, batch.targets_BT, numbers, *positions]
        return self.forward_backward(inputs, list(sampled), plan.trunk_gradient != 0)

    def forward_backward(self, inputs: Sequence[Tensor], positions: Sequence[str], heads_reach_trunk: bool) -> Tensor:
        """Run forward and backward over what `run_micro_batch` has prepared, and return what `run_micro_batch` returns.

        `inputs`: tokens, targets, numbers, and a tensor for each of the names of `positions`; what
        may differ between two steps of one shape comes in a tensor, so that a step can be captured.
        """
        tokens_BT1, targets_BT, numbers, *sampled = inputs
        share, trunk_gradient, *weights = numbers.unbind()
        if self.loss_scale:
            share = share * self.loss_scale.scale
        further = mtp_targets(targets_BT, weights)
        with self.autocast():
            output = self.model(
                tokens_BT1,
                targets_BT,
                dict(zip(positions, sampled, strict=True)),
                trunk_gradient if heads_reach_trunk else 0.0,
                further,
            )
        (output.total * share).backward()
        heads = {f"{name}/loss": loss for name, loss in output.head_losses.items()} | output.measures
        self.measures = list(heads)
        return torch.stack([value.to(self.sum_dtype) for value in (output.loss_sum, *heads.values())])

    def numbers(self, *values: float) -> Tensor:
        """Return `values` in a tensor on the device."""
        return _to(np.array(values, np.float32), self.world.device)

    def clear(self) -> None:
        """Clear the gradients."""
        for part in self.clipped_apart:
            for parameter in part:
                parameter.grad = None

    def reset(self) -> None:
        """Forget all that depends on where the optimizers' state is in memory: it has moved."""
        self.clear()
