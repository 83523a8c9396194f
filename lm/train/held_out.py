"""The evaluation of a run on its held-out text: losses per source and the heads' measures, and at the end
overlapping windows and canonical tokens.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aux_heads.metrics import in_words
from data.heldout import HeldOut
from data.mixing import shares
from lm.evaluate import Evaluation, evaluate
from lm.train.adaptation import first_row_of_finish, source_records
from lm.train.trainer import Trainer

PERIODIC_EVAL_TOKENS = 100_000  # of a fixed subset; watched sources have as many on top
OVERLAPPING_EVAL_TOKENS = 250_000  # with four passes over each: as much work as the default train.eval_tokens
CANONICAL_EVAL_TOKENS = 50_000
AT_ONCE = 256  # of these, with all probabilities of their places

log = logging.getLogger(__name__)


def measure(trainer: Trainer, *, everything: bool = False) -> Evaluation | None:
    """Evaluate held-out loss per source and the heads' measures, on a fixed subset or on
    everything; record and log them. Returns None if asked to stop."""
    trainer.collect_results()  # before the training clock stops
    held_out = trainer.held_out if everything else trainer.held_out.subset(PERIODIC_EVAL_TOKENS, trainer.watched_labels)
    heads = HeldOutHeads(trainer)
    evaluation = _evaluate(trainer, held_out, observe=heads.observe)
    at_the_end = _at_the_end(trainer, evaluation) if evaluation and everything else {}
    if evaluation is None or at_the_end is None:
        return None
    line: dict[str, Any] = {}
    if trainer.state.tokens_seen:  # before the first step nothing is read
        # What is watched comes last, and has no part in the mixture.
        line["mixture"] = dict(zip(trainer.trained_labels, shares(trainer.state.source_tokens), strict=False))
        line["sources"] = source_records(trainer) if trainer.world.is_first else {}
    if (finish := first_row_of_finish(trainer)) is not None:
        line["finish_from"] = finish * trainer.preset.model.seq_length
    trainer.records.write_evaluation(line | at_the_end, evaluation, heads.means())
    sources = ", ".join(f"{label} {source.bits_per_byte:.3f}" for label, source in evaluation.per_source.items())
    log.info("held out: loss %.4f, %.4f bits per byte (%s)", evaluation.loss, evaluation.bits_per_byte, sources)
    if overlapping := at_the_end.get("overlapping"):
        words = "%.4f bits per byte with overlapping windows, at least %d tokens before each (%.4f without)"
        log.info(words, overlapping["bits_per_byte"], overlapping["context"], overlapping["plain"])
    if trainer.records.head_measures:
        log.info("heads, with their baselines: %s", in_words(trainer.records.head_measures))
    return evaluation


def _evaluate(trainer: Trainer, held_out: HeldOut, **options: Any) -> Evaluation | None:
    return evaluate(
        trainer.learner.joint.trunk_forward,
        trainer.learner.trunk.output.weight,
        held_out.sources,
        token_bytes=trainer.token_bytes,
        batch_rows=trainer.preset.train.per_gpu_batch_size,
        autocast=trainer.learner.autocast,
        should_stop=trainer.stop,
        rank=trainer.world.rank,
        world_size=trainer.world.size,
        reduce=trainer.world.sum,
        watched=trainer.watched_labels,
        **options,
    )


def _at_the_end(trainer: Trainer, everything: Evaluation) -> dict[str, Any] | None:
    """Return what is measured once, after the last step; None if asked to stop."""
    overlapping = _overlapping(trainer, everything)
    if overlapping is None or not trainer.neighbours.known:
        return overlapping and {"overlapping": overlapping}
    mass = CanonicalMass(trainer)
    rows = trainer.held_out.subset(CANONICAL_EVAL_TOKENS, trainer.watched_labels)
    if (evaluation := _evaluate(trainer, rows, observe=mass.observe)) is None:
        return None
    saved = {"tokens": evaluation.tokens, "bits_per_byte": evaluation.bits_per_byte, "saved": mass.bits_per_byte()}
    return {"overlapping": overlapping, "canonical": saved}


def _overlapping(trainer: Trainer, everything: Evaluation) -> dict[str, Any] | None:
    """Return bits per byte with overlapping windows, beside the `plain` ones of the same text; None
    if asked to stop. Every token then has most of a row before it, as in a text that the model
    continues, where plain rows give their first tokens nothing."""
    held_out, seq_length = trainer.held_out, trainer.preset.model.seq_length
    wanted = OVERLAPPING_EVAL_TOKENS, trainer.watched_labels
    rows = held_out.subset(*wanted)
    log.info("evaluating %s held-out tokens with overlapping windows: four times the work", f"{rows.num_tokens:,}")
    plain = everything if rows.num_tokens == held_out.num_tokens else _evaluate(trainer, rows)
    overlapping = _evaluate(trainer, held_out.overlapping(*wanted)) if plain else None
    if plain is None or overlapping is None:
        return None
    both = {
        label: {"bits_per_byte": source.bits_per_byte, "plain": plain.per_source[label].bits_per_byte}
        for label, source in overlapping.per_source.items()
    }
    return {
        "context": seq_length - seq_length // 4,
        "tokens": overlapping.tokens,
        "bits_per_byte": overlapping.bits_per_byte,
        "plain": plain.bits_per_byte,
        "per_source": both,
    }


class HeldOutHeads:
    """The heads' measures on the text that `evaluate` reads: means over its batches,
    weighted by their tokens.

    The candidates of a span and the baseline mean are those of its batch, so the numbers differ a
    little with another number of processes, which distributes the rows differently.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.generator = torch.Generator().manual_seed(trainer.preset.train.seed)
        self.batches: list[tuple[Tensor, dict[str, Tensor]]] = []

    def observe(self, tokens_BT1: Tensor, valid_BT: Tensor, hidden_BTD: Tensor, losses_BT: Tensor) -> None:
        measured = self.trainer.learner.joint.measure(tokens_BT1, valid_BT, hidden_BTD, losses_BT, self.generator)
        self.batches.append((valid_BT.sum(), measured))

    def means(self) -> dict[str, float]:
        """Return the means over all ranks. The names are the first rank's, the only one
        that is sure to have rows."""
        names = self.trainer.world.from_first(lambda: list(self.batches[0][1]))
        totals = torch.zeros(2, len(names), dtype=torch.float64)  # weighted sums, tokens counted
        for tokens, measured in self.batches:
            values = torch.tensor([float(measured[name]) for name in names], dtype=torch.float64)
            totals += torch.stack((values.nan_to_num(), ~values.isnan())) * tokens.cpu()
        sums, tokens = self.trainer.world.sum(totals).tolist()
        return {name: sums[i] / tokens[i] for i, name in enumerate(names) if tokens[i]}


