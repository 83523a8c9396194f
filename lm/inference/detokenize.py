"""Streaming detokenization: tokens to text as they arrive."""

from collections.abc import Callable, Iterable, Iterator

CONTEXT = 16  # tokens
MOST_DECODED = 256


def text_pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[tuple[int, str]]:
    """Yield (number of tokens so far, the text that they add) as tokens arrive. A character
    whose bytes are incomplete (decoded as U+FFFD) is held back.

    Only the last tokens are decoded again, behind some that were shown: SentencePiece drops the space before a text.
    """
    number, recent, text, shown = 0, list[int](), "", 0
    for token in tokens:
        number += 1
        recent.append(token)
        text = decode(recent)
        complete = len(text.rstrip("\ufffd"))
        if complete > shown:
            yield number, text[shown:complete]
            shown = complete
        if len(recent) >= 2 * CONTEXT and shown == len(text):
            # Cut within a character, of four bytes at most, a row of single bytes would be no text from there on.
            tails = ((recent[-number:], decode(recent[-number:])) for number in range(CONTEXT, CONTEXT + 4))
            if clean := next((tail for tail in tails if "\ufffd" not in tail[1]), None):
                recent, text = clean
            elif len(recent) >= MOST_DECODED:
                recent = recent[-CONTEXT:]
                text = decode(recent)
            shown = len(text)
    if len(text) > shown:
        yield number, text[shown:]
