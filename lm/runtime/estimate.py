"""What a preset costs before anything of it is built: parameters, FLOPs, memory, disk and time.

Pure arithmetic over a preset and a Machine (lm/runtime/machine.py), without torch, so the menu can show it first. Time and
memory are guesses until a trial step or a run has measured them: `record_speed` keeps what was measured for the next
menu.

D hidden size, F mlp size, V vocabulary, T seq_length. One multiply-add is 2 FLOPs; backward costs twice forward.
"""

import dataclasses
import statistics

from configs.errors import UserError
from configs.schema import AuxiliaryConfig, ModelConfig, Preset, TrainConfig
from lm.checkpoint.store import required_bytes
from lm.runtime.machine import Machine, available_memory

# The heads' shapes that matter for cost (aux_heads/): one position in eight, three tokens ahead.
UNROLL_STEPS, POSITION_SHARE, POLICY_SHARE = 3, 1 / 8, 1 / 16
TRANSITION_SQUARES = 12  # weights of dynamics, in squares of the width
VALUE_SIZE, VALUE_BINS, SPAN_SIZE = 256, 64, 128
POLICY_POSITIONS = 2048

# Fitted to compiled bf16 steps on a CPU, 64 to 1024 wide, 256 to 4,096 tokens of context, 1,024 to 32,768 tokens in the
# vocabulary (benchmarks/growing.py).
# Bytes kept for the backward pass: for each token, layer and channel (a CPU computes some of it again), and for each
# attention score. Factors without bf16 and without torch.compile.
LAYER_BYTES, SCORE_BYTES = {"cpu": 50, "cuda": 38}, 2.6
LOGIT_BYTES, LOGIT_ROWS = 4, 32_768  # of a GPU's chunk of the loss, in bf16 with its gradient; that of a CPU is small
FP32_FACTOR, EAGER_FACTOR = 1.7, {"cpu": 2.75, "cuda": 2.0}
PROCESS_BYTES = {"cpu": 500_000_000, "cuda": 500_000_000}  # Python, torch and compiler, or CUDA context
PRODUCER_BYTES = 400_000_000
MEMORY_TOLERANCE = 1.3  # an estimate that much above what is free may still fit, and a trial step will tell

MATMUL_EFFICIENCY, EAGER_CPU_EFFICIENCY = 0.88, 0.5  # of the matmul peak; eagerly with all the rest of a step
# Work bound by memory, as the FLOPs of a matrix product that take as long: for a layer's channel, an attention score, a logit.
CHANNEL_FLOPS, SCORE_FLOPS, LOGIT_FLOPS = 10_600, 1_250, 350
MICRO_BATCH_SECONDS, STEP_SECONDS = 0.002, 0.003  # whatever their size, by hand: Python, and threads that begin and end
# Narrower models have more work bound by memory; within a fifth for six shapes on an H200.
GPU_EFFICIENCY, GPU_FULL_WIDTH = 0.47, 768


