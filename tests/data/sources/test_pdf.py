"""PDFs: the text comes out, and no file can stop, starve or hang the run."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.errors import DiskFull, SourceError
from configs.sources import PDFSource
from data.feed import Feed, Progress
from data.prepare import texts_of
from data.sources import pdf, pdf_page, pdf_worker
from data.sources.opening import open_source
from tests.cpu_clock import CpuClock, slowness
from tests.data.sources.reading import texts
from tests.pdfs import BODY, encrypted, flate, hostile, make_pdf, one_page, show, stream

# A child is given its limits on its command line, so lowering them here lowers them there.
# CPU seconds, in which the child also starts.
TIMES_SLOWER = math.ceil(slowness())
SMALL = pdf.Limits(
    page_seconds=2 * TIMES_SLOWER, file_seconds=3 * TIMES_SLOWER, memory_bytes=300 << 20, text_characters=2_000_000
)
HOSTILE = hostile()


def open_pdf(path: Path, cache_dir: Path | None = None):
    return open_source(PDFSource(type="pdf", path=str(path), label="papers"), cache_dir=cache_dir, seed=1)


def read(folder: Path, content: bytes) -> tuple[str, dict[str, int]]:
    """All the text of one PDF, and what was left out."""
    (folder / "a.pdf").write_bytes(content)
    source = open_pdf(folder)
    return "".join(texts(source)), dict(source.skipped)


def cleaned(*pages: str) -> str:
    """The pages as one text, as if a child had written them."""
    lines = tempfile.TemporaryFile()  # noqa: SIM115 (closed by whoever reads it)
    for page in pages:
        lines.write(json.dumps(pdf_page.tidy(page)).encode() + b"\n")
    lines.seek(0)
    return "".join(pdf.documents(lines, Counter()))


def book(title: str, num_pages: int) -> bytes:
    half = "\n".join([BODY] * 30)
    return make_pdf([f"{title}\n{half}\nThis is page {page} of {title}.\n{half}" for page in range(num_pages)])


# ---------------------------------------------------------------- what the text is like


def test_pages_are_cleaned_and_joined(tmp_path):
    words = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon"]
    pages = [
        f"A Journal of Things\n{word} begins and its sen-\ntence goes on.\nIt ends, says {word}.\n{number}"
        for number, word in enumerate(words, start=1)
    ]
    (tmp_path / "PAPER.PDF").write_bytes(make_pdf(pages))
    (text,) = texts(open_pdf(tmp_path))
    assert text == "\n".join(f"{word} begins and its sentence goes on.\nIt ends, says {word}." for word in words)


def test_ligatures_are_spelled_out_and_nothing_else_is_changed():
    assert cleaned("The e\ufb03cient \ufb02ow of x² ½") == "The efficient flow of x² ½"


def test_a_hyphen_at_a_line_end_stays_only_where_it_belongs_to_the_word():
    first = "It is a well-\nknown com-\nputer, cooper\u00ad\nated on by the Anglo-\nSaxon state-of-the-\nart TEAM-\nWORK; in-"
    second = "side 3-\n4 it is Well-Known and the-art too"
    assert cleaned(first, second) == (
        "It is a well-known computer, cooperated on by the Anglo-Saxon state-of-the-art TEAMWORK; inside 3-\n4 "
        "it is Well-Known and the-art too"
    )


@pytest.mark.parametrize(
    "header",
    [
        lambda number: f"Preface {['i', 'ii', 'iii', 'iv', 'v', 'vi'][number]}",
        lambda number: f"{number} The Author" if number % 2 else f"The Book {number}",
        lambda number: f"Chapter {number // 3}\nSection {number}",
    ],
    ids=["roman numbers", "left and right pages", "two lines"],
)
def test_running_headers_and_footers_are_dropped(header):
    bodies = [
        f"{word} is the subject here.\nMore on {word} follows."
        for word in ["Ash", "Birch", "Cedar", "Date", "Elm", "Fir"]
    ]
    assert cleaned(*(f"{header(number)}\n{body}" for number, body in enumerate(bodies))) == "\n".join(bodies)
    assert cleaned(*(f"{body}\n{header(number)}" for number, body in enumerate(bodies))) == "\n".join(bodies)


def in_letters(number: int) -> str:
    return "".join("abcdefghjk"[int(digit)] for digit in str(number))


def test_a_line_that_repeats_far_apart_is_no_header():
    names = [in_letters(number) for number in range(64)]
    pages = [f"Of {name}\nis told in {name}\nhow {name} ended\nwith {name}" for name in names]
    pages[10::9] = [f"{page}\n}}" for page in pages[10::9]]
    assert cleaned(*pages) == "\n".join(pages)


def test_ten_thousand_pages_are_cleaned_in_a_moment():
    names = [in_letters(number) for number in range(10_000)]
    bodies = [f"Of {name}\n" + f"{BODY}\n" * 8 + f"is told in {name}" for name in names]
    with CpuClock() as clock:
        text = cleaned(*(f"The Book {number}\n{body}\n{number}" for number, body in enumerate(bodies)))
    assert clock.seconds < 10
    assert text.replace("\n", "") == "".join(bodies).replace("\n", "")  # no end of line is between two documents


@pytest.mark.parametrize("unit", ["-\n", "a-\n", "-", " ", "\n", "a", "a-", "i", "1", "\u0301", "x "])
def test_the_time_a_page_takes_grows_with_its_length_alone(unit):
    with CpuClock() as clock:
        cleaned(unit * (300_000 // len(unit)))
    assert clock.seconds < 3


def test_pages_without_text_are_said_to_need_ocr(tmp_path):
    text, skipped = read(tmp_path, make_pdf([BODY, "", "7"]))
    assert text == BODY
    assert skipped == {"page without text (a scan? needs OCR)": 2}


# ---------------------------------------------------------------- limits

# What becomes of each kind; of all others, the good pages are kept and the bad one is counted or has text.
DAMAGED, BAD_PAGE, NO_TEXT = "damaged PDF", "page cannot be read", "page without text (a scan? needs OCR)"
REASONS = {
    "zero_bytes": "empty",
    "not_a_pdf": "not a PDF",
    "zeros": "not a PDF",
    "password": "needs a password",
    "fifty_thousand_pages": "PDF took too long",
    **dict.fromkeys(["control_characters_page", "letters_page", "flate_bomb_page", "huge_content_page"], BAD_PAGE),
    **dict.fromkeys(["flate_bomb_in_a_bomb_page", "a_hundred_filters_page", "damaged_lzw_page"], BAD_PAGE),
    **dict.fromkeys(["cyclic_pages", "pages_in_a_ring"], BAD_PAGE),
    **dict.fromkeys(["header_only", "noise", "no_pages", "no_root", "no_page_tree"], DAMAGED),
    **dict.fromkeys(["objects_in_a_ring", "object_is_itself"], DAMAGED),
    **dict.fromkeys(["nested_objects", "nested_dictionaries", "unknown_encryption"], DAMAGED),
    **dict.fromkeys([f"truncated_{tenth}" for tenth in range(1, 10)], DAMAGED),
    **dict.fromkeys(["scan", "spaces_page", "form_loop_page"], NO_TEXT),
}
READABLE = {"empty_password", "invalid_utf16_names", "xref_loop", "xref_stream_loop", "truncated_10", "hyphens_page"}


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory) -> Path:
    """Every kind, two good files, and what no PDF is; all of them under names that are no text."""
    folder = tmp_path_factory.mktemp("hostile")
    for kind, content in HOSTILE.items():
        (folder / f"{kind}.pdf").write_bytes(content)
    for title in ("one", "two"):
        Path(os.fsdecode(bytes(folder / title) + b"\xff\xfe\xd8.pdf")).write_bytes(book(title, 5))
    os.mkfifo(folder / "fifo.pdf")
    (folder / "folder.pdf").mkdir()
    (folder / "folder.pdf" / "loop").symlink_to(folder)
    (folder / "self.pdf").symlink_to(folder / "self.pdf")
    (folder / "ring.pdf").symlink_to(folder / "ring2.pdf")
    (folder / "ring2.pdf").symlink_to(folder / "ring.pdf")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_each_hostile_file_ends_within_its_limits_and_is_counted(kind, hostile_folder, cache, monkeypatch):
    monkeypatch.setattr(pdf, "LIMITS", SMALL)
    began = children_seconds()
    if REASONS.get(kind) == "empty":
        with pytest.raises(SourceError, match="1 empty"):
            open_pdf(hostile_folder / f"{kind}.pdf")
        return
    source = open_pdf(hostile_folder / f"{kind}.pdf", cache)
    text = "".join(texts(source))
    # The kernel samples for its limit who is running, and on a busy machine missed up to half (5.5 s of 3).
    assert children_seconds() - began < 2 * SMALL.file_seconds + 1.5
    if kind in REASONS:
        assert REASONS[kind] in source.skipped
    if kind in READABLE:
        assert not source.skipped
    if kind.endswith("_page"):
        assert text.startswith(BODY)
        assert text.endswith(BODY)
    assert text or source.skipped


def feed(folder: Path, cache: Path, progress: Progress | None = None) -> Feed:
    """Two epochs of a folder, as a producer reads them."""
    source, spec = open_pdf(folder, cache), SimpleNamespace(label="papers", repeat=2, max_documents=None)
    if progress is None:
        deque(source.held_out(), maxlen=0)  # a new run has read them before, a resumed one has not
    return Feed(spec, lambda: source, texts_of, lambda _: None, seed=1, progress=progress)


def rest(feed: Feed) -> list[str | None]:
    return [feed.next_document() for _ in iter(lambda: feed.finished, True)]


def check_resuming(folder: Path, cache: Path, documents: list[str | None], end: Progress, done: int) -> None:
    """After `done` documents the run is broken off: a new one gives the others and ends with the same counts."""
    first = feed(folder, cache)
    for _ in range(done):
        first.next_document()
    resumed = feed(folder, cache, Progress(**json.loads(json.dumps(asdict(first.progress)))))
    assert rest(resumed) == documents[done:]
    assert resumed.progress == end


@pytest.mark.slow
def test_the_run_goes_on_and_a_resumed_one_skips_the_same(hostile_folder, cache, monkeypatch):
    monkeypatch.setattr(pdf, "LIMITS", SMALL)
    whole = feed(hostile_folder, cache)
    documents = rest(whole)
    for title in ("one", "two"):
        assert any(f"This is page 4 of {title}." in (text or "") for text in documents)
    skipped = whole.progress.skipped
    index = {"not a regular file": 1, "empty": 1, "unreadable": 3}  # the FIFO, the empty file, three links to nothing
    assert {reason: skipped[reason] for reason in index} == index
    assert skipped[DAMAGED] >= 15
    assert skipped["PDF took too long"] >= 1

    monkeypatch.setattr(subprocess, "Popen", None)  # from here on nothing may be extracted
    for done in range(0, len(documents), len(documents) // 4):
        check_resuming(hostile_folder, cache, documents, whole.progress, done)


def test_a_run_resumed_anywhere_counts_the_same(tmp_path):
    files = {"book": make_pdf([BODY, ""]), "scan": make_pdf([""]), "locked": encrypted(make_pdf([BODY]), "secret")}
    long = [f"{word}\n" + "\n".join([f"{BODY} {word}"] * 250) for word in ("ash", "elm", "fir")]
    files["long"] = make_pdf(
        [long[0], "", long[1], stream(b"41>", b"/Filter[%s]" % (b"/ASCIIHexDecode" * 100)), long[2]]
    )
    (tmp_path / "pdf").mkdir()
    for name, content in files.items():
        (tmp_path / "pdf" / f"{name}.pdf").write_bytes(content)
    whole = feed(tmp_path / "pdf", tmp_path / "cache")
    documents = rest(whole)
    assert len(documents) == 2 * 5  # four documents and the end of each epoch
    assert whole.progress.skipped == {NO_TEXT: 3, BAD_PAGE: 1, "needs a password": 1}
    for done in range(len(documents)):
        check_resuming(tmp_path / "pdf", tmp_path / "cache", documents, whole.progress, done)


def test_a_page_that_takes_too_long_is_lost_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "LIMITS", SMALL)
    slow = stream(b"BT /F1 12 Tf " + b"(words ) Tj " * 300_000 * TIMES_SLOWER + b"ET")
    assert read(tmp_path, one_page(slow)) == (f"{BODY}\n{BODY}", {BAD_PAGE: 1})


@pytest.mark.slow
def test_a_page_that_needs_too_much_memory_is_lost_alone(tmp_path, monkeypatch):
    patient = SMALL._replace(page_seconds=40, file_seconds=80)
    hungry = one_page(flate(b"BT /F1 12 Tf " + b"(xyz ) Tj " * 100_000 + b"ET"))
    monkeypatch.setattr(pdf, "LIMITS", patient)
    text, skipped = read(tmp_path, hungry)
    assert (text.count("xyz"), skipped) == (100_000, {})
    monkeypatch.setattr(pdf, "LIMITS", patient._replace(memory_bytes=120 << 20))
    assert read(tmp_path, hungry) == (f"{BODY}\n{BODY}", {BAD_PAGE: 1})


def test_pages_before_the_end_of_the_time_or_of_the_text_are_kept(tmp_path, monkeypatch):
    pages = [flate(show(*[f"{BODY} Line {line} of page {page}." for line in range(200)])) for page in range(200)]
    monkeypatch.setattr(pdf, "LIMITS", SMALL._replace(file_seconds=TIMES_SLOWER))
    text, skipped = read(tmp_path, make_pdf(pages))
    assert "of page 0." in text
    assert "of page 199." not in text
    assert skipped == {"PDF took too long": 1}
    monkeypatch.setattr(pdf, "LIMITS", SMALL._replace(text_characters=25_000))
    text, skipped = read(tmp_path, make_pdf(pages[:5]))
    assert "of page 1." in text
    assert "of page 2." not in text
    assert skipped == {"PDF has too much text": 1}


@pytest.fixture
def child_that(monkeypatch):
    """`child_that(script)`: in place of a reading child, sh runs the script; "$0" "$@" is the child's command."""
    start = subprocess.Popen

    def replace(script: str, patience_seconds: float = 60) -> None:
        monkeypatch.setattr(pdf, "LIMITS", SMALL._replace(patience_seconds=patience_seconds))
        monkeypatch.setattr(subprocess, "Popen", lambda command, **keys: start(["sh", "-c", script, *command], **keys))

    return replace


