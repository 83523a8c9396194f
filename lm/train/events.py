"""Scheduled events between two steps: save, keep a milestone, evaluate, adapt the mixture, sample,
and save again if that evaluation was the best so far.

They run in this order, on every rank together; the periodic save comes first, since everything
after it may fail. What they measure and write is a function of the weights, the held-out text and
the seed: repeated after a resume, it is the same.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.metrics import in_words
from aux_heads.value import Value, trailing_loss
from configs.text import printable
from data.heldout import HeldOut
from data.mixing import shares
from lm.evaluate import Evaluation, evaluate
from lm.inference.decoder import Decoder
from lm.inference.difficulty import LEGEND, coloured, marked_lines, pieces_of, shows_colours
from lm.inference.generate import generate
from lm.report.samples import Sample
from lm.runtime.log import RAW
from lm.schedule import num_evaluations
from lm.train.adaptation import adapt, first_row_of_finish, source_records
from lm.train.best import keep_if_best
from lm.train.milestones import keep_milestones
from lm.train.trainer import Trainer

PERIODIC_EVAL_TOKENS = 100_000  # of a fixed subset; watched sources have as many on top
OVERLAPPING_EVAL_TOKENS = 250_000  # with four passes over each: as much work as the default train.eval_tokens
SAMPLES, PROMPT_TOKENS, CONTINUATION_TOKENS = 3, 32, 96

log = logging.getLogger(__name__)


def run_events(trainer: Trainer) -> None:
    """Run the events that are due after the last step."""
    train, aux, state = trainer.preset.train, trainer.preset.auxiliary, trainer.state
    if is_due(trainer, trainer.saved_at, train.save_every_tokens) and trainer.may_save():
        trainer.collect_results()
        if trainer.is_sound:
            trainer.save()
    keep_milestones(trainer)
    evaluation = None
    if evaluation_is_due(trainer):
        evaluation = measure(trainer)
    if aux.enable_adaptive_sources and is_due(trainer, state.adapted, aux.adaptive_interval_tokens):
        evaluation = evaluation or measure(trainer)
        if evaluation:
            adapt(trainer, evaluation)
    if is_due(trainer, state.sampled, train.sample_every_tokens):
        sample(trainer)
    if evaluation:  # last, so that a run resumed from there repeats nothing
        keep_if_best(trainer, evaluation.loss)


def is_due(trainer: Trainer, last: int, every: int) -> bool:
    """Return whether a multiple of `every` tokens was reached since `last`. After the last step
    nothing is due: the end of a run has its own events."""
    return trainer.state.tokens_seen // every > last // every and not trainer.done


def evaluation_is_due(trainer: Trainer) -> bool:
    """Return whether a point of lm/schedule.py: num_evaluations was reached since the last one."""
    state, every = trainer.state, trainer.preset.train.eval_every_tokens
    now, last = (
        num_evaluations(tokens, every, trainer.num_held_out) for tokens in (state.tokens_seen, state.evaluated)
    )
    return now > last and not trainer.done


def measure(trainer: Trainer, *, everything: bool = False) -> Evaluation | None:
    """Evaluate held-out loss per source and the heads' measures, on a fixed subset or on
    everything; record and log them. Returns None if asked to stop."""
    trainer.collect_results()  # before the training clock stops
    held_out = trainer.held_out if everything else trainer.held_out.subset(PERIODIC_EVAL_TOKENS, trainer.watched_labels)
    heads = HeldOutHeads(trainer)
    evaluation = _evaluate(trainer, held_out, observe=heads.observe)
    overlapping = _overlapping(trainer, evaluation) if evaluation and everything else None
    if evaluation is None or (everything and overlapping is None):
        return None
    line: dict[str, Any] = {}
    if trainer.state.tokens_seen:  # before the first step nothing is read
        # What is watched comes last, and has no part in the mixture.
        line["mixture"] = dict(zip(trainer.trained_labels, shares(trainer.state.source_tokens), strict=False))
        line["sources"] = source_records(trainer) if trainer.world.is_first else {}
    if (finish := first_row_of_finish(trainer)) is not None:
        line["finish_from"] = finish * trainer.preset.model.seq_length
    line |= {"overlapping": overlapping} if overlapping else {}
    trainer.records.write_evaluation(line, evaluation, heads.means())
    sources = ", ".join(f"{label} {source.bits_per_byte:.3f}" for label, source in evaluation.per_source.items())
    log.info("held out: loss %.4f, %.4f bits per byte (%s)", evaluation.loss, evaluation.bits_per_byte, sources)
    if overlapping:
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


def sample(trainer: Trainer) -> None:
    """Continue held-out documents, the same ones every time, and write the results to
    samples.md. If asked to stop, writes nothing: the sampling is repeated after the resume."""
    trainer.collect_results()
    if trainer.state.sampled == trainer.state.tokens_seen:
        return
    if not trainer.world.is_first:
        trainer.records.write_samples([])
        return
    block_ngram = trainer.preset.train.sample_no_repeat_ngram
    samples, decoder, heads = [], Decoder(trainer.learner.trunk), trainer.learner.heads
    longest = trainer.preset.model.seq_length // 2
    decode = partial(trainer.tokenizer.decode, skip_special_tokens=False)  # the markers of turns are a part of the text
    for number, (label, prompt) in enumerate(
        trainer.held_out.beginnings(SAMPLES, min(PROMPT_TOKENS, longest), longest)
    ):
        generator = torch.Generator().manual_seed(trainer.preset.train.seed + number)
        tokens = []
        for token in generate(
            decoder,
            prompt,
            CONTINUATION_TOKENS,
            block_ngram=block_ngram,
            generator=generator,
            stop_tokens=(prompt[0], *trainer.end_tokens),
        ):
            tokens.append(token)
            if trainer.stop():
                return
        expected: list[float | None] = [None] * len(tokens)
        if "value" in heads:
            expected = difficulty(heads["value"], decoder, prompt + tokens)[len(prompt) :]
        pieces = pieces_of(tokens, expected, decode)
        marked = f"{marked_lines(pieces)}\n\n{LEGEND}" if "value" in heads and tokens else ""
        samples.append(Sample(label, decode(prompt[1:]), decode(tokens), marked))
        text = coloured(pieces) if shows_colours() else printable(samples[-1].continuation)
        log.info("--- %s: %s\n--- continued: %s", printable(label), printable(samples[-1].prompt), text, extra=RAW)
    trainer.records.write_samples(samples)


@torch.inference_mode()
def difficulty(value: nn.Module, decoder: Decoder, tokens: list[int]) -> list[float | None]:
    """Return the value head's prediction, in nats per token, for the text after each token;
    None for tokens too far back to share a context window with the last. The first token is the
    one that begins documents."""
    assert isinstance(value, Value)
    window = tokens[-decoder.max_length :]
    decoder.rollback(0)
    states_TD = decoder(window)
    trailing_T = None
    if len(window) > 1:
        window_1T = torch.tensor([window], device=states_TD.device)
        losses_T = F.cross_entropy(decoder.output(states_TD[:-1]).float(), window_1T[0, 1:], reduction="none")
        losses_1T = F.pad(losses_T, (0, 1))[None]  # the last token's is unknown, and not needed
        trailing_T = trailing_loss(losses_1T, window_1T, end_of_text=tokens[0], otherwise=losses_T.mean())[0]
    expected_T = value.expectation(value.logits(states_TD, trailing_T))
    return [None] * (len(tokens) - len(window)) + expected_T.tolist()
