"""Train a small language model on 100,000,000 tokens of real text.

    python main.py                              one process: a GPU, or the CPU
    torchrun --nproc_per_node=8 main.py         one process per GPU

Both ask which preset to train; Enter takes the one that suits this machine, or resumes the
interrupted run. Ctrl-C saves and leaves; the same command and Enter resume with the very next
token. There are no flags: everything is set in the presets under configs/. Results are in
checkpoints/.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform == "win32":  # before imports of what Windows has not
    sys.exit("Windows alone lacks what keeps a run safe (file locks, signals): start this inside WSL.")

from lm.runtime.signals import StopRequest, ignore_signals, leave_on_signals
from lm.runtime.terminal import outlive_output, tell

if __name__ == "__main__":
    if "ipykernel" in sys.modules:  # whose signals and output this program would take
        sys.exit("In a notebook, start this with: !echo 02 | python main.py")
    outlive_output()
    leave_on_signals()  # before the slow imports

try:
    from lm.runtime.watch import end_with_parent, peer_has_ended, watch  # first: notes our parent

    if not find_spec("torch"):  # imported late, because it is slow
        raise ModuleNotFoundError(name="torch")
    from configs.errors import DiskError, ErrorOfOneRank, ProducerDied, UserError
    from configs.schema import TOKEN_BUDGET, Preset
    from configs.text import human_time
    from data.files import FAILING, FULL
    from lm.checkpoint.archive import archived_in, restore
    from lm.cli.choose import choose, preset_and_budget
    from lm.cli.menu import USES, Choice
    from lm.runtime.compiler import CACHE, is_one_word
    from lm.runtime.files import FolderLock
    from lm.runtime.machine import is_out_of_memory
    from lm.runtime.openmp import choose_wait_policy
except ModuleNotFoundError as error:
    print(f"{error.name} is not installed. In the folder of this file: python -m pip install -e .", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from lm.train.trainer import Trainer

HERE = Path(__file__).resolve().parent
CONFIGS, CHECKPOINTS = HERE / "configs", HERE / "checkpoints"

log = logging.getLogger("lm")


def main() -> int:
    """Run the program and return its exit code.

    0: done, or saved on request. 2: the user must change something. 1: a defect or a lost machine.
    """
    # torch's own choice, in /tmp, is lost at a reboot. A rank that cannot write here keeps that one.
    if is_one_word(CHECKPOINTS) and os.access(CHECKPOINTS if CHECKPOINTS.exists() else HERE, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CHECKPOINTS / CACHE))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    try:
        flags = sys.argv[1:]
        if flags in (["-h"], ["--help"]):
            if os.environ.get("RANK", "0") == "0":
                print(__doc__.strip())
            return 0
        if flags:
            raise UserError(
                f"{' '.join(flags)}? There are no flags: `python main.py` asks what to do (`echo 02 | python main.py` answers) "
                f"and everything else is set in the presets under {CONFIGS}."
            )
        start(choose(CHECKPOINTS, CONFIGS) if os.environ.get("RANK", "0") == "0" else Choice("quit"))
    except UserError as error:
        # Most are raised on every rank: print them once.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, ErrorOfOneRank):
            tell(f"\n{error}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
    except Exception as error:
        return explain(error)
    return 0


def explain(error: Exception) -> int:
    """Say what ended the program, and return its exit code."""
    again = "The last checkpoint is intact: {}start again to resume."
    if isinstance(error, OSError) and error.errno in FULL | FAILING:
        fix = "free some space, then " if error.errno in FULL else "see to that disk or file, then "
        print(f"\nThe disk refuses: {error}. {again.format(fix)}", file=sys.stderr)
        return 2
    if is_out_of_memory(error):
        fix = "raise the limit, or choose a smaller batch or model, then "
        what = "There is not enough memory, or a limit (`ulimit -v`, that of a container or job) is too low."
        print(f"\n{what} {again.format(fix)}", file=sys.stderr)
        return 2
    if peer_has_ended(error):
        print(
            f"\nRank {os.environ['RANK']} ends: another process of this job has ended, or does not answer; the messages "
            f"around this one say which and why. {again.format('')}",
            file=sys.stderr,
        )
        return 1
    traceback.print_exc()
    print(f"\nThis is a defect, or a lost machine. {again.format('')}", file=sys.stderr)
    return 1


def start(choice: Choice) -> None:
    """Do what was chosen; the choice is the first rank's, which sends it to the others."""
    if choice.action == "quit" and os.environ.get("WORLD_SIZE", "1") == "1":
        return  # without importing torch, which takes seconds
    choose_wait_policy()
    gc.disable()  # a million objects are about to be made, none of them garbage
    from lm.cli.use import use
    from lm.runtime.distributed import World

    gc.freeze()  # nor need they ever be looked at again
    gc.enable()
    world = World.start()
    choice = world.from_first(Choice, choice.action, choice.path)
    if choice.action in [action for action, _ in USES.values()]:
        if world.is_first:
            use(choice.action, CHECKPOINTS)
    elif choice.action != "quit":
        if choice.action == "restore":
            world.from_first(unarchive, choice.path)
        preset, token_budget = world.from_first(preset_and_budget, choice, CHECKPOINTS, CONFIGS)
        train(preset, token_budget=token_budget, fresh=choice.action == "preset")
    world.stop()


