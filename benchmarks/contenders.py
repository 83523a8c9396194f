"""Other people's trainers on the same rows: nanoGPT, nanochat, modded-nanogpt and litgpt, the Hugging Face Trainer, and ours.

Each is one function: `train(shape, steps, options)`. `steps` yields the rows (R, T + 1) of one optimizer step after
another and is asked for the next when the one before is over; the Trainer asks before it begins the one before. Each
has its own model, optimizer and loop, as in its training script: micro-batches of one size.

The first three are read from checkouts, which lie in one folder under the names that they have on GitHub.

litgpt needs `pip install lightning litgpt`, the Trainer `pip install transformers accelerate`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from configs.schema import Preset
    from lm.learner import Learner

MICRO_ROWS = {"cpu": 16, "cuda": 64}  # of a step's rows at a time, at most
EVALUATED_ROWS = 16
TOKENS_PER_STEP = 16_384
WARMUP = 0.02  # of the steps
MULTI_TOKEN_WEIGHTS = (0.5, 0.25)  # ours, as the presets have it


Steps = Iterator[np.ndarray]
Logits = Callable[[Tensor], Tensor]


class Shape(NamedTuple):
    width: int
    layers: int
    heads: int
    length: int
    vocab: int

    @property
    def mlp(self) -> int:
        """Of a gated MLP with about as many parameters as 8 width^2, nanoGPT's."""
        return -(-8 * self.width // (3 * 64)) * 64

    @property
    def flops_per_token(self) -> dict[bool, int]:
        """{gated MLP or not: 6 per parameter of a matrix product, and of attention what is not masked}."""
        attention = 6 * self.layers * self.width * self.length
        head = 6 * self.vocab * self.width
        return {
            gated: 6 * self.layers * (4 * self.width**2 + (3 * self.width * self.mlp if gated else 8 * self.width**2))
            + attention
            + head
            for gated in (True, False)
        }

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}, {self.length} tokens of context, vocabulary {self.vocab}"


@dataclass
class Options:
    num_steps: int
    learning_rate: float | None = None  # the peak, or of benchmarks/speedrunners.py a factor; None: the trainer's own
    seed: int = 1
    low_precision: bool | None = None  # bf16 autocast; None: if its products are the faster ones here, as ours has it
    compiled: bool = True
    checkouts: Path | None = None  # a folder
    tokens_per_step: int = TOKENS_PER_STEP
    logits: Logits | None = None  # of the model as it is now: set by the trainer before its first step

    def __post_init__(self):
        if self.low_precision is None:
            self.low_precision = has_bfloat16()

    def autocast(self, device: str):
        return torch.autocast(device, dtype=torch.bfloat16) if self.low_precision else nullcontext()


