"""A terminal loop around a trained model: it answers its user's turns or, if it was trained on no
conversations, continues their text, token by token.

Never here: loading models, tokenizers and templates; what the model is shown (conversation.py).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from configs.text import counted, printable
from data.chat_template import TurnsRefused
from lm.inference.canonical import Neighbours
from lm.inference.conversation import Continuation, Conversation
from lm.inference.decoder import Decoder
from lm.inference.detokenize import text_pieces
from lm.inference.generate import Drafter, Drafting, generate
from lm.inference.memory import Recall
from lm.inference.settings import change_setting, default_settings, in_words

CONTINUES = (
    "The model continues your text; it was not trained to answer. A line that ends with \\\n"
    "goes on in the next. /again continues the same text in another way, /seed 7 repeats\n"
    "what ended with that seed. /temperature 0.7 and /top_p 0.9 change the sampling,\n"
    "/length 100 is the most tokens that come, and Ctrl-C stops them sooner. /repeat 3\n"
    "allows no three tokens in a row twice, /recall 1 repeats more of what your text has.\n"
    "/help shows this again, /quit leaves."
)
CONVERSES = """\
Type something, and the model answers, as in the conversations that it was
trained on. It is small and makes things up: check what it says. It remembers
nothing but this conversation, and of a long one the last part.

  /new                     begins another conversation
  /system You are a poet.  tells the model what to be; /system alone, nothing
  /again                   another answer to the same
  /seed 7                  the next answer as the one that ended with that seed
  /temperature 0.7         how freely it chooses words; so does /top_p 0.9
  /length 100              the most tokens of an answer
  /repeat 3                no three tokens in a row come twice
  /continue Once upon a    continues a text, as in documents, instead of answering
  /recall 1                repeats more of what the text to be continued has
  /help, /quit             this again; leaving

A line that ends with \\ goes on in the next. Ctrl-C stops an answer."""


def write_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def talk(
    decoder: Decoder,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    *,
    conversation: Conversation | None = None,
    stop_tokens: Collection[int] = (),
    drafter: Drafter | None = None,
    neighbours: Neighbours | None = None,
    load_recall: Callable[[], tuple[Recall | None, str]] = lambda: (None, "there is no held-out text to fit /recall"),
    ask: Callable[[str], str] = input,
    write: Callable[[str], None] = write_now,
) -> None:
    """Read what the user types and write the model's answer, until /quit or end-of-file: the next
    turn of `conversation` or, without one, the continuation of a text.

    `encode` returns a text's tokens, including the one that begins a document; `decode` takes
    all tokens of an answer. A `drafter` changes only the speed; of `neighbours` see `generate`.
    `load_recall` is called once, when the user asks for it, and says in words what it is worth. It is
    for texts that are continued alone: fitted on documents. Every answer says its seed, which is one
    more than that of the answer before.
    """
    settings, continuation = default_settings(), Continuation(encode)
    partner: Conversation | Continuation = conversation or continuation
    last: tuple[Conversation | Continuation, str] | None = None
    recall: Recall | None = None
    write((CONVERSES if conversation else CONTINUES) + "\n")
    while True:
        try:
            prompt = read_prompt(ask)
        except EOFError:
            return
        except KeyboardInterrupt:
            write("\n(/quit leaves)")
            continue
        except UnicodeDecodeError:
            write("That is not UTF-8 text.\n")
            continue
        command = prompt.strip()
        name, words = in_parts(command)
        if command == "/quit":
            return
        shown, again = partner, False
        if command == "/again" and last:
            (shown, prompt), again = last, True
        elif name == "/continue" and conversation and words:
            shown, prompt = continuation, words
        elif reply := _reply(command, conversation, settings):
            write(reply + "\n")
            if conversation and command == "/new":
                last = None
            if settings["recall"] and not recall:
                recall = _loaded(load_recall, write)
                settings["recall"] = int(recall is not None)
            continue
        try:
            tokens = shown.prompt(prompt, again=again)
        except TurnsRefused as error:
            write(f"The model's chat template does not allow that: {error}.\n")
            continue
        except KeyboardInterrupt:
            write(" [stopped]\n")
            continue
        last = shown, prompt
        drafting = Drafting(drafter) if drafter else None
        answer = generate(
            decoder,
            tokens,
            settings["length"],
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            block_ngram=settings["repeat"],
            generator=torch.Generator().manual_seed(settings["seed"]),
            stop_tokens=stop_tokens,
            drafting=drafting,
            neighbours=neighbours,
            recall=recall if settings["recall"] and shown is continuation else None,
        )
        shown.add_answer(_answer(answer, decode, write, settings["seed"], drafting, shown.notice))
        settings["seed"] += 1


def _loaded(load_recall: Callable[[], tuple[Recall | None, str]], write: Callable[[str], None]) -> Recall | None:
    """Return what `load_recall` does, and write what it says; None if Ctrl-C stops it."""
    write("It is fitted on held-out text, which takes a moment.\n")
    try:
        recall, words = load_recall()
    except KeyboardInterrupt:
        recall, words = None, "stopped: recall = 0"
    write(words + "\n")
    return recall


def in_parts(command: str) -> tuple[str, str]:
    """Return the name of a command and what follows it, on the same line or the next."""
    name, *words = command.split(maxsplit=1) or [""]
    return name, "".join(words)


def _reply(command: str, conversation: Conversation | None, settings: dict[str, Any]) -> str:
    """Return the reply to what is no text for the model, after doing what it asks; "" for a text."""
    name, words = in_parts(command)
    if not command:
        return "(/quit leaves)"
    if command == "/help":
        return f"{CONVERSES if conversation else CONTINUES}\nNow: {in_words(settings)}"
    if command == "/again":
        return "There is no text yet to continue again." if not conversation else "There is nothing to answer yet."
    if conversation and command == "/new":
        conversation.begin()
        return "A new conversation."
    if conversation and name == "/system":
        conversation.system = words
        return "The system prompt applies from the next answer on." if words else "There is no system prompt now."
    if conversation and command == "/continue":
        return "It takes the text to continue: /continue Once upon a time"
    if not re.fullmatch(r"/[A-Za-z_]+( .*)?", command):  # "// a comment" is a text
        return ""
    others = ["new", "system", "continue"] if conversation else []
    return change_setting(command, settings, [*others, "again", "help", "quit"])


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
    notice: str,
) -> str:
    """Write an answer as it comes, then its speed and the notice; return its text, without a character that was begun."""
    text, num_tokens, started = "", 0, time.perf_counter()

    def each() -> Iterator[int]:
        nonlocal num_tokens
        for token in tokens:
            num_tokens += 1
            yield token

    try:
        for _, piece in text_pieces(each(), decode):
            text += piece
            write(printable(piece))
        if not text:
            write("(nothing)")
    except KeyboardInterrupt:
        write(" [stopped]")
    seconds = time.perf_counter() - started
    kept = f", {drafting.share_kept:.0%} of drafts kept" if drafting else ""
    write(f"\n[{counted(num_tokens, 'token')}, {num_tokens / seconds:.0f} tokens/s{kept}, seed {seed}{notice}]\n")
    return text.rstrip("\ufffd")
