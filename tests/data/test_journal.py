import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DiskError
from data.journal import (
    HEADER,
    ROWS,
    STATES,
    DiskFull,
    JournalReader,
    JournalWriter,
    StreamDamaged,
    read_header,
    write_atomically,
    write_header,
)
from data.packing import row_dtype
from data.stream_files import set_obstacles_aside

DTYPE = row_dtype(4, 1000)


def some_rows(first, count):
    rows = np.zeros(count, dtype=DTYPE)
    rows["tokens"] = np.arange(first, first + count)[:, None] + np.arange(5)
    rows["source"] = 7
    return rows


@pytest.fixture
def three_appends(tmp_path):
    """rows 0-1, 2-4, 5; the sizes of states.jsonl after each append."""
    writer, sizes = JournalWriter(tmp_path, DTYPE), [0]
    for first, count in ((0, 2), (2, 3), (5, 1)):
        writer.append(some_rows(first, count), {"after": first + count})
        sizes.append((tmp_path / STATES).stat().st_size)
    writer.close()
    return tmp_path, sizes


def check_continues(folder, num_rows):
    """A writer that opens `folder` finds exactly `num_rows`, and what it appends is read back in place."""
    writer = JournalWriter(folder, DTYPE)
    assert writer.num_rows == num_rows
    assert writer.state == ({"after": num_rows} if num_rows else None)
    writer.append(some_rows(num_rows, 2), {"after": num_rows + 2})
    writer.close()
    rows = JournalReader(folder, DTYPE).rows(0, num_rows + 2)
    assert rows.tobytes() == some_rows(0, num_rows + 2).tobytes()
    assert (folder / ROWS).stat().st_size == (num_rows + 2) * DTYPE.itemsize


def test_states_cut_at_any_byte_fall_back_to_the_last_whole_append(three_appends, tmp_path):
    folder, sizes = three_appends
    for cut in range(sizes[-1] + 1):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy, ignore=lambda *_: ["copy"])
        with (copy / STATES).open("r+b") as file:
            file.truncate(cut)
        check_continues(copy, [0, 2, 5, 6][max(i for i, size in enumerate(sizes) if size <= cut)])
        shutil.rmtree(copy)


def test_missing_rows_fall_back_to_an_append_that_is_whole(three_appends):
    folder, _ = three_appends
    with (folder / ROWS).open("r+b") as file:
        file.truncate(5 * DTYPE.itemsize + 3)
    check_continues(folder, 5)


def test_rows_without_their_line_and_garbage_are_cut(three_appends):
    folder, _ = three_appends
    with (folder / ROWS).open("ab") as file:
        file.write(b"half an append that was never finished")
    with (folder / STATES).open("ab") as file:
        file.write(b'{"rows": 99, "state": {}, "check": "0000000000000000"}\n')
    check_continues(folder, 6)


def test_a_damaged_line_ends_the_journal_before_it(three_appends):
    folder, _ = three_appends
    content = (folder / STATES).read_bytes()
    (folder / STATES).write_bytes(content.replace(b'"after": 5', b'"after": 4'))
    check_continues(folder, 2)


@pytest.mark.parametrize("name", [ROWS, STATES])
def test_a_bit_flipped_anywhere_is_noticed_and_cuts_the_journal_before_it(name, three_appends):
    folder, sizes = three_appends
    ends = sizes if name == STATES else [rows * DTYPE.itemsize for rows in (0, 2, 5, 6)]
    files = {path: path.read_bytes() for path in (folder / ROWS, folder / STATES)}
    for position in range(ends[-1]):
        content = bytearray(files[folder / name])
        content[position] ^= 1 << position % 8
        (folder / name).write_bytes(content)
        intact = sum(end <= position for end in ends) - 1
        num_rows = [0, 2, 5][intact]
        reader = JournalReader(folder, DTYPE)
        assert reader.rows(0, num_rows).tobytes() == some_rows(0, num_rows).tobytes()
        if name == STATES:
            assert reader.num_rows() == num_rows
        else:
            with pytest.raises(StreamDamaged, match=f"rows {num_rows} to {[2, 5, 6][intact]} are not those"):
                reader.rows(0, num_rows + 1)
        writer = JournalWriter(folder, DTYPE)
        assert (writer.num_rows, writer.damaged) == (num_rows, position < ends[-1] - 1 or name == ROWS)
        writer.close()
        for path, whole in files.items():
            assert whole.startswith(path.read_bytes())
            path.write_bytes(whole)


def test_a_zeroed_tail_is_no_rows(three_appends):
    folder, _ = three_appends
    rows = (folder / ROWS).read_bytes()
    (folder / ROWS).write_bytes(rows[: 4 * DTYPE.itemsize] + bytes(len(rows) - 4 * DTYPE.itemsize))
    with pytest.raises(StreamDamaged):
        JournalReader(folder, DTYPE).rows(0, 3)
    check_continues(folder, 2)


def test_rows_that_do_not_follow_from_those_before_them_are_cut(three_appends):
    """Another journal's, under another header, or without an append in the middle."""
    folder, _ = three_appends
    lines = (folder / STATES).read_bytes().splitlines(keepends=True)
    (folder / STATES).write_bytes(lines[0] + lines[2])
    check_continues(folder, 2)
    write_header(folder, {"format": 1})
    assert JournalReader(folder, DTYPE).num_rows() == 0
    check_continues(folder, 0)


