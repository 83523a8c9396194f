"""The measures of the heads, the baseline that each must beat, and both in words.
Nothing is computed here.

`MEASURES` is for the display of a run (progress bar, report): the first of each head is shown
where there is room for one. Baselines are measured by the head itself, at the same positions, or
are constants.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Measure(NamedTuple):
    name: str  # "head/measure", as the heads report it
    baseline: str | float  # name of the measure to beat, or a value
    short: str  # the baseline in one word
    meaning: str
    baseline_meaning: str
    less_is_better: bool = False

    @property
    def head(self) -> str:
        return self.name.partition("/")[0]

    def values(self, measured: Mapping[str, float | None]) -> tuple[float | None, float | None]:
        """Return the measure and its baseline; None for values that were not measured."""
        known = measured.get(self.baseline) if isinstance(self.baseline, str) else self.baseline
        return measured.get(self.name), known

    def beats(self, value: float, baseline: float) -> bool:
        return value < baseline if self.less_is_better else value > baseline


def _ahead(k: int) -> str:
    return "the next token" if k == 1 else f"{k} tokens ahead"


MEASURES = (
    *(
        Measure(
            f"dynamics/error_{k}",
            1.0,
            "mean",
            f"share of the states' variance missed by the state predicted for {_ahead(k)}",
            "the mean state",
            less_is_better=True,
        )
        for k in (1, 2, 3)
    ),
    *(
        Measure(
            f"policy/acceptance_{k}",
            f"policy/copy_acceptance_{k}",
            "copy",
            f"share of drafts kept that are made from the state predicted for {_ahead(k)}",
            "drafts from the state as it is",
        )
        for k in (1, 2, 3)
    ),
    Measure(
        "value/correlation",
        "value/trailing_correlation",
        "trailing",
        "correlation of the loss predicted for the next 32 tokens with what it is",
        "the loss of the last 32 tokens",
    ),
    Measure("value/r2", 0.0, "mean", "share of the variance of that loss explained", "its mean"),
    Measure(
        "span_contrastive/top1",
        "span_contrastive/chance",
        "chance",
        "how often the span that follows is picked out among the batch's",
        "chance",
    ),
    Measure(
        "span_contrastive/top1_same_document",
        "span_contrastive/chance_same_document",
        "chance",
        "the same among spans of its own document",
        "chance",
    ),
)


def first_of_each_head(measured: Mapping[str, float | None]) -> list[Measure]:
    """Return the first measure of each head that has a value."""
    firsts = {measure.head: measure for measure in reversed(MEASURES) if measure.values(measured)[0] is not None}
    return [firsts[head] for head in dict.fromkeys(measure.head for measure in MEASURES) if head in firsts]


def in_words(measured: Mapping[str, float | None]) -> str:
    """Format every head as "value 0.61 (trailing 0.55), ...": a line for a log."""
    parts = []
    for measure in first_of_each_head(measured):
        value, baseline = measure.values(measured)
        beside = "" if baseline is None else f" ({measure.short} {baseline:.2g})"
        parts.append(f"{measure.head.partition('_')[0]} {value:.2g}{beside}")
    return ", ".join(parts)


def in_brief(measured: Mapping[str, float | None], turn: int) -> str:
    """Format one head, chosen by `turn`, as "value .61>.55": a progress line has no
    room for more. "" if none."""
    measures = first_of_each_head(measured)
    if not measures:
        return ""
    measure = measures[turn % len(measures)]
    value, baseline = measure.values(measured)
    assert value is not None, "measured, or it would not be among them"
    shown = f"{measure.head.partition('_')[0]} {_brief(value)}"
    if baseline is None:
        return shown
    sign = "=" if _brief(value) == _brief(baseline) else ">" if value > baseline else "<"
    return f"{shown}{sign}{_brief(baseline)}"


def _brief(number: float) -> str:
    return f"{number:.2g}".replace("0.", ".", 1)
