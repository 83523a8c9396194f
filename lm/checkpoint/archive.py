"""Archives runs in `checkpoints/archive/` and restores them; one place always has all of a run.

A run's files are first linked into the new place, all of them, and only then removed from the old
one. The name of the archive's folder records the progress, and each change of that name is one
atomic rename:

    <run>.linking     archive_run is filling it; the originals are complete, so it is deleted if
                      interrupted
    <run>.leaving     complete; the originals are being removed
    <run>             archived
    <run>.returning   complete; restore is linking the files back, then removes this folder

`finish_interrupted` reads these names and completes or undoes the move. Every caller holds the
FolderLock of the folder. Files that belong to no run (machine.json, .lock) are never touched.
"""

import os
import re
import shutil
import time
from pathlib import Path

from configs.errors import CheckpointError
from data.files import sync_folder
from lm.checkpoint.store import CURRENT, SavedRun, inspect, latest_exists
from lm.runtime.files import link_as

ARTEFACTS = (
    "stream", "hf", "milestones", "benchmarks", "tensorboard", "tokenizer.json", "preset.json", "metrics.jsonl", "samples.md",
    "run.log", "report*", "simple_lm_trained.pth", "lm_prev2.pth*", "lm_prev.pth*", "lm_current.pth*",
)  # fmt: skip
LINKING, LEAVING, RETURNING = ".linking", ".leaving", ".returning"


def archive_run(folder: Path) -> Path:
    """Move the run in `folder` into its archive and return its path there.

    Raises CheckpointError if the disk refuses.
    """
    finish_interrupted(folder)
    summary = inspect(folder)
    name = summary.name if summary else "unreadable" if latest_exists(folder) else "unsaved"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:60] + time.strftime("-%Y%m%dT%H%M%SZ", time.gmtime())
    archive = folder / "archive"
    while (target := archive / name).exists():
        name += "x"  # the second archived within one second
    linking = archive / (name + LINKING)
    try:
        linking.mkdir(parents=True)
        _link_run(folder, linking)
        os.rename(linking, archive / (name + LEAVING))
        sync_folder(archive)
        finish_interrupted(folder)
    except OSError as error:
        raise CheckpointError(
            f"Archiving the run in {folder} failed: {error}\nNothing is lost. Free some space or check the disk, "
            "then start again: the move is finished or undone first."
        ) from error
    return target


def archived_in(place: Path) -> str:
    """Return the message about a run archived in `place`, shown from the checkpoint folder on."""
    return f"The run that was here is archived in {place.relative_to(place.parents[2])}."


def restore(folder: Path, archived: Path) -> Path | None:
    """Restore `archived`, one of `archived_runs`, into `folder`.

    A run in `folder` is archived first; returns its path in the archive, or None.
    """
    finish_interrupted(folder)
    aside = archive_run(folder) if _artefacts(folder) else None
    try:
        os.rename(archived, archived.with_name(archived.name + RETURNING))
        sync_folder(archived.parent)
        finish_interrupted(folder)
    except OSError as error:
        raise CheckpointError(
            f"Restoring {archived} failed: {error}\nNothing is lost. Free some space or check the disk, then start "
            "again: the move is finished first."
        ) from error
    return aside


def finish_interrupted(folder: Path) -> None:
    """Complete or undo a move whose process was killed; call it before reading `folder`."""
    for entry in sorted((folder / "archive").glob("*.*")):
        if entry.suffix == LINKING:
            shutil.rmtree(entry)
        elif entry.suffix == LEAVING:
            for original in reversed(_artefacts(folder)):
                shutil.rmtree(original) if original.is_dir() else original.unlink()
            sync_folder(folder)
            os.rename(entry, entry.with_suffix(""))
            sync_folder(entry.parent)
        elif entry.suffix == RETURNING:
            _link_run(entry, folder)
            shutil.rmtree(entry)


def archived_runs(folder: Path) -> list[SavedRun]:
    """Return the archived runs that can be read, newest first."""
    summaries = (inspect(entry) for entry in (folder / "archive").glob("*") if entry.is_dir())
    return sorted((summary for summary in summaries if summary), key=lambda summary: summary.saved_at, reverse=True)


def _artefacts(folder: Path) -> list[Path]:
    """Return the files and folders of a run in `folder`; `lm_current.pth`, its mark, is last."""
    found = [path for pattern in ARTEFACTS for path in sorted(folder.glob(pattern))]
    return sorted(found, key=lambda path: path.name == CURRENT)


def _link_run(source: Path, target: Path) -> None:
    """Link every artefact of `source` into `target` and sync them; may be repeated."""
    for artefact in _artefacts(source):
        if not artefact.is_dir():
            link_as(artefact, target / artefact.name)
            continue
        for parent, _, names in os.walk(artefact):
            copied = target / Path(parent).relative_to(source)
            copied.mkdir(exist_ok=True)
            for name in names:
                link_as(Path(parent) / name, copied / name)
            sync_folder(copied)
    sync_folder(target)
