"""What happens between two steps once in a while: save, evaluate, adapt the mixture, sample.

In this order, so that nothing that may fail comes before the save.

Functions of a `Run` (trainer.py), called on every rank together. Each is a pure function of the weights, the held-out
text and the seed: done again after a resume, it gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.metrics import in_words
from aux_heads.value import Value, trailing_loss
from configs.schema import AuxiliaryConfig
from configs.text import printable
from data.journal import run_ahead_rows
from data.mixing import base_weights, loss_slope, relative_loss, shares, shares_asked
from data.stream import Stream
from lm.evaluate import Evaluation, evaluate
from lm.inference.decoder import Decoder
from lm.inference.difficulty import LEGEND, coloured, marked_lines, pieces_of, shows_colours
from lm.inference.generate import generate
from lm.report.samples import Sample
from lm.train.trainer import Run

PERIODIC_EVAL_TOKENS = 100_000
SAMPLES, PROMPT_TOKENS, CONTINUATION_TOKENS = 3, 32, 96

Say = Callable[[str], None]
Measured = Sequence[float]  # bits per byte, its standard error


def do_what_is_due(run: Run, say: Say) -> None:
    train, aux = run.preset.train, run.preset.auxiliary
    if due(run, run.last_saved, train.save_every_tokens) and run.may_save() and run.is_sound():
        run.save(say)
    evaluation = None
    if due(run, run.records.evaluated[0], train.eval_every_tokens):
        evaluation = measure(run, say)
    if aux.enable_adaptive_sources and due(run, run.adaptive["tokens"], aux.adaptive_interval_tokens):
        adapt(run, evaluation or measure(run, say), say)
    if due(run, run.records.sampled, train.sample_every_tokens):
        sample(run, say)


def due(run: Run, last: int, every: int) -> bool:
    """Whether a multiple of `every` tokens was reached since `last`; not after the last step: the end has its own."""
    return run.tokens_seen // every > last // every and not run.done


def measure(run: Run, say: Say, *, everything: bool = False) -> Evaluation | None:
    """Held-out loss per source and what the heads measure, recorded and said; on a fixed subset, or on everything.
    None: asked to stop."""
    run.settle()  # before the clock stops
    held_out = run.held_out if everything else run.held_out.subset(PERIODIC_EVAL_TOKENS)
    heads = HeldOutHeads(run)
    evaluation = evaluate(
        run.learner.joint.trunk_forward,
        run.learner.trunk.output.weight,
        held_out.sources,
        token_bytes=run.token_bytes,
        batch_rows=run.preset.train.per_gpu_batch_size,
        autocast=run.learner.autocast,
        should_stop=run.stop,
        rank=run.world.rank,
        world_size=run.world.size,
        reduce=run.world.sum,
        look=heads.look,
    )
    if evaluation is None:
        return None
    run.record_evaluation(evaluation, source_records(run, run.stream) if run.stream else {}, heads.means())
    sources = ", ".join(f"{label} {source.bits_per_byte:.3f}" for label, source in evaluation.per_source.items())
    say(f"held out: loss {evaluation.loss:.4f}, {evaluation.bits_per_byte:.4f} bits per byte ({sources})")
    if run.records.head_measures:
        say(f"heads beside their baselines: {in_words(run.records.head_measures)}")
    return evaluation


class HeldOutHeads:
    """What the heads measure on the text that `evaluate` reads: means over its batches, weighted by their tokens.

    A batch has its own spans as candidates and its own mean as a baseline, so with another number of processes, which
    deals the rows out otherwise, the numbers differ a little.
    """

    def __init__(self, run: Run):
        self.run = run
        self.generator = torch.Generator().manual_seed(run.preset.train.seed)
        self.batches: list[tuple[Tensor, dict[str, Tensor]]] = []

    def look(self, tokens_BT1: Tensor, valid_BT: Tensor, hidden_BTD: Tensor, losses_BT: Tensor) -> None:
        measured = self.run.learner.joint.measure(tokens_BT1, valid_BT, hidden_BTD, losses_BT, self.generator)
        self.batches.append((valid_BT.sum(), measured))

    def means(self) -> dict[str, float]:
        """Of all ranks; the first has the names, since it alone is sure to have rows."""
        names = self.run.world.from_first(lambda: list(self.batches[0][1]))
        totals = torch.zeros(2, len(names), dtype=torch.float64)  # sums, and tokens of batches where something counted
        for tokens, measured in self.batches:
            values = torch.tensor([float(measured[name]) for name in names], dtype=torch.float64)
            totals += torch.stack((values.nan_to_num(), ~values.isnan())) * tokens.cpu()
        sums, tokens = self.run.world.sum(totals).tolist()
        return {name: sums[i] / tokens[i] for i, name in enumerate(names) if tokens[i]}


def source_records(run: Run, stream: Stream) -> dict[str, dict]:
    """What was read from each source for the rows so far. The stream notes it now and then, so it may tell of a few
    rows more. `asked` and `realised`: shares of tokens; of documents with round_robin."""
    strategy, weights = run.preset.data.mix_strategy, run.preset.data.weights
    num_rows = -(-run.tokens_seen // run.preset.model.seq_length)
    entries = stream.progress(num_rows)
    unit = "documents" if strategy == "round_robin" else "tokens"
    realised = shares([entry[unit] for entry in entries])
    asked = shares_asked(base_weights(strategy, weights), run.weight_changes, num_rows)
    keys = ("documents", "tokens", "bytes", "epoch", "retries", "skipped")
    return {
        label: {key: entry[key] for key in keys}
        | {"asked": None if strategy == "sequential" else asked[i], "realised": realised[i]}
        for i, (label, entry) in enumerate(zip(run.labels, entries, strict=True))
    }


def adapt(run: Run, evaluation: Evaluation | None, say: Say) -> None:
    """New factors on the sources' weights, in force a run-ahead later, so that every resume makes the same rows."""
    if evaluation is None:
        return
    data, seq_length = run.preset.data, run.preset.model.seq_length
    found = {label: (s.bits_per_byte, s.stderr or 0.0) for label, s in evaluation.per_source.items()}
    factors, before = run.adaptive["factors"], run.adaptive["bits_per_byte"]
    factors, reasons = decide(run.preset.auxiliary, run.labels, factors, before, found)
    run.adaptive = {"tokens": run.tokens_seen, "factors": factors, "bits_per_byte": found}

    from_row = run.tokens_seen // seq_length + run_ahead_rows(seq_length, run.token_budget)
    base = base_weights(data.mix_strategy, data.weights)
    weights = [weight * factor for weight, factor in zip(base, factors, strict=True)]
    run.weight_changes.append([from_row, weights])
    if run.stream:
        run.stream.change_weights(weights, from_row)
    moves = [f"x{factor:.2f}, {reason}" for factor, reason in zip(factors, reasons, strict=True)]
    move: dict[str, Any] = {"from_tokens": from_row * seq_length, "sources": dict(zip(run.labels, moves, strict=True))}
    run.records.write_move(run.tokens_seen, move)
    say(f"mixture from {from_row * seq_length:,} tokens on: {'; '.join(map(' '.join, move['sources'].items()))}")


