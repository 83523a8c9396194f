"""Documents from plain text files, in any encoding that can be told with certainty (encoding.py).

Never decides which files a preset means, and never reads the text of other formats.
"""

import hashlib
import io
import mimetypes
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from configs.errors import SourceError
from configs.text import counted, human_bytes
from data.sources.base import (
    HELD_OUT_ONE_IN,
    PIECE_CHARACTERS,
    Document,
    Position,
    Source,
    end_of_piece,
    hash_key,
    in_words,
)
from data.sources.compressed import ERRORS, open_bytes
from data.sources.encoding import UTF_8, Evidence

# A byte that is not UTF-8 in a file that otherwise is: it alone is read as Windows-1252.
_STRAY_BYTES = {0xDC00 + byte: bytes([byte]).decode("cp1252", "replace") for byte in range(0x80, 0x100)}
_STRAY = re.compile("[\udc80-\udcff]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
UNCERTAIN = "of uncertain encoding"
BINARY_IN_PART = "binary in part"
MODIFIED = "changed since it was opened"
LINKED = "linked from outside"
CHANGED = "its files changed since this run began"  # in a notice
CHUNK = 1 << 20  # bytes
LARGEST_HOLE = 1 << 24  # bytes that are all 0
MOST_NAMED = 5  # files in a notice


class FileSource(Source):
    """Text files. Position: [order key of the file, number of its next piece].

    Files are identified by their content: a copy is a duplicate whatever its name, and a file
    added, renamed or removed between two starts does not change the order of the others, so a run
    resumes with the files that are the same.
    """

    noun = "files"
    skips_documents = False
    is_text = True  # and not bytes that `read_ahead` makes text of

    def __init__(
        self, label: str, files: Iterable[Path], *, seed: int, pinned: dict | None = None, inside: Path | None = None
    ):
        """`inside`: the folder that files have to be in, wherever links lead."""
        super().__init__(label)
        self.seed, self._inside = seed, inside
        self._files: dict[str, Path] = {}  # content digest -> path
        self._stamps: dict[str, tuple[int, int]] = {}  # content digest -> size and time of the last change
        self._encodings: dict[str, str] = {}  # content digest -> codec, if the file is not UTF-8
        self._uncertain: list[Path] = []
        self._no_text: list[Path] = []  # that should be text, by their names
        self._left_out: Counter[str] = Counter()  # files skipped while opening, by reason
        self._num_bytes = 0
        for path in files:
            self._index(path)
        if not self._files:
            advice = "add files with text in them"
            if self._uncertain:
                advice = "save them as UTF-8"
            elif self._no_text:
                advice = "remove the bytes that no text has, such as NUL"
            elif self._left_out[LINKED]:
                advice = 'name the folder that the links lead to, or set "follow_links": true'
            elif self._left_out["unreadable"]:
                advice = "allow this user to read them"
            raise SourceError(
                f"source {label}: none of its files can be read ({in_words(self._left_out)}), {path} among them; {advice}"
            )
        if self._uncertain:
            self.notices.append(
                f"{label}: skipped {counted(len(self._uncertain), 'file')} whose encoding is not certain, since a wrong "
                f"guess would be trained on: {_named(self._uncertain)}; save as UTF-8 what should be read"
            )
        if self._no_text:
            self.notices.append(
                f"{label}: skipped {counted(len(self._no_text), 'file')} with bytes that no text has, such as NUL: "
                f"{_named(self._no_text)}; remove them from what should be read"
            )
        self.text_bytes = self._num_bytes
        everything = hashlib.blake2b("".join(sorted(self._files)).encode(), digest_size=16).hexdigest()
        self.pinned = {"files": len(self._files), "digest": everything}
        if pinned and pinned["digest"] != everything:
            self.notices.append(
                f"{label}: {CHANGED} ({pinned['files']:,} then, {len(self._files):,} now); "
                "it goes on where it was in their order, where a few documents may come twice or not at all, and what was "
                "moved within a file may be text that is held out"
            )

    def _index(self, path: Path) -> None:
        try:
            if self._inside and path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self._inside):
                self._left_out[LINKED] += 1
                return
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a FIFO would block
                reason = "not a regular file"
            elif status.st_size == 0:
                reason = "empty"
            else:
                digest, encoding, num_bytes = self._examine(path)
                if digest in self._files:
                    reason = "duplicate"
                elif encoding is None:
                    reason = UNCERTAIN
                    self._uncertain.append(path)
                elif not num_bytes:
                    reason = "empty"
                elif encoding == "":
                    reason = "binary"
                    if (mimetypes.guess_type(path.name)[0] or "").startswith("text/"):
                        self._no_text.append(path)
                else:
                    self._files[digest], self._stamps[digest] = path, (status.st_size, status.st_mtime_ns)
                    self._num_bytes += num_bytes
                    if encoding != UTF_8:
                        self._encodings[digest] = encoding
                    return
        except OSError as error:
            reason = "unreadable" if error.errno else "damaged"  # which gzip and bz2 say without a number
        except ERRORS:
            reason = "damaged"
        self._left_out[reason] += 1

    def _examine(self, path: Path) -> tuple[str, str | None, int]:
        """Return the digest of the content, its encoding as Evidence does, and its size in bytes.

        A binary file is read no further than needed to know that: a sparse one may be endless.
        Raises OSError and ERRORS.
        """
        digest, evidence, num_bytes, num_empty = hashlib.blake2b(digest_size=16), Evidence(), 0, 0
        with open_bytes(path) as file:
            while chunk := file.read(CHUNK):
                num_empty = 0 if chunk.strip(b"\0") else num_empty + len(chunk)
                digest.update(chunk)
                num_bytes += len(chunk)
                if self.is_text:
                    evidence.add(chunk)
                if num_empty > LARGEST_HOLE or evidence.is_binary:
                    return digest.hexdigest(), "", num_bytes
        return digest.hexdigest(), evidence.encoding() if self.is_text else UTF_8, num_bytes

    def size(self) -> str:
        noun = self.noun if len(self._files) > 1 else self.noun[:-1]
        left_out = f"; skipped: {in_words(self._left_out)}" if self._left_out else ""
        return f"{len(self._files):,} {noun}, {human_bytes(self._num_bytes)}{left_out}"

    def order(self, epoch: int | str) -> list[tuple[str, str]]:
        """Return (order key, content digest) of every file, in the order of this epoch."""
        return sorted((hash_key(self.seed, epoch, digest), digest) for digest in self._files)

    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """Yield the documents of an epoch.

        A file is counted in `skipped` once, however many epochs meet it and however often the run
        resumes.
        """
        skipped = self.skipped if epoch == 0 else Counter()
        if position is None:
            skipped.update(self._left_out)
        start_key, start_piece = position or ["", 0]
        order = [entry for entry in self.order(epoch) if entry[0] >= start_key]
        for key, _, pieces in self.read_ahead(order, skipped):
            numbered = enumerate(pieces, start=1)
            if key == start_key:
                counted = skipped.copy()
                deque(islice(numbered, start_piece), maxlen=0)
                skipped.clear()  # removes the counts from before the position
                skipped.update(counted)
            for number, text in numbered:
                if text.strip():
                    yield Document(text), [key, number]

    def held_out(self, part: int = 0) -> Iterator[Document]:
        for _, digest, pieces in self.read_ahead(self.order("held out"), Counter()):
            for number, text in enumerate(pieces):
                if int(hash_key(self.seed, digest, number), 16) % HELD_OUT_ONE_IN == part and text.strip():
                    yield Document(text)

    def read_ahead(
        self, order: list[tuple[str, str]], skipped: Counter[str]
    ) -> Iterator[tuple[str, str, Iterator[str]]]:
        """Yield (order key, digest, pieces) of each file in `order`; count those `skipped`."""
        for key, digest in order:
            yield key, digest, self._pieces(digest, skipped)

    def _pieces(self, digest: str, skipped: Counter[str]) -> Iterator[str]:
        blank, num_binary, encoding = True, 0, self._encodings.get(digest, UTF_8)
        errors = "surrogateescape" if encoding == UTF_8 else "replace"  # `split` replaces stray bytes
        try:
            if self._is_changed(digest):  # what was held out of it may be anywhere in it now
                skipped[MODIFIED] += 1
                return
            with io.TextIOWrapper(open_bytes(self._files[digest]), encoding, errors) as file:
                for text in split(file):
                    if is_binary(text):
                        num_binary += 1
                        continue
                    blank = blank and not text.strip()
                    yield text
            if num_binary:
                skipped["binary" if blank else BINARY_IN_PART] += 1
            elif blank:
                skipped["empty"] += 1
        except (OSError, *ERRORS):
            skipped["unreadable"] += 1

    def _is_changed(self, digest: str) -> bool:
        path = self._files[digest]
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) != self._stamps[digest] and self._examine(path)[0] != digest


def split(stream: io.TextIOBase) -> Iterator[str]:
    """Yield the text in pieces of at most PIECE_CHARACTERS; joined, they are the text again."""
    buffer = ""
    while True:
        while len(buffer) <= PIECE_CHARACTERS and (more := stream.read(PIECE_CHARACTERS * 16)):
            buffer += _STRAY.sub(lambda match: _STRAY_BYTES[ord(match[0])], more)
        if not buffer:
            return
        end = end_of_piece(buffer)
        yield buffer[:end]
        buffer = buffer[end:]


def is_binary(text: str) -> bool:
    """Return whether there is a NUL, or more than one control character in a hundred."""
    return "\0" in text or len(_CONTROL.findall(text)) * 100 > len(text)


def _named(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:MOST_NAMED])) + (", ..." if len(paths) > MOST_NAMED else "")
