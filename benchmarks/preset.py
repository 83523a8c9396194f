"""Trains a preset unattended for some tokens and prints what came out: loss and bits per byte per source, the realised
mixture, tokens/s, the share of time spent waiting for data and on all that is no step, peak memory, and the machine.

    python -m benchmarks.preset configs/02_offline_python.json 2000000 /tmp/run
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import main
from configs.errors import UserError
from configs.schema import load_preset
from lm.report.metrics import read_metrics
from lm.runtime.machine import load_machine, peak_memory


def timed(name: str) -> Callable[[], float]:
    """Has the time spent in main's function of that name counted; what it was, in seconds."""
    function, seconds = getattr(main, name), [0.0]

    def counted(*arguments) -> None:
        began = time.perf_counter()
        function(*arguments)
        seconds[0] += time.perf_counter() - began

    setattr(main, name, counted)
    return lambda: seconds[0]


def report(folder: Path, learning: float, finishing: float) -> None:
    records = read_metrics(folder / "metrics.jsonl")
    steps = [record for record in records if "tokens_per_second" in record]
    last = [record for record in records if record.get("eval")][-1]
    seconds = 0.0
    waited, tokens = 0.0, 0
    for record in steps:
        spent = (record["tokens"] - tokens) / record["tokens_per_second"]
        seconds, waited, tokens = seconds + spent, waited + spent * record["data_wait_fraction"], record["tokens"]
    speeds = sorted(record["tokens_per_second"] for record in steps)
    machine = load_machine(folder)
    found = last["eval"]
    print(
        f"held out, {found['tokens']:,} tokens: {found['bits_per_byte']:.4f} bits per byte, {found['loss']:.4f} nats a token"
    )
    for label, source in found["per_source"].items():
        answers = f", on answers {source['answer_bits_per_byte']:.4f}" if "answer_bits_per_byte" in source else ""
        error = f" ± {source['stderr']:.4f} (standard error over rows)" if "stderr" in source else ""
        share = f"{last['mixture'][label]:.2%} of the text" if label in last["mixture"] else "only watched"
        print(f"  {label}, {share}: {source['bits_per_byte']:.4f}{error}{answers}")
    for measure, value in last.get("heads", {}).items():
        print(f"  {measure}: {value:.4f}")
    median, slowest, fastest = speeds[len(speeds) // 2], speeds[0], speeds[-1]
    print(f"{tokens:,} tokens in {seconds:.0f} s: median {median:,.0f} tokens/s ({slowest:,.0f} to {fastest:,.0f})")
    print(f"waiting for data: {waited / seconds:.3%} of the time")
    if learning > seconds:  # all of it ran just now
        besides = 1 - seconds / (learning - finishing)
        print(f"evaluation, saves, samples, logs: {besides:.2%} of the time until the last step")
        print(f"after it: {finishing:.0f} s, for everything held out, the report and the export")
    print(f"peak memory of the trainer: {peak_memory('cpu') / 2**30:.2f} GiB")
    print(
        f"machine: {machine.device_name}, {machine.matmul_flops / 1e9:,.0f} GFLOP/s in matrix products"
        if machine
        else ""
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("python -m benchmarks.preset PRESET TOKENS FOLDER")
    try:
        preset, folder = load_preset(sys.argv[1]), Path(sys.argv[3])
    except UserError as error:
        sys.exit(str(error))
    learning, finishing = timed("training_loop"), timed("end_run")  # the one calls the other
    main.train(preset, token_budget=int(sys.argv[2]), checkpoint_dir=folder)
    report(folder, learning(), finishing())
