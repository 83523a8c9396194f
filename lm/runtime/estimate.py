"""The cost of a preset before anything is built: parameters, FLOPs, memory, disk and time.

Pure arithmetic over a preset and a Machine (lm/runtime/machine.py), without torch, so that the
menu can show it. Time and memory are estimates until a dry run measures them: `record_speed` keeps
the measured speed for the next menu.

D hidden size, F mlp size, H and G heads of queries and of keys, K head dimension, V vocabulary,
T seq_length. One multiply-add is 2 FLOPs; backward costs twice forward.
"""

import dataclasses
import os
import statistics

from aux_heads.sizes import (
    LATENT_STRIDE,
    MAX_POLICY_POSITIONS,
    NUM_VALUE_BINS,
    POSITION_STRIDE,
    SPAN_EMBEDDING_SIZE,
    UNROLL_STEPS,
    VALUE_INNER_SIZE,
    transition_shapes,
)
from configs.errors import UserError
from configs.schema import AuxiliaryConfig, ModelConfig, Preset, TrainConfig
from lm.runtime.machine import Machine, available_memory
from lm.sizes import CPU_ATTENTION_BLOCKS, NEWTON_SCHULZ_STEPS, chunk_rows

WORDS_PER_TOKEN = 0.8  # hardly ever more: English has about 0.75 with 32,768 tokens in the vocabulary

# Fitted to compiled bf16 steps on a CPU: 64 to 1024 wide, 256 to 4,096 tokens of context, 1,024 to
# 32,768 tokens in the vocabulary (benchmarks/growing.py).
# Bytes kept for the backward pass per token, layer and channel (a CPU recomputes some of them),
# and per attention score. The factors apply without bf16 and without torch.compile.
LAYER_BYTES, SCORE_BYTES = {"cpu": 50, "cuda": 38, "mps": 50}, 2.6
LOGIT_BYTES = 4  # of a chunk of the loss: logits in bf16 and their gradient
EVALUATION_LOGIT_BYTES = 12  # of an evaluation, not compiled: logits, their distance from the largest, exponentials
# Per entry of the output layer, which the loss copies: in bf16, its gradient, a chunk's part of that, and scaled.
OUTPUT_BYTES = 12
FP32_FACTOR, EAGER_FACTOR = 1.7, {"cpu": 2.75, "cuda": 2.0, "mps": 2.75}
PROCESS_BYTES = 500_000_000  # Python, torch and compiler, or CUDA context
PRODUCER_BYTES = 460_000_000  # with blocks of documents (data/producer.py: LARGEST_BLOCKS)
MEMORY_TOLERANCE = 1.3  # an estimate above free memory by this factor may fit: the dry run decides

# Shares of the matmul peak; the eager one includes the rest of a step.
MATMUL_EFFICIENCY, EAGER_CPU_EFFICIENCY = 0.88, 0.5
# Memory-bound work, as the matmul FLOPs that take as long: per channel of a layer, per attention
# score, per logit.
CHANNEL_FLOPS, SCORE_FLOPS, LOGIT_FLOPS = 10_600, 1_250, 350
# At any size, fitted: Python, and threads that start and end.
MICRO_BATCH_SECONDS, STEP_SECONDS = 0.002, 0.003
# Narrower models have more memory-bound work; within a fifth for six shapes on an H200.
GPU_EFFICIENCY, GPU_FULL_WIDTH = 0.47, 768
SLOWEST_PACE = 1 / 3


def num_matrix_parameters(model: ModelConfig) -> int:
    """Return the number of parameters in the blocks' matrices, which Muon updates."""
    return model.num_layers * _num_weights(matrices_of_layer(model))


