"""Milestones: the weights at set points of a run, exported to `checkpoints/milestones/<name>/`.

A point is a number of tokens or of words (`train.keep_at_tokens`), and its weights are those after
the step that reaches it. A resumed run looks for the points of the steps since its checkpoint, so
it keeps what an uninterrupted run does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lm.export.huggingface import export

if TYPE_CHECKING:
    from lm.train.trainer import Trainer

log = logging.getLogger(__name__)


def keep_milestones(trainer: Trainer) -> None:
    """Export the weights for the points that the last step has reached, on the first rank.

    A failure is logged and never ends the run.
    """
    state, train = trainer.state, trainer.preset.train
    now = state.tokens_seen, state.words_seen
    unit = 1 if train.keep_at_tokens == "babylm" else 0
    due = [name for name, point in train.milestones.items() if state.kept_at[unit] < point <= now[unit]]
    if due:
        trainer.collect_results()
        trainer.world.from_first(_keep, trainer, due)
    state.kept_at = now


def _keep(trainer: Trainer, names: list[str]) -> None:
    state, folder = trainer.checkpoint(), trainer.folder / "milestones"
    for name in names:
        try:
            path = export(state, trainer.folder, folder / name)
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())
            log.error("Milestone %s is not kept: writing it to %s failed: %s. The run goes on.", name, folder, reason)
        else:
            log.info("milestone %s: %s tokens, %s words, kept in %s",
                     name, f"{state['tokens_seen']:,}", f"{trainer.state.words_seen:,}", path)  # fmt: skip
