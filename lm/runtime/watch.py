"""Whether the rest of the job lives: torchrun, whose child this process is, and the other ranks.

Nothing here looks at how far training is: a rank that waits (for its user, a network, a disk) is alive and says so. Torch
is imported only where there are other ranks.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm.runtime.distributed import World
    from lm.runtime.signals import StopRequest

STALL_TIMEOUT = timedelta(minutes=2)  # without a sign of life from a rank
HEAD_START = timedelta(seconds=5)  # for the first rank, which alone can tell who is silent
ROUND_SECONDS, PARENT_SECONDS = 1, 0.5  # between two looks
LAST_SECONDS = 7  # for a last step and its save, when torchrun is gone
PARENT = os.getppid()
ALIVE, STOPPING, LEAVING = range(3)  # what a rank says of itself; the highest of all ranks is what all hear


def end_with_parent() -> None:
    """From now on: if torchrun is killed, its workers stop as they would on SIGTERM, and in 10 s none of them is left.

    A thread and not Linux's PR_SET_PDEATHSIG, which macOS does not have.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection(address, timeout=STALL_TIMEOUT.total_seconds()).close()
        except ConnectionRefusedError:  # killed before PARENT was noted: joining would be tried for a day
            sys.exit(1)
        except OSError:  # joining says what is wrong
            pass

    def wait_for_its_end() -> None:
        while os.getppid() == PARENT:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def peer_has_ended(error: Exception) -> bool:
    """Whether it says that another rank is gone: only what gloo and the store where ranks meet say of a closed connection
    counts, since the producer has connections too, which a peer may close."""
    return bool(re.search("(gloo/transport|SocketImpl).*(by peer|Broken pipe)", str(error), re.DOTALL))


def watch(world: World, stop: StopRequest) -> AbstractContextManager:
    """Inside it a rank that falls silent ends the job, and one that is asked to stop makes all stop."""
    return nullcontext() if world.size == 1 else Watch(world, stop)


class Watch:
    """Inside its `with`, which every rank enters, each hears of all others once a second, through the first rank.

    A rank that is silent for STALL_TIMEOUT ends the job: its process is stopped, its machine or the way to it lost. A
    rank that was asked to stop makes all stop. When the first rank leaves the `with`, it is over for all. (A job that is
    stopped as a whole for longer than the timeout, and then goes on, ends too.)
    """

    def __init__(self, world: World, stop: StopRequest):
        import torch.distributed as dist

        self.world, self.stop, self.left = world, stop, threading.Event()
        self.timeout = STALL_TIMEOUT if world.is_first else STALL_TIMEOUT + HEAD_START
        self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.other = 0  # the rank that is listened to
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.thread.join()

    def _watch(self) -> None:
        heard = ALIVE
        while heard != LEAVING:
            began = time.monotonic()
            try:
                heard = self._round(LEAVING if self.left.is_set() else STOPPING if self.stop() else ALIVE)
            except RuntimeError:
                self._lost(time.monotonic() - began)
                return
            if heard == STOPPING:
                self.stop.ask()
            if self.world.is_first:
                self.left.wait(ROUND_SECONDS)

    def _round(self, word: int) -> int:
        """The highest word of all ranks. RuntimeError if `self.other` has ended or is silent."""
        if not self.world.is_first:
            self._send(0, word)
            return self._receive(0)
        others = range(1, self.world.size)
        word = max(word, *map(self._receive, others))
        for rank in others:
            self._send(rank, word)
        return word

    def _send(self, rank: int, word: int) -> None:
        import torch
        import torch.distributed as dist

        self.other = rank
        dist.send(torch.tensor([word]), dst=rank, group=self.group)

    def _receive(self, rank: int) -> int:
        import torch
        import torch.distributed as dist

        self.other, word = rank, torch.zeros(1, dtype=torch.long)
        dist.recv(word, src=rank, group=self.group)
        return int(word)

    def _lost(self, seconds: float) -> None:
        """Ends this process, whose main thread waits for a rank that will not come."""
        if seconds < self.timeout.total_seconds():  # it ended: torchrun says why, and the next collective fails
            if not self.left.wait(LAST_SECONDS):
                os._exit(1)
            return
        if self.world.rank <= 1 or self.world.local_rank == 0:  # once on each machine is enough
            message = (
                f"\n{self.world.places[self.other]} has not answered for {STALL_TIMEOUT.total_seconds():.0f} s: it is "
                "stopped, or its machine or the network between is lost, so the run ends here. The last checkpoint is "
                "intact: see to that machine, then start again to resume.\n"
            )
            os.write(2, message.encode())
        os._exit(1)
