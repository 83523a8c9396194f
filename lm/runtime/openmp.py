"""How the threads of a matrix product wait for each other: awake, or asleep where other programs use
the CPU.

OpenMP's threads wait awake, which is fastest where nothing else runs. Beside other programs they
take the time of those they wait for: products were then 1.2 to 3.4 times as fast with threads that
sleep (benchmarks/LOG.md). torch reads the choice when it is imported, and never again.
"""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

VARIABLE, ASLEEP = "OMP_WAIT_POLICY", "passive"
BUSY_CORES = 0.3  # that other programs use; an idle desktop uses less
OBSERVED_SECONDS = 0.3  # at least


class CPUTime(NamedTuple):
    """Seconds: of the clock, of everybody on the cores that this process may use, of this process
    and its children that have ended."""

    clock: float
    everybody: float
    own: float

    def others_since(self, before: "CPUTime") -> float:
        """Return the number of cores that other programs used on average since `before`."""
        seconds = max(self.clock - before.clock, 1e-9)
        return max(0.0, (self.everybody - before.everybody) - (self.own - before.own)) / seconds


def cpu_time() -> CPUTime | None:
    """Return the times until now; None where the system does not tell (all but Linux)."""
    if sys.platform != "linux":
        return None
    cores, ticks = {f"cpu{number}" for number in os.sched_getaffinity(0)}, 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in cores:
            ticks += sum(map(int, fields[:3]))  # user, nice, system
    return CPUTime(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))


_start = cpu_time()
_reason = f"{VARIABLE} is set"


def choose_wait_policy() -> None:
    """Let threads sleep while they wait if other programs have used the CPU since this module was
    imported. Too late once torch is imported. Leaves OMP_WAIT_POLICY as it is, if it is set, and
    torchrun's processes, which have a thread each."""
    global _reason
    if "torch" in sys.modules or VARIABLE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ or not _start:
        return
    time.sleep(max(0.0, OBSERVED_SECONDS - (time.monotonic() - _start.clock)))
    if not (now := cpu_time()):
        return
    if (cores := now.others_since(_start)) > BUSY_CORES:
        os.environ[VARIABLE] = ASLEEP
        _reason = f"other programs use {cores:.1f} of its {len(os.sched_getaffinity(0))} cores"


def wait_policy_decisions() -> list[tuple[str, str]]:
    """Return the decision for the start card and its reason, if threads sleep."""
    return [("threads sleep while they wait", _reason)] if os.environ.get(VARIABLE, "").lower() == ASLEEP else []