def num_matrix_parameters(model: ModelConfig) -> int:
    """Parameters of the blocks' matrices, which Muon updates."""
    return model.num_layers * (4 * model.hidden_size**2 + 3 * model.hidden_size * model.mlp_size)


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Every parameter of the trunk, the embedding included; heads are not counted."""
    tables = (1 if model.tie_embeddings else 2) * vocab_size * model.hidden_size
    norms = model.num_layers * (2 * model.hidden_size + 2 * model.head_dim) + model.hidden_size
    return num_matrix_parameters(model) + tables + norms


def num_head_parameters(model: ModelConfig, auxiliary: AuxiliaryConfig) -> tuple[int, int]:
    """Parameters of the heads that are on: in matrices, in biases."""
    width, matrices, biases = model.hidden_size, 0, 0
    if auxiliary.enable_dynamics or auxiliary.enable_policy:
        matrices += TRANSITION_SQUARES * width**2
    if auxiliary.enable_value:
        matrices, biases = matrices + VALUE_SIZE * (width + VALUE_BINS), biases + 3 * VALUE_SIZE + VALUE_BINS
    if auxiliary.enable_span_contrastive:
        matrices, biases = matrices + 4 * width * (width + SPAN_SIZE), biases + 4 * width
    return matrices, biases


def flops_per_token(
    model: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig, tokens_per_step: int | None = None
) -> float:
    """Forward and backward of trunk, output layer and heads, and the optimizer's share if `tokens_per_step` is given.

    6 for each matmul parameter, and causal attention, where a token sees T/2 others on average (PaLM, arXiv 2204.02311,
    appendix B). Muon: five Newton-Schulz steps a matrix and step, each 4 r^2 c + 2 r^3, r the shorter side (lm/optim.py).
    """
    width, inner = model.hidden_size, model.mlp_size
    flops = 6.0 * (num_matrix_parameters(model) + vocab_size * width)
    flops += 6.0 * model.num_layers * width * model.seq_length
    if auxiliary.enable_dynamics or auxiliary.enable_policy:
        flops += 6 * TRANSITION_SQUARES * width**2 * UNROLL_STEPS * POSITION_SHARE
    if auxiliary.enable_policy:  # what the model says, forward; what the latent says, forward and to the latent only
        flops += 6 * width * vocab_size * POLICY_SHARE
    if auxiliary.enable_value:
        flops += 6 * VALUE_SIZE * (width + VALUE_BINS) * (1 + UNROLL_STEPS) * POSITION_SHARE
    if tokens_per_step:
        short, long = min(width, inner), max(width, inner)
        orthogonalized = 4 * 6 * width**3 + 3 * (4 * short**2 * long + 2 * short**3)
        flops += 5 * model.num_layers * orthogonalized / tokens_per_step
        # Of the heads' matrices dynamics' are the largest by far: (D, 2D) twice and (4D, 2D).
        if auxiliary.enable_dynamics or auxiliary.enable_policy:
            flops += 5 * width**3 * (2 * (4 * 2 + 2) + (4 * 16 + 2 * 8)) / tokens_per_step
    return flops


def scores_per_token(model: ModelConfig) -> float:
    """Attention scores that a CPU computes for a token: its four row blocks see 5/8 of a row (lm/model.py)."""
    return model.num_layers * model.num_heads * model.seq_length * 5 / 8


def checkpoint_bytes(preset: Preset) -> int:
    """Weights in fp32, one momentum for Muon's matrices, two moments for the rest."""
    matrices = num_matrix_parameters(preset.model)
    others = num_parameters(preset.model, preset.model.vocab_size) - matrices
    head_matrices, head_biases = num_head_parameters(preset.model, preset.auxiliary)
    return 8 * (matrices + head_matrices) + 12 * (others + head_biases)