class CanonicalMass:
    """How many bits are saved by giving no probability to tokens that no text has after the one before
    (lm/inference/canonical.py), on the text that `evaluate` reads: minus the log of what the others have."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.sums = torch.zeros(2, dtype=torch.float64)  # nats saved, bytes of the text

    def observe(self, tokens_BT1: Tensor, valid_BT: Tensor, hidden_BTD: Tensor, losses_BT: Tensor) -> None:
        num_bytes_BT = torch.from_numpy(self.trainer.token_bytes[tokens_BT1[:, 1:].cpu().numpy()])
        num_bytes_BT *= valid_BT.cpu()
        has_text_BT = num_bytes_BT > 0  # special tokens count in no bits per byte
        if not has_text_BT.any():  # rows of watched sources, or questions alone
            return
        before_N = tokens_BT1[:, :-1].cpu()[has_text_BT]
        hidden_ND = hidden_BTD[has_text_BT.to(hidden_BTD.device)]
        for before, hidden in zip(before_N.split(AT_ONCE), hidden_ND.split(AT_ONCE), strict=True):
            possible = np.stack([self.trainer.neighbours.after(token) for token in before.tolist()])
            probabilities_NV = self.trainer.learner.trunk.output(hidden).float().softmax(-1)
            impossible_NV = torch.from_numpy(~possible).to(hidden.device)  # V: of the tokenizer, perhaps fewer
            lost_N = (probabilities_NV[:, : impossible_NV.shape[1]] * impossible_NV).sum(-1)
            self.sums[0] -= torch.log1p(-lost_N.cpu().double()).sum()
        self.sums[1] += num_bytes_BT.sum()

    def bits_per_byte(self) -> float:
        """Return the bits per byte that are saved, over all ranks."""
        nats, num_bytes = self.trainer.world.sum(self.sums).tolist()
        return nats / max(1, num_bytes) / math.log(2)
