"""The stream beside other ways to feed a training run: tokens a second, seconds to resume, memory, waiting.

    python -m benchmarks.stream PROSE OUT [TOKENS]

PROSE: a folder of .txt files. It and the Python source installed here become two datasets of Parquet files, mixed half
and half, one tokenizer (trained here, 8192 tokens), rows of 512 tokens in batches of 64. In turn, three times:

ours     the producer process and its journal, read as training reads it, from nothing
plain    `datasets.interleave_datasets`, the tokenizer mapped over batches, texts joined and cut, a DataLoader with a
         worker for each core, as the libraries' documentation shows it, from nothing
litdata  if it is installed: its files written by `optimize` (a step of its own: timed), read by its own loader

Resuming: ours from a new process to the first batch that no one has made yet, behind all of a run's rows, everything
started again. The others load the state they gave in a process that runs already. Waiting: a trainer that takes
1,000,000 tokens a second, by sleeping between steps of 16,384.
"""

import itertools
import os
import shutil
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from configs.schema import parse_preset
from data import tokenizer as bpe
from data.stream import Stream

SEQ_LENGTH, VOCAB, BATCH_ROWS, ROUNDS = 512, 8192, 64, 3
DOCUMENT, FILES, GROUP_ROWS = 8_000, 8, 1_000  # characters; of each dataset; of a row group
TRAINER_SPEED, STEP = 1_000_000, 16_384  # tokens a second, tokens
CORES = os.cpu_count() or 1


# ---- the text ---------------------------------------------------------------------------------------------------


def write_parquet(files: Iterator[Path], folder: Path) -> None:
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(files)]
    rows = [text[i : i + DOCUMENT] for text in texts for i in range(0, len(text), DOCUMENT)]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        name = folder / f"train-{number:05}-of-{FILES:05}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": rows[number::FILES]}), name, row_group_size=GROUP_ROWS)


def some_text(folders: list[Path]) -> Iterator[str]:
    """Of each dataset its first file."""
    for folder in folders:
        yield from pyarrow.parquet.read_table(min(folder.glob("*.parquet")))["text"].to_pylist()


