"""The program as its user has it: a copy of the repository with presets and a token budget of its own, run in a process.

A copy, because main.py finds presets and checkpoints beside itself. In it the budget is small; nothing else is changed.
"""

import atexit
import compileall
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch

from configs.schema import Preset, parse_preset
from lm.checkpoint.store import CURRENT
from lm.report.metrics import read_metrics
from lm.report.samples import read_samples
from lm.runtime.machine import Machine, measure_machine, save_machine
from lm.runtime.signals import processes
from tests.constants import LIBRARY, ROOT
from tests.warm_start import WarmPopen

ENVIRONMENT = {"TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
READ_LATE = {"HF_ENDPOINT", "PROGRAM"}  # variables that no import of a warm start reads
CODE = ("aux_heads", "configs", "data", "lm", *sorted(path.name for path in ROOT.glob("*.py")))
NOT_A_RUN = {".lock", "machine.json", "compiled"}  # what a start that failed may leave in checkpoints/
BUDGET = 20_011
LONG_BUDGET = 3 * BUDGET // 2  # of runs that a signal has to reach before they end
PIECE = 1_000  # characters of a document: enough of them that some are held out
SIZES = {
    "small": 100_000,
    "large": 300_000,
}  # characters: what a long run reads, and no more to tokenize at every start


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def write_text(folder: Path) -> Path:
    """Two folders of text in pieces: digests of lines of the standard library, and some of its files themselves."""
    text = "".join(path.read_text() for room in ("asyncio", "email") for path in sorted((LIBRARY / room).rglob("*.py")))
    digests = "\n".join(hashlib.sha256(line.encode()).hexdigest() for line in text.splitlines())
    for name, content in (("small", digests), ("large", text)):
        (folder / name).mkdir(parents=True)
        for start in range(0, SIZES[name], PIECE):
            (folder / name / f"{start:07}.txt").write_text(content[start : start + PIECE])
    return folder


def preset_json(text: Path, *, name="tiny", model=(), train=(), data=(), auxiliary=(), **more) -> dict:
    """A preset for `text`, a folder made by write_text; each argument changes a section."""
    sources = [{"type": "text", "label": label, "path": str(text / label)} for label in ("small", "large")]
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
    model = {**(shape if "init_from" not in dict(model) else {}), "seq_length": 32, **dict(model)}
    intervals = {"save_every_tokens": 4_000, "eval_every_tokens": 8_000, "sample_every_tokens": 10_000}
    train = {"per_gpu_batch_size": 8, "accumulation_steps": 2, "eval_tokens": 2_000, **intervals, **dict(train)}
    data = {"sources": sources, **dict(data)}
    return {"name": name, "model": model, "train": train, "data": data, "auxiliary": dict(auxiliary), **more}


def tiny_preset(text: Path, **changes) -> Preset:
    return parse_preset(json.dumps(preset_json(text, **changes)), "test")


def state_in(folder: Path, name: str = CURRENT) -> dict:
    """The state in a checkpoint, read as any outside program would."""
    return torch.load(folder / name, weights_only=True)


ALL_HEADS = {
    "enable_policy": True,
    "enable_value": True,
    "enable_dynamics": True,
    "enable_span_contrastive": True,
}

ADAPTIVE = {"enable_adaptive_sources": True, "adaptive_interval_tokens": 3_000, "adaptive_smoothing": 0.0}


@cache
def measured() -> Machine:
    """This machine as a program in ENVIRONMENT measures it; in another environment it is measured again."""
    with patch.dict(os.environ, ENVIRONMENT):
        return measure_machine()


@cache
def compiled_code() -> Path:
    """The program's code in a folder of its own, with its byte code: each copy would be compiled anew at every start."""
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.json", "__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    compileall.compile_dir(folder, quiet=1)
    return folder


class Program:
    """`run` starts it, answers its questions and waits; `start` only starts it. `close` ends what still runs."""

    def __init__(self, folder: Path, text: Path, *, token_budget: int = BUDGET):
        self.folder, self.text, self.checkpoints = folder, text, folder / "checkpoints"
        self.environment = dict(ENVIRONMENT)
        shutil.copytree(compiled_code(), folder, dirs_exist_ok=True)
        self.change("configs/schema.py", "TOKEN_BUDGET = 100_000_000", f"TOKEN_BUDGET = {token_budget}")
        self.checkpoints.mkdir()
        save_machine(self.checkpoints, measured())  # as by an earlier start: it takes a third of a second, and torch
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.processes: list[subprocess.Popen] = []

    def change(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text()
        assert text.count(old) == 1
        (self.folder / path).write_text(text.replace(old, new))

    def add(self, stem: str = "00_tiny", **changes) -> Path:
        return self.add_text(stem, json.dumps(preset_json(self.text, **changes)))

    def add_text(self, stem: str, text: str) -> Path:
        path = self.folder / "configs" / f"{stem}.json"
        path.write_text(text)
        return path

    def start(
        self,
        answers: str | None = None,
        *flags: str,
        launcher: tuple[str, ...] = (sys.executable,),
        warm: bool = True,
    ) -> subprocess.Popen:
        """`answers`: what is typed, then end-of-file; None: stdin is /dev/null. `warm`: with imports done before, if
        neither `launcher` nor the environment forbids it (tests/warm_start.py)."""
        as_usual = launcher in ((sys.executable,), *map(torchrun, range(1, 5))) and self.environment == ENVIRONMENT | {
            name: self.environment.get(name) for name in READ_LATE & self.environment.keys()
        }
        popen = WarmPopen if warm and as_usual else subprocess.Popen
        process = popen(
            [*launcher, str(self.folder / "main.py"), *flags],
            cwd=self.elsewhere,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL if answers is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        if answers is not None:
            process.stdin.write(answers)
            process.stdin.close()
            process.stdin = None
        return process

    def run(self, answers: str | None = None, *flags: str, **how) -> Ended:
        return ended(self.start(answers, *flags, **how))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def wait_for(self, tokens: int, process: subprocess.Popen) -> None:
        """Until metrics.jsonl says that so many tokens are trained on, or the process is over."""
        deadline = time.monotonic() + 300
        while process.poll() is None and self.tokens_in_metrics() < tokens:
            assert time.monotonic() < deadline, "no progress within five minutes"
            time.sleep(0.002)

    def tokens_in_metrics(self) -> int:
        return max((line["tokens"] for line in read_metrics(self.checkpoints / "metrics.jsonl")), default=0)

    def state(self, name: str = CURRENT) -> dict:
        return state_in(self.checkpoints, name)

    def written(self) -> set[str]:
        """What a run has left in checkpoints/, by name."""
        return {path.name for path in self.checkpoints.glob("*")} - NOT_A_RUN


def torchrun(num_processes: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}")


def workers_of(program: Program) -> dict[int, int]:
    """Process ids of all that run its main.py, by rank; Linux."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (path / "environ").read_bytes()
            if str(program.folder / "main.py").encode() in (path / "cmdline").read_bytes().split(b"\0"):
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", environment)
                if rank:
                    found[int(rank[1])] = int(path.name)
    return found


def producer_of(process: subprocess.Popen) -> int | None:
    """The process id of its data process, if it has one now; Linux."""
    for child, parent, _ in processes():
        with suppress(OSError):
            if parent == process.pid and b"data.producer" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return None


def check_logs(program: Program, token_budget: int = BUDGET) -> None:
    """Every kind of line has strictly increasing tokens, and samples too, whatever came between."""
    lines = read_metrics(program.checkpoints / "metrics.jsonl")
    for kind in ("loss", "eval"):
        tokens = [line["tokens"] for line in lines if kind in line]
        assert tokens == sorted(set(tokens))
        assert tokens[-1] == token_budget
    tokens = [line["tokens"] for line in lines if "adapted" in line]
    assert tokens == sorted(set(tokens))
    tokens = [section.tokens for section in read_samples(program.checkpoints / "samples.md")]
    assert tokens == sorted(set(tokens))
    # At each multiple but perhaps the last, and the end; and of a model that was there before, at the beginning.
    assert len(tokens) == token_budget // 10_000 + (0 in tokens)


def ended(process: subprocess.Popen) -> Ended:
    out, err = process.communicate(timeout=600)
    return Ended(process.returncode, out, err)


def fingerprint(state: dict) -> str:
    """sha256 over weights, optimizer state, random numbers and everything the next rows depend on."""
    keys = ("tokens_seen", "num_steps", "model", "heads", "optimizer", "rng", "stream_position")
    return digest_of([state[key] for key in keys])


def digest_of(value) -> str:
    """sha256 over tensors, to the last bit, and plain values, as a checkpoint holds them."""
    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()
