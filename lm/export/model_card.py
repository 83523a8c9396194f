"""The model card of an export: README.md and its figure, made from the records of the run.

It says what the model was trained on and under which licences, how well it predicts held-out text,
and what its limits are. Nothing is measured here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from configs.fields import FOLDER_STARTS
from configs.schema import Preset
from configs.text import fenced, table_cell
from lm.evaluation.results import latest
from lm.export.gguf import pre_tokenizer_name
from lm.families import CLASSES, family
from lm.report.figures import draw
from lm.report.report import before_and_after, benchmark_tables, figure_title, held_out_table, table
from lm.report.samples import Section

PLACES = ("dataset", "data_files", "init_from", "tokenizer")  # keys of a preset that may name files of this disk
FIGURE, CARD, NEW_CARD = "curves.png", "README.md", "README.new.md"


class SourceFacts(NamedTuple):
    label: str
    about: str
    licence: str
    dataset: str = ""  # its name on the Hub, if it has one
    language: str = ""  # ISO 639 code or "code", if known


class RunFacts(NamedTuple):
    facts: Mapping[str, str]  # rows of the first table, in order: what was trained, on what, where
    sources: Sequence[SourceFacts]
    records: Sequence[dict[str, Any]]  # of metrics.jsonl
    samples: Sequence[Section]  # of samples.md


def write_model_card(folder: Path, preset: Preset, end_of_text: str, run: RunFacts, *, gguf: bool, chats: bool) -> None:
    """Write README.md into `folder`, and the curves beside it if there are records to draw. `gguf`: with such files,
    and then tokenizer.json is there already; `chats`: with a chat template."""
    figure = f"![loss, bits per byte, mixture and speed over tokens]({FIGURE})"
    if run.records:
        draw(list(run.records), folder / FIGURE, figure_title(run.records, run.facts))
    parts = [
        _front_matter(preset, run),
        f"# {table_cell(preset.name)}",
        table_cell(preset.description),
        _usage(preset, end_of_text, chats),
        *([_llama_cpp(preset, folder / "tokenizer.json", chats)] if gguf else []),
        "## Training",
        table(("", ""), run.facts.items()),
        *([figure] if run.records else []),
        "## Data",
        _data(run),
        *held_out_table(run.records),
        *before_and_after(run.records),
        *benchmark_tables(run.records),
        *_samples(run.samples),
        "## Limits",
        _limits(preset, run, chats),
        "## The preset that made it",
        fenced(json.dumps(_without_folders(json.loads(preset.to_json())), indent=2, ensure_ascii=False)),
    ]
    text = "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
    (folder / CARD).write_text(f"{text}\n{_seal(text)}\n", encoding="utf-8")


def _without_folders(value: Any, key: str = "") -> Any:
    """Return a preset's JSON with the last part of each path on this disk: a card is for others."""
    if isinstance(value, dict):
        return {name: _without_folders(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part, key) for part in value]
    is_path = isinstance(value, str) and (key == "path" or (key in PLACES and value.startswith(FOLDER_STARTS)))
    return Path(value).name or value if is_path else value


def _seal(text: str) -> str:
    """Return a comment, which no page shows, by which a card that was edited is known."""
    return f"<!-- as it was exported: {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def is_edited(card: Path) -> bool:
    """Return whether a file is there that `write_model_card` did not write like that."""
    try:
        text, _, seal = card.read_text(encoding="utf-8").rstrip("\n").rpartition("\n\n")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError):  # a folder, a link to nowhere, no text
        return card.is_file()
    return seal != _seal(text + "\n")


def _front_matter(preset: Preset, run: RunFacts) -> str:
    """Return the metadata for the Hub. The licence is "other", with a place to read about it: only
    the publisher can choose one."""
    results, start = _results(run), preset.model.init_from
    data = ModelCardData(
        language=_unique(source.language for source in run.sources) or None,
        license="other",
        license_name="see-the-data-it-was-trained-on",
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=start if start and not start.startswith(FOLDER_STARTS) else None,
        datasets=_unique(source.dataset for source in run.sources) or None,
        model_name=table_cell(preset.name) if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _results(run: RunFacts) -> list[EvalResult]:
    """Return the last held-out bits per byte of each source and the last scores of each benchmark, as
    the Hub's `model-index` shows them."""
    evaluations = [record["eval"] for record in run.records if record.get("eval")]
    measured = evaluations[-1]["per_source"] if evaluations else {}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source.dataset or "local",
            dataset_config=source.label,  # else results of one dataset, or of this disk, would be one entry
            dataset_name=f"{table_cell(source.label)}, held-out documents",
            metric_type="bits_per_byte",
            metric_name="bits per byte",
            metric_value=round(value, 4),
        )
        for source in run.sources
        if (value := measured.get(source.label, {}).get("bits_per_byte")) is not None
    ] + [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            metric_type=measure,
            metric_name=measure if stderr is None else f"{measure}, standard error {stderr:.4f}",
            metric_value=round(score, 4),
            source_name="lm_eval",
            source_url="https://github.com/EleutherAI/lm-evaluation-harness",
        )
        for name, (_, result) in latest(run.records).items()
        for measure, (score, stderr) in result["measures"].items()
        if score is not None
    ]


