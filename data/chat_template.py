"""A chat template: conversations as tokens, and which of them the loss counts.

A template renders the *roles* of a conversation, with a placeholder for each text. What is between
the placeholders is the template's own and may hold special tokens; texts never do, whatever is
written in them, and no template ever sees one. Texts are stripped of white space at their ends.

A conversation is tokenized as a whole between two special tokens, as `apply_chat_template` of
transformers does: where a template puts a space before an answer, both are one token.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from configs.errors import UserError
from data.sources.base import Turn
from data.template_renderer import Refused, Unusable, render, render_with_limits
from data.tokenizer import MARKERS, encode_with_offsets, end_of_text, special_tokens, within_text

__all__ = ["CHATML", "MARKERS", "OWN", "ChatTemplate", "Turn", "TurnsRefused", "template_beside"]

OWN = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEMPLATE_FILE, CONFIG_FILE = "chat_template.jinja", "tokenizer_config.json"
CHATML_MARKERS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LARGEST_FILE = 32 * 2**20  # bytes; some list all special tokens
LARGEST = 200_000  # characters of a template; those of well-known models have up to 20,000
PLACEHOLDER = "\ue000{}\ue001"  # of private-use characters, around the number of a turn
_PLACEHOLDER = re.compile(PLACEHOLDER.format("([0-9]{1,6})"))
THOUGHTS_END = "</think>"  # in a template that looks for it in texts, which no template sees here
SPACES = r"(?:(?<!\s)\s+)?"  # from the first of them on, so that many take no longer than their number
LATEST_PATTERNS = 1024  # sequences of roles whose rendering is kept
LONGEST_PATTERN = 256  # turns of those that are


class TurnsRefused(ValueError):
    """Turns in an order that the template cannot render. The text is why, as a part of a sentence."""


class _Special(NamedTuple):
    """A special token of a rendering."""

    token: int
    ends_answer: bool  # an assistant's turn


class _Plain(NamedTuple):
    """Text between two special tokens: each part is the template's own or the number of a turn, and a target of the
    loss or not."""

    parts: list[tuple[str | int, bool]]


Runs = list[_Special | _Plain]  # a conversation between its special tokens


class ChatTemplate:
    """A chat template, in Jinja, for a tokenizer. Raises UserError if it cannot be used.

    `end_tokens`: the ids of the special tokens that end an assistant's turn, one as a rule.
    """

    def __init__(self, source: str, tokenizer: Tokenizer):
        assert tokenizer.encode_special_tokens, "one of data/tokenizer.py, which takes no text for a special token"
        self.source, self.tokenizer = source, tokenizer
        self._end_of_text = end_of_text(tokenizer)
        self._specials, self._special_pattern = special_tokens(tokenizer), _pattern_of_specials(tokenizer)
        self._render = render if source in (OWN, CHATML) else render_with_limits
        self._kept_runs = lru_cache(LATEST_PATTERNS)(self._runs_or_reason)
        self._within_text = within_text(tokenizer)
        try:
            if len(source) > LARGEST:
                raise Unusable(f"it has {len(source):,} characters; at most {LARGEST:,} are read")
            self.end_tokens = self._find_end_tokens()
        except (Unusable, Refused) as error:
            advice = f"put another one into {TEMPLATE_FILE}, such as that of the model's chat version"
            if _setting("eos_token", "") in source:
                advice = f"it uses eos_token, which {CONFIG_FILE} does not give: write it there, or get that file of the model"
            raise UserError(f"the chat template cannot be used: {error}; {advice}") from None

    @property
    def begins_document(self) -> bool:
        """Whether the template itself writes the end-of-text token that opens a document."""
        first = self._form([Turn("user", ""), Turn("assistant", "")], False)[0]
        return isinstance(first, _Special) and first.token == self._end_of_text

    def encode(self, turns: Sequence[Turn], *, generation_prompt: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a conversation, (n,) uint32, and whether the loss counts each, (n,) bool.

        It counts the assistant's texts and what ends them. The end-of-text token that opens every
        document is not among them. Raises TurnsRefused, and UserError for a tokenizer that fails.
        """
        return next(self.encode_all([turns], generation_prompt=generation_prompt))

    def encode_all(
        self, conversations: Sequence[Sequence[Turn]], *, generation_prompt: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield for each conversation what `encode` returns; all are tokenized together, which is faster."""
        runs_of_all = [self._form(turns, generation_prompt) for turns in conversations]
        plain = [
            [(_text(turns[part]) if isinstance(part, int) else part, is_answer) for part, is_answer in run.parts]
            for turns, runs in zip(conversations, runs_of_all, strict=True)
            for run in runs
            if isinstance(run, _Plain)
        ]
        texts = ["".join(text for text, _ in parts) for parts in plain]
        # The first one is behind a special token too: that which opens the document.
        encodings = iter(encode_with_offsets(self._within_text, texts))
        parts_of_all = iter(plain)
        for runs in runs_of_all:
            tokens: list[int] = []
            loss_mask: list[bool] = []
            for run in runs:
                if isinstance(run, _Special):
                    tokens.append(run.token)
                    loss_mask.append(run.ends_answer)
                else:
                    encoding = next(encodings)
                    tokens += encoding.ids
                    loss_mask += _loss_mask(next(parts_of_all), encoding)
            first = int(tokens[:1] == [self._end_of_text])
            yield np.array(tokens[first:], dtype=np.uint32), np.array(loss_mask[first:], dtype=bool)

    def refuses(self, turns: Sequence[Turn]) -> str:
        """Return why a conversation cannot be trained on in this form, or ""."""
        if THOUGHTS_END in self.source and any(THOUGHTS_END in turn.text for turn in turns if turn.role == "assistant"):
            return "its answers begin with thoughts, and the template writes those of an answer, here none, by itself"
        runs = self._runs(tuple(turn.role for turn in turns), False)
        return runs if isinstance(runs, str) else ""

    def _runs(self, roles: tuple[str, ...], generation_prompt: bool) -> Runs | str:
        find = self._kept_runs if len(roles) <= LONGEST_PATTERN else self._runs_or_reason
        return find(roles, generation_prompt)

    def _form(self, turns: Sequence[Turn], generation_prompt: bool) -> Runs:
        runs = self._runs(tuple(turn.role for turn in turns), generation_prompt)
        if isinstance(runs, str):
            raise TurnsRefused(runs)
        return runs

    def _runs_or_reason(self, roles: tuple[str, ...], generation_prompt: bool) -> Runs | str:
        """Return the form of a conversation, or why there is none: both are kept."""
        try:
            return self._runs_of(roles, generation_prompt)
        except Refused as error:
            return f"the template refuses such turns: {error}"
        except Unusable as error:
            return str(error)

    def _runs_of(self, roles: tuple[str, ...], generation_prompt: bool) -> Runs:
        messages = [{"role": role, "content": PLACEHOLDER.format(number)} for number, role in enumerate(roles)]
        pieces = _PLACEHOLDER.split(self._render(self.source, messages, generation_prompt))
        places = [int(number) for number in pieces[1::2]]
        times = Counter(places)
        for number, role in enumerate(roles):
            if times[number] != 1:
                how = "more than once" if number in times else "nowhere"
                raise Unusable(f"it puts the text of turn {number + 1} ({role}) {how}")
        if len(places) > len(roles):
            raise Unusable("it holds placeholders of its own")
        runs: Runs = []
        in_answer = False  # until the first special token after an assistant's text
        for index, piece in enumerate(pieces):
            if index % 2:
                number = int(piece)
                in_answer = roles[number] == "assistant"
                _plain(runs).parts.append((number, in_answer))
                continue
            start = 0
            for match in self._special_pattern.finditer(piece):
                if match.start() > start:
                    _plain(runs).parts.append((piece[start : match.start()], in_answer))
                runs.append(_Special(self._specials[match[match.lastindex or 0]], in_answer))
                in_answer, start = False, match.end()
            if start < len(piece):  # learnt only if a special token were to follow
                _plain(runs).parts.append((piece[start:], False))
        return runs

    def _find_end_tokens(self) -> tuple[int, ...]:
        found = set[int]()
        for num_answers in (1, 2):
            runs = self._runs_of(("user", "assistant") * num_answers, False)
            ends = [run.token for run in runs if isinstance(run, _Special) and run.ends_answer]
            if len(ends) < num_answers:
                raise Unusable("it does not end an answer with a special token of the tokenizer")
            found.update(ends)
        return tuple(sorted(found))


def _text(turn: Turn) -> str:
    return turn.text.strip().encode("utf-8", "replace").decode()  # a lone surrogate cannot be tokenized


def template_beside(where: str, path_of: Callable[[str], Path | None], tokenizer: Tokenizer) -> str:
    """Return the chat template that is beside a tokenizer, or one of ours for whose markers it has tokens.

    `path_of` returns where a file of that name is, or None; `where` names the place. What a template takes
    from tokenizer_config.json is written into it. Raises UserError.
    """
    path, config_path = path_of(TEMPLATE_FILE), path_of(CONFIG_FILE)
    config = _read(config_path, json.loads) if config_path else {}
    config = config if isinstance(config, dict) else {}
    source: Any = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = (each for each in source if isinstance(each, dict) and each.get("name") == "default")
        source = next(named, {}).get("template")
    if path:
        source = _read(path, str)
    if isinstance(source, str) and source.strip():
        source = _with_variables(source, config)
        if not source.isascii() and source != source.encode("utf-8", "replace").decode():
            raise UserError(
                f"the chat template of {where} holds characters that are no text (surrogates): take them out"
            )
        return source
    tokens = special_tokens(tokenizer)
    for markers, ours in ((CHATML_MARKERS, CHATML), (MARKERS, OWN)):
        if set(markers) <= tokens.keys():
            return ours
    raise UserError(
        f"{where} has no chat template, which sources of conversations need: neither {TEMPLATE_FILE}, nor chat_template in "
        f"{CONFIG_FILE}, and its tokenizer has no tokens of ChatML. Put a {TEMPLATE_FILE} there, start from a model that has "
        "one, or take these sources out"
    )


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise OSError(f"larger than {LARGEST_FILE:,} bytes")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}), and the chat template may be in it: get another copy of it"
        ) from None


def _with_variables(source: str, config: Mapping[str, Any]) -> str:
    """Return a template that sets the variables by itself that it uses, which programs set in different ways: the
    special tokens, empty where `config` has none, and whether to think."""
    variables: dict[str, Any] = {"enable_thinking": False}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        variables[name] = token if isinstance(token, str) else ""
    for name, value in variables.items():
        if re.search(rf"\b{name}\b", source):
            source = _setting(name, value) + source
    return source


def _setting(name: str, value: Any) -> str:
    # The line break is the one that is dropped behind a block: what follows still begins a line.
    return f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}\n"


def _plain(runs: Runs) -> _Plain:
    """Return the last run, a new one behind a special token."""
    if not runs or not isinstance(runs[-1], _Plain):
        runs.append(_Plain([]))
    last = runs[-1]
    assert isinstance(last, _Plain)
    return last


def _loss_mask(parts: Sequence[tuple[str, bool]], encoding: Encoding) -> list[bool]:
    """Return for each token whether it has a character of an answer."""
    kinds = {is_answer for _, is_answer in parts}
    if len(kinds) == 1:  # as a rule; offsets take longer than all the rest
        return [*kinds] * len(encoding.ids)
    characters = np.repeat([is_answer for _, is_answer in parts], [len(text) for text, _ in parts])
    before = np.append(0, np.cumsum(characters))
    found, end = [], 0
    for start, stop in encoding.offsets:  # those of a token of spaces may be empty, and lie behind it
        found.append(bool(before[stop] > before[min(start, end)]))
        end = max(end, stop)
    return found


def _pattern_of_specials(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Return what finds special tokens, longest first, with the white space that belongs to some of them."""
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    forms = [
        (SPACES if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
        for token in sorted(added, key=lambda token: -len(token.content))
    ]
    return re.compile("|".join(forms) or "(?!)")
