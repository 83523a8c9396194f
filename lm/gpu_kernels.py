"""Two pieces of a layer, each in one pass over memory where a compiler's kernels take several: for NVIDIA GPUs, in Triton.

What they compute is written plainly in lm/model.py, which is what runs elsewhere; here the arithmetic between reading and
writing is fp32. Each is an operator of its own (`small_lm::...`), so that torch.compile and autograd take it as one.

Shapes: B rows, T positions, H heads, K head dimension, P = K / 2 pairs, D = H * K, F mlp size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS_AT_ONCE = 1024  # of a program, whole vectors of one position and head
CHANNELS_AT_ONCE = 1024


def usable(x: Tensor, head_dim: int = 64) -> bool:
    """Whether they are made for such a tensor."""
    return x.device.type == "cuda" and x.dtype == torch.bfloat16 and head_dim in (32, 64, 128, 256)


# ---- queries and keys: normalised, then turned by their position --------------------------------------------------


@triton.jit
def _load_pairs(start, numbers, row_stride, num_heads, inside, P: tl.constexpr):
    """Both halves (R, P) of the vectors `numbers` (R,) of rows that begin `row_stride` apart, and where they are."""
    first = ((numbers // num_heads).to(tl.int64) * row_stride + (numbers % num_heads) * 2 * P)[:, None]
    offsets = first + tl.arange(0, P)[None, :]
    mask = inside[:, None]
    one = tl.load(start + offsets, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(start + offsets + P, mask=mask, other=0.0).to(tl.float32)
    return one, other, offsets, mask


@triton.jit
def _tables(cos, sin, numbers, num_heads, length, P: tl.constexpr):
    offsets = ((numbers // num_heads) % length)[:, None] * P + tl.arange(0, P)[None, :]
    return tl.load(cos + offsets), tl.load(sin + offsets)


@triton.jit
def _norm_rotate_forward(
    x, weight, cos, sin, out, row_stride, count, num_heads, length, eps, P: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    numbers = tl.program_id(0) * R + tl.arange(0, R)
    a, b, _, mask = _load_pairs(x, numbers, row_stride, num_heads, numbers < count, P)
    pairs = tl.arange(0, P)
    scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * P) + eps)[:, None]
    a = a * scale * tl.load(weight + pairs)[None, :]
    b = b * scale * tl.load(weight + P + pairs)[None, :]
    c, s = _tables(cos, sin, numbers, num_heads, length, P)
    offsets = numbers.to(tl.int64)[:, None] * (2 * P) + pairs[None, :]
    tl.store(out + offsets, a * c - b * s, mask=mask)
    tl.store(out + offsets + P, b * c + a * s, mask=mask)


@triton.jit
def _norm_rotate_backward(
    grad, x, weight, cos, sin, grad_x, grad_weight, grad_stride_b, grad_stride_h, grad_stride_t,
    row_stride, count, num_heads, length, eps, P: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    numbers = tl.program_id(0) * R + tl.arange(0, R)
    a, b, offsets, mask = _load_pairs(x, numbers, row_stride, num_heads, numbers < count, P)
    scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * P) + eps)[:, None]
    a, b = a * scale, b * scale
    pairs = tl.arange(0, P)
    row = (numbers // num_heads).to(tl.int64)
    first = (row // length) * grad_stride_b + (row % length) * grad_stride_t + (numbers % num_heads) * grad_stride_h
    places = first[:, None] + pairs[None, :]
    turned_a = tl.load(grad + places, mask=mask, other=0.0).to(tl.float32)
    turned_b = tl.load(grad + places + P, mask=mask, other=0.0).to(tl.float32)
    c, s = _tables(cos, sin, numbers, num_heads, length, P)
    ga, gb = turned_a * c + turned_b * s, turned_b * c - turned_a * s
    out = grad_weight + tl.program_id(0) * (2 * P)
    tl.store(out + pairs, tl.sum(ga * a, 0))
    tl.store(out + P + pairs, tl.sum(gb * b, 0))
    ga, gb = ga * tl.load(weight + pairs)[None, :], gb * tl.load(weight + P + pairs)[None, :]
    mean = ((tl.sum(ga * a, 1) + tl.sum(gb * b, 1)) / (2 * P))[:, None]
    tl.store(grad_x + offsets, (ga - a * mean) * scale, mask=mask)
    tl.store(grad_x + offsets + P, (gb - b * mean) * scale, mask=mask)


@torch.library.custom_op("small_lm::norm_rotate", mutates_args=())
def norm_rotate(
    qkv_BTE: Tensor, q_weight_K: Tensor, k_weight_K: Tensor, cos_TP: Tensor, sin_TP: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, RMS-normalised and rotated, and values, each (B, T, H, K), from one product (B, T, 3D)."""
    qkv_BTE = qkv_BTE.contiguous()
    (B, T, width), P = qkv_BTE.shape, cos_TP.shape[1]
    H = width // (6 * P)
    parts, outputs, vectors = qkv_BTE.chunk(3, dim=-1), [], triton.cdiv(PAIRS_AT_ONCE, P)
    for part, weight in zip(parts, (q_weight_K, k_weight_K), strict=False):
        out, count = torch.empty(B, T, H, 2 * P, dtype=qkv_BTE.dtype, device=qkv_BTE.device), B * T * H
        _norm_rotate_forward[(triton.cdiv(count, vectors),)](
            part, weight, cos_TP, sin_TP, out, width, count, H, T, eps, P, vectors
        )
        outputs.append(out)
    return outputs[0], outputs[1], parts[2].reshape(B, T, H, 2 * P).clone()


