"""Which files of a folder or repository are read, and what is said of the others.

The library reads one format of them and says nothing of the rest.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from configs.errors import SourceError
from configs.hf_source import HFSource
from configs.text import clip, counted
from data.sources.base import in_words
from data.sources.find import matching_files
from data.sources.hub_messages import format_of, quoted

NOT_DATA = ("state.json",)  # beside a dataset that save_to_disk has written; the library ignores others like it
ALL = "all"  # splits, unless one has this name
IN_REPOSITORY = re.compile(r"^hf://datasets/[^@]*@[^/]*/")


def files_in_folder(spec: HFSource, notices: list[str]) -> dict[str, list[str]] | None:
    """Return the files of each split in a folder on this disk, unless its README.md or a configuration names them."""
    if spec.folder is None or spec.config:
        return None
    card = spec.folder / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text("utf-8", "replace"):
        return None
    from datasets.data_files import DataFilesDict, get_data_patterns

    where = _folder_of(spec).as_posix()
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(where), base_path=where)
    except FileNotFoundError:  # of which the library says more
        return None
    names = {part.name for part in spec.parts}
    if ALL in names - found.keys():
        names = names - {ALL} | found.keys()
    if names - found.keys():  # as the library says it where all files have one format
        raise ValueError(f"Bad split: {spec.split}. Available splits: {list(map(str, found))}")
    files = {split: list(map(str, found[split])) for split in found if split in names}
    known = {
        split: [path for path in paths if format_of(path) and PurePosixPath(path).name not in NOT_DATA]
        for split, paths in files.items()
    }
    if known.keys() != names or not all(known.values()):
        return None
    name_unread(spec, listed_files(spec), [path for paths in found.values() for path in paths], notices)
    return known


def choose_tables(by_format: dict[str | None, Any], spec: HFSource, notices: list[str]) -> None:
    """Remove plain text from `by_format` if there are tables; say so, and that there are several formats."""
    counts = {str(kind): sum(map(len, files.values())) for kind, files in by_format.items()}
    if len(counts) > 1 and by_format.pop("text", None):
        notices.append(
            f"{spec.label}: of {spec.dataset} only the tables are read, not {counted(counts.pop('text'), 'file')} of plain "
            'text; add a source of "type": "text" for them'
        )
    if len(counts) > 1:
        notices.append(
            f"{spec.label}: {spec.dataset} has files of several formats, and all are read ({in_words(counts)}); "
            "name some in data_files if they hold the same text"
        )


def check_patterns(spec: HFSource, given: dict[str, list[str]], revision: str | None) -> None:
    """Raise SourceError for those of several paths and globs that match nothing: the library passes them over, or
    names all of them."""
    from datasets.data_files import resolve_pattern

    patterns = [path for paths in given.values() for path in paths if "://" not in path]
    if len(patterns) == 1:
        return
    where, missing = str(_folder_of(spec)), []
    if not spec.is_local:
        where = f"hf://datasets/{spec.dataset}@{revision}/{spec.data_dir or ''}".rstrip("/")
    for pattern in patterns:
        try:
            resolve_pattern(pattern, where)
        except FileNotFoundError:
            missing.append(pattern)
    if missing:
        raise SourceError(f"source {spec.label}: {spec.dataset}, `data_files`: no file matches {quoted(missing)}")


def check_inside(spec: HFSource, paths: list[str]) -> None:
    """Raise SourceError for a file outside of a folder on this disk, which its README.md or a link may name: whoever
    made the dataset would choose what is trained on. Of repositories the library sees to it."""
    root = _folder_of(spec)
    roots = (
        [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    )  # the Hub's cache has links
    for path in paths:
        if spec.folder and not any(Path(os.path.realpath(path)).is_relative_to(root) for root in roots):
            raise SourceError(
                f"source {spec.label}: {clip(path, 200)!r} is not a file of {spec.dataset}, though its README.md or a link "
                "says so; if you want to train on it, name it in `data_files`"
            )


def name_unread(spec: HFSource, listed: list[str], read: list[str], notices: list[str]) -> None:
    """Say which data files of those `listed` are not among those that can be `read`, of whatever split."""
    from datasets.data_files import FILES_TO_IGNORE

    names = {IN_REPOSITORY.sub("", str(path)) for path in read}
    kinds = {format_of(name) for name in names}
    root, inside = ("", spec.data_dir or "") if not spec.folder else (f"{_folder_of(spec)}/", "")
    unread = []
    for path in sorted(set(listed) - names):
        name = PurePosixPath(path.removeprefix(root))
        is_data = (kind := format_of(path)) and (kind != "text" or "text" in kinds)
        is_hidden = any(part.startswith((".", "__")) for part in name.parts)
        if is_data and not is_hidden and name.is_relative_to(inside) and name.name not in (*FILES_TO_IGNORE, *NOT_DATA):
            unread.append(str(name))
    if names and unread:
        what = f"{counted(len(unread), 'data file')}, such as {clip(unread[0], 100)}"
        notices.append(f"{spec.label}: of {spec.dataset} not read: {what}; name in data_files what should be read")


def listed_files(spec: HFSource) -> list[str]:
    """Return the files under the folder of a dataset on this disk."""
    return [str(path) for path in matching_files(_folder_of(spec), "**/*") if path.is_file()] if spec.folder else []


def _folder_of(spec: HFSource) -> Path:
    """Return the folder on this disk that paths begin in."""
    return ((spec.folder or Path()) / Path(os.path.expanduser(spec.data_dir or ""))).resolve()
