"""What a trained model is for: talk to it, take it elsewhere. Reads checkpoints, writes only the export."""

import select
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from configs.schema import parse_preset
from configs.words import human_count
from data import tokenizer as bpe
from lm import checkpoint
from lm.export import export_huggingface
from lm.files import FolderLock
from lm.model import Transformer
from lm.talk import talk
from stop import interruptible


def use(action: str, folder: Path) -> None:
    """Talk to the model of the run in `folder`, or export it."""
    with FolderLock(folder):
        state, notice = checkpoint.load(folder)
        if notice:
            print(notice)
        if action == "export":
            print(f"exported to {export(state, folder)}")
            return
    model, tokenizer, end_of_text = load_model(state, folder)
    print(f"{human_count(state['tokens_seen'])} tokens seen.")
    with interruptible():
        talk(
            model,
            encode=lambda text: [end_of_text, *tokenizer.encode(text, add_special_tokens=False).ids],
            decode=tokenizer.decode,
            stop_token=end_of_text,
            ask=ask,
        )


def ask(question: str) -> str:
    """`input`, which ends at a Ctrl-C at any instant: one just before it begins to wait, it would not notice."""
    print(question, end="", flush=True)
    while sys.stdin.isatty() and not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
    return input()


def export(state: dict[str, Any], folder: Path) -> Path:
    """The model of a checkpoint's `state` as `folder/hf`, for transformers and whatever else reads Qwen3."""
    preset = parse_preset(state["preset"], "the checkpoint")
    path = folder / "tokenizer.json"
    tokenizer = bpe.load(path)
    return export_huggingface(
        state["model"],
        preset,
        path,
        folder / "hf",
        end_of_text=tokenizer.id_to_token(bpe.end_of_text(tokenizer)),
        facts=state["facts"],
        aux_heads=state["heads"] or None,
    )


def load_model(state: dict[str, Any], folder: Path) -> tuple[Transformer, Tokenizer, int]:
    """The model of a checkpoint's `state`, its tokenizer, and the token that begins a document."""
    tokenizer = bpe.load(folder / "tokenizer.json")
    model = Transformer(parse_preset(state["preset"], "the checkpoint").model, state["model"]["embed.weight"].shape[0])
    model.load_state_dict(state["model"])
    return model.eval(), tokenizer, bpe.end_of_text(tokenizer)
