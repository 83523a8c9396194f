"""Lays out text of your own as if it were the datasets the presets name, for machines that cannot reach the Hub.

    python -m benchmarks.stand_in_datasets PROSE QA OUT
    python -m tests.hub OUT 8000 &
    HF_ENDPOINT=http://127.0.0.1:8000 python main.py

PROSE: a folder of .txt files; QA: a folder of .jsonl files with "query" and "answer" on each line. Each dataset in
configs/catalog.py gets Parquet files under its own name, configuration and columns, and a part of the text that no
other dataset has. Deterministic: the same text gives the same files.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from configs.catalog import NAMED_SOURCES

PIECE = 4_000  # characters in one prose row, about a web page's worth
ROWS_PER_GROUP, FILES = 500, 4


def prose_rows(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("**/*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]


def qa_rows(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("**/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["query"], row["answer"]


def share_out(rows: Iterator, names: list[str]) -> dict[str, list]:
    """Each row to one dataset, by its hash."""
    shares: dict[str, list] = {name: [] for name in names}
    for row in rows:
        number = int.from_bytes(hashlib.blake2b(repr(row).encode(), digest_size=8).digest())
        shares[names[number % len(names)]].append(row)
    return shares


def write(out: Path, spec: dict, columns: dict[str, list]) -> None:
    """A repository: Parquet files in several row groups, and a card that names the configuration."""
    config, split = spec.get("config") or "default", spec.get("split", "train")
    folder = out / spec["dataset"]
    (folder / config).mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    for number in range(FILES):
        part = table.slice(
            number * len(table) // FILES, (number + 1) * len(table) // FILES - number * len(table) // FILES
        )
        path = folder / config / f"{split}-{number:05d}-of-{FILES:05d}.parquet"
        pyarrow.parquet.write_table(part, path, row_group_size=ROWS_PER_GROUP)
    card = f'---\nconfigs:\n- config_name: "{config}"\n  data_files:\n  - split: {split}\n    path: "{config}/*.parquet"\n---\n'
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{spec['dataset']:45} {config:20} {len(table):8,} rows, columns {', '.join(columns)}")


def columns_of(spec: dict, rows: list) -> dict[str, list]:
    """The columns that a source reads, made of texts or of (question, answer)."""
    match spec:
        case {"fields": [first, *others, last]} | {"messages": [first, *others, last]}:
            columns = {first: [question for question, _ in rows], last: [answer for _, answer in rows]}
            return columns | {name: [""] * len(rows) for name in others}
        case {"messages": name}:
            roles = "user", "assistant"
            turns = [[{"role": role, "content": text} for role, text in zip(roles, row, strict=True)] for row in rows]
            return {name: turns}
    return {spec["text_field"]: rows}


def main(prose: Path, qa: Path, out: Path) -> None:
    specs = {name: spec for name, (spec, *_) in NAMED_SOURCES.items() if spec["type"] == "hf"}
    of_text = [name for name, spec in specs.items() if "text_field" in spec]
    texts = share_out(prose_rows(prose), of_text)
    pairs = share_out(qa_rows(qa), [name for name in specs if name not in of_text])
    for name, rows in (texts | pairs).items():
        write(out, specs[name], columns_of(specs[name], rows))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
