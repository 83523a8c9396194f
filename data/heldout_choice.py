"""Which text is held out of a source, and what must then not be trained on: the same text, and what
shares a field with it."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from data.chat_template import ChatTemplate
from data.sources.base import Document

BYTES_PER_TOKEN = 3.5  # an estimate, for measuring text before there is a tokenizer
HASH_BYTES = 16
# A value is common if more documents than these have it; a field by which more are lost is a category.
FEW_DOCUMENTS, COMMON_SHARE, LARGEST_LOSS = 10, 0.05, 0.5
# A value of so many characters is a passage, unless more documents share it: then it is an instruction.
PASSAGE_LENGTH, FEW_QUESTIONS = 60, 100
PASSAGE_LOSS = 0.25  # the largest share of a source lost by what shares a passage with held-out text
MOST_UNUSABLE = 20_000  # documents of a source, one after another, after which no more are looked at
SMALL_SOURCE = 100  # documents of a source looked at if none of them was selected
CUT_LENGTH, CUT_SHARE = 1_000, 0.05  # characters of a document whose end may be held out; its largest share
SHORTEST_CUT = 20  # characters of a document that is all there is
EMPTY: Mapping[bytes, int] = MappingProxyType({})


@lru_cache(maxsize=1)  # data/feed.py needs it twice for each document
def text_hash(text: str) -> bytes:
    """Return a hash that is equal for texts that differ only in letter case and white space."""
    normalised = " ".join(text.casefold().split())
    return hashlib.blake2b(normalised.encode("utf-8", "replace"), digest_size=HASH_BYTES).digest()


def cell_hashes(document: Document) -> dict[int, bytes]:
    """Return for each field that is not empty a hash that another document with it has as well."""
    return {n: text_hash(f"{n}\0{cell}") for n, cell in enumerate(document.cells) if cell.strip()}


def reason_to_skip(
    document: Document, min_text_length: int, held_out: frozenset[bytes], template: ChatTemplate | None = None
) -> str | None:
    """Return why a document is not trained on, or None."""
    if not document.text.strip():
        return "empty"
    if len(document.text) < min_text_length:
        return "too short"
    if text_hash(document.text) in held_out:
        return "held out"
    if not held_out.isdisjoint(cell_hashes(document).values()):
        return "sharing a field with held-out text"
    return "with turns that the chat template refuses" if is_refused(document, template) else None


def is_refused(document: Document, template: ChatTemplate | None) -> bool:
    return bool(template and document.turns and template.refuses(document.turns))


class HeldOutCells(NamedTuple):
    """`documents`: those that are held out. `shared`: hashes of their fields; what shares one is not trained on.
    `ordinary`: hashes of fields that say nothing about a document of this source, in whatever other source they are
    held out. `too_common`: numbers of the fields that are not used, since that would cost too much."""

    documents: dict[bytes, Document]
    shared: frozenset[bytes]
    ordinary: frozenset[bytes]
    too_common: list[int]


def without_shared_cells(chosen: Mapping[bytes, Document], sample: Iterable[Document]) -> HeldOutCells:
    """Choose which of the `chosen` documents are held out, and what must then not be trained on.

    If a question about a paragraph is held out, training must not see the paragraph, nor another
    question with that answer. `sample`: documents of the source, which show what a field is: a
    value that many of them have ("yes") says nothing about a document, and a field by which most of
    them would be lost is a category. Where paragraphs have many questions each, fewer are held out.
    """
    counts, long_values, seen = Counter[bytes](), set[bytes](), list[dict[int, bytes]]()
    for document in sample:
        seen.append(values := cell_hashes(document))
        counts.update(values.values())
        long_values |= passages_of(document, values)
    instruction = min(FEW_QUESTIONS, LARGEST_LOSS * len(seen))  # if more have it
    held_out, shared, lost = dict[bytes, Document](), set[bytes](), 0
    fields: dict[int, set[bytes]] = {}
    for key, document in chosen.items():
        values = cell_hashes(document)
        passages = {value for value in passages_of(document, values) - shared if counts[value] <= instruction}
        lost += (cost := sum(counts[value] for value in passages))
        if held_out and lost > PASSAGE_LOSS * len(seen):
            lost -= cost
            continue
        held_out[key] = document
        shared |= passages
        for number, value in values.items():
            if value not in shared:
                fields.setdefault(number, set()).add(value)
    common, too_common = max(FEW_DOCUMENTS, COMMON_SHARE * len(seen)), []
    for number, of_field in sorted(fields.items()):
        telling = {value for value in of_field if counts[value] <= common}
        if sum(counts[value] for value in telling) <= LARGEST_LOSS * len(seen):
            shared |= telling
        else:
            too_common.append(number)
    ordinary = {value for value, n in counts.items() if n > (instruction if value in long_values else common)}
    ordinary |= {values[number] for values in seen for number in too_common if number in values}
    return HeldOutCells(held_out, frozenset(shared), frozenset(ordinary), too_common)


def passages_of(document: Document, values: Mapping[int, bytes]) -> set[bytes]:
    """Return those of the hashes `values` of its fields that are of passages."""
    return {value for number, value in values.items() if len(document.cells[number]) >= PASSAGE_LENGTH}


def collect(
    documents: Iterable[Document], num_tokens: float, min_text_length: int, *, repeated: bool = True
) -> dict[bytes, Document]:
    """Return documents of about `num_tokens` in all, each text once, by their hashes.

    Without `repeated`, no text that comes twice: of one document in twenty, such a text ("Yes.") is one that the
    source has many times, and none of its copies could be trained on.
    """
    chosen, left_out = dict[bytes, Document](), set[bytes]()
    wanted, unusable = num_tokens * BYTES_PER_TOKEN, 0
    for document in documents:
        if wanted <= 0 or unusable == MOST_UNUSABLE:
            break
        key = text_hash(document.text)
        if key in chosen and not repeated:
            left_out.add(key)
            wanted += size_of(chosen.pop(key))
        elif key in chosen or key in left_out or len(document.text) < min_text_length or not document.text.strip():
            unusable += 1
        else:
            chosen[key], unusable = document, 0
            wanted -= size_of(document)
    return chosen


def size_of(document: Document) -> int:
    """Return the size of its text in bytes."""
    return len(document.text.encode("utf-8", "replace"))


def collect_of_few(
    documents: Iterator[Document], min_text_length: int
) -> tuple[dict[bytes, Document], dict[bytes, int]]:
    """Hold out something of a source too small for 1 in 20 of its documents to be selected.

    Return documents as `collect` does, and cuts (HeldOut): the end of the longest document is held
    out, or the first one as a whole if all are short or have fields, or nothing if there is then
    nothing else to train on.
    """
    usable = collect(islice(documents, SMALL_SOURCE), math.inf, min_text_length)
    key, longest = max(usable.items(), key=lambda item: len(item[1].text), default=(b"", Document("")))
    shortest = CUT_LENGTH if len(usable) > 1 else SHORTEST_CUT
    if len(longest.text) < shortest or (longest.cells and len(usable) > 1) or longest.turns:
        return dict(islice(usable.items(), int(len(usable) > 1))), {}
    kept = start_of_end(longest.text)
    end = Document(longest.text[kept:])
    return {text_hash(end.text): end}, {key: kept}


def kept_length(text: str, cuts: Mapping[bytes, int], held_out: frozenset[bytes]) -> int | None:
    """Return how many characters of a text are trained on, if its end is held out (`cuts`); None: all.

    0 if it is a copy with other white space, whose end begins elsewhere.
    """
    kept = cuts.get(text_hash(text)) if cuts else None
    return kept if kept is None or text_hash(text[kept:]) in held_out else 0


def start_of_end(text: str) -> int:
    """Return where the end of `text` that is held out begins: 2.5% to 5% of it, or of a short text the last word.

    After a blank line, or else a line end or a space.
    """
    if len(text) < CUT_LENGTH and (word := len(text.rstrip()) - len(text.split()[-1])) > len(text) / 2:
        return word
    first, last = math.ceil((1 - CUT_SHARE) * len(text)), math.ceil((1 - CUT_SHARE / 2) * len(text))
    for mark in ("\n\n", "\n", " "):
        if (found := text.find(mark, first, last)) >= 0:
            return found + len(mark)
    return first
