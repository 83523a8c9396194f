"""Compares two presets: the changed settings, and whether a run can be resumed with them."""

import json
import re
from collections.abc import Iterable
from itertools import count
from typing import Any

from configs.errors import PresetError
from configs.schema import ModelConfig, Preset
from configs.sources import PDFSource, SourceEntry, TextSource

Changes = dict[str, tuple[Any, Any]]

# The weights and the stream of a run depend on these. All else may be edited between two sessions,
# and the path of text too: its content decides (data/identity.py: check_paths).
FIXED = (
    "model.",
    "data.",
    "train.seed",
    "train.eval_tokens",
    "auxiliary.enable_policy",
    "auxiliary.enable_value",
    "auxiliary.enable_dynamics",
    "auxiliary.enable_span_contrastive",
)
MOVABLE = re.compile(r"data\.((custom_|finish\.)?sources|watch)\.\d+\.path")
# Their defaults depend on other settings of the model.
FOLLOWING = ("model.num_kv_heads", "model.vocab_size", "model.mlp_size", "model.embedding_norm")


def changes(old: Preset, new: Preset) -> Changes:
    """Return the settings that differ, by their path in the JSON: (old value, new value).

    Names and sentences do not count, nor FOLLOWING where both values are the default for the
    other sizes, nor what one of the two leaves to the model that it starts from.
    """
    old, new = with_shape_of(new, old), with_shape_of(old, with_norm_of(old, new))
    before, after = (
        _flat(json.loads(preset.to_json())) for preset in (with_labels_of(old, old), with_labels_of(old, new))
    )
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and key not in ("name", "description", "$schema")
        and not (key in FOLLOWING and _follows(old.model, key) and _follows(new.model, key))
    }


def with_shape_of(shaped: Preset, preset: Preset) -> Preset:
    """Return `preset` with what it leaves to the model that it starts from taken from `shaped`."""
    return preset.model_copy(update={"model": preset.model.completed(shaped.model)})


def with_norm_of(old: Preset, new: Preset) -> Preset:
    """Return `new` without a norm behind the embedding if it does not ask for one and the run has none: that of an
    older version, whose default was another."""
    if "embedding_norm" in new.model.model_fields_set or old.model.embedding_norm:
        return new
    return new.without_embedding_norm()


def with_labels_of(old: Preset, new: Preset) -> Preset:
    """Return `new` with the labels of `old` where a text's label was made from its path: the run's
    measurements keep their names when the text is moved."""
    labels, data = dict(enumerate(source.label for source in old.data.all_sources)), new.data

    def labelled(entries: list[SourceEntry], places: Iterable[int]) -> list[SourceEntry]:
        return [
            entry.model_copy(update={"label": labels.get(place, "")})
            if isinstance(entry, TextSource | PDFSource) and not entry.label
            else entry
            for entry, place in zip(entries, places, strict=False)
        ]

    changed: dict[str, Any] = {
        "sources": labelled(data.sources, count()),
        "custom_sources": labelled(data.custom_sources, count(len(data.sources))),
    }
    if data.finish:
        finish = labelled(data.finish.sources, data.places(data.finish.sources))
        changed["finish"] = data.finish.model_copy(update={"sources": finish})
    if data.watch:
        changed["watch"] = labelled(data.watch, data.places(data.watch))
    return new.model_copy(update={"data": data.model_copy(update=changed)})


def _follows(model: ModelConfig, key: str) -> bool:
    """Return whether the setting has the value of its default."""
    name = key.removeprefix("model.")
    default = ModelConfig.model_fields[name].get_default(call_default_factory=True, validated_data=model.model_dump())
    return getattr(model, name) == default


def describe(changed: Changes) -> str:
    return "\n".join(f"  {key}: {was!r} -> {now!r}" for key, (was, now) in changed.items())


def fixed_changes(changed: Changes) -> Changes:
    """Return those changes with which a run cannot be resumed."""
    return {key: values for key, values in changed.items() if key.startswith(FIXED) and not MOVABLE.fullmatch(key)}


def check_continuable(old: Preset, changed: Changes) -> None:
    """Raise PresetError if a run with preset `old` cannot be resumed with these changes."""
    if fatal := fixed_changes(changed):
        raise PresetError(
            f"The run {old.name!r} cannot be continued with this preset: its weights or its stream were made for "
            f"other settings.\n{describe(fatal)}\n"
            "Set these back to resume it, or choose the preset in the menu by name: that archives the run in "
            "checkpoints/archive/ and starts a new one (from Python: fresh=True)."
        )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
