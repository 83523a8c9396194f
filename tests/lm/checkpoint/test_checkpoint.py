"""Checkpoints under crashes at every system call, full disks and a second run."""

import contextlib
import errno
import logging
import math
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError, UserError
from lm.checkpoint import store
from lm.checkpoint.store import ALIAS, BEST, CURRENT, GENERATIONS, PREVIOUS
from lm.runtime import files
from tests.constants import ROOT
from tests.lm.checkpoint.small_checkpoint import (
    crash_at,
    generations,
    make_state,
    no_hard_links,
    save,
    tokens_in,
    watched,
)


def test_a_state_comes_back_as_it_was(tmp_path):
    state = make_state(7)
    view = torch.arange(1000.0)[:4]
    save(tmp_path, {**state, "extra": view, "parameter": torch.nn.Parameter(torch.ones(2))})
    loaded, notice = store.load(tmp_path)
    assert notice == ""
    assert loaded["rng"]["python"] == state["rng"]["python"]
    assert loaded["optimizer"][0]["momentum"][0].dtype == torch.bfloat16
    assert torch.equal(loaded["rng"]["torch"], state["rng"]["torch"])
    assert torch.equal(loaded["extra"], view)
    assert loaded["extra"].untyped_storage().nbytes() == 16, "a view must not drag its storage into the file"
    assert (tmp_path / ALIAS).samefile(tmp_path / CURRENT)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"state\['rng'\]\['path'\] is a PosixPath"):
        save(tmp_path, {**make_state(1), "rng": {"path": Path("/")}})
    assert not store.latest_exists(tmp_path)


def test_three_generations_are_kept(tmp_path):
    for tokens in (1, 2, 3, 4):
        save(tmp_path, make_state(tokens))
    assert generations(tmp_path) == [4, 3, 2]
    assert tokens_in(tmp_path / ALIAS) == 4
    assert sorted(os.listdir(tmp_path)) == sorted([*GENERATIONS, ALIAS])


def test_there_are_never_more_than_four_files(tmp_path, monkeypatch):
    most = 0

    def look(*_):
        nonlocal most
        most = max(most, len({path.stat().st_ino for path in tmp_path.iterdir()}))

    with watched(look, monkeypatch):
        for tokens in range(6):
            save(tmp_path, make_state(tokens))
    assert most == 4


def make_best(tokens: int, loss: float) -> dict:
    return make_state(tokens) | {"run_id": "this", "best_loss": loss}


def test_the_best_checkpoint_outlives_the_generations(tmp_path):
    assert store.best_loss(tmp_path, "this") == math.inf
    assert store.read_best(tmp_path, "this") is None
    save(tmp_path, make_best(1, 3.0))
    assert (tmp_path / BEST).samefile(tmp_path / CURRENT)  # costs no disk yet
    for tokens in (2, 3, 4):
        save(tmp_path, make_state(tokens))
    assert generations(tmp_path) == [4, 3, 2]
    assert store.best_loss(tmp_path, "this", thorough=True) == 3.0
    assert store.read_best(tmp_path, "this")["tokens_seen"] == tokens_in(tmp_path / BEST) == 1
    save(tmp_path, make_best(5, 2.0))
    assert store.best_loss(tmp_path, "this") == 2.0


def change(folder: Path, **changes) -> None:
    save(folder / "other", make_best(1, 3.0) | changes)
    shutil.copy(folder / "other" / CURRENT, folder / BEST)


