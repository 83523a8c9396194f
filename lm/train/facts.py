"""The facts of a run, in words."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

from configs.text import counted, human_time
from lm.start_point import described

if TYPE_CHECKING:
    from lm.train.trainer import Trainer


def facts_of(trainer: Trainer) -> dict[str, str]:
    """Return what was trained, on what and where, for the report and the model card."""
    preset, state, model = trainer.preset, trainer.state, trainer.preset.model
    talks = ", ".join(spec.label for spec in preset.data.conversations)
    seconds = state.seconds + trainer.records.interval.seconds  # of the steps since the last line, too
    skipped = (
        f", {state.skipped_steps:,} of them skipped (loss or gradients not finite, or too large)"
        if state.skipped_steps
        else ""
    )
    return {
        "preset": preset.name,
        **({"starts from": described(trainer.start_point)} if trainer.start_point else {}),
        "tokens": f"{state.tokens_seen:,} in {state.num_steps:,} steps{skipped}",
        "words": f"{state.words_seen:,}, counted at white space",
        "sources": ", ".join(trainer.trained_labels) + (" (used up before the budget)" if state.exhausted else ""),
        **({"conversations": f"{talks}: the model learns the answers, and is scored on them alone"} if talks else {}),
        "text seen": f"{state.text_digest[:16]} (the same for runs that saw the same tokens in the same order)",
        "parameters": f"{sum(parameter.numel() for parameter in trainer.learner.trunk.parameters()):,}",
        "model": f"{counted(model.num_layers, 'layer')}, {model.hidden_size} wide, {model.seq_length} tokens of context",
        "training time": f"{human_time(seconds)}, {state.tokens_seen / max(seconds, 1e-9):,.0f} tokens/s",
        "machine": trainer.machine,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