def has_bfloat16() -> bool:
    """Return whether a model computes in bf16 here, by the rule of our own."""
    from lm.runtime.machine import precision_choice

    return precision_choice(device())[0] == torch.bfloat16


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def micro_rows(options: Options, shape: Shape) -> int:
    return min(MICRO_ROWS[device()], options.tokens_per_step // shape.length)


def micro_batches(rows: np.ndarray, size: int) -> list[tuple[Tensor, Tensor]]:
    """(inputs, targets) of each micro-batch of `size` rows, on the device."""
    parts = (torch.from_numpy(part.astype(np.int64)).to(device()) for part in np.split(rows, len(rows) // size))
    return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in parts]


def cosine(step: int, options: Options, peak: float) -> float:
    """nanoGPT's schedule: linear warm-up, then a cosine down to a tenth of the peak."""
    warmup = max(1, round(WARMUP * options.num_steps))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, options.num_steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


# ---- each trainer ------------------------------------------------------------------------------------------------


def ours(shape: Shape, steps: Steps, options: Options) -> None:
    train_preset(own_preset(shape, options), shape, steps, options)


def own_preset(shape: Shape, options: Options) -> Preset:
    from configs.schema import parse_preset

    return parse_preset(preset_json(shape, options), "the benchmark's preset")


def train_preset(
    preset: Preset,
    shape: Shape,
    steps: Steps,
    options: Options,
    before_step: Callable[[Learner, float], None] = lambda learner, progress: None,
) -> Learner:
    """Ours, with a preset of one's own for a model of this shape."""
    from data.memory import give_back_memory
    from lm.learner import Learner
    from lm.runtime.distributed import World
    from lm.schedule import plan_step
    from lm.train.trainer import STEPS_AHEAD

    learner = Learner(
        preset, World.start(), vocab_size=shape.vocab, end_of_text=0, tokens_per_step=options.tokens_per_step
    )

    def logits(tokens: Tensor) -> Tensor:
        with learner.autocast():
            return learner.trunk.output(learner.trunk(tokens))

    options.logits = logits
    launched = deque()  # as lm/train/trainer.py settles them
    for number, rows in enumerate(steps):
        before_step(learner, number / options.num_steps)
        tokens = len(rows) * shape.length
        plan = plan_step(preset, number * tokens, options.num_steps * tokens, len(rows))
        launched.append(learner.train_step.launch(rows, plan))
        if len(launched) > STEPS_AHEAD[device()]:
            learner.train_step.result_of(launched.popleft())
        if number == 0:
            give_back_memory()  # as after the trial step of a run
    return learner


def preset_json(shape: Shape, options: Options) -> str:
    size = micro_rows(options, shape)
    rate = {"matrix_learning_rate": options.learning_rate} if options.learning_rate else {}
    return json.dumps(
        {
            "name": "benchmark",
            "model": {
                "hidden_size": shape.width,
                "num_layers": shape.layers,
                "num_heads": shape.heads,
                "seq_length": shape.length,
                "vocab_size": shape.vocab,
                "mlp_size": shape.mlp,
            },
            "train": {
                "per_gpu_batch_size": size,
                "accumulation_steps": options.tokens_per_step // shape.length // size,
                "seed": options.seed,
                "multi_token_weights": MULTI_TOKEN_WEIGHTS,
                **rate,
            },
            "data": {"sources": ["python_source"]},
        }
    )


def recipe_digest(preset: Preset, options: Options, *more: Any) -> str:
    """Return eight hexadecimal digits of how ours is trained, every default included, and of `more`: in the name of a file
    with results they keep those of an earlier recipe from being taken for this one's."""
    from lm.optim import peak_learning_rates

    rates = peak_learning_rates(preset.train, preset.model, options.tokens_per_step)
    parts = [json.loads(preset.to_json()), rates, options.num_steps, options.tokens_per_step, *more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def nanogpt(shape: Shape, steps: Steps, options: Options) -> None:
    """model.py of its checkout, in the loop of its train.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", options.checkouts / "nanoGPT" / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    torch.manual_seed(options.seed)
    config = module.GPTConfig(
        block_size=shape.length,
        vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        dropout=0.0,
        bias=False,
    )
    plain = module.GPT(config).to(device())
    peak = options.learning_rate or 1e-3
    optimizer = plain.configure_optimizers(0.1, peak, (0.9, 0.95), device())
    model = torch.compile(plain) if options.compiled else plain

    def logits(tokens: Tensor) -> Tensor:
        with options.autocast(device()):
            return plain(tokens, tokens)[0]  # with targets it gives the logits of every position

    options.logits = logits
    for number, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(number, options, peak)
        batches = micro_batches(rows, micro_rows(options, shape))
        for inputs, targets in batches:
            with options.autocast(device()):
                _, loss = model(inputs, targets)
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def litgpt(shape: Shape, steps: Steps, options: Options) -> None:
    """Its model of the same form as ours, in the loop of its pretrain.py."""
    import lightning
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    precision = "bf16-mixed" if options.low_precision else "32-true"
    fabric = lightning.Fabric(accelerator=device(), devices=1, precision=precision)
    fabric.seed_everything(options.seed, verbose=False)
    config = Config(
        block_size=shape.length,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        intermediate_size=shape.mlp,
        mlp_class_name="LLaMAMLP",
        norm_class_name="RMSNorm",
        norm_qk=True,
        bias=False,
        parallel_residual=False,
        rotary_percentage=1.0,
    )
    plain = GPT(config)
    model = fabric.setup(torch.compile(plain) if options.compiled else plain)
    peak = options.learning_rate or 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    optimizer = fabric.setup_optimizers(optimizer)
    options.logits = model
    for number, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(number, options, peak)
        batches = micro_batches(rows, micro_rows(options, shape))
        for inputs, targets in batches:
            loss = chunked_cross_entropy(model(inputs), targets)
            fabric.backward(loss / len(batches))
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()


def trainer(shape: Shape, steps: Steps, options: Options) -> None:
    """transformers.Trainer with `Qwen3ForCausalLM`, the form of our own trunk."""
    import tempfile

    import transformers

    size = micro_rows(options, shape)
    transformers.logging.set_verbosity_error()
    transformers.set_seed(options.seed)
    config = transformers.Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=shape.length,
        tie_word_embeddings=False,
        use_cache=False,
    )
    model = transformers.Qwen3ForCausalLM(config)

    def logits(tokens: Tensor) -> Tensor:
        with options.autocast(device()):
            return model(tokens).logits

    options.logits = logits

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            for rows in steps:
                for row in rows.astype(np.int64):
                    yield {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]}

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=options.tokens_per_step // shape.length // size,
            max_steps=options.num_steps,
            learning_rate=options.learning_rate or 1e-3,
            warmup_steps=max(1, round(WARMUP * options.num_steps)),
            weight_decay=0.1,
            adam_beta2=0.95,
            bf16=options.low_precision,
            torch_compile=options.compiled,
            use_cpu=device() == "cpu",
            remove_unused_columns=False,  # else it would take shift_labels for one
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=options.seed,
        )
        transformers.Trainer(model, arguments, train_dataset=Rows()).train()


def negative_log_likelihood(logits: Logits, rows: np.ndarray) -> np.ndarray:
    """(R, T) nats of each target of rows (R, T + 1); R a multiple of EVALUATED_ROWS."""
    size = EVALUATED_ROWS if device() == "cpu" else 16 * EVALUATED_ROWS
    with torch.no_grad():
        parts = [
            F.cross_entropy(logits(inputs).float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
            for start in range(0, len(rows), size)
            for inputs, targets in micro_batches(rows[start : start + size], min(size, len(rows) - start))
        ]
    return torch.cat(parts).cpu().numpy()
