"""The menu before training and the user's answer, as text only.

Every fact (sizes, speeds, which sources answer, which runs exist) is passed in; nothing here
measures, opens or starts anything. `ask` reads through the callable passed to it, so that a test
can act as the user.
"""

import difflib
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from configs.errors import UserError
from configs.schema import Preset
from configs.text import clip, human_bytes, human_count, human_time, wrapped
from data.sources.probe import Probe
from lm.checkpoint.store import SavedRun
from lm.runtime.terminal import tell

LONGEST_DEFAULT_SECONDS = 12 * 3600  # Enter never starts a longer run; a name or a number may
Size = tuple[int, int]  # of a terminal, columns and lines
SMALLEST: Size = (80, 24)  # the menu must fit into it


Action = Literal["preset", "resume", "restore", "talk", "export", "push", "benchmarks", "quit"]
# Of a trained model, by the letter that is typed: the action, and the verb for it.
USES: dict[str, tuple[Action, str]] = {
    "t": ("talk", "talk to"),
    "e": ("export", "export"),
    "p": ("push", "push"),
    "b": ("benchmarks", "measure"),
}


@dataclass(frozen=True)
class MenuEntry:
    """A preset file. `error`: the message of its PresetError; the numbers are then unused."""

    path: Path
    preset: Preset | None = None
    error: str | None = None
    num_parameters: int = 0
    memory_bytes: int = 0
    seconds: float = math.inf  # of the whole token budget on this machine
    measured: bool = False  # whether such a run was timed here; else `seconds` is an estimate
    sources: list[Probe] = field(default_factory=list)

    @property
    def number(self) -> int:
        return int(self.path.name.partition("_")[0])

    @property
    def time(self) -> str:
        return f"{'' if self.measured else '~'}{human_time(self.seconds)} here"

    @property
    def obstacle(self) -> str:
        """The reason why it cannot start now, or ""."""
        if self.error:
            return "the file has errors"
        silent = [source.label for source in self.sources if not source.ok]
        if len(silent) > 2:
            return f"{silent[0]} and {len(silent) - 1} more sources are not available"
        return f"{' and '.join(silent)} {'is' if len(silent) == 1 else 'are'} not available" if silent else ""


@dataclass(frozen=True)
class Menu:
    entries: list[MenuEntry]
    current: SavedRun | None = None  # the run in checkpoints/, finished or not
    archived: list[SavedRun] = field(default_factory=list)  # unfinished archived runs
    has_model: bool = False  # whether there is a model to talk to, export and measure
    unlisted: list[str] = field(default_factory=list)  # names of files that are no names of presets


@dataclass(frozen=True)
class Choice:
    """The user's choice. `path`: the preset file ("preset") or the run's folder ("resume",
    "restore"), else unused."""

    action: Action
    path: Path = Path()


def preset_paths(folder: Path) -> list[Path]:
    """Return the files NN_*.json, in the order of the menu."""
    return sorted(path for path in folder.glob("*.json") if re.fullmatch(r"\d+_.+", path.stem))


def default_choice(entries: list[MenuEntry], current: SavedRun | None) -> tuple[Choice, str]:
    """Return the choice of Enter and its reason. Raises UserError if there is nothing to start."""
    if current and current.finished:
        return Choice("quit"), f"leave; {clip(current.name, 40)} is finished"
    if current:
        return Choice("resume", current.folder), f"resume {clip(current.name, 40)} at {_progress(current)}"
    passed_over: list[str] = []
    for entry in entries:
        obstacle = entry.obstacle
        if not obstacle and entry.seconds >= LONGEST_DEFAULT_SECONDS:
            obstacle = f"would take {entry.time}"
        if not obstacle:
            because = "".join(f"\n  not {reason}" for reason in _first(passed_over))
            return Choice("preset", entry.path), f"start {entry.path.stem}, {entry.time}{because}"
        passed_over.append(f"{entry.path.stem}: {obstacle}")
    reasons = "".join(f"\n  {reason}" for reason in _first(passed_over)) or "\n  there is no NN_name.json in configs/"
    raise UserError(
        f"no preset is ready to be started by Enter:{reasons}\nchoose one by number or name, or fix its sources"
    )


def _first(reasons: list[str], number: int = 3) -> list[str]:
    """Return the first reasons, and how many more there are: below the menu there is little room."""
    more = len(reasons) - number
    return reasons if more < 2 else [*reasons[:number], f"{more} more presets"]


