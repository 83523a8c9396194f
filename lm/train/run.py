"""A run: what is trained, by which processes, where, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from configs.schema import Preset
from lm.runtime.distributed import World


class Run(NamedTuple):
    preset: Preset
    world: World
    folder: Path  # checkpoints/
    token_budget: int

    @property
    def rows_per_step(self) -> int:
        """Rows of a step as the preset has it. A resumed run may keep another number (TrainState)."""
        return self.preset.train.rows_per_process * self.world.size
