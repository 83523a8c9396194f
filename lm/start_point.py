"""The model that a run starts from: its shape, its tokenizer and its weights, read without trusting
them.

It is a folder in Hugging Face form or a model on the Hub (data/sources/hub_model.py), of a family
that the trunk equals (lm/families.py). Only JSON and safetensors files are opened, so nothing in
them is ever run; sizes and types are checked before memory is taken. Read once: the first
checkpoint, at no tokens, holds all that a resumed run needs. torch is imported only to load the
weights, since the menu asks for shapes.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import PresetError, StartPointError, UserError
from configs.fields import FOLDER_STARTS
from configs.model import SHAPE, ModelConfig
from configs.schema import Preset
from configs.text import clip, counted, human_bytes
from data.sources.hub_model import HubModel, find_model
from lm.families import shape_in, tensors

if TYPE_CHECKING:
    from lm.model import Transformer

CONFIG, TOKENIZER, WEIGHTS, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
LONGEST_JSON = 32 * 2**20  # bytes of a config.json, an index, or the header of a safetensors file
FLOATS = ("F32", "BF16", "F16")
# Pickles may run code when they are opened.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pickle")


class Folder:
    """The files of a model in a folder of this disk, as HubModel has those of one on the Hub."""

    commit = ""

    def __init__(self, given: str):
        """Raises StartPointError unless it is a folder that can be listed."""
        self.folder = Path(os.path.expanduser(given))
        try:
            # Links may lead anywhere but to a device or a pipe, whose reading may never end.
            found = {entry.name: entry.stat() for entry in os.scandir(self.folder) if os.path.exists(entry.path)}
        except OSError as error:
            archived = sorted(self.folder.parent.glob(f"archive/*/{self.folder.name}"), key=os.path.getmtime)
            raise StartPointError(
                f"model.init_from: the folder {given} cannot be read ({error.strerror}): correct the path"
                + (f"; the last run that was archived has {archived[-1]}" if archived else "")
            ) from None
        self.sizes = {name: facts.st_size for name, facts in found.items() if stat.S_ISREG(facts.st_mode)}

    def __str__(self) -> str:
        return str(self.folder)

    def path(self, file: str) -> Path:
        return self.folder / file


Files = Folder | HubModel


@dataclass(frozen=True)
class StartPoint:
    """A model that was checked but whose weights are still on the disk."""

    model: ModelConfig  # the preset's, with the shape of this one
    tokenizer: str  # the text of a tokenizer.json
    tokenizer_sha256: str
    end_of_text: int
    weights: tuple[Path, ...]
    chat_template: str | None  # of this model, if the run has conversations
    pinned: dict[str, Any]  # what a checkpoint notes: its name, the commit on the Hub, the sizes of its files

    def load_into(self, trunk: Transformer) -> None:
        """Copy the weights into the trunk, one tensor at a time. Raises StartPointError for
        numbers that are not finite."""
        import torch

        parameters, places = dict(trunk.named_parameters()), tensors(self.model)
        tied = None
        for path, name, read in self._tensors("pt"):
            tensor = read.get_tensor(name)
            if not tensor.isfinite().all():
                raise StartPointError(
                    f"{path}: {_short(name)} holds numbers that are not finite: get another copy of the model"
                )
            if place := places.get(name):
                with torch.no_grad():
                    parameters[place.parameter][place.first_row :][: len(tensor)].copy_(tensor)
            elif name == "lm_head.weight":
                tied = tensor.float()
        if tied is not None and not torch.equal(tied, trunk.embed.weight.cpu()):
            raise StartPointError(
                f"{self.weights[0].parent}: lm_head.weight differs from the embedding, but config.json says "
                "tie_word_embeddings: correct it there"
            )

    def check_tensors(self) -> None:
        """Raise StartPointError unless the files hold exactly the tensors of this shape."""
        missing, places = dict(tensors(self.model)), tensors(self.model)
        for path, name, read in self._tensors("numpy"):
            part = read.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if name not in places:
                if _has_no_effect(name, self.model):
                    continue
                raise StartPointError(
                    f"{path}: {_short(name)} has no place in this model: it is another architecture, or an adapter"
                )
            if shape != places[name].shape or dtype not in FLOATS:
                raise StartPointError(
                    f"{path}: {name} is {dtype} of shape {_short(list(shape))}; by config.json it is "
                    f"{list(places[name].shape)}, in {', '.join(FLOATS)}"
                )
            if name not in missing:
                raise StartPointError(f"{path}: {name} is in another file too: keep one of them")
            del missing[name]
        if missing:
            raise StartPointError(
                f"{self.weights[0].parent} lacks {counted(len(missing), 'tensor')} of the model, such as {next(iter(missing))}"
            )

    def _tensors(self, framework: str) -> Iterator[tuple[Path, str, Any]]:
        """Yield (file, name, open file) for every tensor. Raises StartPointError for a file that is
        no whole safetensors file."""
        from safetensors import SafetensorError, safe_open

        for path in self.weights:
            try:
                with path.open("rb") as file:
                    if int.from_bytes(file.read(8), "little") > LONGEST_JSON:
                        raise SafetensorError(f"a header of more than {human_bytes(LONGEST_JSON)}")
                opened = safe_open(path, framework)
            except (SafetensorError, OSError) as error:
                raise StartPointError(
                    f"{path} is no whole safetensors file ({error}): it was cut off or changed; get another copy"
                ) from None
            with opened as read:
                for name in read.keys():  # noqa: SIM118  # it is no dict
                    yield path, name, read


def _short(value: Any) -> str:
    """Return what a file says of itself, which may be megabytes long, in a few words."""
    return clip(str(value)[:200], 80)


def _has_no_effect(name: str, model: ModelConfig) -> bool:
    """Return whether transformers would ignore this tensor: an output layer that is tied, or tables
    that older versions stored."""
    return (name == "lm_head.weight" and model.tie_embeddings) or name.endswith("rotary_emb.inv_freq")


def open_start_point(preset: Preset) -> StartPoint:
    """Find, download and check the model of `model.init_from`; its weights come last.

    Raises PresetError for keys of the preset that contradict it, StartPointError if it cannot be
    used.
    """
    # Not for the menu: with numpy they take a fifth of a second.
    from data import tokenizer as bpe
    from data.chat_template import ChatTemplate, template_beside

    files = _files_of(preset.model)
    model = _shape_of(preset.model, files)
    if contradictions := list(_contradictions(preset.model, model)):
        raise PresetError(
            f"Preset {preset.name!r} contradicts the model that it starts from:\n" + "\n".join(contradictions) + "\n"
            "Remove these keys: the shape is that of the model."
        )
    if TOKENIZER not in files.sizes:
        raise StartPointError(
            f"{files} has no tokenizer.json: write one there with save_pretrained of the model's AutoTokenizer"
        )
    tokenizer = bpe.load(files.path(TOKENIZER))
    if (size := bpe.vocab_size(tokenizer)) > model.vocab_size:
        raise StartPointError(
            f"{files}: its tokenizer has {size:,} tokens, and by config.json the model has {model.vocab_size:,}"
        )
    chat_template = None
    if preset.data.has_conversations:
        chat_template = template_beside(
            str(files), lambda name: files.path(name) if name in files.sizes else None, tokenizer
        )
        ChatTemplate(chat_template, tokenizer)  # or it cannot be used
    names = _weight_files(files)
    start = StartPoint(
        model,
        tokenizer.to_str(pretty=True),
        bpe.fingerprint(tokenizer),
        bpe.end_of_text(tokenizer),
        tuple(files.path(name) for name in names),
        chat_template,
        {
            "init_from": preset.model.init_from,
            "commit": files.commit,
            "files": {name: files.sizes[name] for name in sorted({CONFIG, TOKENIZER, *names})},
        },
    )
    start.check_tensors()
    return start


def described(pinned: dict[str, Any]) -> str:
    """Return in words what a checkpoint notes of a start point."""
    commit = f" at commit {pinned['commit'][:12]}" if pinned["commit"] else ""
    sizes = [size for name, size in pinned["files"].items() if name not in (CONFIG, TOKENIZER)]
    return f"{pinned['init_from']}{commit}: {counted(len(sizes), 'file')} of weights, {human_bytes(sum(sizes))}"


def peek(preset: Preset) -> Preset:
    """Return the preset with the shape of the model that it starts from, without downloading
    weights. Raises UserError."""
    model = _shape_of(preset.model, _files_of(preset.model))
    return preset.model_copy(update={"model": model})


def _files_of(model: ModelConfig) -> Files:
    assert model.init_from
    if model.init_from.startswith(FOLDER_STARTS):
        return Folder(model.init_from)
    try:
        return find_model(model.init_from, model.revision)
    except StartPointError as error:
        if os.path.isdir(model.init_from):
            raise StartPointError(f'{error}. For the folder of that name write "./{model.init_from}"') from error
        raise


def _shape_of(model: ModelConfig, files: Files) -> ModelConfig:
    if CONFIG not in files.sizes:
        raise StartPointError(f"{files} has no config.json: it is not a model in Hugging Face form")
    try:
        return shape_in(_json_object(files, CONFIG), model)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise StartPointError(f"{files}: config.json {error}") from None


def _contradictions(given: ModelConfig, model: ModelConfig) -> Iterator[str]:
    for name in sorted(SHAPE & given.model_fields_set):
        wanted, there = getattr(given, name), getattr(model, name)
        if wanted != there:
            key = ModelConfig.model_fields[name].alias or name
            yield f"  model.{key}: {wanted!r} in the preset, {there!r} in {given.init_from}"


def _weight_files(files: Files) -> list[str]:
    """Return the names of the safetensors files: one, or those of the index."""
    if WEIGHTS in files.sizes:
        return [WEIGHTS]
    if INDEX not in files.sizes:
        pickles = sorted(name for name in files.sizes if name.endswith(PICKLES))
        if pickles:
            raise StartPointError(
                f"{files} holds its weights only as pickles ({', '.join(pickles[:3])}), which may run code when they are "
                "opened. Where you trust them, convert them with save_pretrained of transformers, which writes safetensors"
            )
        raise StartPointError(f"{files} has no model.safetensors")
    shards = _json_object(files, INDEX).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) and all(map(_is_name, shards.values())) else []
    if not names:
        raise StartPointError(
            f"{files}: {INDEX} has no weight_map from tensors to names of safetensors files beside it"
        )
    if missing := [name for name in names if name not in files.sizes]:
        raise StartPointError(f"{files}: {INDEX} names {missing[0]}, which is not there")
    return names


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and not {"/", "\\", "\0"} & set(value)


def _json_object(files: Files, name: str) -> dict[str, Any]:
    path = files.path(name)
    try:
        if files.sizes[name] > LONGEST_JSON:
            raise ValueError(f"larger than {human_bytes(LONGEST_JSON)}")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise StartPointError(f"{path} is no JSON that can be read ({error})") from None
    return value
