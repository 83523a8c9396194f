"""Loading a trained model from a checkpoint: the model, its tokenizer, its
heads, and what uses them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from aux_heads.drafter import HeadDrafter
from aux_heads.joint import build_heads
from configs.errors import Damaged, StreamDamaged, UserError
from data import tokenizer as bpe
from data.chat_template import ChatTemplate
from data.heldout import HeldOut
from data.journal import JournalReader
from data.packing import row_dtype
from data.stream_files import HELD_OUT
from lm.checkpoint import store
from lm.inference.memory import Recall, fit_recall
from lm.learner import check_shapes, preset_of
from lm.model import Transformer
from lm.report.metrics import read_metrics
from lm.report.record import choice_in_words

COUNTED_TOKENS = 4_000_000  # of a run's text, at most


def load_state(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the state in the checkpoint that the uses of a run take, and a notice for the user ("" if
    there is nothing to say): the newest one or, if a finished run has exported it, the best.
    Raises CheckpointError."""
    state, notice = store.load(folder)
    records = read_metrics(folder / "metrics.jsonl")
    choice = next((record for record in reversed(records) if record.get("best")), None)
    if not choice or choice["tokens"] != state["tokens_seen"] or not choice["best"]["exported"]:
        return state, notice
    try:
        best, words = store.read_best(folder, state.get("run_id", "")), choice_in_words(choice["best"])
    except Damaged as error:
        best, words = None, f"{folder / store.BEST} cannot be used ({error})."
    if best is None:
        best, words = state, f"{words} The last checkpoint is used instead of the best."
    return best, "\n".join(filter(None, (notice, words)))


def load_model(state: dict[str, Any], folder: Path) -> tuple[Transformer, Tokenizer, int]:
    """Return the model of a checkpoint's `state`, its tokenizer, and the token that begins a
    document. Raises UserError if they do not fit together."""
    tokenizer = load_tokenizer(state, folder)
    model = Transformer(preset_of(state).model, state["model"]["embed.weight"].shape[0])
    model.load_state_dict(state["model"])
    return model.eval(), tokenizer, bpe.end_of_text(tokenizer)


def load_tokenizer(state: dict[str, Any], folder: Path) -> Tokenizer:
    """Return the tokenizer in `folder`. Raises UserError unless it fits the model and heads of a
    checkpoint's `state`, and these the checkpoint's preset; takes no memory for that."""
    preset = preset_of(state)
    embedding = state["model"].get("embed.weight")
    num_rows = len(embedding) if isinstance(embedding, Tensor) and embedding.ndim else 1
    with torch.device("meta"):
        trunk = Transformer(preset.model, num_rows)
        heads = build_heads(preset.auxiliary, preset.model.hidden_size, preset.model.seq_length)
    check_shapes({"model": trunk, "heads": heads}, state)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path} is missing: restore that file. Resuming an unfinished run makes it again.")
    tokenizer = bpe.load(path)
    if bpe.vocab_size(tokenizer) > num_rows or bpe.fingerprint(tokenizer) != state["tokenizer_sha256"]:
        raise UserError(
            f"{path} is not the tokenizer this run was trained with: it has {bpe.vocab_size(tokenizer):,} tokens, the "
            f"model {num_rows:,}, or makes other tokens. Restore that file."
        )
    return tokenizer


def load_chat_template(state: dict[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the chat template in a checkpoint's `state`, or None if the run was trained on no
    conversations. Raises UserError if it cannot be used."""
    if not preset_of(state).data.conversations:
        return None  # of those that it only watches the model learns nothing
    header = state["stream_position"].get("header")
    source = header.get("chat_template") if isinstance(header, dict) else None
    return ChatTemplate(source, tokenizer) if isinstance(source, str) else None


def load_heads(state: dict[str, Any]) -> nn.ModuleDict:
    """Return the heads of a checkpoint's `state`; empty if it has none."""
    preset = preset_of(state)
    heads = build_heads(preset.auxiliary, preset.model.hidden_size, preset.model.seq_length)
    heads.load_state_dict(state["heads"])
    return heads


def load_drafter(state: dict[str, Any], folder: Path, model: Transformer, tokenizer: Tokenizer) -> HeadDrafter | None:
    """Return the drafter of a checkpoint's `state`, or None if it has no heads that draft. It drafts the
    tokens that are frequent in the run's text, as far as that is in `folder`."""
    heads = load_heads(state)
    if "policy" not in heads:
        return None
    loss_mask = preset_of(state).data.has_conversations
    dtype = row_dtype(model.config.seq_length, bpe.vocab_size(tokenizer), loss_mask=loss_mask)
    tokens = newest_tokens(folder, dtype)
    embedding_VD, output_VD = model.embedding_VD().detach(), model.output.weight.detach()
    counts_V = torch.from_numpy(np.bincount(tokens, minlength=len(output_VD))) if len(tokens) else None
    return HeadDrafter(heads, embedding_VD, output_VD, counts_V)


def load_recall(
    state: dict[str, Any], folder: Path, model: Transformer, tokenizer: Tokenizer
) -> tuple[Recall | None, str]:
    """Return what `fit_recall` does with the held-out text of a checkpoint's `state`, if `folder` has it still: by now
    another run may be there."""
    stream, held_out = folder / "stream", None
    with suppress(Exception):  # damaged bytes can raise anything
        held_out = HeldOut.load(stream / HELD_OUT)
    header = state["stream_position"].get("header")
    if not held_out or held_out.digest() != (header if isinstance(header, dict) else {}).get("held_out"):
        return None, f"/recall is fitted on the held-out text of the run, which is missing or damaged in {stream}"
    watched = preset_of(state).data.watched_labels
    return fit_recall(model, held_out.without(watched), bpe.token_bytes(tokenizer))


def newest_tokens(folder: Path, dtype: np.dtype) -> np.ndarray:
    """Return (n,) tokens of the newest text of the run in `folder`; none if it is not there, or damaged."""
    journal = JournalReader(folder / "stream", dtype)
    try:
        end = journal.num_rows()
        first = max(0, end - COUNTED_TOKENS // (dtype["tokens"].shape[0] - 1))
        return journal.rows(first, end - first)["tokens"][:, 1:].ravel()
    except (OSError, StreamDamaged):
        return np.empty(0, dtype["tokens"].base)