def render_menu(menu: Menu, size: Size = SMALLEST) -> str:
    """Return the menu for a terminal of that size, with room for the prompt below it: the least
    important lines are dropped first."""
    columns, height = map(max, size, SMALLEST)
    head = ["Small language models, 100 million tokens each", ""]
    if menu.current and menu.current.finished:
        head += [f" n  new run     {clip(menu.current.name, 40)} is finished: {_progress(menu.current)}"]
    elif menu.current:
        head += [f" r  resume      {clip(menu.current.name, 16)}, {_progress(menu.current)} (a new run archives it)"]
    letters = ["t  talk to the model", "e  export it", "p  push to Hub", "b  benchmarks"] if menu.has_model else []
    letters = ["", " " + "   ".join([*letters, "q  quit"])]
    try:
        _, below = default_choice(menu.entries, menu.current)
    except UserError as error:
        below = str(error)
    names = Counter(entry.preset.name for entry in menu.entries if entry.preset)
    lines: list[str] = []
    for lines_each, num_archived in ((3, 4), (2, 4), (1, 4), (1, 1), (1, 0)):
        entries = [line for entry in menu.entries for line in _entry_lines(entry, names, lines_each)]
        shown = [*head, *entries, *_archived_lines(menu.archived, num_archived), *_unlisted(menu, columns), *letters]
        lines = [clip(line, columns) for line in shown]
        if (
            len(lines) + len(wrapped(f"Enter: {below}", columns).splitlines()) < height - 1
        ):  # the prompt, and a spare line
            break
    return "\n".join(lines)


def _unlisted(menu: Menu, columns: int) -> list[str]:
    """Return a line about the files that are not shown because of their names, if there are any."""
    advice = "; name presets as 10_mine.json is"
    names = clip(", ".join(menu.unlisted), columns - len(f"Not in the menu: {advice}"))
    return [f"Not in the menu: {names}{advice}"] if menu.unlisted else []


def _archived_lines(archived: list[SavedRun], number: int) -> list[str]:
    """Return lines for the newest archived runs, and one for the others."""
    lines = []
    for index, run in enumerate(archived[:number], start=1):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.saved_at))
        lines.append(f"a{index}  restore     {clip(run.name, 20)}, {_progress(run)}, {when}")
    if len(archived) > number:
        lines.append(f"a{number + 1}  restore     an older run; there are {len(archived)}, up to a{len(archived)}")
    return lines


def _entry_lines(entry: MenuEntry, names: Counter[str], number: int) -> list[str]:
    """Return an entry's `number` most important lines: name and cost; sources, if one of them does not
    answer; description. A name that several presets share is replaced by the file's."""
    name = entry.preset.name if entry.preset and names[entry.preset.name] == 1 else entry.path.stem
    title = f"{entry.number:02d}  {clip(name, 22):<22}"
    if entry.preset is None:
        problem, *hints = (entry.error or "unreadable").removeprefix(f"{entry.path}: ").splitlines()
        hint = f"; {hints[0].strip()}" if hints and hints[0].startswith(" ") else ""
        return [f"{title}  broken; choose it to read all that is wrong with it", f"    ✗ {problem}{hint}"][:number]
    size = (
        f"{human_count(entry.num_parameters):>6} parameters  {human_bytes(entry.memory_bytes):>7} memory  {entry.time}"
    )
    model = entry.preset.model
    start = [f"starts from {model.init_from}"] if model.init_from else []
    first = f"{title}  {'its size is not known yet' if model.unknown else size}"
    description = [f"    {entry.preset.description}"] if entry.preset.description else []
    if number == 2 and description and not entry.obstacle:
        return [first, *description]
    return [first, f"    {'  '.join(start + _sources_in_words(entry.sources))}", *description][:number]


def _sources_in_words(sources: list[Probe]) -> list[str]:
    """Return the sources that answer, and the others grouped by their problem."""
    silent: dict[str, list[str]] = {}
    for source in sources:
        if not source.ok:
            silent.setdefault(_in_short(source.detail) or "no answer", []).append(source.label)
    there = [f"✓ {source.label}" for source in sources if source.ok]
    return there + [f"✗ {why}: {', '.join(labels)}" for why, labels in silent.items()]


def _in_short(detail: str) -> str:
    """Return a problem without what it has in brackets at its end, except for the variable that is to be corrected."""
    short = re.sub(r" \(([^()]|\([^()]*\))*\)$", "", detail)
    variable = re.search(r"([^,;:()]+ in \w+_\w+)\)$", detail[len(short) :])
    return f"{short} ({variable[1].strip()})" if variable else short