def _usage(preset: Preset, end_of_text: str, chats: bool) -> str:
    kind = "A small chat model: it answers, and continues text" if chats else "A base language model: it continues text"
    documents = "Every document of this run" if preset.model.init_from else "Every training document"
    return f"""{kind}. Architecture `{CLASSES[family(preset.model)]}`, context {preset.model.seq_length} tokens.
{_CHAT if chats else ""}{documents} began with `{end_of_text}`; the tokenizer puts that token before a text
by itself:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```"""


_CHAT = """Its chat template is that of the conversations it was trained on:

```python
from transformers import pipeline

chat = pipeline("text-generation", ".")  # this folder
messages = [{"role": "user", "content": "Who are you?"}]
print(chat(messages, max_new_tokens=200)[0]["generated_text"][-1]["content"])
```

"""


def _llama_cpp(preset: Preset, tokenizer_path: Path, chats: bool) -> str:
    length, rule = preset.model.seq_length, pre_tokenizer_name(json.loads(tokenizer_path.read_text(encoding="utf-8")))
    words = _OLLAMA if family(preset.model) == "qwen3" and rule != "qwen2" else ""
    prompt = "Who are you?" if chats else "The"
    if chats:
        answer = f"""messages = [{{"role": "user", "content": "Who are you?"}}]
answer = model.create_chat_completion(messages, max_tokens={length // 2})
print(answer["choices"][0]["message"]["content"])"""
    else:
        answer = f"""print(model("The", max_tokens={length // 2}, echo=True)["choices"][0]["text"])"""
    return f"""The same weights for llama.cpp: `model.gguf` in fp32, `model-F16.gguf` in half of the space and
`model-Q8_0.gguf` in a quarter, which costs a little accuracy.

```python
from llama_cpp import Llama  # pip install llama-cpp-python

model = Llama("model.gguf", n_ctx={length}, verbose=False)
{answer}
```

For Ollama: `ollama create mine -f Modelfile`, then `ollama run mine "{prompt}"`.{words}"""


_OLLAMA = """ It splits a prompt into words by the
rule of Qwen 3 instead of this model's, so numbers, indentation and punctuation come as other tokens than in training."""


def _data(run: RunFacts) -> str:
    mixtures = [record["mixture"] for record in run.records if record.get("mixture")]
    shares = mixtures[-1] if mixtures else {}
    rows = [
        (label, about, f"{shares[label]:.1%}" if label in shares else "not measured yet", licence)
        for label, about, licence, *_ in run.sources
    ]
    return table(("source", "what it is", "share of the tokens", "licence of the text"), rows, numbers=False)


def _samples(samples: Sequence[Section]) -> list[str]:
    if not samples:
        return []
    return [f"## Samples after {samples[-1].tokens:,} tokens", samples[-1].text.strip()]


def _limits(preset: Preset, run: RunFacts, chats: bool) -> str:
    taught = (
        "It was trained on conversations of the sources above. It was not taught to be right, to be safe or to decline,\n"
        "  and follows few instructions."
        if chats
        else "It continues text. It was not taught to follow instructions, to converse or to decline."
    )
    knows = """It knows only what it read, the sources above; other languages and subjects come out as noise, and what is wrong,
  offensive or private in the sources may come out again."""
    seen, licences = "It has never seen a", "the text's"
    if start := preset.model.init_from:
        start = _without_folders(start, "init_from")
        taught = f"""It continues the training of `{table_cell(start)}`: what that model had read and was taught, its limits
  and its licence apply as well."""
        knows = "What is wrong, offensive or private in the sources above may come out again."
        seen, licences = "In this run it has seen no", "those of this run's text"
    return f"""- {taught}
- It states what is false as fluently as what is true: rely on nothing it says.
- {knows}
- {seen} position beyond {preset.model.seq_length} tokens.
- {_measured(run, chats)}
- The licences above are {licences}. Whoever redistributes the model must determine the terms."""


def _measured(run: RunFacts, chats: bool) -> str:
    answers = " (of conversations, the answers)" * chats
    benchmarks = ", and by the benchmarks above" if latest(run.records) else ""
    return f"""It was measured by how well it predicts held-out documents of the same sources{answers}{benchmarks}.
  Its safety and bias were not tested."""
