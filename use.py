"""What a trained model is for: talk to it, take it elsewhere, compare texts. Reads checkpoints, writes only the export."""

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from aux_heads.drafter import HeadDrafter
from aux_heads.joint import build_heads
from aux_heads.span_contrastive import SpanContrastive
from configs.catalog import catalogued
from configs.schema import Preset, Source, UserError, parse_preset
from configs.words import clip, human_count
from data import tokenizer as bpe
from lm import checkpoint
from lm.archive import archived_runs
from lm.decoder import Decoder
from lm.export import export_huggingface
from lm.export_gguf import gguf_obstacle
from lm.files import FolderLock
from lm.metrics import read_metrics
from lm.model import Transformer
from lm.model_card import RunFacts, SourceFacts
from lm.samples import read_samples
from lm.talk import talk
from stop import interruptible
from terminal import tell

DRAFTING_PAYS_FROM = 3  # layers: below, drafts may cost more than the passes that they spare (benchmarks/LOG.md)


def use(action: str, folder: Path) -> None:
    """Talk to the model of a run in `folder` or its archive, or export it."""
    run = pick(folder)
    with FolderLock(folder):
        state, notice = checkpoint.load(run)
        if notice:
            tell(notice)
        if action == "export":
            obstacle = gguf_obstacle(run / "tokenizer.json")
            tell(f"exported to {export(state, run, gguf=not obstacle)}")
            tell(obstacle or "in it model.gguf is for llama.cpp, all else for transformers and its kin")
            return
    model, tokenizer, end_of_text = load_model(state, run)
    name, seen, budget = json.loads(state["preset"])["name"], state["tokens_seen"], state["token_budget"]
    tell(f"{name}: {human_count(seen)} of {human_count(budget)} tokens seen.")
    with interruptible():
        talk(
            Decoder(model),
            encode=lambda text: [end_of_text, *tokenizer.encode(text, add_special_tokens=False).ids],
            decode=tokenizer.decode,
            stop_token=end_of_text,
            drafter=load_drafter(state, model) if len(model.layers) >= DRAFTING_PAYS_FROM else None,
            ask=ask,
        )


def pick(folder: Path) -> Path:
    """The folder of the run that is meant: the only one, or the user's choice; Enter takes the one in `folder`, or else
    the newest. Raises UserError for a run that is not there."""
    current = checkpoint.inspect(folder)
    runs = ([current] if current else []) + archived_runs(folder)
    if len(runs) < 2:
        return runs[0]["folder"] if runs else folder
    while True:
        for number, run in enumerate(runs):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["saved_at"]))
            print(f"{number:2}  {clip(run['name'], 40)}, {human_count(run['tokens_seen'])} tokens seen, {when}")
        try:
            answer = ask("which run? Enter: 0 > ").strip() or "0"
        except EOFError:
            answer = "0"
        if answer.isdecimal() and int(answer) < len(runs):
            return runs[int(answer)]["folder"]
        problem = f"there is no run {clip(answer, 40)!r}: answer with 0 to {len(runs) - 1}"
        if not sys.stdin.isatty():
            raise UserError(problem)
        tell(problem)


def ask(question: str) -> str:
    """Like `input`, but no Ctrl-C is missed: `input` overlooks one that comes just before it waits."""
    print(question, end="", flush=True)
    while sys.stdin.isatty() and not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
    return input()


def export(state: dict[str, Any], folder: Path, *, gguf: bool = False) -> Path:
    """The model of a checkpoint's `state` as `folder/hf`, for transformers and whatever else reads Qwen3."""
    preset = parse_preset(state["preset"], "the checkpoint")
    path = folder / "tokenizer.json"
    tokenizer = bpe.load(path)
    return export_huggingface(
        state["model"],
        preset,
        path,
        folder / "hf",
        end_of_text=bpe.end_name(tokenizer),
        run=run_facts(state, preset, folder),
        aux_heads=state["heads"] or None,
        gguf=gguf,
    )


