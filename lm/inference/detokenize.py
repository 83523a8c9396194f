"""Streaming detokenization: tokens to text as they arrive."""

from collections.abc import Callable, Iterable, Iterator


def text_pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[tuple[int, str]]:
    """Yield (number of tokens so far, the text that they add) as tokens arrive. A character
    whose bytes are incomplete (decoded as U+FFFD) is held back."""
    seen: list[int] = []
    text, shown = "", 0
    for token in tokens:
        seen.append(token)
        text = decode(seen)
        complete = len(text.rstrip("\ufffd"))
        if complete > shown:
            yield len(seen), text[shown:complete]
            shown = complete
    if len(text) > shown:
        yield len(seen), text[shown:]
