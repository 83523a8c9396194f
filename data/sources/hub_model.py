"""The files of a model on the Hub: at one commit, downloaded into the Hub's cache, where they stay.

Every request goes through hub_client.py, as those for datasets do. A file has its name only when it
is whole: the library resumes a download that is cut off, and deletes what it has to give up. Without a network, or with
HF_HUB_OFFLINE set, a model that is in the cache already is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import SourceError, StartPointError
from data.files import FULL
from data.sources.hub_client import NoAnswer, causes, connect, find, first_line
from data.sources.hub_refusal import refusal


@dataclass(frozen=True)
class HubModel:
    """A model at one commit. `path` downloads a file, or finds it in the cache."""

    name: str
    revision: str
    commit: str
    sizes: Mapping[str, int]  # bytes of each file that there is
    digests: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of the large ones
    unreachable: str = ""  # why the Hub was not asked, if only the cache was

    def __str__(self) -> str:
        known = f" (as far as it was downloaded earlier: {self.unreachable})" if self.unreachable else ""
        return f"{self.name} at commit {self.commit[:12]}{known}"

    def path(self, file: str) -> Path:
        """Return where a file of `sizes` is, whole. Raises StartPointError if it cannot be had."""
        from huggingface_hub import hf_hub_download

        try:
            # By its revision, so that the cache notes which commit that is.
            options = (
                {"revision": self.commit, "local_files_only": True} if self.unreachable else {"revision": self.revision}
            )
            path = Path(hf_hub_download(self.name, file, **options))
        except Exception as error:
            if any(isinstance(link, OSError) and link.errno in FULL for link in causes(error)):
                raise
            reason = refusal(error, self.name, "model") or f"cannot be downloaded now ({first_line(error)})"
            raise StartPointError(f"{self.name}: {file} {reason}; start again when that has changed") from error
        if path.parent.name != self.commit:
            raise StartPointError(f"{self.name} was changed on the Hub while it was being downloaded; start again")
        whole = path.stat().st_size == self.sizes[file]
        if whole and file in self.digests:
            with path.open("rb") as opened:
                whole = hashlib.file_digest(opened, "sha256").hexdigest() == self.digests[file]
        if not whole:
            raise StartPointError(
                f"{path} is not the {file} of {self}, as the Hub has it: delete it, then start again."
            )
        return path


def find_model(name: str, revision: str | None = None) -> HubModel:
    """Ask the Hub, or else its cache, for a model. Raises StartPointError if neither has it."""
    revision = revision or "main"
    try:
        found = find("model", name, revision)
    except (SourceError, NoAnswer) as error:
        said = (
            str(error) if isinstance(error, SourceError) else f"{name}: the Hub cannot be reached ({first_line(error)})"
        )
        if cached := _cached(name, revision, said):
            return cached
        raise StartPointError(f"{said}, and the model is not in its cache") from error
    except Exception as error:
        if refused := refusal(error, name, "model"):
            raise StartPointError(f"model.init_from: {name} {refused}") from error
        raise
    return HubModel(name, revision, *_listing(found))


def _listing(found: dict[str, Any]) -> tuple[str, dict[str, int], dict[str, str]]:
    """Return commit, sizes and digests of the files at the top of a repository."""
    files = {file["rfilename"]: file for file in found["siblings"] if "/" not in file["rfilename"]}
    digests = {name: file["lfs"]["sha256"] for name, file in files.items() if file.get("lfs")}
    return found["sha"], {name: file["size"] for name, file in files.items()}, digests


def _cached(name: str, revision: str, unreachable: str) -> HubModel | None:
    """Return the model as the Hub's cache has it; None if it does not."""
    try:
        connect()
    except SourceError:  # the environment allows no library, so no cache
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    sizes = {file.name: file.stat().st_size for file in snapshot.iterdir() if file.is_file()}
    return HubModel(name, revision, snapshot.name, sizes, unreachable=unreachable)
