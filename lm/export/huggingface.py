"""The export of a run: a folder that transformers and other readers of `Qwen3ForCausalLM`, or of
`LlamaForCausalLM`, open without custom code.

The trunk already has that architecture: exporting renames tensors and splits our fused matrices,
bit for bit, and applies the norm behind the embedding to its rows (lm/families.py). The folder is
written beside an older one and replaces it as a whole, with what others have put there. Never here:
loading checkpoints, uploading, changing weights.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from torch import Tensor

from configs.catalog import catalogued
from configs.schema import Preset, Source
from data import tokenizer as bpe
from data.chat_template import TEMPLATE_FILE, ChatTemplate
from data.files import room_on_disk, set_aside, sync_folder
from lm.export.gguf import ENCODINGS, write_gguf
from lm.export.model_card import CARD, FIGURE, NEW_CARD, RunFacts, SourceFacts, is_edited, write_model_card
from lm.export.ollama import modelfile
from lm.families import OUTER_NAMES, exported_config, exported_state
from lm.inference.load import load_chat_template
from lm.inference.sampling import TEMPERATURE, TOP_P
from lm.learner import preset_of
from lm.report.metrics import read_metrics
from lm.report.samples import read_samples

# In a folder of its own: vLLM would take every *.safetensors beside the model's for a part of it.
HEADS = "aux_heads/model.safetensors"
# All that an export may write, or earlier ones have: the rest of the folder is the user's.
WRITTEN = {
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", TEMPLATE_FILE, "Modelfile"),
    *("model.safetensors", HEADS.split("/")[0], "aux_heads.safetensors", *ENCODINGS.values(), CARD, NEW_CARD, FIGURE),
}

log = logging.getLogger(__name__)


def export_huggingface(
    model_state: Mapping[str, Tensor],
    preset: Preset,
    tokenizer_path: Path,
    out_dir: Path,
    *,
    run: RunFacts,
    chat_template: ChatTemplate | None = None,
    aux_heads: Mapping[str, Tensor] | None = None,
    gguf: bool = False,
) -> Path:
    """Write `out_dir` (config, weights, tokenizer, generation settings, model card) and return it.

    `model_state` is the `state_dict` of the unwrapped `Transformer`; the model card is made from `run`; with a
    `chat_template` of the run, other programs chat with the model; `aux_heads` are written into
    HEADS, where other readers do not look; with `gguf`, GGUF files and Ollama's Modelfile
    are too. An earlier export is replaced once the new one is complete and on the disk; files that no export
    writes stay. Raises DiskError, which leaves the earlier one.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    end_of_text, tokenizer_id = bpe.end_name(tokenizer), bpe.end_of_text(tokenizer)  # begins each document
    tokenizer.post_processor = begins_document(end_of_text, tokenizer_id)
    ends = list(dict.fromkeys([*(chat_template.end_tokens if chat_template else ()), tokenizer_id]))
    names = [str(tokenizer.id_to_token(number)) for number in ends]
    config = exported_config(preset.model, model_state["embed.weight"].shape[0], tokenizer_id, ends[0])
    reading = tokenizer_config(end_of_text, names[0], preset.model.seq_length)
    files = {"config.json": config, "generation_config.json": generation_config(tokenizer_id, ends)}
    source = exported_template(chat_template) if chat_template else ""
    if source:
        reading["chat_template"] = source  # where programs look that do not know the file yet
    with replaced_folder(out_dir) as temporary:
        for name, content in {**files, "tokenizer_config.json": reading}.items():
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if source:
            (temporary / TEMPLATE_FILE).write_text(source, encoding="utf-8")
        (temporary / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        state = exported_state(model_state, preset.model)
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        if aux_heads:
            heads = {name: tensor.detach().cpu().clone() for name, tensor in aux_heads.items()}
            (temporary / HEADS).parent.mkdir()
            save_file(heads, temporary / HEADS, metadata={"format": "pt"})
        if gguf:
            for encoding in ENCODINGS:
                write_gguf(temporary, encoding, config, state, tokenizer_path, name=preset.name, chat_template=source)
            described = modelfile(preset.model.seq_length, names, source)
            (temporary / "Modelfile").write_text(described, encoding="utf-8")
        write_model_card(temporary, preset, end_of_text, run, gguf=gguf, chats=bool(source))
        keep_edited_card(out_dir, temporary)
        for file in temporary.rglob("*.safetensors"):  # which only the owner may read as yet
            file.chmod((temporary / "config.json").stat().st_mode)
        keep_other_files(out_dir, temporary)
    return out_dir


def keep_edited_card(earlier: Path, new: Path) -> None:
    """Leave the model card of the `earlier` export in place if its user has edited it, beside the new one."""
    if is_edited(earlier / CARD):
        (new / CARD).rename(new / NEW_CARD)
        shutil.copy(earlier / CARD, new / CARD)
        log.info("%s was edited and is kept: the card of this export is %s beside it.", earlier / CARD, NEW_CARD)


def keep_other_files(earlier: Path, new: Path) -> None:
    """Put what others have added to the `earlier` export (a licence, adapters, quantized files) into the new one."""
    if not earlier.is_dir() or earlier.is_symlink():
        return
    for path in earlier.iterdir():
        if path.name not in WRITTEN and path.is_dir() and not path.is_symlink():
            try:
                shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link)
            except shutil.Error as error:  # has no number of its own
                source, _, reason = error.args[0][0]
                raise OSError(errno.EIO, f"{source} cannot be copied: {reason}") from error
        elif path.name not in WRITTEN:
            _link(path, new / path.name)


