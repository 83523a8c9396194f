"""Do adaptive source weights help? Fixed weights beside the two rules, on prose, trivia and Python source.

    python -m benchmarks.adaptive_sources PROSE QA OUT [TOKENS]

PROSE: a folder of .txt files; QA: a folder of .jsonl files with "query" and "answer" on each line; Python: what is
installed. Three arms and three seeds in turn, so that what the machine does meanwhile falls on all of them; weights are
decided anew every twentieth of the run. What counts is held-out bits per byte, the mean of the three sources: each arm
is asked to be good at all of them. Runs that are complete in OUT are not run again.
"""

import json
import statistics
import sys
from pathlib import Path

import main
from configs.schema import parse_preset
from lm.report.metrics import read_metrics

ARMS = {"fixed": None, "relative_loss": "relative_loss", "loss_slope": "loss_slope"}
SEEDS = (1, 2, 3)


def preset_json(prose: Path, qa: Path, rule: str | None, seed: int, tokens: int) -> str:
    interval = tokens // 20
    adaptive = {"enable_adaptive_sources": True, "adaptive_rule": rule, "adaptive_interval_tokens": interval}
    sources = [
        {"type": "text", "path": str(prose), "glob": "**/*.txt", "label": "prose"},
        {
            "type": "hf",
            "dataset": "json",
            "data_files": str(qa / "*.jsonl"),
            "fields": ["query", "answer"],
            "format": "Q: {query}\nA: {answer}",
            "label": "trivia",
        },
        {"type": "python", "label": "python"},
    ]
    return json.dumps(
        {
            "name": f"adaptive_{rule or 'fixed'}_{seed}",
            "model": {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "seq_length": 128, "vocab_size": 2048},
            "train": {
                "per_gpu_batch_size": 64,
                "accumulation_steps": 1,
                "eval_tokens": 300_000,
                "eval_every_tokens": interval,
                "sample_every_tokens": tokens,
                "save_every_tokens": tokens,
                "seed": seed,
            },
            "data": {"sources": sources, "mix_strategy": "weighted", "source_weights": [1, 1, 1]},
            "auxiliary": adaptive if rule else {},
        }
    )


def last_evaluation(folder: Path) -> dict:
    return [line for line in read_metrics(folder / "metrics.jsonl") if "eval" in line][-1]


def report(lines: dict[tuple[str, int], dict]) -> None:
    def mean_bits(line: dict) -> float:
        return statistics.mean(source["bits_per_byte"] for source in line["eval"]["per_source"].values())

    labels = list(lines["fixed", SEEDS[0]]["mixture"])
    print(f"{'rule':14} {'mean':>15} {'difference':>18} " + "".join(f"{label:>24}" for label in labels))
    for arm in ARMS:
        runs = [lines[arm, seed] for seed in SEEDS]
        means = [mean_bits(line) for line in runs]
        differences = [mean - mean_bits(lines["fixed", seed]) for mean, seed in zip(means, SEEDS, strict=True)]
        text = f"{arm:14} {statistics.mean(means):.4f} ±{statistics.stdev(means):.4f}  "
        text += f"{statistics.mean(differences):+.4f} ±{statistics.stdev(differences):.4f}  "
        for label in labels:
            bits = statistics.mean(line["eval"]["per_source"][label]["bits_per_byte"] for line in runs)
            share = statistics.mean(line["mixture"][label] for line in runs)
            text += f"{bits:>12.4f} ({share:.1%} read)"
        print(text)
    print("bits per byte on held-out text: mean of the sources, ± standard deviation over seeds; difference to fixed")
    print("weights, seed by seed; each source with the share of tokens it had in the end")


def run(prose: Path, qa: Path, out: Path, tokens: int) -> None:
    lines = {}
    for seed in SEEDS:
        for arm, rule in ARMS.items():
            folder = out / f"{arm}_{seed}"
            preset = parse_preset(preset_json(prose, qa, rule, seed, tokens), "benchmark")
            main.train(preset, token_budget=tokens, checkpoint_dir=folder)
            lines[arm, seed] = last_evaluation(folder)
    print(f"{tokens:,} tokens a run, seeds {SEEDS}")
    report(lines)


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:4]), int(sys.argv[4]) if len(sys.argv) > 4 else 6_000_000)
