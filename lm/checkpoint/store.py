"""Checkpoints that survive a crash at any instruction, a full disk and a flipped bit.

A run's folder holds three generations of one file: `lm_current.pth`, `lm_prev.pth` and
`lm_prev2.pth`; `simple_lm_trained.pth` is another name of the newest. A save writes a temporary
file beside them, syncs it to the disk, reads it back, gives the older generations their new names
as hard links, and only then moves the new file into place with one `os.replace`. So
`lm_current.pth` is never missing or torn, and a failed save leaves the last good one where it was.
`lm_best.pth` is another name of the checkpoint with the best held-out loss, which outlives the
three generations; its held-out loss is recorded in that file alone.

The content of a file is defined in lm/checkpoint/file.py. This module never decides what to save,
never starts a fresh run in place of a damaged one, and never deletes a file that it cannot read.
"""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, Damaged, UserError
from data.files import bad_name, set_aside, sync_folder
from lm.checkpoint.file import Snapshot, check_state, is_whole, name_of, read, write_file
from lm.checkpoint.reader import Checkpoint
from lm.runtime.files import TEMPORARY, link_as, link_beside, same_file, temporary_name

log = logging.getLogger(__name__)

CURRENT, PREVIOUS, PREVIOUS_2 = GENERATIONS = ("lm_current.pth", "lm_prev.pth", "lm_prev2.pth")
ALIAS = "simple_lm_trained.pth"
BEST = "lm_best.pth"


@dataclass(frozen=True)
class SavedRun:
    """A run on the disk, as shown in the menu: the one in `checkpoints/`, or an archived one."""

    folder: Path
    name: str  # of the preset
    preset: str  # the preset itself, as JSON text
    tokens_seen: int
    token_budget: int
    trained: bool  # the budget is reached, or the sources ran out (`exhausted` in the checkpoint)
    reported: bool  # it has its report, the last file that a run writes
    saved_at: float  # seconds since the epoch

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and self.reported


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot as the newest generation in `folder`, whose lock the caller holds, and as the
    best checkpoint if it has a `best_loss`.

    Raises CheckpointError when the disk refuses, UserError for non-finite numbers; the earlier
    generations are then unchanged, and training may continue and try again later.
    """
    contents = snapshot.contents()
    temporary = temporary_name(folder / CURRENT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(folder)  # of a killed save
        write_file(temporary, contents)
        if not is_whole(temporary):
            raise OSError("what was written reads back otherwise")
        with Checkpoint(temporary):  # what could not be read again never replaces what can
            pass
        names = [*_rotation(folder), (temporary, folder / ALIAS)]
        if "best_loss" in contents:
            names.append((temporary, folder / BEST))
        # Everything that needs disk space comes first.
        links = [(link_beside(source, target), target) for source, target in names]
        for link, target in links:
            os.replace(link, target)
        # The commit: before it the old generations are valid, after it the new one is.
        os.replace(temporary, folder / CURRENT)
        sync_folder(folder)
    except (OSError, RuntimeError, Damaged) as error:  # torch reports a full disk as RuntimeError
        free = shutil.disk_usage(folder).free / 1e6 if folder.is_dir() else 0
        raise CheckpointError(
            f"Saving {folder / CURRENT} failed: {error}\n"
            f"{free:,.0f} MB are free there. The checkpoints saved before are untouched; free some space or check "
            "the disk."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove_temporaries(folder)


def _remove_temporaries(folder: Path) -> None:
    for name in (*GENERATIONS, ALIAS, BEST):
        for temporary in folder.glob(f".{Path(name).stem}.*.tmp"):
            if TEMPORARY.fullmatch(temporary.name) and temporary.is_file():
                temporary.unlink()


def _rotation(folder: Path) -> list[tuple[Path, Path]]:
    """Return (file, additional name) in order: prev also becomes prev2, then current also prev."""
    current, previous, previous_2 = (folder / name for name in GENERATIONS)
    if not current.exists() or same_file(current, previous):
        # Nothing to rotate, or a save was killed after its rotation: a second one would lose a
        # generation.
        return []
    older = previous.exists() and not same_file(previous, previous_2)
    return [(previous, previous_2), (current, previous)] if older else [(current, previous)]


def latest_exists(folder: Path) -> bool:
    """Return whether `folder` holds a run, readable or not; no fresh run may overwrite it."""
    return any(os.path.lexists(folder / name) for name in _generations(folder))


def _generations(folder: Path) -> tuple[str, ...]:
    """Return the names to read, newest first: the alias counts where no generation was copied, and the
    best checkpoint where none of them can be read."""
    alone = (folder / ALIAS).is_file() and not any((folder / name).exists() for name in GENERATIONS)
    names = (ALIAS,) if alone else GENERATIONS
    return (*names, BEST) if (folder / BEST).is_file() else names


def run_id_in(folder: Path) -> str | None:
    """Return the id of the run whose checkpoints are in `folder`; None if they cannot be read."""
    return next((state.get("run_id") for _, state in _readable(folder)), None)


def _readable(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each file that can be read and its state, without the weights, newest first."""
    for path in (folder / name for name in _generations(folder)):
        try:
            with Checkpoint(path) as checkpoint:
                state = checkpoint.state
            check_state(state, path)
        except (OSError, CheckpointError):  # `load` reports it
            continue
        yield path, state


