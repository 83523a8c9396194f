"""A test's own file as the program of two processes under a real torchrun (gloo, CPU)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm.runtime.distributed import World
from tests.program import ENVIRONMENT, ROOT, torchrun
from tests.warm_start import WarmPopen


def run(script: str, folder: Path) -> list[Any]:
    """What each rank's `leave` has left, in the order of their ranks."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    process = WarmPopen([*torchrun(2), script, str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=600)
    finally:
        process.terminate()  # torchrun ends its workers; nothing to do if it is through
    assert process.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def leave(everything: Callable[[World], Any]) -> None:
    """Under torchrun: what this rank saw, into the folder it is given."""
    world = World.start()
    torch.save(everything(world), Path(sys.argv[1]) / f"{world.rank}.pt")
    world.stop()
