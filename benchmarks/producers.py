"""When one producer stops being enough: a small simulation of producers, run-ahead and trainers.

    python -m benchmarks.producers [PRODUCER_TOKENS_PER_SECOND]

The speed of one producer is what `python -m benchmarks.stream` measured on this machine. Prints how long a run of
100,000,000 tokens takes and what part of it the trainers wait, for more and faster ranks, with one producer and with
one journal shard for each node of eight ranks (.github/MODEL_INSTRUCTIONS.md, "Past one machine").
"""

import sys
from bisect import bisect_right

from configs.schema import TOKEN_BUDGET
from data.journal import run_ahead_rows
from data.order import window_edges

RANKS_PER_NODE = 8
RUN_AHEAD_TOKENS = run_ahead_rows(1, TOKEN_BUDGET)
WINDOWS = window_edges(TOKEN_BUDGET, RUN_AHEAD_TOKENS)  # training reads one once all of it is made
TICK = 0.05  # seconds


def simulate(trained_per_second: float, produced_per_second: float) -> tuple[float, float]:
    """(seconds of the run, seconds in which no rows were there), both starting from nothing."""
    made = trained = now = waited = 0.0
    while trained < TOKEN_BUDGET:
        made = min(made + produced_per_second * TICK, trained + RUN_AHEAD_TOKENS, TOKEN_BUDGET)
        complete = WINDOWS[bisect_right(WINDOWS, made) - 1]
        possible = min(trained_per_second * TICK, TOKEN_BUDGET - trained)
        done = min(possible, max(0.0, complete - trained))
        waited += TICK * (1 - done / possible)
        trained, now = trained + done, now + TICK
    return now, waited


def main(producer: float) -> None:
    print(f"one producer: {producer:,.0f} tokens/s; a run-ahead of {RUN_AHEAD_TOKENS:,.0f} tokens")
    print(f"{'ranks':>5} {'tokens/s a rank':>16} {'one producer':>24} {'a shard for each node':>24}")
    for ranks in (1, 8, 16, 64):
        for speed in (80_000, 300_000, 1_000_000):
            text = f"{ranks:>5} {speed:>16,}"
            for producers in (1, max(1, ranks // RANKS_PER_NODE)):
                seconds, waited = simulate(ranks * speed, producers * producer)
                text += f" {seconds:>10,.0f} s, {waited / seconds:>4.0%} wait"
            print(text)


if __name__ == "__main__":
    main(float((sys.argv[1:] or [1_000_000])[0]))
