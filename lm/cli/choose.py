"""The menu's facts and the user's choice, before anything heavy is loaded.

The sources that answer, the cost of each preset on this machine and the existing runs are gathered
here and rendered by lm/cli/menu.py. Runs on the first rank only.
"""

import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.diff import changes, fixed_changes
from configs.errors import PresetError, UserError
from configs.schema import TOKEN_BUDGET, Preset, load_preset, saved_preset
from data import tokenizer as bpe
from data.files import set_aside
from data.sources.hub_client import first_line, retries
from data.sources.probe import SECONDS, Probe, answers_within, probe
from lm.checkpoint import store
from lm.checkpoint.archive import archived_runs, finish_interrupted
from lm.cli.menu import Choice, Menu, MenuEntry, ask, preset_paths, render_menu
from lm.runtime import estimate
from lm.runtime.compiler import CACHE
from lm.runtime.devices import hardware
from lm.runtime.files import FolderLock
from lm.runtime.machine import Machine, load_machine, measure_machine, save_machine
from lm.runtime.openmp import choose_wait_policy
from lm.runtime.terminal import is_terminal, questions_are_seen, read_line, size_of, tell
from lm.start_point import peek


def choose(folder: Path, configs: Path) -> Choice:
    """Show the menu of presets in `configs` and runs in `folder`, and return the user's choice.

    Comes before the first collective: other ranks wait for it as long as it takes.
    """
    with FolderLock(folder):
        finish_interrupted(folder)
        if os.path.lexists(compiled := folder / CACHE) and not compiled.is_dir():
            set_aside(compiled)  # the compiler makes a folder of that name
        if store.latest_exists(folder) and store.inspect(folder) is None:
            store.load(folder)  # raises the reason: a damaged run is never treated as no run
    menu = gather_menu(folder, configs)
    person = is_terminal(sys.stdin)
    with questions_are_seen():
        size = size_of(sys.stdout)
        print(render_menu(menu, size))
        look_again = (lambda: gather_menu(folder, configs)) if person else None
        return ask(menu, read=read_line, look_again=look_again, size=size)


def gather_menu(folder: Path, configs: Path) -> Menu:
    """Gather the menu's facts: sources that answer within two seconds, costs of presets, runs."""
    presets = presets_in(configs)
    answers: dict[Path, list[Probe]] = {}
    starts: dict[Path, tuple[Preset, list[Probe]]] = {}
    failed: dict[Path, list[Probe]] = {}

    def gather(into: dict[Path, Any], path: Path, look: Callable[[Preset], Any], preset: Preset) -> None:
        try:
            into[path] = look(preset)
        except Exception as error:  # of any kind: without an answer the preset would count as ready
            failed[path] = [Probe(path.stem, False, f"its sources cannot be checked ({type(error).__name__})")]

    looks = (answers, lambda preset: probe(preset.data.all_sources)), (starts, look_at_start)
    asking = [
        threading.Thread(target=gather, args=(into, path, look, preset), daemon=True)
        for path, preset in presets.items()
        if isinstance(preset, Preset)
        for into, look in looks
    ]
    for thread in asking:
        thread.start()
    machine = load_machine(folder)  # measured while the sources are probed
    if machine is None:
        choose_wait_policy()  # as it will be in training: measuring imports torch
        try:
            machine = measure_machine()
            if not (hardware().gpus and hardware().failure):  # a GPU that fails now may work at the next start
                save_machine(folder, machine)
        except Exception as error:  # of any kind, of a GPU: it must not cost the menu
            tell(f"Times are those of the CPU: measuring the GPU fails ({first_line(error)}).")
            machine = measure_machine("cpu")
    for thread in asking:
        thread.join()
    current, archived = store.inspect(folder), archived_runs(folder)
    entries = []
    for path, preset in presets.items():
        preset, problem = starts.get(path, (preset, []))
        entries.append(menu_entry(path, preset, problem + answers.get(path, []) + failed.get(path, []), machine))
    return Menu(
        entries,
        current,
        [run for run in archived if not run.finished],
        has_model=bool(current or archived),
        unlisted=unlisted_presets(configs),
    )


