"""Reading a checkpoint: whatever is damaged, strange or hostile is noticed, and the generation before is used."""

import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError
from lm.checkpoint import store
from lm.checkpoint.file import FORMAT_VERSION
from lm.checkpoint.store import ALIAS, CURRENT, GENERATIONS, PREVIOUS
from tests.constants import ROOT
from tests.lm.checkpoint.small_checkpoint import generations, make_state, save, tokens_in


def test_every_damage_is_noticed_and_answered_with_the_generation_before(tmp_path):
    before, dice = tmp_path / "before", random.Random(0)
    for tokens in (1, 2, 3):
        save(before, make_state(tokens))
    good = (before / CURRENT).read_bytes()
    torch.save({"a": 1}, before / "foreign")
    damaged = [good[:length] for length in dice.sample(range(len(good)), 50)]
    for position in dice.sample(range(len(good)), 150) + list(range(len(good) - 100, len(good), 2)):
        damaged.append(good[:position] + bytes([good[position] ^ 1 << dice.randrange(8)]) + good[position + 1 :])
    num_flips = len(damaged) - 50
    damaged += [b"", good + b"x", good[:-66], (before / "foreign").read_bytes()]
    (before / "foreign").unlink()
    for content in damaged:
        folder = tmp_path / "run"
        shutil.copytree(before, folder)
        (folder / CURRENT).write_bytes(content)
        state, notice = store.load(folder)
        assert "lm_current.pth is damaged" in notice
        assert "Continuing from lm_prev.pth at 2 tokens" in notice
        assert state["tokens_seen"] == tokens_in(folder / CURRENT) == 2
        assert (folder / f"{CURRENT}.bad-1").read_bytes() == content
        shutil.rmtree(folder)
    print(f"50 truncations and {num_flips} flipped bits: all noticed, none read")
    assert num_flips == 200


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # as a new inode: the other names of the file keep theirs
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("bad", "gone", "expected"),
    [([CURRENT], [], 2), ([], [CURRENT], 2), ([CURRENT, PREVIOUS], [], 1), ([PREVIOUS], [CURRENT], 1)],
)
def test_fallback_takes_the_next_generation_says_so_and_keeps_the_bad_file(tmp_path, bad, gone, expected):
    for tokens in (1, 2, 3):
        save(tmp_path, make_state(tokens))
    for name in bad:
        damage(tmp_path / name)
    for name in gone:
        (tmp_path / name).unlink()
    state, notice = store.load(tmp_path)
    assert state["tokens_seen"] == expected == tokens_in(tmp_path / CURRENT) == tokens_in(tmp_path / ALIAS)
    for name in bad:
        assert f"{name} is damaged" in notice
        assert (tmp_path / f"{name}.bad-1").exists()
    for name in gone:
        assert f"{name} is missing" in notice
    again, notice = store.load(tmp_path)
    assert (again["tokens_seen"], notice) == (expected, "")
    save(tmp_path, make_state(4))
    assert generations(tmp_path)[:2] == [4, expected]
    for name in filter(lambda name: (tmp_path / name).exists(), GENERATIONS):
        store.read(tmp_path / name)  # what was damaged is no generation any more


def test_never_a_silent_fresh_start(tmp_path):
    for tokens in (1, 2, 3):
        save(tmp_path, make_state(tokens))
    for name in GENERATIONS:
        damage(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert store.latest_exists(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_current.pth: damaged.*\n.*lm_prev.pth: damaged.*\n.*lm_prev2.pth"):
        store.load(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_another_format_is_not_taken_for_damage(tmp_path):
    save(tmp_path, make_state(1))
    save(tmp_path, make_state(2))
    (tmp_path / CURRENT).unlink()
    store.write_file(tmp_path / CURRENT, {**make_state(2), "format_version": FORMAT_VERSION + 1})
    with pytest.raises(CheckpointError, match=f"format {FORMAT_VERSION + 1}"):
        store.load(tmp_path)
    assert not list(tmp_path.glob("*.bad-*"))


@pytest.mark.parametrize("where", ["whole", "rng", "model"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, where):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    state = {**make_state(1), "format_version": FORMAT_VERSION}
    store.write_file(tmp_path / CURRENT, Hostile() if where == "whole" else {**state, where: Hostile()})
    store.inspect(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_current\.pth: damaged"):
        store.load(tmp_path)
    assert not (tmp_path / "canary").exists()


WEIGHT = {"weight": torch.ones(2, 2)}


REFUSED = {
    "a number": ({"model": {"weight": torch.tensor([1.0, float("nan")])}}, "not numbers throughout"),
    "a moment": ({"optimizer": [{"state": {0: {"exp_avg": torch.tensor([float("-inf")])}}}]}, "not numbers throughout"),
    "infinite": ({"heads": {"weight": torch.tensor([1.0, float("inf")])}}, "not numbers throughout"),
    "types": ({"tokens_seen": "999", "preset": 7}, "wrong preset, tokens_seen"),
    "a flag": ({"tokens_seen": True}, "wrong tokens_seen"),
    "a list": ({"model": [torch.ones(2)]}, "wrong model"),
    "dimensions": ({"model": {"weight": torch.ones([1] * 70)}}, "a shape that its bytes cannot have"),
    "no element": ({"model": {"weight": torch.empty(0, 2**40)}}, "a shape that its bytes cannot have"),
    "missing": ({"rng": None, "model": None}, "wrong model, rng"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_whole_but_not_a_run_is_refused(tmp_path, changes, reason):
    save(tmp_path, make_state(1))
    save(tmp_path, make_state(2))
    (tmp_path / CURRENT).unlink()
    store.write_file(tmp_path / CURRENT, {**make_state(3), "format_version": FORMAT_VERSION, **changes})
    state, notice = store.load(tmp_path)
    assert reason in notice
    assert state["tokens_seen"] == 1


def test_a_file_without_all_its_parts_is_refused(tmp_path):
    store.write_file(tmp_path / CURRENT, {"format_version": FORMAT_VERSION, "model": {}, "tokens_seen": 1})
    with pytest.raises(CheckpointError, match="incomplete, without exhausted, facts, global_batch_rows, heads"):
        store.load(tmp_path)


def test_inspect_reads_the_truth_without_torch(tmp_path):
    assert store.inspect(tmp_path) is None
    save(tmp_path, make_state(999))
    script = f"""
        import pathlib, sys
        sys.path.insert(0, {str(ROOT)!r})
        from lm.checkpoint import archive, store
        summary = store.inspect(pathlib.Path({str(tmp_path)!r}))
        assert (summary.name, summary.tokens_seen, summary.trained) == ("toy", 999, False), summary
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=600)
    save(tmp_path, make_state(1000))
    assert store.inspect(tmp_path).trained
    save(tmp_path, {**make_state(500), "exhausted": True})
    assert store.inspect(tmp_path).trained
    damage(tmp_path / CURRENT)
    (tmp_path / CURRENT).write_bytes(b"torn")
    assert store.inspect(tmp_path).tokens_seen == 1000
