"""How fast a trained model talks on this CPU: transformers, plain cached decoding, and with drafts.

    python -m benchmarks.decoding RUN_FOLDER [ROUNDS]

All continue the same prompts, one after the other, with the sampling of the defaults and greedily, each in turn every
round; medians over rounds, lowest and highest in brackets. Drafts come from the heads (as many as value says, or a fixed
number), and as a baseline from the text itself: what followed the last two tokens where they came before. The trunk is
fp32 everywhere, drafts are made with weights of eight bits. `transformers` and plain decoding are tried with one thread
and with one a core; drafts with the faster one of plain decoding. The folder is only read.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aux_heads.drafter import HeadDrafter
from lm.checkpoint import store
from lm.families import exported_config, exported_state
from lm.inference.decoder import Decoder
from lm.inference.generate import Drafter, Drafting, generate
from lm.inference.load import load_drafter, load_model
from lm.learner import preset_of
from lm.runtime.machine import device_name, thread_choice

NUM_TOKENS = 100
LONGEST_LOOKUP = 3
TEXTS = ("The", "def main(", "Q: What is the capital of", "import ", "In the morning he", "class ", "It was a", "# The")
SAMPLINGS = {"temperature 0.8, top-p 0.95, 3-grams blocked": 0.8, "greedy, 3-grams blocked": 0.0}


class Fixed:
    """As many drafts each time."""

    def __init__(self, drafter: HeadDrafter, num_drafts: int):
        self.drafter, self.num_drafts, self.tokens_N = drafter, num_drafts, drafter.tokens_N

    def begin(self, hidden_D: Tensor, tokens: Sequence[int]) -> int:
        self.drafter.begin(hidden_D, tokens)
        return self.num_drafts

    def step(self, token: int) -> Tensor:
        return self.drafter.step(token)


class Lookup:
    """Prompt lookup: what came after the last two tokens the last time, one-hot."""

    def __init__(self, vocab_size: int):
        self.tokens_N = torch.arange(vocab_size)

    def begin(self, hidden_D: Tensor, tokens: Sequence[int]) -> int:
        places = (i + 2 for i in range(len(tokens) - 3, -1, -1) if tokens[i : i + 2] == tokens[-2:])
        place = next(places, len(tokens))
        self.coming = iter(tokens[place : place + LONGEST_LOOKUP])
        return len(tokens[place : place + LONGEST_LOOKUP])

    def step(self, token: int) -> Tensor:
        return torch.full((len(self.tokens_N),), -1e9).index_fill_(0, torch.tensor(next(self.coming)), 0.0)


def transformers_model(state: dict, end_of_text: int):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    preset = preset_of(state).model
    config = exported_config(preset, state["model"]["embed.weight"].shape[0], end_of_text, end_of_text)
    model = Qwen3ForCausalLM(Qwen3Config(**config))
    model.load_state_dict(exported_state(state["model"], preset), strict=not preset.tie_embeddings)
    return model.eval()


def by_transformers(model, prompt: list[int], temperature: float) -> int:
    sampling = {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 0}
    sampling = sampling if temperature else {"do_sample": False}
    tokens = torch.tensor([prompt])
    rest = {"no_repeat_ngram_size": 3, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": NUM_TOKENS}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **sampling, **rest).shape[1] - len(prompt)


def speed(arm: Callable[[list[int]], int], prompts: list[list[int]], threads: int) -> float:
    """Tokens a second."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    num_tokens = sum(map(arm, prompts))
    return num_tokens / (time.perf_counter() - began)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def measure(folder: Path, temperature: float, num_rounds: int) -> None:
    """One table: all arms with one sampling."""
    state, _ = store.load(folder)
    model, tokenizer, end_of_text = load_model(state, folder)
    heads, decoder = load_drafter(state, folder, model, tokenizer), Decoder(model)
    theirs = transformers_model(state, end_of_text)
    prompts = [[end_of_text, *tokenizer.encode(text, add_special_tokens=False).ids] for text in TEXTS]

    def ours(drafting: Drafting | None) -> Callable[[list[int]], int]:
        return lambda prompt: sum(
            1 for _ in generate(decoder, prompt, NUM_TOKENS, temperature=temperature, block_ngram=3, drafting=drafting)
        )

    cores = sorted({1, thread_choice()[0]})
    arms = {}
    for threads in cores:
        arms[f"transformers, {threads} threads"] = (
            lambda prompt: by_transformers(theirs, prompt, temperature),
            threads,
        )
        arms[f"plain, {threads} threads"] = (ours(None), threads)
    speeds = {name: [speed(arm, prompts, threads)] for name, (arm, threads) in arms.items()}  # the first also warms up
    best = max(cores, key=lambda threads: speeds[f"plain, {threads} threads"][0])
    drafters: dict[str, Drafter] = {"lookup": Lookup(len(model.embed.weight))}
    if heads:
        drafters |= {"heads, as value says": heads, **{f"heads, {n} drafts": Fixed(heads, n) for n in (1, 2, 3)}}
    draftings = {name: Drafting(drafter) for name, drafter in drafters.items()}
    arms |= {name: (ours(drafting), best) for name, drafting in draftings.items()}
    speeds = {name: [] for name in arms}
    for _ in range(num_rounds):
        for name, (arm, threads) in arms.items():
            speeds[name].append(speed(arm, prompts, threads))
    plain = speeds[f"plain, {best} threads"]
    print(f"| {'':24} | tokens/s | times plain, {best} threads | tokens a pass | drafts kept, by place |")
    print("|---|---:|---:|---:|---|")
    for name, found in speeds.items():
        ratios = [a / b for a, b in zip(found, plain, strict=True)]
        drafting = draftings.get(name, Drafting(None))
        kept = ", ".join(
            f"{drafting.kept[i] / number:.0%} of {number}" for i, number in sorted(drafting.drafted.items())
        )
        a_pass = f"{1 + drafting.kept.total() / drafting.passes:.2f}" if drafting.passes else ""
        print(f"| {name:24} | {spread(found, ',.0f')} | {spread(ratios, '.2f')} | {a_pass} | {kept} |", flush=True)


def main(folder: Path, num_rounds: int) -> None:
    model = preset_of(store.load(folder)[0]).model
    print(
        f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    print(
        f"{folder}: {model.num_layers} layers, {model.hidden_size} wide; {len(TEXTS)} prompts, {NUM_TOKENS} tokens each"
    )
    for name, temperature in SAMPLINGS.items():
        print(f"\n{name}, {num_rounds} rounds:\n")
        measure(folder, temperature, num_rounds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((sys.argv[2:] or ["5"])[0]))
