"""Every setting of a run: its type, unit, range and one sentence. A preset is JSON in this shape.

`load_preset` and `parse_preset` return a frozen Preset with every default filled in, or raise one
PresetError that lists every problem (validation.py). Nothing here opens a source, inspects the
machine or imports torch.

`python -m configs.schema` rewrites preset.schema.json, with which editors complete and check
presets.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from configs.catalog import FIELD_ALIASES
from configs.errors import PresetError, UserError
from configs.model import ModelConfig
from configs.sources import (
    KINDS,
    LONGEST_PATH,
    Count,
    HFSource,
    PDFSource,
    PythonSource,
    Section,
    Source,
    SourceEntry,
    TextSource,
    look_up,
    same_text,
    unique_labels,
)
from configs.validation import causes, explain, preset_error, read_json, read_text

__all__ = [
    "FIELD_ALIASES",
    "TOKEN_BUDGET",
    "AuxiliaryConfig",
    "DataConfig",
    "FinishConfig",
    "HFSource",
    "ModelConfig",
    "PDFSource",
    "Preset",
    "PresetError",
    "PythonSource",
    "Source",
    "TextSource",
    "TrainConfig",
    "UserError",
    "load_preset",
    "parse_preset",
    "schema_text",
]

TOKEN_BUDGET = 100_000_000  # tokens predicted in one run, as defined by the task
MICRO_BATCH_TOKENS = 16_384  # default micro-batch: fills a consumer GPU, fits a laptop's memory
MAX_MILESTONES = 1000  # each is a folder with all weights
MAX_SOURCES = 200  # the index of a source is stored in one byte for every token

HeadWeight = Annotated[float, Field(ge=0, le=100)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Weight = Annotated[float, Field(gt=0, le=10**6)]


class TrainConfig(Section):
    """Batch, schedule and intervals, counted in tokens."""

    per_gpu_batch_size: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Rows of seq_length tokens in one micro-batch of one process; default 16,384 tokens' worth.",
    )
    accumulation_steps: int = Field(default=1, ge=1, le=4096, description="Micro-batches summed into one step.")
    eval_tokens: Count = Field(
        default=1_000_000, description="Held-out tokens over all sources, at most 5% of each source."
    )
    seed: int = Field(default=1337, ge=0, le=2**32 - 1, description="Seed of initialisation, heads and samples.")
    save_every_tokens: Count = Field(default=2_000_000, description="Tokens between two checkpoints, at least.")
    eval_every_tokens: Count = Field(default=5_000_000, description="Tokens between two held-out evaluations.")
    sample_every_tokens: Count = Field(default=10_000_000, description="Tokens between two sets of samples.")
    sample_no_repeat_ngram: int = Field(
        default=3, ge=0, le=100, description="Samples repeat no run of so many tokens; 0: they may repeat any."
    )
    keep_at_tokens: Literal["babylm"] | Annotated[list[Count], Field(max_length=MAX_MILESTONES)] = Field(
        default=[],
        description="Tokens after which the weights of that moment are kept for good, exported to checkpoints/milestones/; "
        'or "babylm": after every million words up to ten, then after every ten million up to a hundred.',
    )
    benchmarks: list[Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]] = Field(
        default=[],
        max_length=100,
        description='Benchmarks at the end of the run, by their names in lm_eval, such as "blimp"; they need the extra '
        "benchmarks.",
    )
    report_to: Literal["wandb", "trackio"] | None = Field(
        default=None, description="Tracker that is sent the metrics too, if that package is installed."
    )
    matrix_learning_rate: LearningRate | None = Field(
        default=None, description="Peak Muon learning rate of hidden matrices; default by size and batch."
    )
    embedding_learning_rate: LearningRate | None = Field(
        default=None, description="Peak AdamW learning rate of the token embedding; default by size and batch."
    )
    output_learning_rate: LearningRate | None = Field(
        default=None, description="Peak AdamW learning rate of the output layer; default by size and batch."
    )
    scalar_learning_rate: LearningRate | None = Field(
        default=None, description="Peak AdamW learning rate of norms and gains; default by size and batch."
    )
    weight_decay: float = Field(
        default=0.1, ge=0, le=10, description="Decay of hidden matrices; falls to 0 with the learning rate."
    )
    warmup_fraction: float = Field(default=0.01, ge=0, le=1, description="Share of the run spent warming up.")
    decay_fraction: float = Field(
        default=0.5, ge=0, le=1, description="Share of the run, at its end, over which the learning rate falls to 0."
    )
    multi_token_weights: list[Annotated[float, Field(ge=0, le=10)]] = Field(
        default=[],
        max_length=4,
        description="Weights of predicting the tokens 2, 3, ... ahead as well, such as [0.5, 0.25]; they fade out by two "
        "thirds of the run.",
    )
    gradient_clip: float = Field(default=1.0, gt=0, le=10**6, description="Largest gradient norm a step may have.")

    @property
    def rows_per_process(self) -> int:
        """Rows that one process contributes to a step."""
        return self.per_gpu_batch_size * self.accumulation_steps

    @property
    def milestones(self) -> dict[str, int]:
        """The points of `keep_at_tokens`, in words for "babylm", by the names of their folders (for
        "babylm" those that the challenge gives its checkpoints)."""
        if self.keep_at_tokens == "babylm":
            return {f"chck_{millions}M": millions * 10**6 for millions in [*range(1, 10), *range(10, 101, 10)]}
        return {f"tokens_{point}": point for point in self.keep_at_tokens}

    @field_validator("decay_fraction")
    @classmethod
    def _phases_fit(cls, decay_fraction: float, info: ValidationInfo) -> float:
        warmup = info.data.get("warmup_fraction", 0)
        if warmup + decay_fraction > 1:
            raise ValueError(f"warmup_fraction {warmup} + decay_fraction must not exceed 1")
        return decay_fraction


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
        if weights is not None and "sources" in info.data and len(weights) != len(info.data["sources"]):
            raise ValueError(f"{len(weights)} given; needed: one for each of the {len(info.data['sources'])} sources")
        return weights


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
        description="One positive number a source, relative; default all equal.",
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
        default=1, ge=0, le=10**6, description="Minimum length of a document, in characters; shorter ones are skipped."
    )
    drop_duplicates: bool | None = Field(
        default=None,
        description="Whether a document is dropped if its text was given before, by this or another source; default: in "
        "folders of text and PDFs. Letter case and white space do not count.",
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
        if weights is not None and {"sources", "custom_sources"} <= info.data.keys():
            expected = len(info.data["sources"]) + len(info.data["custom_sources"])
            if len(weights) != expected:
                raise ValueError(f"{len(weights)} given; needed: one for each of the {expected} sources")
        return weights

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
            if both := next((spec for spec in watched if any(same_text(spec, known) for known in trained)), None):
                raise ValueError(f"{unique_labels([both])[0]} is trained on as well: take it out of one of both places")
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
    def finish_share(self) -> float | None:
        return self.finish.share if self.finish else None

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
            for entry, weight in zip(self.finish.sources, asked, strict=True):
                last[next(i for i, spec in enumerate(specs) if same_text(spec, look_up(entry)))] += weight
            weights += last
        return weights


def _distinct(entries: Iterable[Any], others: Iterable[Any]) -> list[Source]:
    """Return the sources of `entries`, then those of `others` whose text is not among them."""
    specs = [look_up(entry) for entry in entries]
    for spec in map(look_up, others):
        if not any(same_text(spec, known) for known in specs):
            specs.append(spec)
    return specs


WEIGHED = (
    "Against the language model's own loss if trunk_gradient lets heads reach it; if not, Muon and Adam divide it out "
    "again: then only the ratio of dynamics and policy counts, which train the same transition."
)


class AuxiliaryConfig(Section):
    """Heads beside the language model, all off unless switched on, and weights of sources that adapt."""

    enable_policy: bool = Field(default=False, description="Policy head: the next tokens from the unrolled latent.")
    enable_value: bool = Field(default=False, description="Value head: the mean loss of the next 32 tokens.")
    enable_dynamics: bool = Field(
        default=False, description="Dynamics head: the next hidden state from this and a token."
    )
    enable_span_contrastive: bool = Field(
        default=False, description="Span head: identify a span among others from its prefix."
    )
    policy_kl_weight: HeadWeight = Field(
        default=0.05,
        description="Weight of the policy loss (KL, nats), a tenth of whose gradient is used. " + WEIGHED,
    )
    value_weight: HeadWeight = Field(
        default=0.05, description="Weight of the value loss (cross-entropy, nats). " + WEIGHED
    )
    dynamics_weight: HeadWeight = Field(default=0.05, description="Weight of the dynamics loss (SmoothL1). " + WEIGHED)
    span_contrastive_weight: HeadWeight = Field(
        default=0.05, description="Weight of the span loss (InfoNCE, nats). " + WEIGHED
    )
    span_mask_fraction: float = Field(default=0.15, gt=0, le=0.5, description="Share of tokens that lie in spans.")
    span_contrastive_temperature: float = Field(default=0.07, gt=0, le=10, description="Temperature of InfoNCE.")
    span_l2_normalize: bool = Field(default=True, description="Compare spans by cosine instead of dot product.")
    trunk_gradient: Literal["none", "annealed", "constant"] = Field(
        default="none",
        description="Whether the heads' gradient reaches the trunk: never (the language model is bit for bit the one "
        "without heads), fading out by two thirds of the run, or throughout.",
    )
    enable_adaptive_sources: bool = Field(default=False, description="Let held-out losses move the sources' weights.")
    adaptive_rule: Literal["relative_loss", "loss_slope"] = Field(
        default="relative_loss", description="Weight by loss relative to the mean, or by how fast the loss still falls."
    )
    adaptive_interval_tokens: Count = Field(default=5_000_000, description="Tokens between two changes of weights.")
    adaptive_min_weight: float = Field(default=0.5, gt=0, le=100, description="Smallest multiple of a source's weight.")
    adaptive_max_weight: float = Field(default=3.0, gt=0, le=100, description="Largest multiple of a source's weight.")
    adaptive_smoothing: float = Field(default=0.9, ge=0, lt=1, description="Share of the old weight kept at a change.")

    @field_validator("adaptive_max_weight")
    @classmethod
    def _ordered(cls, largest: float, info: ValidationInfo) -> float:
        smallest = info.data.get("adaptive_min_weight", 0)
        if largest < smallest:
            raise ValueError(f"at least adaptive_min_weight, {smallest}")
        return largest

    @property
    def any_head(self) -> bool:
        return self.enable_policy or self.enable_value or self.enable_dynamics or self.enable_span_contrastive


class Preset(Section):
    """One run: model, training, data and heads."""

    schema_file: str = Field(default="", alias="$schema", description="For editors; has no effect on the run.")
    name: str = Field(
        max_length=64,
        pattern=r"^\w[\w. -]*$",
        description="Name in the menu and the archive: letters, digits, _ . - and spaces.",
    )
    description: str = Field(default="", max_length=300, description="One sentence for the menu.")
    model: ModelConfig = Field(description="The language model.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="Batch, schedule and intervals.")
    data: DataConfig = Field(description="Sources and mixture.")
    auxiliary: AuxiliaryConfig = Field(default_factory=AuxiliaryConfig, description="Heads beside the language model.")

    @field_validator("name")
    @classmethod
    def _visible(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("without invisible characters, which would make two names look the same")
        return name

    @model_validator(mode="before")
    @classmethod
    def _micro_batch_by_length(cls, given: Any) -> Any:
        """Set the one default that needs two sections: a micro-batch of 16,384 tokens."""
        if not isinstance(given, dict):
            return given
        model, train = given.get("model"), given.get("train", {})
        length = model.get("seq_length") if isinstance(model, dict) else None
        if type(length) is int and length > 0 and isinstance(train, dict) and "per_gpu_batch_size" not in train:
            return {**given, "train": {**train, "per_gpu_batch_size": max(1, MICRO_BATCH_TOKENS // length)}}
        return given

    @field_validator("data")
    @classmethod
    def _one_tokenizer(cls, data: DataConfig, info: ValidationInfo) -> DataConfig:
        if data.tokenizer and "model" in info.data and info.data["model"].init_from:
            raise ValueError("tokenizer: the tokenizer is that of model.init_from; remove one of the two keys")
        return data

    @field_validator("auxiliary")
    @classmethod
    def _order_fixed_when_sequential(cls, auxiliary: AuxiliaryConfig, info: ValidationInfo) -> AuxiliaryConfig:
        data = info.data.get("data")
        if data and data.mix_strategy == "sequential" and auxiliary.enable_adaptive_sources:
            raise ValueError('enable_adaptive_sources needs mix_strategy "round_robin" or "weighted", not "sequential"')
        return auxiliary

    def to_json(self) -> str:
        """Return the preset with every default written out; `parse_preset` reads it back."""
        return self.model_dump_json(by_alias=True, indent=2)


def load_preset(path: Path | str) -> Preset:
    """Read and check one preset file. Raises PresetError listing every problem."""
    return parse_preset(read_text(path), str(path))


def parse_preset(text: str, origin: str) -> Preset:
    """Check the JSON text of a preset, named `origin` in messages.

    Raises PresetError listing every problem.
    """
    value, problems = read_json(text, origin)
    num_problems = len(problems)
    try:
        preset = Preset.model_validate(value)
    except ValidationError as error:
        lines = causes(error)
        num_problems += len(lines)
        said = {problem[:2] for problem in problems}
        for problem in explain(lines, Preset, KINDS):
            if problem[:2] in said:
                num_problems -= 1
            else:
                said.add(problem[:2])
                problems.append(problem)
    if problems:
        raise preset_error(origin, problems, num_problems=num_problems)
    return preset


def schema_text() -> str:
    """Return the contents of preset.schema.json."""
    return json.dumps(Preset.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("preset.schema.json").write_text(schema_text(), encoding="utf-8")
