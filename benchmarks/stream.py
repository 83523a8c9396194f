"""The stream beside the plain way to write it: tokens a second, seconds to resume, memory.

    python -m benchmarks.stream PARQUET_A PARQUET_B OUT [TOKENS]

Two folders of Parquet files with a column "text", mixed half and half, one tokenizer (trained here, 8192 tokens), rows
of 512 tokens. Ours: the producer process and its journal, read as training reads it. Plain: `interleave_datasets`, the
tokenizer mapped over batches, texts joined and cut, a DataLoader with two workers, as the libraries' documentation
shows it. Both in turn, three times. Resuming: ours is stopped and started again near the end; the plain way loads the
state that its DataLoader-less dataset gave (`load_state_dict`), which is exact only for unshuffled rows.
"""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from configs.schema import parse_preset
from data import tokenizer as bpe
from data.batches import Stream

SEQ_LENGTH, VOCAB, ROUNDS = 512, 8192, 3
peaks: list[int] = []  # KiB of the producer, in each round
BATCH_ROWS = 64


def preset(folders: list[Path], tokenizer: Path):
    sources = [{"type": "hf", "dataset": str(folder), "label": folder.name} for folder in folders]
    return parse_preset(
        f"""{{"name": "stream", "model": {{"hidden_size": 64, "num_layers": 1, "num_heads": 1,
        "seq_length": {SEQ_LENGTH}, "vocab_size": {VOCAB}}}, "train": {{"eval_tokens": 100000}},
        "data": {{"sources": {sources}, "mix_strategy": "weighted", "source_weights": [1, 1],
        "tokenizer": "{tokenizer}"}}}}""".replace("'", '"'),
        "benchmark",
    )


def texts(folders: list[Path]) -> Iterator[str]:
    import datasets

    for folder in folders:
        rows = datasets.load_dataset(str(folder), split="train", streaming=True)
        yield from (row["text"] for row in islice(rows, 2000))


# ---- ours -------------------------------------------------------------------------------------------------------


def start(chosen, out: Path, tokens: int, first_row: int = 0) -> Stream:
    stream = Stream(chosen, out, tokens, start_row=first_row)
    stream.begin()
    return stream


def peak_memory(stream: Stream) -> int:
    """KiB, from Linux' /proc: what getrusage tells of a child includes what its parent held when it was started."""
    status = Path(f"/proc/{stream._process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def read_stream(chosen, out: Path, tokens: int) -> float:
    """Tokens a second from the first row to the last, as fast as the reader may."""
    shutil.rmtree(out, ignore_errors=True)
    stream = start(chosen, out, tokens)
    stream.rows(0, BATCH_ROWS)
    began, row, num_rows = time.perf_counter(), BATCH_ROWS, tokens // SEQ_LENGTH
    while row + BATCH_ROWS <= num_rows:
        stream.consumed(row)
        stream.rows(row, BATCH_ROWS)
        row += BATCH_ROWS
    speed = (row - BATCH_ROWS) * SEQ_LENGTH / (time.perf_counter() - began)
    peaks.append(peak_memory(stream))
    stream.close()
    return speed


def resume_stream(chosen, out: Path, tokens: int) -> float:
    """Seconds from nothing to the next batch, deep in a journal whose last rows are still to be made."""
    began = time.perf_counter()
    num_rows = tokens // SEQ_LENGTH
    stream = start(chosen, out, 2 * tokens, first_row=num_rows)
    stream.rows(num_rows + BATCH_ROWS, BATCH_ROWS)
    seconds = time.perf_counter() - began
    stream.close()
    return seconds


# ---- the plain way ----------------------------------------------------------------------------------------------


def plain_dataset(folders: list[Path], tokenizer: Path):
    import datasets
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token="<|endoftext|>")

    def encode(batch: dict) -> dict:
        flat = [token for ids in fast(batch["text"])["input_ids"] for token in (fast.eos_token_id, *ids)]
        length = len(flat) // SEQ_LENGTH * SEQ_LENGTH
        return {"input_ids": [flat[i : i + SEQ_LENGTH] for i in range(0, length, SEQ_LENGTH)]}

    parts = [datasets.load_dataset(str(folder), split="train", streaming=True) for folder in folders]
    columns = ["text"]
    parts = [part.select_columns(columns) for part in parts]
    mixed = datasets.interleave_datasets(parts, probabilities=[0.5, 0.5], seed=0, stopping_strategy="all_exhausted")
    return mixed.map(encode, batched=True, remove_columns=columns)


def read_plain(folders: list[Path], tokenizer: Path, tokens: int) -> float:
    import torch
    from torch.utils.data import DataLoader

    rows = plain_dataset(folders, tokenizer).with_format("torch")
    batches = iter(DataLoader(rows, batch_size=BATCH_ROWS, num_workers=2))
    next(batches)
    began, seen = time.perf_counter(), 0
    for batch in batches:
        assert isinstance(batch["input_ids"], torch.Tensor)
        seen += batch["input_ids"].numel()
        if seen >= tokens:
            break
    return seen / (time.perf_counter() - began)


def resume_plain(folders: list[Path], tokenizer: Path, tokens: int) -> float:
    rows = plain_dataset(folders, tokenizer)
    for _ in islice(rows, tokens // SEQ_LENGTH):
        pass
    state = rows.state_dict()
    began = time.perf_counter()
    resumed = plain_dataset(folders, tokenizer)
    resumed.load_state_dict(state)
    list(islice(resumed, BATCH_ROWS))
    return time.perf_counter() - began


# ---- both -------------------------------------------------------------------------------------------------------


def median_of(name: str, unit: str, measure: Callable[[], float]) -> Callable[[], float]:
    found: list[float] = []

    def again() -> float:
        found.append(measure())
        print(f"  {name:24} {found[-1]:>14,.2f} {unit}", flush=True)
        return statistics.median(found)

    return again


def run(folders: list[Path], out: Path, tokens: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = out / "given_tokenizer.json"
    tokenizer.write_text(bpe.train(texts(folders), VOCAB).to_str())
    chosen, journal = preset(folders, tokenizer), out / "run"
    ours = median_of("ours", "tokens/s", lambda: read_stream(chosen, journal, tokens))
    plain = median_of("plain", "tokens/s", lambda: read_plain(folders, tokenizer, tokens))
    our_resume = median_of("ours, resuming", "s", lambda: resume_stream(chosen, journal, tokens))
    plain_resume = median_of("plain, resuming", "s", lambda: resume_plain(folders, tokenizer, tokens))
    for _ in range(ROUNDS):
        speeds = ours(), plain()
        seconds = our_resume(), plain_resume()
    print(f"{tokens:,} tokens, {os.cpu_count()} cores, medians of {ROUNDS}")
    print(f"ours {speeds[0]:,.0f} tokens/s, plain {speeds[1]:,.0f} tokens/s: {speeds[0] / speeds[1]:.2f} times")
    print(f"resuming after {tokens:,} tokens: ours {seconds[0]:.2f} s, plain {seconds[1]:.2f} s")
    print(f"our producer: {max(peaks) / 2**10:,.0f} MiB at its peak")
    print(f"mixture of ours: {np.round(mixture(chosen, journal, tokens), 4)}")


def mixture(chosen, journal: Path, tokens: int) -> np.ndarray:
    stream = start(chosen, journal, tokens)
    counts = stream.mixture(0, tokens // SEQ_LENGTH)
    stream.close()
    return counts / counts.sum()


if __name__ == "__main__":
    run([Path(argument) for argument in sys.argv[1:3]], Path(sys.argv[3]), int((sys.argv[4:] or [20_000_000])[0]))
