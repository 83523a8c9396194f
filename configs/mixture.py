"""The settings of the data: which sources are mixed, how, and what only the end of a run reads.

`trained_sources` and `all_sources` are the sources in the order in which everything else numbers
them, and `weights` has theirs.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from configs.fields import LONGEST_PATH, Section
from configs.sources import HFSource, Source, SourceEntry, look_up, same_documents, same_text, unique_labels
from configs.text import counted

MAX_SOURCES = 200  # the index of a source is stored in one byte for every token

Weight = Annotated[float, Field(gt=0, le=10**6)]


def _one_for_each(weights: list[float] | None, info: ValidationInfo, *lists: str) -> list[float] | None:
    """Refuse `weights` that are not one for each of the sources in these keys, if those are valid."""
    if weights is not None and set(lists) <= info.data.keys():
        expected = sum(len(info.data[key]) for key in lists)
        if len(weights) != expected:
            raise ValueError(f"{len(weights)} given; needed: one for each of {counted(expected, 'source')}")
    return weights


class FinishConfig(Section):
    """The mixture of the end of a run. It begins with a row: a document that reaches beyond it is cut there."""

    share: float = Field(gt=0, lt=1, description="Share of the run's tokens, its last ones.")
    sources: list[SourceEntry] = Field(
        min_length=1,
        max_length=MAX_SOURCES,
        description="Sources of these tokens, mixed by mix_strategy. One that is also among the others (labels do not count) "
        "continues where it was.",
    )
    source_weights: list[Weight] | None = Field(
        default=None,
        max_length=MAX_SOURCES,
        description="One positive number a source, relative, if mix_strategy is weighted; default all equal.",
    )

    @field_validator("source_weights")
    @classmethod
    def _one_each(cls, weights: list[float] | None, info: ValidationInfo) -> list[float] | None:
        return _one_for_each(weights, info, "sources")


class DataConfig(Section):
    """Where text comes from and how it is mixed."""

    sources: list[SourceEntry] = Field(
        default=[], max_length=MAX_SOURCES, description="Named sources (catalog.py) and source objects."
    )
    custom_sources: list[SourceEntry] = Field(
        default=[], max_length=MAX_SOURCES, description="More sources, appended to sources."
    )
    mix_strategy: Literal["round_robin", "sequential", "weighted"] = Field(
        default="round_robin",
        description="Round-robin by document; one source after another; or shares of tokens by source_weights.",
    )
    source_weights: list[Weight] | None = Field(
        default=None,
        max_length=MAX_SOURCES,
        description="One positive number a source, relative, if mix_strategy is weighted; default all equal.",
    )
    finish: FinishConfig | None = Field(
        default=None, description="Another mixture for the last part of the run, when the learning rate falls."
    )
    watch: list[SourceEntry] | None = Field(
        default=None,
        max_length=MAX_SOURCES,
        description="Sources that are never trained on, only evaluated: held-out loss says what a run forgets of them.",
    )
    min_text_length: int = Field(
        default=1,
        ge=0,
        le=8_192,
        description="Minimum length of a document, in characters; shorter ones are skipped. Of documents beyond 16,384 "
        "characters it is that of their pieces, which have from 8,192 to 16,384, the last one perhaps fewer.",
    )
    drop_duplicates: bool | None = Field(
        default=None,
        description="Whether a document is dropped if its text was given before, by this or another source; default: in "
        "folders of text and PDFs. Letter case and white space do not count; the first 1,000,000 different documents are "
        "remembered.",
    )
    tokenizer: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_PATH,
        description="Path of a tokenizer.json; default: byte-level BPE of vocab_size trained on the sources.",
    )

    @field_validator("custom_sources")
    @classmethod
    def _some(cls, custom: list[Any], info: ValidationInfo) -> list[Any]:
        if "sources" in info.data and not 1 <= len(info.data["sources"]) + len(custom) <= MAX_SOURCES:
            raise ValueError(f"sources and custom_sources together: 1 to {MAX_SOURCES} of them")
        return custom

    @field_validator("source_weights")
    @classmethod
    def _one_each(cls, weights: list[float] | None, info: ValidationInfo) -> list[float] | None:
        return _one_for_each(weights, info, "sources", "custom_sources")

    @field_validator("finish")
    @classmethod
    def _mixed_as_the_rest(cls, finish: FinishConfig | None, info: ValidationInfo) -> FinishConfig | None:
        strategy = info.data.get("mix_strategy")
        if finish and strategy == "sequential":
            raise ValueError('needs mix_strategy "round_robin" or "weighted", not "sequential"')
        if finish and finish.source_weights and strategy == "round_robin":
            raise ValueError('its source_weights need mix_strategy "weighted"')
        return finish

    @field_validator("watch")
    @classmethod
    def _never_trained_on(cls, watch: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        if watch and {"sources", "custom_sources", "finish"} <= info.data.keys():
            watched, trained = list(map(look_up, watch)), cls.model_construct(**info.data).trained_sources
            if both := next((spec for spec in watched if any(same_documents(spec, known) for known in trained)), None):
                raise ValueError(f"{unique_labels([both])[0]} is trained on as well: take it out of one of the two")
        return watch

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.all_sources) > MAX_SOURCES:
            raise ValueError(f"sources, custom_sources, finish and watch together: at most {MAX_SOURCES} sources")
        return self

    @property
    def trained_sources(self) -> list[Source]:
        """Sources that are trained on, without labels: sources, custom_sources, those of finish alone."""
        return _distinct([*self.sources, *self.custom_sources], self.finish.sources if self.finish else [])

    @property
    def all_sources(self) -> list[Source]:
        """All sources, named ones looked up, each with a unique label; those of watch come last."""
        specs = _distinct(self.trained_sources, self.watch or [])
        return [
            spec.model_copy(update={"label": label}) for spec, label in zip(specs, unique_labels(specs), strict=True)
        ]

    @property
    def watched_labels(self) -> list[str]:
        """The labels of sources that are evaluated and never trained on."""
        return [spec.label for spec in self.all_sources[len(self.trained_sources) :]]

    @property
    def finish_share(self) -> float | None:
        return self.finish.share if self.finish else None

    @property
    def conversations(self) -> list[HFSource]:
        """The sources of conversations that are trained on: with any, the model is one to talk to."""
        trained = self.all_sources[: len(self.trained_sources)]
        return [spec for spec in trained if isinstance(spec, HFSource) and spec.messages]

    @property
    def has_conversations(self) -> bool:
        """Whether any source, those of watch included, is of conversations: the run needs a chat template."""
        return any(isinstance(spec, HFSource) and spec.messages for spec in self.all_sources)

    def drops_duplicates(self, spec: Source) -> bool:
        """Return whether `drop_duplicates` applies to this source."""
        return spec.type in ("text", "pdf") if self.drop_duplicates is None else self.drop_duplicates

    @property
    def weights(self) -> list[float]:
        """The weight of each of `all_sources`, 0 where it is not read; with a finish, those in it follow."""
        specs, first = self.all_sources, len(self.sources) + len(self.custom_sources)
        weights = [*(self.source_weights or [1.0] * first), *[0.0] * (len(specs) - first)]
        if self.finish:
            last = [0.0] * len(specs)
            asked = self.finish.source_weights or [1.0] * len(self.finish.sources)
            for place, weight in zip(self.places(self.finish.sources), asked, strict=True):
                last[place] += weight
            weights += last
        return weights

    def places(self, entries: Iterable[Any]) -> list[int]:
        """Return the number among `all_sources` of each of these sources of finish or watch."""
        specs = self.all_sources
        return [next(i for i, spec in enumerate(specs) if same_text(spec, look_up(entry))) for entry in entries]


def _distinct(entries: Iterable[Any], others: Iterable[Any]) -> list[Source]:
    """Return the sources of `entries`, then those of `others` whose text is not among them."""
    specs = [look_up(entry) for entry in entries]
    for spec in map(look_up, others):
        if not any(same_text(spec, known) for known in specs):
            specs.append(spec)
    return specs
