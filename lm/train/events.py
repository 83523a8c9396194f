"""Scheduled events between two steps: save, keep a milestone, evaluate, adapt the mixture, sample,
and save again if that evaluation was the best so far.

They run in this order, on every rank together; the periodic save comes first, since everything
after it may fail. What they measure and write is a function of the weights, the held-out text and
the seed: repeated after a resume, it is the same.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from aux_heads.value import Value, trailing_loss
from configs.text import printable
from lm.inference.decoder import Decoder
from lm.inference.difficulty import LEGEND, coloured, marked_lines, pieces_of, shows_colours
from lm.inference.generate import generate
from lm.report.samples import Sample
from lm.runtime.log import RAW
from lm.schedule import num_evaluations
from lm.train.adaptation import adapt
from lm.train.best import keep_if_best
from lm.train.held_out import measure
from lm.train.milestones import keep_milestones
from lm.train.trainer import Trainer

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
        trainer.held_out.without(trainer.watched_labels).beginnings(SAMPLES, min(PROMPT_TOKENS, longest), longest)
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
            neighbours=trainer.neighbours,
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
