"""The form of a line of metrics.jsonl: what is read back is checked against it.

`MetricsLog` writes these lines, but a file can be changed by anything; the report and its figures
rely on this form. More keys are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Required

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

LARGEST = 1e30
Value = Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None  # null: not measured, or not finite
Count = Annotated[int, Field(ge=0, lt=2**53)]
PerName = Annotated[dict[str, Value], Field(max_length=1_000)]


class Measured(TypedDict, total=False):
    """Losses on held-out text."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    loss: Value
    bits_per_byte: Value
    stderr: Value
    answer_loss: Value
    answer_bits_per_byte: Value
    tokens: Count


class Evaluated(Measured, total=False):
    per_source: Required[Annotated[dict[str, Measured], Field(max_length=1_000)]]


class WithAndWithout(TypedDict):
    """Bits per byte of tokens in overlapping windows, and of the same tokens without overlap."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    bits_per_byte: Value
    plain: Value


class Overlapping(WithAndWithout):
    context: Count
    tokens: Count
    per_source: Annotated[dict[str, WithAndWithout], Field(max_length=1_000)]


class Canonical(TypedDict):
    """Bits per byte, and how many of them are saved where tokens that no text has get no probability."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    tokens: Count
    bits_per_byte: Value
    saved: Value


class SourceRead(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    documents: Count
    tokens: Count
    bytes: Count
    epoch: Count
    retries: Count
    skipped: dict[str, Count]
    asked: Value
    realised: Annotated[float, Field(ge=0, le=1)]


class BenchmarkResult(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    measures: Annotated[dict[str, tuple[Value, Value]], Field(max_length=1_000)]  # value, standard error
    items: Count
    chance: Value


class BestCheckpoint(TypedDict, total=False):
    """The best checkpoint of a run compared with the last, at the end (lm/train/best.py)."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    tokens: Required[Count]
    exported: Required[bool]
    gained: Value  # bits per byte of held-out text; absent if the last is the best
    stderr: Value


class MetricsRecord(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    tokens: Required[Count]
    loss: Value
    bits_per_byte: Value
    lr: Value
    tokens_per_second: Value
    data_wait_fraction: Value
    grad_norm: Value
    mfu: Value
    flops_per_token: Value
    peak_memory_bytes: Value
    skipped_steps: Value
    eval: Evaluated | None
    mixture: PerName | None
    heads: PerName | None
    sources: dict[str, SourceRead] | None
    resumed: str | None
    benchmarks: Annotated[dict[str, BenchmarkResult], Field(max_length=1_000)]
    best: BestCheckpoint
    overlapping: Overlapping | None
    canonical: Canonical | None
    finish_from: Count


_RECORD = TypeAdapter(MetricsRecord)


def parse_record(line: str) -> dict[str, Any] | None:
    """Return the record in a line of metrics.jsonl, or None if the line is torn or of another form."""
    try:
        _RECORD.validate_json(line)  # refuses deep nesting too
        return json.loads(line)
    except ValueError:
        return None


def choice_in_words(best: Mapping[str, Any]) -> str:
    """Return which checkpoint was exported and why, of the `best` in a line of metrics.jsonl."""
    if best.get("gained") is None:
        return "Exported is the last checkpoint: no earlier one has a lower held-out loss."
    stderr = "an unknown error" if best.get("stderr") is None else f"{best['stderr']:.4f}"
    one, gained = f"lm_best.pth, after {best['tokens']:,} tokens", f"{best['gained']:.4f} ± {stderr} bits per byte"
    if best["exported"]:
        return f"Exported is {one}: on held-out text it is {gained} better than the last checkpoint."
    if best["gained"] <= 0:  # only on the part of it that is evaluated during a run
        return f"Exported is the last checkpoint: {one}, is not better on all held-out text ({gained})."
    return f"Exported is the last checkpoint: {one}, is better on held-out text by no more than the error ({gained})."
