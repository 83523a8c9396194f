"""Trunk and heads as the one module that DDP wraps.

The trunk, and a callable for the language model's loss, are handed in; nothing here knows how they work. By default
(`auxiliary.trunk_gradient` "none") the heads read detached states: the trunk's gradients are bit for bit what they are
without heads. Trunk and heads are two compiled graphs, so that the trunk's does not depend on which heads are on.

What a weight does: `total = loss + num_tokens * sum_h weight_h * loss_h`, `loss` the language model's. Summed over
micro-batches and divided by the step's token count, that is the exact mean of its loss plus token-weighted head losses.
While the heads read detached states, a weight scales only the gradients of parameters no other loss reaches, and Muon and
Adam divide such a scale out again: it then matters only through epsilon, the clip, and the ratio of `dynamics_weight` to
`policy_kl_weight`, which share the transition. With a trunk gradient the weights trade the heads against the language model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from aux_heads.base import HeadInput, draw_positions, scale_gradient
from aux_heads.dynamics import Dynamics
from aux_heads.policy import Policy
from aux_heads.span_contrastive import SpanContrastive
from aux_heads.value import HORIZON, Value
from configs.errors import UserError
from configs.schema import AuxiliaryConfig

MIN_SEQ_LENGTH = 2 * HORIZON
IGNORE_INDEX = -100
# Share of what a compiled trunk would keep for its backward pass: attention's scores and the like, of many bytes and few
# FLOPs, are computed again. At 384x5 and 512 tokens of context 18% less memory in all for 1% of the time. A GPU's fused
# attention keeps no scores.
CPU_ACTIVATION_BUDGET = 0.8

Further = Sequence[tuple[Tensor, float]]
LossFunction = Callable[[Tensor, Tensor, Tensor, Further], tuple[Tensor, Tensor]]
"""(hidden_ND, weight_VD, targets_N with -100 ignored, further targets of the same rows with their weights) -> (what to
learn from: the sum of all of it, losses_N of the next tokens, detached)."""


@dataclass(frozen=True)
class JointOutput:
    """`total` is what to call backward on; it and `loss_sum` are sums over targets, in nats."""

    total: Tensor
    loss_sum: Tensor  # of next tokens alone
    head_losses: dict[str, Tensor]  # by head, unweighted means, detached
    measures: dict[str, Tensor]  # "head/measure", detached scalars


def build_heads(aux: AuxiliaryConfig, hidden_size: int, seq_length: int) -> nn.ModuleDict:
    """The heads that are on; empty if none is. Leaves torch's global random numbers as it found them.

    `dynamics` is there for policy too. Raises UserError if rows are too short to look ahead in.
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
    """`trunk(tokens_BT) -> hidden_BTD` is `trunk.forward_embedded(trunk.embed(tokens_BT))`, its output layer `trunk.output`;
    `heads` of `build_heads`."""

    trunk: Any
    heads: Any  # modules, which hide from a type checker what they have beyond a module

    def __init__(
        self, trunk: nn.Module, heads: nn.ModuleDict, aux: AuxiliaryConfig, loss_fn: LossFunction, end_of_text: int = 0
    ):
        super().__init__()
        self.trunk = trunk
        self.heads = heads
        self.loss_fn = loss_fn
        self.end_of_text = end_of_text
        weights = {
            "dynamics": aux.dynamics_weight if aux.enable_dynamics else None,
            "policy": aux.policy_kl_weight,
            "value": aux.value_weight,
            "span_contrastive": aux.span_contrastive_weight,
        }
        self.weights = {name: weight for name, weight in weights.items() if name in heads and weight is not None}
        self.trunk_forward = self.trunk.forward
        self.heads_forward = self.heads_eagerly

    def compile_trunk_and_heads(self, **options: Any) -> None:
        """Two graphs. The trunk itself stays eager, for callers with other shapes; parameter names stay as they are."""
        if self.trunk.embed.weight.device.type == "cpu":  # read when a graph is first run
            torch._functorch.config.activation_memory_budget = CPU_ACTIVATION_BUDGET
        forward_embedded = torch.compile(self.trunk.forward_embedded, **options)
        # Compiled, the embedding's gradient is a scatter of single numbers: slower on a CPU, and in no fixed order.
        self.trunk_forward = lambda tokens_BT: forward_embedded(self.trunk.embed(tokens_BT))
        self.heads_forward = torch.compile(self.heads_eagerly, fullgraph=True, **options)

    def draw(self, num_rows: int, seq_length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random positions of one micro-batch, on the CPU: a function of the shapes and of `generator` alone."""
        drawn = {}
        if "dynamics" in self.heads or "value" in self.heads:
            drawn["positions"] = draw_positions(num_rows, seq_length, generator)
        if "policy" in self.heads:
            drawn |= self.heads["policy"].draw(num_rows, drawn["positions"].shape[1], generator)
        if "span_contrastive" in self.heads:
            drawn |= self.heads["span_contrastive"].draw(num_rows, seq_length, generator)
        return drawn

    def forward(
        self,
        tokens_BT1: Tensor,
        targets_BT: Tensor,
        drawn: dict[str, Tensor],
        trunk_gradient_scale: float | Tensor = 0.0,
        further: Further = (),
    ) -> JointOutput:
        """One micro-batch: `targets_BT` is tokens_BT1[:, 1:], with -100 where nothing is to be learnt; `drawn` is
        what `draw` gave; `further` are more targets (B * T,) of the language model."""
        hidden_BTD = self.trunk_forward(tokens_BT1[:, :-1])
        output_VD = self.trunk.output.weight
        total, losses_N = self.loss_fn(hidden_BTD.flatten(0, 1), output_VD, targets_BT.flatten(), further)
        valid_BT = targets_BT != IGNORE_INDEX
        num_tokens = valid_BT.sum()
        if not self.heads:
            return JointOutput(total, losses_N.sum(), {}, {})

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
            drawn,
        )
        head_total = sum(self.weights[name] * loss for name, loss in losses.items())
        total = total + num_tokens * head_total
        detached = {name: loss.detach() for name, loss in losses.items()}
        return JointOutput(total, losses_N.sum(), detached, measures)

    @torch.no_grad()
    def measure(
        self, tokens_BT1: Tensor, valid_BT: Tensor, hidden_BTD: Tensor, losses_BT: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What the heads lose ("head/loss") and measure on rows whose states and losses are known; {} without heads.

        Not compiled: that would be a graph of its own, for something done once in a while."""
        if not self.heads:
            return {}
        num_rows, seq_length = valid_BT.shape
        drawn = self.draw(num_rows, seq_length, generator)
        losses, measures = self.heads_eagerly(
            hidden_BTD,
            tokens_BT1,
            losses_BT,
            valid_BT,
            self.trunk.embed.weight,
            self.trunk.output.weight,
            {name: positions.to(tokens_BT1.device) for name, positions in drawn.items()},
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
        drawn: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(losses by head, measures by "head/measure"): tensors in, tensors out, one graph."""
        x = HeadInput(
            hidden_BTD, tokens_BT1, token_losses_BT, valid_BT, embedding_VD, output_VD, drawn, self.end_of_text
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
