"""The kinds of source that a preset may hold, and the labels of sources.

A source object says where text is; nothing here imports torch or opens the source, which
data/sources/opening.py does.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from configs.catalog import NAMED_SOURCES
from configs.fields import (
    FOLDER_STARTS,
    LONGEST_LABEL,
    LONGEST_NAME,
    LONGEST_PATH,
    Count,
    FilePath,
    FilePaths,
    Name,
    Section,
    name_in_address,
)
from configs.formats import check_format
from configs.splits import Part, parse_split
from configs.text import clip

LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow")  # local files, named as in `datasets`
MOST_FIELDS = 64
MOST_ROWS_PUT_TOGETHER = 10_000  # rows in one document


class SourceSpec(Section):
    """The keys that every kind of source has."""

    label: str = Field(
        default="",
        max_length=LONGEST_LABEL,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*$",
        description="Short name in logs, metrics and reports; default: made from the dataset or the file name.",
    )
    max_documents: Count | None = Field(default=None, description="Documents read in one epoch; default: all.")
    repeat: Count | None = Field(
        default=None,
        description="Epochs before the source is exhausted; the run ends early when all are, see small texts below; "
        "default: no limit.",
    )


class HFSource(SourceSpec):
    """A dataset on the Hugging Face Hub, streamed. A document is one column, or several columns rendered by format."""

    type: Literal["hf"] = Field(description="A dataset on the Hugging Face Hub, or in its form on this disk.")
    dataset: str = Field(
        max_length=LONGEST_PATH,
        pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?|[/~.][^\x00-\x1f]*)$",
        description="Dataset on the Hub, owner/name; a folder, beginning with /, ./ or ~/; or the format of data_files: "
        "json, csv, parquet, text, arrow.",
    )
    config: Name | None = Field(default=None, description="Configuration (subset) of the dataset.")
    revision: Name | None = Field(
        default=None,
        description="Branch, tag or commit of a dataset on the Hub; default: the newest when a run begins.",
    )
    split: Name = Field(
        default="train",
        description="Split of the dataset, or several: train+validation. A slice, such as train[:10%] or "
        "train[1000:2000], is possible where rows can be counted without being read: in Parquet.",
    )
    text_field: Name | None = Field(
        default=None,
        description='Column holding the text; default "text" when there are no fields. With dots, a field inside of a '
        'column: "meta.text".',
    )
    fields: list[Name] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_FIELDS,
        description="Columns used by format, in order; the last is the answer, without which a row is skipped, as it is "
        "without any of the others. With dots, a field inside of a column: answers.text. One column without a format: as "
        "text_field.",
    )
    format: str | None = Field(
        default=None,
        max_length=10_000,
        validate_default=True,
        description='Document made of fields, such as "Q: {question}\\nA: {answer}". A section {#context}In: {context}'
        "{/context} is left out where that column is empty.",
    )
    rows_per_document: int = Field(
        default=1,
        ge=1,
        le=MOST_ROWS_PUT_TOGETHER,
        exclude_if=lambda rows: rows == 1,  # streams from before this key can then be resumed
        description="Rows of text_field, one after another, that are the lines of one document; for datasets whose rows are "
        "single lines of longer texts.",
    )
    data_dir: FilePath | None = Field(default=None, description="Folder of the repository to read.")
    data_files: FilePaths | Annotated[dict[Name, FilePaths], Field(max_length=100)] | None = Field(
        default=None,
        description='Files of the repository, as paths or globs; or of each split: {"train": "a/*.jsonl"}.',
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        pattern=r'^[^"\r\n]$',
        description="Character between the columns of CSV files; default: a comma, or a tab in .tsv files.",
    )

    @field_validator("dataset", mode="before")
    @classmethod
    def _no_address(cls, dataset: Any) -> Any:
        """Say what to write for what people paste: the address of a page, or its end."""
        given = str(dataset)[:LONGEST_PATH]
        if name := name_in_address(given, "datasets/"):
            raise ValueError(f'write "{name}", the name of the dataset alone')
        if re.match(r"https?://", given):
            raise ValueError(
                'an address: write "owner/name" for a dataset on the Hub; download a file, and write its format (json, csv, '
                "parquet or text) here and its path in data_files"
            )
        return dataset

    @field_validator("fields")
    @classmethod
    def _fields_alone(cls, fields: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if fields and info.data.get("text_field"):
            raise ValueError("give either text_field, or fields with format, not both")
        if fields and len(set(fields)) < len(fields):
            raise ValueError("every column once")
        return fields

    @field_validator("format")
    @classmethod
    def _format_is_plain(cls, form: str | None, info: ValidationInfo) -> str | None:
        if "fields" not in info.data:
            return form
        fields = info.data["fields"]
        if form is None and fields is None:
            return form
        if form is None:
            raise ValueError(f'fields need a format, such as "{" ".join(f"{{{field}}}" for field in fields)}"')
        if fields is None:
            raise ValueError('format needs fields: the list of columns it uses, such as ["question", "answer"]')
        check_format(form, fields)
        return form

    @field_validator("rows_per_document")
    @classmethod
    def _lines_alone(cls, rows: int, info: ValidationInfo) -> int:
        if rows > 1 and info.data.get("fields"):
            raise ValueError("needs text_field; rows of several fields are documents of their own")
        return rows

    @field_validator("revision")
    @classmethod
    def _of_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        dataset = info.data.get("dataset", "")
        if revision and (dataset in LOCAL_FORMATS or dataset.startswith(FOLDER_STARTS)):
            raise ValueError("only a dataset on the Hub has revisions: remove it")
        return revision

    @field_validator("split")
    @classmethod
    def _split_is_plain(cls, split: str) -> str:
        parse_split(split)
        return split

    @field_validator("data_files")
    @classmethod
    def _some_files(cls, files: Any, info: ValidationInfo) -> Any:
        if not files and info.data.get("dataset") in LOCAL_FORMATS and not info.data.get("data_dir"):
            raise ValueError("a format in dataset needs the files to read: a path, a glob, or a list of them")
        if isinstance(files, dict) and "split" in info.data:
            for name in (part.name for part in parse_split(info.data["split"])):
                if not files.get(name):
                    raise ValueError(f"has no files for split {name!r}; it has {', '.join(map(repr, files))[:80]}")
        return files

    @model_validator(mode="before")
    @classmethod
    def _text_by_default(cls, given: Any) -> Any:
        alternatives = ("text_field", "fields", "format")
        if isinstance(given, dict) and all(given.get(key) is None for key in alternatives):
            return {**given, "text_field": "text"}
        match given:
            case {"fields": [str() as name]} if 0 < len(name) <= LONGEST_NAME:
                if given.get("text_field") is None and given.get("format") is None:
                    return {**given, "text_field": name, "fields": None}
        return given

    @property
    def parts(self) -> list[Part]:
        """The splits to read, or slices of them."""
        return parse_split(self.split)

    @property
    def files_by_split(self) -> dict[str, list[str]] | None:
        """The paths and globs in data_files of each split that is read."""
        if self.data_files is None:
            return None
        by_split = self.data_files if isinstance(self.data_files, dict) else {"train": self.data_files}
        names = [part.name for part in self.parts if part.name in by_split] or list(by_split)
        files = {name: by_split[name] for name in names}
        return {name: [paths] if isinstance(paths, str) else list(paths) for name, paths in files.items()}

    @property
    def folder(self) -> Path | None:
        """The folder of the dataset on this disk, if it is given as one."""
        # Path.expanduser would raise for an unknown user.
        return Path(os.path.expanduser(self.dataset)) if self.dataset.startswith(FOLDER_STARTS) else None

    @property
    def is_local(self) -> bool:
        return self.dataset in LOCAL_FORMATS or self.folder is not None

    @property
    def names(self) -> tuple[str, ...]:
        return self.folder.name if self.folder else self.dataset, f"{self.dataset}/{self.config}"


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
    path: FilePath = Field(description="A PDF, or a folder read with its subfolders; ~ and relative paths work.")

    @property
    def names(self) -> tuple[str, ...]:
        return (f"pdf:{Path(self.path).name or self.path}",)


class TextSource(FilesSource):
    """Text files of your own, one document per file."""

    type: Literal["text"] = Field(description="Text files.")
    path: FilePath = Field(description="A text file or a folder; ~ and relative paths work.")
    glob: Name = Field(default="**/*.txt", description="Which files of the folder; ** is any depth.")

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
    """Say what to write for a dataset of the Hub whose name, or the address of whose page, is given as that of a
    source."""
    if isinstance(entry, str):
        name = name_in_address(entry, "datasets/") or (entry if re.fullmatch(r"[\w.-]+/[\w.-]+", entry) else "")
        if name:
            raise ValueError(
                f'write {{"type": "hf", "dataset": "{clip(name, LONGEST_NAME)}"}} for a dataset on the Hub'
            )
    return entry


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


def unique_labels(specs: list[Source]) -> list[str]:
    """Return for each source its shortest name that no other has, or a numbered one: name#2.

    Labels are printable, since a name may come from a path.
    """
    names_of = [[clip(name, LONGEST_LABEL) for name in ([spec.label] if spec.label else spec.names)] for spec in specs]
    wanted = Counter(name for names in names_of for name in set(names))
    labels: list[str] = []
    for names in names_of:
        label = next((name for name in names if wanted[name] == 1), names[0])
        candidates = [label, *(f"{label}#{number}" for number in range(2, len(specs) + 2))]
        labels.append(next(candidate for candidate in candidates if candidate not in labels))
    return labels
