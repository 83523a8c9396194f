"""Setup before the first step: load, build and check. All that would fail later fails here,
before anything is written."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from configs.diff import changes, check_continuable, describe, with_labels_of, with_norm_of, with_shape_of
from configs.errors import UserError
from configs.schema import Preset
from configs.text import counted
from data import tokenizer as bpe
from data.chat_template import TEMPLATE_FILE
from data.files import write_atomically
from data.identity import data_identity, path_of, without_null
from data.journal import read_header
from data.memory import give_back_memory
from data.mixing import over_the_run, shares
from data.prepare import given_tokenizer
from data.stream import Stream, StreamInfo
from lm.checkpoint import store
from lm.checkpoint.archive import archive_run, archived_in, finish_interrupted, has_remains, restore
from lm.evaluation.benchmarks import load_benchmarks
from lm.learner import Learner, preset_of
from lm.runtime import estimate
from lm.runtime.distributed import World
from lm.runtime.files import has_hard_links
from lm.runtime.log import log_status
from lm.runtime.machine import Machine, load_machine, measure_machine, peak_memory, save_machine
from lm.runtime.profiler import steps_asked_for
from lm.start_point import StartPoint, open_start_point
from lm.train.dry_run import dry_run
from lm.train.rows import log_notices
from lm.train.run import Run
from lm.train.start_card import StartCard, render_card
from lm.train.state import TrainState

log = logging.getLogger(__name__)


def resume_or_begin(
    preset: Preset, world: World, folder: Path, token_budget: int, fresh: bool
) -> tuple[Preset, dict[str, Any] | None, TrainState]:
    """Load the checkpoint of the unfinished run in `folder`, if there is one and
    no `fresh` run is wanted.

    Returns the preset, with the run's labels of its sources and its shape, the checkpoint or None, and the state
    to start from. Raises PresetError if its weights do not fit the preset, UserError if it ended
    within a row and `token_budget` is larger.
    """
    world.from_first(finish_interrupted, folder)
    numbers = len(preset.data.all_sources), len(preset.data.weights)
    rows_per_step, continued = preset.train.rows_per_process * world.size, preset.model.init_from is not None
    state = TrainState.new(*numbers, rows_per_step, continued=continued)
    checkpoint = None if fresh else world.from_first(_load_checkpoint, folder)
    if checkpoint:
        saved = preset_of(checkpoint)
        edited = changes(saved, preset)
        check_continuable(saved, edited)
        if edited:
            log.info("Edited since this run was last saved, and in force from here on:\n%s", describe(edited))
        preset = with_shape_of(saved, with_norm_of(saved, with_labels_of(saved, preset)))
        state = TrainState.from_checkpoint(checkpoint, *numbers)
        if state.tokens_seen % saved.model.seq_length and not state.is_trained(token_budget):
            raise UserError(
                f"The run in {folder} ended with its budget of {state.tokens_seen:,} tokens, within a row: it cannot be "
                f"continued to {token_budget:,}. Start a new run, from its export (model.init_from) if you like."
            )
        # Otherwise the step's size is kept, for any number of processes and parts of the same rows.
        if saved.train.rows_per_process != preset.train.rows_per_process:
            state.global_batch_rows = rows_per_step
    return preset, checkpoint, state


def _load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the checkpoint of the run in `folder`, or None."""
    if not store.latest_exists(folder):
        return None
    checkpoint, notice = store.load(folder)
    if notice:
        log.warning("%s", notice)
    return checkpoint


def with_start_point(
    preset: Preset, world: World, checkpoint: dict[str, Any] | None
) -> tuple[Preset, StartPoint | None]:
    """Return the preset with the shape of the model that it starts from, and that model, if this is
    the beginning of the run. A checkpoint has all that a resumed run needs of it.

    Raises UserError for a model that cannot be used, or that contradicts the preset.
    """
    if checkpoint or not preset.model.init_from:
        return preset, None
    start = world.from_first(open_start_point, preset)
    return preset.model_copy(update={"model": start.model}), start


