"""The state of a run: the only definition and copy of what a checkpoint holds besides tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Measured = tuple[float, float]  # bits per byte, its standard error


@dataclass
class TrainState:
    """Progress of a run. Lists have one entry per source, in the order of the preset."""

    global_batch_rows: int  # per step over all processes: kept when their number changes
    source_tokens: list[int]  # by source, in the rows seen so far
    factors: list[float]  # of each source's weight, as adapted so far
    tokens_seen: int = 0
    words_seen: int = 0  # begun in these tokens (data/words.py); without those of a version that did not count
    num_steps: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0  # of training
    exhausted: bool = False  # the sources ran out
    text_digest: str = ""  # of all text seen, in order
    windows_begun: list[int] = field(default_factory=lambda: [0])  # data/order.py: RowOrder.edges_begun
    # (first row in the journal, weights)
    weight_changes: list[tuple[int, list[float]]] = field(default_factory=list)
    # held-out measures at the last adaptation
    adapted_on: dict[str, Measured] = field(default_factory=dict)
    # Tokens seen when each event last happened.
    evaluated: int = 0
    adapted: int = 0
    sampled: int = 0
    kept_at: tuple[int, int] = (0, 0)  # tokens and words seen when milestones were last looked for

    @classmethod
    def new(cls, num_sources: int, global_batch_rows: int) -> TrainState:
        return cls(global_batch_rows, [0] * num_sources, [1.0] * num_sources)

    def is_trained(self, token_budget: int) -> bool:
        """Return whether the budget is reached, or the sources ran out before it."""
        return self.tokens_seen >= token_budget or self.exhausted

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TrainState:
        position = checkpoint["stream_position"]
        adaptive, happened = position["adaptive"], checkpoint.get("events", {})
        return cls(
            global_batch_rows=checkpoint["global_batch_rows"],
            source_tokens=list(position.get("source_tokens", [])),
            factors=list(adaptive["factors"]),
            tokens_seen=checkpoint["tokens_seen"],
            words_seen=position.get("words_seen", 0),
            num_steps=checkpoint["num_steps"],
            skipped_steps=checkpoint["skipped_steps"],
            seconds=checkpoint["seconds"],
            exhausted=checkpoint["exhausted"],
            text_digest=position["text_digest"],
            windows_begun=list(position.get("windows_begun", [0])),
            weight_changes=[(row, list(weights)) for row, weights in position["weight_changes"]],
            adapted_on={label: tuple(measured) for label, measured in adaptive["bits_per_byte"].items()},
            evaluated=happened.get("evaluated", 0),
            adapted=adaptive["tokens"],
            sampled=happened.get("sampled", 0),
            kept_at=tuple(happened.get("kept_at", (checkpoint["tokens_seen"], 0))),
        )

    def to_checkpoint(self, seq_length: int) -> dict[str, Any]:
        """Return its part of a checkpoint (lm/checkpoint/file.py: CONTENTS)."""
        return {
            "global_batch_rows": self.global_batch_rows,
            "tokens_seen": self.tokens_seen,
            "num_steps": self.num_steps,
            "skipped_steps": self.skipped_steps,
            "seconds": self.seconds,
            "exhausted": self.exhausted,
            "stream_position": {
                "row": self.tokens_seen // seq_length,
                "words_seen": self.words_seen,
                "windows_begun": self.windows_begun,
                "source_tokens": self.source_tokens,
                "weight_changes": self.weight_changes,
                "adaptive": {"tokens": self.adapted, "factors": self.factors, "bits_per_byte": self.adapted_on},
                "text_digest": self.text_digest,
            },
            "events": {"evaluated": self.evaluated, "sampled": self.sampled, "kept_at": self.kept_at},
        }
