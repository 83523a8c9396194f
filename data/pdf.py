"""Text out of PDFs. A PDF is untrusted and pypdf can be slow or hungry, so each file is read by a child process.

`python -m data.pdf FILE` writes one JSON value a page to stdout, at once, so that what was read before a child is
killed survives: a string, or null for a page that failed. Limits: PAGE_SECONDS, FILE_SECONDS, MEMORY_BYTES of address
space, TEXT_CHARACTERS. macOS may refuse the memory limit; then the time limits are the only ones.

The parent keeps as many children busy ahead as there are cores, cleans the pages (`clean`), caches them in `cache_dir`
under the file's content digest, and makes documents of consecutive pages. No images are read: a scanned page has no
text and is counted as "scan, needs OCR".
"""

import contextlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from data.sources import PIECE_CHARACTERS, FileSource, find_files, split

PAGE_SECONDS = 20
FILE_SECONDS = 120
MEMORY_BYTES = 1 << 30
TEXT_CHARACTERS = 20_000_000
MIN_PAGE_CHARACTERS = 20  # a page with less is a scan or a blank
RULES_VERSION = 1  # part of the cache's file names: change it with what `extract` or `clean` produce
MARGIN_LINES = 2  # lines at the top and at the bottom of a page that may be a running header or footer

_LIGATURES = re.compile("[\ufb00-\ufb06\u0132\u0133\u01c7-\u01cc\u01f1-\u01f3]")
_HYPHENATED = re.compile(r"([^\W\d_])[-\u00ad\u2010]\n([^\W\d_])")


class PDFSource(FileSource):
    """The PDFs of a folder. The files that come next are extracted ahead, a few at a time."""

    noun = "PDFs"

    def __init__(self, spec, *, cache_dir: Path | None, seed: int, pinned: dict | None = None):
        super().__init__(spec.label, find_files(spec.label, spec.path, "**/*.[pP][dD][fF]"), seed=seed, pinned=pinned)
        self.cache_dir = cache_dir

    def read_ahead(self, order: list[tuple[str, str]]) -> Iterator[tuple[str, str, Iterator[str]]]:
        upcoming = (Extraction(self._files[digest], self.cache_dir, key, digest) for key, digest in order)
        waiting = deque(islice(upcoming, os.cpu_count() or 1))
        try:
            while waiting:
                pages, skipped = waiting[0].result()
                extraction = waiting.popleft()
                waiting.extend(islice(upcoming, 1))
                for reason, number in skipped.items():
                    self._skip(f"{extraction.digest} {reason}", reason, number)
                yield extraction.key, extraction.digest, join_pages(pages)
        finally:
            for extraction in waiting:
                extraction.cancel()


class Extracted(NamedTuple):
    """The clean pages of one PDF, and what is not among them, by reason. Cached as JSON."""

    pages: list[str]
    skipped: dict[str, int]


class Extraction:
    """One PDF on its way to text: its child is started here and waited for in `result`."""

    def __init__(self, path: Path, cache_dir: Path | None, key: str, digest: str):
        self.key, self.digest = key, digest
        self._cached = cache_dir / f"{digest}-{RULES_VERSION}.json" if cache_dir else None
        self._child = None
        if self._cached and self._cached.exists():
            return
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `result`)
        self._deadline = time.monotonic() + FILE_SECONDS
        self._child = subprocess.Popen(
            [sys.executable, "-m", "data.pdf", str(path.absolute())],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=self._output,  # a file and not a pipe: the child never waits for the parent
            stderr=subprocess.DEVNULL,
        )

    def result(self) -> Extracted:
        """Blocks until the text is there or the file's time is over. Never raises for what is in the file."""
        if self._child is None:
            return Extracted(*json.loads(self._cached.read_text("utf-8")))
        try:
            status = self._child.wait(max(0, self._deadline - time.monotonic()))
            problem = None if status == 0 else "crashed the PDF reader"
        except subprocess.TimeoutExpired:
            problem = "file took too long"
        self.cancel()
        self._output.seek(0)
        with self._output:
            extracted = collect(self._output, problem)
        if self._cached:
            self._cached.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._cached.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(extracted), "utf-8")
            os.replace(unfinished, self._cached)
        return extracted

    def cancel(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def collect(lines: Iterable[bytes], problem: str | None) -> Extracted:
    """What a child wrote, cleaned. `problem`: what ended the child, if not itself."""
    raw: list[str | None] = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            break  # the line the child was killed in
        if isinstance(value, dict):
            problem = value["problem"]
        else:
            raw.append(value)
    pages = clean([page for page in raw if page is not None])
    kept = [page for page in pages if len(page) >= MIN_PAGE_CHARACTERS]
    skipped = Counter({"page failed": raw.count(None), "scan, needs OCR": len(pages) - len(kept)})
    if problem:
        skipped[problem] += 1
    return Extracted(kept, dict(+skipped))


def clean(pages: list[str]) -> list[str]:
    """Pages as running text: ligatures spelled out, hyphens at line ends joined, repeated headers and footers gone."""
    pages = [_LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), page) for page in pages]
    lines = drop_running_lines([[line.rstrip() for line in page.strip().splitlines()] for page in pages])
    return [_HYPHENATED.sub(r"\1\2", "\n".join(page)).strip() for page in lines]