# ---- ours -------------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, folders: list[Path], tokenizer: Path, out: Path):
        sources = [{"type": "hf", "dataset": str(folder), "label": folder.name} for folder in folders]
        self.preset = parse_preset(
            f"""{{"name": "stream", "model": {{"hidden_size": 64, "num_layers": 1, "num_heads": 1,
            "seq_length": {SEQ_LENGTH}, "vocab_size": {VOCAB}}}, "train": {{"eval_tokens": 100000}},
            "data": {{"sources": {sources}, "mix_strategy": "weighted", "source_weights": [1, 1],
            "tokenizer": "{tokenizer}"}}}}""".replace("'", '"'),
            "benchmark",
        )
        self.out = out
        self.peak_memory = 0  # MiB, of the producer

    def read(self, tokens: int, trainer_speed: float | None = None) -> tuple[float, float]:
        """Tokens a second from the first batch to the last, and the share of that time spent waiting for rows."""
        shutil.rmtree(self.out, ignore_errors=True)
        stream = Stream(self.preset, self.out, tokens)
        stream.begin()
        rows_a_step = STEP // SEQ_LENGTH if trainer_speed else BATCH_ROWS
        stream.rows(0, rows_a_step)
        waited, began = stream.wait_seconds, time.perf_counter()
        for row in range(rows_a_step, tokens // SEQ_LENGTH - rows_a_step, rows_a_step):
            stream.consumed(row)
            stream.rows(row, rows_a_step)
            if trainer_speed:
                done = began + row * SEQ_LENGTH / trainer_speed
                time.sleep(max(0.0, done - time.perf_counter()))
        seconds = time.perf_counter() - began
        self.peak_memory = max(self.peak_memory, peak_memory(stream))
        waited = stream.wait_seconds - waited
        stream.close()
        return row * SEQ_LENGTH / seconds, waited / seconds

    def resume(self, tokens: int) -> float:
        """Seconds from nothing to a batch behind the last row that is there."""
        began = time.perf_counter()
        stream = Stream(self.preset, self.out, 2 * tokens, start_row=tokens // SEQ_LENGTH)
        stream.begin()
        num_rows = stream._reader.num_rows()
        stream.consumed(num_rows)
        stream.rows(num_rows, BATCH_ROWS)
        seconds = time.perf_counter() - began
        stream.close()
        return seconds


def peak_memory(stream: Stream) -> int:
    """MiB, from Linux' /proc: what getrusage tells of a child includes what its parent held when it was started."""
    status = Path(f"/proc/{stream._process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 2**10


# ---- the others -------------------------------------------------------------------------------------------------


def read_batches(batches: Iterator, tokens: int) -> float:
    """Tokens a second after the first batch."""
    next(batches)
    began = time.perf_counter()
    seen = sum(SEQ_LENGTH * len(batch) for batch in itertools.islice(batches, tokens // (BATCH_ROWS * SEQ_LENGTH) - 1))
    return seen / (time.perf_counter() - began)


class Plain:
    def __init__(self, folders: list[Path], tokenizer: Path):
        from transformers import PreTrainedTokenizerFast

        self.folders = folders
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token=bpe.END_OF_TEXT)

    def encode(self, batch: dict) -> dict:
        end = self.tokenizer.eos_token_id
        flat = [token for ids in self.tokenizer(batch["text"])["input_ids"] for token in (end, *ids)]
        return {"input_ids": [flat[i : i + SEQ_LENGTH] for i in range(0, len(flat) - SEQ_LENGTH + 1, SEQ_LENGTH)]}

    def dataset(self):
        import datasets

        parts = [datasets.load_dataset(str(folder), split="train", streaming=True) for folder in self.folders]
        mixed = datasets.interleave_datasets(parts, probabilities=[0.5, 0.5], seed=0, stopping_strategy="all_exhausted")
        return mixed.map(self.encode, batched=True, remove_columns=["text"]).with_format("torch")

    def read(self, tokens: int) -> float:
        from torch.utils.data import DataLoader

        loader = DataLoader(self.dataset(), batch_size=BATCH_ROWS, num_workers=CORES)
        return read_batches((batch["input_ids"] for batch in loader), tokens)

    def resume(self, tokens: int) -> float:
        rows = self.dataset()
        for _ in itertools.islice(rows, tokens // SEQ_LENGTH):
            pass
        state, began = rows.state_dict(), time.perf_counter()
        resumed = self.dataset()
        resumed.load_state_dict(state)
        assert len(list(itertools.islice(resumed, BATCH_ROWS))) == BATCH_ROWS
        return time.perf_counter() - began


def tokenized_documents(task: tuple[Path, Path, int]):
    """For litdata's `optimize`: (Parquet file, tokenizer, tokens at most) to tensors of token ids, one a document."""
    import torch

    file, tokenizer, wanted = task
    encoder = bpe.load(tokenizer)
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(128):
        for ids in bpe.encode(encoder, batch["text"].to_pylist()):
            yield torch.from_numpy(np.append(ids, bpe.end_of_text(encoder)).astype(np.uint16))
            wanted -= len(ids)
        if wanted <= 0:
            return


class LitData:
    def __init__(self, folders: list[Path], tokenizer: Path, out: Path, tokens: int):
        """Converts what is needed of the datasets: `convert_speed` tokens a second."""
        import litdata

        self.folders = [out / folder.name for folder in folders]
        began = time.perf_counter()
        for folder, target in zip(folders, self.folders, strict=True):
            files = sorted(folder.glob("*.parquet"))
            with redirect_stdout(sys.stderr):
                litdata.optimize(
                    fn=tokenized_documents,
                    inputs=[(file, tokenizer, int(0.6 * tokens) // len(files)) for file in files],
                    output_dir=str(target),
                    item_loader=litdata.TokensLoader(block_size=SEQ_LENGTH + 1),
                    chunk_size=(SEQ_LENGTH + 1) * 4096,
                    num_workers=CORES,
                    mode="overwrite",
                )
        self.convert_speed = 1.2 * tokens / (time.perf_counter() - began)

    def loader(self):
        import litdata

        parts = [
            litdata.StreamingDataset(
                str(folder), item_loader=litdata.TokensLoader(block_size=SEQ_LENGTH + 1), shuffle=True, drop_last=True
            )
            for folder in self.folders
        ]
        mixed = litdata.CombinedStreamingDataset(parts, weights=[0.5, 0.5], seed=0, iterate_over_all=False)
        return litdata.StreamingDataLoader(mixed, batch_size=BATCH_ROWS, num_workers=CORES)

    def read(self, tokens: int) -> float:
        return read_batches(iter(self.loader()), tokens)

    def resume(self, tokens: int) -> float:
        loader = self.loader()
        for _ in itertools.islice(loader, tokens // (2 * BATCH_ROWS * SEQ_LENGTH)):  # it cannot at its end
            pass
        state = loader.state_dict()
        del loader
        began = time.perf_counter()
        resumed = self.loader()
        resumed.load_state_dict(state)
        assert len(next(iter(resumed))) == BATCH_ROWS
        return time.perf_counter() - began


# ---- side by side -----------------------------------------------------------------------------------------------


def run(prose: Path, out: Path, tokens: int) -> None:
    folders = [out / "prose", out / "python"]
    write_parquet(prose.glob("**/*.txt"), folders[0])
    write_parquet(Path(sysconfig.get_path("purelib")).glob("**/*.py"), folders[1])
    tokenizer = out / "given_tokenizer.json"
    tokenizer.write_text(bpe.train(some_text(folders), VOCAB).to_str())

    ours, plain = Ours(folders, tokenizer, out / "run"), Plain(folders, tokenizer)
    measures: dict[str, Callable[[], float]] = {
        "ours, tokens/s": lambda: ours.read(tokens)[0],
        "ours, seconds to resume": lambda: ours.resume(tokens),
        "plain, tokens/s": lambda: plain.read(tokens),
        "plain, seconds to resume": lambda: plain.resume(tokens),
    }
    with suppress(ImportError):
        litdata = LitData(folders, tokenizer, out / "litdata", tokens)
        print(f"litdata, converting         {litdata.convert_speed:>12,.0f} tokens/s", flush=True)
        measures["litdata, tokens/s converted"] = lambda: litdata.read(tokens)
        measures["litdata, seconds to resume"] = lambda: litdata.resume(tokens)

    figures: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            figures[name].append(measure())
            print(f"  {name:28} {figures[name][-1]:>14,.2f}", flush=True)
    print(f"{tokens:,} tokens, {CORES} cores, medians of {ROUNDS} (smallest to largest)")
    for name, found in figures.items():
        print(f"{name:28} {statistics.median(found):>14,.2f} ({min(found):,.2f} to {max(found):,.2f})")
    ratio = statistics.median(figures["ours, tokens/s"]) / statistics.median(figures["plain, tokens/s"])
    speed, waiting = ours.read(tokens, TRAINER_SPEED)
    print(f"ours is {ratio:.2f} times as fast as plain; its producer takes {ours.peak_memory:,} MiB")
    print(f"a trainer of {TRAINER_SPEED:,} tokens/s gets {speed:,.0f} and waits {waiting:.2%} of its time")


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int((sys.argv[3:] or [20_000_000])[0]))