def test_a_state_that_is_damaged_later_is_not_used(three_appends):
    folder, _ = three_appends
    reader = JournalReader(folder, DTYPE)
    assert reader.state_with(3) == {"after": 5}
    (folder / STATES).write_bytes((folder / STATES).read_bytes().replace(b'"after": 5', b'"after": 4'))
    with pytest.raises(StreamDamaged, match="states"):
        reader.state_with(3)


def test_rows_can_be_taken_back_to_the_end_of_an_append(three_appends):
    folder, _ = three_appends
    JournalReader(folder, DTYPE).cut(6)
    JournalReader(folder, DTYPE).cut(5)
    assert JournalReader(folder, DTYPE).num_rows() == 5
    check_continues(folder, 5)


@pytest.mark.parametrize("name", [ROWS, STATES])
def test_nothing_is_cut_through_a_link(three_appends, tmp_path, name, caplog):
    """A folder that somebody else made may have links to any file of this user."""
    folder, _ = three_appends
    elsewhere = (folder / name).rename(tmp_path / "elsewhere")
    content = elsewhere.read_bytes()
    (folder / name).symlink_to(elsewhere)
    write_header(folder, {"format": 1})  # another's journal, of which nothing would be left
    with pytest.raises(OSError, match="symbolic links"):
        JournalWriter(folder, DTYPE)
    set_obstacles_aside(folder)
    assert caplog.messages == [f"{folder / name} is no file: it is now {name}.bad-1"]
    assert (folder / f"{name}.bad-1").is_symlink()
    check_continues(folder, 0)
    assert elsewhere.read_bytes() == content


def test_no_append_is_taken_back_through_a_link(three_appends, tmp_path):
    folder, _ = three_appends
    elsewhere = (folder / STATES).rename(tmp_path / "elsewhere")
    content = elsewhere.read_bytes()
    (folder / STATES).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        JournalReader(folder, DTYPE).cut(2)
    assert elsewhere.read_bytes() == content


def test_a_reader_sees_appends_as_they_are_made(tmp_path):
    reader = JournalReader(tmp_path, DTYPE)
    assert reader.num_rows() == 0
    writer = JournalWriter(tmp_path, DTYPE)
    for total in (3, 5, 9):
        writer.append(some_rows(writer.num_rows, total - writer.num_rows), {})
        assert reader.num_rows() == total
        assert reader.rows(0, total).tobytes() == some_rows(0, total).tobytes()
        with pytest.raises(IndexError):
            reader.rows(1, total)
    with (tmp_path / STATES).open("ab") as file:
        file.write(b'{"rows": 11, "sta')
    assert reader.num_rows() == 9
    writer.close()


def test_a_copy_in_the_place_of_a_file_that_a_writer_has_open_is_noticed(three_appends):
    folder, _ = three_appends
    reader, states = JournalReader(folder, DTYPE), folder / STATES
    content = states.read_bytes()
    states.rename(folder / "the writer's")
    states.write_bytes(content)
    with pytest.raises(StreamDamaged, match="or was replaced"):  # else it would wait for rows for ever
        reader.num_rows()


def test_the_state_that_goes_with_a_row_is_that_of_the_append_that_brought_it(three_appends):
    reader = JournalReader(three_appends[0], DTYPE)
    assert [reader.state_with(num_rows)["after"] for num_rows in range(7)] == [2, 2, 2, 5, 5, 5, 6]
    with pytest.raises(IndexError):
        reader.state_with(7)


FULL = """
import resource, sys
from pathlib import Path
from configs.errors import DiskFull
from data.journal import JournalWriter
from tests.data.test_journal import DTYPE, some_rows
writer = JournalWriter(Path(sys.argv[1]), DTYPE)
writer.append(some_rows(0, 20), {"after": 20})
resource.setrlimit(resource.RLIMIT_FSIZE, (30 * DTYPE.itemsize, resource.RLIM_INFINITY))
try:
    writer.append(some_rows(20, 20), {"after": 40})
except DiskFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append(some_rows(20, 1), {"after": 21})
"""


def test_a_full_disk_is_said_and_leaves_the_last_append(tmp_path):
    """A limit on file sizes fails in the middle of a write just as a full disk does."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rows.bin" in done.stdout
    assert "make room" in done.stdout
    check_continues(tmp_path, 21)


def test_an_atomic_write_that_fails_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DiskFull):
            write_atomically(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]  # nothing is left to fill the disk further


def test_a_header_that_is_not_as_it_was_written_is_none(tmp_path):
    assert read_header(tmp_path) is None
    write_header(tmp_path, header := {"format": 1, "sources": [{"pinned": {"revision": "abc"}}]})
    assert read_header(tmp_path) == header
    content = (tmp_path / HEADER).read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 7
        (tmp_path / HEADER).write_bytes(damaged)
        assert read_header(tmp_path) in (None, header)  # white space may be another
    for nonsense in (b"", b"{}", b"[1]", b"\0" * 100, b"[" * 100_000):
        (tmp_path / HEADER).write_bytes(nonsense)
        assert read_header(tmp_path) is None


def test_a_file_system_that_cannot_sync_folders_is_written_to_all_the_same(tmp_path, monkeypatch):
    """As those that VirtualBox and some containers share with their host."""
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    number = errno.EINVAL
    write_atomically(tmp_path / "a.json", b"content")
    JournalWriter(tmp_path, DTYPE).append(some_rows(0, 2), {"after": 2})
    assert (tmp_path / "a.json").read_bytes() == b"content"
    number = errno.EIO
    with pytest.raises(DiskError):
        write_atomically(tmp_path / "a.json", b"other")
