"""Selects held-out documents from the sources of a preset, by the rules of heldout_choice.py."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

from configs.errors import Retryable, UserError
from configs.schema import Preset
from data.chat_template import ChatTemplate
from data.feed import nothing_usable
from data.heldout_choice import (
    MOST_UNUSABLE,
    SHORTEST_CUT,
    HeldOutCells,
    collect,
    collect_of_few,
    is_refused,
    reason_to_skip,
    without_shared_cells,
)
from data.sources.base import HELD_OUT_ONE_IN, Document, Source
from data.waiting import FIRST_WAIT, watch

log = logging.getLogger(__name__)

SAMPLE_DOCUMENTS = 1000  # of a source, to see which of its fields identify a document


def choose_held_out(
    preset: Preset,
    sources: Sequence[Callable[[], Source]],
    weights: Sequence[float],
    eval_tokens: int,
    chat: ChatTemplate | None,
) -> tuple[Sequence[dict[bytes, Document]], frozenset[bytes], dict[bytes, int]]:
    """Choose about `eval_tokens` of held-out text, shared out among the sources by `weights`, without what `chat` refuses.

    Return the documents of each source by the hash of their text, the hashes of all that must not be
    trained on, and how much of a document is kept whose end is held out. Raises UserError.
    """
    specs, shortest = preset.data.all_sources, preset.data.min_text_length
    num_trained = len(preset.data.trained_sources)

    def choose(i: int) -> tuple[HeldOutCells, dict[bytes, int]]:
        if i >= num_trained:  # watched: not a twentieth, but all of it may be evaluated
            documents = chain(held_out_of(i), head(i))
            chosen = collect(documents, eval_tokens / num_trained, shortest)
            if not chosen:
                log.warning("%s: nothing of it can be evaluated", specs[i].label)
            return HeldOutCells(chosen, frozenset(), frozenset(), []), {}
        wanted = eval_tokens * weights[i] / sum(weights)
        # Of fewer documents none must be selected as a whole, which might be half of the text, or all of it.
        has_enough = has_a_twentieth(i)
        chosen = collect(held_out_of(i), wanted if has_enough else 0, shortest, repeated=False)
        cuts = dict[bytes, int]()
        if not chosen:
            chosen, cuts = collect_of_few(head(i), shortest)
        has_cells = any(document.cells for document in chosen.values())
        # From where the held-out documents are, and not the head: data may be sorted by subject.
        others = chain.from_iterable(held_out_of(i, part) for part in range(1, HELD_OUT_ONE_IN))
        sample = islice(others, SAMPLE_DOCUMENTS) if has_cells else ()
        found = without_shared_cells(chosen, sample)
        for number in found.too_common:
            log.warning(
                "%s: documents that share %r with held-out text are trained on, since more than half of the source does",
                specs[i].label,
                specs[i].cell_names[number],  # type: ignore[union-attr]  # only such sources have cells
            )
        return found, cuts

    def has_a_twentieth(i: int) -> bool:
        """Return whether the source has so many documents that can be used that one in twenty is not all of
        them. Raises SourceError, with the reasons, if none of its documents can be used."""
        reasons, opened, num_usable = Counter[str](), list[tuple[Source, Counter[str]]](), 0

        def documents() -> Iterator[Document]:
            opened.append((sources[i](), sources[i]().skipped.copy()))
            return (document for document, _ in opened[-1][0].documents(0))

        looked_at = islice(_steadily(specs[i].label, documents), MOST_UNUSABLE)
        for document in looked_at:
            if reason := reason_to_skip(document, shortest, frozenset(), chat):
                reasons[reason] += 1
            else:
                num_usable += 1
            if num_usable == HELD_OUT_ONE_IN:
                break
        if not num_usable and reasons.total() < MOST_UNUSABLE:
            source, counted_before = opened[-1]
            raise nothing_usable(specs[i].label, reasons + (source.skipped - counted_before))
        return num_usable == HELD_OUT_ONE_IN

    def held_out_of(i: int, part: int = 0) -> Iterator[Document]:
        return usable(_steadily(specs[i].label, lambda: sources[i]().held_out(part)))

    def head(i: int) -> Iterator[Document]:
        return usable(_steadily(specs[i].label, lambda: (document for document, _ in sources[i]().documents(0))))

    def usable(documents: Iterator[Document]) -> Iterator[Document]:
        return (Document("") if is_refused(each, chat) else each for each in documents)

    with ThreadPoolExecutor(max_workers=16) as pool:
        found_in_each, cuts_of_each = zip(*pool.map(choose, range(len(specs))), strict=True)
    chosen = [found.documents for found in found_in_each]
    if not any(chosen[:num_trained]):
        labels = ", ".join(spec.label for spec in specs[:num_trained])
        raise UserError(
            f"{labels}: no document can be held out for evaluation; needed are two documents, or one of {SHORTEST_CUT} "
            "characters, whose end can be held out"
        )
    shared = frozenset[bytes]().union(*(found.shared for found in found_in_each))
    shared = shared.difference(*(found.ordinary for found in found_in_each))
    hashes = shared.union(*chosen)
    return chosen, hashes, {key: kept for each in cuts_of_each for key, kept in each.items()}


def _steadily(label: str, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
    """Yield the documents of `read()`; after a network failure, read again from where it was."""
    documents: Iterator[Document] | None = None
    given = 0
    while True:
        seconds, document = FIRST_WAIT, None
        with watch(label) as wait:
            while True:
                try:
                    documents = documents or islice(read(), given, None)
                    document = next(documents, None)
                    break
                except Retryable as error:
                    documents, seconds = None, wait.pause(error, seconds)
        if document is None:
            return
        given += 1
        yield document
