"""The trunk: a decoder with exactly the architecture of `Qwen3ForCausalLM`, or without QK-norm of
`LlamaForCausalLM`, so that exports need no custom code (lm/families.py).

RMSNorm before each block, rotary position embeddings, RMS-normalised queries and keys (QK-norm),
grouped-query attention (GQA), SwiGLU, no biases, no dropout. The forward pass ends after the final
norm: losses and heads read hidden states and `output.weight`, so that (B, T, V) logits are never
materialised. Never here: losses, sampling, device placement.

Shapes: B rows, T positions, D hidden size, H heads of queries, G heads of keys and values (each
for H / G heads of queries), K head dimension, F mlp size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from configs.model import ModelConfig, RopeScaling
from lm.sizes import CPU_ATTENTION_BLOCKS

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, H, T, K), k and v (B, G, T, K) to sums (B, H, T, K)
MASKED = -1e4  # added to masked scores: others are below a few hundred, so their exp is 0


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) over the last dimension, in fp32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32 (Zhang & Sennrich, arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (unit_rms(x, self.eps) * self.weight).to(x.dtype)


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Return how far each pair rotates from one position to the next, in radians (K / 2,) (arXiv
    2104.09864), the slow ones by 1 / factor of it with the `scaling` of Llama 3.1."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    num_rotations = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    unchanged = ((num_rotations - low) / (high - low)).clamp(0, 1)
    return frequencies * (unchanged + (1 - unchanged) / scaling.factor)


def rotary_tables(length: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (length, K / 2), for `rotate`; the two halves of a head form the
    pairs."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Rotate each of the P = K / 2 pairs by its angle; on a CPU half by half, since a flipped
    copy of the whole costs more."""
    if x_BHTK.device.type == "cuda":
        return rotate_flipped(x_BHTK, cos_TP, sin_TP)
    first, second = x_BHTK.chunk(2, dim=-1)
    turned = (first * cos_TP - second * sin_TP, second * cos_TP + first * sin_TP)
    return torch.cat(turned, dim=-1).to(x_BHTK.dtype)


