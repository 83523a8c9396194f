"""Sources of files: every character once an epoch, exact resuming, and nothing in a folder can stop a run."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from configs.errors import SourceError
from configs.sources import PDFSource, PythonSource, TextSource
from data.sources.base import PIECE_CHARACTERS
from data.sources.find import matching_files
from data.sources.opening import open_source, python_roots
from data.sources.probe import probe
from tests.cpu_clock import CpuClock
from tests.data.sources.reading import texts


def open_text(path: Path, *, pinned: dict | None = None, seed: int = 1, glob: str = "**/*.txt"):
    spec = TextSource(type="text", path=str(path), glob=glob, label="notes")
    return open_source(spec, cache_dir=None, seed=seed, pinned=pinned)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty short files and a long one, in folders."""
    for number in range(20):
        path = tmp_path / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"File {number} tells its story.\n" * (number + 1))
    (tmp_path / "long.txt").write_text("".join(f"Line {number} of a long book.\n\n" for number in range(4000)))
    return tmp_path


def test_an_epoch_is_all_the_text_and_the_next_is_the_same_in_another_order(folder):
    source = open_text(folder)
    first, second = texts(source, 0), texts(source, 1)
    assert sum(map(len, first)) == sum(len(path.read_text()) for path in folder.rglob("*.txt"))
    assert sorted(first) == sorted(second)
    assert first != second
    assert texts(open_text(folder, seed=2)) != first
    assert texts(open_text(folder)) == first


def test_long_documents_are_split_at_blank_lines_and_lose_nothing(folder):
    pieces = texts(open_text(folder / "long.txt"))
    assert "".join(pieces) == (folder / "long.txt").read_text()
    assert all(len(piece) <= PIECE_CHARACTERS and piece.endswith("\n\n") for piece in pieces)


def test_text_without_any_space_is_split_too(tmp_path):
    (tmp_path / "a.txt").write_text("x" * (2 * PIECE_CHARACTERS + 7))
    assert [len(piece) for piece in texts(open_text(tmp_path))] == [PIECE_CHARACTERS, PIECE_CHARACTERS, 7]


def test_every_position_resumes_with_the_very_next_document(folder):
    source = open_text(folder)
    whole = list(source.documents(3))
    for done, (_, position) in enumerate(whole, start=1):
        assert list(open_text(folder, pinned=source.pinned).documents(3, position)) == whole[done:]


def test_files_that_came_and_went_change_nothing_for_the_others(folder):
    source = open_text(folder)
    whole = list(source.documents(0))
    seen, (_, position) = [document.text for document, _ in whole[:8]], whole[7]
    later = whole[-1][0].text
    (folder / "new.txt").write_text("Something new.")
    next(path for path in folder.rglob("*.txt") if path.read_text() == later).unlink()
    resumed = open_text(folder, pinned=source.pinned)
    rest = texts(resumed, 0, position)
    assert [text for text in rest if text != "Something new."] == [document.text for document, _ in whole[8:-1]]
    assert not set(rest) & set(seen)
    assert "changed since this run began (21 then, 21 now)" in resumed.notices[0]


