"""The samples of a run: samples.md, append-only.

It is cut back on resume, so that nothing is recorded twice, and survives a torn last section.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from configs.text import fenced, printable
from data.files import write_atomically
from lm.runtime.files import Appender, keep_copy, set_aside_unless_log, whole_lines

HEADING = re.compile(r"## (\d[\d,]{0,20}) tokens\n", re.ASCII)


class Sample(NamedTuple):
    source: str  # label of the source whose held-out text the prompt is
    prompt: str
    continuation: str
    marked: str = ""  # the continuation with marks of difficulty below each line, and their legend


class Section(NamedTuple):
    tokens: int
    text: str  # Markdown below the heading


class SampleLog:
    """The writer of samples.md: fenced prompts and continuations under "## 12,000,000 tokens"."""

    def __init__(self, path: Path):
        self.path = path
        set_aside_unless_log(path)
        self._file = Appender(path)

    def write(self, tokens: int, samples: Iterable[Sample]) -> None:
        parts = [f"## {tokens:,} tokens\n"]
        for source, prompt, continuation, marked in samples:
            name = printable(source).replace("`", "'").replace("\n", " ")
            parts += [f"`{name}`, held-out text:\n", fenced(prompt), "continued by the model:\n", fenced(continuation)]
            if marked:
                parts += ["how hard it expected what follows each token to be:\n", fenced(marked)]
        self._file.write("\n".join(parts) + "\n")

    def truncate_after(self, tokens_seen: int) -> list[Section]:
        """Cut the sections after `tokens_seen` tokens, and a torn one; returns those left.

        A file that does not begin with a section is set aside.
        """
        first = next(iter(whole_lines(self.path)), None)
        if first is not None and not HEADING.fullmatch(first):
            keep_copy(self.path, "text that is no sample")
        self._file.close()
        kept = [section for section in read_samples(self.path) if section.tokens <= tokens_seen]
        write_atomically(self.path, "".join(f"## {tokens:,} tokens\n{text}" for tokens, text in kept).encode())
        return kept

    def sync(self) -> None:
        """Force all samples to the disk, before a checkpoint that counts on them."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def read_samples(path: Path) -> list[Section]:
    """Return the sections of a samples.md in order. Headings inside fences are part of a sample; a
    section that ends inside a fence was torn by a crash and is skipped."""
    sections: list[tuple[int, list[str]]] = []
    fence = ""
    for line in whole_lines(path):
        heading = HEADING.fullmatch(line)
        if heading and not fence:
            sections.append((int(heading[1].replace(",", "")), []))
        elif sections:
            opening = re.fullmatch(r"(`{3,})text\n", line)
            if not fence and opening:
                fence = opening[1]
            elif line == fence + "\n":
                fence = ""
            sections[-1][1].append(line)
    return [Section(tokens, "".join(lines)) for tokens, lines in (sections[:-1] if fence else sections)]
