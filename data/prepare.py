"""Prepares a stream: chooses held-out text, trains or loads the tokenizer, and writes both (stream_files.py).

Everything here depends only on the preset and the sources: an interrupted start is repeated, and a
file that is missing or damaged is made again. The header in stream.json has a digest of each, and the
chat template itself, if the run has conversations. A checkpoint holds a copy of it, so that a run that
has lost its stream knows what to make again, and from which revisions of its sources.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from tokenizers import Tokenizer

from configs.errors import Retryable, UserError
from configs.schema import Preset
from configs.text import human_bytes
from data import tokenizer as bpe
from data.chat_template import OWN, TEMPLATE_FILE, ChatTemplate, template_beside
from data.feed import Feed
from data.heldout import HeldOut, pack
from data.heldout_choice import BYTES_PER_TOKEN, kept_length, reason_to_skip
from data.heldout_selection import choose_held_out
from data.identity import check_identity, check_paths, data_identity, path_of
from data.journal import HEADER, ROWS, STATES, read_header
from data.mixing import Mixer, base_weights, over_the_run
from data.open_sources import OpenSource
from data.sources.base import Document, Source
from data.stream_files import HELD_OUT, PDF_TEXT, Prepared, set_obstacles_aside, template_path, tokenizer_path

log = logging.getLogger(__name__)

TRAINING_CHARACTERS = 40_000_000  # the beginning of the mixture, which a tokenizer is trained on

Content = TypeVar("Content")


def prepare(
    preset: Preset,
    stream_dir: Path,
    header: dict[str, Any] | None,
    sources: list[OpenSource],
    token_budget: int,
) -> tuple[Prepared, list[str]]:
    """Run phase 2: afterwards the stream has its header, tokenizer and held-out text.

    `header`: of a resumed run. Return also the names of what was lost.
    """
    set_obstacles_aside(stream_dir)
    found = read_header(stream_dir)
    if header is not None and found not in (None, header):
        raise UserError(
            f"{stream_dir} is not the stream of this run, but another's. Copy stream/ from where this run was before, or move "
            "it elsewhere: the sources then give it again"
        )
    is_resumed, header = header is not None, found if header is None else header
    if header is not None:
        check_identity(header, preset, stream_dir)
        if not is_resumed and not _is_of(header, preset, sources):
            header = None  # its rows, of which no checkpoint knows, are of other text
            for name in (ROWS, STATES):
                (stream_dir / name).unlink(missing_ok=True)
    for i, source in enumerate(sources):
        pinned = header["sources"][i]["pinned"] if header else None
        # Files may be written from here on. A new run does not keep its predecessor's revision.
        if source.spec.type == "pdf" or source.pinned != pinned:
            source.open_anew(pinned, stream_dir / PDF_TEXT)
    return load_or_prepare(preset, stream_dir, header, sources, token_budget)


def _is_of(header: dict[str, Any], preset: Preset, sources: list[OpenSource]) -> bool:
    """Return whether the sources hold what they did when the stream began. Raises UserError if other text is at
    another path."""
    for source, entry in zip(sources, header["sources"], strict=True):
        try:
            is_same = source().pinned == entry["pinned"]
        except Retryable:  # the network is down: what is pinned there does not change
            is_same = source.pinned == entry["pinned"]
        if not is_same:
            check_paths(header, preset, sources)
            return False
    return True


def load_or_prepare(
    preset: Preset,
    stream_dir: Path,
    header: dict[str, Any] | None,
    sources: Sequence[Callable[[], Source]],
    token_budget: int,
) -> tuple[Prepared, list[str]]:
    """Return all that rows are made with, and the names of the files that had to be made again.

    `header`: of the stream, if there is one already. Raises UserError if it is not of this preset,
    or if what is lost cannot be made again.
    """
    if header is None:
        prepared = prepare_stream(preset, stream_dir, sources, token_budget)
        prepared.save(stream_dir)
        return prepared, []
    check_paths(header, preset, sources)
    tokenizer = _if_intact(tokenizer_path(stream_dir), bpe.load, bpe.fingerprint, header["tokenizer_sha256"])
    held_out = _if_intact(stream_dir / HELD_OUT, HeldOut.load, HeldOut.digest, header["held_out"])
    wanted = header.get("chat_template")
    template_there = "" if wanted is None else _if_intact(template_path(stream_dir), _read_text, str, wanted)
    files = (
        (tokenizer_path(stream_dir).name, tokenizer),
        (TEMPLATE_FILE, template_there),
        (HELD_OUT, held_out),
        (HEADER, read_header(stream_dir)),
    )
    lost = [name for name, content in files if content is None]
    if tokenizer and held_out:
        prepared = Prepared(header, tokenizer, held_out, ChatTemplate(wanted, tokenizer) if wanted else None)
    else:
        prepared = prepare_stream(preset, stream_dir, sources, token_budget, header)
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


def _read_text(path: Path) -> str:
    return path.read_bytes().decode()  # read_text would change its line ends


def prepare_stream(
    preset: Preset,
    stream_dir: Path,
    sources: Sequence[Callable[[], Source]],
    token_budget: int,
    made_before: Mapping[str, Any] = MappingProxyType({}),
) -> Prepared:
    """Make all that a new stream needs, and write nothing; wait while the network is down.

    `made_before`: the header of the stream that is made again. Raises UserError.
    """
    data, specs, seq_length = preset.data, preset.data.all_sources, preset.model.seq_length
    weights = over_the_run(base_weights(data.mix_strategy, data.weights), len(specs), data.finish_share)
    template, eval_tokens = made_before.get("chat_template"), made_before.get("eval_tokens", preset.train.eval_tokens)
    token_budget = made_before.get("token_budget", token_budget)
    tokenizer, chat = given_tokenizer(preset, stream_dir, template)
    log.info("choosing held-out text")
    chosen, hashes, cuts = choose_held_out(preset, sources, weights, eval_tokens, chat)
    if not tokenizer:
        skip = partial(reason_to_skip, min_text_length=data.min_text_length, held_out=hashes)
        kept = partial(kept_length, cuts=cuts, held_out=hashes)
        # The run's mixture from its beginning; nothing is encoded yet, so shares count characters.
        feeds = [
            Feed(spec, source, texts_of, skip, seed=preset.train.seed, kept_length=kept)
            for spec, source in zip(specs, sources, strict=True)
        ]
        length = min(TRAINING_CHARACTERS, max(2**20, int(token_budget * BYTES_PER_TOKEN)))
        # Of sources that follow each other all have a part in it.
        strategy = "round_robin" if data.mix_strategy == "sequential" else data.mix_strategy
        texts = _head_of_mixture(feeds, Mixer(strategy, weights), length)
        tokenizer = bpe.train(texts, preset.model.vocab_size, bpe.MARKERS if data.has_conversations else ())
        chat = ChatTemplate(template or OWN, tokenizer) if data.has_conversations else None

    log.info("tokenizing held-out text")
    packed = [
        pack(spec.label, list(documents.values()), tokenizer, seq_length, chat)
        for spec, documents in zip(specs, chosen, strict=True)
    ]
    held_out = HeldOut(packed, hashes, cuts)
    header = {
        **data_identity(preset),
        "tokenizer_sha256": bpe.fingerprint(tokenizer),
        "held_out": held_out.digest(),
        "eval_tokens": eval_tokens,
        "token_budget": token_budget,  # by which the text is chosen that a tokenizer is trained on
        **({"chat_template": chat.source} if chat else {}),
        "sources": [
            {"label": spec.label, "path": path_of(spec), "pinned": source().pinned}
            for spec, source in zip(specs, sources, strict=True)
        ],
    }
    return Prepared(header, tokenizer, held_out, chat)


def given_tokenizer(
    preset: Preset, stream_dir: Path, template: str | None = None
) -> tuple[Tokenizer | None, ChatTemplate | None]:
    """Return the tokenizer that the run does not train, if that is so, and the chat template that goes with it.
    Raises UserError."""
    data = preset.data
    if preset.model.init_from:
        path = tokenizer_path(stream_dir)  # put there by the trainer, as is the template
    elif data.tokenizer:
        path = Path(os.path.expanduser(data.tokenizer))
    else:
        return None, None
    tokenizer = bpe.load(path)
    if not data.has_conversations:
        return tokenizer, None
    source = template or template_beside(str(path.parent), partial(_file_beside, path), tokenizer)
    return tokenizer, ChatTemplate(source, tokenizer)


def _file_beside(path: Path, name: str) -> Path | None:
    return path.with_name(name) if path.with_name(name).is_file() else None


def texts_of(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def _head_of_mixture(feeds: Sequence[Feed[str]], mixer: Mixer, num_characters: int) -> Iterator[str]:
    """Yield texts as the run will mix them, each source once; report progress every quarter."""
    length, said = 0, -1
    while length < num_characters and not mixer.exhausted:
        if (quarter := 4 * length // num_characters) > said:
            said = quarter
            log.info("reading text for the tokenizer: %.0f MB of at most %.0f", length / 1e6, num_characters / 1e6)
        index = mixer.choose()
        text = feeds[index].next_document()
        if text is None:
            mixer.drop(index)
            continue
        mixer.charge(index, len(text))
        length += len(text)
        yield text
    log.info("training the tokenizer on %s", human_bytes(length))
