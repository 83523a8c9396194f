"""Archives whose names are not to be trusted: whatever they say, no file of a run is ever lost."""

import os
import shutil
from pathlib import Path

import pytest

from configs.errors import CheckpointError
from lm.checkpoint import archive, store
from lm.checkpoint.store import CURRENT, PREVIOUS
from tests.lm.checkpoint.small_checkpoint import (
    contents,
    crash_at,
    make_run,
    no_hard_links,
)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(folder: Path, target: Path, *missing: str) -> None:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("archive", "machine.json", *missing))


def other_run(folder: Path, target: Path) -> None:
    make_run(target, "other", 7)


def own_run_without_a_file(folder: Path, target: Path) -> None:
    copied(folder, target, "rows.bin")


def own_run_changed(folder: Path, target: Path) -> None:
    copied(folder, target)
    (target / PREVIOUS).write_bytes(b"changed")


def nothing(folder: Path, target: Path) -> None:
    target.mkdir()


def folder_for_a_file(folder: Path, target: Path) -> None:
    copied(folder, target, CURRENT)
    (target / CURRENT).mkdir()


def link_for_a_folder(folder: Path, target: Path) -> None:
    copied(folder, target, "stream")
    (target / "stream").symlink_to(folder / "stream")


def notes(folder: Path, target: Path) -> None:
    target.mkdir()
    (target / "notes.txt").write_text("mine")


@pytest.mark.parametrize("stage", [archive.LINKING, archive.LEAVING, archive.RETURNING])
@pytest.mark.parametrize(
    "attack",
    [other_run, own_run_without_a_file, own_run_changed, nothing, folder_for_a_file, link_for_a_folder, notes],
)
def test_no_name_of_a_move_costs_a_file(tmp_path, attack, stage):
    make_run(tmp_path, "mine", 5)
    mine, entry = contents(tmp_path), tmp_path / "archive" / f"x{stage}"
    entry.parent.mkdir()
    (entry.parent / "x").mkdir()  # the name that it would get
    (entry.parent / "x" / "kept").write_text("kept")
    attack(tmp_path, entry)
    before = set(files_in(tmp_path).values())
    archive.finish_interrupted(tmp_path)
    assert contents(tmp_path) == mine
    assert set(files_in(tmp_path).values()) == before
    assert not entry.exists()
    assert (entry.parent / "x" / "kept").read_text() == "kept"


@pytest.mark.parametrize("hard_links", [True, False])
def test_links_are_moved_as_links_and_lead_to_the_same_place(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    run = tmp_path / "run"
    make_run(run, "mine", 5)
    (run / "stream").rename(tmp_path / "large disk")
    (run / "stream").symlink_to("../large disk")
    (run / "hf" / "linked").symlink_to("nested")
    place = archive.archive_run(run)
    assert not (run / "stream").is_symlink()
    assert (place / "stream").is_symlink()
    assert (place / "stream" / "rows.bin").samefile(tmp_path / "large disk" / "rows.bin")
    archive.restore(run, place)
    assert not place.exists()
    assert (run / "stream" / "rows.bin").samefile(tmp_path / "large disk" / "rows.bin")
    assert (run / "hf" / "linked" / "config.json").samefile(run / "hf" / "nested" / "config.json")


def test_a_pipe_in_a_run_is_moved_or_refused_but_never_read(tmp_path, monkeypatch):
    make_run(tmp_path, "mine", 5)
    os.mkfifo(tmp_path / "report.pipe")
    place = archive.archive_run(tmp_path)
    assert (place / "report.pipe").is_fifo()
    archive.restore(tmp_path, place)
    monkeypatch.setattr(os, "link", no_hard_links)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"Archiving the run in .* failed: .*no hard links"):
        archive.archive_run(tmp_path)
    archive.finish_interrupted(tmp_path)
    assert contents(tmp_path) == before
    assert not any((tmp_path / "archive").iterdir())


def test_training_finishes_an_interrupted_move_first(tmp_path, monkeypatch):
    """Killed while the run was restored: its newest checkpoint is not yet back, and the one before it is."""
    from configs.schema import load_preset
    from lm.runtime.distributed import World
    from lm.train import setup

    make_run(tmp_path, "mine", 5)
    returning = tmp_path / "archive" / "x.returning"
    copied(tmp_path, returning)
    (tmp_path / CURRENT).unlink()
    (tmp_path / "simple_lm_trained.pth").unlink()

    def load(folder):
        raise CheckpointError(f"loaded at {store.inspect(folder).tokens_seen}")

    monkeypatch.setattr(store, "load", load)
    preset = load_preset(Path(__file__).parents[3] / "configs" / "02_offline_python.json")
    with pytest.raises(CheckpointError, match="loaded at 5"):
        setup.resume_or_begin(preset, World.start(), tmp_path, 10_000, False)
    assert not returning.exists()


def test_a_run_put_aside_comes_back_whole(tmp_path):
    make_run(tmp_path, "first: one/two", 5)
    first = contents(tmp_path)
    place = archive.archive_run(tmp_path)
    assert contents(tmp_path) == {}
    assert (tmp_path / "machine.json").exists()
    assert contents(place) == first
    assert place.name.startswith("first-one-two-2")
    make_run(tmp_path / "elsewhere", "second", 8)
    second = contents(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "elsewhere")
    assert [run.tokens_seen for run in archive.archived_runs(tmp_path)] == [5]
    archive.restore(tmp_path, place)
    assert contents(tmp_path) == first
    (run,) = archive.archived_runs(tmp_path)
    assert (run.name, contents(run.folder)) == ("second", second)


@pytest.mark.parametrize("action", ["archive_run", "restore"])
@pytest.mark.slow
def test_an_interrupted_move_is_finished_and_loses_nothing(tmp_path, monkeypatch, action):
    origin = tmp_path / "origin"
    make_run(origin, "first", 5)
    first = contents(origin)
    second: dict[str, bytes] = {}
    if action == "restore":
        archive.archive_run(origin)
        make_run(tmp_path / "other", "second", 8)
        second = contents(tmp_path / "other")
        shutil.copytree(tmp_path / "other", origin, dirs_exist_ok=True)
    call, died = 0, True
    while died:
        folder = tmp_path / "run"
        shutil.copytree(origin, folder)
        with crash_at(call, monkeypatch) as dead:
            if action == "archive_run":
                archive.archive_run(folder)
            else:
                (place,) = (run.folder for run in archive.archived_runs(folder))
                archive.restore(folder, place)
        died = dead()
        with crash_at(call // 2, monkeypatch):  # and the repair is interrupted too
            archive.finish_interrupted(folder)
        archive.finish_interrupted(folder)
        archived = [contents(run.folder) for run in archive.archived_runs(folder)]
        here = {name: content for name, content in contents(folder).items() if not name.endswith(".tmp")}
        runs = [run for run in (here, *archived) if run]
        expected = [run for run in (first, second) if run]
        assert sorted(runs, key=str) == sorted(expected, key=str), f"after a crash at call {call}"
        if not died:
            assert here == ({} if action == "archive_run" else first)
        shutil.rmtree(folder)
        call += 1
    assert call > 20
