"""Setup before the first step: load, build and check. All that would fail later fails here,
before anything is written."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.diff import changes, check_continuable, describe
from configs.errors import UserError
from configs.schema import Preset, parse_preset
from configs.text import counted
from data import tokenizer as bpe
from data.journal import read_header
from data.mixing import shares
from data.prepare import data_identity
from data.stream import Stream, StreamInfo
from lm.checkpoint import store
from lm.checkpoint.archive import archive_run, archived_in, restore
from lm.evaluation.benchmarks import load_benchmarks
from lm.learner import Learner
from lm.runtime import estimate
from lm.runtime.distributed import World
from lm.runtime.machine import Machine, load_machine, measure_machine, peak_memory, save_machine
from lm.train.dry_run import dry_run
from lm.train.start_card import StartCard, render_card
from lm.train.state import TrainState

log = logging.getLogger(__name__)

BATCH_KEYS = {"train.per_gpu_batch_size", "train.accumulation_steps"}

Checkpoint = dict[str, Any]


def resume_or_begin(preset: Preset, world: World, folder: Path, fresh: bool) -> tuple[Checkpoint | None, TrainState]:
    """Load the checkpoint of the unfinished run in `folder`, if there is one and
    no `fresh` run is wanted.

    Returns it, or None, and the state to start from. Raises PresetError if its
    weights do not fit the preset.
    """
    state = TrainState.new(len(preset.data.all_sources), preset.train.rows_per_process * world.size)
    checkpoint, edited = (None, set()) if fresh else world.from_first(_load_unfinished, preset, folder)
    if checkpoint:
        rows_of_preset, state = state.global_batch_rows, TrainState.from_checkpoint(checkpoint)
        if edited & BATCH_KEYS:  # otherwise the step's size is kept, for any number of processes
            state.global_batch_rows = rows_of_preset
    return checkpoint, state


def _load_unfinished(preset: Preset, folder: Path) -> tuple[Checkpoint | None, set[str]]:
    """Return the checkpoint, or None, and the keys of the preset edited since the run began."""
    if not store.latest_exists(folder):
        return None, set()
    checkpoint, notice = store.load(folder)
    if notice:
        log.warning("%s", notice)
    began_as = parse_preset(checkpoint["preset"], "the checkpoint")
    edited = changes(began_as, preset)
    check_continuable(began_as, edited)
    if edited:
        log.info("Edited since this run began, and in force from here on:\n%s", describe(edited))
    return checkpoint, set(edited)


def build_learner(preset: Preset, world: World, state: TrainState) -> Learner:
    """Build the learner. Raises UserError for a model that memory cannot hold, a tokenizer that
    cannot be read, or rows too short for the heads."""
    vocab_size, end_of_text = world.from_first(bpe.vocabulary, preset)
    tokens_per_step = state.global_batch_rows * preset.model.seq_length
    return Learner(preset, world, vocab_size=vocab_size, end_of_text=end_of_text, tokens_per_step=tokens_per_step)


def open_stream(
    preset: Preset, folder: Path, token_budget: int, state: TrainState, checkpoint: Checkpoint | None
) -> Stream:
    """Start the process that reads the sources; it writes nothing before `Stream.begin`."""
    return Stream(
        preset,
        folder,
        token_budget,
        start_row=state.tokens_seen // preset.model.seq_length,
        weight_changes=state.weight_changes,
        begun_windows=state.windows_begun,
        tokenizer_sha256=checkpoint["tokenizer_sha256"] if checkpoint else None,
    )


def check(
    preset: Preset,
    world: World,
    folder: Path,
    learner: Learner,
    stream: Stream,
    state: TrainState,
    token_budget: int,
    fresh: bool,
) -> Machine:
    """Check disk, sources, memory and a real step, show the start card, and save
    the measured speed.

    `stream` is the first rank's (World.on_first).
    """
    needed = estimate.disk_bytes(preset, token_budget)
    world.from_first(store.check_disk, folder, needed, beside=fresh)
    world.from_first(check_benchmarks, preset)
    sources = stream.wait_opened(on_status=log.info)
    for notice in (notice for source in sources for notice in source.notices):
        log.info("%s", notice)
    compiling = " (compiling it first: up to two minutes, once per model shape)" if learner.compiled else ""
    log.info("trying one step%s", compiling)
    seconds = dry_run(preset, world, learner, state.global_batch_rows)
    weights = preset.data.weights
    known = preset.data.mix_strategy == "weighted" or len(weights) == 1
    made = f"byte-level BPE, {counted(learner.vocab_size, 'token')}, trained on the head of the mixture"
    card = StartCard(
        preset=preset,
        sources=sources,
        shares=shares(weights if known else [0.0] * len(weights)),
        tokenizer=preset.data.tokenizer or made,
        num_parameters=estimate.num_parameters(preset.model, learner.vocab_size),
        rows_per_step=state.global_batch_rows,
        world_size=world.size,
        token_budget=token_budget,
        tokens_seen=state.tokens_seen,
        decisions=learner.decisions,
        peak_memory_bytes=peak_memory(world.device.type),
        disk_needed_bytes=needed,
        disk_free_bytes=world.from_first(_free_bytes, folder),
        tokens_per_second=state.global_batch_rows * preset.model.seq_length / seconds,
    )
    return world.from_first(_introduce, card, folder, learner.compiled)


def check_benchmarks(preset: Preset) -> None:
    """Raise UserError if the run could not end with its benchmarks; fetches their data."""
    if preset.train.benchmarks:
        log.info("loading the benchmarks: %s", ", ".join(preset.train.benchmarks))
        load_benchmarks(preset.train.benchmarks)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _introduce(card: StartCard, folder: Path, compiled: bool) -> Machine:
    preset = card.preset
    log.info("%s", render_card(card))
    machine = replace(load_machine(folder) or measure_machine(), compiled=compiled)
    # Not for a resumed run that keeps another batch: its speed is not that of the preset.
    if card.rows_per_step == preset.train.rows_per_process * card.world_size:
        machine = estimate.record_speed(machine, preset, card.tokens_per_second, card.world_size)
        save_machine(folder, machine)
    return machine


def begin(preset: Preset, folder: Path, stream: Stream, fresh: bool) -> StreamInfo:
    """Prepare the stream, with `fresh` after archiving the run in `folder`; on the first rank only.

    If it cannot be prepared (UserError), that run is back in its place.
    """
    archived = None
    if fresh and (store.latest_exists(folder) or _stream_of_another(folder, preset)):
        archived = archive_run(folder)
        log.info("%s", archived_in(archived))
    try:
        return stream.begin(on_status=log.info)
    except UserError:
        if archived:
            shutil.rmtree(folder / "stream", ignore_errors=True)  # what this start has written
            restore(folder, archived)
            log.info("It is back: nothing of the new run was kept.")
        raise


def _stream_of_another(folder: Path, preset: Preset) -> bool:
    """Return whether a run killed before its first checkpoint left a stream
    that `preset` cannot use."""
    header = read_header(folder / "stream")
    return header is not None and any(header.get(key) != value for key, value in data_identity(preset).items())
