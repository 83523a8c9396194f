"""The trunk for decoding one sequence: a key-value cache, few and small operations, and
weights laid out for them.

`Decoder(model)` computes what `Transformer.forward` computes, in the precision of the weights,
without autocast. In a small model the time per token is mostly the overhead of single operations,
so here norms take three, queries and keys are normalised and rotated together, and their norm's
weight is folded into the rotary tables. On a CPU the weights of linear layers are packed by
oneDNN, which takes hardly longer for five positions than for one and uses every thread for either.
On a GPU a pass for one position is captured as a CUDA graph that reads the whole cache behind a
mask: this takes less time than launching its operations one by one.

Build a new one after further training of the model: some weights are copies, some are not. Never
here: the loop that makes text and verifies drafts (generate.py), training, more than one sequence.

Shapes: T new positions, S cache slots (the model's seq_length), E positions so far, D hidden size,
H heads of queries, G heads of keys and values, K head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm.cuda_graph import Graph, NotCapturable
from lm.model import Layer, RMSNorm, Transformer

PACKED_FOR = 4  # typical number of positions in a pass: oneDNN chooses its blocking by it

Linear = Callable[[Tensor], Tensor]


def linear(weight: Tensor) -> Linear:
    """Return the map from x (T, in) to (T, out) for a weight (out, in)."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def rms_norm(x: Tensor, smallest: Tensor) -> Tensor:
    """Return x / rms(x) / sqrt(size), where `smallest` is sqrt(size * epsilon): one operation
    fewer than taking the mean."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), smallest)


class CachedLayer(NamedTuple):
    """A layer's weights and its key-value cache. Norm weights include the factor
    sqrt(size) that `rms_norm` omits."""

    attention_norm: Tensor
    qkv: Linear
    turn_SNK: Tensor  # N = H + G heads of queries and keys: norm weight times cosine,
    turn_other_SNK: Tensor  # and times sine, for the other element of each pair
    proj: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    keys_SGK: Tensor
    values_SGK: Tensor


class Decoder:
    """A decoder of one sequence: hidden states of its next tokens, with the `length`
    positions before them in a cache.

    S is fixed: positions past the training length have no meaning to a rotary model, so the caller
    must `rollback` and encode the last tokens again before the cache overflows (`generate` does).
    """

    @torch.no_grad()
    def __init__(self, model: Transformer):
        config = model.config
        self.max_length, self.length = config.seq_length, 0
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.group_size, self.qk_norm = config.num_heads // config.num_kv_heads, config.qk_norm
        self.device = model.embed.weight.device
        self.embedding_VD = model.embedding_VD()
        self.smallest, self.smallest_head = (
            torch.tensor((size * config.norm_eps) ** 0.5, device=self.device)
            for size in (config.hidden_size, config.head_dim)
        )
        self.norm = model.norm.weight * config.hidden_size**0.5
        self.output = linear(model.output.weight)
        self.layers = [self._cached(layer, model.cos, model.sin) for layer in model.layers]
        self.recorded = self.device.type == "cuda"
        self._graph: Graph | None = None

    def _cached(self, layer: nn.Module, cos_SP: Tensor, sin_SP: Tensor) -> CachedLayer:
        assert isinstance(layer, Layer)
        attention, mlp, scale = layer.attention, layer.mlp, len(layer.mlp_norm.weight) ** 0.5
        weight_NK = torch.ones(self.num_heads + self.num_kv_heads, self.head_dim, device=self.device)
        if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
            norms = (attention.q_norm, self.num_heads), (attention.k_norm, self.num_kv_heads)
            weight_NK = torch.cat([norm.weight.expand(heads, -1) for norm, heads in norms]) * self.head_dim**0.5
        # Zeros: a captured pass reads unwritten slots with weight 0, and 0 times NaN is NaN.
        cache = torch.zeros(2, self.max_length, self.num_kv_heads, self.head_dim, device=self.device)
        return CachedLayer(
            layer.attention_norm.weight * scale,
            linear(attention.qkv.weight),
            torch.cat((cos_SP, cos_SP), dim=-1).unsqueeze(1) * weight_NK,
            torch.cat((-sin_SP, sin_SP), dim=-1).unsqueeze(1) * weight_NK.roll(self.head_dim // 2, dims=-1),
            linear(attention.proj.weight),
            layer.mlp_norm.weight * scale,
            linear(mlp.gate_up.weight),
            linear(mlp.down.weight),
            *cache,
        )

    def rollback(self, length: int) -> None:
        """Drop everything after the first `length` positions, at no cost."""
        assert 0 <= length <= self.length
        self.length = length

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Return states (T, D) after the final norm of `tokens`, appended
        to the cached positions."""
        assert not torch.is_autocast_enabled(self.device.type), "packed weights have one precision"
        end = self.length + len(tokens)
        assert end <= self.max_length, "the caller begins again before the cache overflows"
        states_TD = self._play(tokens[0]) if self.recorded and len(tokens) == 1 else None
        if states_TD is None:
            mask_TE = None
            if self.length and len(tokens) > 1:
                mask_TE = torch.full((len(tokens), end), float("-inf"), device=self.device).triu_(self.length + 1)
            tokens_T = torch.tensor(tokens, device=self.device)
            states_TD = self._states(tokens_T, slice(self.length, end), end, mask_TE)
        self.length = end
        return states_TD

    def _play(self, token: int) -> Tensor | None:
        """Replay the graph for one token and return its state (1, D); None if capture fails."""
        inputs = torch.tensor([token], device=self.device), torch.tensor([self.length], device=self.device)
        try:
            self._graph = self._graph or Graph(self._state, inputs)
        except NotCapturable:
            self.recorded = False
            return None
        return self._graph(inputs).clone()

    def _state(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the state (1, D) of one token, given the token and its position, (1,) each."""
        token_1, position_1 = inputs
        behind_1E = torch.arange(self.max_length, device=self.device).unsqueeze(0) > position_1
        mask_1E = torch.zeros(1, self.max_length, device=self.device).masked_fill_(behind_1E, float("-inf"))
        return self._states(token_1, position_1, self.max_length, mask_1E)

    def _states(self, tokens_T: Tensor, places: slice | Tensor, end: int, mask_TE: Tensor | None) -> Tensor:
        """Return the states of tokens at `places` of the cache, which is read up to `end`."""
        x_TD = self.embedding_VD[tokens_T]
        for layer in self.layers:
            normed_TD = rms_norm(x_TD, self.smallest) * layer.attention_norm
            x_TD = x_TD + self._attention(normed_TD, layer, places, end, mask_TE)
            gate, up = layer.gate_up(rms_norm(x_TD, self.smallest) * layer.mlp_norm).chunk(2, dim=-1)
            x_TD = x_TD + layer.down(F.silu(gate) * up)
        return rms_norm(x_TD, self.smallest) * self.norm

    def _attention(
        self, x_TD: Tensor, layer: CachedLayer, places: slice | Tensor, end: int, mask_TE: Tensor | None
    ) -> Tensor:
        T, num_heads, num_turned = len(x_TD), self.num_heads, self.num_heads + self.num_kv_heads
        qkv = layer.qkv(x_TD).view(T, num_turned + self.num_kv_heads, self.head_dim)
        qk = rms_norm(qkv[:, :num_turned], self.smallest_head) if self.qk_norm else qkv[:, :num_turned]
        turned = qk * layer.turn_SNK[places]
        qk = turned.addcmul_(qk.roll(self.head_dim // 2, dims=-1), layer.turn_other_SNK[places])
        layer.keys_SGK[places] = qk[:, num_heads:]
        layer.values_SGK[places] = qkv[:, num_turned:]
        q, k, v = (y.transpose(0, 1) for y in (qk[:, :num_heads], layer.keys_SGK[:end], layer.values_SGK[:end]))
        if mask_TE is None and T > 1:
            grouped = self.group_size > 1
            y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=grouped)[0]
        else:
            # The queries of a group as further rows for its keys, which then need no copies: (G, H / G * T, K).
            q = q.reshape(self.num_kv_heads, -1, self.head_dim)
            if mask_TE is None:
                y = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
            else:  # a few positions behind others: plain matmuls take less time
                mask = mask_TE.repeat(self.group_size, 1) if self.group_size > 1 else mask_TE
                scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=self.head_dim**-0.5)
                y = torch.bmm(scores.softmax(dim=-1), v)
        return layer.proj(y.reshape(num_heads, T, -1).transpose(0, 1).reshape(T, -1))