def build_learner(run: Run, state: TrainState, start: StartPoint | None = None) -> Learner:
    """Build the learner, with the weights of `start` if there is one. Raises UserError for a model
    that memory cannot hold, a tokenizer that cannot be read, or rows too short for the heads."""
    vocab_size, end_of_text = run.world.from_first(_vocabulary, run.preset, run.folder, start, state.stream_header)
    give_back_memory()  # of an earlier run of this process, whose parts refer to each other
    return Learner(
        run.preset,
        run.world,
        vocab_size=vocab_size,
        end_of_text=end_of_text,
        tokens_per_step=state.global_batch_rows * run.preset.model.seq_length,
        start=start,
    )


def _vocabulary(
    preset: Preset, folder: Path, start: StartPoint | None, header: dict[str, Any] | None
) -> tuple[int, int]:
    """Return (vocabulary size, id of the end-of-text token). `header`: of a resumed run's stream."""
    if preset.data.tokenizer:
        given = _own_tokenizer(folder, header) or bpe.load(preset.data.tokenizer)
        return bpe.vocab_size(given), bpe.end_of_text(given)
    if not preset.model.init_from:
        return preset.model.vocab_size, 0  # as the one to be trained will have
    path = folder / "tokenizer.json"
    if not start and not path.is_file():  # it is not trained on the sources, so it cannot be made again
        raise UserError(
            f"{path} is missing, and a run from a model needs it: copy it there from {preset.model.init_from}, or from where "
            "the run was before"
        )
    return preset.model.vocab_size, start.end_of_text if start else bpe.end_of_text(bpe.load(path))


def _own_tokenizer(folder: Path, header: dict[str, Any] | None) -> Tokenizer | None:
    """Return the copy that a resumed run has of the tokenizer it was given, if it is intact: the file
    itself may be gone by now, or another."""
    if header:
        with suppress(UserError):
            tokenizer = bpe.load(folder / "tokenizer.json")
            if bpe.fingerprint(tokenizer) == header["tokenizer_sha256"]:
                return tokenizer
    return None


def open_stream(run: Run, state: TrainState, checkpoint: dict[str, Any] | None, fresh: bool) -> Stream:
    """Start the process that reads the sources; it writes nothing before `Stream.begin`."""
    return Stream(
        run.preset,
        run.folder,
        run.token_budget,
        start_row=state.tokens_seen // run.preset.model.seq_length,
        weight_changes=state.weight_changes,
        begun_windows=state.windows_begun,
        header=state.stream_header if checkpoint else None,
        fresh=fresh,
    )


def check(run: Run, learner: Learner, stream: Stream, state: TrainState, fresh: bool) -> Machine:
    """Check disk, sources, memory and a real step, show the start card, and save
    the measured speed."""
    preset, world, folder, token_budget = run
    steps_asked_for()  # or raises, before anything is written
    sized = estimate.with_vocabulary(preset, learner.vocab_size)
    needed = estimate.disk_bytes(sized, token_budget, has_links=world.from_first(has_hard_links, folder))
    world.from_first(store.check_disk, folder, needed, beside=fresh)
    world.from_first(check_benchmarks, preset)
    sources = world.from_first(lambda: stream.wait_opened(on_status=log_status))
    for notice in (notice for source in sources for notice in source.notices):
        log.info("%s", notice)
    compiling = " (compiling it first: up to two minutes, once per model shape)" if learner.compiled else ""
    log.info("trying one step%s", compiling)
    seconds = dry_run(learner, state.global_batch_rows)
    data = preset.data
    weights = over_the_run(data.weights, len(sources), data.finish_share)
    known = data.mix_strategy == "weighted" or len(data.trained_sources) == 1
    made = f"byte-level BPE, {counted(learner.vocab_size, 'token')}, trained on the beginning of the mixture"
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
        export_bytes=estimate.export_bytes(sized),
    )
    return world.from_first(_introduce, run, card, learner.vocab_size, learner.compiled)


