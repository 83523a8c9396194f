"""A dataset of the Hugging Face Hub, or in its form on this disk, as a preset names it."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from configs.fields import (
    FOLDER_STARTS,
    LONGEST_NAME,
    LONGEST_PATH,
    FilePath,
    FilePaths,
    Name,
    SourceSpec,
    name_in_address,
)
from configs.formats import check_format
from configs.splits import Part, parse_split
from configs.text import clip

FORMATS = {  # of data files, named as in `datasets`, by the suffix before that of a compression
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".txt": "text", ".md": "text", ".arrow": "arrow",
}  # fmt: skip
LOCAL_FORMATS = tuple(dict.fromkeys(FORMATS.values()))
MOST_FIELDS = 64
MOST_ROWS_PUT_TOGETHER = 10_000  # rows in one document
# What is written for `messages`, and how that is put.
WRITTEN_FOR_OTHERS = {  # keys that people write, and what is meant
    "conversations": '"messages": "conversations", the column with the turns',
    "conversation": '"messages": "conversation", the column with the turns',
    "prompt": '"messages": ["prompt", "completion"], the columns of a question and its answer',
    "completion": '"messages": ["prompt", "completion"], the columns of a question and its answer',
    "path": '"dataset", a name on the Hub or a folder',
    "name": '"dataset", a name on the Hub or a folder; which of its configurations is "config"',
    "subset": '"config"',
    "column": '"text_field", the column with the text',
}


class HFSource(SourceSpec):
    """A dataset on the Hugging Face Hub, streamed. A document is one column, several columns rendered by format, or a
    conversation."""

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
        description="Columns used by format, in order; the last is the answer. A row is skipped if that is empty, or if all "
        "the others are. With dots, a field inside of a column: answers.text. One column without a format: as "
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
    rows_until: Literal["empty", "heading"] | None = Field(
        default=None,
        exclude_if=lambda end: end is None,  # streams from before this key can then be resumed
        description="The same, where texts differ in length: a document ends before an empty row, or before a row that is a "
        "heading, such as = Title = or # Title. It ends with its row group, too.",
    )
    messages: Name | Annotated[list[Name], Field(min_length=2, max_length=MOST_FIELDS)] | None = Field(
        default=None,
        exclude_if=lambda messages: messages is None,  # streams from before this key can then be resumed
        description="Conversations, of which the model learns what the assistant says: the column with the list of turns, "
        "each with role and content, or from and value; or the columns of one question and its answer, which comes last: "
        '["prompt", "completion"]. With dots, a field inside of a column.',
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

    @field_validator("rows_per_document", "rows_until")
    @classmethod
    def _lines_alone(cls, given: int | str | None, info: ValidationInfo) -> int | str | None:
        if given not in (1, None) and info.data.get("fields"):
            raise ValueError("needs text_field; rows of several fields are documents of their own")
        if isinstance(given, str) and info.data.get("rows_per_document", 1) > 1:
            raise ValueError("give rows_until or rows_per_document, not both")
        return given

    @field_validator("messages")
    @classmethod
    def _conversations_alone(cls, messages: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        if messages and any(info.data.get(key) for key in ("text_field", "fields", "format")):
            raise ValueError("give messages for conversations, or text_field or fields for text: not both")
        for key, alone in (("rows_per_document", 1), ("rows_until", None)):
            if messages and info.data.get(key, alone) != alone:
                raise ValueError(f"each row is a conversation of its own: remove {key}")
        if isinstance(messages, list) and len(set(messages)) < len(messages):
            raise ValueError("every column once")
        return messages

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

    @field_validator("delimiter")
    @classmethod
    def _delimits_something(cls, delimiter: str | None, info: ValidationInfo) -> str | None:
        dataset = info.data.get("dataset")
        if delimiter and dataset in LOCAL_FORMATS and dataset != "csv":
            raise ValueError(f"is for CSV files, and dataset is {dataset!r}; remove it")
        return delimiter

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
        alternatives = ("text_field", "fields", "format", "messages")
        if isinstance(given, dict) and (written := next((key for key in WRITTEN_FOR_OTHERS if key in given), None)):
            raise ValueError(f"no key {clip(written, 20)!r}: write {WRITTEN_FOR_OTHERS[written]}")
        if isinstance(given, dict) and all(given.get(key) is None for key in alternatives):
            return {**given, "text_field": "text"}
        match given:
            case {"messages": [str() as name]}:
                return {**given, "messages": name}
            case {"fields": [str() as name]} if 0 < len(name) <= LONGEST_NAME:
                if given.get("text_field") is None and given.get("format") is None:
                    return {**given, "text_field": name, "fields": None}
        return given

    @property
    def columns(self) -> list[str]:
        """The columns that a document is made of, as the preset names them."""
        if self.messages:
            return [self.messages] if isinstance(self.messages, str) else self.messages
        return self.fields or [self.text_field or "text"]

    @property
    def cell_names(self) -> list[str]:
        """What the cells of a document are (data/sources/base.py: Document), in words or as columns."""
        return ["first question"] if isinstance(self.messages, str) else self.columns

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
        files = [(name, by_split[name]) for name in names]
        return {
            name: [os.path.expanduser(path) for path in ([paths] if isinstance(paths, str) else paths)]
            for name, paths in files
        }

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
        return (self.folder and self.folder.name) or self.dataset, f"{self.dataset}/{self.config}"