def look_at_start(preset: Preset) -> tuple[Preset, list[Probe]]:
    """Return the preset with the shape of the model that it starts from; if that is not to be had
    now, with the reason."""
    name = preset.model.init_from
    if not name:
        return preset, []

    def look() -> tuple[Preset, list[Probe]]:
        retries.set(False)  # of this thread
        try:
            return peek(preset), []
        except UserError as error:
            said = str(error).removeprefix("model.init_from: ").removeprefix(f"{name} ").removeprefix(f"{name}: ")
            return preset, [Probe(name, False, said)]
        except Exception as error:  # its message is not shown, as it may contain the token
            return preset, [Probe(name, False, f"cannot be checked ({type(error).__name__})")]

    silence = preset, [Probe(name, False, f"no answer within {SECONDS:g} s")]
    return answers_within(SECONDS, [look], [silence])[0]


def menu_entry(path: Path, preset: Preset | PresetError, answers: list[Probe], machine: Machine) -> MenuEntry:
    if isinstance(preset, PresetError):
        return MenuEntry(path, error=str(preset))
    if preset.model.unknown:
        return MenuEntry(path, preset, sources=answers)
    world_size, sized = int(os.environ.get("WORLD_SIZE", 1)), preset
    if preset.data.tokenizer:
        with suppress(UserError):  # which the start says
            vocab_size = bpe.vocab_size(bpe.load(Path(os.path.expanduser(preset.data.tokenizer))))
            sized = estimate.with_vocabulary(preset, vocab_size)
    return MenuEntry(
        path,
        preset,
        num_parameters=estimate.num_parameters(sized.model, sized.model.vocab_size),
        memory_bytes=estimate.memory_bytes(
            sized, machine.device, low_precision=machine.low_precision, compiled=machine.compiled
        ),
        seconds=estimate.seconds_to_budget(sized, machine, TOKEN_BUDGET, world_size),
        measured=estimate.speed_key(sized, world_size) in machine.speeds,
        sources=answers,
    )


def preset_and_budget(choice: Choice, folder: Path, configs: Path) -> tuple[Preset, int]:
    """Return the chosen preset and the tokens to train on; of a resumed run the preset file of its name
    as it is today, or else its own, and its own budget: one begun from Python may have another."""
    if choice.action == "preset":
        return load_preset(choice.path), TOKEN_BUDGET
    current = store.inspect(folder)
    if current is None:  # another program has archived or moved it
        raise UserError(f"The run that the menu offered is no longer in {folder}. Start again to see what is there.")
    presets = presets_in(configs)
    namesakes = [preset for preset in presets.values() if isinstance(preset, Preset) and preset.name == current.name]
    if len(namesakes) == 1:  # compared with the run's own when the checkpoint is loaded (lm/train/setup.py)
        return namesakes[0], current.token_budget
    own = saved_preset(current.preset)

    def edits(preset: Preset) -> tuple[bool, int]:
        changed = changes(own, preset)
        return bool(fixed_changes(changed)), len(changed)

    if not namesakes:
        broken = [path.name for path, preset in presets.items() if isinstance(preset, PresetError)]
        errors = f" ({', '.join(broken)}: broken)" if broken else ""
        tell(f"No preset in {configs.name}/ is named {own.name!r}{errors}: the run resumes with its own settings.")
    # Of several files with that name, the one that fits the run's weights is meant.
    return min(namesakes, key=edits, default=own), current.token_budget


def presets_in(configs: Path) -> dict[Path, Preset | PresetError]:
    """Load every preset file of the menu, in its order; a broken one yields its PresetError."""
    presets: dict[Path, Preset | PresetError] = {}
    for path in preset_paths(configs):
        try:
            presets[path] = load_preset(path)
        except PresetError as error:
            presets[path] = error
    return presets


def unlisted_presets(configs: Path) -> list[str]:
    """Return the names of files that look like presets and that the menu does not show, because of these names."""
    listed = {"preset.schema.json", *(path.name for path in preset_paths(configs))}
    names = {path.name for path in configs.glob("*") if re.fullmatch(r"[^.].*\.json(\..+)?", path.name, re.IGNORECASE)}
    return sorted(names - listed)
