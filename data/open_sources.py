"""The sources of a preset, opened in parallel before a stream is started or resumed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from configs import schema
from configs.errors import Retryable, SourceError, UserError
from configs.schema import Preset
from data.producer_channel import Events
from data.sources.base import Source, in_words
from data.sources.opening import open_source
from data.waiting import FIRST_WAIT, watch

OPENING_TRIES = 3  # of a new stream; an existing one has rows to train on without the network


class OpenSource:
    """A source of the preset, opened at the start or, if the network is down then, when needed."""

    def __init__(self, spec: schema.Source, seed: int):
        self.spec, self.seed = spec, seed
        self.pinned: dict | None = None
        self._cache_dir: Path | None = None
        self._source: Source | None = None
        self._noticed: set[str] = set()

    def __call__(self) -> Source:
        if self._source is None:
            self._source = open_source(self.spec, cache_dir=self._cache_dir, seed=self.seed, pinned=self.pinned)
        return self._source

    def new_notices(self) -> list[str]:
        """Return those notices of the source that were not returned before."""
        new = [notice for notice in (self._source.notices if self._source else ()) if notice not in self._noticed]
        self._noticed.update(new)
        return new

    def open_anew(self, pinned: dict | None, cache_dir: Path) -> None:
        self.pinned, self._cache_dir, self._source = pinned, cache_dir, None


def open_sources(preset: Preset, header: dict[str, Any] | None, events: Events) -> list[OpenSource]:
    """Run phase 1. `header`: of a stream that may be there. Raises UserError listing every source
    that cannot be used."""
    sources = [OpenSource(spec, preset.train.seed) for spec in preset.data.all_sources]
    if header and [entry["label"] for entry in header["sources"]] == [source.spec.label for source in sources]:
        for source, entry in zip(sources, header["sources"], strict=True):
            source.pinned = entry["pinned"]

    def open_one(index: int) -> str | None:
        try:
            events.emit("source", index=index, **_describe(sources[index]))
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=16) as pool:
        problems = [problem for problem in pool.map(open_one, range(len(sources))) if problem]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))  # a wrong environment is the same for each
    return sources


def _describe(opened: OpenSource) -> dict:
    """Open a source and read its first document. Return what the start card shows."""
    label, seconds, tries = opened.spec.label, FIRST_WAIT, 0
    with watch(label) as wait:
        while True:
            try:
                source = opened()
                document, _ = next(source.documents(0), (None, None))
                break
            except Retryable as error:
                if opened.pinned is not None:  # an existing stream has rows to train on
                    return {"label": label, "size": f"not reachable now ({error})", "first_line": "", "notices": []}
                tries += 1
                if tries == OPENING_TRIES:
                    raise SourceError(
                        f"source {label}: {error}; check the network, or choose another preset"
                    ) from error
                seconds = wait.pause(error, seconds)
    if document is None:
        reasons = f" ({in_words(source.skipped)})" if source.skipped else ""
        raise SourceError(f"source {label}: it holds no text{reasons}; add some or take it out of the preset")
    first_line = next((line.strip() for line in document.text.splitlines() if line.strip()), "")
    return {
        "label": label,
        "size": source.size(),
        "first_line": first_line[:200],
        "notices": opened.new_notices(),
        "text_bytes": source.text_bytes,
    }
