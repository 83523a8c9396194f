"""Communication between ranks, with the same calls for one process as for many.

`World.start()` reads the environment that torchrun set. Small Python objects travel over a gloo
group of their own, gradients over NCCL or gloo. Only the first rank reads stdin, sources or
`checkpoints/`: its results, or the exception it meets, reach the others through `from_first`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import ErrorOfOneRank, UserError
from lm.runtime.devices import device_choice

Result = TypeVar("Result")
# A forward and backward pass takes far less time: if it takes longer, a rank is lost.
STEP_TIMEOUT = timedelta(minutes=10)
# The first rank may wait for its user at the menu, or for a network that is down.
FIRST_TIMEOUT = timedelta(days=1)


class _OfFirstRank:
    """Stands on the other ranks for what only the first one has: any use of it is a defect."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"only the first rank has this object and its {name!r}")


_of_first_rank: Any = _OfFirstRank()


class World:
    """The ranks of a job, seen from one of them: its rank, their number, its device."""

    def __init__(self, rank: int, local_rank: int, size: int, device: torch.device):
        self.rank, self.local_rank, self.size, self.device = rank, local_rank, size, device
        self.objects = self.gradients = None  # process groups; none without torchrun
        if dist.is_initialized():
            self.objects = dist.new_group(backend="gloo", timeout=FIRST_TIMEOUT)
            self.gradients = dist.new_group(timeout=STEP_TIMEOUT)
            self.places = [""] * size  # where each rank runs, in words
            here = f"Rank {rank} (process {os.getpid()} on {socket.gethostname()})"
            dist.all_gather_object(self.places, here, group=self.objects)

    @classmethod
    def start(cls) -> World:
        """Join the job that torchrun started; without torchrun, this process is alone."""
        rank = int(os.environ.get("RANK", 0))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        size = int(os.environ.get("WORLD_SIZE", 1))
        kind = device_choice(size).value
        cuda = kind == "cuda"
        device = torch.device(kind, local_rank) if cuda else torch.device(kind)
        if cuda and local_rank >= torch.cuda.device_count():
            first_without = local_rank == torch.cuda.device_count()
            raise (ErrorOfOneRank if first_without else UserError)(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes for {torch.cuda.device_count()} GPUs: start torchrun with "
                f"--nproc_per_node={torch.cuda.device_count()}."
            )
        if cuda:
            torch.cuda.set_device(device)
        if (size > 1 or "TORCHELASTIC_RUN_ID" in os.environ) and not dist.is_initialized():
            # The first rank joins last, after the menu: ranks missing STEP_TIMEOUT later are lost.
            timeout = FIRST_TIMEOUT if rank else STEP_TIMEOUT
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
            except dist.DistNetworkError as error:
                if "EADDRINUSE" not in str(error):
                    raise
                raise UserError(
                    f"Port {os.environ.get('MASTER_PORT')} of this machine is in use, by another job or by what is left of "
                    "one: start with another, in MASTER_PORT or torchrun's --master_port. One machine alone needs none: "
                    "torchrun --standalone."
                ) from error
            except dist.DistStoreError as error:
                raise RuntimeError(
                    f"In {timeout.total_seconds():.0f} s not all of the {size} processes have come: one is stopped, or "
                    "its machine or the network between is lost."
                ) from error
        return cls(rank, local_rank, size, device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, make: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call `make` on the first rank; every rank returns its result or raises its Exception."""
        if self.objects is None:
            return make(*args, **kwargs)
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = make(*args, **kwargs)
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.objects)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def raise_on_all(self, error: UserError | None) -> None:
        """Raise the `error` of the first rank that has one, on every rank. All call it, at one place."""
        errors: list[UserError | None] = [error]
        if self.objects is not None:
            errors *= self.size
            dist.all_gather_object(errors, error, group=self.objects)
        if first := next(filter(None, errors), None):
            raise first

    def only_first(self, make: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call `make` on the first rank and return its result there, and on the others an object that
        raises AttributeError when it is used."""
        return make(*args, **kwargs) if self.is_first else _of_first_rank

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a small tensor over ranks, in place, on its device; returns it."""
        if self.objects is not None:
            dist.all_reduce(tensor, group=self.objects if tensor.device.type == "cpu" else self.gradients)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set on at least one rank: the same answer for all."""
        return bool(self.sum(torch.tensor(float(flag))))

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """Return `model`, or its DDP wrapper that averages gradients over ranks after each
        synchronised backward."""
        if self.gradients is None:
            return model
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.local_rank] if self.device.type == "cuda" else None,
            process_group=self.gradients,
            gradient_as_bucket_view=True,
        )
        # Buffers are functions of the preset; and the others would wait for those of a rank that
        # abandons a step.
        wrapped.broadcast_buffers = False
        return wrapped

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()

    def stop(self) -> None:
        if self.objects is not None:
            dist.destroy_process_group()
