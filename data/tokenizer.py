"""Byte-level BPE trained on the mixture's head, or a tokenizer.json with an end-of-text token.

Text of a document never becomes a special token: "<|endoftext|>" inside a document is encoded as
its bytes. Nothing is downloaded.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.errors import UserError
from data.tokenizer_trial import trial

LARGEST_FILE = 200_000_000  # bytes
MOST_TOKENS = 2**20
END_OF_TEXT = "<|endoftext|>"  # id 0 of a tokenizer trained here
MARKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")  # of turns: ids 1 to 4, if there are conversations
LONGEST_WORD = 100  # characters of a word that training uses
_ENDLESS = re.compile(rf"(\S{{{LONGEST_WORD}}})\S+|(\s{{{LONGEST_WORD}}})\s+")
# Names of the token that ends a document in well-known tokenizers, most specific first.
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "</s>", "[EOS]", "[SEP]")


def train(texts: Iterable[str], vocab_size: int, markers: Sequence[str] = ()) -> Tokenizer:
    """Train byte-level BPE of at most `vocab_size` tokens (fewer if too few pairs repeat).

    `markers` are special tokens too, from id 1 on.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *markers],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(without_endless_words, texts), trainer)
    return _ready(tokenizer)


def without_endless_words(text: str) -> str:
    """Cut each word, and each run of white space, to LONGEST_WORD characters.

    Training holds every different word in memory, and its time grows with the square of their
    length: 7 MB without a space took 575 MB and 49 s, 7 million emoji 1.8 GB.
    """
    longest = max(map(len, text.split()), default=0)  # much faster than the regex, which few need
    if longest > LONGEST_WORD or re.search(rf"\s{{{LONGEST_WORD + 1}}}", text):
        return _ENDLESS.sub(r"\1\2", text)
    return text


def load(path: Path | str) -> Tokenizer:
    """Load a tokenizer.json.

    Raises UserError if it cannot be read or used, or has no usable end-of-text token. A file is
    tried in a process with limits first, unless it is of the kind that `train` makes.
    """
    path = Path(os.path.expanduser(path))
    if os.path.exists(path):  # Path.exists raises an error for a name that is too long
        if not os.path.isfile(path):  # reading a device may never end
            raise UserError(f"tokenizer {path}: not a file; give the path of a tokenizer.json")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"tokenizer {path}: larger than {LARGEST_FILE:,} bytes; give the path of a tokenizer.json")
        if not _is_trained_here(path) and (problem := trial(path)):
            raise UserError(f"tokenizer {path}: {problem}; give the path of another tokenizer.json")
    try:
        tokenizer = _ready(Tokenizer.from_file(str(path)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain Exception for a missing, torn or foreign file; a panic is none
        raise UserError(f"tokenizer {path}: cannot be read ({error}); give the path of a tokenizer.json") from None
    if vocab_size(tokenizer) > MOST_TOKENS:
        raise UserError(
            f"tokenizer {path}: the ids of its tokens go up to {vocab_size(tokenizer) - 1:,}; use one with at most "
            f"{MOST_TOKENS:,}"
        )
    if not tokenizer.encode("The year 1984", add_special_tokens=False).ids:
        raise UserError(f"tokenizer {path}: it makes no token of text; give the path of another tokenizer.json")
    try:
        written = end_name(tokenizer)
    except LookupError:
        specials = sorted(special_tokens(tokenizer))
        raise UserError(
            f"tokenizer {path}: no special token ends a document; its special tokens are {specials or 'none'}, "
            f"needed is one of {', '.join(END_NAMES)}"
        ) from None
    if end_of_text(tokenizer) in tokenizer.encode(written, add_special_tokens=False).ids:
        raise UserError(
            f"tokenizer {path}: a document that contains the text {written!r} would end there, because its model knows "
            "the end-of-text token as a word; use a BPE tokenizer"
        )
    return tokenizer


def _is_trained_here(path: Path) -> bool:
    """Return whether a file differs from one of `train` in vocabulary and merges alone: its rules
    are then those of this program."""
    try:
        rules = rules_of(path.read_text(encoding="utf-8"))
        return any(rules == rules_of(train([], 0, markers).to_str()) for markers in ((), MARKERS))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return False


def rules_of(text: str) -> dict[str, Any]:
    """Return the content of a tokenizer.json without its vocabulary and merges."""
    content = json.loads(text)
    return content | {"model": content["model"] | {"vocab": None, "merges": None}}


def _ready(tokenizer: Tokenizer) -> Tokenizer:
    """Make the tokenizer encode documents whole and alone, with special tokens as plain text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def within_text(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer for what follows a special token: the same one, unless its rules put a
    space before the first word of a text alone."""
    content, first = tokenizer.to_str(), '"prepend_scheme":"first"'
    if first not in content:
        return tokenizer
    return _ready(Tokenizer.from_str(content.replace(first, '"prepend_scheme":"never"')))


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens by name."""
    return {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def end_name(tokenizer: Tokenizer) -> str:
    """Return the special token that ends a document. Raises LookupError if there is none.

    Every tokenizer of `load` has one.
    """
    specials = special_tokens(tokenizer)
    for name in END_NAMES:
        if name in specials:
            return name
    raise LookupError("no special token ends a document")


def end_of_text(tokenizer: Tokenizer) -> int:
    """Return the id of the token that ends a document."""
    return special_tokens(tokenizer)[end_name(tokenizer)]


def vocab_size(tokenizer: Tokenizer) -> int:
    """Return the rows an embedding needs: the largest id + 1 (a vocabulary may have gaps)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 (hex) of the tokenizer's content, independent of its file's layout."""
    canonical = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    """Yield the token ids of each text, uint32, without special tokens. Raises UserError for a
    tokenizer that fails."""
    for encoding in _encode(tokenizer.encode_batch_fast, texts):
        yield np.array(encoding.ids, dtype=np.uint32)


def encode_with_offsets(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Return the encoding of each text: `ids`, without special tokens, and their `offsets` in characters.
    Raises as `encode` does."""
    return _encode(tokenizer.encode_batch, texts)


def _encode(encode_batch: Callable[..., list[Encoding]], texts: list[str]) -> list[Encoding]:
    try:
        return encode_batch(texts, add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # its own rules may fail on a text, or panic
        raise UserError(
            f"the tokenizer cannot encode a document ({error}): correct the rules in data.tokenizer, or use another one"
        ) from error


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether every character of a token stands for one byte."""
    described = json.loads(tokenizer.to_str())
    return '"ByteLevel"' in json.dumps([described["pre_tokenizer"], described["decoder"]])


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return (V,) int64: bytes of UTF-8 text behind each id, 0 for special tokens.

    They convert nats per token into bits per byte. Exact for byte-level tokenizers, where every
    character of a token stands for one byte. For others (SentencePiece, WordPiece) it counts the
    token as written, with the word mark as a space: normalisation and spaces that such a tokenizer
    drops are not counted, so its bits per byte are an upper estimate.
    """
    lengths = np.zeros(vocab_size(tokenizer), dtype=np.int64)
    byte_level = is_byte_level(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in added:
            lengths[number] = 0 if added[number].special else len(token.encode())
        elif byte_level:
            lengths[number] = len(token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            lengths[number] = 1  # SentencePiece writes a single byte as <0xAB>
        else:
            lengths[number] = len(token.removeprefix("##").replace("▁", " ").encode())
    return lengths
