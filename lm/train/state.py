"""The state of a run: the only definition and copy of what a checkpoint holds besides tensors.

With it a run resumes exactly: schedule.py makes the next step from `tokens_seen`, data/order.py
finds its rows in the journal, and data/journal.py holds those rows and the state of every source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import uuid4

from pydantic import Field, TypeAdapter

from configs.errors import CheckpointError

Number = Annotated[int, Field(ge=0, lt=2**53, strict=True)]
Last = Annotated[int, Field(ge=-1, lt=2**53, strict=True)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Measured = tuple[float, float | None]  # bits per byte, its standard error; None: not known

NO_PROGRESS = (
    "The last checkpoint does not say how far its run was ({}): another program has changed it. Put a copy of it back, or "
    "move the run elsewhere to start a new one."
)


@dataclass
class TrainState:
    """Progress of a run. Lists have one entry per source, in the order of the preset."""

    global_batch_rows: Annotated[int, Field(ge=1)]  # per step over all processes: kept when their number changes
    source_tokens: list[Number]  # by source, of the tokens seen so far
    factors: list[Finite]  # of each source's weight, as adapted so far; then of those in the finish, if any
    run_id: str = ""  # made up when the run begins: tells its files from those of another one
    tokens_seen: Number = 0
    words_seen: Number = 0  # begun in these tokens (data/words.py); without those of a version that did not count
    num_steps: Number = 0
    skipped_steps: Number = 0
    seconds: Finite = 0.0  # of training
    exhausted: bool = False  # the sources ran out
    text_digest: str = ""  # of all text seen, in order
    stream_header: dict[str, Any] = field(default_factory=dict)  # what the stream is made from (data/prepare.py)
    windows_begun: list[Number] = field(default_factory=lambda: [0])  # data/order.py: RowOrder.edges_begun
    # (first row in the journal, weights)
    weight_changes: list[tuple[Number, list[Finite]]] = field(default_factory=list)
    # held-out measures at the last adaptation
    adapted_on: dict[str, Measured] = field(default_factory=dict)
    # Tokens seen when each event last happened; -1: it is due before the first step.
    evaluated: Last = 0
    adapted: Number = 0
    sampled: Last = 0
    kept_at: tuple[Number, Number] = (0, 0)  # tokens and words seen when milestones were last looked for

    @classmethod
    def new(cls, num_sources: int, num_weights: int, global_batch_rows: int, *, continued: bool = False) -> TrainState:
        """Return the state at the beginning of a run. With `continued`, for a model that is trained
        already, an evaluation and samples are due there, to show what the run changes."""
        last = -1 if continued else 0
        tokens, factors = [0] * num_sources, [1.0] * num_weights
        return cls(global_batch_rows, tokens, factors, run_id=uuid4().hex, evaluated=last, sampled=last)

    def is_trained(self, token_budget: int) -> bool:
        """Return whether the budget is reached, or the sources ran out before it."""
        return self.tokens_seen >= token_budget or self.exhausted

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], num_sources: int, num_weights: int) -> TrainState:
        """Return the progress in a checkpoint of a run of `num_sources` with `num_weights`.

        Raises CheckpointError unless it is one that a run can have.
        """
        try:
            state = TypeAdapter(cls).validate_python(cls._fields_of(checkpoint))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(NO_PROGRESS.format(type(error).__name__)) from error
        lengths = {len(state.factors), *(len(weights) for _, weights in state.weight_changes)}
        fits = len(state.source_tokens) == num_sources and lengths == {num_weights}
        begun = state.windows_begun
        if not fits or begun[:1] != [0] or sorted(set(begun)) != begun:
            raise CheckpointError(NO_PROGRESS.format("its lists do not fit"))
        return state

    @staticmethod
    def _fields_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        position = checkpoint["stream_position"]
        adaptive, happened = position["adaptive"], checkpoint.get("events", {})
        return {
            "global_batch_rows": checkpoint["global_batch_rows"],
            "source_tokens": list(position.get("source_tokens", [])),
            "factors": list(adaptive["factors"]),
            "run_id": checkpoint.get("run_id", ""),
            "tokens_seen": checkpoint["tokens_seen"],
            "words_seen": position.get("words_seen", 0),
            "num_steps": checkpoint["num_steps"],
            "skipped_steps": checkpoint["skipped_steps"],
            "seconds": checkpoint["seconds"],
            "exhausted": checkpoint["exhausted"],
            "text_digest": position["text_digest"],
            "stream_header": position.get("header", {}),
            "windows_begun": list(position.get("windows_begun", [0])),
            "weight_changes": [(row, list(weights)) for row, weights in position["weight_changes"]],
            "adapted_on": {label: tuple(measured) for label, measured in adaptive["bits_per_byte"].items()},
            "evaluated": happened.get("evaluated", 0),
            "adapted": adaptive["tokens"],
            "sampled": happened.get("sampled", 0),
            "kept_at": tuple(happened.get("kept_at", (checkpoint["tokens_seen"], 0))),
        }

    def to_checkpoint(self, seq_length: int) -> dict[str, Any]:
        """Return its part of a checkpoint (lm/checkpoint/file.py: CONTENTS)."""
        return {
            "run_id": self.run_id,
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
                "header": self.stream_header,
            },
            "events": {"evaluated": self.evaluated, "sampled": self.sampled, "kept_at": self.kept_at},
        }