def decide(
    aux: AuxiliaryConfig,
    labels: list[str],
    factors: list[float],
    before: Mapping[str, Measured],
    now: Mapping[str, Measured],
) -> tuple[list[float], list[str]]:
    """New factors by the preset's rule, and for each source the reason in words.

    `before`, `now`: held-out bits per byte with their standard errors at the last decision and at this one.
    """
    limits = {"smoothing": aux.adaptive_smoothing, "low": aux.adaptive_min_weight, "high": aux.adaptive_max_weight}
    if aux.adaptive_rule == "relative_loss":
        losses = [now[label][0] if label in now else None for label in labels]
        reasons = ["nothing held out" if loss is None else f"{loss:.3f} bits per byte" for loss in losses]
        return relative_loss(factors, losses, **limits), reasons
    if not before:
        return factors, ["nothing to compare with yet"] * len(labels)
    pairs = [(before.get(label, (0.0, 0.0)), now.get(label, (0.0, 0.0))) for label in labels]
    falls = [was[0] - is_now[0] for was, is_now in pairs]
    errors = [math.hypot(was[1], is_now[1]) for was, is_now in pairs]
    reasons = [f"fell by {fall:.4f} ± {error:.4f}" for fall, error in zip(falls, errors, strict=True)]
    return loss_slope(factors, falls, errors, **limits), reasons


def sample(run: Run, say: Say) -> None:
    """Continues held-out documents, the same ones every time, and keeps what came out in samples.md, unless asked to
    stop: then it is done after the resume."""
    run.settle()
    if not run.records.samples_are_missing(run.tokens_seen) or not run.world.is_first:
        return
    samples, decoder, heads = [], Decoder(run.learner.trunk), run.learner.heads
    length = min(PROMPT_TOKENS, run.preset.model.seq_length // 2)
    for number, (label, prompt) in enumerate(run.held_out.beginnings(SAMPLES, length)):
        generator = torch.Generator().manual_seed(run.preset.train.seed + number)
        tokens = []
        for token in generate(decoder, prompt, CONTINUATION_TOKENS, generator=generator, stop_token=prompt[0]):
            tokens.append(token)
            if run.stop():
                return
        expected: list[float | None] = [None] * len(tokens)
        if "value" in heads:
            expected = difficulty(heads["value"], decoder, prompt + tokens)[len(prompt) :]
        pieces = pieces_of(tokens, expected, run.tokenizer.decode)
        marked = f"{marked_lines(pieces)}\n\n{LEGEND}" if "value" in heads and tokens else ""
        samples.append(Sample(label, run.tokenizer.decode(prompt[1:]), run.tokenizer.decode(tokens), marked))
        text = coloured(pieces) if shows_colours() else printable(samples[-1].continuation)
        say(f"--- {label}: {printable(samples[-1].prompt)}\n--- goes on: {text}")
    run.records.write_samples(run.tokens_seen, samples)


@torch.inference_mode()
def difficulty(value: nn.Module, decoder: Decoder, tokens: list[int]) -> list[float | None]:
    """For each token the nats a token that the value head expects of the text after it; None for tokens too far back for
    the model to read them together with the last. The first token is the one that begins documents."""
    assert isinstance(value, Value)
    window = tokens[-decoder.max_length :]
    decoder.rollback(0)
    states_TD = decoder(window)
    trailing_T = None
    if len(window) > 1:
        window_1T = torch.tensor([window], device=states_TD.device)
        losses_T = F.cross_entropy(decoder.output(states_TD[:-1]).float(), window_1T[0, 1:], reduction="none")
        losses_1T = F.pad(losses_T, (0, 1))[None]  # that of the last token is not known, and not needed
        trailing_T = trailing_loss(losses_1T, window_1T, end_of_text=tokens[0], otherwise=losses_T.mean())[0]
    expected_T = value.expectation(value.logits(states_TD, trailing_T))
    return [None] * (len(tokens) - len(window)) + expected_T.tolist()
