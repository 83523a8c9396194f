"""The menu's facts and the user's answer, before anything heavy is loaded.

Which sources answer, what each preset costs on this machine, which runs there are: gathered here, put into words by
lm/cli/menu.py. Runs on the first rank only.
"""

import os
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path

from configs.diff import changes, fixed_changes
from configs.errors import PresetError
from configs.schema import TOKEN_BUDGET, Preset, load_preset, parse_preset
from data.sources.probe import Probe, probe
from lm.checkpoint import store
from lm.checkpoint.archive import archived_runs, finish_interrupted
from lm.cli.menu import Choice, Menu, MenuEntry, ask, preset_paths, render_menu
from lm.runtime import estimate
from lm.runtime.files import FolderLock
from lm.runtime.machine import Machine, load_machine, measure_machine, save_machine
from lm.runtime.terminal import is_terminal, size_of, tell


def choose(folder: Path, configs: Path) -> Choice:
    """The menu over the presets in `configs` and the runs in `folder`, and what the user wants.

    Comes before the first collective: other ranks wait for it as long as it takes.
    """
    with FolderLock(folder):
        finish_interrupted(folder)
        if store.latest_exists(folder) and store.inspect(folder) is None:
            store.load(folder)  # says what is wrong: a damaged run is never taken for none
    menu = gather_menu(folder, configs)
    person = is_terminal(sys.stdin)
    # Whoever types the answer reads the question, also when what comes after it goes to a file.
    elsewhere = person and not is_terminal(sys.stdout) and is_terminal(sys.stderr)
    with redirect_stdout(sys.stderr if elsewhere else sys.stdout):
        size = size_of(sys.stdout)
        print(render_menu(menu, size))
        return ask(menu, read=input, say=tell, terminal=person, size=size)


def gather_menu(folder: Path, configs: Path) -> Menu:
    """The menu's facts: which sources answer (two seconds at most), what presets cost here, which runs there are."""
    presets = presets_in(configs)
    answers: dict[Path, list[Probe]] = {}
    asking = [
        threading.Thread(target=lambda p=path, s=preset.data.all_sources: answers.update({p: probe(s)}), daemon=True)
        for path, preset in presets.items() if isinstance(preset, Preset)
    ]  # fmt: skip
    for thread in asking:
        thread.start()
    machine = load_machine(folder)  # measured while the sources are asked
    if machine is None:
        machine = measure_machine()
        save_machine(folder, machine)
    for thread in asking:
        thread.join()
    current, archived = store.inspect(folder), archived_runs(folder)
    return Menu(
        [menu_entry(path, preset, answers.get(path, []), machine) for path, preset in presets.items()],
        current,
        [run for run in archived if not run.finished],
        has_model=bool(current or archived),
    )


def menu_entry(path: Path, preset: Preset | PresetError, answers: list[Probe], machine: Machine) -> MenuEntry:
    if isinstance(preset, PresetError):
        return MenuEntry(path, error=str(preset))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    return MenuEntry(
        path,
        preset,
        num_parameters=estimate.num_parameters(preset.model, preset.model.vocab_size),
        memory_bytes=estimate.memory_bytes(
            preset, machine.device, low_precision=machine.low_precision, compiled=machine.compiled
        ),
        seconds=estimate.seconds_to_budget(preset, machine, TOKEN_BUDGET, world_size),
        measured=estimate.speed_key(preset, world_size) in machine.speeds,
        sources=answers,
    )


def preset_of(choice: Choice, folder: Path, configs: Path) -> Preset:
    """The chosen preset; to go on with a run: the preset file of that name as it is today, or else the run's own."""
    if choice.action == "preset":
        return load_preset(choice.path)
    current = store.inspect(folder)
    assert current, "what cannot be read is never offered"
    own = parse_preset(current.preset, "the checkpoint")

    def edits(preset: Preset) -> tuple[bool, int]:
        changed = changes(own, preset)
        return bool(fixed_changes(changed)), len(changed)

    # A copy that kept its original's name is told apart by what the run's weights need.
    presets = presets_in(configs)
    namesakes = [preset for preset in presets.values() if isinstance(preset, Preset) and preset.name == own.name]
    if not namesakes:
        broken = [path.name for path, preset in presets.items() if isinstance(preset, PresetError)]
        errors = f" ({', '.join(broken)}: broken)" if broken else ""
        tell(f"No preset in {configs.name}/ is named {own.name!r}{errors}: the run goes on with the settings it had.")
    return min(namesakes, key=edits, default=own)


def presets_in(configs: Path) -> dict[Path, Preset | PresetError]:
    """Every preset file of the menu, in its order; for a broken one what is wrong with it."""
    presets: dict[Path, Preset | PresetError] = {}
    for path in preset_paths(configs):
        try:
            presets[path] = load_preset(path)
        except PresetError as error:
            presets[path] = error
    return presets