def flip_a_weight(folder: Path) -> None:
    whole = bytearray((folder / BEST).read_bytes())
    whole[whole.index(torch.ones(16).numpy().tobytes())] ^= 1
    (folder / BEST).write_bytes(whole)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: change(folder, run_id="another"),
        lambda folder: change(folder, best_loss=math.nan),
        lambda folder: change(folder, best_loss="low"),
        lambda folder: shutil.copy(folder / CURRENT, folder / BEST),  # a checkpoint that is no best one
        flip_a_weight,
        lambda folder: (folder / BEST).write_text("text"),
        lambda folder: ((folder / BEST).unlink(), (folder / BEST).mkdir()),
    ],
)
def test_a_best_checkpoint_that_is_not_this_runs_is_set_aside(tmp_path, spoil, caplog):
    save(tmp_path, make_best(1, 3.0))
    save(tmp_path, make_state(2) | {"run_id": "this"})
    spoil(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.best_loss(tmp_path, "this", thorough=True) == math.inf
    assert "lm_best.pth is not used, and now called lm_best.pth.bad-1" in caplog.text
    assert (tmp_path / "lm_best.pth.bad-1").exists()
    assert not (tmp_path / BEST).exists()
    assert store.load(tmp_path)[0]["tokens_seen"] == 2


@pytest.mark.parametrize("hard_links", [True, False])
def test_the_best_checkpoint_is_the_old_or_the_new_one_after_a_crash_at_every_call(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    save(tmp_path / "before", make_best(1, 3.0))
    save(tmp_path / "before", make_state(2))
    found, call, died = [], 0, True
    while died:
        folder = tmp_path / f"run{call}"
        shutil.copytree(tmp_path / "before", folder)
        with crash_at(call, monkeypatch) as dead:
            save(folder, make_best(3, 2.0))
        died, call = dead(), call + 1
        loss = store.best_loss(folder, "this", thorough=True)
        found.append((tokens_in(folder / CURRENT), tokens_in(folder / BEST), loss))
    # Never a new checkpoint with the old best one: then it would not be saved again.
    assert set(found) == {(2, 1, 3.0), (2, 3, 2.0), (3, 3, 2.0)}


def test_the_best_checkpoint_is_what_remains_of_a_run_whose_others_are_lost(tmp_path):
    save(tmp_path, make_best(1, 3.0))
    for tokens in (2, 3, 4):
        save(tmp_path, make_state(tokens))
    for name in (*GENERATIONS, ALIAS):
        (tmp_path / name).write_bytes(b"damaged")
    assert store.inspect(tmp_path).tokens_seen == 1
    state, notice = store.load(tmp_path)
    assert state["tokens_seen"] == 1
    assert "Continuing from lm_best.pth at 1 tokens" in notice
    for name in (*GENERATIONS, ALIAS):
        (tmp_path / name).unlink(missing_ok=True)
    assert store.latest_exists(tmp_path), "a new run would be written over it"


def test_a_power_cut_finds_the_data_on_the_disk_before_its_name(tmp_path, monkeypatch):
    save(tmp_path, make_state(1))
    events = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def watched_replace(source, target):
        events.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save(tmp_path, make_state(2))
    assert events[0] == (tmp_path / CURRENT).stat().st_ino
    assert events[1:] == [PREVIOUS, ALIAS, CURRENT, "folder"]  # and nothing but names after it


@pytest.mark.slow
@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("earlier", range(4))
def test_current_is_whole_after_a_crash_at_every_call_twice_in_a_row(tmp_path, monkeypatch, earlier, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    before = tmp_path / "before"
    for tokens in range(1, earlier + 1):
        save(before, make_state(tokens))
    before.mkdir(exist_ok=True)
    states_seen, first, died = set(), 0, True
    while died:
        second, died_again = 0, True
        while died_again:
            folder = tmp_path / "run"
            shutil.copytree(before, folder, copy_function=os.link if hard_links else shutil.copy2)
            with crash_at(first, monkeypatch) as dead:
                save(folder, make_state(10))
            died = dead()
            states_seen.add(tuple(after_first := generations(folder)))
            assert after_first[0] == (10 if not died else after_first[0])
            with crash_at(second, monkeypatch) as dead:
                save(folder, make_state(11))
            died_again = dead()
            current, *older = generations(folder)
            assert current in {earlier or None, 10, 11}
            if earlier:
                assert current is not None, "lm_current.pth is missing"
                assert tokens_in(folder / ALIAS)
            if not died_again:
                assert current == 11
                # Nothing committed before the crashes is lost but what three names cannot hold.
                committed = [t for t in (after_first[0], earlier, earlier - 1) if t and t > 0 and t != 11]
                newest = sorted(set(committed), reverse=True)[:2]
                assert older[0] == (newest[0] if newest else None)
                if hard_links and len(newest) > 1:
                    assert older[1] == newest[1]
                assert not list(folder.glob(".*.tmp"))
            shutil.rmtree(folder)
            second += 1
        first += 1
    assert first > 4
    assert len(states_seen) >= 2


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, {root!r})
    from lm.checkpoint import store
    from lm.checkpoint.store import CURRENT
    from tests.lm.checkpoint.small_checkpoint import make_state, save, tokens_in
    folder, kills, last = Path({folder!r}), 0, 0
    random.seed(1)
    for _ in range(2):  # the second without imports
        began = time.monotonic()
        save(folder.with_name("first"), make_state(1, size=200))
    a_save = time.monotonic() - began
    while kills < 40 or last <= 10:
        child = os.fork()
        if child == 0:
            tokens = last
            while True:
                tokens += 1
                save(folder, make_state(tokens, size=200))
        time.sleep(random.uniform(0.5, 5) * a_save)
        os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
        kills += 1
        if (folder / CURRENT).exists():
            now = tokens_in(folder / CURRENT)
            assert now >= last, (now, last)
            state, notice = store.load(folder)
            assert notice == "" and state["tokens_seen"] == now
            last = now
        else:
            assert last == 0
    print(f"{{kills}} kills, {{last}} saves")
"""


@pytest.mark.slow
def test_kill_9_at_random_instants(tmp_path):
    script = KILLED.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


FULL = """
    import resource, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from configs.errors import CheckpointError
    from tests.lm.checkpoint.small_checkpoint import make_state, save
    for limit in (0, 1, 100, *range(4096, {size}, {size} // 22)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(Path({folder!r}), make_state(9, size=200))
        except CheckpointError as error:
            assert "failed" in str(error) and "free" in str(error), error
        else:
            raise AssertionError(limit)
        print(limit)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_everything_as_it_was(tmp_path):
    for tokens in (1, 2, 3):
        save(tmp_path, make_state(tokens, size=200))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    size = len(before[CURRENT])
    script = FULL.format(root=str(ROOT), folder=str(tmp_path), size=size)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    print(f"a disk full at {len(done.stdout.split())} places of a file of {size:,} bytes: nothing changed")
    assert len(done.stdout.split()) >= 25


@pytest.mark.parametrize("hard_links", [True, False])
def test_whatever_single_call_the_disk_refuses_everything_stays_as_it_was(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    for tokens in (1, 2, 3):
        save(tmp_path / "before", make_state(tokens))
    before = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    refused: list[str] = []
    while True:
        folder, call = tmp_path / f"run{len(refused)}", len(refused)
        shutil.copytree(tmp_path / "before", folder)

        def refuse(number, name, call=call):
            if number == call:
                refused.append(name)
                raise OSError(errno.ENOSPC, "No space left on device")

        with watched(refuse, monkeypatch), contextlib.suppress(CheckpointError):
            save(folder, make_state(9))
        if len(refused) == call:
            break
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        if tokens_in(folder / CURRENT) == 9:  # it could do without, or the new names were there already
            assert generations(folder) == [9, 3, 2]
        elif refused[-1] == "replace":  # renaming needs no room: a disk that refuses it is dying. Nothing newer is lost
            assert generations(folder)[0] == 3
        else:
            assert after == before, refused
        assert not list(folder.glob(".*.tmp")) or refused[-1] == "unlink"
        save(folder, make_state(10))
        assert generations(folder)[0] == 10
        assert not list(folder.glob(".*.tmp"))
    print(f"refused one at a time: {', '.join(refused)}")
    assert refused.count("fsync") == (2 if hard_links else 5)
    assert refused.count("link") == 3


BAD = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"model": {"weight": BAD}}, "model.weight"),
        ({"optimizer": [{"state": {3: {"m": BAD}}}]}, "optimizer.0.state.3.m"),
    ],
)
def test_numbers_that_are_none_are_never_saved_over_good_ones(tmp_path, part, where):
    save(tmp_path, make_state(1))
    with pytest.raises(UserError, match=rf"After 2 tokens {where} holds .* not finite.*lower"):
        save(tmp_path, {**make_state(2), **part})
    assert generations(tmp_path) == [1, None, None]


def test_a_second_run_is_refused_and_a_dead_one_is_not_waited_for(tmp_path):
    script = f"""
        import os, pathlib, sys
        sys.path.insert(0, {str(ROOT)!r})
        from lm.runtime.files import FolderLock
        lock = FolderLock(pathlib.Path({str(tmp_path)!r}))
        lock.__enter__()
        print("locked", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {other.pid}"), files.FolderLock(tmp_path):
            pass
        other.kill()
        other.wait()
        assert (tmp_path / ".lock").exists()
        with files.FolderLock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with files.FolderLock(tmp_path):
        pass


def test_the_lock_is_never_taken_through_a_link_or_a_pipe(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".lock").symlink_to(tmp_path / "thesis")
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / ".lock")
    for name in ("linked", "piped"):
        with pytest.raises(UserError, match="cannot be written"), files.FolderLock(tmp_path / name):
            pass
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_too_little_disk_is_said_before_training(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    store.check_disk(tmp_path, free // 2)
    with pytest.raises(UserError, match="GB are free"):
        store.check_disk(tmp_path, free + 10**10)
