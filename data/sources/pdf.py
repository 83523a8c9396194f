"""Extracts text from PDFs, which are untrusted: a child process reads each file.

    PDFSource -> Extraction (one a file, as many at once as cores) -> data/sources/pdf_worker.py
              -> JSON lines -> documents: consecutive pages, no running headers, whole words

A child bounds the time and memory that reading may take. Its output is cached in `cache_dir` under
the file's content digest, also if the file made it crash: a resumed run gets the same pages and the
same reasons, and no file is read twice. A child that others end, such as the kernel where memory is
short, is started again; in the end the data process is, but no text is lost. Only one page is held
in memory. No images are read: a page with almost no text is counted as a possible scan.
"""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple
from zlib import crc32

from configs import schema
from data.files import open_file, room_on_disk, write_atomically
from data.limited_process import ATTEMPTS, OF_OTHERS
from data.sources.base import PIECE_CHARACTERS
from data.sources.find import PDFS, find_files, folder_to_stay_in
from data.sources.text import MODIFIED, FileSource, split


class Limits(NamedTuple):
    """Limits of one child. A page that exceeds one is lost; a file keeps the pages before."""

    page_seconds: float = 20  # of CPU time
    file_seconds: int = 120  # of CPU time
    # Of real time, for a file that hangs without working; long, as training takes the cores first.
    patience_seconds: float = 600
    memory_bytes: int = 1 << 30  # of address space
    page_characters: int = 1_000_000
    text_characters: int = 20_000_000


LIMITS = Limits()
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
# Files extracted before they are needed: more than cores, as one may take long, but each is an open file.
AHEAD = min(4 * CORES, 64)
MIN_PAGE_CHARACTERS = 20
RULES_VERSION = 5  # part of the cache's file names: change it with a child's output or a cache's form
MARGIN_LINES = 2  # lines at the top and at the bottom of a page that may be a running header or footer
LONGEST_HEADER = 200  # characters
MOST_COMPOUNDS = 100_000  # words with a hyphen remembered per file

_WRITING = Lock()  # two sources may have a file in common
NO_TEXT = "page without text (a scan? needs OCR)"

_NUMBER = re.compile(r"\d+|\b[ivxl]+\b", re.IGNORECASE)  # page numbers are Arabic or Roman
_COMPOUND = re.compile(r"\b([^\W\d_]{1,40})-(?=([^\W\d_]{1,40}))")
_BROKEN = re.compile(r"\b([^\W\d_]{1,40})([-\u00ad\u2010])\n([^\W\d_]{1,40})")


class PDFSource(FileSource):
    """The PDFs of a folder. Upcoming files are extracted ahead, on all cores."""

    noun = "PDFs"
    is_text = False

    def __init__(self, spec: schema.PDFSource, *, cache_dir: Path | None, seed: int, pinned: dict | None = None):
        files = find_files(spec, PDFS, for_others='read them with "type": "text"')
        super().__init__(spec.label, files, seed=seed, pinned=pinned, inside=folder_to_stay_in(spec))
        self.cache_dir = cache_dir
        self.text_bytes = None  # a file's size says little about its text

    def read_ahead(
        self, order: list[tuple[str, str]], skipped: Counter[str]
    ) -> Iterator[tuple[str, str, Iterator[str]]]:
        upcoming = iter(order)
        waiting: deque[tuple[str, str, Extraction]] = deque()
        with ThreadPoolExecutor(CORES) as pool:
            try:
                while True:
                    for key, digest in islice(upcoming, AHEAD - len(waiting)):
                        is_changed = partial(self._is_changed, digest)
                        extraction = Extraction(self._files[digest], digest, is_changed, self.cache_dir, pool)
                        waiting.append((key, digest, extraction))
                    if not waiting:
                        return
                    lines = waiting[0][2].result()
                    key, digest, _ = waiting.popleft()
                    yield key, digest, documents(lines, skipped)
            finally:
                for _, _, extraction in waiting:
                    extraction.cancel()