def best_loss(folder: Path, run_id: str, *, thorough: bool = False) -> float:
    """Return the held-out loss of a run's best checkpoint in `folder`; infinity without one.

    A file of that name that is another run's or cannot be read is set aside. `thorough`: if it is
    not as it was written, to the last bit, as well.
    """
    path = folder / BEST
    if not os.path.lexists(path):
        return math.inf
    try:
        with Checkpoint(path) as checkpoint:
            state = checkpoint.state
        check_state(state, path)
        loss = state.get("best_loss")
        if state.get("run_id", "") != run_id or type(loss) is not float or not math.isfinite(loss):
            raise Damaged("it is not the best checkpoint of this run")
        if thorough and not is_whole(path):
            raise Damaged("damaged: its bytes are not those that were written")
    except (OSError, CheckpointError) as error:
        log.warning("%s is not used, and now called %s: %s", path, set_aside(path).name, error)
        return math.inf
    return loss


def read_best(folder: Path, run_id: str) -> dict[str, Any] | None:
    """Return the state in a run's best checkpoint; None without one. Raises CheckpointError, as `read` does."""
    return None if best_loss(folder, run_id) == math.inf else read(folder / BEST)


def load(folder: Path) -> tuple[dict[str, Any], str]:
    """Load the newest readable state; returns it with a notice for the user ("" if all is well).

    The caller holds the folder's lock. When `lm_current.pth` is missing or damaged, the next
    generation takes its place, and damaged files are kept as `<name>.bad-<n>`. Raises
    CheckpointError, and changes nothing, when no generation can be read.
    """
    problems: dict[str, str] = {}
    for name in _generations(folder):
        try:
            state = read(folder / name)
        except FileNotFoundError:
            problems[name] = "missing"
        except Damaged as error:
            problems[name] = str(error)
        else:
            others = [folder / other for other in (*GENERATIONS, ALIAS)]
            strange = [path.name for path in others if os.path.lexists(path) and not path.is_file()]
            problems |= dict.fromkeys(strange, "not a regular file")
            return state, _promote(folder, name, state["tokens_seen"], problems)
    listing = "\n".join(f"  {name}: {why}" for name, why in problems.items())
    raise CheckpointError(
        f"No checkpoint in {folder} can be read:\n{listing}\n"
        "Nothing was changed. Restore one of these files from a backup, or move them elsewhere to start a fresh run."
    )


def _promote(folder: Path, used: str, tokens_seen: int, problems: dict[str, str]) -> str:
    """Make generation `used` the current one, keep the damaged ones, and return the notice."""
    kept = [_keep_aside(folder / name) for name, why in problems.items() if why != "missing"]
    link_as(folder / used, folder / CURRENT)
    link_as(folder / used, folder / ALIAS)  # ahead if a save was killed just before its commit
    for name in problems:
        if name not in (CURRENT, ALIAS):
            (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    if not problems:
        return ""
    reasons = "; ".join(f"{name} is {why}" for name, why in problems.items())
    aside = f" Kept for inspection: {', '.join(kept)}." if kept else ""
    return f"In {folder}, {reasons}. Continuing from {used} at {tokens_seen:,} tokens.{aside}"


def _keep_aside(damaged: Path) -> str:
    """Give a damaged file the additional name `<name>.bad-<n>`, and return that."""
    if not damaged.is_file():
        return set_aside(damaged).name
    link_as(damaged, target := bad_name(damaged))
    return target.name


def inspect(folder: Path) -> SavedRun | None:
    """Return a summary of the run in `folder` by its newest readable generation; None without one.

    Needs neither torch nor the weights.
    """
    for path, state in _readable(folder):
        with contextlib.suppress(OSError):  # it was replaced a moment ago
            return SavedRun(
                folder=folder,
                name=name_of(state["preset"]),
                preset=state["preset"],
                tokens_seen=state["tokens_seen"],
                token_budget=state["token_budget"],
                trained=state["exhausted"] or state["tokens_seen"] >= state["token_budget"],
                reported=(folder / "report.md").exists(),
                saved_at=path.stat().st_mtime,
            )
    return None


def check_disk(folder: Path, needed: int, *, beside: bool = False) -> None:
    """Raise UserError unless the run in `folder` can grow to `needed` bytes, including its files.

    `beside`: the run is new, and the files in `folder` are not its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = (
        path.stat()
        for pattern in ("lm_*.pth", "stream/*", "milestones/**/*")
        for path in folder.glob(pattern)
        if path.is_file()
    )
    occupied = 0 if beside else sum({status.st_ino: status.st_size for status in files}.values())
    free = shutil.disk_usage(folder).free
    if occupied + free < needed:
        raise UserError(
            f"{folder.resolve()} needs {(needed - occupied) / 1e9:.2f} GB more for checkpoints and the token stream, "
            f"and {free / 1e9:.2f} GB are free. Free some space, or make {folder.name} a symbolic link to another disk."
        )
