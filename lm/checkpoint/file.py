"""One checkpoint file: its content, how it is written, and how it is read without trusting it.

It is a `torch.save` file of plain types and CPU tensors: `torch.load(path, weights_only=True)`
opens it without an allow-list. `torch.load` does not detect damaged tensors (288 of 300 flipped
bits went undetected), so the file, a zip archive, ends with a comment that zip readers skip: the
SHA-256 of everything before it, which `read` checks before it reads a tensor. What the file says
of itself is checked before that (lm/checkpoint/reader.py).

Names, generations and the handling of bad files are in lm/checkpoint/store.py. torch is imported
only inside functions, since the menu lists runs before anything heavy is loaded.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, Damaged, UserError
from lm.checkpoint.reader import Checkpoint, open_file
from lm.runtime.machine import available_memory

FORMAT_VERSION = 2
LARGEST_NUMBER = 2**53  # of tokens, steps and seconds: exact also as float
LONGEST_NAME = 1000  # of a preset
# What every checkpoint has. That of a run that started from a model has `start_point` too: the model's name,
# commit and files; that of the best evaluation so far `best_loss`, in nats per token of held-out text. Newer
# ones have `run_id` and what the state of a run has gained since (lm/train/state.py).
CONTENTS = {
    "format_version": int, "preset": str, "tokens_seen": int, "token_budget": int, "global_batch_rows": int,
    "model": dict, "heads": dict, "optimizer": list, "rng": dict, "stream_position": dict, "tokenizer_sha256": str,
    "world_size": int, "num_steps": int, "skipped_steps": int, "seconds": float, "exhausted": bool, "facts": dict,
}  # fmt: skip


class Snapshot:
    """A copy of `state` in the form a checkpoint stores: training may then change its own tensors.

    A GPU makes the copy itself, after the steps launched so far and before the next; only
    `contents` waits for it. The copy is in pinned memory, which takes longer to get than to fill: `buffers`
    are those of a snapshot that is no longer needed.

    `state` has every key of CONTENTS but `format_version`.
    """

    def __init__(self, state: dict[str, Any], buffers: Mapping[tuple, Any] | None = None):
        import torch

        copies: dict[tuple, Any] = {}
        self._contents = _plain({"format_version": FORMAT_VERSION, **state}, "state", copies, buffers or {})
        self.buffers = {key: copy for key, copy in copies.items() if key[0].type == "cuda"}
        assert not (problem := _problem_with(self._contents)), problem
        # Not if torch has begun to use a GPU that then failed, so that the run is one of the CPU.
        self._copied = torch.cuda.current_stream().record_event() if self.buffers else None

    def contents(self) -> dict[str, Any]:
        """Wait for the copy and return what is to be written.

        Raises UserError if a weight or a moment is not finite, so that finite ones on the disk are
        kept.
        """
        if self._copied:
            self._copied.synchronize()
        if where := _not_finite(self._contents):
            raise UserError(
                f"After {self._contents['tokens_seen']:,} tokens {where} holds numbers that are not finite. Nothing was "
                "saved over the last checkpoint: lower train.matrix_learning_rate in the preset, then resume."
            )
        return self._contents


def write_file(path: Path, contents: dict[str, Any]) -> None:
    """Write the contents of a checkpoint; they are on the disk when this returns.

    Raises OSError or, from torch, RuntimeError.
    """
    import torch

    with path.open("wb") as file:
        digesting = _DigestingFile(file)
        try:
            torch.save(contents, digesting)  # type: ignore[arg-type]  # it calls only write and flush
        except RuntimeError as error:
            raise digesting.refusal or error from error  # torch's own words hide what the disk said
        digesting.end()
        file.flush()
        os.fsync(file.fileno())


class _DigestingFile:
    """A file for `torch.save` that appends the digest of its content as the zip archive's comment.

    The last two bytes of an archive are the length of its comment, 0: they are held back and
    replaced by the length of the digest.
    """

    def __init__(self, file: io.BufferedWriter):
        self._file, self._sha256, self._held = file, hashlib.sha256(), b""
        self.refusal: OSError | None = None  # of the disk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < 2:
            view, self._held = memoryview(self._held + bytes(view)), b""
        for part in (self._held, view[:-2]):
            self._sha256.update(part)
            try:
                self._file.write(part)
            except OSError as error:
                self.refusal = error
                raise
        self._held = bytes(view[-2:])
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def end(self) -> None:
        self._file.write(_ending(self._sha256))


def _ending(sha256: Any) -> bytes:
    """Return the last bytes of a checkpoint: the length of the comment, and the comment."""
    digest = sha256.hexdigest().encode()
    return len(digest).to_bytes(2, "little") + digest


def is_whole(path: Path) -> bool:
    """Return whether a file is as `write_file` wrote it, to the last bit."""
    sha256 = hashlib.sha256()
    with open(open_file(path), "rb") as file:
        left = os.fstat(file.fileno()).st_size - len(_ending(sha256))
        while left > 0 and (part := file.read(min(left, 2**20))):
            sha256.update(part)
            left -= len(part)
        return file.read() == _ending(sha256)


def _plain(value: Any, where: str, copies: dict[tuple, Any], buffers: Mapping[tuple, Any]) -> Any:
    """Return a copy of `value` in types that `weights_only=True` opens: plain containers, numbers,
    text and CPU tensors.

    `copies`: the copies of earlier tensors, so that tensors that share memory (a tied embedding)
    are copied and stored once. `buffers`: copies that are no longer needed, to be written over.
    """
    import torch

    if isinstance(value, torch.Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies or not value.numel():
            on_gpu = value.device.type == "cuda"  # of others nobody could say when the copy is there
            copy = buffers.get(key)
            if copy is None:
                copy = torch.empty_like(value, device="cpu", pin_memory=on_gpu)
            copies[key] = copy.copy_(value.detach(), non_blocking=on_gpu)
        return copies[key]
    if isinstance(value, dict):
        return {
            _plain(key, where, copies, buffers): _plain(item, f"{where}[{key!r}]", copies, buffers)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{index}]", copies, buffers) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which weights_only=True would refuse to load")


def _problem_with(state: dict[str, Any]) -> str | None:
    if missing := CONTENTS.keys() - state.keys():
        return f"incomplete, without {', '.join(sorted(missing))}"
    wrong = [key for key, kind in CONTENTS.items() if type(state[key]) is not kind]
    if not wrong:
        wrong = [key for key, kind in CONTENTS.items() if kind in (int, float) and not 0 <= state[key] < LARGEST_NUMBER]
        wrong += [] if name_of(state["preset"]) else ["preset"]
        wrong += [] if all(map(_is_text, (*state["facts"], *state["facts"].values()))) else ["facts"]
    return f"not a checkpoint of this program: wrong {', '.join(wrong)}" if wrong else None


def name_of(preset_json: str) -> str:
    """Return the name of the preset in a checkpoint, or "" if there is none."""
    try:
        name = json.loads(preset_json)["name"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return name if _is_text(name) and len(name) <= LONGEST_NAME else ""


def _is_text(value: Any) -> bool:
    return type(value) is str


def _not_finite(value: Any, where: str = "") -> str | None:
    """Return the path of the first weight or moment that is not finite, or None."""
    import torch

    if isinstance(value, torch.Tensor):
        return where if value.is_floating_point() and not value.isfinite().all() else None
    if not isinstance(value, dict | list):
        return None
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    found = (_not_finite(part, f"{where}.{key}" if where else str(key)) for key, part in parts)
    return next(filter(None, found), None)


def read(path: Path) -> dict[str, Any]:
    """Read the state in one checkpoint file.

    Raises FileNotFoundError, CheckpointError (another format, no permission, too little memory) or
    Damaged, after which `load` tries the generation before.
    """
    try:
        with Checkpoint(path) as checkpoint:
            check_state(checkpoint.state, path)
            if checkpoint.num_bytes > (free := available_memory()):
                raise CheckpointError(
                    f"{path} holds {checkpoint.num_bytes / 1e9:.1f} GB of tensors, and {free / 1e9:.1f} GB of memory are "
                    "free: end other programs, or move the run to a larger machine."
                )
            if not is_whole(path):
                raise Damaged("damaged: its bytes are not those that were written")
            state = checkpoint.tensors()
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read ({error.strerror}): change its owner or mode.") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Damaged(f"damaged ({error})") from error
    if _not_finite(state):
        raise Damaged("its weights are not numbers throughout")
    return state


def check_state(state: Any, path: Path) -> None:
    """Raise Damaged unless `state`, with or without its tensors, is that of a run; CheckpointError
    if it is of another format."""
    if not isinstance(state, dict) or type(state.get("format_version")) is not int:
        raise Damaged("damaged: not a checkpoint of this program")
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {state['format_version']}, and this version of the program reads format "
            f"{FORMAT_VERSION}: use the version that wrote it, or move the run elsewhere to start a new one."
        )
    if problem := _problem_with(state):
        raise Damaged(problem)
