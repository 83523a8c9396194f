"""The results of benchmarks as tables: beside chance, and beside published scores with their sources.

Made from the records of metrics.jsonl alone, without lm_eval. Never here: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ACCURACIES = ("acc", "acc_norm", "exact_match")  # measures that chance says something about


class Published(NamedTuple):
    benchmark: str
    measure: str
    value: float  # as a share
    model: str
    training: str  # text it saw
    source: str


_BABYLM = "[BabyLM 2026, table of baselines](https://github.com/babylm-org/babylm-eval#baselines), by lm_eval"
_BABYLM_2025 = (
    "[BabyLM 2025](https://github.com/babylm-org/babylm-eval/blob/main/strict/README.md?plain=1), its filtered BLiMP"
)
_BLIMP = "[BLiMP](https://github.com/alexwarstadt/blimp), raw_results/summary"
_PYTHIA = "[Pythia](https://github.com/EleutherAI/pythia), evals/pythia-v1, lm_eval, tasks' version 0"
_PYTHIA_70M = ("Pythia, 70M parameters", "300,000M tokens", _PYTHIA)

PUBLISHED = (
    Published("blimp", "acc", 0.6124, "5-gram", "Gigaword", _BLIMP),
    Published("blimp", "acc", 0.6439, "GPT-2, 98M parameters", "100M words: 10M ten times", _BABYLM),
    Published("blimp", "acc", 0.6729, "GPT-2 small", "100M words: 10M ten times", _BABYLM_2025),
    Published("blimp", "acc", 0.6981, "LSTM", "English Wikipedia", _BLIMP),
    Published("blimp", "acc", 0.7166, "GPT-BERT, causal focus", "100M words: 10M ten times", _BABYLM_2025),
    Published("blimp", "acc", 0.7343, "GPT-2, 98M parameters", "1,000M words: 100M ten times", _BABYLM),
    Published("blimp", "acc", 0.7507, "GPT-2 small", "1,000M words: 100M ten times", _BABYLM_2025),
    Published("blimp", "acc", 0.7929, "GPT-BERT, causal focus", "1,000M words: 100M ten times", _BABYLM_2025),
    Published("blimp", "acc", 0.8302, "GPT-2", "WebText", _BLIMP),
    Published("lambada_openai", "acc", 0.1846, *_PYTHIA_70M),
    Published("hellaswag", "acc_norm", 0.3114, "GPT-2, 124M parameters", "WebText",
              "[llm.c](https://github.com/karpathy/llm.c), dev/data/hellaswag.py, by lm_eval"),
    Published("arc_easy", "acc", 0.3737, *_PYTHIA_70M),
    Published("piqa", "acc", 0.5947, *_PYTHIA_70M),
    Published("winogrande", "acc", 0.5280, *_PYTHIA_70M),
    Published("sciq", "acc", 0.6010, *_PYTHIA_70M),
)  # fmt: skip

Record = Mapping[str, Any]
Rows = list[tuple[str, ...]]


def latest(records: Sequence[Record]) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return (tokens seen, result) of each benchmark's last run."""
    return {
        name: (record["tokens"], result) for record in records for name, result in record.get("benchmarks", {}).items()
    }


def score_rows(records: Sequence[Record]) -> Rows:
    """Return the rows (benchmark, measure, score, standard error, chance, items, tokens seen)."""
    rows: Rows = []
    for name, (tokens, result) in latest(records).items():
        for measure, (value, stderr) in result["measures"].items():
            is_share = measure in ACCURACIES
            form = ".2%" if is_share else ",.4f" if abs(value or 0) < 10 else ",.2f"  # bits per byte, F1; perplexity
            shown = ("" if number is None else format(number, form) for number in (value, stderr))
            rows.append(
                (name, measure, *shown, _chance(result) if is_share else "", f"{result['items']:,}", f"{tokens:,}")
            )
    return rows


def _chance(result: Record) -> str:
    return "0%" if result["chance"] is None else f"{result['chance']:.1%}"


SCORES = ("benchmark", "measure", "score", "± 1 s.e.", "by chance", "items", "tokens seen")


def published_rows(records: Sequence[Record]) -> Rows:
    """Return the rows (benchmark, model, what it saw, measure, score, source) for those that were run."""
    measured = latest(records)
    return [
        (known.benchmark, known.model, known.training, known.measure, f"{known.value:.2%}", known.source)
        for known in PUBLISHED
        if known.benchmark in measured
    ]


PUBLISHED_HEADER = ("benchmark", "published model", "text seen", "measure", "score", "source")
