"""Train a small language model on 100,000,000 tokens of real text.

    python main.py                              one process: a GPU, or the CPU
    torchrun --nproc_per_node=8 main.py         one process a GPU

Both ask which preset to train; Enter takes the one that suits this machine, or goes on with the run that was
interrupted. Ctrl-C saves and leaves; the same command and Enter continue with the very next token. There are no flags:
everything is set in the presets under configs/. What a run leaves behind is in checkpoints/.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from lm.runtime.signals import StopRequest, ignore_signals, leave_on_signals

if __name__ == "__main__":
    leave_on_signals()  # before the slow imports

try:
    from lm.runtime.watch import end_with_parent, peer_has_ended, watch  # first: it notes whose child this is

    if not find_spec("torch"):  # imported late, because it is slow
        raise ModuleNotFoundError(name="torch")
    from configs.diff import changes, check_continuable, describe
    from configs.schema import TOKEN_BUDGET, Preset, UserError, parse_preset
    from configs.text import human_time
    from lm.checkpoint import store
    from lm.checkpoint.archive import put_aside, restore
    from lm.cli.choose import choose, preset_of
    from lm.cli.menu import Choice
    from lm.runtime import estimate
    from lm.runtime.files import FolderLock
    from lm.runtime.machine import load_machine, measure_machine, peak_memory, save_machine
    from lm.runtime.terminal import tell
    from lm.train.start_card import StartCard, render_card
except ModuleNotFoundError as error:
    print(f"{error.name} is not installed. In the folder of this file: python -m pip install -e .", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from data.producer_client import SourceInfo
    from lm.train.trainer import Run

HERE = Path(__file__).resolve().parent
CONFIGS, CHECKPOINTS = HERE / "configs", HERE / "checkpoints"


def main() -> int:
    """Exit code: 0 done, or saved on request; 2 the user must change something; 1 a defect or a lost machine."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CHECKPOINTS / "compiled"))  # survives a reboot, unlike /tmp
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    try:
        if flags := sys.argv[1:]:
            raise UserError(
                f"{' '.join(flags)}? There are no flags: `python main.py` asks what to do, and everything else is set in the "
                f"presets under {CONFIGS}."
            )
        start(choose(CHECKPOINTS, CONFIGS) if os.environ.get("RANK", "0") == "0" else Choice("quit"))
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # it is every rank's, and said once
            tell(f"\n{error}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return report_defect()
        print(
            f"\nThe disk is full ({error}). The last checkpoint is intact: free some space, then start again.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        if not peer_has_ended(error):
            return report_defect()
        print(
            f"\nRank {os.environ['RANK']} ends: another process of this job has ended; torchrun says which and why. The "
            "last checkpoint is intact: start again to resume.",
            file=sys.stderr,
        )
        return 1
    return 0


def report_defect() -> int:
    traceback.print_exc()
    print(
        "\nThis is a defect, or a lost machine. The last checkpoint is intact: start again to resume.", file=sys.stderr
    )
    return 1


def start(choice: Choice) -> None:
    """What was chosen, done. The choice is the first rank's, which tells the others."""
    from lm.cli.use import use
    from lm.runtime.distributed import World

    world = World.start()
    choice = world.from_first(lambda: choice)
    if choice.action in ("talk", "export"):
        if world.is_first:
            use(choice.action, CHECKPOINTS)
    elif choice.action != "quit":
        if choice.action == "restore":
            world.from_first(lambda: bring_back(choice.path))
        preset = world.from_first(lambda: preset_of(choice, CHECKPOINTS, CONFIGS))
        train(preset, fresh=choice.action == "preset")
    world.stop()


def bring_back(archived: Path) -> None:
    with FolderLock(CHECKPOINTS):
        if aside := restore(CHECKPOINTS, archived):
            say_put_aside(aside)


def say_put_aside(aside: Path) -> None:
    tell(f"The run that was here is put aside in {aside.relative_to(HERE) if aside.is_relative_to(HERE) else aside}.")


# ---- train -----------------------------------------------------------------------------------------------------


def train(
    preset: Preset, *, token_budget: int = TOKEN_BUDGET, checkpoint_dir: Path | str = CHECKPOINTS, fresh: bool = False
) -> None:
    """One whole run of `token_budget` tokens, or the rest of the unfinished one in `checkpoint_dir`, without questions.

    A finished run returns at once. With `fresh` a run that is there is put aside first. Raises PresetError if the
    unfinished run's weights do not fit the preset, UserError for whatever else the user can mend.
    """
    from lm.runtime.distributed import World
    from lm.train.trainer import Run

    world, folder = World.start(), Path(checkpoint_dir)
    say = tell if world.is_first else lambda *_: None
    with StopRequest() as stop, watch(world, stop), FolderLock(folder) if world.is_first else nullcontext():
        state = world.from_first(lambda: None if fresh else load_unfinished(preset, folder, say))
        over = state and (state["exhausted"] or state["tokens_seen"] >= token_budget)
        if world.from_first(lambda: over and (folder / "report.md").exists()):
            return
        run = Run(preset, world, folder, token_budget, state, stop)
        del state  # the run has taken what it needs
        try:
            sources, tokens_per_second = check(run, fresh, say)
            world.from_first(lambda: introduce(run, sources, tokens_per_second, fresh))
            run.begin(say)
            learn(run, say)
        finally:
            run.close()


def load_unfinished(preset: Preset, folder: Path, say: Callable[[str], None]) -> dict | None:
    """The checkpoint to go on from, if there is one; says what was edited since it began."""
    if not store.latest_exists(folder):
        return None
    state, notice = store.load(folder)
    if notice:
        say(notice)
    began_as = parse_preset(state["preset"], "the checkpoint")
    edited = changes(began_as, preset)
    check_continuable(began_as, edited)
    if edited:
        say(f"Edited since this run began, and in force from here on:\n{describe(edited)}")
    return state


def check(run: Run, fresh: bool, say: Callable[[str], None]) -> tuple[list[SourceInfo], float]:
    """What would fail later fails here, before anything is written. What the sources hold, and tokens a second."""
    from lm.train.dry_run import trial

    preset, folder = run.preset, run.folder
    needed = estimate.disk_bytes(preset, run.token_budget)
    run.world.from_first(lambda: store.check_disk(folder, needed, beside=fresh))
    sources = run.from_stream(lambda stream: stream.wait_opened(on_status=say))
    for source in sources:
        for notice in source.notices:
            say(notice)
    compiling = " (compiling it first: up to two minutes, once per model shape)" if run.learner.compiled else ""
    say(f"trying one step{compiling}")
    seconds = trial(run)
    return sources, run.global_batch_rows * preset.model.seq_length / seconds


def introduce(run: Run, sources: list[SourceInfo], tokens_per_second: float, fresh: bool) -> None:
    """The start card, and the first things written: the run that was there is put aside, the speed is remembered."""
    print(render_card(start_card(run, sources, tokens_per_second)))
    if fresh and (store.latest_exists(run.folder) or stream_of_another(run.folder, run.preset)):
        say_put_aside(put_aside(run.folder))
    remember_speed(run, tokens_per_second)


def stream_of_another(folder: Path, preset: Preset) -> bool:
    """Whether a run killed before its first checkpoint has left a stream that `preset` cannot use."""
    from data.journal import read_header
    from data.prepare import data_identity

    header = read_header(folder / "stream")
    return header is not None and any(header.get(key) != value for key, value in data_identity(preset).items())


def start_card(run: Run, sources: list[SourceInfo], tokens_per_second: float) -> StartCard:
    from data.mixing import shares

    preset = run.preset
    weights = preset.data.weights
    known = preset.data.mix_strategy == "weighted" or len(weights) == 1
    made = f"byte-level BPE, {run.learner.vocab_size} tokens, trained on the head of the mixture"
    return StartCard(
        preset=preset,
        sources=sources,
        shares=shares(weights if known else [0.0] * len(weights)),
        tokenizer=preset.data.tokenizer or made,
        num_parameters=estimate.num_parameters(preset.model, run.learner.vocab_size),
        rows_per_step=run.global_batch_rows,
        world_size=run.world.size,
        token_budget=run.token_budget,
        tokens_seen=run.tokens_seen,
        decisions=run.learner.decisions,
        peak_memory_bytes=peak_memory(run.world.device.type),
        disk_needed_bytes=estimate.disk_bytes(preset, run.token_budget),
        disk_free_bytes=shutil.disk_usage(run.folder).free,
        tokens_per_second=tokens_per_second,
    )


def remember_speed(run: Run, tokens_per_second: float) -> None:
    """Makes the next menu's time for such a run the measured one; not of a run that goes on with the batch of another."""
    if run.global_batch_rows != run.preset.train.rows_per_process * run.world.size:
        return
    machine = load_machine(run.folder) or measure_machine()
    machine = estimate.record_speed(machine, run.preset, tokens_per_second, run.world.size)
    save_machine(run.folder, machine)


def learn(run: Run, say: Callable[[str], None]) -> None:
    """The training loop: step after step to the last token, with what is due in between."""
    from data.producer_client import ProducerDied
    from lm.train.events import do_what_is_due
    from lm.train.progress import headline, progress_bar

    run.stop.farewell = None  # from here on there is something to save
    with progress_bar(run) as bar:
        while not run.done:
            do_what_is_due(run, bar.write)
            try:
                step = run.next_step(bar.set_postfix_str)
            except (UserError, ProducerDied):  # a source that is gone, a full disk: what was learnt so far is kept
                run.save(say)
                raise
            if step is None:
                break
            if not run.train_on(step):
                run.stop.ask()  # as another process of the job was
                break
            bar.set_postfix_str(headline(run), refresh=False)
            bar.update(step.plan.num_tokens)
    if not run.done:
        run.record()
        run.save(say, last=True)
        say(f"Saved at {run.tokens_seen:,} tokens. `python main.py` and Enter continue there.")
        return
    finish(run, say)


def finish(run: Run, say: Callable[[str], None]) -> None:
    """The end of a run: saved first, then measured on everything held out, reported and exported."""
    from lm.train.events import measure, sample

    run.record()
    if run.tokens_seen > run.last_saved or run.exhausted:  # else it was saved before, and its report is missing
        run.save(say, last=True)
    run.stop.farewell = "Stopped before the report. The model is saved: start again for the rest."
    evaluation = measure(run, say, everything=True)
    if evaluation is None:  # asked to stop in the last step
        say(run.stop.farewell)
        return
    sample(run, print)  # its colours are control characters, which `say` takes out
    if run.world.is_first:
        exported = run.export()
        path = run.write_report()  # last: its report marks a run as finished
        say(
            f"Done: {run.tokens_seen:,} tokens in {human_time(run.records.seconds)}, "
            f"{evaluation.bits_per_byte:.4f} bits per byte on held-out text.\n"
            f"  the report            {path}\n"
            f"  the model, exported   {exported}"
            + ("\n  talk to it            python main.py, then t" if run.folder == CHECKPOINTS else "")
        )


if __name__ == "__main__":
    code = main()
    ignore_signals()
    sys.exit(code)
