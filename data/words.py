"""Counts the words of text by its tokens alone, so that every row has its own number of words.

A word is a run of characters without ASCII white space, as for `wc -w`; it counts with its first
token. Exact for byte-level tokenizers. For others (SentencePiece, WordPiece) it counts words as
their tokens write them, with the word mark as a space.

Shapes: B rows, T seq_length, V vocabulary.
"""

import numpy as np
from tokenizers import Tokenizer, models

from data import tokenizer as bpe

# How the byte-level alphabet writes white space: the byte plus 256.
BYTE_LEVEL_SPACES = {256 + byte: byte for byte in b"\t\n\v\f\r "}


class WordCounter:
    """Three facts about each token (V,): how many words begin inside of it, whether its first
    character is part of a word, and whether a word may begin after it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self._inside = np.zeros(vocab_size, dtype=np.int64)
        self._begins = np.zeros(vocab_size, dtype=bool)
        self._ends = np.zeros(vocab_size, dtype=bool)
        byte_level = bpe.is_byte_level(tokenizer)
        word_piece = isinstance(tokenizer.model, models.WordPiece)
        added = tokenizer.get_added_tokens_decoder()
        for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
            if number in added:
                text = " " if added[number].special else token
            elif byte_level:
                text = token.translate(BYTE_LEVEL_SPACES)
            elif word_piece:
                text = token[2:] if token.startswith("##") else f" {token}"
            else:
                text = token.replace("▁", " ")
            begins = not text[:1].isspace()
            self._begins[number], self._ends[number] = begins, text[-1:].isspace()
            self._inside[number] = len(text.split()) - begins

    def __call__(self, tokens: np.ndarray, num_tokens: int) -> int:
        """Return the words that begin in the first `num_tokens` predicted tokens of rows (B, T+1)."""
        before, tokens = tokens[:, :-1].ravel()[:num_tokens], tokens[:, 1:].ravel()[:num_tokens]
        return int(self._inside[tokens].sum() + np.count_nonzero(self._begins[tokens] & self._ends[before]))
