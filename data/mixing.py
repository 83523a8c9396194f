"""Chooses the source of each document; adaptive rules change the mixture by held-out losses.

A `Mixer` uses no random numbers and knows nothing of text: `choose()` names a source, `charge()`
records the cost of its document. Its state is a few JSON numbers; the same calls give the same
choices. The adaptive rules are pure functions.

`weighted` and `round_robin` are one rule with two units, tokens and turns. A document of cost n
adds to every source's credit its share of n, and subtracts n from the chosen one's: a credit is
what was asked of a source minus what it gave. Only a source without a negative credit may be
chosen: of these, the one that, if passed over, would be the first to fall behind by a whole
document. The longest document so far stands for the next ones, which are unknown.

With constant weights no source is ever further from its share than the longest document, for any
number of sources and any lengths. Not ahead of it: a chosen source has no negative credit. Not
behind it: suppose that after t tokens a credit exceeds S, the cost of the longest. Take the last
choice until then of a source whose credit would not have reached S by t; let A be all sources
chosen after it, and the late one. At that choice no source in A was eligible, or it would have
come first: all credits in A were negative. Since then A was asked for at most all tokens given,
and gave all but that one document, so its credits sum to less than S at t. But each other source
in A, when chosen, had a credit that would have reached S by t and gave at most S of it, so its
credit at t is not negative, and the late one's alone exceeds S: a contradiction.

New weights apply from then on: credits are kept, so nothing earlier is compensated in a burst.
Weights that change at every document and depend on the choices can drive any deterministic rule to
about log(number of sources) documents (the cup game of scheduling theory); random weights drove
this one to 1.1 (tests/data/test_mixing.py).
"""

from collections.abc import Sequence
from typing import Literal

Strategy = Literal["round_robin", "sequential", "weighted"]

DECIMALS = 6  # of a token or a turn: floating-point differences are ignored
LARGEST_MOVE = 1.25  # the slope rule changes a factor by at most this ratio at one decision


class Mixer:
    """A choice among `len(weights)` sources; those left share the part of a dropped one.

    A source of weight 0 is never chosen.
    """

    def __init__(self, strategy: Strategy, weights: Sequence[float]):
        self.strategy = strategy
        self.weights = list(weights)
        self.credits = [0.0] * len(weights)
        self.longest = 0  # largest cost of a document so far
        self.active = [weight > 0 for weight in weights]
        self.current = 0  # sequential only: the source being read; the first has a weight

    @property
    def exhausted(self) -> bool:
        return not any(self.active)

    def choose(self) -> int:
        """Return the index of the next document's source; the lowest index wins a tie.

        At least one source must be active.
        """
        if self.strategy == "sequential":
            return self.current
        share = self._shares()
        active = [i for i, active in enumerate(self.active) if active]
        not_ahead = [i for i in active if round(self.credits[i], DECIMALS) >= 0] or active
        return min(not_ahead, key=lambda i: (round((self.longest - self.credits[i]) / share[i], DECIMALS), i))

    def charge(self, index: int, num_tokens: int) -> None:
        """Account for a document of `num_tokens` from source `index`."""
        cost = num_tokens if self.strategy == "weighted" else 1
        self.longest = max(self.longest, cost)
        self._ask(cost)
        self.credits[index] -= cost

    def _ask(self, amount: float) -> None:
        """Add to the credit of every active source its share of `amount`."""
        self.credits = [credit + amount * share for credit, share in zip(self.credits, self._shares(), strict=True)]

    def _shares(self) -> list[float]:
        return shares([weight * active for weight, active in zip(self.weights, self.active, strict=True)])

    def epoch_ended(self, index: int) -> None:
        """Note that source `index` starts over; a sequential mixture moves to the next source."""
        if self.strategy == "sequential":
            following = [*range(index + 1, len(self.active)), *range(index + 1)]
            self.current = next((i for i in following if self.active[i]), index)

    def drop(self, index: int) -> None:
        """Remove source `index`, which is used up for good."""
        owed, self.credits[index] = self.credits[index], 0.0
        self.active[index] = False
        self._ask(owed)
        self.epoch_ended(index)

    def state(self) -> dict:
        """Return JSON without the weights: the run records from which row on those apply."""
        return {
            "credits": list(self.credits),
            "longest": self.longest,
            "active": list(self.active),
            "current": self.current,
        }

    def load_state(self, state: dict) -> None:
        self.credits, self.active = list(state["credits"]), list(state["active"])
        self.longest, self.current = state["longest"], state["current"]


