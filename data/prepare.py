"""Prepares a stream: chooses held-out text, trains or loads the tokenizer, and writes both.

    <checkpoints>/tokenizer.json, stream/heldout.npz, stream/stream.json (written last)

Everything here depends only on the preset and the sources: an interrupted start is repeated, and a
file that is missing or damaged is made again. The header in stream.json has a digest of each; a
checkpoint holds a copy of it, so that a run that has lost its stream knows what to make again, and
from which revisions of its sources.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenizers import Tokenizer

from configs.errors import Retryable, UserError
from configs.schema import Preset
from configs.text import human_bytes
from data import tokenizer as bpe
from data.feed import FIRST_WAIT, Feed, Status, pause, watch
from data.files import room_on_disk, set_aside, set_aside_unless_file, write_atomically
from data.heldout import (
    BYTES_PER_TOKEN,
    SHORTEST_CUT,
    HeldOut,
    cell_hashes,
    collect,
    collect_of_few,
    pack,
    shared_cells,
    text_hash,
)
from data.identity import check_paths, data_identity, path_of
from data.journal import HEADER, ROWS, STATES, read_header, write_header
from data.mixing import Mixer, base_weights, over_the_run
from data.packing import row_dtype
from data.sources.base import HELD_OUT_ONE_IN, Document, Source

HELD_OUT, PDF_TEXT = "heldout.npz", "pdf_text"
SAMPLE_DOCUMENTS = 1000  # of a source, to see which of its fields identify a document
TRAINING_CHARACTERS = 40_000_000  # the beginning of the mixture, which a tokenizer is trained on

Content = TypeVar("Content")


def tokenizer_path(stream_dir: Path) -> Path:
    return stream_dir.parent / "tokenizer.json"


def set_obstacles_aside(stream_dir: Path, notice: Callable[[str], None]) -> None:
    """Set aside what has the name of a part of the stream but is none, such as a folder or a pipe
    in the place of a file. That part is then made again, as if it were lost."""
    with room_on_disk(stream_dir):
        for path in (stream_dir, stream_dir / PDF_TEXT):
            if os.path.lexists(path) and not path.is_dir():
                notice(f"{path} is no folder: it is now {set_aside(path).name}")
        for path in (tokenizer_path(stream_dir), *(stream_dir / name for name in (HELD_OUT, HEADER, ROWS, STATES))):
            if new_name := set_aside_unless_file(path):
                notice(f"{path} is no file: it is now {new_name.name}")


class Prepared(NamedTuple):
    """All that rows are made with. `header`: of the journal."""

    header: dict[str, Any]
    tokenizer: Tokenizer
    held_out: HeldOut

    def save(self, stream_dir: Path) -> None:
        """Write all three, the header last. Raises DiskFull."""
        with room_on_disk(stream_dir):
            stream_dir.mkdir(parents=True, exist_ok=True)
        self.held_out.save(stream_dir / HELD_OUT)
        write_atomically(tokenizer_path(stream_dir), self.tokenizer.to_str(pretty=True).encode())
        write_header(stream_dir, self.header)


def load_or_prepare(
    preset: Preset,
    stream_dir: Path,
    header: dict[str, Any] | None,
    sources: Sequence[Callable[[], Source]],
    token_budget: int,
    status: Status,
    notice: Callable[[str], None],
) -> tuple[Prepared, list[str]]:
    """Return all that rows are made with, and the names of the files that had to be made again.

    `header`: of the stream, if there is one already. Raises UserError if it is not of this preset,
    or if what is lost cannot be made again.
    """
    if header is None:
        prepared = prepare_stream(preset, stream_dir, sources, token_budget, status, notice)
        prepared.save(stream_dir)
        return prepared, []
    check_paths(header, preset, sources)
    tokenizer = _if_intact(tokenizer_path(stream_dir), bpe.load, bpe.fingerprint, header["tokenizer_sha256"])
    held_out = _if_intact(stream_dir / HELD_OUT, HeldOut.load, HeldOut.digest, header["held_out"])
    files = ((tokenizer_path(stream_dir).name, tokenizer), (HELD_OUT, held_out), (HEADER, read_header(stream_dir)))
    lost = [name for name, content in files if content is None]
    if tokenizer and held_out:
        prepared = Prepared(header, tokenizer, held_out)
    else:
        prepared = prepare_stream(preset, stream_dir, sources, token_budget, status, notice)
        if any(prepared.header[key] != header[key] for key in ("tokenizer_sha256", "held_out")):
            raise UserError(
                f"{stream_dir} is damaged or incomplete ({', '.join(lost)}) and cannot be made again: the sources no longer "
                "give the text that this run began with. Restore them, or copy stream/ and tokenizer.json from where the run "
                "was before, or start a new run: this one is archived, not lost"
            )
        prepared = prepared._replace(header=header)
    if lost:
        prepared.save(stream_dir)
    return prepared, lost


def _if_intact(
    path: Path, load: Callable[[Path], Content], digest: Callable[[Content], str], expected: str
) -> Content | None:
    with suppress(Exception):  # damaged bytes can raise anything
        content = load(path)
        if digest(content) == expected:
            return content
    return None


def reason_to_skip(document: Document, min_text_length: int, held_out: frozenset[bytes]) -> str | None:
    """Return why a document is not trained on, or None."""
    if not document.text.strip():
        return "empty"
    if len(document.text) < min_text_length:
        return "too short"
    if text_hash(document.text) in held_out:
        return "held out"
    return None if held_out.isdisjoint(cell_hashes(document).values()) else "sharing a field with held-out text"


def prepare_stream(
    preset: Preset,
    stream_dir: Path,
    sources: Sequence[Callable[[], Source]],
    token_budget: int,
    status: Status,
    notice: Callable[[str], None],
) -> Prepared:
    """Make all that a new stream needs, and write nothing; wait while the network is down.

    Raises UserError.
    """
    data, specs, num_trained = preset.data, preset.data.all_sources, len(preset.data.trained_sources)
    status("choosing held-out text")
    weights = over_the_run(base_weights(data.mix_strategy, data.weights), len(specs), data.finish_share)

    def choose(i: int) -> tuple[dict[bytes, Document], dict[bytes, int], frozenset[bytes]]:
        held_out = _steadily(specs[i].label, lambda: sources[i]().held_out(), status)
        if i >= num_trained:  # watched: not a twentieth, but all of it may be evaluated
            share = preset.train.eval_tokens / num_trained
            return collect(chain(held_out, head(i)), share, data.min_text_length), {}, frozenset()
        share = preset.train.eval_tokens * weights[i] / sum(weights)
        # Of fewer documents none must be selected as a whole, which might be half of the text, or all of it.
        has_enough = len(list(islice(head(i), HELD_OUT_ONE_IN))) == HELD_OUT_ONE_IN
        chosen, cuts = collect(held_out, share if has_enough else 0, data.min_text_length), dict[bytes, int]()
        if not chosen:
            chosen, cuts = collect_of_few(head(i), data.min_text_length)
        has_cells = any(document.cells for document in chosen.values())
        sample = islice(head(i), SAMPLE_DOCUMENTS) if has_cells else ()
        shared, too_common = shared_cells(chosen.values(), sample)
        for number in too_common:
            field = specs[i].fields[number]  # type: ignore[union-attr,index]  # only such sources have cells
            notice(
                f"{specs[i].label}: documents that share {field!r} with held-out text are trained on, since more than half of "
                "the source does"
            )
        return chosen, cuts, shared

    def head(i: int) -> Iterator[Document]:
        return _steadily(specs[i].label, lambda: (document for document, _ in sources[i]().documents(0)), status)

    with ThreadPoolExecutor(max_workers=16) as pool:
        chosen, cuts_of_each, shared = zip(*pool.map(choose, range(len(specs))), strict=True)
    if not any(chosen[:num_trained]):
        labels = ", ".join(spec.label for spec in specs[:num_trained])
        raise UserError(
            f"{labels}: no document can be held out for evaluation; needed are two documents, or one of {SHORTEST_CUT:,} "
            "characters, whose end can be held out"
        )
    hashes = frozenset(key for documents in chosen for key in documents).union(*shared)
    cuts = {key: kept for each in cuts_of_each for key, kept in each.items()}

    if preset.model.init_from:
        tokenizer = bpe.load(tokenizer_path(stream_dir))  # put there by the trainer
    elif data.tokenizer:
        tokenizer = bpe.load(data.tokenizer)
    else:
        skip = partial(reason_to_skip, min_text_length=data.min_text_length, held_out=hashes)
        # The run's mixture from its beginning; nothing is encoded yet, so shares count characters.
        feeds = [
            Feed(spec, source, list, skip, status, seed=preset.train.seed, cuts=cuts)
            for spec, source in zip(specs, sources, strict=True)
        ]
        length = min(TRAINING_CHARACTERS, max(2**20, int(token_budget * BYTES_PER_TOKEN)))
        texts = _head_of_mixture(feeds, Mixer(data.mix_strategy, weights), length, status)
        tokenizer = bpe.train(texts, preset.model.vocab_size)

    status("tokenizing held-out text")
    seq_length = preset.model.seq_length
    packed = [
        pack(spec.label, list(documents.values()), tokenizer, seq_length)
        for spec, documents in zip(specs, chosen, strict=True)
    ]
    held_out = HeldOut(packed, hashes, cuts)
    header = {
        **data_identity(preset),
        "tokenizer_sha256": bpe.fingerprint(tokenizer),
        "held_out": held_out.digest(),
        "token_type": row_dtype(seq_length, bpe.vocab_size(tokenizer))["tokens"].base.name,
        "sources": [
            {"label": spec.label, "path": path_of(spec), "pinned": source().pinned}
            for spec, source in zip(specs, sources, strict=True)
        ],
    }
    return Prepared(header, tokenizer, held_out)


def _steadily(label: str, read: Callable[[], Iterator[Document]], status: Status) -> Iterator[Document]:
    """Yield the documents of `read()`; after a network failure, read again from where it was."""
    documents: Iterator[Document] | None = None
    given = 0
    while True:
        wait, document = FIRST_WAIT, None
        with watch(label, status) as say:
            while True:
                try:
                    documents = documents or islice(read(), given, None)
                    document = next(documents, None)
                    break
                except Retryable as error:
                    documents, wait = None, pause(label, error, wait, say)
        if document is None:
            return
        given += 1
        yield document


def _head_of_mixture(feeds: Sequence[Feed[str]], mixer: Mixer, num_characters: int, status: Status) -> Iterator[str]:
    """Yield texts as the run will mix them, each source once; report progress every quarter."""
    length, said = 0, -1
    while length < num_characters and not mixer.exhausted:
        if (quarter := 4 * length // num_characters) > said:
            said = quarter
            status(f"reading text for the tokenizer: {length / 1e6:.0f} MB of at most {num_characters / 1e6:.0f}")
        index = mixer.choose()
        text = feeds[index].next_document()
        if text is None:
            mixer.drop(index)
            continue
        mixer.charge(index, len(text))
        length += len(text)
        yield text
    status(f"training the tokenizer on {human_bytes(length)}")
