"""Reads one PDF in its own process: python -m data.sources.pdf_worker FILE LIMITS, run by pdf.py.

Writes JSON lines to stdout, each at once, so that pages read before a limit survive the process: a
page's text, or null for a page that cannot be read; at the end {"problem": reason or null}. It
never writes a file, and ends after the current page when its parent is gone.

    PDFium, in a fork of this process -> pages -> stdout
    pypdf, in this process            -> pages that PDFium gives without text or as garbage, and
                                         files that PDFium cannot open

PDFium is faster and places words better, but it is C++: no exception ends a page that takes too
long, and without memory it aborts. So a page costs at most its fork, and the next fork begins
after that page. While PDFium reads, this process only copies the fork's lines to stdout; pypdf reads
when the fork has left it a page and ends. Both share the time of the file, which the copying may
exceed a little; the memory limit holds for each.

Time is CPU time, limited by the kernel: the result does not depend on the load of the machine, and
C code that never returns to Python is ended too. macOS may refuse the memory limit; then only time
is limited.
"""

import contextlib
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import Any, BinaryIO

from data.limited_process import OF_OTHERS
from data.sources.pdf_page import looks_wrong, tidy
from data.sources.pdf_pdfium import PdfDocument, page_text


class Unreadable(Exception):
    """No more pages of this file can be read, for the reason given."""


class PageTimeout(BaseException):
    """A page took too long. No Exception, since pypdf catches those to read on after damage."""


def main(path: str, limits: dict) -> None:
    """Write the pages of the PDF at `path`. `limits`: data.sources.pdf.Limits as a dict."""
    limit_resources(limits)
    parent = os.getppid()
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError:
        sys.exit(os.EX_NOINPUT)
    problem, num_characters = None, 0
    with file:
        try:
            if b"%PDF-" not in file.read(1024):
                raise Unreadable("not a PDF")
            for text in read_pages(file, limits):
                num_characters += len(text or "")
                if num_characters > limits["text_characters"]:
                    raise Unreadable("PDF has too much text")
                if os.getppid() != parent:
                    return
                write(sys.stdout.buffer, text)
        except Unreadable as reason:
            problem = str(reason)
    write(sys.stdout.buffer, {"problem": problem})


def read_pages(file: BinaryIO, limits: dict) -> Iterator[str | None]:
    """Yield the text of each page, or None for one that cannot be read. Raises Unreadable."""
    pypdf = PypdfPages(file, limits)
    number, num_pages = 0, 1
    while number < num_pages:
        pages = pdfium_pages(file.name, number, limits)
        num_pages = next(pages, 0)
        for text in pages:
            yield text if text != "" else pypdf.text(number)
            number += 1
    if not num_pages:
        yield from map(pypdf.text, range(number, pypdf.num_pages()))


def pdfium_pages(path: str, first: int, limits: dict) -> Iterator[Any]:
    """Yield the number of pages, then the text of each from `first` on, until one that is "".

    That one is left to pypdf. None stands for a page in which PDFium was ended. Yields nothing if
    PDFium cannot open the file. Raises Unreadable if the time of the file is used up. Ends this
    process if others ended PDFium, which says nothing of the page.
    """
    seconds = limits["file_seconds"] - sum(os.times()[:4])
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), open(write_end, "wb") as output:
            os.close(read_end)  # else nobody would notice that the reader is gone
            limit_time(seconds)
            send_pdfium_pages(output, path, first, limits)
            os._exit(0)
        os._exit(1)
    os.close(write_end)
    opened = False
    try:
        with open(read_end, "rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    opened = True
                    yield json.loads(line)
    finally:
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        limit_time(limits["file_seconds"] - sum(os.times()[2:4]))
    if end in OF_OTHERS:
        sys.exit(os.EX_TEMPFAIL)
    if end == -signal.SIGXCPU or (end == -signal.SIGPROF and not opened):
        raise Unreadable("PDF took too long")
    if end and opened:
        yield None


def send_pdfium_pages(output: BinaryIO, path: str, first: int, limits: dict) -> None:
    """Write what `pdfium_pages` yields. A page that takes too long ends the process."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with page_time(limits["page_seconds"]):
        document = PdfDocument(open(path, "rb"))  # noqa: SIM115 (by path it would need a name in UTF-8)
        num_pages = len(document)
    write(output, num_pages)
    for number in range(first, num_pages):
        text = ""
        with page_time(limits["page_seconds"]), contextlib.suppress(Exception):
            text = checked(page_text(document[number]), limits)
        write(output, text)
        if not text:
            return


class PypdfPages:
    """The pages of a file as pypdf reads them. The file is opened for the first of them."""

    def __init__(self, file: BinaryIO, limits: dict):
        self.file, self.limits = file, limits
        self._problem: str | None = None

    def num_pages(self) -> int:
        """Return the number of pages. Raises Unreadable if the file cannot be opened."""
        if self._pages is None:
            raise Unreadable(self._problem)
        return len(self._pages)

    def text(self, number: int) -> str | None:
        try:
            with page_time(self.limits["page_seconds"]):
                return None if self._pages is None else checked(self._pages[number].extract_text(), self.limits)
        except (Exception, PageTimeout):
            return None

    @cached_property
    def _pages(self) -> Any:
        import pypdf  # takes 0.2 s, and most files are read without it

        try:
            with page_time(self.limits["page_seconds"]):
                reader = pypdf.PdfReader(self.file)
                if not reader.is_encrypted or reader.decrypt(""):
                    self._problem = None if len(reader.pages) else "damaged PDF"
                    return reader.pages if len(reader.pages) else None
                self._problem = "needs a password"
        except MemoryError:
            self._problem = "PDF needs too much memory"
        except PageTimeout:
            self._problem = "PDF took too long"
        except Exception:  # damage makes pypdf raise KeyError, RecursionError, struct.error ...
            self._problem = "damaged PDF"
        return None


def checked(text: str, limits: dict) -> str:
    """Return the text of a page to be trained on. Raises ValueError if nobody wrote that."""
    if len(text) > limits["page_characters"] or looks_wrong(text):
        raise ValueError("no page of a document is like this")
    return tidy(text)


def write(output: BinaryIO, value: str | dict | int | None) -> None:
    try:
        output.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        output.flush()
    except OSError as error:  # with a full disk, the parent must not count the PDF as damaged
        os._exit(os.EX_IOERR if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1)


@contextlib.contextmanager
def page_time(seconds: float) -> Iterator[None]:
    """Raise PageTimeout in a longer body, and again every second if that was swallowed."""
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _raise_timeout(*_: object) -> None:
    raise PageTimeout


def limit_resources(limits: dict) -> None:
    signal.signal(signal.SIGPROF, _raise_timeout)
    limit_time(limits["file_seconds"])
    for what, most in (
        (resource.RLIMIT_FSIZE, 8 * limits["text_characters"]),  # JSON: 6 bytes a character at most
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS
            resource.setrlimit(what, (most, most))


def limit_time(seconds: float) -> None:
    """Let the kernel end this process (SIGXCPU) after so many seconds of CPU time in all.

    The hard limit stays: the kernel sends SIGKILL at once where that is less than was used already.
    """
    with contextlib.suppress(ValueError, OSError):  # macOS
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (max(1, round(seconds)), hard))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