def check_benchmarks(preset: Preset) -> None:
    """Raise UserError if the run could not end with its benchmarks; fetches their data."""
    if preset.train.benchmarks:
        log.info("loading the benchmarks: %s", ", ".join(preset.train.benchmarks))
        load_benchmarks(preset.train.benchmarks)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _introduce(run: Run, card: StartCard, vocab_size: int, compiled: bool) -> Machine:
    log.info("%s", render_card(card))
    machine = replace(load_machine(run.folder) or measure_machine(), compiled=compiled)
    return keep_speed(run, machine, vocab_size, card.rows_per_step, card.tokens_per_second, estimate.record_trial)


def keep_speed(
    run: Run,
    machine: Machine,
    vocab_size: int,
    rows_per_step: int,
    tokens_per_second: float,
    record: Callable[..., Machine] = estimate.record_speed,
) -> Machine:
    """Save the speed of all processes for the next menu; on the first rank only. Not that of a resumed run
    that keeps another batch: it is not that of the preset."""
    if rows_per_step == run.rows_per_step:
        # The menu knows the size of a given tokenizer, and not yet that of one that is trained.
        sized = estimate.with_vocabulary(run.preset, vocab_size) if run.preset.data.tokenizer else run.preset
        machine = record(machine, sized, tokens_per_second, run.world.size)
        save_machine(run.folder, machine)
    return machine


def begin(run: Run, stream: Stream, fresh: bool, start: StartPoint | None = None) -> StreamInfo:
    """Prepare the stream, with `fresh` after archiving the run in the folder; on the first rank only. What
    is left of a run without its checkpoints is archived in any case.

    If it cannot be prepared, that run is back in its place. Tokenizer and chat template of
    `start` become those of the run: the producer finds them in the folder.
    """
    archived, folder = None, run.folder
    if store.latest_exists(folder):
        is_in_the_way = fresh
    else:
        remains = has_remains(folder, run.preset.train.save_every_tokens)
        is_in_the_way = remains or (fresh and _stream_of_another(run, start)) or _stream_of_another_budget(run)
    if is_in_the_way:
        archived = archive_run(folder)
        log.info("%s", archived_in(archived))
    try:
        if start:
            write_atomically(folder / "tokenizer.json", start.tokenizer.encode())
            if start.chat_template:
                write_atomically(folder / TEMPLATE_FILE, start.chat_template.encode())
        return stream.begin(on_status=log_status)
    except Exception:
        if archived:  # without what this start has written
            shutil.rmtree(folder / "stream", ignore_errors=True)
            for name in ("tokenizer.json", TEMPLATE_FILE):
                (folder / name).unlink(missing_ok=True)
            restore(folder, archived)
            log.info("It is back: nothing of the new run was kept.")
        raise
    finally:
        log_notices(stream)


def _stream_of_another_budget(run: Run) -> bool:
    """Return whether a run killed before its first checkpoint left a stream for another number of tokens."""
    header = read_header(run.folder / "stream") or {}
    return header.get("token_budget", run.token_budget) != run.token_budget


def _stream_of_another(run: Run, start: StartPoint | None) -> bool:
    """Return whether a run killed before its first checkpoint left a stream
    that this one cannot use."""
    header = without_null(read_header(run.folder / "stream"))
    if header is None:
        return False
    wanted = without_null(data_identity(run.preset)) | {"eval_tokens": run.preset.train.eval_tokens}
    if run.preset.data.tokenizer:  # the file may be another by now
        tokenizer, template = given_tokenizer(run.preset, run.folder / "stream")
        assert tokenizer
        wanted["tokenizer_sha256"] = bpe.fingerprint(tokenizer)
        wanted |= {"chat_template": template.source} if template else {}
    if start:
        wanted["tokenizer_sha256"] = start.tokenizer_sha256
        wanted |= {"chat_template": start.chat_template} if start.chat_template else {}
    paths = [path_of(spec) for spec in run.preset.data.all_sources]
    return any(header.get(key) != value for key, value in wanted.items()) or paths != [
        entry["path"] for entry in header["sources"]
    ]
