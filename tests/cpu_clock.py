"""CPU time for bounds that hold on every machine."""

import gc
import time

LOOP = range(500_000)
# What LOOP takes on the machine that the tests' bounds were set on, undisturbed (Intel Xeon with AMX). One of half its
# speed, or a thread whose core is shared with another test, takes twice as long for everything.
LOOP_SECONDS = 0.0275


class CpuClock:
    """`seconds` of this process's own time inside its `with`, as the machine that bounds were set on would count them.

    Without the garbage collector, which would go through all that the tests hold.
    """

    def __enter__(self) -> "CpuClock":
        gc.disable()
        self._began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._began
        gc.enable()
        if self.seconds > LOOP_SECONDS:  # less than that is not worth the loop
            self.seconds /= slowness()


def slowness() -> float:
    """How many times slower than LOOP_SECONDS this process is at this moment; 1 where it is faster."""
    began, total = time.process_time(), 0
    for number in LOOP:
        total += number
    return max(1.0, (time.process_time() - began) / LOOP_SECONDS)
