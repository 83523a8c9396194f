"""Opens the source of documents that a preset names.

Text files (text.py), PDFs (pdf.py), a dataset in Hugging Face form (hub.py), or the Python source
on this machine.
"""

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from configs import schema
from configs.errors import SourceError
from data.sources.base import Source
from data.sources.find import find_files, folder_to_stay_in
from data.sources.hub_messages import local_problem
from data.sources.text import CHANGED, FileSource


def open_source(spec: schema.Source, *, cache_dir: Path | None, seed: int, pinned: dict | None = None) -> Source:
    """Open the source that `spec` describes. `cache_dir` keeps extracted text (None: nowhere).

    Raises SourceError when it cannot be used and Retryable when the network is temporarily down.
    """
    if spec.type == "hf":
        if problem := local_problem(spec):
            raise SourceError(f"source {spec.label}: {problem}")
        # Imports `datasets`, which takes two seconds that runs on local text avoid.
        from data.sources.hub import HubSource

        return HubSource(spec, seed=seed, pinned=pinned)
    if spec.type == "pdf":
        from data.sources.pdf import PDFSource

        return PDFSource(spec, cache_dir=cache_dir, seed=seed, pinned=pinned)
    if spec.type == "python":
        source = FileSource(spec.label, python_files(), seed=seed, pinned=pinned)
        # Files of uncertain encoding are not the user's to change; the start card counts them.
        source.notices[:] = [notice for notice in source.notices if CHANGED in notice]
        return source
    files = find_files(spec, spec.glob)
    return FileSource(spec.label, files, seed=seed, pinned=pinned, inside=folder_to_stay_in(spec))


def python_roots() -> list[Path]:
    """Return the standard library and the site-packages of the running interpreter: its own, the user's, and those that
    a virtual environment takes over."""
    own = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    others = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([*own, *filter(Path.is_dir, others)]))


def python_files() -> Iterator[Path]:
    """Yield every Python source file of the running interpreter and its installed packages."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for root in python_roots():
        for path in root.glob("**/*.py"):
            # An interpreter's packages lie inside its library; a virtual environment has others.
            if root != stdlib or not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts):
                yield path
