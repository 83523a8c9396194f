"""What is done in another way on a GPU, beside the plain way, on a real one. Elsewhere only Triton's interpreter runs."""

import math
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_step import ALL_HEADS, NUM_ROWS, SEQ_LENGTH, VOCAB, make_step

from configs.schema import ModelConfig
from lm.distributed import World
from lm.model import NORM_EPS, RMSNorm, Transformer, rotary_tables, rotate
from lm.optim import set_learning_rate
from lm.train_step import StepPlan

GPU = torch.cuda.is_available()
on_a_gpu = pytest.mark.skipif(not GPU, reason="there is no GPU")


# ---- kernels -------------------------------------------------------------------------------------------------------


def attention_inputs(qkv, q_norm, k_norm, cos, sin):
    """As lm/model.py writes it down."""
    q, k, v = (y.view(*qkv.shape[:2], -1, 2 * cos.shape[1]) for y in qkv.chunk(3, dim=-1))
    q, k = (rotate(norm(y).transpose(1, 2), cos, sin).transpose(1, 2) for norm, y in ((q_norm, q), (k_norm, k)))
    return q, k, v


def gradients(outputs, weights, inputs):
    return torch.autograd.grad(sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)), inputs)


def kernels_agree(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Rows, heads and channels that are no multiples of what a program takes at once."""
    from lm import gpu_kernels

    torch.manual_seed(0)
    for B, T, H, K in ((2, 24, 3, 32), (3, 40, 6, 64), (1, 5, 1, 128)):
        qkv = torch.randn(B, T, 3 * H * K, device=device, dtype=dtype, requires_grad=True)
        norms = [RMSNorm(K).to(device) for _ in range(2)]
        for norm in norms:
            torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        cos, sin = (table.to(device) for table in rotary_tables(T, K))
        outputs = gpu_kernels.norm_rotate(qkv, norms[0].weight, norms[1].weight, cos, sin, NORM_EPS)
        expected = attention_inputs(qkv, *norms, cos, sin)
        # As attention's backward pass gives them: heads before positions.
        weights = [torch.randn_like(y.transpose(1, 2)).transpose(1, 2) for y in outputs]
        inputs = (qkv, norms[0].weight, norms[1].weight)
        torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance)
        found, wanted = gradients(outputs, weights, inputs), gradients(expected, weights, inputs)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * math.sqrt(B * T * H))
    for size in (96, 1_300):
        gate_up = torch.randn(2, 5, 2 * size, device=device, dtype=dtype, requires_grad=True)
        gate, up = gate_up.chunk(2, dim=-1)
        found, wanted = gpu_kernels.swiglu(gate_up), F.silu(gate) * up
        weight = [torch.randn_like(found)]
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        pair = gradients([found], weight, [gate_up]), gradients([wanted], weight, [gate_up])
        torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)


if __name__ == "__main__":
    kernels_agree("cpu", torch.float32, 1e-5)


@pytest.mark.skipif(GPU or not find_spec("triton"), reason="Triton is not installed, or a GPU is there to run it")
def test_the_kernels_compute_what_the_model_writes_down():
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@on_a_gpu
def test_the_kernels_compute_it_on_a_gpu():
    kernels_agree("cuda", torch.float32, 1e-4)
    kernels_agree("cuda", torch.bfloat16, 2e-2)


@on_a_gpu
def test_a_compiled_trunk_of_kernels_has_the_gradients_of_the_plain_one():
    config = ModelConfig(hidden_size=128, num_layers=2, num_heads=2, seq_length=64, mlp_size=192)
    torch.manual_seed(0)
    trunk = Transformer(config, VOCAB).cuda()
    for parameter in trunk.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(VOCAB, (4, 64)).cuda()
    weight = torch.randn(4, 64, 128).cuda()

    def run(forward, low_precision):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=low_precision):
            hidden = forward(trunk.embed(tokens))
        parameters = [parameter for name, parameter in trunk.named_parameters() if name != "output.weight"]
        return torch.autograd.grad((hidden * weight).sum(), parameters)

    exact = run(trunk.forward_embedded, False)
    plain, kernels = run(trunk.forward_embedded, True), run(torch.compile(trunk.forward_embedded), True)
    for one, other, true in zip(kernels, plain, exact, strict=True):
        assert (one - true).norm() < 1.5 * (other - true).norm() + 1e-3 * true.norm()


# ---- recorded steps ------------------------------------------------------------------------------------------------


def train(recorded: bool, num_steps: int = 12, unsound: int = 5) -> tuple[list[float], list, list]:
    """Losses, whether skipped, and the weights after each step."""
    step = make_step(
        ALL_HEADS, world=World(0, 0, 1, torch.device("cuda")), batch_rows=NUM_ROWS // 2, clip=1.0,
        trunk_gradient_scale=lambda progress: max(0.0, 1 - 2 * progress),
        multi_token_weights=lambda progress: [max(0.0, 0.5 - progress)],
    )  # fmt: skip
    if not recorded:
        step._pool = None
    losses, skipped, weights = [], [], []
    for index in range(num_steps):
        set_learning_rate(step.optimizers, 1 - index / num_steps)
        rows = np.random.default_rng(index % 4).integers(VOCAB, size=(NUM_ROWS, SEQ_LENGTH + 1))
        last_rows = NUM_ROWS - 3 * (index == num_steps - 1)  # the last step of a run is a shorter one
        plan = StepPlan(NUM_ROWS * index, last_rows, last_rows * SEQ_LENGTH)
        bounds = step.bounds.clone()
        if index == unsound:
            step.bounds.zero_()
        result = step(rows[:last_rows], plan, index / num_steps)
        step.bounds.copy_(bounds)
        losses.append(result.loss)
        weights.append([parameter.detach().clone() for parameter in step.model.parameters()])
        unchanged = index > 0 and all(map(torch.equal, weights[-2], weights[-1]))
        assert unchanged == result.skipped
        skipped.append(unchanged)
    assert bool(step._graphs) == recorded
    return losses, skipped, weights[-1]


@on_a_gpu
def test_a_recorded_step_does_what_the_plain_one_does():
    losses, skipped, weights = train(recorded=True)
    plain_losses, plain_skipped, plain_weights = train(recorded=False)
    assert skipped == plain_skipped == [index == 5 for index in range(12)]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)
    for one, other in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
