"""Which source the next document comes from, and how learnt factors move the mixture.

A `Mixer` has no dice and knows nothing of text: `choose()` names a source, `charge()` tells it what the document cost.
Its state is a few JSON numbers; the same calls give the same choices. The adaptive rules are pure functions.

`weighted` and `round_robin` are one rule with two units, tokens and turns. After a document of cost n every source is
owed its share of n more, and the chosen one n less: its credit is what it was asked for minus what it gave. Only a
source that is not ahead of its share may be chosen; of these the one which, left out, would be the first to fall behind
by a whole document: as long as the longest so far, since nobody knows the next ones.

With constant weights no source is ever further from its share than the longest document, for any number of sources and
any lengths. Not ahead of it: who is chosen has a credit. Not behind it: suppose that with t tokens given out a credit
exceeds S, the longest. Of the choices until then take the last of a source whose credit would not have reached S by t;
let A be all chosen after it, and the late one. When it was made nobody in A could be chosen, or would have come first: all
credits in A were negative. Since then A earned at most what was given out, got all of it but that one document, and so
has credits of less than S in sum at t. But whoever of A was chosen had a credit that would have reached S by t and gave
at most S of it, so it has no debt at t, and the late one has more than S alone: a contradiction.

New weights count from the moment they come: credits are kept, so nothing that went before is paid back in a burst.
Weights that change at every document, and know what was chosen, can drive any rule without dice to about log(number of
sources) documents (the cup game of scheduling theory); random ones drove this one to 1.1 (tests/data/test_mixing.py).
"""

from collections.abc import Sequence
from typing import Literal

Strategy = Literal["round_robin", "sequential", "weighted"]

DECIMALS = 6  # of a token or a turn: what is equal but for floating point is equal
LARGEST_MOVE = 1.25  # the slope rule changes a factor by at most this ratio at one decision


class Mixer:
    """Chooses among `len(weights)` sources. A source that is used up for good is dropped; the rest share its part."""

    def __init__(self, strategy: Strategy, weights: Sequence[float]):
        self.strategy = strategy
        self.weights = list(weights)
        self.credits = [0.0] * len(weights)
        self.longest = 0  # cost of one document so far
        self.active = [True] * len(weights)
        self.current = 0  # sequential only: the source being read

    @property
    def exhausted(self) -> bool:
        return not any(self.active)

    def choose(self) -> int:
        """Index of the source of the next document; the lowest index wins a tie. At least one must be active."""
        if self.strategy == "sequential":
            return self.current
        share = self._shares()
        active = [i for i, active in enumerate(self.active) if active]
        not_ahead = [i for i in active if round(self.credits[i], DECIMALS) >= 0] or active
        return min(not_ahead, key=lambda i: (round((self.longest - self.credits[i]) / share[i], DECIMALS), i))

    def charge(self, index: int, num_tokens: int) -> None:
        """Account for a document of `num_tokens` taken from source `index`."""
        cost = num_tokens if self.strategy == "weighted" else 1
        self.longest = max(self.longest, cost)
        self._ask(cost)
        self.credits[index] -= cost

    def _ask(self, amount: float) -> None:
        """Ask every active source for its share of it."""
        self.credits = [credit + amount * share for credit, share in zip(self.credits, self._shares(), strict=True)]

    def _shares(self) -> list[float]:
        return shares([weight * active for weight, active in zip(self.weights, self.active, strict=True)])

    def epoch_ended(self, index: int) -> None:
        """Source `index` reached its end and starts over; a sequential mixture goes on to the next one."""
        if self.strategy == "sequential":
            following = [*range(index + 1, len(self.active)), *range(index + 1)]
            self.current = next((i for i in following if self.active[i]), index)

    def drop(self, index: int) -> None:
        """Source `index` is used up for good."""
        owed, self.credits[index] = self.credits[index], 0.0
        self.active[index] = False
        self._ask(owed)
        self.epoch_ended(index)

    def state(self) -> dict:
        """JSON. Weights are not in it: they belong to the run, which says from which row on they hold."""
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
    """The weights a run starts with, which adaptive factors multiply. Only `weighted` listens to the preset's."""
    return list(source_weights) if strategy == "weighted" else [1.0] * len(source_weights)


def shares(amounts: Sequence[float]) -> list[float]:
    """Each amount as a part of their sum; zeros if that is zero."""
    total = sum(amounts)
    return [amount / total if total else 0.0 for amount in amounts]


def shares_asked(base: Sequence[float], changes: Sequence[tuple[int, Sequence[float]]], num_rows: int) -> list[float]:
    """The mean share asked of each source over the first `num_rows` rows; `changes`: (from row, weights) in order."""
    asked = [0.0] * len(base)
    ends = [row for row, _ in changes] + [num_rows]
    for (start, weights), end in zip([(0, base), *changes], ends, strict=True):
        rows = max(0, min(end, num_rows) - start)
        asked = [so_far + rows * share for so_far, share in zip(asked, shares(weights), strict=True)]
    return shares(asked)


def relative_loss(
    factors: Sequence[float], losses: Sequence[float | None], *, smoothing: float, low: float, high: float
) -> list[float]:
    """factor <- smoothing * factor + (1 - smoothing) * clamp(loss / mean loss, low, high).

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
    falls: Sequence[float],
    standard_errors: Sequence[float],
    *,
    smoothing: float,
    low: float,
    high: float,
) -> list[float]:
    """factor <- smoothing * factor + (1 - smoothing) * clamp(fall / mean fall, low, high), but by at most a ratio of
    LARGEST_MOVE: more to sources whose held-out loss still falls fast.

    `falls`: held-out bits per byte at the last decision minus now, per source, with their standard errors. A change
    within 2 standard errors counts as none, a rise too. If nothing falls, nothing moves.
    """
    real = [fall if fall > 2 * error else 0.0 for fall, error in zip(falls, standard_errors, strict=True)]
    mean = sum(real) / len(real)
    if mean == 0:
        return list(factors)
    smoothed = [
        smoothing * factor + (1 - smoothing) * _clamp(fall / mean, low, high)
        for factor, fall in zip(factors, real, strict=True)
    ]
    return [
        _clamp(new, factor / LARGEST_MOVE, factor * LARGEST_MOVE) for factor, new in zip(factors, smoothed, strict=True)
    ]


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
