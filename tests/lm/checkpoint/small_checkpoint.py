"""Small checkpoints and runs for tests, and a disk that can be watched and crashed."""

import contextlib
import errno
import itertools
import os
from pathlib import Path

import pytest
import torch

from lm.checkpoint import store
from lm.checkpoint.store import GENERATIONS


def make_state(tokens: int, name: str = "toy", size: int = 16) -> dict:
    return {
        "preset": f'{{"name": "{name}"}}',
        "tokens_seen": tokens,
        "token_budget": 1000,
        "global_batch_rows": 4,
        "model": {"weight": torch.full((size, size), float(tokens))},
        "heads": {},
        "optimizer": [{"momentum": [torch.arange(size, dtype=torch.bfloat16)], "step": 3}],
        "rng": {"python": (3, (1, 2), None), "torch": torch.get_rng_state()},
        "stream_position": {"row": tokens // 4},
        "tokenizer_sha256": "ab" * 32,
        "world_size": 1,
        "num_steps": tokens // 4,
        "skipped_steps": 0,
        "seconds": 1.0,
        "exhausted": False,
        "facts": {},
    }


def save(folder: Path, state: dict) -> None:
    store.write(folder, store.Snapshot(state))


def tokens_in(path: Path) -> int:
    """Reads like any outside program would, and demands that the weights belong to the count."""
    state = torch.load(path, weights_only=True)
    assert torch.all(state["model"]["weight"] == state["tokens_seen"])
    return state["tokens_seen"]


def generations(folder: Path) -> list[int | None]:
    return [tokens_in(folder / name) if (folder / name).exists() else None for name in GENERATIONS]


class Crash(BaseException):
    """The process is gone: nothing that follows may touch the disk."""


CHANGES_OF_NAMES = ("link", "replace", "rename", "unlink", "rmdir", "mkdir")


@contextlib.contextmanager
def watched(refuse, monkeypatch: pytest.MonkeyPatch):
    """`refuse(number, name)` is called before every change of the disk, and may raise in its place."""
    count = itertools.count()

    def asked(name, function):
        def wrapper(*args, **kwargs):
            refuse(next(count), name)
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for name in CHANGES_OF_NAMES:
            patch.setattr(os, name, asked(name, getattr(os, name)))
        patch.setattr(os, "fsync", asked("fsync", lambda _: None))  # a place to die at; waiting proves nothing here
        patch.setattr(torch, "save", asked("save", torch.save))
        yield


@contextlib.contextmanager
def crash_at(call: int, monkeypatch: pytest.MonkeyPatch):
    """Kills the "process" just before its `call`-th change of the disk. Yields a function that says whether it died."""
    died = False

    def refuse(number, _):
        nonlocal died
        if number >= call:  # cleaning up is refused as well: a dead process does not clean up
            died = True
            raise Crash

    with watched(refuse, monkeypatch), contextlib.suppress(Crash):
        yield lambda: died


def no_hard_links(*_):
    raise OSError(errno.EPERM, "no hard links here")


def make_run(folder: Path, name: str, tokens: int) -> None:
    (folder / "stream").mkdir(parents=True)
    (folder / "hf" / "nested").mkdir(parents=True)
    for file in (
        "stream/rows.bin",
        "hf/nested/config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "report.md",
        "report.png",
        "heads.png",
        "trace.json.gz",
    ):
        (folder / file).write_text(f"{name} {file}")
    (folder / "lm_prev.pth.bad-1").write_text("kept")
    (folder / "machine.json").write_text("{}")
    save(folder, make_state(tokens - 1, name) | {"best_loss": 1.0})
    save(folder, make_state(tokens, name))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the run in `folder`, by its name."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "archive" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "machine.json"}