def run_facts(state: dict[str, Any], preset: Preset, folder: Path) -> RunFacts:
    """What the model card is made from: the run's records up to the checkpoint, which may be older than the last."""
    seen, facts = state["tokens_seen"], state["facts"]
    if seen < state["token_budget"] and not state["exhausted"]:
        facts = facts | {"unfinished": f"taken from the run at {seen:,} of {state['token_budget']:,} tokens"}
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["tokens"] <= seen]
    samples = [section for section in read_samples(folder / "samples.md") if section.tokens <= seen]
    return RunFacts(facts, [source_facts(source) for source in preset.data.all_sources], records, samples)


def source_facts(source: Source) -> SourceFacts:
    """Of a preset's source: what the catalogue knows about it, or where to look."""
    dataset = source.dataset if source.type == "hf" and not source.is_local else ""  # on the Hub
    if known := catalogued(source):
        return SourceFacts(source.label, known.about, known.licence, dataset)
    if dataset:
        return SourceFacts(
            source.label, f"https://huggingface.co/datasets/{dataset}", "see the dataset's page", dataset
        )
    return SourceFacts(source.label, "files of whoever trained it", "not stated")


def load_model(state: dict[str, Any], folder: Path) -> tuple[Transformer, Tokenizer, int]:
    """The model of a checkpoint's `state`, its tokenizer, and the token that begins a document."""
    tokenizer = bpe.load(folder / "tokenizer.json")
    model = Transformer(parse_preset(state["preset"], "the checkpoint").model, state["model"]["embed.weight"].shape[0])
    model.load_state_dict(state["model"])
    return model.eval(), tokenizer, bpe.end_of_text(tokenizer)


def load_heads(state: dict[str, Any]) -> nn.ModuleDict:
    """The heads of a checkpoint's `state`; empty if it has none."""
    preset = parse_preset(state["preset"], "the checkpoint")
    heads = build_heads(preset.auxiliary, preset.model.hidden_size, preset.model.seq_length)
    heads.load_state_dict(state["heads"])
    return heads


class PassageEmbedder:
    """Texts as unit vectors (N, 128), by the span-contrastive head of the run in `folder`; their products compare them.

    `of` tells what texts say, from their words alone; `coming` what is to follow them, from the model's state at their
    end. So `embedder.coming([text]) @ embedder.of(others).T` is largest for what would best go on from `text`.
    """

    def __init__(self, folder: Path | str):
        """Raises UserError for a run without that head."""
        folder = Path(folder)
        state, _ = checkpoint.load(folder)
        preset = parse_preset(state["preset"], "the checkpoint")
        if not preset.auxiliary.enable_span_contrastive:
            raise UserError(f"the run in {folder} has no span_contrastive head: auxiliary.enable_span_contrastive")
        self.model, self.tokenizer, self.end_of_text = load_model(state, folder)
        head = load_heads(state)["span_contrastive"]
        assert isinstance(head, SpanContrastive)
        self.head = head

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def of(self, texts: list[str]) -> Tensor:
        means = [self.model.embed(torch.tensor(self.tokens(text) or [self.end_of_text])).mean(0) for text in texts]
        return F.normalize(self.head.of_text(torch.stack(means)), dim=-1)

    @torch.no_grad()
    def coming(self, texts: list[str]) -> Tensor:
        """Of each text as many of the last tokens as the model can read."""
        room = self.model.config.seq_length - 1
        read = [torch.tensor([[self.end_of_text, *self.tokens(text)[-room:]]]) for text in texts]
        states = [self.model(tokens)[0, -1] for tokens in read]
        return F.normalize(self.head.coming(torch.stack(states)), dim=-1)


def load_drafter(state: dict[str, Any], model: Transformer) -> HeadDrafter | None:
    """Of the heads of a checkpoint's `state`, if it has those that draft."""
    heads = load_heads(state)
    if "policy" not in heads:
        return None
    return HeadDrafter(heads, model.embed.weight.detach(), model.output.weight.detach())
