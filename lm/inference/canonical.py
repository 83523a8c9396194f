"""Canonical tokens: which tokens can follow a token, since no text is encoded as most of the pairs.

Byte-level BPE encodes a text in one way only, but a model gives some probability to all others. Two
tokens cannot be neighbours if a merge across their boundary comes before one of the merges that
made them (cf. arXiv 2506.07956), unless the pre-tokenizer splits the text there. A pair that some
text has is never excluded; a few that none has are not either.

Shapes: V vocabulary.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from data import tokenizer as bpe

# The pre-tokenizer ends a word after "'s", "'re", ...: letters may follow these and their last tokens.
CONTRACTION_ENDS = {"'s", "s", "'t", "t", "'re", "re", "e", "'ve", "ve", "'m", "m", "'ll", "ll", "l", "'d", "d"}
_ASCII = {byte: chr(byte) for byte in range(0x80)}
SPACE = set(b" \t\n\r\v\f")
LETTER = {byte for byte, character in _ASCII.items() if character.isalpha()}
DIGIT = {byte for byte, character in _ASCII.items() if character.isdigit()}
KINDS = {"letter": LETTER, "digit": DIGIT, "sign": set(_ASCII) - SPACE - LETTER - DIGIT}

NUM_KEPT = 1_024  # tokens whose answers are kept, each of V bytes: a tenth of a millisecond to make again

Symbols = list[tuple[str, int, int]]
"""The symbols at one end of a token while its bytes are merged: each with the ranks of the merges
that make it and that end it."""


class Neighbours:
    """The pairs of tokens that texts have, by a tokenizer of the program's own kind (`known`).

    With any other tokenizer, every token may follow any token.
    """

    def __init__(self, tokenizer: Tokenizer):
        text, size = tokenizer.to_str(), bpe.vocab_size(tokenizer)
        rules, ours = bpe.rules_of(text), bpe.rules_of(bpe.train([], 0).to_str())
        alphabet = {character: byte for byte, character in byte_alphabet().items()}
        added = tokenizer.get_added_tokens_decoder()
        tokens = {token: number for token, number in tokenizer.get_vocab().items() if number not in added}
        self.known = all(rules[part] == ours[part] for part in ("normalizer", "pre_tokenizer", "model")) and all(
            token and alphabet.keys() >= set(token) for token in tokens
        )
        self._possible = lru_cache(NUM_KEPT)(lambda token: ~self._impossible(token))
        self._everything = np.ones(size, dtype=bool)
        if not self.known:
            return
        described = json.loads(text)
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in described["model"]["merges"]]
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._merges: defaultdict[str, list[tuple[str, int]]] = defaultdict(
            list
        )  # of each left symbol: (right symbol, rank)
        for (left, right), rank in ranks.items():
            self._merges[left].append((right, rank))
        self._texts: dict[int, bytes] = {}
        self._last: dict[int, Symbols] = {}
        first: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for token, number in tokens.items():
            self._texts[number] = bytes(alphabet[character] for character in token)
            symbols, self._last[number] = ends_while_merged(token, ranks)
            for symbol, birth, death in symbols:
                first[symbol].append((number, birth, death))
        self._first = {symbol: np.array(tokens).T for symbol, tokens in first.items()}
        self._begins = {name: self._where(lambda text: text[0] in KINDS[name]) for name in KINDS}  # noqa: B023
        self._blank = self._where(lambda text: len(text) > 1 and set(text) <= SPACE)
        self._inside = self._where(lambda text: 0x80 <= text[0] < 0xC0)  # of a character
        self._visible = np.logical_or.reduce(list(self._begins.values()))

    def _where(self, holds: Callable[[bytes], bool]) -> np.ndarray:
        result = np.zeros_like(self._everything)
        result[[number for number, text in self._texts.items() if holds(text)]] = True
        return result

    def after(self, token: int) -> np.ndarray:
        """Return (V,) bool: whether each token may come right after `token`. Special and added ones always may."""
        if not self.known or token not in self._texts:
            return self._everything
        return self._possible(token)

    def _impossible(self, token: int) -> np.ndarray:
        merged, text = np.zeros_like(self._everything), self._texts[token]
        for symbol, birth, death in self._last[token]:
            for right, rank in self._merges[symbol]:
                if birth < rank < death and right in self._first:
                    numbers, births, deaths = self._first[right]
                    # Equal merges are made from left to right: one in this token is before, one in the next after it.
                    merged[numbers[(births < rank) & (rank <= deaths)]] = True
        merged &= self._never_split(text)
        # The last of several white-space characters belongs to what follows.
        return merged | self._visible if self._blank[token] else merged

    def _never_split(self, text: bytes) -> np.ndarray:
        """Return (V,) whether the pre-tokenizer never splits between `text` and each token, whatever is around."""
        together = self._inside.copy()
        for name in KINDS:
            if text[-1] in KINDS[name] and not (name == "letter" and text.decode("latin-1") in CONTRACTION_ENDS):
                together |= self._begins[name]
        if text == b" ":
            together |= self._visible
        if text[-1] in SPACE:
            together |= self._blank
        return together


def ends_while_merged(token: str, ranks: Mapping[tuple[str, ...], int]) -> tuple[Symbols, Symbols]:
    """Return the first and the last symbols of `token` while its bytes are merged."""
    symbols, time = list(token), -1
    first: Symbols = [(symbols[0], -1, len(ranks))]
    last: Symbols = [(symbols[-1], -1, len(ranks))]
    while len(symbols) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols)))
        if rank == len(ranks):
            break
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        time = max(time, rank)
        for ends, symbol in ((first, symbols[0]), (last, symbols[-1])):
            if ends[-1][0] != symbol:
                ends[-1] = (*ends[-1][:2], time)
                ends.append((symbol, time, len(ranks)))
    return first, last


def byte_alphabet() -> dict[int, str]:
    """Return the character with which byte-level tokenizers write each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(0x100) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
