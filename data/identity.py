"""Whether a stream is that of a preset: the settings and the text that its rows follow from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs import schema
from configs.errors import UserError
from configs.schema import Preset
from configs.text import counted
from data.sources.base import Source

# Change it when a preset's rows or their order change: streams of other formats are not resumed.
FORMAT = 10


def data_identity(preset: Preset) -> dict[str, Any]:
    """Return the settings that must be unchanged for a stream to be resumed.

    The paths of text are not among them: its content decides (check_paths). The sources of finish
    and watch are numbers of those in `sources`.
    """
    return {
        "format": FORMAT,
        "seq_length": preset.model.seq_length,
        "vocab_size": None if preset.data.tokenizer else preset.model.vocab_size,
        "seed": preset.train.seed,
        "data": preset.data.model_dump(
            mode="json", exclude={"custom_sources": True, "finish": {"sources"}, "watch": True}
        )
        | {"sources": [spec.model_dump(mode="json", exclude={"path"}) for spec in preset.data.all_sources]}
        | {"finish_sources": preset.data.places(preset.data.finish.sources) if preset.data.finish else None}
        | {"watch": preset.data.places(preset.data.watch) if preset.data.watch else None},
        **({"init_from": preset.model.init_from} if preset.model.init_from else {}),
    }


def without_null(settings: Any) -> Any:
    """Return settings without those that are null, such as the ones that a stream of an earlier version lacks."""
    if isinstance(settings, dict):
        return {key: without_null(value) for key, value in settings.items() if value is not None}
    return list(map(without_null, settings)) if isinstance(settings, list) else settings


def check_identity(header: dict[str, Any], preset: Preset, stream_dir: Path) -> None:
    """Raise UserError if the stream was made with other settings than this preset's."""
    header, wanted = without_null(header), without_null(json.loads(json.dumps(data_identity(preset))))
    if header.get("format") != FORMAT:
        raise UserError(
            f"{stream_dir} was started by another version of this program, which orders documents differently; finish the run "
            "with that version, or start a new one: this one is archived, not lost"
        )
    differing = [
        f"  {key}: {header.get(key)!r} in the stream, {value!r} in the preset"
        for key, value in wanted.items()
        if header.get(key) != value and key != "data"
    ]
    had, wants = header.get("data") or {}, wanted["data"]
    differing += [
        f"  data.{key}: {had.get(key)!r} in the stream, {wants.get(key)!r} in the preset"
        for key in sorted(had.keys() | wants.keys())
        if had.get(key) != wants.get(key)
    ]
    if differing:
        raise UserError(
            f"{stream_dir} was made for other data and cannot be continued with this preset:\n"
            + "\n".join(differing)
            + "\nresume with its original preset, or start a new run"
        )


def path_of(spec: schema.Source) -> str | None:
    """Return where the text of a source is, if its content identifies it."""
    return spec.path if spec.type in ("text", "pdf") else None


def check_paths(header: dict[str, Any], preset: Preset, sources: Sequence[Callable[[], Source]]) -> None:
    """Raise UserError for text that was moved to another path, and is not the same text there."""
    for spec, source, entry in zip(preset.data.all_sources, sources, header["sources"], strict=True):
        if path_of(spec) != entry["path"] and source().pinned != entry["pinned"]:
            raise UserError(
                f"source {spec.label}: this run began with the text in {entry['path']}, and {path_of(spec)} holds other text "
                f"({source().size()}; then it was {counted(entry['pinned']['files'], 'file')}). Put the same files there, or "
                "start a new run"
            )
