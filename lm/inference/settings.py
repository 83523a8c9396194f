"""The settings of a chat, and the commands that change them."""

import difflib
import random
from collections.abc import Sequence
from typing import Any

from lm.inference.sampling import TEMPERATURE, TOP_P

MAX_NEW_TOKENS = 400
SETTINGS = {  # type, minimum, maximum, default
    "temperature": (float, 0, 10, TEMPERATURE),
    "top_p": (float, 0, 1, TOP_P),
    "repeat": (int, 0, 100, 0),
    "length": (int, 1, 1_000_000, MAX_NEW_TOKENS),
    "recall": (int, 0, 1, 0),
    "seed": (int, 0, 2**32 - 1, None),
}


def default_settings() -> dict[str, Any]:
    return {name: default for name, (*_, default) in SETTINGS.items()} | {"seed": random.randrange(1_000_000)}


def in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{setting} = {value}" for setting, value in settings.items())


def change_setting(command: str, settings: dict[str, Any], others: Sequence[str] = ()) -> str:
    """Apply a line such as "/top_p 0.9" to `settings` and return the reply to the user. `others`
    are the commands that are no settings."""
    name, _, value = command[1:].partition(" ")
    if name not in SETTINGS:
        known = [*SETTINGS, *others]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        nearest = f"did you mean /{close[0]}?" if close else f"there are {', '.join(f'/{other}' for other in known)}"
        return f"Unknown setting; {nearest}"
    if not value.strip():
        return f"{name} = {settings[name]}"
    kind, low, high, _ = SETTINGS[name]
    try:
        number = kind(value)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        noun = "a number" if kind is float else "a whole number"
        return f"/{name} takes {noun} from {low:,} to {high:,}, not {value.strip()!r}"
    settings[name] = number
    return f"{name} = {number}"
