"""Whether exact matches of a text's last tokens make a model expect it better: bits per byte, time and size.

    python -m benchmarks.memory RUN OUT [TOKENS [PASSES [SEED ...]]]

RUN: a folder with a stream and its tokenizer.json, such as a run's checkpoints. A model (128x3) is trained on the first
TOKENS (4,194,304) of the journal, PASSES times (1), once for each SEED, and kept in OUT; the memory holds the very same tokens.
It is evaluated on the beginning of each source's held-out text, HELD_OUT tokens, in rows as they are and with windows
that overlap by one half and three quarters. Documents 0, 2, 4, ... fit the mixing weights, documents 1, 3, 5, ... are
reported: by source, by the number of tokens before the target in its document, and documents that are nearly in the
training text apart (more than half of their 13 tokens in a row are). ± is the standard error of the difference over
documents. Time is that of the processor, for memories without the mixing, which is done here for all tokens at once.

Then documents that were not fitted on are continued (benchmarks/memory_texts.py).
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import Options, Shape, own_preset, recipe_digest, train_preset
from benchmarks.memory_texts import NGRAM, continue_documents
from benchmarks.text_index import TextIndex, build_index
from configs.schema import TOKEN_BUDGET
from data import tokenizer as bpe
from data.heldout import HeldOut, SourceRows
from data.journal import JournalReader, read_header, run_ahead_rows
from data.order import RowOrder, window_edges
from data.packing import row_dtype
from lm.inference.canonical import Neighbours
from lm.inference.memory import Earlier, Gate, Match, features, fit_gate
from lm.model import Transformer
from lm.runtime.machine import keep_freed_memory, measure_machine

HELD_OUT, BATCH, ROWS_AT_ONCE = 300_000, 8_192, 8
OVERLAPS = {"rows as they are": 1, "windows half a row apart": 2, "a quarter of a row apart": 4}
MEMORIES = ("journal", "document")


class Text(NamedTuple):
    """The held-out text of a source. Shapes: n targets, each with the tokens before it in its document."""

    label: str
    tokens: np.ndarray  # (n + 1,)
    document: np.ndarray  # (n,) its number
    before: np.ndarray  # (n,) tokens before it in its document
    num_bytes: np.ndarray  # (n,)


class Found(NamedTuple):
    """What a memory found for each of n targets."""

    length: np.ndarray
    count: np.ndarray
    target: np.ndarray  # its share of the tokens that followed
    best: np.ndarray  # the token that followed most often
    best_share: np.ndarray
    microseconds: float


class Passes(NamedTuple):
    """What the model gives for each of n targets, natural logarithms."""

    target: np.ndarray
    entropy: np.ndarray
    best: dict[str, np.ndarray]  # of each memory's best token
    possible: np.ndarray  # of all tokens that can follow
    microseconds: float
    mask_microseconds: float  # more, for `possible`


def train(tokens: np.ndarray, shape: Shape, passes: int, seed: int, out: Path) -> Transformer:
    """The model trained on rows (R, T + 1), `passes` times, or read from `out` if it is there."""
    num_rows, in_pass = len(tokens), len(tokens) * shape.length // BATCH
    options = Options(passes * in_pass, seed=seed, tokens_per_step=BATCH)
    preset = own_preset(shape, options)
    rows_digest = hashlib.sha256(tokens.tobytes()).hexdigest()
    path = out / f"{recipe_digest(preset, options, rows_digest)}.pt"
    if not path.exists():
        order = RowOrder(window_edges(num_rows, run_ahead_rows(shape.length, TOKEN_BUDGET)), preset.train.seed)
        rows = BATCH // shape.length
        steps = (tokens[order.journal_rows(step % in_pass * rows, rows, num_rows)] for step in range(options.num_steps))
        state = train_preset(preset, shape, steps, options).trunk.state_dict()
        torch.save({name.removeprefix("_orig_mod."): value for name, value in state.items()}, path)
    model = Transformer(preset.model, shape.vocab)
    model.load_state_dict(torch.load(path))
    return model.eval()


def held_out_text(source: SourceRows, token_bytes: np.ndarray) -> Text:
    tokens = np.append(source.rows[:, :-1].ravel(), source.rows[-1, -1])[: source.num_tokens + 1].astype(np.int64)
    tokens = tokens[: HELD_OUT + 1]
    begins = np.flatnonzero(tokens[:-1] == tokens[0])
    document = np.searchsorted(begins, np.arange(len(tokens) - 1), side="right") - 1
    before = np.arange(1, len(tokens)) - begins[document]
    return Text(source.label, tokens, document, before, token_bytes[tokens[1:]])


def look_up(text: Text, index: TextIndex | None) -> Found:
    """Matches of each target's context in `index`; None: in the document so far."""
    tokens, columns = text.tokens.tolist(), []
    so_far = Earlier()
    began = time.process_time()
    for i, before in enumerate(text.before.tolist(), 1):
        if index:
            match = index.longest(tokens[max(i - before, i - 16) : i])
        else:
            if before == 1:
                so_far = Earlier()
            so_far.append(tokens[i - 1])
            match = so_far.longest(so_far.tokens)
        columns.append(row_of(match, tokens[i]))
    microseconds = (time.process_time() - began) / len(columns) * 1e6
    return Found(*map(np.array, zip(*columns, strict=True)), microseconds)


