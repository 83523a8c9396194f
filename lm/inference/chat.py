"""A terminal loop around a trained model: it continues the user's text, token by token.

Never here: loading models, tokenizers (`encode` and `decode` are passed in), memory of earlier
prompts: a base model continues text, and every prompt stands alone.
"""

from __future__ import annotations

import difflib
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from configs.text import printable
from lm.inference.decoder import Decoder
from lm.inference.detokenize import text_pieces
from lm.inference.generate import Drafter, Drafting, generate
from lm.inference.sampling import TEMPERATURE, TOP_P

MAX_NEW_TOKENS = 400
HELP = (
    "The model continues your text; it was not trained to answer. A line that ends with \\\n"
    "goes on in the next. /again continues the same text in another way, /seed 7 as any\n"
    "answer with that number. /temperature 0.7 and /top_p 0.9 change the sampling,\n"
    "/length 100 how many tokens come at most; with /repeat 3 no three tokens in a row\n"
    "come twice. Ctrl-C stops them, an empty line or /quit leaves, /help helps."
)
SETTINGS = {  # type, minimum, maximum
    "temperature": (float, 0, 10),
    "top_p": (float, 0, 1),
    "repeat": (int, 0, 100),
    "length": (int, 1, 1_000_000),
    "seed": (int, 0, 2**32 - 1),
}


def default_settings() -> dict[str, Any]:
    seed = random.randrange(1_000_000)
    return {"temperature": TEMPERATURE, "top_p": TOP_P, "repeat": 0, "length": MAX_NEW_TOKENS, "seed": seed}


def change_setting(command: str, settings: dict[str, Any]) -> str:
    """Apply a line such as "/top_p 0.9" to `settings` and return the reply to the user."""
    name, _, value = command[1:].partition(" ")
    if name == "help":
        return f"{HELP}\nNow: {', '.join(f'{setting} = {value}' for setting, value in settings.items())}"
    if name not in SETTINGS:
        known = [*SETTINGS, "again", "help", "quit"]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        nearest = f"did you mean /{close[0]}?" if close else f"there are {', '.join(f'/{other}' for other in known)}"
        return f"Unknown setting; {nearest}"
    if not value.strip():
        return f"{name} = {settings[name]}"
    kind, low, high = SETTINGS[name]
    try:
        number = kind(value)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        noun = "a number" if kind is float else "a whole number"
        return f"/{name} takes {noun} from {low:,} to {high:,}, not {value.strip()!r}"
    settings[name] = number
    return f"{name} = {number}"


def write_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def talk(
    decoder: Decoder,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    *,
    stop_token: int | None = None,
    drafter: Drafter | None = None,
    ask: Callable[[str], str] = input,
    write: Callable[[str], None] = write_now,
) -> None:
    """Read a prompt and write its continuation, until an empty line, /quit or end-of-file.

    `encode` returns a prompt's tokens, including the one that begins a document; `decode` takes
    all tokens of a continuation. A `drafter` changes only the speed. Every answer says its seed,
    which is one more than that of the answer before.
    """
    settings, last_prompt = default_settings(), ""
    write(HELP + "\n")
    while True:
        try:
            prompt = read_prompt(ask)
        except EOFError:
            return
        except KeyboardInterrupt:
            write("\n(an empty line leaves)")
            continue
        command = prompt.strip()
        if command in ("", "/quit"):
            return
        if command == "/again":
            prompt = last_prompt
            if not prompt:
                write("There is no text yet to continue again.\n")
                continue
        elif command.startswith("/") and "\n" not in command:
            write(change_setting(command, settings) + "\n")
            continue
        last_prompt = prompt
        drafting = Drafting(drafter) if drafter else None
        tokens = generate(
            decoder,
            encode(prompt),
            settings["length"],
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            block_ngram=settings["repeat"],
            generator=torch.Generator().manual_seed(settings["seed"]),
            stop_token=stop_token,
            drafting=drafting,
        )
        _answer(tokens, decode, write, settings["seed"], drafting)
        settings["seed"] += 1


def read_prompt(ask: Callable[[str], str]) -> str:
    """Read a prompt of one line, or of several if a line ends with a backslash; a pasted text may
    come as one line with line breaks in it.

    Spaces at its end are dropped, since words are tokens together with the space before them.
    """
    prompt = ask("\n> ")
    while prompt.endswith("\\"):
        prompt = prompt[:-1] + "\n" + ask("... ")
    return prompt.rstrip(" \t")


def _answer(
    tokens: Iterator[int],
    decode: Callable[[list[int]], str],
    write: Callable[[str], None],
    seed: int,
    drafting: Drafting | None,
) -> None:
    num_tokens, started = 0, time.perf_counter()

    def counted() -> Iterator[int]:
        nonlocal num_tokens
        for token in tokens:
            num_tokens += 1
            yield token

    try:
        for _, piece in text_pieces(counted(), decode):
            write(printable(piece))
    except KeyboardInterrupt:
        write(" [stopped]")
    seconds = time.perf_counter() - started
    kept = f", {drafting.share_kept:.0%} of drafts kept" if drafting else ""
    write(f"\n[{num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s{kept}, seed {seed}]\n")
