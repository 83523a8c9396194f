"""Documents as tokens: text as it is, conversations by the chat template of the run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data import tokenizer as bpe
from data.chat_template import ChatTemplate
from data.sources.base import Document


@dataclass(frozen=True)
class Encoded:
    """The tokens of a document (n,), and whether the loss counts each (n,); None: it counts all."""

    tokens: np.ndarray
    loss_mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def encode_each(
    encode_texts: Callable[[list[str]], Iterable[Any]], template: ChatTemplate | None, documents: Sequence[Document]
) -> Iterator[Any]:
    """Yield for each document what `encode_texts` makes of its text or, of a conversation, what
    `ChatTemplate.encode` does. Conversations need a template, which must not refuse them."""
    texts = iter(encode_texts([document.text for document in documents if not document.turns]))
    turns = [document.turns for document in documents if document.turns]
    conversations = template.encode_all(turns) if template else iter(())
    return (next(conversations if document.turns else texts) for document in documents)


def encode(tokenizer: Tokenizer, template: ChatTemplate | None, documents: Sequence[Document]) -> Iterator[Encoded]:
    """Yield each document encoded (see `encode_each`)."""
    each = encode_each(partial(bpe.encode, tokenizer), template, documents)
    for document, encoded in zip(documents, each, strict=True):
        yield Encoded(*encoded) if document.turns else Encoded(encoded)
