"""Held-out bits per byte after training on the very same rows in several orders.

    python -m benchmarks.order PRESET OUT WIDTH LAYERS TOKENS BATCH SEEDS ORDER...

The rows are the first TOKENS of what PRESET's sources give, written to OUT/<its name>; seq_length and the vocabulary are
the preset's. The environment's ROWS, if it is set, is the number of tokens to write, for longer runs on the same rows.
ORDER: `journal`, as they were written; `all`, shuffled as a whole; `program`, as main.py reads them in a run of 100M
tokens; or a number, shuffled in windows of so many tokens. BATCH: tokens a step; SEEDS: 1,2,3. A finished run is kept in
OUT/<digest of the rows>/ and not run again.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.contenders import Options, Shape, own_preset, recipe_digest, train_preset
from benchmarks.quality import Text
from configs.schema import Preset, load_preset
from data.order import RowOrder
from lm.runtime.machine import keep_freed_memory


def edges(order: str, num_rows: int, seq_length: int, program: list[int]) -> list[int]:
    match order:
        case "journal":
            return list(range(num_rows + 1))
        case "all":
            return [0, num_rows]
        case "program":
            return [*(edge for edge in program if edge < num_rows), num_rows]
        case _:
            window = int(order) // seq_length
            return [*range(0, num_rows, window), num_rows]


def train(text: Text, shape: Shape, preset: Preset, options: Options, order: str) -> dict:
    """Bits per byte of each source and of all held-out text, and the seconds it took."""
    rows = options.tokens_per_step // shape.length
    text.order = RowOrder(edges(order, options.num_steps * rows, shape.length, text.program), options.seed)
    began = time.perf_counter()
    train_preset(preset, shape, (text.rows(step * rows, rows) for step in range(options.num_steps)), options)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, **text.bits_per_byte(options.logits)}


def main(path: Path, out: Path, width: int, layers: int, tokens: int, batch: int, seeds: list[int], orders: list[str]):
    keep_freed_memory()
    preset = load_preset(path)
    text = Text(preset, out / preset.name, int(os.environ.get("ROWS", tokens)))
    text.program = text.order.edges
    shape = Shape(width, layers, max(1, width // 64), preset.model.seq_length, text.vocab_size)
    folder = out / text.digest
    folder.mkdir(exist_ok=True)
    print(f"{preset.name} {text.digest}: {shape}, {tokens:,} tokens in steps of {batch:,}", flush=True)
    for order in orders:
        found = []
        for seed in seeds:
            options = Options(tokens // batch, seed=seed, tokens_per_step=batch)
            own = own_preset(shape, options)
            file = folder / f"{width}x{layers}-{tokens}-{batch}-{order}-{seed}-{recipe_digest(own, options)}.json"
            if not file.exists():
                file.write_text(json.dumps(train(text, shape, own, options, order)))
            found.append(json.loads(file.read_text()))
        means = [run["mean"] for run in found]
        spread = f" ± {statistics.stdev(means):.4f}" if len(means) > 1 else ""
        each = {label: round(statistics.mean(run[label] for run in found), 4) for label in found[0]}
        print(f"{order:>10} {statistics.mean(means):.4f}{spread} {means} {each}", flush=True)


if __name__ == "__main__":
    path, out, *numbers = sys.argv[1:7]
    main(Path(path), Path(out), *map(int, numbers), [int(seed) for seed in sys.argv[7].split(",")], sys.argv[8:])
