"""Finds the files of a folder that a glob pattern means, in bounded time. Never opens them."""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from configs.errors import SourceError
from configs.hf_source import FORMATS
from configs.schema import PDFSource, TextSource
from configs.text import clip
from data.sources.base import in_words

PDFS = "**/*.pdf"
MOST_ENTRIES = 1_000_000  # under one path; at 640 bytes a file, more would not fit into the producer
MOST_LISTED, MOST_NAMED = 1_000, 5  # other files looked at, and kinds of them named, if none matches


class CannotBeSearched(ValueError):
    """A pattern that is none, or a folder of more than MOST_ENTRIES."""


def find_files(
    spec: TextSource | PDFSource, pattern: str, *, for_others: str = 'write "glob": "**/*SUFFIX"'
) -> list[Path]:
    """Return the files under the path of `spec` that match `pattern`, or the path itself if it is a file.

    Raises SourceError for a folder of more than MOST_ENTRIES, and if no file matches: `for_others`
    is what to do if there are others, most of them with SUFFIX.
    """
    path, root = spec.path, Path(os.path.expanduser(spec.path))  # Path.expanduser would raise for an unknown user
    where = f"source {spec.label}: {root}" + ("" if root.is_absolute() else f" (in {Path.cwd()})")
    if not os.path.exists(root):
        advice = "correct `path` in the preset or create it"
        if re.match(r"[A-Za-z]:[/\\]", path):
            below = path[3:].replace("\\", "/")
            advice = f"it is a path of Windows; inside WSL, write /mnt/{path[0].lower()}/{below}"
        elif "://" in path:
            where, advice = f"source {spec.label}: {path}", "it is an address; download the text and write its path"
        raise SourceError(f"{where} does not exist; {advice}")
    if not root.is_dir():
        return [root]
    if not os.access(root, os.R_OK | os.X_OK):
        raise SourceError(f"{where} cannot be read; give this user permission to read the folder")
    try:
        files = list(matching_files(root, pattern, follow_links=spec.follow_links, any_case=True))
    except CannotBeSearched as error:
        raise SourceError(f"{where} cannot be searched: {error}") from None
    if not files:
        others = Counter(file.suffix for file in islice(matching_files(root, "**/*.*"), MOST_LISTED) if file.suffix)
        advice = "add files"
        if others:
            (suffix, _), *_ = most = others.most_common(MOST_NAMED)
            if FORMATS.get(suffix, "text") != "text":
                for_others = f'read its rows with "type": "hf", "dataset": "{root.absolute()}"'
            advice = f"it has {in_words(dict(most))}: {for_others.replace('SUFFIX', clip(suffix, 20))}, or add files"
        raise SourceError(f"{where} holds no file that matches {pattern!r}; {advice}")
    return files


def matching_files(root: Path, pattern: str, *, follow_links: bool = False, any_case: bool = False) -> Iterator[Path]:
    """Yield what is under `root`, matches the glob `pattern` and is no folder.

    Every entry is visited once, whatever the pattern (those of pathlib may take for ever), and
    MOST_ENTRIES at most. What is hidden (.git, .env) only matches a part that begins with a dot, as in
    a shell. Linked folders are entered with `follow_links` alone, each once. `any_case`: letters match
    small and capital ones. Raises CannotBeSearched.
    """
    parts = Path(pattern).parts
    if not parts or any("**" in part and part != "**" for part in parts):
        raise CannotBeSearched(f"{pattern!r} is no glob pattern; write one such as '**/*.txt'")
    flags = re.IGNORECASE if any_case else 0
    shown = r"(?!\.)"  # what a part that begins with no dot may match
    matches = [
        None if part == "**" else re.compile(shown * (part[0] != ".") + fnmatch.translate(part), flags).match
        for part in parts
    ]

    @cache
    def reached(places: frozenset[int]) -> frozenset[int]:
        """Return the parts that may come next: `**` may also stand for nothing."""
        found: set[int] = set()
        for place in places:
            found.add(place)
            while place < len(matches) and matches[place] is None:
                found.add(place := place + 1)
        return frozenset(found)

    itself = root.stat()
    waiting, num_entries, entered = [(root, reached(frozenset([0])))], 0, {(itself.st_dev, itself.st_ino)}
    while waiting:
        folder, places = waiting.pop()
        steps = [(place, matches[place]) for place in places if place < len(matches)]
        try:
            entries = list(islice(os.scandir(folder), MOST_ENTRIES + 1))
        except OSError:  # not this user's, or gone
            continue
        num_entries += len(entries)
        if num_entries > MOST_ENTRIES:
            raise CannotBeSearched(f"there are more than {MOST_ENTRIES:,} files and folders; name a smaller folder")
        for entry in entries:
            name = entry.name
            taken = [
                place if match is None else place + 1
                for place, match in steps
                if (match(name) if match else name[0] != ".")
            ]
            left = reached(frozenset(taken))
            if not left:
                continue
            if not is_folder(entry):
                if len(matches) in left:
                    yield folder / name
            elif follow_links or not entry.is_symlink():
                try:
                    identity = entry.stat()
                except OSError:  # in a folder that may be listed and not entered, or gone
                    continue
                if (key := (identity.st_dev, identity.st_ino)) not in entered:
                    entered.add(key)
                    waiting.append((folder / name, left))


def is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folder_to_stay_in(spec: TextSource | PDFSource) -> Path | None:
    """Return the real folder that no file of `spec` may lie outside of, or None if there is none."""
    root = Path(os.path.realpath(os.path.expanduser(spec.path)))
    return root if root.is_dir() and not spec.follow_links else None