def rotate_flipped(x_BHTK: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Do the same as `rotate` without joining halves, for which a GPU's
    compiler writes slow kernels."""
    flipped = x_BHTK.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    cos_TK, sin_TK = torch.cat((cos_TP, cos_TP), dim=-1), torch.cat((-sin_TP, sin_TP), dim=-1)
    return (x_BHTK * cos_TK + flipped * sin_TK).to(x_BHTK.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal softmax attention; q is (B, H, T, K), k and v are (B, G, T, K)."""
    if q.shape[-2] % CPU_ATTENTION_BLOCKS == 0 and q.device.type == "cpu" and torch.compiler.is_compiling():
        return blocked_attention(q, k, v)
    is_grouped = q.shape[1] != k.shape[1]
    if is_grouped and q.device.type == "cuda" and q.dtype != torch.bfloat16:
        # GPUs without bfloat16 have no fused kernel for groups, and would keep all scores.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        is_grouped = False
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention in a few row blocks of plain matmuls and fp32 softmax; block i
    sees keys 0 .. its own end.

    The CPU's fused kernel is the slow part of a small model's step; compiled, this takes less than
    half of its time and skips most of the masked half. `baddbmm` adds the mask within the matmul,
    which saves a pass over the scores.
    """
    (B, H, length, K), size = q.shape, q.shape[-2] // CPU_ATTENTION_BLOCKS
    if k.shape[1] != H:
        k, v = (x.repeat_interleave(H // k.shape[1], dim=1) for x in (k, v))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    masked = torch.full((size, size), MASKED, dtype=q.dtype, device=q.device).triu(1)
    outputs = []
    for start in range(0, length, size):
        end = start + size
        mask = F.pad(masked, (start, 0))
        scores = torch.baddbmm(mask, q[:, start:end], k[:, :end].transpose(-1, -2), alpha=K**-0.5)
        outputs.append(scores.float().softmax(-1).to(v.dtype) @ v[:, :end])
    return torch.cat(outputs, dim=-2).view(B, H, length, K)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim, self.heads_qkv = config.head_dim, config.heads_qkv
        self.rows_qkv = [heads * config.head_dim for heads in config.heads_qkv]
        self.qkv = nn.Linear(config.hidden_size, sum(self.rows_qkv), bias=False)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.proj = nn.Linear(self.rows_qkv[0], config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, attend: Attend = causal_attention) -> Tensor:
        B, T, _ = x_BTD.shape
        q, k, v = (
            y.view(B, T, heads, self.head_dim).transpose(1, 2)
            for y, heads in zip(self.qkv(x_BTD).split(self.rows_qkv, dim=-1), self.heads_qkv, strict=True)
        )
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(B, T, -1))


def products(x: Tensor, weight: Tensor, parts: int) -> list[Tensor]:
    """Compute `F.linear(x, weight)` in `parts` separate matmuls.

    If one product were split instead, its backward would concatenate the parts' gradients, which
    takes a GPU longer than the larger matmul saves.
    """
    return [F.linear(x, part) for part in weight.chunk(parts)]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202); gate and up share one weight."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.mlp_size, bias=False)
        self.down = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        on_gpu = x.device.type == "cuda"
        gate, up = products(x, self.gate_up.weight, 2) if on_gpu else self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend = causal_attention) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A decoder from token ids (B, T) to hidden states (B, T, D) after the final norm; logits
    are `hidden @ output.weight.T`.

    With `embedding_norm` only the directions of the rows of `embed` count: the layers read them at an rms of 1.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(vocab_size, config.hidden_size)
        layers = [Layer(config) for _ in range(config.num_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.output = nn.Linear(config.hidden_size, vocab_size, bias=False)
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        cos, sin = rotary_tables(config.seq_length, frequencies)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialize(layers)
        if config.tie_embeddings:
            self.output.weight = self.embed.weight

    def initialize(self, layers: list[Layer]) -> None:
        """Initialise the weights: blocks start as the identity (zero output projections), and
        the first prediction is nearly uniform."""
        width = self.config.hidden_size
        nn.init.normal_(self.embed.weight, std=0.02 if self.config.tie_embeddings else 1.0)
        nn.init.normal_(self.output.weight, std=0.001)
        for layer in layers:
            for linear in (layer.attention.qkv, layer.mlp.gate_up):
                nn.init.uniform_(linear.weight, -((3 / width) ** 0.5), (3 / width) ** 0.5)
            nn.init.zeros_(layer.attention.proj.weight)
            nn.init.zeros_(layer.mlp.down.weight)
            for norm in (layer.attention.q_norm, layer.attention.k_norm):
                if isinstance(norm, RMSNorm):
                    nn.init.constant_(norm.weight, 1.2)  # sharper attention than QK-norm's unit gain allows

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return hidden states (B, T, D). The caller keeps T within `seq_length`: there are no
        rotary tables beyond it."""
        return self.forward_embedded(self.embed(tokens_BT))

    def embedding_VD(self) -> Tensor:
        """Return the embedding (V, D) as the layers read it."""
        weight_VD = self.embed.weight
        return unit_rms(weight_VD, self.config.norm_eps) if self.config.embedding_norm else weight_VD

    def forward_embedded(self, x_BTD: Tensor) -> Tensor:
        """Compute everything after the embedding; this is the part that is compiled."""
        length, device = x_BTD.shape[1], x_BTD.device.type
        if self.config.embedding_norm:
            x_BTD = unit_rms(x_BTD, self.config.norm_eps)
        # Otherwise the residual stream would be fp32, with twice the memory traffic.
        if torch.is_autocast_enabled(device):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device))
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos, sin)
        return self.norm(x_BTD.float())
