"""How a signal ends the program: at once while there is nothing to lose, otherwise after a save.

SIGINT (Ctrl-C), SIGTERM, SIGUSR1 (a scheduler's warning that a job will be requeued), SIGHUP (the
terminal was closed) and SIGQUIT mean the same, and the exit code is 0. SIGHUP is left alone where it
is ignored: `nohup` asks for a run that outlives its terminal. torch is not imported here: signals
are handled from the program's first moments on.
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

from lm.runtime.terminal import restore_terminal, say

SIGNALS = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT")
    if (number := getattr(signal, name, None)) and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN)
]

HANDLED_ELSEWHERE: set[int] = set()  # signals that a run or a chat currently handles itself
IS_OURS = threading.Event()  # set where the program is main.py, and not a script that calls its `train`
AT_ONCE = 0.3  # seconds, within which two signals are one click
LEAVING = threading.Lock()  # acquired by the thread that ends the program, and never released


def leave_on_signals() -> None:
    """Let each of SIGNALS end the program at once from now on, except during a run or a chat.

    A thread does this, since the main thread may be in code that calls no Python handler, waiting
    for a user or another process. A handler does it too, since the thread may be scheduled only
    after a run has begun to handle signals itself.
    """
    IS_OURS.set()
    received, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: leave("Stopped."))

    def listen() -> None:
        while True:
            number = os.read(received, 1)[0]
            if number in SIGNALS and number not in HANDLED_ELSEWHERE:
                leave("Stopped.")

    threading.Thread(target=listen, daemon=True).start()


def ignore_signals() -> None:
    """Ignore SIGNALS from now on, when all is done: while Python shuts down, they would end the
    program as if it had failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt within the `with`: it ends an answer, not the program."""
    HANDLED_ELSEWHERE.add(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        HANDLED_ELSEWHERE.discard(signal.SIGINT)


class StopRequest:
    """The signal handling of a run, within `with StopRequest() as stop:`. `stop()` returns whether
    to save and leave; it is called often.

    `farewell`: while it is not None, there is nothing to lose: a signal prints it and ends the
    program at once, even during compilation; a script that calls `train` gets a KeyboardInterrupt
    with these words. While it is None, the first signal requests a stop,
    and a second Ctrl-C leaves at once with the last checkpoint.
    """

    def __init__(self) -> None:
        self.asked, self._asked_at = False, 0.0
        self.farewell: str | None = "Stopped before the first step: nothing new to save."

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> "StopRequest":
        HANDLED_ELSEWHERE.update(SIGNALS)
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        HANDLED_ELSEWHERE.clear()

    def _receive(self, number: int, _frame: object) -> None:
        # Only Ctrl-C counts twice: schedulers repeat the others, directly and through torchrun. Notebooks repeat it at once.
        if self.asked and number == signal.SIGINT and time.monotonic() - self._asked_at > AT_ONCE:
            os._exit(128 + number)  # no cleanup: checkpoints and journal survive any kill
        self.ask()

    def ask(self) -> None:
        """Do what a signal does; also called when another process of the job received one."""
        if self.farewell is not None:
            if not IS_OURS.is_set():
                raise KeyboardInterrupt(self.farewell)
            leave(self.farewell)
        elif not self.asked:
            say_once("Stopping as soon as it is safe, saving first. Ctrl-C again leaves at once.")
            self.asked, self._asked_at = True, time.monotonic()


def leave(farewell: str) -> None:
    """End the program and its descendants at once, with exit code 0. Only the first call acts."""
    if LEAVING.acquire(blocking=False):
        say_once(farewell)
        end_descendants()
        restore_terminal()
        os._exit(0)


def say_once(words: str) -> None:
    """Print on the first rank, since every rank gets the signal."""
    if os.environ.get("RANK", "0") == "0":
        say(words)


def end_descendants() -> None:
    """Send SIGTERM to producer, PDF readers and compilers; a compiler then removes its unfinished
    files."""
    for _ in range(50):  # our threads may start others meanwhile: one second is enough
        running = descendants()
        if not running:
            return
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        time.sleep(0.02)


def descendants() -> list[int]:
    """Return the ids of all running descendants of this process."""
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
    """Return (process id, parent's id, state) of every visible process."""
    if sys.platform != "linux":
        lines = subprocess.run(["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True).stdout.splitlines()
        return [(int(process), int(parent), state) for process, parent, state in map(str.split, lines)]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = path.read_text(errors="replace").rpartition(")")[2].split()
            found.append((int(path.parent.name), int(parent), state))
    return found