@pytest.mark.parametrize(
    ("death", "patience_seconds", "reason"),
    [("exec sleep 600", 5, "PDF took too long"), ("kill -SEGV $$", 60, "PDF crashed its reader")],
)
@pytest.mark.slow
def test_a_child_that_hangs_or_dies_keeps_its_pages_also_in_the_cache(
    tmp_path, child_that, death, patience_seconds, reason
):
    (tmp_path / "a.pdf").write_bytes(make_pdf([BODY]))
    child_that(f"echo '\"{BODY}\"'; printf '\"cut o'; {death}", patience_seconds)
    for _ in range(2):
        source = open_pdf(tmp_path, tmp_path / "cache")
        assert texts(source) == [BODY]
        assert source.skipped == {reason: 1}
        child_that("exit 1")


FORK_IS_KILLED = """
import json, os, signal, sys
from data.sources import pdf_worker
pdf_worker.page_text = lambda page: os.kill(os.getpid(), signal.SIGKILL)
pdf_worker.main(sys.argv[1], json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "killed",
    [
        f"echo '\"{BODY}\"'; printf '\"cut o'; kill -KILL $$",
        "kill -TERM $$",
        f'exec "$0" -c \'{FORK_IS_KILLED}\' "$3" "$4"',
    ],
    ids=["SIGKILL", "SIGTERM", "SIGKILL of the fork"],
)
def test_a_child_that_others_end_is_started_again_and_costs_no_text(tmp_path, child_that, monkeypatch, killed):
    (tmp_path / "a.pdf").write_bytes(make_pdf([BODY]))
    source = open_pdf(tmp_path, tmp_path / "cache")
    child_that(killed)
    with pytest.raises(MemoryError):  # the data process is started again: other text would be trained on
        texts(source)
    assert (source.skipped, list((tmp_path / "cache").iterdir())) == ({}, [])
    child_that(f'if mkdir {tmp_path}/1 || mkdir {tmp_path}/2; then {killed}; fi; exec "$0" "$@"')
    assert texts(source) == [BODY]
    assert source.skipped == {}
    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert texts(open_pdf(tmp_path, tmp_path / "cache")) == [BODY]


def test_no_page_comes_twice_if_pdfium_cannot_open_the_file_again(tmp_path, monkeypatch):
    """PDFium leaves the second page to pypdf, and ends when it is to go on behind that one."""
    forks = iter([[3, f"{BODY} One.", ""], []])
    monkeypatch.setattr(pdf_worker, "pdfium_pages", lambda *_: iter(next(forks)))
    (tmp_path / "a.pdf").write_bytes(make_pdf([f"{BODY} {word}." for word in ("One", "Two", "Three")]))
    with (tmp_path / "a.pdf").open("rb") as file:
        found = list(pdf_worker.read_pages(file, SMALL._asdict()))
    assert found == [f"{BODY} {word}." for word in ("One", "Two", "Three")]


USES_UP_ITS_TIME = """
import time
from data.sources.pdf_worker import limit_time
while time.process_time() < 2.5:
    pass
