"""How a signal ends the program: at once while there is nothing to lose, else once what was learnt is saved.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (a scheduler's warning that a job will be requeued) mean the same, and the exit code
is 0. No torch here: signals are answered from the program's first moments on.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]

HEARD_ELSEWHERE: set[int] = set()  # signals that a run, or a talk, has handlers of its own for now
LEAVING = threading.Lock()  # taken for good by whoever ends the program


def leave_on_signals() -> None:
    """From now on, outside of a run or a talk, every one of SIGNALS ends the program at once.

    By a thread: the main one may be in code that calls no handler of Python's, waiting for a user or another process.
    And by a handler: the thread may get its turn only when a run has begun to hear signals itself.
    """
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: leave("Stopped."))

    def listen() -> None:
        while True:
            number = os.read(received, 1)[0]
            if number in SIGNALS and number not in HEARD_ELSEWHERE:
                leave("Stopped.")

    threading.Thread(target=listen, daemon=True).start()


def ignore_signals() -> None:
    """From now on, when all is done: while Python ends, it would let them end the program as if it had failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside it Ctrl-C is Python's KeyboardInterrupt: it ends an answer, not the program."""
    HEARD_ELSEWHERE.add(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        HEARD_ELSEWHERE.discard(signal.SIGINT)


class StopRequest:
    """`with StopRequest() as stop:` is the time of a run. `stop()` tells whether to save and leave; checked often.

    `farewell`: as long as it is not None there is nothing to lose: a signal says it and ends the program at once,
    whatever it is doing, the compiler at work included. Without one the first signal asks, and a second Ctrl-C leaves
    at once with what was saved last.
    """

    def __init__(self) -> None:
        self.asked = False
        self.farewell: str | None = "Stopped before the first step: nothing new to save."

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopRequest":
        HEARD_ELSEWHERE.update(SIGNALS)
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        HEARD_ELSEWHERE.clear()

    def _receive(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT:  # schedulers repeat the others, to us and through torchrun
            os._exit(128 + number)  # checkpoints and journal survive a kill at any instant: nothing to clean up
        self.ask()

    def ask(self) -> None:
        """What a signal does; also when another process of the job was sent one."""
        if self.farewell is not None:
            leave(self.farewell)
        elif not self.asked:
            say("Stopping as soon as it is safe, saving first. Ctrl-C again leaves at once.")
            self.asked = True


def leave(farewell: str) -> None:
    """Ends the program and all it started, without another step of either; exit code 0. Only the first call counts."""
    if LEAVING.acquire(blocking=False):
        say(farewell)
        end_descendants()
        os._exit(0)


def say(words: str) -> None:
    """For signal handlers: `print` may be in the middle of a line."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"\n{words}\n".encode())


def end_descendants() -> None:
    """Producer, readers of PDFs, compilers: SIGTERM, at which a compiler takes its unfinished files with it."""
    for _ in range(50):  # threads of ours may start others meanwhile: a second of this is enough
        running = descendants()
        if not running:
            return
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        time.sleep(0.02)


def descendants() -> list[int]:
    """Process ids of the children of this process, of theirs, and so on, that have not ended."""
    children = defaultdict(list)
    for process, parent, state in processes():
        if not state.startswith("Z"):
            children[parent].append(process)
    found, parents = [], [os.getpid()]
    while parents:
        below = children[parents.pop()]
        found += below
        parents += below
    return found


def processes() -> list[tuple[int, int, str]]:
    """(process id, parent's, state) of every process that can be seen."""
    if sys.platform != "linux":
        lines = subprocess.run(["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True).stdout.splitlines()
        return [(int(process), int(parent), state) for process, parent, state in map(str.split, lines)]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            found.append((int(path.parent.name), int(parent), state))
    return found
