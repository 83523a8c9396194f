"""Archives whose names are not to be trusted: whatever they say, no file of a run is ever lost."""

import os
import shutil
from pathlib import Path

import pytest

from configs.errors import CheckpointError
from lm.checkpoint import archive, store
from lm.checkpoint.store import CURRENT, PREVIOUS
from tests.lm.checkpoint.test_checkpoint import contents, make_run, no_hard_links


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
        setup.resume_or_begin(preset, World.start(), tmp_path, False)
    assert not returning.exists()