def row_of(match: Match, target: int) -> tuple[int, int, float, int, float]:
    best, share = match.best()
    return match.length, match.positions, match.following[target] / max(1, match.following.total()), best, share


def windows(num_targets: int, length: int, parts: int) -> list[tuple[int, int]]:
    """(first token, first target that it scores) of windows of `length` tokens, length / parts apart."""
    ends = [*range(length, num_targets, length // parts), num_targets]
    return [(max(0, end - length), before) for before, end in pairwise([0, *ends])]


@torch.inference_mode()
def run_model(model: Transformer, text: Text, found: dict[str, Found], parts: int, possible_VV: Tensor) -> Passes:
    num_targets, length = len(text.document), model.config.seq_length
    tokens = torch.from_numpy(text.tokens)
    out = {name: np.zeros(num_targets) for name in ("target", "entropy", "possible", *found)}
    seconds = mask_seconds = 0.0
    all_windows = windows(num_targets, length, parts)
    for start in range(0, len(all_windows), ROWS_AT_ONCE):
        some = all_windows[start : start + ROWS_AT_ONCE]
        began = time.process_time()
        states = model(torch.stack([tokens[first : first + length] for first, _ in some]))
        for (first, scored), states_TD in zip(some, states, strict=True):
            places = np.arange(scored, first + length)
            logits_TV = model.output(states_TD[scored - first :])
            logs_TV = logits_TV.log_softmax(-1)
            seconds += time.process_time() - began
            out["target"][places] = logs_TV.gather(1, tokens[places + 1, None])[:, 0]
            out["entropy"][places] = -(logs_TV.exp() * logs_TV).sum(1)
            for name, one in found.items():
                out[name][places] = logs_TV.gather(1, torch.from_numpy(one.best[places])[:, None])[:, 0]
            began = time.process_time()
            logs_TV[~possible_VV[tokens[places]]] = -math.inf
            out["possible"][places] = logs_TV.double().logsumexp(1)
            mask_seconds += time.process_time() - began
            began = time.process_time()
    best = {name: out[name] for name in found}
    microseconds, mask = (1e6 * took / num_targets for took in (seconds, mask_seconds))
    return Passes(out["target"], out["entropy"], best, out["possible"], microseconds, mask)


def inputs(found: dict[str, Found], passes: Passes, names: Sequence[str], told: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, M, F) and which memories found something (n, M). Unless `told`, without what the
    model thinks of a memory's best token."""
    of_each = []
    for name in names:
        one = found[name]
        of_each.append(features(one.length, one.count, one.best_share, passes.entropy, passes.best[name] * told))
    return np.stack(of_each, 1), np.stack([found[name].length > 0 for name in names], 1)


def targets(found: dict[str, Found], passes: Passes, names: Sequence[str]) -> np.ndarray:
    """(n, M + 1) probability of the target by the model and by each memory."""
    return np.stack([np.exp(passes.target), *(found[name].target for name in names)], 1)


class Arm(NamedTuple):
    name: str
    parts: int
    nats: list[np.ndarray]  # of each text, (n,)
    microseconds: float


def measure(
    model: Transformer, texts: list[Text], index: TextIndex, possible_VV: Tensor
) -> tuple[list[Arm], dict[str, Gate]]:
    """The arms, and the gates of single memories, fitted on rows as they are."""
    found = [{"journal": look_up(text, index), "document": look_up(text, None)} for text in texts]
    took = {name: float(np.mean([one[name].microseconds for one in found])) for name in MEMORIES}
    arms, gates = [], dict[str, Gate]()
    for overlap, parts in OVERLAPS.items():
        passes = [run_model(model, text, one, parts, possible_VV) for text, one in zip(texts, found, strict=True)]
        own = float(np.mean([one.microseconds for one in passes]))
        arms.append(Arm(overlap, parts, [-one.target for one in passes], own))
        mask = float(np.mean([one.mask_microseconds for one in passes]))
        arms.append(Arm("canonical tokens", parts, [one.possible - one.target for one in passes], own + mask))
        for names, told in ((("journal",), True), (("document",), True), (MEMORIES, True), (MEMORIES, False)):
            all_inputs = [inputs(one, given, names, told) for one, given in zip(found, passes, strict=True)]
            all_targets = [targets(one, given, names) for one, given in zip(found, passes, strict=True)]
            fitting = [text.document % 2 == 0 for text in texts]
            gate = fit_gate(
                *(
                    np.concatenate([one[part][kept] for one, kept in zip(all_inputs, fitting, strict=True)])
                    for part in (0, 1)
                ),
                np.concatenate([one[kept] for one, kept in zip(all_targets, fitting, strict=True)]),
            )
            if len(names) == 1:
                gates.setdefault(names[0], gate)
            nats = []
            for given, target in zip(all_inputs, all_targets, strict=True):
                shares = gate.shares(*given)
                assert np.abs(shares.sum(1) - 1).max() < 1e-6
                nats.append(-np.log((shares * target).sum(1)))
            name = " and ".join(names) + ("" if told else ", the gate without the best token's probability")
            arms.append(Arm(name, parts, nats, own + sum(took[name] for name in names)))
    for text, one in zip(texts, found, strict=True):
        lengths = {name: np.mean(one[name].length) for name in MEMORIES}
        print(f"{text.label}: longest matches of {lengths} tokens on average; lookups {took} us")
    return arms, gates


def nearly_read(text: Text, journal: Found) -> np.ndarray:
    """(n,) whether more than half of its document's NGRAM tokens in a row are in the journal."""
    whole = text.before >= NGRAM
    number = int(text.document.max()) + 1
    read = np.bincount(text.document[whole], journal.length[whole] >= NGRAM, number)
    return (read > 0.5 * np.bincount(text.document[whole], minlength=number))[text.document]


def difference(nats: np.ndarray, other: np.ndarray, text: Text, kept: np.ndarray) -> tuple[float, float, float]:
    """Bits per byte, change in % from `other`, and its standard error over documents."""
    size = np.bincount(text.document[kept], text.num_bytes[kept])
    ours, theirs = (np.bincount(text.document[kept], (one * (text.num_bytes > 0))[kept]) for one in (nats, other))
    ours, theirs, size = ours[size > 0], theirs[size > 0], size[size > 0]
    ratio = ours.sum() / theirs.sum()
    error = math.sqrt(((ours - ratio * theirs) ** 2).sum()) / theirs.sum()
    return ours.sum() / size.sum() / math.log(2), 100 * (ratio - 1), 100 * error


def show(arms: list[Arm], texts: list[Text], near: list[np.ndarray], length: int) -> None:
    reported = [text.document % 2 == 1 for text in texts]
    for number, text in enumerate(texts):
        far = {
            "all": text.before > 0,
            f"to {length}": text.before <= length,
            f"to {2 * length}": (text.before > length) & (text.before <= 2 * length),
            f"to {4 * length}": (text.before > 2 * length) & (text.before <= 4 * length),
            "beyond": text.before > 4 * length,
        }
        clean = reported[number] & ~near[number]
        columns = {name: clean & kept for name, kept in far.items()} | {"nearly read": reported[number] & near[number]}
        columns = {name: kept for name, kept in columns.items() if kept.sum() >= 1_000}
        sizes = ", ".join(f"{name} {kept.sum():,} in {len(set(text.document[kept]))}" for name, kept in columns.items())
        print(f"\n{text.label}; targets: {sizes} documents; change in % against rows as they are\n")
        print(f"| | bits per byte | {' | '.join(columns)} | us a token |\n|---|---:|{'---:|' * len(columns)}---:|")
        for arm in arms:
            found = [difference(arm.nats[number], arms[0].nats[number], text, kept) for kept in columns.values()]
            cells = " | ".join(f"{change:+.2f} ± {error:.2f}" for _, change, error in found)
            name = arm.name if arm.name in OVERLAPS else f"... {arm.name}"
            print(f"| {name} | {found[0][0]:.4f} | {cells} | {arm.microseconds:.0f} |")


def main(run: Path, out: Path, num_tokens: int, passes: int, seeds: list[int]) -> None:
    keep_freed_memory()
    tokenizer, header = bpe.load(run / "tokenizer.json"), read_header(run / "stream")
    assert header, f"{run} has no stream"
    shape = Shape(128, 3, 2, header["seq_length"], bpe.vocab_size(tokenizer))
    journal = JournalReader(run / "stream", row_dtype(shape.length, shape.vocab)).rows(0, num_tokens // shape.length)
    tokens, path = journal["tokens"], out / f"{run.name}.index"
    began = time.process_time()
    build_index(tokens[:, 1:].ravel(), path)
    size = path.stat().st_size
    print(
        f"{run.name}; {measure_machine().device_name}, {time.strftime('%Y-%m-%d')}; index of {num_tokens:,} tokens: ",
        end="",
    )
    print(f"{size / 1e6:.1f} MB, {size / num_tokens:.2f} bytes a token, {time.process_time() - began:.1f} s")
    began = time.process_time()
    neighbours = Neighbours(tokenizer)
    impossible = ~np.stack([neighbours.after(token) for token in range(shape.vocab)])
    print(
        f"{impossible.mean():.1%} of all pairs of tokens are in no text; found in {time.process_time() - began:.1f} s"
    )
    held_out, token_bytes = HeldOut.load(run / "stream" / "heldout.npz"), bpe.token_bytes(tokenizer)
    texts = [held_out_text(source, token_bytes) for source in held_out.sources]
    index = TextIndex(path)
    near = [nearly_read(text, look_up(text, index)) for text in texts]
    for seed in seeds:
        print(f"\nseed {seed}")
        model = train(tokens, shape, passes, seed, out)
        arms, gates = measure(model, texts, index, torch.from_numpy(~impossible))
        show(arms, texts, near, shape.length)
        continue_documents(model, held_out, neighbours, token_bytes, index, gates["journal"])


if __name__ == "__main__":
    run, out, *more = sys.argv[1:]
    num_tokens, passes, *seeds = map(int, [*more, *("4194304", "1", "1")[len(more) :]])
    main(Path(run), Path(out), num_tokens, passes, seeds)
