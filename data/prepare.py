"""Prepares a new stream: chooses held-out text, trains or loads the tokenizer, and writes both.

    <checkpoints>/tokenizer.json, stream/heldout.npz, stream/stream.json (written last)

Everything here depends only on the preset and the sources: an interrupted start is repeated.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from configs.errors import Retryable, UserError
from configs.schema import Preset
from configs.text import human_bytes
from data import tokenizer as bpe
from data.feed import FIRST_WAIT, Feed, Status, pause, watch
from data.files import room_on_disk, write_atomically
from data.heldout import BYTES_PER_TOKEN, HeldOut, cell_hashes, collect, pack, shared_cells, text_hash
from data.journal import begin
from data.mixing import Mixer, base_weights
from data.packing import row_dtype
from data.sources.base import Document, Source

# Change it when a preset's rows or their order change: streams of other formats are not resumed.
FORMAT = 5
HELD_OUT = "heldout.npz"
SAMPLE_DOCUMENTS = 1000  # of a source, to see which of its fields identify a document
TRAINING_CHARACTERS = 40_000_000  # the beginning of the mixture, which a tokenizer is trained on


def tokenizer_path(stream_dir: Path) -> Path:
    return stream_dir.parent / "tokenizer.json"


def data_identity(preset: Preset) -> dict:
    """Return the settings that must be unchanged for a stream to be resumed."""
    return {
        "format": FORMAT,
        "seq_length": preset.model.seq_length,
        "vocab_size": None if preset.data.tokenizer else preset.model.vocab_size,
        "seed": preset.train.seed,
        "data": preset.data.model_dump(mode="json"),
    }


def without_null(settings: Any) -> Any:
    """Return settings without those that are null, such as the ones that a stream of an earlier version lacks."""
    if isinstance(settings, dict):
        return {key: without_null(value) for key, value in settings.items() if value is not None}
    return list(map(without_null, settings)) if isinstance(settings, list) else settings


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
    tokenizer_sha256: str | None,
    status: Status,
    notice: Callable[[str], None],
) -> None:
    """Write all that a new stream needs; wait while the network is down.

    `tokenizer_sha256`: of a run that has lost its stream. Raises UserError, for such a run also if
    its sources no longer give the same tokenizer.
    """
    data, specs = preset.data, preset.data.all_sources
    with room_on_disk(stream_dir):
        stream_dir.mkdir(parents=True, exist_ok=True)
    status("choosing held-out text")
    weights = base_weights(data.mix_strategy, data.weights)

    def choose(i: int) -> tuple[dict[bytes, Document], frozenset[bytes]]:
        share = preset.train.eval_tokens * weights[i] / sum(weights)
        held_out = _steadily(specs[i].label, lambda: sources[i]().held_out(), status)
        chosen = collect(held_out, share, data.min_text_length) or first_of_two(head(i), data.min_text_length)
        has_cells = any(document.cells for document in chosen.values())
        sample = islice(head(i), SAMPLE_DOCUMENTS) if has_cells else ()
        shared, too_common = shared_cells(chosen.values(), sample)
        for number in too_common:
            field = specs[i].fields[number]  # type: ignore[union-attr,index]  # only such sources have cells
            notice(
                f"{specs[i].label}: documents that share {field!r} with held-out text are trained on, since more than half of "
                "the source does"
            )
        return chosen, shared

    def head(i: int) -> Iterator[Document]:
        return _steadily(specs[i].label, lambda: (document for document, _ in sources[i]().documents(0)), status)

    with ThreadPoolExecutor(max_workers=16) as pool:
        chosen, shared = zip(*pool.map(choose, range(len(specs))), strict=True)
    hashes = frozenset(key for documents in chosen for key in documents)
    if not hashes:
        labels = ", ".join(spec.label for spec in specs)
        raise UserError(f"{labels}: no document can be held out for evaluation; at least two are needed")
    hashes = hashes.union(*shared)

    if data.tokenizer:
        tokenizer = bpe.load(data.tokenizer)
    else:
        skip = partial(reason_to_skip, min_text_length=data.min_text_length, held_out=hashes)
        # The run's mixture from its beginning; nothing is encoded yet, so shares count characters.
        feeds = [
            Feed(spec, source, list, skip, status, seed=preset.train.seed)
            for spec, source in zip(specs, sources, strict=True)
        ]
        length = min(TRAINING_CHARACTERS, max(2**20, int(token_budget * BYTES_PER_TOKEN)))
        texts = _head_of_mixture(feeds, Mixer(data.mix_strategy, weights), length, status)
        tokenizer = bpe.train(texts, preset.model.vocab_size)

    if tokenizer_sha256 not in (None, bpe.fingerprint(tokenizer)):
        raise UserError(
            f"{stream_dir} is not there, and cannot be made again: the sources no longer give the text that this run's "
            "tokenizer was trained on. Copy stream/ from where the run was before, or start a new run: this one is archived, "
            "not lost"
        )

    status("tokenizing held-out text")
    seq_length = preset.model.seq_length
    packed = [
        pack(spec.label, list(documents.values()), tokenizer, seq_length)
        for spec, documents in zip(specs, chosen, strict=True)
    ]
    HeldOut(packed, hashes).save(stream_dir / HELD_OUT)
    write_atomically(tokenizer_path(stream_dir), tokenizer.to_str(pretty=True).encode())
    header = {
        **data_identity(preset),
        "tokenizer_sha256": bpe.fingerprint(tokenizer),
        "token_type": row_dtype(seq_length, bpe.vocab_size(tokenizer))["tokens"].base.name,
        "sources": [
            {"label": spec.label, "pinned": source().pinned} for spec, source in zip(specs, sources, strict=True)
        ],
    }
    begin(stream_dir, header)


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


def first_of_two(head: Iterator[Document], min_text_length: int) -> dict[bytes, Document]:
    """Return one document of a source too small for 1 in 20 to be held out.

    Return none if there would be nothing else to train on.
    """
    usable = collect(islice(head, 100), math.inf, min_text_length)
    return dict(islice(usable.items(), int(len(usable) > 1)))


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


def check_identity(header: dict, preset: Preset, stream_dir: Path) -> None:
    """Raise UserError if the stream was made with other settings than this preset's."""
    header, wanted = without_null(header), without_null(data_identity(preset))
    if header.get("format") != FORMAT:
        raise UserError(
            f"{stream_dir} was started by another version of this program, which orders documents differently; finish the run "
            "with that version, or start a new one: this one is archived, not lost"
        )
    differing = [
        f"  {key}: {header.get(key)!r} in the stream, {value!r} in the preset"
        for key, value in wanted.items()
        if header.get(key) != value and key != "data"
    ]
    had, wants = header.get("data") or {}, wanted["data"]
    differing += [
        f"  data.{key}: {had.get(key)!r} in the stream, {wants.get(key)!r} in the preset"
        for key in sorted(had.keys() | wants.keys())
        if had.get(key) != wants.get(key)
    ]
    if differing:
        raise UserError(
            f"{stream_dir} was made for other data and cannot be continued with this preset:\n"
            + "\n".join(differing)
            + "\nresume with its original preset, or start a new run"
        )


def load_tokenizer(header: dict, stream_dir: Path) -> Tokenizer:
    """Load the stream's tokenizer.

    Raises UserError if tokenizer.json is not the one that the stream was made with.
    """
    path = tokenizer_path(stream_dir)
    tokenizer = bpe.load(path)
    if bpe.fingerprint(tokenizer) != header["tokenizer_sha256"]:
        raise UserError(
            f"{path} is not the tokenizer that {stream_dir} was made with "
            f"(sha256 {header['tokenizer_sha256'][:16]}...); restore that one, or start a new run"
        )
    return tokenizer
