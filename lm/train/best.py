"""The best checkpoint of a run, `lm_best.pth`: when it is kept, and whether it is exported.

Text that is read for the first time makes a model better, so there the last checkpoint is the
best, and none is kept beside it. From the second reading of a source on a model may begin to know
that text by heart, and held-out loss rises again.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import UserError
from data.feed import times_read
from lm.checkpoint.store import best_loss, read_best
from lm.evaluate import improvement, row_losses
from lm.learner import check_shapes
from lm.report.record import choice_in_words

if TYPE_CHECKING:
    from lm.train.trainer import Trainer

log = logging.getLogger(__name__)


def keep_if_best(trainer: Trainer, loss: float) -> None:
    """Save a checkpoint, as the best, if `loss` of the fixed subset of held-out text is lower than that
    of the best so far and a source is being read again."""
    if trainer.world.from_first(_is_best, trainer, loss) and trainer.is_sound:
        trainer.save(best_loss=loss)


def _is_best(trainer: Trainer, loss: float) -> bool:
    if not trainer.state.tokens_seen:  # before the first step nothing is read
        return False
    num_rows = -(-trainer.state.tokens_seen // trainer.preset.model.seq_length)
    if not any(map(times_read, trainer.stream.progress(num_rows))):
        return False
    if loss >= best_loss(trainer.folder, trainer.state.run_id):
        return False
    trainer.wait_for_save()  # it may be of a better one
    return loss < best_loss(trainer.folder, trainer.state.run_id)


def choose_checkpoint(trainer: Trainer) -> tuple[dict[str, Any], str]:
    """Return the checkpoint's state to export at the end of a run, and why, in words ("" without a best
    checkpoint): that of the last step or, if it is better on all held-out text by more than the
    error of the difference, the best. On the first rank only; records the comparison."""
    last, record = trainer.checkpoint(), dict[str, Any]()
    trainer.wait_for_save()
    try:
        best = read_best(trainer.folder, trainer.state.run_id)
        if best is None:
            return last, ""
        record = {"tokens": best["tokens_seen"], "exported": False}
        if best["tokens_seen"] != last["tokens_seen"]:
            gained, stderr = _gained(trainer, best)
            error = stderr if math.isfinite(stderr) else None
            record |= {"gained": gained, "stderr": error, "exported": gained > stderr}
    except UserError as error:  # damaged, or memory is short
        log.warning("The last checkpoint is exported, since the best one cannot be compared with it: %s", error)
        return last, ""
    trainer.records.write_choice(record)
    return (best if record["exported"] else last), choice_in_words(record)


def _gained(trainer: Trainer, best: dict[str, Any]) -> tuple[float, float]:
    """Return how many bits per byte `best` is better than the weights of now, and the standard error."""
    learner, sources = trainer.learner, trainer.trained_held_out
    rows, valid = (np.concatenate([getattr(source, name) for source in sources]) for name in ("rows", "valid"))

    def losses_of() -> np.ndarray:
        trunk, weight_VD = learner.joint.trunk_forward, learner.trunk.output.weight
        batch_rows = trainer.preset.train.per_gpu_batch_size
        return row_losses(trunk, weight_VD, rows, valid, batch_rows, learner.autocast)[0]

    check_shapes({"model": learner.trunk}, best)
    log.info("comparing the best checkpoint, after %s tokens, with the last one", f"{best['tokens_seen']:,}")
    now = {name: tensor.clone() for name, tensor in learner.trunk.state_dict().items()}
    losses = losses_of()
    try:
        learner.trunk.load_state_dict(best["model"])
        of_best = losses_of()
    finally:
        learner.trunk.load_state_dict(now)
    return improvement(losses, of_best, rows, valid, trainer.token_bytes)