def base_weights(strategy: Strategy, source_weights: Sequence[float]) -> list[float]:
    """Return the weights a run starts with, which adaptive factors multiply.

    They are the preset's for `weighted`, else equal; 0 remains 0.
    """
    return list(source_weights) if strategy == "weighted" else [float(weight > 0) for weight in source_weights]


def weights_at(
    base: Sequence[float], changes: Sequence[tuple[int, Sequence[float]]], finish: int | None, row: int
) -> list[float]:
    """Return the weight of each source for a document chosen after `row` rows.

    `changes` of the weights `base` are (from row, weights) in order. With a finish, which begins at
    row `finish`, its weights follow the others in each.
    """
    weights = next((weights for from_row, weights in reversed(changes) if from_row <= row), base)
    if finish is None:
        return list(weights)
    half = len(weights) // 2
    return list(weights[:half] if row < finish else weights[half:])


def in_force(
    base: Sequence[float], changes: Sequence[tuple[int, Sequence[float]]], finish: int | None
) -> list[tuple[int, list[float]]]:
    """Return (from row, weights of each source) in order, the first from row 0 on."""
    starts = sorted({0, *(row for row, _ in changes), *([] if finish is None else [finish])})
    return [(start, weights_at(base, changes, finish, start)) for start in starts]


def over_the_run(weights: Sequence[float], num_sources: int, finish_share: float | None) -> list[float]:
    """Return the weights (num_sources,) of a whole run, of which the finish is `finish_share`."""
    if finish_share is None:
        return list(weights)
    main, finish = shares(weights[:num_sources]), shares(weights[num_sources:])
    return [(1 - finish_share) * a + finish_share * b for a, b in zip(main, finish, strict=True)]


def shares(amounts: Sequence[float]) -> list[float]:
    """Return each amount divided by their sum, or zeros if that is zero."""
    total = sum(amounts)
    return [amount / total if total else 0.0 for amount in amounts]


def shares_asked(parts: Sequence[tuple[int, Sequence[float]]], num_rows: int) -> list[float]:
    """Return the mean share asked of each source over the first `num_rows` rows.

    `parts`: what `in_force` returns.
    """
    asked = [0.0] * len(parts[0][1])
    ends = [row for row, _ in parts[1:]] + [num_rows]
    for (start, weights), end in zip(parts, ends, strict=True):
        rows = max(0, min(end, num_rows) - start)
        asked = [so_far + rows * share for so_far, share in zip(asked, shares(weights), strict=True)]
    return shares(asked)


def relative_loss(
    factors: Sequence[float], losses: Sequence[float | None], *, smoothing: float, low: float, high: float
) -> list[float]:
    """Move each factor towards its source's relative loss.

    factor <- smoothing * factor + (1 - smoothing) * clamp(loss / mean loss, low, high)

    `losses`: held-out loss of each source, any unit; None (nothing held out) keeps the factor.
    """
    known = [loss for loss in losses if loss is not None]
    mean = sum(known) / len(known) if known else 0.0
    if mean <= 0:
        return list(factors)
    return [
        factor if loss is None else smoothing * factor + (1 - smoothing) * _clamp(loss / mean, low, high)
        for factor, loss in zip(factors, losses, strict=True)
    ]


def loss_slope(
    factors: Sequence[float],
    falls: Sequence[float | None],
    standard_errors: Sequence[float],
    *,
    smoothing: float,
    low: float,
    high: float,
) -> list[float]:
    """Give more weight to sources whose held-out loss still falls fast.

    factor <- smoothing * factor + (1 - smoothing) * clamp(fall / mean fall, low, high), by a
    ratio of LARGEST_MOVE at most

    `falls`: held-out bits per byte at the last decision minus now, per source, with their standard
    errors. A change within 2 standard errors, or a rise, counts as none. None (not known) keeps the
    factor. If no loss falls, no factor moves.
    """
    real = [
        None if fall is None else fall if fall > 2 * error else 0.0
        for fall, error in zip(falls, standard_errors, strict=True)
    ]
    moved = relative_loss(factors, real, smoothing=smoothing, low=low, high=high)
    return [
        _clamp(new, factor / LARGEST_MOVE, factor * LARGEST_MOVE) for factor, new in zip(factors, moved, strict=True)
    ]


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
