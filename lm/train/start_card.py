"""The start card: everything decided before the first step, in at most 80 columns; text only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Preset, Source
from configs.text import clip, counted, human_bytes, human_count, human_time, wrapped
from data.heldout_choice import BYTES_PER_TOKEN
from data.mixing import shares
from data.order import finish_row
from data.producer_client import SourceInfo
from data.sources.base import PIECE_CHARACTERS
from lm.runtime.estimate import num_milestones

WIDTH = 80  # columns
# Four readings are worth nearly as much as new text, from sixteen on more teach little (Muennighoff et al.,
# Scaling Data-Constrained Language Models, 2023).
FEW_READINGS, MANY_READINGS = 4, 16


@dataclass(frozen=True)
class StartCard:
    preset: Preset
    sources: list[SourceInfo]
    shares: list[float]  # of the tokens, by source; zeros where they are not known yet
    tokenizer: str  # "byte-level BPE, 8192 tokens, trained on the beginning of the mixture"
    num_parameters: int
    rows_per_step: int
    world_size: int
    token_budget: int
    tokens_seen: int  # more than 0 when a run is resumed
    decisions: list[tuple[str, str]]  # (decision, reason): ("bfloat16", "this CPU has avx512_bf16")
    peak_memory_bytes: int  # of the dry run
    disk_needed_bytes: int
    disk_free_bytes: int
    tokens_per_second: float  # of the dry run
    export_bytes: int

    @property
    def tokens_per_step(self) -> int:
        return self.rows_per_step * self.preset.model.seq_length


def tokens_of(source: SourceInfo, spec: Source) -> float:
    """Return about how many tokens one reading of a source has; infinity if its size is not known."""
    most = spec.max_documents * PIECE_CHARACTERS if spec.max_documents else math.inf
    return min(source.text_bytes, most) / BYTES_PER_TOKEN if source.text_bytes else math.inf


def num_readings(source: SourceInfo, share: float, token_budget: int, spec: Source) -> float:
    """Return how often a source is read for `share` of the budget, about; 0 if its size is not known."""
    return share * token_budget / tokens_of(source, spec)


def tokens_until_the_end(preset: Preset, sources: Sequence[SourceInfo], token_budget: int, tokens_seen: int) -> int:
    """Return about how many tokens a run has: fewer than its budget if every source ends before. The guess
    is wrong, and does not count, if the run has seen as many."""
    data, end = preset.data, token_budget
    before_finish = list(zip(sources, data.all_sources, strict=True))[: len(data.sources) + len(data.custom_sources)]
    in_all = sum((spec.repeat or math.inf) * tokens_of(source, spec) for source, spec in before_finish)
    if data.finish:  # which does not begin if the sources before it are used up
        end = first_token_of_finish(preset, token_budget)
    return int(in_all) if tokens_seen < in_all < end else token_budget


def first_token_of_finish(preset: Preset, token_budget: int) -> int:
    seq_length = preset.model.seq_length
    return (finish_row(preset.data.finish_share, seq_length, token_budget) or 0) * seq_length


def how_much(source: SourceInfo, share: float, token_budget: int, spec: Source) -> str:
    """Return how much a source has, and how often it is read: for `share` of the budget, or its `repeat` times."""
    times, repeat = num_readings(source, share, token_budget, spec), spec.repeat
    if repeat and times > repeat:
        return (
            f"{source.size}, to be read {repeat:,} times (repeat)" if repeat > 1 else f"{source.size}, to be read once"
        )
    return f"{source.size}, to be read about {times:,.0f} times" if times >= 2 else source.size


def _readings(card: StartCard) -> list[tuple[str, str]]:
    """Return what it means that a source is read so often, unless its `repeat` ends it."""
    each = zip(card.sources, card.shares, card.preset.data.all_sources, strict=True)
    unlimited = [
        (num_readings(source, share, card.token_budget, spec), source.label)
        for source, share, spec in each
        if not spec.repeat
    ]
    times, label = max(unlimited, default=(0.0, ""))
    if times < 2:
        return []
    if times <= FEW_READINGS:
        return [("", "A few readings teach nearly as much as new text.")]
    begins = f"{clip(label, 24)} is read about {times:,.0f} times in {card.token_budget:,} tokens: a few are fine, "
    begins += "some tens and the model knows it by heart" if times > MANY_READINGS else "each later one teaches less"
    ends = f'"repeat": {FEW_READINGS} in that source ends it after {FEW_READINGS}, and the run when all have ended.'
    return [("", f"{begins}. {ends} The best checkpoint on held-out text is kept, and exported if it beats the last.")]


def _expectations(preset: Preset) -> list[tuple[str, str]]:
    """Return what to expect of a model that learns to answer, or that was another model before."""
    rows = []
    if preset.data.conversations:
        rows.append(
            "a model to talk to. It learns what an answer looks like, much less what is true: it will make things up, "
            "and lose the thread of a long conversation"
        )
    if preset.model.init_from:
        rows.append(
            "what that model knows, in the style of your text. It picks up few facts from it, and forgets some of its own"
        )
        if not preset.data.conversations:
            rows.append(
                "a model that continues text, also if that one answers: there are no conversations among the sources, so its "
                "chat template is not kept"
            )
    return [("expect" if index == 0 else "", text) for index, text in enumerate(rows)]


def _milestones(card: StartCard) -> list[tuple[str, str]]:
    train, by_words = card.preset.train, card.preset.train.keep_at_tokens == "babylm"  # not counted yet
    if not train.milestones:
        return []
    number = num_milestones(train, card.token_budget)
    if not number:
        return [("milestones", f"none: all points are beyond {card.token_budget:,} tokens")]
    size = human_bytes(card.export_bytes)
    rows = [("milestones", f"{'up to ' * by_words}{number}, each of {size}, in checkpoints/milestones/")]
    if not by_words and (beyond := len(train.milestones) - number):
        rows.append(("", f"not kept: {counted(beyond, 'point')} beyond {card.token_budget:,} tokens"))
    return rows


def _parts(preset: Preset, token_budget: int, end: int) -> list[tuple[str, str]]:
    """Return the rows about weights that have no effect, a finish, and sources that are only watched. `end`: of the run,
    in tokens."""
    data = preset.data
    labels = [source.label for source in data.all_sources]
    rows = []
    if data.source_weights and data.mix_strategy != "weighted":
        rows.append(("mixed", 'source_weights has no effect without mix_strategy "weighted"'))
    if data.finish:
        first = first_token_of_finish(preset, token_budget)
        parts = shares(data.weights[len(labels) :])
        percent = data.mix_strategy == "weighted"
        mixed = [f"{label} {part:.0%}" if percent else label for label, part in zip(labels, parts, strict=True) if part]
        rows.append(
            ("finish", f"from {first:,} tokens on, the last {100 * data.finish.share:.3g}%: {', '.join(mixed)}")
        )
        if end < first:
            rows.append(("", "it will not begin: the sources before it are used up then, by their `repeat`"))
    if watched := data.watched_labels:
        rows.append(("watched", f"{', '.join(watched)}: evaluated, never trained on"))
    return rows


def render_card(card: StartCard) -> str:
    """Render everything decided before the first step, in at most 80 columns."""
    model, train = card.preset.model, card.preset.train
    end = tokens_until_the_end(card.preset, card.sources, card.token_budget, card.tokens_seen)
    ends_early = [("", f"ends after about {human_count(end)} tokens, with the last reading")]
    remaining = end - card.tokens_seen
    processes = "process" if card.world_size == 1 else "processes"
    layers, heads = counted(model.num_layers, "layer"), counted(model.num_heads, "head")
    if model.num_kv_heads != model.num_heads:
        heads += f" ({model.num_kv_heads} of keys and values)"
    a_step, steps = counted(card.rows_per_step, "row"), counted(math.ceil(remaining / card.tokens_per_step), "step")
    widest = max((len(source.label) for source in card.sources), default=0)
    width = min(widest, 24)
    went_on = f", from {card.tokens_seen:,} of {card.token_budget:,} tokens on" if card.tokens_seen else ""
    rows = [("run", card.preset.name + went_on)]
    each = zip(card.sources, card.shares, card.preset.data.all_sources, strict=True)
    for index, (source, share, spec) in enumerate(each):
        size = how_much(source, share, card.token_budget, spec)
        rows.append(("sources" if index == 0 else "", f"{clip(source.label, width):<{width}}  {size}"))
        rows.append(("", f"  “{clip(source.first_line, 60)}”"))
    rows += [
        *_readings(card),
        *(ends_early if end < card.token_budget else []),
        *_parts(card.preset, card.token_budget, end),
        ("tokenizer", card.tokenizer),
        (
            "model",
            f"{human_count(card.num_parameters)} parameters: {layers}, {model.hidden_size} wide,",
        ),
        ("", f"{heads}, {model.seq_length} tokens of context"),
        *([("", f"starts from {model.init_from}")] if model.init_from else []),
        *_expectations(card.preset),
        ("batch", f"{card.tokens_per_step:,} tokens a step, {steps}"),
        (
            "",
            f"{a_step} over {card.world_size} {processes}, {train.per_gpu_batch_size} at a time in each",
        ),
        *[("decided" if index == 0 else "", f"{what}: {why}") for index, (what, why) in enumerate(card.decisions)],
        ("memory", f"{human_bytes(card.peak_memory_bytes)} at the peak of the dry run"),
        *_milestones(card),
        ("disk", f"{human_bytes(card.disk_needed_bytes)} needed, {human_bytes(card.disk_free_bytes)} free"),
        (
            "speed",
            f"{human_count(card.tokens_per_second)} tokens/s, {human_time(remaining / card.tokens_per_second)} to go",
        ),
    ]
    lines = []
    for name, text in rows:
        first, *others = wrapped(clip(text, 4 * WIDTH), WIDTH - 13).splitlines() or [""]
        lines += [f"{name:<10} {first}", *(f"{'':<13}{line}" for line in others)]
    return "\n".join(clip(line, WIDTH) for line in lines)
