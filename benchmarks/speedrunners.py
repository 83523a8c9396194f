"""nanochat and modded-nanogpt's tuned Muon baseline as contenders (benchmarks/contenders.py): models and optimizers from
their checkouts, set up as their own scripts do it, their rates times `options.learning_rate` (default 1).

Both scale rates by the square root of the step's size, as nanochat's script does: they were tuned at 524,288 tokens.
"""

from __future__ import annotations

import math
import os
import sys
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.contenders import Options, Shape, Steps, device, micro_batches, micro_rows

HEAD_DIM = 128
TUNED_TOKENS_PER_STEP = 2**19


def step_scale(options: Options) -> float:
    return math.sqrt(options.tokens_per_step / TUNED_TOKENS_PER_STEP)


# ---- nanochat: scripts/base_train.py -----------------------------------------------------------------------------

RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "scalar_lr": 0.5, "matrix_lr": 0.02}
WARMUP_STEPS, WARMDOWN, FINAL = 40, 0.65, 0.05
WEIGHT_DECAY = 0.28
TOKENS_PER_PARAMETER = 12
REFERENCE_DEPTH = 12  # of the model for which its weight decay was found


def nanochat(shape: Shape, steps: Steps, options: Options) -> None:
    """Full attention in every layer, as its script advises without Flash Attention 3; on a CPU tables in fp32."""
    if device() == "cpu":
        os.environ["NANOCHAT_DTYPE"] = "float32"
    sys.path.insert(0, str(options.checkouts / "nanochat"))
    from nanochat.gpt import GPT, GPTConfig

    def build(width: int, layers: int, where: str) -> torch.nn.Module:
        heads = max(1, width // HEAD_DIM)
        config = GPTConfig(shape.length, shape.vocab, layers, heads, heads, width, window_pattern="L")
        with torch.device("meta"):
            model = GPT(config)
        return model if where == "meta" else model.to_empty(device=where)

    torch.manual_seed(options.seed)
    plain = build(shape.width, shape.layers, device())
    plain.init_weights()
    model = torch.compile(plain, dynamic=False) if options.compiled else plain

    tuned_for, horizon = (
        TOKENS_PER_PARAMETER * (counts["transformer_matrices"] + counts["lm_head"])
        for counts in (
            build(64 * REFERENCE_DEPTH, REFERENCE_DEPTH, "meta").num_scaling_params(),
            plain.num_scaling_params(),
        )
    )
    decay = WEIGHT_DECAY * step_scale(options) * tuned_for / horizon
    scale = (options.learning_rate or 1.0) * step_scale(options)
    optimizer = plain.setup_optimizer(weight_decay=decay, **{name: rate * scale for name, rate in RATES.items()})

    def logits(tokens: Tensor) -> Tensor:
        with options.autocast(device()):
            return plain(tokens)

    options.logits = logits
    warmdown = round(WARMDOWN * options.num_steps)
    for step, rows in enumerate(steps):
        left = min(1.0, (options.num_steps - step) / warmdown)
        factor = (step + 1) / WARMUP_STEPS if step < WARMUP_STEPS else left + (1 - left) * FINAL
        momentum = 0.85 + 0.12 * step / 400 if step < 400 else 0.97 * left + 0.90 * (1 - left)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * step / options.num_steps))
        batches = micro_batches(rows, micro_rows(options, shape))
        for inputs, targets in batches:
            with options.autocast(device()):
                loss = model(inputs, targets)
            (loss / len(batches)).backward()
        optimizer.step()
        plain.zero_grad(set_to_none=True)


# ---- modded-nanogpt: records/track_3_optimization/train_gpt_simple.py --------------------------------------------

COOLDOWN = 0.7
SOFTCAP = 15


def modded_nanogpt(shape: Shape, steps: Steps, options: Options) -> None:
    """The part of its script before "Setup" is the model and Muon; what follows is for its own data on 8 GPUs."""
    script = options.checkouts / "modded-nanogpt" / "records" / "track_3_optimization" / "train_gpt_simple.py"
    namespace: dict = {"__name__": "modded_nanogpt"}
    exec(compile(script.read_text().partition("#                Setup")[0], script, "exec"), namespace)
    simple = SimpleNamespace(**namespace)
    torch.manual_seed(options.seed)
    plain = simple.GPT(shape.vocab, shape.layers, shape.width).to(device())
    for name, parameter in plain.named_parameters():
        if name.endswith("gains"):
            torch.nn.init.ones_(parameter)
        elif name.endswith("bias") or "proj" in name:
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else (3 * parameter.size(-1)) ** -0.5)
    model = torch.compile(plain, dynamic=False) if options.compiled else plain

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    flat = [parameter for parameter in plain.parameters() if parameter.ndim < 2]
    groups = [([plain.embed.weight], 0.7), ([plain.proj.weight], 0.004), (flat, 0.015)]
    scale = (options.learning_rate or 1.0) * step_scale(options)
    optimizers = [
        torch.optim.AdamW(
            [{"params": parameters, "lr": scale * rate} for parameters, rate in groups],
            betas=(0.8, 0.95),
            eps=1e-10,
            weight_decay=0.001,
            fused=True,
        ),
        simple.Muon(
            [parameter for parameter in plain.blocks.parameters() if parameter.ndim >= 2],
            lr=scale * 0.025,
            weight_decay=0.05,
        ),
    ]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def logits(tokens: Tensor) -> Tensor:
        """It returns a loss alone: these are what its output layer gives, softly capped as it does."""
        outputs: list[Tensor] = []
        catch = plain.proj.register_forward_hook(lambda _, __, output: outputs.append(output))
        with catch, options.autocast(device()):
            plain(tokens, tokens)
        uncapped = outputs[0].float()
        return SOFTCAP * uncapped * (uncapped.square() + SOFTCAP**2).rsqrt()

    options.logits = logits
    for step, rows in enumerate(steps):
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * min(1.0, (1 - step / options.num_steps) / COOLDOWN)
        for inputs, targets in micro_batches(rows, micro_rows(options, shape)):
            with options.autocast(device()):
                model(inputs, targets).backward()
        for optimizer in optimizers:
            optimizer.step()
        plain.zero_grad(set_to_none=True)
    torch.distributed.destroy_process_group()