def _link(path: Path | str, new: Path | str) -> None:
    try:
        os.link(path, new, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, new, follow_symlinks=False)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder, whose files replace those of `folder` once all are on the disk.

    Raises DiskError, and then leaves `folder` as it was.
    """
    # Names that nobody gives a copy of an export.
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")

    def tidy() -> None:
        if old.exists() and not folder.exists():  # ended between the two renames below
            old.rename(folder)
        for leftover in (temporary, old):
            if leftover.is_symlink():  # the user's, to another disk
                leftover.unlink()
            shutil.rmtree(leftover, ignore_errors=True)

    with room_on_disk(folder):
        tidy()
        try:
            temporary.mkdir(parents=True)
            try:
                yield temporary
            except SafetensorError as error:  # hides the system's number of the error in its text
                raise OSError(errno.EIO, str(error)) from error
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            sync_folder(temporary)
            if os.path.lexists(old):  # and cannot be removed
                set_aside(old)
            if os.path.lexists(folder):
                folder.rename(old)
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            tidy()


def begins_document(end_of_text: str, end_of_text_id: int) -> processors.TemplateProcessing:
    """Return the rule by which other programs put the token before a text, and between two: every
    document of the stream began with it."""
    return processors.TemplateProcessing(
        single=f"{end_of_text} $A",
        pair=f"{end_of_text} $A {end_of_text}:1 $B:1",
        special_tokens=[(end_of_text, end_of_text_id)],
    )


def generation_config(end_of_text_id: int, ends: list[int]) -> dict[str, Any]:
    """Return the sampling settings that `lm.inference.generate.generate` uses by default, and the
    tokens that end a text."""
    return {
        "bos_token_id": end_of_text_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": end_of_text_id,
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
    }


def exported_template(template: ChatTemplate) -> str:
    """Return the source of a chat template for other programs, with the token that began every
    document in front, which transformers adds to plain text alone, and without today's date, which
    training did not have either: templates name a fixed one where there is no such function."""
    source = re.sub(r"\bstrftime_now\b", "no_strftime_now", template.source)
    if template.begins_document:
        return source
    # Behind the block, whose line break is dropped, the source begins a line as it did, which decides over its first spaces.
    begin_line = "{% set begins = true %}\n" if source[:1].isspace() else ""
    return "{{ bos_token }}" + begin_line + source


def tokenizer_config(end_of_text: str, end: str, seq_length: int) -> dict[str, Any]:
    """Return tokenizer_config.json: no cleaning up of spaces, only inputs that the model takes. `end`
    ends what the model writes: a document or, if it chats, a turn."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end,
        "pad_token": end_of_text,
        "model_max_length": seq_length,
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
        "clean_up_tokenization_spaces": False,
    }


def export(state: dict[str, Any], folder: Path, out_dir: Path | None = None, *, gguf: bool = False) -> Path:
    """Export a checkpoint's `state`, of the run in `folder`, to `out_dir` (default: `folder/hf`), for
    all programs that read its family."""
    preset = preset_of(state)
    path = folder / "tokenizer.json"
    tokenizer = bpe.load(path)
    return export_huggingface(
        state["model"],
        preset,
        path,
        out_dir or folder / "hf",
        chat_template=load_chat_template(state, tokenizer),
        run=run_facts(state, preset, folder),
        aux_heads=state["heads"] or None,
        gguf=gguf,
    )


def is_export_of(folder: Path, state: dict[str, Any]) -> bool:
    """Return whether the weights in `folder` are those of a checkpoint's `state`."""
    try:
        exported = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError):
        return False
    weights = exported_state(state["model"], preset_of(state).model)
    if exported.keys() != weights.keys():
        return False
    # Another CPU sums in another order for the norm of the embedding.
    embedding = OUTER_NAMES["embed"] + ".weight"
    others = all(torch.equal(exported[name], weights[name]) for name in weights if name != embedding)
    return others and torch.allclose(exported[embedding], weights[embedding])


def run_facts(state: dict[str, Any], preset: Preset, folder: Path) -> RunFacts:
    """Return the facts for the model card. Records after the checkpoint do not count."""
    seen, facts, records = state["tokens_seen"], state["facts"], read_metrics(folder / "metrics.jsonl")
    chosen = [record["best"] for record in records if record.get("best")][-1:]
    if chosen and chosen[0]["exported"] and chosen[0]["tokens"] == seen:
        facts = facts | {"checkpoint": f"that of {seen:,} tokens, whose held-out loss is the lowest of the run"}
    elif seen < state["token_budget"] and not state["exhausted"]:
        best = ", where its held-out loss was the lowest so far" if "best_loss" in state else ""
        facts = facts | {"unfinished": f"taken from the run at {seen:,} of {state['token_budget']:,} tokens{best}"}
    records = [record for record in records if record["tokens"] <= seen]
    samples = [section for section in read_samples(folder / "samples.md") if section.tokens <= seen]
    trained = preset.data.all_sources[: len(preset.data.trained_sources)]
    return RunFacts(facts, [source_facts(source) for source in trained], records, samples)


def source_facts(source: Source) -> SourceFacts:
    """Return what the catalogue knows about a preset's source, or where to find out."""
    dataset = source.dataset if source.type == "hf" and not source.is_local else ""  # on the Hub
    if known := catalogued(source):
        return SourceFacts(source.label, known.about, known.licence, dataset, known.language)
    if dataset:
        return SourceFacts(
            source.label, f"https://huggingface.co/datasets/{dataset}", "see the dataset's page", dataset
        )
    return SourceFacts(source.label, "local files", "not stated")