def unarchive(archived: Path) -> None:
    with FolderLock(CHECKPOINTS):
        if aside := restore(CHECKPOINTS, archived):
            tell(archived_in(aside))


# ---- train -----------------------------------------------------------------------------------------------------


def train(
    preset: Preset, *, token_budget: int = TOKEN_BUDGET, checkpoint_dir: Path | str = CHECKPOINTS, fresh: bool = False
) -> bool:
    """Train one whole run of `token_budget` tokens, or the rest of the unfinished one in
    `checkpoint_dir`, without questions.

    Returns whether the run is finished: False if it was asked to stop, and saved. With `fresh`, an existing run is
    archived first. Raises KeyboardInterrupt if it is asked where there is nothing to save, before the first step and
    while the report is made; PresetError if the unfinished run's weights do not fit the preset, UserError for everything
    else that the user can fix, such as a larger budget for a run that ended within a row.
    """
    from lm.runtime.distributed import World
    from lm.runtime.log import close_run_log, open_run_log, show_log
    from lm.train import setup
    from lm.train.run import Run
    from lm.train.trainer import Trainer

    world, folder = World.start(), Path(checkpoint_dir)
    show_log(world.is_first)
    lock = FolderLock(folder)
    with StopRequest() as stop, watch(world, stop), lock if world.is_first else nullcontext():
        preset, checkpoint, state = setup.resume_or_begin(preset, world, folder, token_budget, fresh)
        if checkpoint and state.is_trained(token_budget) and world.from_first((folder / "report.md").exists):
            return True
        preset, start = setup.with_start_point(preset, world, checkpoint)
        run = Run(preset, world, folder, token_budget)
        learner = setup.build_learner(run, state, start)
        stream = world.only_first(setup.open_stream, run, state, checkpoint, fresh)
        try:
            machine = setup.check(run, learner, stream, state, fresh)
            info = world.from_first(setup.begin, run, stream, fresh, start)
            if world.from_first((folder / "report.md").exists):  # of an earlier budget, whose last evaluation is kept
                state.evaluated = state.tokens_seen
            if world.is_first:
                (folder / "report.md").unlink(missing_ok=True)  # it marks a run as finished
                open_run_log(folder)
            trainer = Trainer(run, learner, stream, info, start, checkpoint, state, stop, lock, machine.matmul_flops)
            del checkpoint  # the learner has loaded it
            try:
                finished = training_loop(trainer)
                if world.is_first and (speed := trainer.speed_reached):
                    setup.keep_speed(run, machine, learner.vocab_size, state.global_batch_rows, speed)
            finally:
                trainer.close()
        finally:
            if world.is_first:
                stream.close()
            close_run_log()
    return finished