def test_the_same_text_under_two_names_is_read_once(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("Copied." if name != "c.txt" else "Another.")
    source = open_text(tmp_path)
    assert sorted(texts(source)) == ["Another.", "Copied."]
    assert source.skipped == {"duplicate": 1}


def test_one_stray_byte_does_not_spoil_a_utf8_file(tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe, Maße, caf".encode() + b"\xe9")
    assert texts(open_text(tmp_path)) == ["Größe, Maße, café"]


def test_nothing_in_a_folder_stops_the_run(tmp_path):
    (tmp_path / "good.txt").write_text("Good text.")
    (tmp_path / "picture.txt").write_bytes(os.urandom(5000) + b"\0")
    (tmp_path / "short.txt").write_bytes(bytes(range(1, 120)))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\t\u2028" * PIECE_CHARACTERS)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "missing")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    source = open_text(tmp_path)
    left_out = source.size().partition("; skipped: ")[2].split(", ")
    assert sorted(left_out) == ["1 empty", "1 not a regular file", "2 binary", "2 unreadable"]
    assert texts(source) == ["Good text."]
    assert texts(source, 1) == ["Good text."]
    assert source.skipped == {"binary": 2, "empty": 2, "unreadable": 2, "not a regular file": 1}
    (notice,) = source.notices
    assert "skipped 2 files with bytes that no text has, such as NUL" in notice
    assert "picture.txt" in notice
    (tmp_path / "photo.jpg").write_bytes(bytes(100))
    assert len(open_text(tmp_path, glob="**/*.*").notices) == 1
    assert "photo" not in open_text(tmp_path, glob="**/*.*").notices[0]


def test_a_burst_of_control_characters_costs_no_more_than_its_piece(tmp_path):
    lines = [f"line {number} of a long log\n" for number in range(10_000)]
    lines[4000] = "\x01" * 450 + "\n"
    (tmp_path / "log.txt").write_text("".join(lines))
    source = open_text(tmp_path)
    read = sum(map(len, texts(source)))
    assert sum(map(len, lines)) - PIECE_CHARACTERS <= read < sum(map(len, lines))
    assert source.skipped == {"binary in part": 1}


def test_folders_that_vanish_while_they_are_searched_take_no_others_with_them(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").touch()
        (tmp_path / f"folder{number}").mkdir()
    found = matching_files(tmp_path, "**/*.txt")
    names = {next(found).name}
    for number in range(10):
        (tmp_path / f"folder{number}").rmdir()
    assert names | {path.name for path in found} == {f"{number}.txt" for number in range(10)}


def test_a_file_that_vanishes_while_running_is_counted(folder):
    source = open_text(folder)
    (folder / "part0" / "0.txt").unlink()
    assert len(texts(source)) == len(texts(open_text(folder)))
    assert source.skipped == {"unreadable": 1}


def test_a_file_that_is_edited_while_running_is_left_out_and_one_that_is_only_touched_is_not(folder):
    source = open_text(folder)
    first, second = sorted(folder.rglob("*.txt"))[:2]
    removed = first.read_text()
    first.write_text("What is put at its top moves what was held out.\n" + removed)
    os.utime(second, (1, 1))
    found = "".join(document.text for document, _ in source.documents(0))
    assert source.skipped["changed since it was opened"] == 1
    assert "at its top" not in found
    assert second.read_text() in found


def test_held_out_text_is_spread_and_about_a_twentieth(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.txt").write_text(f"Story number {number}.")
    source = open_text(tmp_path)
    held_out = [document.text for document in source.held_out()]
    assert 8 <= len(held_out) <= 36
    assert len(set(held_out)) == len(held_out)
    assert set(held_out) <= set(texts(source))
    assert held_out == [document.text for document in open_text(tmp_path).held_out()]


@pytest.mark.parametrize(
    ("path", "glob", "says"),
    [
        ("missing", "**/*.txt", "does not exist"),
        (".", "**/*.md", "no file that matches '**/*.md'"),
        ("void", "**/*.txt", "none of its files can be read (1 empty)"),
    ],
)
def test_a_source_that_cannot_be_used_says_what_and_where(folder, path, glob, says):
    (folder / "void").mkdir()
    (folder / "void" / "a.txt").touch()
    with pytest.raises(SourceError) as error:
        open_text(folder / path, glob=glob)
    assert "source notes: " in str(error.value)
    assert says in str(error.value)


def test_python_source_reads_the_standard_library_and_the_packages():
    source = open_source(PythonSource(type="python", label="python"), cache_dir=None, seed=1)
    files = set(source._files.values())
    assert {root for root in python_roots() if any(path.is_relative_to(root) for path in files)} == set(python_roots())
    document, position = next(source.documents(0))
    following, _ = next(source.documents(0, position))
    assert document != following
    assert "site-packages" in "".join(map(str, files))
    assert not source.notices  # its files are not the user's to change


def open_in_time(path: Path, seconds: float = 1.0, **changes) -> tuple[list[str], str]:
    """The texts of a folder and what its size says, which must not take long."""
    spec = TextSource(**{"type": "text", "path": str(path), "label": "notes", **changes})
    with CpuClock() as clock:
        source = open_source(spec, cache_dir=None, seed=1)
        found = texts(source)
    assert clock.seconds < seconds
    return sorted(found), source.size()


def test_what_is_hidden_is_read_only_where_the_pattern_says_so_and_capital_letters_are_the_same(tmp_path):
    for name in (".git/hooks/a.txt", ".env.txt", "notes/.trash/b.txt", "notes/c.TXT", ".mine/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(open_text(tmp_path)) == ["notes/c.TXT"]
    assert texts(open_text(tmp_path, glob="**/*.*")) == ["notes/c.TXT"]
    assert texts(open_text(tmp_path, glob=".mine/*.txt")) == [".mine/d.txt"]
    assert sorted(texts(open_text(tmp_path, glob="**/.*/**/*.txt"))) == [
        ".git/hooks/a.txt",
        ".mine/d.txt",
        "notes/.trash/b.txt",
    ]
    assert texts(open_text(tmp_path / ".mine")) == [".mine/d.txt"]


def test_a_link_to_the_folder_itself_is_not_entered(tmp_path):
    for name, content in (("a.txt", "text"), ("empty.txt", "")):
        (tmp_path / name).write_text(content)
    (tmp_path / "self").symlink_to(tmp_path)
    spec = TextSource(type="text", path=str(tmp_path), label="notes", follow_links=True)
    assert open_source(spec, cache_dir=None, seed=1).size().endswith("skipped: 1 empty")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_file_that_is_none_is_damaged_and_not_forbidden(tmp_path, suffix):
    (tmp_path / f"a.txt.{suffix}").write_bytes(b"no archive at all, but some text")
    with pytest.raises(SourceError, match=r"\(1 damaged\).*; add files with text in them"):
        open_text(tmp_path, glob=f"**/*.{suffix}")


def test_links_that_leave_the_folder_are_followed_only_if_the_preset_says_so(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "deep").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.txt").write_text("a key")
    (outside / "deep" / "more.txt").write_text("more keys")
    (inside / "deep" / "own.txt").write_text("mine")
    (inside / "deep" / "again.txt").symlink_to(inside / "deep" / "own.txt")
    (inside / "secret.txt").symlink_to(outside / "secret.txt")
    (inside / "up.txt").symlink_to("../outside/secret.txt")
    (inside / "folder").symlink_to(outside)
    (inside / "deep" / "loop").symlink_to(inside)
    for glob in ("**/*.txt", "*/*/*.txt", "*/*.txt", "folder/**/*.txt", "**/deep/**/*.txt", "*.txt"):
        with suppress(SourceError):
            assert set(open_in_time(inside, glob=glob)[0]) <= {"mine"}
    assert open_in_time(inside)[0] == ["mine"]
    assert "2 linked from outside" in open_in_time(inside)[1]
    assert open_in_time(inside, follow_links=True)[0] == ["a key", "mine", "more keys"]
    with pytest.raises(
        SourceError, match=r'none of its files can be read \(2 linked from outside\).*"follow_links": true'
    ):
        open_in_time(inside, glob="*.txt")
    (tmp_path / "linked").symlink_to(inside)  # the folder that was named may be a link itself
    assert open_in_time(tmp_path / "linked")[0] == ["mine"]
    assert open_in_time(inside / "secret.txt")[0] == ["a key"]


def test_sparse_files_are_read_no_further_than_needed(tmp_path):
    heads = {"zeros": b"", "utf-8": b"some text\n" * 2000, "utf-16": ("some text\n" * 2000).encode("utf-16")}
    for name, head in heads.items():
        with (tmp_path / f"{name}.txt").open("wb") as file:
            file.write(head)
            file.truncate(2**40)
    (tmp_path / "wide.txt").write_bytes(("Ein Satz auf Deutsch, länger.\n" * 400).encode("utf-16-le"))
    found, size = open_in_time(tmp_path)
    assert (len(found), "3 binary" in size) == (1, True)
    with (tmp_path / "hole.pdf").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SourceError, match=r"1 binary"):
        open_source(PDFSource(type="pdf", path=str(tmp_path), label="pdf"), cache_dir=None, seed=1)


def test_no_pattern_and_no_folder_takes_for_ever(tmp_path, monkeypatch):
    deep = tmp_path
    for number in range(60):
        deep = deep / "d"
        deep.mkdir()
        (deep / f"{number}.txt").write_text(str(number))
    for glob in ("**/" * 30 + "*.txt", "**/d/" * 20 + "**/*.txt", "**/" + "*a" * 40 + "b", "**/*/**/*/**/*/**/*.txt"):
        with suppress(SourceError):
            open_in_time(tmp_path, glob=glob)
    assert len(open_in_time(tmp_path)[0]) == 60
    for glob in ("**x", "a/**b/*.txt", "."):
        with pytest.raises(SourceError, match="is no glob pattern"):
            open_in_time(tmp_path, glob=glob)
    monkeypatch.setattr("data.sources.find.MOST_ENTRIES", 100)
    for number in range(100):
        (tmp_path / str(number)).touch()
    with pytest.raises(SourceError, match="more than 100 files and folders; name a smaller folder"):
        open_in_time(tmp_path)
    (answer,) = probe([TextSource(type="text", path=str(tmp_path), glob="*.no", label="notes")])
    assert "more than 100 files and folders" in answer.detail


@pytest.mark.parametrize(
    "pattern", ["*.txt", "**/*.txt", "**", "a/*.txt", "*/b/*", "**/b/**/*.txt", "a/**", "[ab]/?.txt"]
)
def test_patterns_mean_what_they_mean_to_pathlib(tmp_path, pattern):
    for name in ("x.txt", "a/x.txt", "a/b/x.txt", "a/b/c/x.txt", "b/y.md", "b/b/z.txt", ".hidden/x.txt", "a/.x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    meant = f"{pattern}/*" if pattern.endswith("**") else pattern  # all that is below, as from Python 3.13 on
    seen = {
        path for path in tmp_path.glob(meant) if path.is_file() and "/." not in str(path.relative_to(tmp_path.parent))
    }
    assert set(matching_files(tmp_path, pattern)) == seen
