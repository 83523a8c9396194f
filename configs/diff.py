"""Two presets compared: what was edited since a run began, and whether the run can go on all the same."""

import json
from typing import Any

from configs.errors import PresetError
from configs.schema import ModelConfig, Preset

Changes = dict[str, tuple[Any, Any]]

# What the weights and the stream of a run were made for. Everything else may be edited between two sessions.
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
FOLLOWING = ("model.vocab_size", "model.mlp_size")  # have defaults by the model's width


def changes(old: Preset, new: Preset) -> Changes:
    """Settings that differ, by their path in the JSON: (old value, new value). Names and sentences do not count, nor
    FOLLOWING where both only follow from the width."""
    before, after = (_flat(json.loads(preset.to_json())) for preset in (old, new))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and key not in ("name", "description", "$schema")
        and not (key in FOLLOWING and _follows(old.model, key) and _follows(new.model, key))
    }


def _follows(model: ModelConfig, key: str) -> bool:
    """Whether that setting has the value that its default would be."""
    name = key.removeprefix("model.")
    default = ModelConfig.model_fields[name].get_default(call_default_factory=True, validated_data=model.model_dump())
    return getattr(model, name) == default


def describe(changed: Changes) -> str:
    return "\n".join(f"  {key}: {was!r} -> {now!r}" for key, (was, now) in changed.items())


def fixed_changes(changed: Changes) -> Changes:
    """Those that a run cannot go on with."""
    return {key: values for key, values in changed.items() if key.startswith(FIXED)}


def check_continuable(old: Preset, changed: Changes) -> None:
    """Raises PresetError if a run begun with preset `old` cannot go on with these settings changed."""
    if fatal := fixed_changes(changed):
        raise PresetError(
            f"The unfinished run {old.name!r} cannot be continued with this preset: its weights or its stream were made for "
            f"other settings.\n{describe(fatal)}\n"
            "Set these back to resume it, or choose the preset in the menu by name: that puts the unfinished run aside in "
            "checkpoints/archive/ and starts a new one."
        )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
