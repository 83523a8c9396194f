"""What the sections of a preset share: their base, and the kinds of value in them."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

FOLDER_STARTS = ("/", "~", ".")  # of a dataset or model on this disk; other names are the Hub's
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
LONGEST_PATH, LONGEST_NAME, LONGEST_LABEL = 1000, 200, 80  # characters, as messages contain them

Count = Annotated[int, Field(ge=1, le=10**12)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]


def name_in_address(given: str, folder: str) -> str:
    """Return the name of what lies in `folder` of the Hub, such as "datasets/", if the address of its page or
    the end of that is `given`, else ""."""
    own = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/").rpartition("://")[2]
    hosts = "|".join(re.escape(host) for host in (*HUB_HOSTS, own) if host)
    host = rf"(?:(?:https?://)?(?:{hosts})/|hf://)"
    anywhere = "?" if folder else ""  # without a folder, the end of an address is any name
    page = re.fullmatch(rf"{host}{anywhere}{folder}([\w.-]+(?:/[\w.-]+)?)(?:[/?#@].*)?", given[:LONGEST_PATH])
    return page[1] if page else ""


def _path(path: str) -> str:
    """Refuse what becomes of a Windows path that is copied into JSON."""
    if any(character in path for character in "\t\n\r\b\f"):
        raise ValueError(r"has a tab or line break, as \t or \n in JSON are: write / or \\ for each \ of a path")
    return path


FilePath = Annotated[str, Field(min_length=1, max_length=LONGEST_PATH), AfterValidator(_path)]
FilePaths = FilePath | Annotated[list[FilePath], Field(min_length=1, max_length=1000)]


class Section(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
    )


class SourceSpec(Section):
    """The keys that every kind of source has."""

    label: str = Field(
        default="",
        max_length=LONGEST_LABEL,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*$",
        description="Short name in logs, metrics and reports; default: made from the dataset or the file name.",
    )
    max_documents: Count | None = Field(
        default=None,
        description="Documents read in one epoch, the same in each; default: all. A piece of a long one counts as one.",
    )
    repeat: Count | None = Field(
        default=None,
        description="Epochs before the source is exhausted; the run ends early when all are; default: no limit.",
    )