def training_loop(trainer: Trainer) -> bool:
    """Run the training loop: step after step to the last token, scheduled events in between. Returns
    False if it was asked to stop."""
    from lm.runtime.profiler import profiler
    from lm.train.events import run_events
    from lm.train.progress import headline, progress_bar

    trainer.stop.farewell = None  # from here on there is something to save
    try:
        with progress_bar(trainer) as bar, profiler(trainer.folder, trainer.world.is_first) as profiled:
            while not trainer.done:
                run_events(trainer)
                try:
                    step = trainer.next_step(bar.set_postfix_str)
                except (UserError, ProducerDied):  # on every rank: a lost source, a full disk
                    trainer.world.from_first(trainer.save_at_once)  # the other ranks wait for it
                    raise
                if step is None:
                    break
                if not trainer.train_on(step):
                    trainer.stop.ask()  # the request may have come to another rank
                    break
                bar.set_postfix_str(headline(trainer), refresh=False)
                bar.update(step.plan.num_tokens)
                profiled()
    except BaseException:  # whatever it is: keep the steps so far
        trainer.save_at_once()
        raise
    if not trainer.done:
        trainer.record()
        if trainer.is_sound:
            trainer.save(last=True)
            where = f"Saved at {trainer.state.tokens_seen:,} tokens. `python main.py` and Enter continue there."
        else:
            where = (
                "Not saved: the last step was skipped. `python main.py` and Enter continue from the last checkpoint."
            )
        log.info("%s", where)
        return False
    return end_run(trainer)


def end_run(trainer: Trainer) -> bool:
    """Finish a run: save first, then evaluate on all held-out text, export and report. Returns False
    if it was asked to stop before the report."""
    from lm.train.best import keep_if_best
    from lm.train.events import sample
    from lm.train.held_out import PERIODIC_EVAL_TOKENS, measure
    from lm.train.milestones import keep_milestones

    state = trainer.state
    trainer.record()
    # Otherwise the last step was saved by an earlier start, and only the report is missing.
    if state.tokens_seen > trainer.saved_at or state.exhausted:
        trainer.save(last=True)
    keep_milestones(trainer)
    trainer.stop.farewell = "Stopped before the report. The model is saved: start again for the rest."
    subset = None
    if trainer.held_out.num_tokens > PERIODIC_EVAL_TOKENS:  # else it is all measured below
        subset = measure(trainer)  # the last point of the curve of evaluations
    evaluation = measure(trainer, everything=True)
    if evaluation is None:  # asked to stop during the last step
        log.info("%s", trainer.stop.farewell)
        return False
    keep_if_best(trainer, (subset or evaluation).loss)
    sample(trainer)
    trainer.world.from_first(export_and_report, trainer, evaluation.bits_per_byte)
    return True


def export_and_report(trainer: Trainer, bits_per_byte: float) -> None:
    """Choose the last or the best checkpoint, run benchmarks on it, export it and report the run; on the
    first rank only."""
    from lm.evaluation.benchmarks import run_listed
    from lm.export.huggingface import export
    from lm.report.report import write_report
    from lm.train.best import choose_checkpoint
    from lm.train.facts import facts_of

    folder, lines = trainer.folder, []
    chosen, why = choose_checkpoint(trainer)
    run_listed(trainer, chosen)
    try:
        lines.append(f"  the model, exported   {export(chosen, folder)}")
    except DiskError as error:
        log.error("%s. The model is saved: `python main.py`, then e, exports it.", error)
    try:  # last: it marks the run as finished
        report = write_report(folder, trainer.preset.to_json(), facts_of(trainer))
        lines.insert(0, f"  the report            {report}")
    except DiskError as error:
        log.error("%s. The model is saved: start again for the report.", error)
    if folder == CHECKPOINTS:
        lines.append("  talk to it            python main.py, then t")
    result = f"{human_time(trainer.state.seconds)}, {bits_per_byte:.4f} bits per byte on held-out text"
    done = f"Done: {trainer.state.tokens_seen:,} tokens in {result}."
    log.info("%s", "\n".join([done, *([why] if why else []), *lines]))


if __name__ == "__main__":
    code = main()
    ignore_signals()
    gc.freeze()  # or Python's last search for garbage, all of it about to vanish, takes a second
    sys.exit(code)
