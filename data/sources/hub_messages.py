"""The library's errors in words: what is wrong with a dataset, in terms of the preset's keys, and
what to write instead.

Imports neither `datasets` nor `huggingface_hub` by itself.
"""

import difflib
import glob
import os
import re
from collections import Counter
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from configs.hf_source import FORMATS, LOCAL_FORMATS, HFSource
from data.sources.base import in_words
from data.sources.find import CannotBeSearched, matching_files
from data.sources.hub_client import causes, first_line
from data.sources.hub_refusal import refusal

MOST_LISTED = 10
MOST_LOOKED_AT = 1000  # files


def format_of(path: str) -> str | None:
    """Return the format of a data file, or None for one of another kind."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    return next((FORMATS[suffix] for suffix in suffixes if suffix in FORMATS), None)


def remedy(name: str) -> str:
    """Return what to do about a file that cannot be read."""
    *others, last = ["", *(suffix.lower() for suffix in PurePosixPath(name).suffixes)]
    unpack = last == ".lz4" or (".parquet" in others and last in (".gz", ".bz2", ".xz", ".zst"))
    return f"unpack {name}" if unpack else f"repair {name}"


def local_problem(spec: HFSource) -> str:
    """Return what is wrong with the paths of a dataset on this disk, or ""."""
    if not spec.is_local:
        return _meant_here(spec.dataset)
    if spec.folder is None:
        paths = [("`data_dir`", spec.data_dir)] if spec.data_dir else []
        for path in chain.from_iterable((spec.files_by_split or {}).values()):
            below = os.path.join(spec.data_dir or "", path)
            if not glob.has_magic(path) and "://" not in path:  # the library reads patterns and addresses
                paths.append(("`data_files`", below))
            elif "[" in path and os.path.exists(os.path.expanduser(below)):
                return f"`data_files`: {path}: [ and ] in a path are read as a pattern; rename it, or write ? for each"
        missing = (f"{key}: {_missing(path)}" for key, path in paths if not os.path.exists(os.path.expanduser(path)))
        return next(missing, "")
    if os.path.isfile(spec.folder):
        form = format_of(str(spec.folder)) or "json"
        return f'{spec.dataset} is a file: write "dataset": "{form}", "data_files": "{spec.folder}"'
    if not os.path.exists(spec.folder):
        return f"`dataset`: {_missing(spec.dataset)}"
    if "[" in str(spec.folder.absolute()):
        return f"{spec.dataset}: [ and ] in a path are read as a pattern; rename the folder"
    return "" if any(spec.folder.iterdir()) else f"{spec.dataset} is an empty folder; add data files"


def _meant_here(dataset: str) -> str:
    """Return what to write if a name of the Hub is that of a file on this disk, or a suffix in place of a format."""
    word = dataset.lower()
    if form := word if word in LOCAL_FORMATS else FORMATS.get(f".{word}"):
        return f'{dataset} is no dataset: write "dataset": "{form}", and the paths in "data_files"'
    if os.path.isfile(dataset) and (form := format_of(dataset)):
        return f'{dataset} is a file: write "dataset": "{form}", "data_files": "{dataset}"'
    return ""


def _missing(path: str) -> str:
    where = "" if path.startswith(("/", "~")) else f" (in {Path.cwd()})"
    return f"{path}{where} does not exist; correct it in the preset"


def advice_for(error: Exception, spec: HFSource) -> str | None:
    """Return what is wrong and how to fix it if the user can, else None."""
    line, dataset = first_line(error), spec.dataset
    if isinstance(error, CannotBeSearched):
        return f"`data_files`: {error}" if spec.data_files else line
    if not spec.is_local and (refused := refusal(error, dataset)):
        return f"{dataset} {refused}"
    if line.startswith(("BuilderConfig", "Config name is missing")):
        return f"{dataset}, `config`: {_configurations(' '.join(str(error).split()), spec.config)}"
    if line.startswith(("Bad split", "Unknown split")):
        return f"{dataset}, `split`: {line}"
    if "pdfplumber" in line:
        return f"{dataset} holds PDFs: {how_to_read_pdfs(spec)}"
    if line.startswith("Extraction protocol for TAR"):
        return f"{dataset}, `data_files`: tar archives are not read; unpack them, and name the files that are in them"
    if "://" in str(spec.data_files) and "to be installed" in line:
        return "`data_files`: addresses are not read; download these files and write their paths"
    if line.startswith("Dataset scripts are no longer supported"):
        if spec.is_local:
            return f"{dataset} is a Python script, which is never run: name files of data in `data_files`"
        return (
            f"{dataset} is a Python script, which is never run: of many such datasets the Hub keeps a copy in Parquet; write "
            '"revision": "refs/convert/parquet", and the configuration as "data_dir", or choose another dataset'
        )
    if line.startswith("Couldn't infer the same data file format for all splits"):
        return (
            f'{dataset}: its splits have different formats; name the files of one: "data_files": {{"train": "train*"}}'
        )
    if line == "StopIteration":
        return f"{dataset}, `data_files`: no file matches {_patterns(spec)}, or none of them has a row"
    no_files = ("No (supported) data files", "Unable to find", "Couldn't find any data file")
    if line.startswith(no_files) or "doesn't contain any data files" in line:
        if spec.data_files:
            return f"{dataset}, `data_files`: no file matches {_patterns(spec)}"
        if spec.data_dir:
            return f"{dataset}, `data_dir`: there are no data files in {spec.data_dir!r}"
        if spec.folder and (kinds := _kinds(spec.folder)):
            return (
                f"{dataset} has no data files (JSON, CSV, Parquet, text) but {kinds}: convert them or, if they are such files "
                'by another name, write "dataset": "json" (or csv, parquet, text) and their paths in `data_files`'
            )
        return (
            f"{dataset} has no data files (JSON, CSV, Parquet, text), or its README.md names others: choose another "
            "dataset, or say which of its files are text in `data_files`"
        )
    if "to be a list, but got" in line or any(type(link).__module__.startswith("yaml") for link in causes(error)):
        return f"{dataset}: the settings at the top of its README.md cannot be read ({line}); correct them there"
    return None


def how_to_read_pdfs(spec: HFSource) -> str:
    where = f'"path": "{spec.folder}"' if spec.folder else 'in "path" the folder that they were downloaded to'
    return f'read them with "type": "pdf" and {where}'


def _kinds(folder: Path) -> str:
    """Return how many files of which suffixes are in a folder."""
    files = islice(matching_files(folder, "**/*"), MOST_LOOKED_AT)
    return in_words(dict(Counter(path.suffix or "without suffix" for path in files).most_common(MOST_LISTED)))


def _patterns(spec: HFSource) -> str:
    """Return the paths and globs in data_files, for people."""
    patterns = [path for paths in (spec.files_by_split or {}).values() for path in paths]
    return quoted(patterns)


def quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names[:MOST_LISTED])) + (", ..." if len(names) > MOST_LISTED else "")


def _configurations(message: str, given: str | None) -> str:
    """Return what to write in place of the `given` configuration: of all that the library's message lists, those
    that are most like it."""
    listed = message.partition("[")[2].partition("]")[0]  # an example of usage follows
    names = [single or double for single, double in re.findall(r"""'([^']*)'|"([^"]*)\"""", listed)]
    if not names:
        return message
    nearest = difflib.get_close_matches(given or "", names, MOST_LISTED, cutoff=0.5) or names[:MOST_LISTED]
    more = f" and {len(names) - len(nearest)} more" if len(nearest) < len(names) else ""
    problem = f"there is no {given!r}" if given else "it is missing"
    return f"{problem}; write one of {', '.join(nearest)}{more}"
