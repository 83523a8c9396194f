"""Checkpoints that survive anything: a crash at any instruction, a full disk, a flipped bit.

A run's folder holds three generations of one file: `lm_current.pth`, `lm_prev.pth`, `lm_prev2.pth`;
`simple_lm_trained.pth` is another name of the newest. A save writes a temporary file beside them, forces it to the
disk, reads it back, gives the older generations their new names as hard links, and only then puts the new file in place
with one `os.replace`. So at no instant is `lm_current.pth` missing or torn, and a failed save leaves the last good one
where it was.

A checkpoint is a `torch.save` file of plain types and CPU tensors: it opens with `torch.load(path, weights_only=True)`
and no allow-list. `torch.load` does not notice damaged tensors (288 of 300 flipped bits went unseen), but the file is a
zip archive with a CRC-32 for every record, so `read` checks those first.

This file never decides what to save, never starts a fresh run in place of a damaged one, and never deletes what it
cannot read. It imports torch only inside `save` and `read`: the menu lists runs before anything heavy is loaded.
"""

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any, TypedDict

from configs.schema import UserError
from lm.files import link_as, sync_folder, temporary_name

FORMAT_VERSION = 1
CURRENT, PREVIOUS, PREVIOUS_2 = GENERATIONS = ("lm_current.pth", "lm_prev.pth", "lm_prev2.pth")
ALIAS = "simple_lm_trained.pth"
REQUIRED_KEYS = {
    "format_version", "preset", "tokens_seen", "token_budget", "global_batch_rows", "model", "heads", "optimizer",
    "rng", "stream_position", "tokenizer_sha256", "world_size",
}  # fmt: skip


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read; the message says what, where, and what to do."""


class SavedRun(TypedDict):
    """What the menu shows of a run."""

    folder: Path
    name: str  # of the preset
    preset: str  # the preset itself, as JSON text
    tokens_seen: int
    token_budget: int
    finished: bool  # the budget is reached, or the sources ended before it (`exhausted` in the checkpoint)
    saved_at: float  # seconds since the epoch


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` as the newest generation in `folder`, whose lock the caller holds.

    `state` has every key of REQUIRED_KEYS but `format_version`. Raises CheckpointError when the disk refuses; the
    earlier generations then stay as they were, and training may go on and try again later.
    """
    import torch

    contents = _plain({"format_version": FORMAT_VERSION, **state}, "state")
    assert contents.keys() >= REQUIRED_KEYS, f"missing from the checkpoint: {sorted(REQUIRED_KEYS - contents.keys())}"
    folder = Path(folder)
    temporary = temporary_name(folder / CURRENT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*GENERATIONS, ALIAS):
            for left_by_a_kill in folder.glob(f".{Path(name).stem}.*.tmp"):
                left_by_a_kill.unlink()
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        _check_records(temporary)
        _rotate(folder)
        link_as(temporary, folder / ALIAS)
        os.replace(temporary, folder / CURRENT)  # the commit: before it the old generations stand, after it the new one
        sync_folder(folder)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch reports a full disk as RuntimeError
        free = shutil.disk_usage(folder).free / 1e6 if folder.is_dir() else 0
        raise CheckpointError(
            f"Saving {folder / CURRENT} failed: {error}\n"
            f"{free:,.0f} MB are free there. The checkpoints saved before are untouched; free some space or check "
            "the disk."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _plain(value: Any, where: str) -> Any:
    """A copy of `value` in plain containers, numbers, text and CPU tensors: what `weights_only=True` opens."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # A view would drag its whole storage into the file.
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    if isinstance(value, dict):
        return {_plain(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which weights_only=True would refuse to load")


def _rotate(folder: Path) -> None:
    """Gives current the name prev as well, and prev the name prev2."""
    current, previous = folder / CURRENT, folder / PREVIOUS
    if not current.exists() or (previous.exists() and current.samefile(previous)):
        return  # nothing to rotate, or a save was killed after it had rotated: once more would lose a generation
    if previous.exists():
        link_as(previous, folder / PREVIOUS_2)
    link_as(current, previous)


def latest_exists(folder: Path) -> bool:
    """Whether `folder` holds a run, readable or not: if so, no fresh run may be started over it."""
    return any((Path(folder) / name).exists() for name in GENERATIONS)


def load(folder: Path) -> tuple[dict[str, Any], str]:
    """The newest state that can be read, and a notice ("" if all is well) for the user.

    The caller holds the folder's lock. When `lm_current.pth` is missing or damaged, the next generation takes its
    place, and what is damaged is kept as `<name>.bad-<n>`. When no generation can be read, CheckpointError, and nothing
    is changed.
    """
    folder = Path(folder)
    problems: dict[str, str] = {}
    for name in GENERATIONS:
        try:
            state = read(folder / name)
        except FileNotFoundError:
            problems[name] = "missing"
        except _Damaged as error:
            problems[name] = str(error)
        else:
            return state, _promote(folder, name, state["tokens_seen"], problems)
    listing = "\n".join(f"  {name}: {why}" for name, why in problems.items())
    raise CheckpointError(
        f"No checkpoint in {folder} can be read:\n{listing}\n"
        "Nothing was changed. Restore one of these files from a backup, or move them elsewhere to start a fresh run."
    )


def read(path: Path) -> dict[str, Any]:
    """The state in one checkpoint file.

    Raises FileNotFoundError, CheckpointError (another format, no permission) or, if the file is damaged, a kind of
    CheckpointError that `load` answers with the generation before.
    """
    import torch

    try:
        _check_records(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read ({error.strerror}): change its owner or mode.") from error
    except Exception as error:  # whatever damaged bytes make of zipfile, pickle and torch
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _Damaged(f"damaged ({reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("format_version"), int):
        raise _Damaged("not a checkpoint of this program")
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {state['format_version']}, and this version of the program reads format "
            f"{FORMAT_VERSION}: use the version that wrote it."
        )
    if missing := REQUIRED_KEYS - state.keys():
        raise _Damaged(f"incomplete, without {', '.join(sorted(missing))}")
    return state


class _Damaged(CheckpointError):
    pass


def _check_records(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {record} is wrong")


def _promote(folder: Path, used: str, tokens_seen: int, problems: dict[str, str]) -> str:
    """Makes generation `used` the current one, keeps the damaged ones under other names, and says so."""
    kept = [_keep_aside(folder / name) for name, why in problems.items() if why != "missing"]
    link_as(folder / used, folder / CURRENT)
    link_as(folder / used, folder / ALIAS)  # a save killed just before its commit leaves it ahead
    for name in problems:
        if name != CURRENT:
            (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    if not problems:
        return ""
    reasons = "; ".join(f"{name} is {why}" for name, why in problems.items())
    aside = f" Kept for inspection: {', '.join(kept)}." if kept else ""
    return f"In {folder}, {reasons}. Continuing from {used} at {tokens_seen:,} tokens.{aside}"


def _keep_aside(damaged: Path) -> str:
    """Gives a damaged file the further name `<name>.bad-<n>`, which it returns."""
    number = 1
    while (target := damaged.with_name(f"{damaged.name}.bad-{number}")).exists():
        number += 1
    link_as(damaged, target)
    return target.name


def inspect(folder: Path) -> SavedRun | None:
    """What the newest readable generation in `folder` says about its run; None if there is none.

    Reads the pickle inside the file with every tensor left out, so it needs neither torch nor the weights.
    """
    for path in (Path(folder) / name for name in GENERATIONS):
        try:
            with zipfile.ZipFile(path) as archive:
                record = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(record) as file:
                    state = _WithoutTensors(file).load()
            return SavedRun(
                folder=Path(folder),
                name=json.loads(state["preset"])["name"],
                preset=state["preset"],
                tokens_seen=state["tokens_seen"],
                token_budget=state["token_budget"],
                finished=bool(state.get("exhausted")) or state["tokens_seen"] >= state["token_budget"],
                saved_at=path.stat().st_mtime,
            )
        except Exception:  # damaged in any way: `load` is where it is reported; a list of runs only leaves it out
            continue
    return None


class _WithoutTensors(pickle.Unpickler):
    """Opens the pickle of a checkpoint without running anything it names: every function it calls returns None."""

    def find_class(self, module: str, name: str) -> Any:
        return lambda *_: None

    def persistent_load(self, pid: Any) -> None:
        return None


def required_bytes(checkpoint_bytes: int) -> int:
    """Disk space for three distinct generations and the temporary file of the next (the alias is a hard link)."""
    return 4 * checkpoint_bytes


def check_disk(folder: Path, needed: int, *, beside: bool = False) -> None:
    """Raises UserError unless the run in `folder` can grow to `needed` bytes, counting what it already occupies.

    `beside`: a new run, next to what is there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = (path.stat() for pattern in ("lm_*.pth", "stream/*") for path in folder.glob(pattern) if path.is_file())
    occupied = 0 if beside else sum({status.st_ino: status.st_size for status in files}.values())
    free = shutil.disk_usage(folder).free
    if occupied + free < needed:
        raise UserError(
            f"{folder.resolve()} needs {(needed - occupied) / 1e9:.2f} GB more for checkpoints and the token stream, "
            f"and {free / 1e9:.2f} GB are free. Free some space, or make {folder.name} a symbolic link to another disk."
        )
