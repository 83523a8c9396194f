"""Archives runs in `checkpoints/archive/` and restores them; one place always has all of a run.

A run's files are first linked into the new place, all of them, and only then removed from the old
one. The name of the archive's folder records the progress, and each change of that name is one
atomic rename:

    <run>.linking     what it holds is also in the checkpoint folder: removed if interrupted
    <run>.leaving     complete; the originals are being removed
    <run>             archived
    <run>.returning   complete; restore is linking the files back, then renames it to .linking

`finish_interrupted` reads these names and completes or undoes the move. It trusts none of them: a
file is removed only if the other place has the very same file, or an equal one. A symbolic link is
moved as a link, and what it points to is left alone. Every caller holds the FolderLock of the
folder. Files that belong to no run (machine.json, .lock) are never touched.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from pathlib import Path

from configs.errors import CheckpointError
from data.files import sync_folder
from lm.checkpoint.store import CURRENT, SavedRun, inspect, latest_exists
from lm.report.metrics import read_metrics
from lm.runtime.files import TEMPORARY, link_as, same_file

log = logging.getLogger(__name__)

ARTEFACTS = (
    "stream", "hf", ".hf.old", "milestones", "benchmarks", "tensorboard", "tokenizer.json", "chat_template.jinja",
    "preset.json", "metrics.jsonl*", "samples.md*", "run.log", "trace.json.gz", "heads.png", "report*", "simple_lm_trained.pth",
    "lm_best.pth*", "lm_prev2.pth*", "lm_prev.pth*", "lm_current.pth*",
)  # fmt: skip
RESULTS = ("hf/*", "milestones/*", "report*", "lm_best.pth*")  # of a run that had a checkpoint
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
    target = _free_name(archive / name)
    linking = target.with_name(target.name + LINKING)
    try:
        linking.mkdir(parents=True)
        _link_run(folder, linking)
        os.rename(linking, target.with_name(target.name + LEAVING))
        sync_folder(archive)
        _finish_all(folder)
        if left := _artefacts(folder):
            raise OSError(f"{left[0].name} changed meanwhile")
    except OSError as error:
        raise CheckpointError(
            f"Archiving the run in {folder} failed: {error}\nNothing is lost. Free some space or check the disk, "
            "then start again: the move is finished or undone first."
        ) from error
    return target


def has_remains(folder: Path, save_every_tokens: int) -> bool:
    """Return whether `folder` holds what is left of a run whose checkpoints are gone: results, or metrics
    beyond its first save. A run that was killed before has nothing to be kept but its stream."""
    seen = max((line["tokens"] for line in read_metrics(folder / "metrics.jsonl")), default=0)
    return seen >= 2 * save_every_tokens or any(any(folder.glob(name)) for name in RESULTS)


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
        _finish_all(folder)
    except OSError as error:
        raise CheckpointError(
            f"Restoring {archived} failed: {error}\nNothing is lost. Free some space or check the disk, then start "
            "again: the move is finished first."
        ) from error
    return aside


def finish_interrupted(folder: Path) -> None:
    """Complete or undo a move whose process was killed; call it before reading `folder`.

    Raises CheckpointError if the disk refuses.
    """
    try:
        _finish_all(folder)
    except OSError as error:
        raise CheckpointError(
            f"Finishing an interrupted move in {folder / 'archive'} failed: {error}\nNothing is lost. Free some space or "
            "check the disk, then start again."
        ) from error


def _finish_all(folder: Path) -> None:
    for entry in sorted((folder / "archive").glob("*.*")):
        if entry.suffix in (LINKING, LEAVING, RETURNING) and entry.is_dir() and not entry.is_symlink():
            _finish(folder, entry)


def _finish(folder: Path, entry: Path) -> None:
    """Complete or undo the move that `entry`, a folder in the archive, is named after."""
    originals = _artefacts(folder)
    if entry.suffix != LINKING and not all(_is_in(original, entry / original.name) for original in originals):
        log.warning("%s is no move of the run in %s, and is kept as an archived run.", entry, folder)
    elif entry.suffix == LEAVING:
        for original in reversed(originals):
            is_folder = original.is_dir() and not original.is_symlink()
            shutil.rmtree(original) if is_folder else original.unlink()
        sync_folder(folder)
    else:
        if entry.suffix == RETURNING:
            _link_run(entry, folder)
            entry = entry.rename(_free_name(entry.with_suffix(""), LINKING))
            sync_folder(entry.parent)
        _remove_copies(entry, folder)
    if entry.exists():
        os.rename(entry, _free_name(entry.with_suffix("")))
    sync_folder(folder / "archive")


def _free_name(path: Path, stage: str = "") -> Path:
    """Return `path` with the suffix of `stage`, or a longer name if that is taken."""
    while os.path.lexists(f"{path}{stage}"):
        path = path.with_name(path.name + "x")
    return path.with_name(path.name + stage)


def _is_in(path: Path, place: Path) -> bool:
    """Return whether `place` has all of `path`: of a folder every file, the same one or an equal."""
    if path.is_symlink() or place.is_symlink():
        return path.is_symlink() and place.is_symlink() and os.path.realpath(path) == os.path.realpath(place)
    if path.is_dir():
        return place.is_dir() and all(_is_in(entry, place / entry.name) for entry in _entries(path))
    return same_file(path, place) or (path.is_file() and place.is_file() and _digest(path) == _digest(place))


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not TEMPORARY.fullmatch(entry.name)]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _remove_copies(copy: Path, original: Path) -> None:
    """Remove from the folder `copy` what `original` has as well, and `copy` if nothing is left."""
    for path in copy.iterdir():
        if path.is_dir() and not path.is_symlink():
            _remove_copies(path, original / path.name)
        elif TEMPORARY.fullmatch(path.name) or _is_in(path, original / path.name):
            path.unlink()
    if not any(copy.iterdir()):
        copy.rmdir()


def archived_runs(folder: Path) -> list[SavedRun]:
    """Return the archived runs that can be read, newest first; no links, which cannot be moved."""
    entries = (entry for entry in (folder / "archive").glob("*") if entry.is_dir() and not entry.is_symlink())
    summaries = map(inspect, entries)
    return sorted((summary for summary in summaries if summary), key=lambda summary: summary.saved_at, reverse=True)


def _artefacts(folder: Path) -> list[Path]:
    """Return the files and folders of a run in `folder`; `lm_current.pth`, its mark, is last."""
    found = [path for pattern in ARTEFACTS for path in sorted(folder.glob(pattern))]
    return sorted(found, key=lambda path: path.name == CURRENT)


def _link_run(source: Path, target: Path) -> None:
    """Link every artefact of `source` into `target` and sync them; may be repeated."""
    for artefact in _artefacts(source):
        if artefact.is_symlink() or not artefact.is_dir():
            link_as(artefact, target / artefact.name)
            continue
        for parent, folders, files in os.walk(artefact):
            copied = target / Path(parent).relative_to(source)
            copied.mkdir(exist_ok=True)
            for name in (*files, *(name for name in folders if (Path(parent) / name).is_symlink())):
                link_as(Path(parent) / name, copied / name)
            sync_folder(copied)
    sync_folder(target)
