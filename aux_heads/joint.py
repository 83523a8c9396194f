"""Trunk and heads as the one module that DDP wraps.

The trunk and a callable for the language model's loss are passed in; nothing here depends on how
they work. By default (`auxiliary.trunk_gradient` "none") the heads read detached states: the
trunk's gradients are bit for bit those without heads. Trunk and heads are two compiled graphs, so
that the trunk's does not depend on which heads are on.

The effect of a weight: `total = loss + num_targets * sum_h weight_h * loss_h`, with `loss` the
language model's. Summed over micro-batches and divided by the step's token count, this is the
exact mean of its loss plus token-weighted head losses. While the heads read detached states, a
weight scales only the gradients of parameters that no other loss reaches, and Muon and Adam divide
such a scale out again: it then matters only through epsilon, the clipping, and the ratio of
`dynamics_weight` to `policy_kl_weight`, which share the transition. With a trunk gradient the
weights trade the heads off against the language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from aux_heads.base import HeadInput, sample_positions, scale_gradient
from aux_heads.dynamics import Dynamics
from aux_heads.policy import Policy
from aux_heads.span_contrastive import SpanContrastive
from aux_heads.value import HORIZON, Value
from configs.errors import UserError
from configs.schema import AuxiliaryConfig

MIN_SEQ_LENGTH = 2 * HORIZON
# Share of the activations that a compiled trunk keeps for its backward pass: those of many bytes
# and few FLOPs, such as attention scores, are recomputed. At 384x5 and 512 tokens of context this
# takes 18% less memory in all for 1% of the time. A GPU's fused attention keeps no scores.
CPU_ACTIVATION_BUDGET = 0.8

Further = Sequence[tuple[Tensor, float]]
LossFunction = Callable[[Tensor, Tensor, Tensor, Further], tuple[Tensor, Tensor]]
"""(hidden_ND, weight_VD, targets_N with -100 ignored, MTP targets of the same rows with their
weights) -> (the sum of all losses, to call backward on; losses_N of the next tokens, detached)."""


@dataclass(frozen=True)
class JointOutput:
    """The losses of a micro-batch. Call backward on `total`; it and `loss_sum` are
    sums over targets, in nats."""

    total: Tensor
    loss_sum: Tensor  # of next tokens only
    head_losses: dict[str, Tensor]  # by head, unweighted means, detached
    measures: dict[str, Tensor]  # "head/measure", detached scalars


def build_heads(aux: AuxiliaryConfig, hidden_size: int, seq_length: int) -> nn.ModuleDict:
    """Build the heads that are on; empty if none is. Leaves torch's global random state unchanged.

    Policy needs `dynamics` too. Raises UserError if rows are too short for
    the heads to look ahead.
    """
    heads = nn.ModuleDict()
    if not aux.any_head:
        return heads
    if seq_length < MIN_SEQ_LENGTH:
        raise UserError(
            f"model.seq_length is {seq_length}, but auxiliary heads look {HORIZON} tokens ahead: "
            f"use at least {MIN_SEQ_LENGTH}, or turn the heads off."
        )
    with torch.random.fork_rng(devices=[]):
        if aux.enable_dynamics or aux.enable_policy:
            heads["dynamics"] = Dynamics(hidden_size)
        if aux.enable_policy:
            heads["policy"] = Policy()
        if aux.enable_value:
            heads["value"] = Value(hidden_size)
        if aux.enable_span_contrastive:
            heads["span_contrastive"] = SpanContrastive(
                hidden_size,
                fraction=aux.span_mask_fraction,
                temperature=aux.span_contrastive_temperature,
                l2_normalize=aux.span_l2_normalize,
            )
    return heads


class JointModel(nn.Module):
    """A trunk with its heads. `trunk(tokens_BT) -> hidden_BTD` is
    `trunk.forward_embedded(trunk.embed(tokens_BT))`, its output layer is `trunk.output`;
    `heads` comes from `build_heads`."""

    trunk: Any
    heads: Any  # modules: their type hides attributes beyond nn.Module's

    def __init__(
        self, trunk: nn.Module, heads: nn.ModuleDict, aux: AuxiliaryConfig, loss_fn: LossFunction, end_of_text: int = 0
    ):
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.end_of_text = end_of_text
        weights = {
            "dynamics": aux.dynamics_weight if aux.enable_dynamics else None,
            "policy": aux.policy_kl_weight,
            "value": aux.value_weight,
            "span_contrastive": aux.span_contrastive_weight,
        }
        self.weights = {name: weight for name, weight in weights.items() if name in heads and weight is not None}
        self.run_eagerly(loss_fn)

    def run_eagerly(self, loss_fn: LossFunction) -> None:
        """Use no compiled code of trunk and heads, and `loss_fn`."""
        self.trunk_forward, self.heads_forward, self.loss_fn = self.trunk.forward, self.heads_eagerly, loss_fn

    def compile_trunk_and_heads(self, **options: Any) -> None:
        """Compile two graphs. The trunk itself stays eager, for callers with other shapes;
        parameter names stay the same."""
        if self.trunk.embed.weight.device.type == "cpu":  # read when a graph first runs
            torch._functorch.config.activation_memory_budget = CPU_ACTIVATION_BUDGET
        forward_embedded = torch.compile(self.trunk.forward_embedded, **options)
        # The embedding stays eager: compiled, its gradient is an elementwise scatter, slower on a
        # CPU and in no fixed order.
        self.trunk_forward = lambda tokens_BT: forward_embedded(self.trunk.embed(tokens_BT))
        self.heads_forward = torch.compile(self.heads_eagerly, fullgraph=True, **options)

    def sample_positions(self, num_rows: int, seq_length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Sample the positions of one micro-batch on the CPU, as a function of the shapes
        and of `generator` alone."""
        sampled = {}
        if "dynamics" in self.heads or "value" in self.heads:
            sampled["positions"] = sample_positions(num_rows, seq_length, generator)
        if "policy" in self.heads:
            sampled |= self.heads["policy"].sample_positions(num_rows, sampled["positions"].shape[1], generator)
        if "span_contrastive" in self.heads:
            sampled |= self.heads["span_contrastive"].sample_positions(num_rows, seq_length, generator)
        return sampled

    def forward(
        self,
        tokens_BT1: Tensor,
        targets_BT: Tensor,
        sampled: dict[str, Tensor],
        trunk_gradient_scale: float | Tensor = 0.0,
        further: Further = (),
    ) -> JointOutput:
        """Compute the losses of one micro-batch.

        `targets_BT` is tokens_BT1[:, 1:], with -100 where there is no target; `sampled` is returned
        by `sample_positions`; `further` holds MTP targets (B * T,) with their weights.
        """
        hidden_BTD = self.trunk_forward(tokens_BT1[:, :-1])
        output_VD = self.trunk.output.weight
        total, losses_N = self.loss_fn(hidden_BTD.flatten(0, 1), output_VD, targets_BT.flatten(), further)
        if not self.heads:
            return JointOutput(total, losses_N.sum(), {}, {})

        valid_BT = targets_BT >= 0
        num_targets = valid_BT.sum()
        head_hidden_BTD = hidden_BTD.detach()
        if isinstance(trunk_gradient_scale, Tensor) or trunk_gradient_scale:
            head_hidden_BTD = scale_gradient(hidden_BTD, trunk_gradient_scale)
        losses, measures = self.heads_forward(
            head_hidden_BTD,
            tokens_BT1,
            losses_N.view_as(targets_BT),
            valid_BT,
            self.trunk.embed.weight.detach(),
            output_VD.detach(),
            sampled,
        )
        head_total = sum(self.weights[name] * loss for name, loss in losses.items())
        total = total + num_targets * head_total
        detached = {name: loss.detach() for name, loss in losses.items()}
        return JointOutput(total, losses_N.sum(), detached, measures)

    @torch.no_grad()
    def measure(
        self, tokens_BT1: Tensor, valid_BT: Tensor, hidden_BTD: Tensor, losses_BT: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the heads' losses ("head/loss") and measures on rows with known states and
        losses; {} without heads.

        Not compiled, since this would be another graph for something done rarely.
        """
        if not self.heads:
            return {}
        num_rows, seq_length = valid_BT.shape
        sampled = self.sample_positions(num_rows, seq_length, generator)
        losses, measures = self.heads_eagerly(
            hidden_BTD,
            tokens_BT1,
            losses_BT,
            valid_BT,
            self.trunk.embed.weight,
            self.trunk.output.weight,
            {name: positions.to(tokens_BT1.device) for name, positions in sampled.items()},
        )
        return {f"{name}/loss": loss for name, loss in losses.items()} | measures

    def heads_eagerly(
        self,
        hidden_BTD: Tensor,
        tokens_BT1: Tensor,
        token_losses_BT: Tensor,
        valid_BT: Tensor,
        embedding_VD: Tensor,
        output_VD: Tensor,
        sampled: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (losses by head, measures by "head/measure"): one graph
        from tensors to tensors."""
        x = HeadInput(
            hidden_BTD, tokens_BT1, token_losses_BT, valid_BT, embedding_VD, output_VD, sampled, self.end_of_text
        )
        unrolled = self.heads["dynamics"].unroll(x) if "dynamics" in self.heads else None
        inputs = {"dynamics": (x, unrolled), "policy": (x, unrolled), "value": (x, unrolled), "span_contrastive": (x,)}
        losses: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        for name in self.weights:
            output = self.heads[name](*inputs[name])
            losses[name] = output.loss
            measures |= {f"{name}/{key}": value.detach() for key, value in output.measures.items()}
        return losses, measures