def disk_bytes(preset: Preset, token_budget: int) -> int:
    """A whole run: checkpoints, the journal of every row, and the export."""
    model = preset.model
    token_width = 2 if model.vocab_size <= 2**16 else 4
    num_rows = -(-token_budget // model.seq_length)
    journal = num_rows * (model.seq_length + 1) * (token_width + 1)
    return required_bytes(checkpoint_bytes(preset)) + journal + 4 * num_parameters(model, model.vocab_size)


def memory_bytes(preset: Preset, device: str = "cpu", *, low_precision: bool = True, compiled: bool = True) -> int:
    """Peak memory of training with the preset's micro-batch: of the GPU for "cuda", of all our processes for "cpu".

    Within a seventh of compiled bf16 steps, about a third of others; a trial step knows better.
    """
    model, aux = preset.model, preset.auxiliary
    num_tokens = preset.train.per_gpu_batch_size * model.seq_length
    gradients = 4 * (num_parameters(model, model.vocab_size) + sum(num_head_parameters(model, aux)))
    per_token = model.num_layers * model.hidden_size * LAYER_BYTES[device]
    if device == "cpu":  # the fused kernel of a GPU has no scores; our row blocks have 5/8 of them
        per_token += int(scores_per_token(model) * SCORE_BYTES)
    factor = (1 if low_precision else FP32_FACTOR) * (1 if compiled else EAGER_FACTOR[device])
    positions = min(POLICY_POSITIONS, int(num_tokens * POLICY_SHARE)) if aux.enable_policy else 0
    policy = 4 * 4 * positions * model.vocab_size
    fixed, state = PROCESS_BYTES[device], checkpoint_bytes(preset)
    if device == "cpu":
        fixed += PRODUCER_BYTES + state  # and what is being saved while training goes on
        logits = 0
    else:
        logits = LOGIT_BYTES * min(LOGIT_ROWS, num_tokens) * model.vocab_size
    return int(fixed + state + gradients + factor * (per_token * num_tokens + logits) + policy)


def batch_sizes(train: TrainConfig) -> list[int]:
    """Rows a micro-batch may have for the same step, most first."""
    rows = train.rows_per_process
    return [size for size in range(rows, 0, -1) if rows % size == 0]


def how_to_set(train: TrainConfig, batch_size: int) -> str:
    steps = train.rows_per_process // batch_size
    return f"set train.per_gpu_batch_size to {batch_size} and train.accumulation_steps to {steps} for the same tokens a step."


def largest_batch(preset: Preset, available: int, device: str = "cpu", **choices: bool) -> int:
    """The largest number of rows a micro-batch that fits into `available` bytes and makes the same step in whole
    micro-batches: a divisor of per_gpu_batch_size * accumulation_steps, 0 if not even one row fits.
    """
    for candidate in batch_sizes(preset.train):
        train = preset.train.model_copy(update={"per_gpu_batch_size": candidate})
        if memory_bytes(preset.model_copy(update={"train": train}), device, **choices) <= available:
            return candidate
    return 0


def check_memory(preset: Preset, device: str, **choices: bool) -> None:
    """Raises UserError, with the batch size that would fit, when a CPU run would take more memory than there is.

    A GPU says so itself in the trial step; on a CPU the system would kill the process instead.
    """
    if device != "cpu":
        return
    needed, available = memory_bytes(preset, device, **choices), available_memory()
    if needed <= MEMORY_TOLERANCE * available:
        return
    train, fitting = preset.train, largest_batch(preset, available, device, **choices)
    advice = (
        f"{fitting} would fit: {how_to_set(train, fitting)}"
        if fitting
        else "No batch size fits: choose a smaller model."
    )
    raise UserError(
        f"Preset {preset.name!r} needs about {needed / 1e9:.1f} GB of memory with train.per_gpu_batch_size "
        f"{train.per_gpu_batch_size}, and {available / 1e9:.1f} GB are free here. {advice}"
    )


def speed_key(preset: Preset, world_size: int = 1) -> str:
    """All that the speed of a run depends on, but the machine."""
    model = ",".join(f"{name}={value}" for name, value in preset.model.model_dump().items())
    aux = preset.auxiliary.model_dump()
    heads = "+".join(name for name, value in aux.items() if name.startswith("enable_") and value is True)
    rows = f"{preset.train.per_gpu_batch_size}x{preset.train.accumulation_steps}x{world_size}"
    return f"{model}; rows {rows}; heads {heads or 'none'}"


def seconds_to_budget(preset: Preset, machine: Machine, token_budget: int, world_size: int = 1) -> float:
    """Seconds of training; from the measured speed of such a run, or else guessed, and corrected by how right guesses were
    (their median, the guess that was never tried counted as one that was right)."""
    if speed := machine.speeds.get(speed_key(preset, world_size)):
        return token_budget / speed
    pace = statistics.median([1.0, *machine.paces.values()])
    return token_budget * _seconds_per_token(preset, machine, world_size) / pace


def _seconds_per_token(preset: Preset, machine: Machine, world_size: int) -> float:
    """From FLOPs and the machine's matmul speed."""
    model, train = preset.model, preset.train
    tokens_per_step = train.rows_per_process * model.seq_length * world_size
    flops = flops_per_token(model, model.vocab_size, preset.auxiliary, tokens_per_step)
    if machine.device == "cuda":
        efficiency = GPU_EFFICIENCY * min(1, model.hidden_size / GPU_FULL_WIDTH)
        return flops / (machine.matmul_flops * efficiency * world_size)
    # Several processes on one CPU share its cores.
    if not machine.compiled:
        return flops / (machine.matmul_flops * EAGER_CPU_EFFICIENCY)
    channels, scores = model.num_layers * model.hidden_size, scores_per_token(model)
    flops = flops / MATMUL_EFFICIENCY + channels * CHANNEL_FLOPS + scores * SCORE_FLOPS + model.vocab_size * LOGIT_FLOPS
    overhead = (STEP_SECONDS + train.accumulation_steps * MICRO_BATCH_SECONDS) / tokens_per_step
    return flops / machine.matmul_flops + overhead


def record_speed(machine: Machine, preset: Preset, tokens_per_second: float, world_size: int = 1) -> Machine:
    """`machine` with one more measured speed, of all processes together, for `save_machine`."""
    key, pace = speed_key(preset, world_size), tokens_per_second * _seconds_per_token(preset, machine, world_size)
    speeds, paces = machine.speeds | {key: tokens_per_second}, machine.paces | {key: pace}
    return dataclasses.replace(machine, speeds=speeds, paces=paces)