@norm_rotate.register_fake
def _(qkv_BTE, q_weight_K, k_weight_K, cos_TP, sin_TP, eps):
    (B, T, width), K = qkv_BTE.shape, 2 * cos_TP.shape[1]
    return tuple(qkv_BTE.new_empty(B, T, width // (3 * K), K) for _ in range(3))


@torch.library.custom_op("small_lm::norm_rotate_backward", mutates_args=())
def norm_rotate_backward(
    grad_q_BTHK: Tensor,
    grad_k_BTHK: Tensor,
    grad_v_BTHK: Tensor,
    qkv_BTE: Tensor,
    q_weight_K: Tensor,
    k_weight_K: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the product and of both weights."""
    qkv_BTE = qkv_BTE.contiguous()
    B, T, H, K = grad_v_BTHK.shape
    grad_BTE, grad_weights = torch.empty_like(qkv_BTE), []
    parts, grad_parts = qkv_BTE.chunk(3, dim=-1), grad_BTE.chunk(3, dim=-1)
    vectors = triton.cdiv(PAIRS_AT_ONCE, K // 2)
    programs = triton.cdiv(B * T * H, vectors)
    for part, grad_part, grad, weight in zip(
        parts, grad_parts, (grad_q_BTHK, grad_k_BTHK), (q_weight_K, k_weight_K), strict=False
    ):
        grad = grad if grad.stride(3) == 1 else grad.contiguous()
        grad_weight = torch.empty(programs, K, device=grad.device)
        _norm_rotate_backward[(programs,)](
            grad, part, weight, cos_TP, sin_TP, grad_part, grad_weight, grad.stride(0), grad.stride(2), grad.stride(1),
            3 * H * K, B * T * H, H, T, eps, K // 2, vectors
        )  # fmt: skip
        grad_weights.append(grad_weight.sum(0))
    grad_parts[2].view(B, T, H, K).copy_(grad_v_BTHK)
    return grad_BTE, grad_weights[0], grad_weights[1]


@norm_rotate_backward.register_fake
def _(grad_q, grad_k, grad_v, qkv_BTE, q_weight_K, k_weight_K, cos_TP, sin_TP, eps):
    return torch.empty_like(qkv_BTE), torch.empty_like(q_weight_K), torch.empty_like(k_weight_K)


def _keep_for_norm_rotate(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _norm_rotate_gradients(ctx, grad_q, grad_k, grad_v):
    return *norm_rotate_backward(grad_q, grad_k, grad_v, *ctx.saved_tensors, ctx.eps), None, None, None


norm_rotate.register_autograd(_norm_rotate_gradients, setup_context=_keep_for_norm_rotate)


# ---- SwiGLU -------------------------------------------------------------------------------------------------------


@triton.jit
def _swiglu_forward(gate_up, out, size, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * N + tl.arange(0, N)
    mask = channels < size
    gate = tl.load(gate_up + row * 2 * size + channels, mask=mask).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + channels, mask=mask).to(tl.float32)
    tl.store(out + row * size + channels, gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def _swiglu_backward(grad, gate_up, grad_gate_up, size, N: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * N + tl.arange(0, N)
    mask = channels < size
    gate = tl.load(gate_up + row * 2 * size + channels, mask=mask).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + channels, mask=mask).to(tl.float32)
    g = tl.load(grad + row * size + channels, mask=mask).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(grad_gate_up + row * 2 * size + channels, g * up * (sigmoid + silu * (1 - sigmoid)), mask=mask)
    tl.store(grad_gate_up + row * 2 * size + size + channels, g * silu, mask=mask)


@torch.library.custom_op("small_lm::swiglu", mutates_args=())
def swiglu(gate_up_BTE: Tensor) -> Tensor:
    """silu(gate) * up, (B, T, F), of both in one product (B, T, 2F)."""
    gate_up_BTE = gate_up_BTE.contiguous()
    B, T, width = gate_up_BTE.shape
    out = gate_up_BTE.new_empty(B, T, width // 2)
    grid = (B * T, triton.cdiv(width // 2, CHANNELS_AT_ONCE))
    _swiglu_forward[grid](gate_up_BTE, out, width // 2, CHANNELS_AT_ONCE)
    return out


@swiglu.register_fake
def _(gate_up_BTE):
    return gate_up_BTE.new_empty(*gate_up_BTE.shape[:2], gate_up_BTE.shape[2] // 2)


@torch.library.custom_op("small_lm::swiglu_backward", mutates_args=())
def swiglu_backward(grad_BTF: Tensor, gate_up_BTE: Tensor) -> Tensor:
    grad_BTF, gate_up_BTE = grad_BTF.contiguous(), gate_up_BTE.contiguous()
    B, T, size = grad_BTF.shape
    grad_gate_up = torch.empty_like(gate_up_BTE)
    grid = (B * T, triton.cdiv(size, CHANNELS_AT_ONCE))
    _swiglu_backward[grid](grad_BTF, gate_up_BTE, grad_gate_up, size, CHANNELS_AT_ONCE)
    return grad_gate_up


@swiglu_backward.register_fake
def _(grad_BTF, gate_up_BTE):
    return torch.empty_like(gate_up_BTE)


swiglu.register_autograd(
    lambda ctx, grad: swiglu_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