def ask(
    menu: Menu,
    *,
    read: Callable[[str], str],
    look_again: Callable[[], Menu] | None = None,
    size: Size = SMALLEST,
) -> Choice:
    """Ask until there is an answer. `read` is as `input`; `look_again`, with which a person can be
    asked again on a terminal of that `size`, gathers the menu's facts as they are by now.

    A choice that fails is tried once more on the facts of that moment. End of file or no stdin
    counts as Enter. Raises UserError when nobody can be asked again: for Enter when no preset is
    ready, for a preset that is not ready or does not exist. KeyboardInterrupt passes through.
    """
    new_run = False  # asked for although the run in the menu is finished

    def looked_again() -> Menu:
        assert look_again
        return replace(look_again(), current=None) if new_run else look_again()

    while True:
        try:
            default, reason = default_choice(menu.entries, menu.current)
            tell(f"Enter: {reason}")
        except UserError as error:
            default, nothing_ready = None, error
            if look_again:  # otherwise it is raised below
                tell(str(error))
        try:
            answer = read("> ").strip()
        except UnicodeDecodeError:
            answer = "�"
        except (EOFError, RuntimeError, OSError, ValueError):  # no more input; stdin lost; unreadable; closed
            tell("no input: using the default, as with Enter")
            if default is None:
                raise nothing_ready from None
            return default
        if not answer and default:
            return default
        if not answer and not look_again:
            raise nothing_ready
        if answer.lower() == "n" and menu.current and menu.current.finished:
            new_run, menu = True, replace(menu, current=None)
            continue
        if look_again and answer in ("", "?"):
            menu = looked_again()
            if answer:
                tell(render_menu(menu, size))
            continue
        try:
            return _understand(answer, menu)
        except (LookupError, UserError) as error:
            if not look_again:
                raise UserError(str(error)) from None
        menu = looked_again()
        try:
            return _understand(answer, menu)
        except (LookupError, UserError) as error:
            tell(f"{error}; ? shows the menu" if isinstance(error, LookupError) else str(error))


def _understand(answer: str, menu: Menu) -> Choice:
    """Return the choice for a non-empty answer.

    Raises LookupError (unknown, with the nearest name) or UserError (not ready).
    """
    word = answer.lower().removesuffix(".json")
    choices: dict[str, Choice] = {"q": Choice("quit")}
    if menu.current and not menu.current.finished:
        choices["r"] = Choice("resume", menu.current.folder)
    if menu.has_model:
        choices |= {letter: Choice(action) for letter, (action, _) in USES.items()}
    choices |= {f"a{index}": Choice("restore", run.folder) for index, run in enumerate(menu.archived, start=1)}
    long_forms: dict[str, str] = {
        "quit": "q",
        "exit": "q",
        "resume": "r",
        **{action: letter for letter, (action, _) in USES.items()},
    }
    letter = long_forms.get(word, word)
    if letter in choices:
        return choices[letter]
    if letter == "r":
        raise UserError("there is no unfinished run to resume; start a preset")
    if letter in USES:
        raise UserError(
            f"there is no trained model to {USES[letter][1]} yet; start a preset, and choose {letter} once its run is "
            "stopped or finished"
        )
    number = (word.lstrip("0") or "0") if word.isdecimal() else ""
    for spelling, key in ((number, "number"), (word, "stem"), (word, "name")):
        found = [entry for entry in menu.entries if spelling and _spellings(entry)[key] == spelling]
        if len(found) == 1:
            return _ready(found[0])
        if found:
            raise LookupError(f"{clip(answer, 40)!r} could be {' or '.join(entry.path.stem for entry in found)}")
    names = list(dict.fromkeys(_spellings(entry)[key] for entry in menu.entries for key in ("stem", "name")))
    close = difflib.get_close_matches(word, [*names, *long_forms], n=1, cutoff=0.5)
    new = ["n"] if menu.current and menu.current.finished else []
    answers = [*(entry.path.stem for entry in menu.entries), *new, *choices]
    nearest = f"the nearest is {close[0]!r}" if close else f"there is {', '.join(answers)}"
    raise LookupError(f"there is no {clip(answer, 40)!r}; {nearest}")


def _spellings(entry: MenuEntry) -> dict[str, str]:
    """Return the names by which a user may choose a preset, in lower case."""
    stem = entry.path.stem.lower()
    return {"number": str(entry.number), "stem": stem, "name": entry.preset.name.lower() if entry.preset else stem}


def _ready(entry: MenuEntry) -> Choice:
    """Return the choice of a preset that the user named. Raises UserError if it cannot start: it
    is never replaced by another."""
    if entry.error:
        raise UserError(entry.error)
    silent = [f"\n  {source.label}: {source.detail or 'no answer'}" for source in entry.sources if not source.ok]
    if silent:
        raise UserError(
            f"{entry.path.stem} cannot start: {entry.obstacle}{''.join(silent)}\nfix that or choose another"
        )
    return Choice("preset", entry.path)


def _progress(run: SavedRun) -> str:
    return f"{human_count(run.tokens_seen)} of {human_count(run.token_budget)} tokens"
