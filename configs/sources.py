"""The kinds of source that a preset may hold, and the labels of sources.

A source object says where text is; nothing here imports torch or opens the source, which
data/sources/opening.py does.
"""

import json
import re
from collections import Counter, defaultdict
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from configs.catalog import NAMED_SOURCES
from configs.fields import (
    FOLDER_STARTS,
    LONGEST_LABEL,
    LONGEST_NAME,
    FilePath,
    Name,
    SourceSpec,
    name_in_address,
)
from configs.hf_source import FORMATS, HFSource
from configs.text import clip


class FilesSource(SourceSpec):
    """The keys of a source of files."""

    follow_links: bool = Field(
        default=False,
        exclude_if=lambda follow: not follow,  # streams of earlier versions do not have it
        description="Read what links in the folder lead to outside of it, too.",
    )


class PDFSource(FilesSource):
    """PDF files of your own; text is extracted page by page."""

    type: Literal["pdf"] = Field(description="PDF files.")
    path: FilePath = Field(description="A PDF, or a folder read with its subfolders.")

    @property
    def names(self) -> tuple[str, ...]:
        return (f"pdf:{Path(self.path).name or self.path}",)


class TextSource(FilesSource):
    """Text files of your own, one document per file."""

    type: Literal["text"] = Field(description="Text files.")
    path: FilePath = Field(description="A text file or a folder.")
    glob: Name = Field(
        default="**/*.txt",
        description="Which files of the folder; ** is any depth. Hidden ones need a dot in the pattern.",
    )

    @field_validator("glob")
    @classmethod
    def _inside(cls, glob: str) -> str:
        if glob.startswith(("/", "~")) or ".." in Path(glob).parts:
            raise ValueError("a pattern inside path, such as **/*.md; name another folder in path")
        return glob

    @property
    def names(self) -> tuple[str, ...]:
        return (f"text:{Path(self.path).name or self.path}",)


class PythonSource(SourceSpec):
    """The source files of the running interpreter and its installed packages: real text on every machine."""

    type: Literal["python"] = Field(description="The running interpreter's standard library and installed packages.")

    @property
    def names(self) -> tuple[str, ...]:
        return ("python",)


Source = HFSource | PDFSource | TextSource | PythonSource
KINDS: dict[str, type[Source]] = {"hf": HFSource, "pdf": PDFSource, "text": TextSource, "python": PythonSource}


def _kind(given: Any) -> str | None:
    if isinstance(given, str):
        return "name"
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return kind if isinstance(kind, str) else None


def _no_dataset(entry: Any) -> Any:
    """Raise ValueError with what to write if a dataset, a path or an address stands where the name of a source is
    expected."""
    if isinstance(entry, str) and (source := _meant_by(entry)):
        raise ValueError(source)
    return entry


def _meant_by(entry: str) -> str:
    """Return what to write in place of a text that is no name of a source, or ""."""
    name, suffix = name_in_address(entry, "datasets/"), PurePath(entry).suffix.lower()
    path = json.dumps(clip(entry, LONGEST_NAME), ensure_ascii=False)
    if name:
        return f'write {{"type": "hf", "dataset": "{clip(name, LONGEST_NAME)}"}} for a dataset on the Hub'
    if "://" in entry:
        return 'an address: download what is there, and write {"type": "text", "path": "..."} for text files'
    if suffix == ".pdf":
        return f'write {{"type": "pdf", "path": {path}}} for a PDF'
    if FORMATS.get(suffix, "text") != "text":
        return f'write {{"type": "hf", "dataset": "{FORMATS[suffix]}", "data_files": {path}}} for a file of rows'
    if suffix not in FORMATS and re.fullmatch(r"\w[\w.-]*/[\w.-]+", entry):
        return f'write {{"type": "hf", "dataset": {path}}} for a dataset on the Hub'
    if suffix in FORMATS or entry.startswith(FOLDER_STARTS) or re.search(r"[/\\]", entry):
        return f'write {{"type": "text", "path": {path}}} for text files'
    return ""


SourceEntry = Annotated[
    Annotated[Literal[*NAMED_SOURCES], Tag("name")]  # type: ignore[valid-type]  # names from a table, for editors
    | Annotated[HFSource, Tag("hf")]
    | Annotated[PDFSource, Tag("pdf")]
    | Annotated[TextSource, Tag("text")]
    | Annotated[PythonSource, Tag("python")],
    Discriminator(_kind),
    BeforeValidator(_no_dataset),
]


def look_up(entry: Any) -> Source:
    if not isinstance(entry, str):
        return entry
    spec = NAMED_SOURCES[entry].spec
    return KINDS[spec["type"]].model_validate({"label": entry, **spec})


def same_text(source: Source, other: Source) -> bool:
    """Return whether two sources are one, whatever their labels."""
    return source.model_dump(exclude={"label"}) == other.model_dump(exclude={"label"})


def same_documents(source: Source, other: Source) -> bool:
    """Return whether two sources read the same documents, however many of them and however often."""
    besides = {"label", "repeat", "max_documents"}
    return source.model_dump(exclude=besides) == other.model_dump(exclude=besides)


def unique_labels(specs: list[Source]) -> list[str]:
    """Return for each source its shortest name that no other has, or a numbered one: name#2.

    Labels are printable, since a name may come from a path.
    """
    names_of = [[clip(name, LONGEST_LABEL) for name in ([spec.label] if spec.label else spec.names)] for spec in specs]
    wanted = Counter(name for names in names_of for name in set(names))
    labels: dict[str, None] = {}  # in their order
    numbers: defaultdict[str, count] = defaultdict(
        lambda: count(2)
    )  # going on where the last source of that name ended
    for names in names_of:
        label = next((name for name in names if wanted[name] == 1), names[0])
        ends = map("#{}".format, numbers[label])
        numbered = (clip(label, LONGEST_LABEL - len(end)) + end for end in ends)
        labels[next(name for name in chain([label], numbered) if name not in labels)] = None
    return list(labels)