limit_time(1)  # forks may have left it less than it has used
while time.process_time() < 30:
    pass
"""


@pytest.mark.slow
def test_time_that_a_pdf_uses_up_is_not_taken_for_an_end_by_others():
    assert subprocess.run([sys.executable, "-c", USES_UP_ITS_TIME]).returncode == -signal.SIGXCPU


def test_a_file_that_is_gone_is_unreadable_and_comes_back(tmp_path):
    (tmp_path / "a.pdf").write_bytes(make_pdf([BODY]))
    source = open_pdf(tmp_path, tmp_path / "cache")
    (tmp_path / "a.pdf").rename(tmp_path / "b.pdf")
    assert texts(source) == []
    assert source.skipped == {"unreadable": 1}
    assert texts(open_pdf(tmp_path, tmp_path / "cache")) == [BODY]


def test_a_full_disk_is_not_the_pdfs_fault(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(make_pdf([BODY]))
    source = open_pdf(tmp_path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "w+b", buffering=0))  # noqa: SIM115
        with pytest.raises(DiskFull, match=r"(?s)cache.*make room"):
            texts(source)
    assert source.skipped == {}
    assert texts(open_pdf(tmp_path, tmp_path / "cache")) == [BODY]


# ---------------------------------------------------------------- cache, cores, resuming


def test_extracted_text_is_cached_and_used_again(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf([f"{BODY} Number {number}.", ""]))
    first = open_pdf(tmp_path, tmp_path / "cache")
    whole = texts(first)
    (tmp_path / "3.pdf").rename(tmp_path / "renamed.pdf")
    monkeypatch.setattr(subprocess, "Popen", None)  # from here on nothing may be extracted
    again = open_pdf(tmp_path, tmp_path / "cache")
    assert len(whole) == 4
    assert texts(again) == whole
    assert again.skipped == first.skipped == {NO_TEXT: 4}


def test_a_pdf_that_changes_while_running_is_left_out_and_its_text_not_kept_for_the_one_before(tmp_path):
    content = {name: make_pdf([f"{BODY} {name}."]) for name in ("one", "two", "other")}
    for name in ("one", "two"):
        (tmp_path / f"{name}.pdf").write_bytes(content[name])
    source = open_pdf(tmp_path, tmp_path / "cache")
    (tmp_path / "one.pdf").write_bytes(content["other"])
    os.utime(tmp_path / "two.pdf", (1, 1))  # only touched
    assert [text.split()[-1] for text in texts(source)] == ["two."]
    assert source.skipped == {"changed since it was opened": 1}
    (tmp_path / "one.pdf").write_bytes(content["one"])
    again = open_pdf(tmp_path, tmp_path / "cache")
    assert {text.split()[-1] for text in texts(again)} == {"one.", "two."}


def test_a_cache_written_in_part_or_damaged_is_written_again(tmp_path):
    (tmp_path / "a.pdf").write_bytes(book("one", 3))
    whole = texts(open_pdf(tmp_path, tmp_path / "cache"))
    (cached,) = (tmp_path / "cache").iterdir()
    content, middle = cached.read_bytes(), cached.stat().st_size // 2
    damaged = [content[:size] for size in (0, 1, middle, len(content) - 1)]
    damaged += [content[:middle] + bytes(1000) + content[middle + 1000 :]]
    damaged += [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (0, middle, len(content) - 3)]
    damaged += [b"".join(content.splitlines(keepends=True)[1:])]
    for each in damaged:
        cached.write_bytes(each)
        assert texts(open_pdf(tmp_path, tmp_path / "cache")) == whole
        assert cached.read_bytes() == content


def test_all_cores_work_ahead_while_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "AHEAD", 6)
    for number in range(10):
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf([f"{BODY} Number {number}."]))
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **keys: started.append(start(*given, **keys)) or started[-1]
    )
    source = open_pdf(tmp_path)
    documents = source.documents(0)
    next(documents)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (len(started) < 6 or any(child.poll() is None for child in started)):
        time.sleep(0.05)
    assert len(started) == 6  # of ten, though only one was asked for
    assert all(child.returncode == 0 for child in started)
    assert len(list(documents)) == 9


def test_children_do_not_outlive_the_reader(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf([f"{BODY} Number {number}."]))
    source = open_pdf(tmp_path)
    first = str(source._files[source.order(0)[0][1]])
    started = []
    start = subprocess.Popen

    def start_and_hang(command: list[str], **keys) -> subprocess.Popen:
        started.append(start(command if first in command else ["sleep", "60"], **keys))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start_and_hang)
    documents = source.documents(0)
    began = time.monotonic()
    next(documents)
    while len(started) < 2:
        time.sleep(0.01)
    documents.close()
    assert time.monotonic() - began < 40
    assert all(child.poll() is not None for child in started)


def test_a_killed_child_takes_its_fork_with_it(tmp_path):
    long = flate(b"BT /F1 12 Tf " + b"(a word ) Tj " * 50_000 + b"ET")
    (tmp_path / "a.pdf").write_bytes(make_pdf([BODY, *[long] * 500]))
    limits = json.dumps(SMALL._replace(memory_bytes=1 << 30)._asdict())
    command = [sys.executable, "-m", "data.sources.pdf_worker", str(tmp_path / "a.pdf"), limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == f'"{BODY}"\n'.encode()
        child.kill()
        child.communicate(timeout=600)  # returns when the last process that could write there has ended


def test_resuming_continues_inside_a_file(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.pdf").write_bytes(book(str(number), 20))
    cache = tmp_path / "cache"
    whole = list(open_pdf(tmp_path, cache).documents(0))
    assert len(whole) >= 6
    for done, (_, position) in enumerate(whole, start=1):
        assert list(open_pdf(tmp_path, cache).documents(0, position)) == whole[done:]


def test_encrypted_files_are_read_if_their_password_is_empty(tmp_path):
    assert read(tmp_path, encrypted(make_pdf([BODY]), "")) == (BODY, {})
    assert read(tmp_path, encrypted(make_pdf([BODY]), "secret")) == ("", {"needs a password": 1})


def test_folders_are_read_with_all_below_them(tmp_path):
    for place in ("top.pdf", "a/middle.PDF", "a/b/c/deep.Pdf"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(make_pdf([f"{BODY} {place}"]))
    assert {text.split()[-1] for text in texts(open_pdf(tmp_path))} == {"top.pdf", "a/middle.PDF", "a/b/c/deep.Pdf"}


def test_a_folder_without_pdfs_says_so(tmp_path):
    with pytest.raises(SourceError, match="holds no file that matches"):
        open_pdf(tmp_path)
