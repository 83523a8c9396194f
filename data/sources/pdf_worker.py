"""Reads one PDF in its own process: python -m data.sources.pdf_worker FILE LIMITS, run by pdf.py.

Writes JSON lines to stdout, each at once, so that pages read before a limit survive the process: a
page's text, or null for a page that cannot be read; at the end {"problem": reason or null}. It
imports only pypdf and the standard library, which takes 0.15 s. It never writes a file, and ends
after the current page when its parent is gone.

Time is CPU time, limited by the kernel: the result does not depend on the load of the machine, and
C code that never returns to Python is ended too. macOS may refuse the memory limit; then only time
is limited.
"""

import contextlib
import errno
import json
import os
import re
import resource
import signal
import sys
import unicodedata
from collections.abc import Iterator

import pypdf

_LIGATURES = re.compile("[\ufb00-\ufb06\u0132\u0133\u01c7-\u01cc\u01f1-\u01f3]")


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
    with file:
        try:
            with page_time(limits["page_seconds"]):
                if b"%PDF-" not in file.read(1024):
                    return end("not a PDF")
                reader = pypdf.PdfReader(file)
                if reader.is_encrypted and not reader.decrypt(""):
                    return end("needs a password")
                num_pages = len(reader.pages)
        except MemoryError:
            return end("PDF needs too much memory")
        except PageTimeout:
            return end("PDF took too long")
        except Exception:  # damage makes pypdf raise KeyError, RecursionError, struct.error ...
            return end("damaged PDF")
        num_characters = 0
        for number in range(num_pages):
            try:
                with page_time(limits["page_seconds"]):
                    text = tidy(reader.pages[number].extract_text(), limits["page_characters"])
            except (Exception, PageTimeout):
                text = None
            num_characters += len(text or "")
            if num_characters > limits["text_characters"]:
                return end("PDF has too much text")
            if os.getppid() != parent:
                return None
            write(text)
    return end(None if num_pages else "damaged PDF")


def tidy(text: str, most: int) -> str:
    """Return a page without ligatures, lone surrogates of broken fonts and space at line ends."""
    if len(text) > most:
        raise ValueError("no page of a document is as long as this")
    text = text.encode("utf-8", "ignore").decode("utf-8")
    text = _LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def end(problem: str | None) -> None:
    write({"problem": problem})


def write(value: str | dict | None) -> None:
    try:
        sys.stdout.buffer.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        sys.stdout.buffer.flush()
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
    seconds, output = limits["file_seconds"], 8 * limits["text_characters"]  # JSON: 6 bytes a character at most
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, output, output),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS
            resource.setrlimit(what, (soft, hard))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
