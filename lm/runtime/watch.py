"""Detects the loss of the rest of the job: torchrun, the parent of this process, and other ranks.

Training progress is not checked: a rank that waits (for its user, a network, a disk) is alive and
says so. torch is imported only where there are other ranks.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from lm.runtime.terminal import say

if TYPE_CHECKING:
    from lm.runtime.distributed import World
    from lm.runtime.signals import StopRequest

STALL_TIMEOUT = timedelta(minutes=2)  # without a message from a rank
HEAD_START = timedelta(seconds=5)  # for the first rank: only it knows which rank is silent
ROUND_SECONDS, PARENT_SECONDS = 1, 0.5  # between two checks
LAST_SECONDS = 25  # to save, when torchrun or a rank is gone; torchrun itself kills after 30
PARENT = os.getppid()
ALIVE, STOPPING, LEAVING = range(3)  # status of a rank; all ranks receive the highest of all


def end_with_parent() -> None:
    """Watch torchrun from now on: if it is killed, its workers stop as on SIGTERM, and all of them
    have ended LAST_SECONDS later.

    A thread does this, not Linux's PR_SET_PDEATHSIG, which macOS does not have.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection(address, timeout=STALL_TIMEOUT.total_seconds()).close()
        except ConnectionRefusedError:
            # torchrun was killed before PARENT was read: joining would be tried for a day.
            sys.exit(1)
        except OSError:  # joining the job reports the problem
            pass

    def wait_for_its_end() -> None:
        while os.getppid() == PARENT:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def peer_has_ended(error: Exception) -> bool:
    """Return whether `error` means that another rank has ended.

    Only messages of gloo, NCCL and the rendezvous store about a closed connection count, since the
    producer has connections too, which a peer may close.
    """
    return bool(re.search("(gloo/transport|SocketImpl).*(by peer|Broken pipe)|ncclRemoteError", str(error), re.DOTALL))


def watch(world: World, stop: StopRequest) -> AbstractContextManager:
    """Return a context in which a silent rank ends the job, and a stop request stops all ranks."""
    return nullcontext() if world.size == 1 else Watch(world, stop)


class Watch:
    """The watch of all ranks over each other: within its `with`, which every rank enters, they
    exchange their status once a second through the first rank.

    A rank that is silent for STALL_TIMEOUT ends the job: its process is suspended, or its machine
    or the network is lost. A rank that was asked to stop makes all stop. When a rank leaves
    the `with`, the watch ends for all. (A job that is suspended as a whole for longer than
    the timeout ends when it continues.)
    """

    def __init__(self, world: World, stop: StopRequest):
        import torch.distributed as dist

        self.world, self.stop, self.left = world, stop, threading.Event()
        self.timeout = STALL_TIMEOUT if world.is_first else STALL_TIMEOUT + HEAD_START
        self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.other = 0  # the rank that is being communicated with
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
            except RuntimeError as error:
                is_silent = time.monotonic() - began >= self.timeout.total_seconds() and not peer_has_ended(error)
                self._lost(is_silent)
                return
            if heard == STOPPING:
                self.stop.ask()
            if self.world.is_first:
                self.left.wait(ROUND_SECONDS)

    def _round(self, word: int) -> int:
        """Return the highest status of all ranks.

        Raises RuntimeError if `self.other` has ended or is silent.
        """
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

    def _lost(self, is_silent: bool) -> None:
        """End this process, whose main thread waits for a lost rank. If that rank has ended, the wait
        fails, and torchrun reports why. If it is silent, the first rank, which has steps to save,
        makes the wait fail."""
        if is_silent:
            if self.world.rank <= 1 or self.world.local_rank == 0:  # one message per machine is enough
                message = (
                    f"{self.world.places[self.other]} has not answered for {STALL_TIMEOUT.total_seconds():.0f} s: it is "
                    "stopped, or its machine or the network between is lost, so the run ends here. The last checkpoint is "
                    "intact: see to that machine, then start again to resume."
                )
                say(message)
            if not self.world.is_first:
                os._exit(1)
            close_connections()
        if not self.left.wait(LAST_SECONDS):
            os._exit(1)


def close_connections() -> None:
    """Let every operation of this process that waits for a message from another host or rank fail."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.getpeername()  # gloo aborts if one that listens is shut down
                connection.shutdown(socket.SHUT_RDWR)
