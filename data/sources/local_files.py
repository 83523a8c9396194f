"""The file system in which the `datasets` library searches this disk: its globs end in bounded time."""

from glob import has_magic
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.sources.find import CannotBeSearched, matching_files


def bound_local_globs() -> None:
    """Let LocalFiles take the place of fsspec's own."""
    for protocol in LocalFiles.protocol:
        fsspec.register_implementation(protocol, LocalFiles, clobber=True)


class LocalFiles(LocalFileSystem):
    """fsspec's local file system, but for `glob`: fsspec's visits everything below a pattern's first
    folder, and the library calls it with dozens of patterns."""

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Return the files that match, without folders: a list, or with `detail` a dict.

        Raises CannotBeSearched.
        """
        path = self._strip_protocol(path)
        if not has_magic(path):
            return super().glob(path, **kwargs)
        parts = Path(path).parts
        first = next(place for place, part in enumerate(parts) if has_magic(part))
        root, pattern = Path(*parts[:first]), Path(*parts[first:])
        try:
            found = sorted(map(str, matching_files(root, str(pattern))))
        except CannotBeSearched as error:
            raise CannotBeSearched(f"{root} cannot be searched: {error}") from None
        return {name: self.info(name) for name in found if self.exists(name)} if kwargs.get("detail") else found