class Extraction:
    """The extraction of one PDF by a child process, for which a thread of the pool waits. What is read of a file that
    `is_changed` is not used: what was held out of it may be anywhere in it now."""

    def __init__(
        self,
        path: Path,
        digest: str,
        is_changed: Callable[[], bool],
        cache_dir: Path | None,
        pool: ThreadPoolExecutor,
    ):
        self.path, self.is_changed, self.cache_dir = path, is_changed, cache_dir
        self._cache = cache_dir / f"{digest}-{RULES_VERSION}.jsonl" if cache_dir else None
        self._child: subprocess.Popen | None = None
        self._cancelled = False
        self._output = pool.submit(self._run)

    def result(self) -> BinaryIO:
        """Return the child's lines, the last of which has the problem. Raises DiskFull and MemoryError, no PDF errors."""
        where = self.cache_dir or Path(tempfile.gettempdir())
        with room_on_disk(where):
            output = self._output.result()
        if self._cache:
            output.seek(0)
            content = output.read()
            with _WRITING:
                write_atomically(self._cache, content + last_line(crc32(content)))
        return output

    def cancel(self) -> None:
        self._cancelled = True
        self._output.cancel()
        if self._child is not None:
            self._child.kill()

    def _run(self) -> BinaryIO:
        if self._cache and is_whole(self._cache):
            cache, self._cache = self._cache, None  # it need not be written
            return cache.open("rb")
        if self.cache_dir:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            output = tempfile.TemporaryFile(dir=self.cache_dir)  # noqa: SIM115 (the reader closes it)
            status = self._run_child(output)
            if self._cancelled or status not in (*OF_OTHERS, os.EX_TEMPFAIL):
                break
        else:
            raise MemoryError
        if status == os.EX_IOERR:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reasons = {0: "", -signal.SIGXCPU: "PDF took too long", os.EX_NOINPUT: "unreadable"}
        problem = reasons.get(status, "PDF crashed its reader")
        if status != os.EX_NOINPUT and self._has_changed():
            output.truncate(0)
            problem = MODIFIED
        if problem in (reasons[os.EX_NOINPUT], MODIFIED):
            self._cache = None  # not cached, as the file may be back later
        if problem:
            end_for_child(output, problem)
        return output

    def _has_changed(self) -> bool:
        try:
            return self.is_changed()
        except OSError:
            return True

    def _run_child(self, output: BinaryIO) -> int:
        """Return the child's exit code. One that hangs counts as ended by SIGXCPU too."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "data.sources.pdf_worker", str(self.path.absolute()), json.dumps(LIMITS._asdict())],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=output,  # a file, not a pipe: the child never blocks
            stderr=subprocess.DEVNULL,
        )
        if self._cancelled:  # before there was a child to kill
            self._child.kill()
        try:
            return self._child.wait(LIMITS.patience_seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            return -signal.SIGXCPU


def end_for_child(output: BinaryIO, problem: str) -> None:
    """Cut the line in which a child was killed, and write the child's last line for it."""
    output.seek(0)
    size = sum(len(line) for line in output if line.endswith(b"\n"))
    output.truncate(size)
    output.seek(size)
    output.write(json.dumps({"problem": problem}).encode() + b"\n")


def last_line(digest: int) -> bytes:
    """Return the last line of a cache, the CRC-32 of those before it."""
    return json.dumps({"crc32": digest}).encode() + b"\n"


def is_whole(cache: Path) -> bool:
    """Return whether the file exists and is as it was written."""
    digest, last = 0, b""
    try:
        with open_file(cache) as file:
            for line in file:
                digest, last = crc32(last, digest), line
    except OSError:
        return False
    return last == last_line(digest)


def documents(lines: BinaryIO, skipped: Counter[str]) -> Iterator[str]:
    """Yield consecutive pages as documents of at most PIECE_CHARACTERS; count those `skipped`.

    The lines are read twice, since repetitions in a file are known only at its end.
    """
    with lines:
        running, compounds = survey(pages(lines, Counter()))
        buffer = ""
        for page in pages(lines, skipped):
            page = without_running_lines(page, running).strip()
            if len(page) < MIN_PAGE_CHARACTERS:
                skipped[NO_TEXT] += 1
                continue
            if buffer and len(buffer) + len(page) > PIECE_CHARACTERS:
                yield from split(io.StringIO(join_words(buffer, compounds)))
                buffer = ""
            buffer += ("\n" if buffer else "") + page
        yield from split(io.StringIO(join_words(buffer, compounds)))


def pages(lines: BinaryIO, skipped: Counter[str]) -> Iterator[str]:
    """Yield the pages that can be read, from the first on."""
    lines.seek(0)
    for line in lines:
        value = json.loads(line)
        if isinstance(value, dict):
            if problem := value.get("problem"):
                skipped[problem] += 1
        elif value is None:
            skipped["page cannot be read"] += 1
        else:
            yield value


def survey(pages: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return what repeats: shapes of running headers and footers, and words with a hyphen.

    A header is a margin line that, numbers aside, occurs in the margins of three pages, each at
    most two pages after the one before: chapters are short, and left and right pages may differ.
    Code repeats a "}" there by chance, but not on pages so close together.
    """
    last_page: dict[str, int] = {}
    near: Counter[str] = Counter()
    compounds: set[str] = set()
    for number, page in enumerate(pages):
        for line in set(map(shape, margins(page))):
            near[line] += number - last_page.get(line, number - 3) <= 2
            last_page[line] = number
        if len(compounds) < MOST_COMPOUNDS:
            compounds.update(f"{left}-{right}".casefold() for left, right in _COMPOUND.findall(page))
    return {line for line, times in near.items() if times >= 2}, compounds


def margins(page: str) -> Iterator[str]:
    """Yield the first and the last MARGIN_LINES lines."""
    yield from page.split("\n", MARGIN_LINES)[:MARGIN_LINES]
    yield from page.rsplit("\n", MARGIN_LINES)[-MARGIN_LINES:]


def shape(line: str) -> str:
    """Return the line with # for numbers; of a long line, which is no header, the beginning."""
    line = line.strip()
    return _NUMBER.sub("#", line) if len(line) <= LONGEST_HEADER else line[: LONGEST_HEADER + 1]


def without_running_lines(page: str, running: set[str]) -> str:
    for _ in range(MARGIN_LINES):
        first, _, rest = page.partition("\n")
        page = rest if shape(first) in running else page
    for _ in range(MARGIN_LINES):
        rest, _, last = page.rpartition("\n")
        page = rest if shape(last) in running else page
    return page


def join_words(text: str, compounds: set[str]) -> str:
    """Join words that are broken at a line end.

    A hyphen stays if the file has the word with one elsewhere ("well-known"), or before a capital
    ("Anglo-Saxon").
    """

    def join(match: re.Match) -> str:
        left, hyphen, right = match.groups()
        own = hyphen != "\u00ad" and (
            f"{left}-{right}".casefold() in compounds or (right[0].isupper() and not left.isupper())
        )
        return left + hyphen * own + right

    return _BROKEN.sub(join, text)