def drop_running_lines(pages: list[list[str]]) -> list[list[str]]:
    """Without headers and footers: margin lines that, numbers aside, are those of three pages (a chapter is short)."""

    def shape(line: str) -> str:
        return re.sub(r"\d+", "#", line.strip())

    margins = [{shape(line) for line in page[:MARGIN_LINES] + page[-MARGIN_LINES:]} for page in pages]
    often = {line for line, times in Counter(line for margin in margins for line in margin).items() if times >= 3}

    def running(lines: Iterable[str]) -> int:
        return len(list(takewhile(lambda line: shape(line) in often, islice(lines, MARGIN_LINES))))

    kept = [page[running(page) :] for page in pages]
    return [page[: len(page) - running(reversed(page))] for page in kept]


def join_pages(pages: list[str]) -> Iterator[str]:
    """Documents of consecutive pages, at most PIECE_CHARACTERS long."""
    buffer = ""
    for page in pages:
        if buffer and len(buffer) + len(page) > PIECE_CHARACTERS:
            yield from split(io.StringIO(buffer))
            buffer = ""
        buffer += ("\n" if buffer else "") + page
    yield from split(io.StringIO(buffer))


# ---------------------------------------------------------------- the child


def print_pages(path: str) -> None:
    """Writes one JSON value a page, or one object {"problem": reason} and ends."""
    import pypdf

    def emit(value: str | dict | None) -> None:
        print(json.dumps(value), flush=True)

    limit_resources()
    signal.signal(signal.SIGALRM, page_took_too_long)
    signal.alarm(PAGE_SECONDS)
    try:
        with open(path, "rb") as file:
            if b"%PDF-" not in file.read(1024):
                return emit({"problem": "not a PDF"})
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return emit({"problem": "encrypted"})
        num_pages = len(reader.pages)
    except MemoryError:
        return emit({"problem": "file needs too much memory"})
    except PageTimeout:
        return emit({"problem": "file took too long"})
    except Exception:  # pypdf raises what the damage happens to cause: KeyError, RecursionError, struct.error ...
        return emit({"problem": "damaged PDF"})
    num_characters = 0
    for number in range(num_pages):
        signal.alarm(PAGE_SECONDS)
        try:
            # Lone surrogates, which broken fonts produce, cannot be tokenized.
            text = reader.pages[number].extract_text().encode("utf-8", "ignore").decode("utf-8")
        except (Exception, PageTimeout):
            text = None
        signal.alarm(0)
        num_characters += len(text or "")
        if num_characters > TEXT_CHARACTERS:
            return emit({"problem": "text beyond 20 MB"})
        emit(text)
    return None


class PageTimeout(BaseException):
    """Not an Exception: pypdf catches those where it reads on after damage."""


def page_took_too_long(*_: object) -> None:
    raise PageTimeout


def limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (FILE_SECONDS, FILE_SECONDS))
    with contextlib.suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    print_pages(sys.argv[1])