def _num_weights(shapes: list[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in shapes)


def matrices_of_layer(model: ModelConfig) -> list[tuple[int, int]]:
    """Return the shapes (rows, columns) of a layer's matrices: queries, keys, values, projection,
    gate, up and down."""
    width, inner = model.hidden_size, model.mlp_size
    queries, keys, values = (heads * model.head_dim for heads in model.heads_qkv)
    return [
        (queries, width),
        (keys, width),
        (values, width),
        (width, queries),
        (inner, width),
        (inner, width),
        (width, inner),
    ]


def channels_per_token(model: ModelConfig) -> float:
    """Return the channels per token of all layers: L D, if H K = G K = D and F = 8/3 D. Otherwise
    the 19 D values that a layer then keeps are counted one by one: 5 of the residual stream's
    width, 3 of the queries' (they, rotated, the result), 3 of the keys', 3 inside the MLP."""
    attention = (model.num_heads + model.num_kv_heads) * model.head_dim
    return model.num_layers * (5 * model.hidden_size + 3 * attention + 3 * model.mlp_size) / 19


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of the trunk, with the embedding and without the heads."""
    tables = (1 if model.tie_embeddings else 2) * vocab_size * model.hidden_size
    of_heads = 2 * model.head_dim if model.qk_norm else 0
    norms = model.num_layers * (2 * model.hidden_size + of_heads) + model.hidden_size
    return num_matrix_parameters(model) + tables + norms


def num_head_parameters(model: ModelConfig, auxiliary: AuxiliaryConfig) -> tuple[int, int]:
    """Return the numbers of parameters of the heads that are on: in matrices, in biases."""
    width, matrices, biases = model.hidden_size, 0, 0
    if auxiliary.enable_dynamics or auxiliary.enable_policy:
        matrices += _num_weights(transition_shapes(width))
    if auxiliary.enable_value:
        matrices += VALUE_INNER_SIZE * (width + NUM_VALUE_BINS)
        biases += 3 * VALUE_INNER_SIZE + NUM_VALUE_BINS
    if auxiliary.enable_span_contrastive:
        matrices, biases = matrices + 4 * width * (width + SPAN_EMBEDDING_SIZE), biases + 4 * width
    return matrices, biases


def flops_per_token(
    model: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig, tokens_per_step: int | None = None
) -> float:
    """Return the FLOPs per token of forward and backward through trunk, output layer and heads;
    with `tokens_per_step`, the optimizer's share is added.

    6 per matmul parameter, plus causal attention, where a token sees T/2 others on average (PaLM,
    arXiv 2204.02311, appendix B). Muon: five Newton-Schulz iterations per matrix and step, each
    4 r^2 c + 2 r^3, where r is the shorter side (lm/optim.py).
    """
    width = model.hidden_size
    flops = 6.0 * (num_matrix_parameters(model) + vocab_size * width)
    flops += 6.0 * model.num_layers * model.num_heads * model.head_dim * model.seq_length
    if auxiliary.enable_dynamics or auxiliary.enable_policy:
        flops += 6 * _num_weights(transition_shapes(width)) * UNROLL_STEPS / POSITION_STRIDE
    if auxiliary.enable_policy:
        # Logits of the trunk, forward; of the latent, forward and backward to the latent only.
        flops += 6 * width * vocab_size / (POSITION_STRIDE * LATENT_STRIDE)
    if auxiliary.enable_value:
        flops += 6 * VALUE_INNER_SIZE * (width + NUM_VALUE_BINS) * (1 + UNROLL_STEPS) / POSITION_STRIDE
    if tokens_per_step:
        shapes = model.num_layers * matrices_of_layer(model)
        if auxiliary.enable_dynamics or auxiliary.enable_policy:  # by far the largest matrices of the heads
            shapes += transition_shapes(width)
        sides = [(min(shape), max(shape)) for shape in shapes]
        orthogonalized = sum(4 * short**2 * long + 2 * short**3 for short, long in sides)
        flops += NEWTON_SCHULZ_STEPS * orthogonalized / tokens_per_step
    return flops


def scores_per_token(model: ModelConfig) -> float:
    """Return the attention scores that a CPU computes per token: its row blocks see the keys up to their
    own end, with four of them 5/8 of a row (lm/model.py)."""
    share = (CPU_ATTENTION_BLOCKS + 1) / (2 * CPU_ATTENTION_BLOCKS)
    return model.num_layers * model.num_heads * model.seq_length * share


def checkpoint_bytes(preset: Preset) -> int:
    """Return the bytes of fp32 weights, with one momentum for Muon's matrices and two moments for
    the rest."""
    matrices = num_matrix_parameters(preset.model)
    others = num_parameters(preset.model, preset.model.vocab_size) - matrices
    head_matrices, head_biases = num_head_parameters(preset.model, preset.auxiliary)
    return 8 * (matrices + head_matrices) + 12 * (others + head_biases)


def disk_bytes(preset: Preset, token_budget: int, *, has_links: bool = True) -> int:
    """Return the disk space of a whole run: checkpoints, the journal of every row, the export and the
    milestones. `has_links`: whether the file system has hard links."""
    model = preset.model
    token_width = 2 if model.vocab_size <= 2**16 else 4
    num_rows = -(-token_budget // model.seq_length)
    journal = num_rows * (model.seq_length + 1) * (token_width + 1 + preset.data.has_conversations)
    exports = (1 + num_milestones(preset.train, token_budget)) * export_bytes(preset)
    # Three generations, the best one (of text that is read more than once) and the temporary file of
    # the next; the alias is a hard link. Without links each new name is a copy at first.
    return (5 if has_links else 10) * checkpoint_bytes(preset) + journal + exports


def with_vocabulary(preset: Preset, vocab_size: int) -> Preset:
    """Return the preset with the vocabulary that its model will have: `data.tokenizer` decides it, where
    one is given. What a run takes is estimated from this, nothing is trained with it."""
    return preset.model_copy(update={"model": preset.model.model_copy(update={"vocab_size": vocab_size})})


def export_bytes(preset: Preset) -> int:
    """Return the bytes of an export: fp32 weights of the model and of the heads."""
    model = preset.model
    return 4 * (num_parameters(model, model.vocab_size) + sum(num_head_parameters(model, preset.auxiliary)))


def num_milestones(train: TrainConfig, token_budget: int) -> int:
    """Return the number of milestones that a run may come to; of those in words about the most."""
    reached = token_budget * (WORDS_PER_TOKEN if train.keep_at_tokens == "babylm" else 1)
    return sum(point <= reached for point in train.milestones.values())


def memory_bytes(preset: Preset, device: str = "cpu", *, low_precision: bool = True, compiled: bool = True) -> int:
    """Return the peak memory of training with the preset's micro-batch: of the GPU for "cuda", of
    all our processes for "cpu" and, as if it were one, "mps".

    Within a seventh for compiled bf16 steps, about a third for others; the dry run measures it.
    """
    model, aux = preset.model, preset.auxiliary
    num_tokens = preset.train.per_gpu_batch_size * model.seq_length
    gradients = export_bytes(preset)  # fp32 as well
    per_token = channels_per_token(model) * LAYER_BYTES[device]
    if device != "cuda":  # a GPU's fused kernel keeps no scores; our row blocks keep some
        per_token += scores_per_token(model) * SCORE_BYTES
    factor = (1 if low_precision else FP32_FACTOR) * (1 if compiled else EAGER_FACTOR[device])
    positions = min(MAX_POLICY_POSITIONS, num_tokens // (POSITION_STRIDE * LATENT_STRIDE)) if aux.enable_policy else 0
    policy = 4 * 4 * positions * model.vocab_size
    fixed, state = PROCESS_BYTES, checkpoint_bytes(preset)
    if device != "cuda":
        fixed += PRODUCER_BYTES + state  # and the copy that is being saved during training
    logits = LOGIT_BYTES * min(num_tokens, chunk_rows(device, model.vocab_size)) * model.vocab_size
    if device == "cuda":  # captured graphs keep a step's memory; elsewhere an evaluation has what a step has released
        rows = min(num_tokens, chunk_rows(device, model.vocab_size, need_grad=False))
        fixed += EVALUATION_LOGIT_BYTES * rows * model.vocab_size
    # A tied layer has the gradients of both its uses, and their sum, at the same time.
    fixed += (OUTPUT_BYTES + 8 * model.tie_embeddings) * model.vocab_size * model.hidden_size
    return int(fixed + state + gradients + factor * (per_token * num_tokens + logits) + policy)


def batch_sizes(train: TrainConfig) -> list[int]:
    """Return the possible rows per micro-batch for the same step, largest first."""
    rows = train.rows_per_process
    return [size for size in range(rows, 0, -1) if rows % size == 0]


def how_to_set(train: TrainConfig, batch_size: int) -> str:
    steps = train.rows_per_process // batch_size
    return f"set train.per_gpu_batch_size to {batch_size} and train.accumulation_steps to {steps} for the same tokens a step."


def largest_batch(preset: Preset, available: int, device: str = "cpu", **choices: bool) -> int:
    """Return the largest number of rows per micro-batch that fits into `available` bytes and makes
    the same step in whole micro-batches.

    It is a divisor of per_gpu_batch_size * accumulation_steps; 0 if not even one row fits.
    """
    for candidate in batch_sizes(preset.train):
        train = preset.train.model_copy(update={"per_gpu_batch_size": candidate})
        if memory_bytes(preset.model_copy(update={"train": train}), device, **choices) <= available:
            return candidate
    return 0


def check_memory(preset: Preset, device: str, **choices: bool) -> None:
    """Raise UserError, with a batch size that fits, if a run needs more of the CPU's memory than is free.

    On a GPU with its own the dry run would fail; on others the system would kill the process. Of torchrun's
    processes on a machine each has its share.
    """
    if device == "cuda":
        return
    needed, available = memory_bytes(preset, device, **choices), available_memory()
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    of_first = PRODUCER_BYTES + checkpoint_bytes(preset)  # the data process, and the copy that is being saved
    available = of_first + (available - of_first) // num_processes
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
        f"{train.per_gpu_batch_size}, and {available / 1e9:.1f} GB are free here"
        f"{f' for each of {num_processes} processes' if num_processes > 1 else ''}. {advice}"
    )


def speed_key(preset: Preset, world_size: int = 1) -> str:
    """Return everything that the speed of a run depends on, except the machine."""
    shape = preset.model.model_dump(exclude={"init_from", "revision"})
    model = ",".join(f"{name}={value}" for name, value in shape.items())
    aux = preset.auxiliary.model_dump()
    heads = "+".join(name for name, value in aux.items() if name.startswith("enable_") and value is True)
    rows = f"{preset.train.per_gpu_batch_size}x{preset.train.accumulation_steps}x{world_size}"
    return f"{model}; rows {rows}; heads {heads or 'none'}"


def seconds_to_budget(preset: Preset, machine: Machine, token_budget: int, world_size: int = 1) -> float:
    """Return the seconds of training, by the measured speed of such a run or else an estimate.

    Estimates are divided by the median of 1.0 and the paces (measured / estimated speed) of the
    runs tried on this machine, but by no less than a third: these may have met other programs.
    """
    speed = machine.speeds.get(speed_key(preset, world_size)) or _guessed_speed(preset, machine, world_size)
    return token_budget / speed


def _guessed_speed(preset: Preset, machine: Machine, world_size: int) -> float:
    """Return tokens per second by the estimate and the paces of other runs."""
    pace = max(SLOWEST_PACE, statistics.median([1.0, *machine.paces.values()]))
    return pace / _seconds_per_token(preset, machine, world_size)


def _seconds_per_token(preset: Preset, machine: Machine, world_size: int) -> float:
    """Estimate from FLOPs and the machine's matmul speed."""
    model, train = preset.model, preset.train
    tokens_per_step = train.rows_per_process * model.seq_length * world_size
    flops = flops_per_token(model, model.vocab_size, preset.auxiliary, tokens_per_step)
    if machine.device == "cuda":
        efficiency = GPU_EFFICIENCY * min(1, model.hidden_size / GPU_FULL_WIDTH)
        return flops / (machine.matmul_flops * efficiency * world_size)
    # Several processes on one CPU share its cores.
    if not machine.compiled:
        return flops / (machine.matmul_flops * EAGER_CPU_EFFICIENCY)
    channels, scores = channels_per_token(model), scores_per_token(model)
    flops = flops / MATMUL_EFFICIENCY + channels * CHANNEL_FLOPS + scores * SCORE_FLOPS + model.vocab_size * LOGIT_FLOPS
    overhead = (STEP_SECONDS + train.accumulation_steps * MICRO_BATCH_SECONDS) / tokens_per_step
    return flops / machine.matmul_flops + overhead


def record_speed(machine: Machine, preset: Preset, tokens_per_second: float, world_size: int = 1) -> Machine:
    """Return `machine` with one more measured speed, that of all processes, for `save_machine`."""
    key, pace = speed_key(preset, world_size), tokens_per_second * _seconds_per_token(preset, machine, world_size)
    speeds, paces = machine.speeds | {key: tokens_per_second}, machine.paces | {key: pace}
    return dataclasses.replace(machine, speeds=speeds, paces=paces)


def record_trial(machine: Machine, preset: Preset, tokens_per_second: float, world_size: int = 1) -> Machine:
    """Do the same with the speed of a dry run, which other programs may have disturbed: what such a run
    has reached is not lowered by it, nor is a guess by more than SLOWEST_PACE."""
    reached = machine.speeds.get(speed_key(preset, world_size), 0.0)
    slowest = SLOWEST_PACE * _guessed_speed(preset, machine, world_size)
    return record_speed(machine, preset, max(tokens_per_second, reached, slowest), world_size)
