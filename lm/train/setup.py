"""Setup before the first step: load, build and check. All that would fail later fails here,
before anything is written."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.diff import changes, check_continuable, describe, with_labels_of, with_shape_of
from configs.errors import UserError
from configs.schema import Preset, parse_preset
from configs.text import counted
from data import tokenizer as bpe
from data.files import write_atomically
from data.identity import data_identity, without_null
from data.journal import read_header
from data.mixing import over_the_run, shares
from data.stream import Stream, StreamInfo
from lm.checkpoint import store
from lm.checkpoint.archive import archive_run, archived_in, finish_interrupted, restore
from lm.evaluation.benchmarks import load_benchmarks
from lm.learner import Learner
from lm.runtime import estimate
from lm.runtime.distributed import World
from lm.runtime.machine import Machine, load_machine, measure_machine, peak_memory, save_machine
from lm.start_point import StartPoint, open_start_point
from lm.train.dry_run import dry_run
from lm.train.run import Run
from lm.train.start_card import StartCard, render_card
from lm.train.state import TrainState

log = logging.getLogger(__name__)

BATCH_KEYS = {"train.per_gpu_batch_size", "train.accumulation_steps"}

Checkpoint = dict[str, Any]


def resume_or_begin(
    preset: Preset, world: World, folder: Path, fresh: bool
) -> tuple[Preset, Checkpoint | None, TrainState]:
    """Load the checkpoint of the unfinished run in `folder`, if there is one and
    no `fresh` run is wanted.

    Returns the preset, with the run's labels of its sources, the checkpoint or None, and the state
    to start from. Raises PresetError if its weights do not fit the preset.
    """
    world.from_first(finish_interrupted, folder)
    numbers = len(preset.data.all_sources), len(preset.data.weights)
    rows_per_step, continued = preset.train.rows_per_process * world.size, preset.model.init_from is not None
    state = TrainState.new(*numbers, rows_per_step, continued=continued)
    checkpoint, edited = (None, set()) if fresh else world.from_first(_load_unfinished, preset, folder)
    if checkpoint:
        preset = with_labels_of(parse_preset(checkpoint["preset"], "the checkpoint"), preset)
        rows_of_preset, state = state.global_batch_rows, TrainState.from_checkpoint(checkpoint, *numbers)
        if edited & BATCH_KEYS:  # otherwise the step's size is kept, for any number of processes
            state.global_batch_rows = rows_of_preset
    return preset, checkpoint, state


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


def with_start_point(preset: Preset, world: World, checkpoint: Checkpoint | None) -> tuple[Preset, StartPoint | None]:
    """Return the preset with the shape of the model that it starts from, and that model, if this is
    the beginning of the run. A checkpoint has all that a resumed run needs of it.

    Raises UserError for a model that cannot be used, or that contradicts the preset.
    """
    if not preset.model.init_from:
        return preset, None
    if checkpoint:
        return with_shape_of(parse_preset(checkpoint["preset"], "the checkpoint"), preset), None
    start = world.from_first(open_start_point, preset)
    return preset.model_copy(update={"model": start.model}), start


def build_learner(run: Run, state: TrainState, start: StartPoint | None = None) -> Learner:
    """Build the learner, with the weights of `start` if there is one. Raises UserError for a model
    that memory cannot hold, a tokenizer that cannot be read, or rows too short for the heads."""
    vocab_size, end_of_text = run.world.from_first(_vocabulary, run.preset, run.folder, start)
    return Learner(
        run.preset,
        run.world,
        vocab_size=vocab_size,
        end_of_text=end_of_text,
        tokens_per_step=state.global_batch_rows * run.preset.model.seq_length,
        start=start,
    )


def _vocabulary(preset: Preset, folder: Path, start: StartPoint | None) -> tuple[int, int]:
    """Return (vocabulary size, id of the end-of-text token)."""
    if not preset.model.init_from:
        return bpe.vocabulary(preset)
    end_of_text = start.end_of_text if start else bpe.end_of_text(bpe.load(folder / "tokenizer.json"))
    return preset.model.vocab_size, end_of_text


def open_stream(run: Run, state: TrainState, checkpoint: Checkpoint | None) -> Stream:
    """Start the process that reads the sources; it writes nothing before `Stream.begin`."""
    return Stream(
        run.preset,
        run.folder,
        run.token_budget,
        start_row=state.tokens_seen // run.preset.model.seq_length,
        weight_changes=state.weight_changes,
        begun_windows=state.windows_begun,
        header=state.stream_header if checkpoint else None,
    )


def check(run: Run, learner: Learner, stream: Stream, state: TrainState, fresh: bool) -> Machine:
    """Check disk, sources, memory and a real step, show the start card, and save
    the measured speed.

    `stream` is the first rank's (World.on_first).
    """
    preset, world, folder, token_budget = run
    needed = estimate.disk_bytes(preset, token_budget)
    world.from_first(store.check_disk, folder, needed, beside=fresh)
    world.from_first(check_benchmarks, preset)
    sources = stream.wait_opened(on_status=log.info)
    for notice in (notice for source in sources for notice in source.notices):
        log.info("%s", notice)
    compiling = " (compiling it first: up to two minutes, once per model shape)" if learner.compiled else ""
    log.info("trying one step%s", compiling)
    seconds = dry_run(preset, world, learner, state.global_batch_rows)
    data = preset.data
    weights = over_the_run(data.weights, len(sources), data.finish_share)
    known = data.mix_strategy == "weighted" or len(data.trained_sources) == 1
    made = f"byte-level BPE, {counted(learner.vocab_size, 'token')}, trained on the head of the mixture"
    if preset.model.init_from:
        made = f"that of {preset.model.init_from}, {counted(learner.vocab_size, 'token')}"
    card = StartCard(
        preset=preset,
        sources=sources,
        shares=shares(weights if known else [0.0] * len(weights)),
        tokenizer=data.tokenizer or made,
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
    return world.from_first(_introduce, run, card, learner.compiled)


def check_benchmarks(preset: Preset) -> None:
    """Raise UserError if the run could not end with its benchmarks; fetches their data."""
    if preset.train.benchmarks:
        log.info("loading the benchmarks: %s", ", ".join(preset.train.benchmarks))
        load_benchmarks(preset.train.benchmarks)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _introduce(run: Run, card: StartCard, compiled: bool) -> Machine:
    log.info("%s", render_card(card))
    machine = replace(load_machine(run.folder) or measure_machine(), compiled=compiled)
    return keep_speed(run, machine, card.rows_per_step, card.tokens_per_second)


def keep_speed(run: Run, machine: Machine, rows_per_step: int, tokens_per_second: float) -> Machine:
    """Save the speed of all processes for the next menu; on the first rank only. Not that of a resumed run
    that keeps another batch: it is not that of the preset."""
    if rows_per_step == run.rows_per_step:
        machine = estimate.record_speed(machine, run.preset, tokens_per_second, run.world.size)
        save_machine(run.folder, machine)
    return machine


def begin(run: Run, stream: Stream, fresh: bool, start: StartPoint | None = None) -> StreamInfo:
    """Prepare the stream, with `fresh` after archiving the run in the folder; on the first rank only.

    If it cannot be prepared (UserError), that run is back in its place. The tokenizer of `start`
    becomes that of the run: the producer finds it in the folder.
    """
    archived, folder = None, run.folder
    if fresh and (store.latest_exists(folder) or _stream_of_another(run, start)):
        archived = archive_run(folder)
        log.info("%s", archived_in(archived))
    try:
        if start:
            write_atomically(folder / "tokenizer.json", start.tokenizer.encode())
        return stream.begin(on_status=log.info)
    except UserError:
        if archived:
            shutil.rmtree(folder / "stream", ignore_errors=True)  # what this start has written
            restore(folder, archived)
            log.info("It is back: nothing of the new run was kept.")
        raise


def _stream_of_another(run: Run, start: StartPoint | None) -> bool:
    """Return whether a run killed before its first checkpoint left a stream
    that this one cannot use."""
    header = without_null(read_header(run.folder / "stream"))
    wanted = without_null(data_identity(run.preset))
    if start:
        wanted["tokenizer_sha256"] = start.tokenizer_sha256
    return header is not None and any(header.get(key) != value for key, value in wanted.items())
