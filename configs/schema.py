"""Every setting of a run: its type, unit, range and one sentence. A preset is JSON in this shape.

The settings of the model and of the data are in model.py and mixture.py.

`load_preset` and `parse_preset` return a frozen Preset with every default filled in, or raise one
PresetError that lists every problem (validation.py). Nothing here opens a source, inspects the
machine or imports torch.

`python -m configs.schema` rewrites preset.schema.json, with which editors complete and check
presets.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from configs.catalog import FIELD_ALIASES
from configs.errors import UserError
from configs.fields import Count, Section
from configs.mixture import DataConfig
from configs.model import ModelConfig
from configs.sources import KINDS, HFSource, PDFSource, PythonSource, Source, TextSource
from configs.validation import MAX_EXPLAINED, causes, explain, preset_error, read_json, read_text

__all__ = [
    "FIELD_ALIASES",
    "TOKEN_BUDGET",
    "AuxiliaryConfig",
    "DataConfig",
    "HFSource",
    "ModelConfig",
    "PDFSource",
    "Preset",
    "PythonSource",
    "Source",
    "TextSource",
    "TrainConfig",
    "UserError",  # what `load_preset` raises is caught by scripts that import both from here
    "load_preset",
    "parse_preset",
    "schema_text",
]

TOKEN_BUDGET = 100_000_000  # tokens predicted in one run, as defined by the task
MOST_WEIGHTS = 150_000  # that a run may set, all changes together: a checkpoint holds them (lm/checkpoint/reader.py)
MICRO_BATCH_TOKENS = 16_384  # default micro-batch: fills a consumer GPU, fits a laptop's memory
LEAST_FOR_TURNS = 261  # tokens: 256 bytes, the end of text, four markers of turns
MAX_MILESTONES = 1000  # each is a folder with all weights

HeadWeight = Annotated[float, Field(ge=0, le=100)]
LearningRate = Annotated[float, Field(gt=0, le=10)]


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
    seed: int = Field(
        default=1337,
        ge=0,
        le=2**32 - 1,
        description="Seed of the weights, of the order of text and which of it is held out, of heads and samples.",
    )
    save_every_tokens: Count = Field(default=2_000_000, description="Tokens between two checkpoints, at least.")
    eval_every_tokens: Count = Field(
        default=5_000_000,
        description="Tokens between two held-out evaluations; the first comes at an eighth of it, of small text earlier.",
    )
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
        description='Benchmarks at the end of the run, by their names in lm_eval (letters, digits, _ . -), such as "blimp"; '
        "they need the extra benchmarks.",
    )
    report_to: Literal["wandb", "trackio"] | None = Field(
        default=None, description="Tracker that is sent the metrics too, if that package is installed."
    )
    matrix_learning_rate: LearningRate | None = Field(
        default=None, description="Peak Muon learning rate of hidden matrices; default by size and batch."
    )
    embedding_learning_rate: LearningRate | None = Field(
        default=None,
        description="Peak AdamW learning rate of the token embedding; default by size and batch. Not used with "
        "tie_embeddings: the output layer's is.",
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

    @field_validator("keep_at_tokens", mode="wrap")
    @classmethod
    def _points_or_a_name(cls, given: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Say once what is allowed, and not for each type of the union."""
        try:
            return check(given)
        except ValidationError:
            most = f"at most {MAX_MILESTONES:,} whole numbers from 1 to 1,000,000,000,000"
            raise ValueError(f'allowed: "babylm", or a list of {most}, the tokens to keep weights after') from None

    @field_validator("decay_fraction")
    @classmethod
    def _phases_fit(cls, decay_fraction: float, info: ValidationInfo) -> float:
        warmup = info.data.get("warmup_fraction", 0)
        if warmup + decay_fraction > 1:
            raise ValueError(f"warmup_fraction {warmup} + decay_fraction must not exceed 1")
        return decay_fraction


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
    adaptive_interval_tokens: Count = Field(
        default=5_000_000,
        description="Tokens between two changes of weights. A change counts a quarter of the run later: text is made so far "
        "ahead.",
    )
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
        model = info.data.get("model")
        if (
            model
            and data.has_conversations
            and not (data.tokenizer or model.init_from)
            and model.vocab_size < LEAST_FOR_TURNS
        ):
            raise ValueError(
                f"conversations need a model.vocab_size of at least {LEAST_FOR_TURNS}: bytes and markers of turns"
            )
        return data

    @field_validator("auxiliary")
    @classmethod
    def _weights_that_can_move_and_be_saved(cls, auxiliary: AuxiliaryConfig, info: ValidationInfo) -> AuxiliaryConfig:
        data = info.data.get("data")
        interval = len(data.weights) * TOKEN_BUDGET // MOST_WEIGHTS + 1 if data else 0
        if auxiliary.enable_adaptive_sources and auxiliary.adaptive_interval_tokens < interval:
            raise ValueError(f"adaptive_interval_tokens: at least {interval:,} with so many sources")
        if data and data.mix_strategy == "sequential" and auxiliary.enable_adaptive_sources:
            raise ValueError('enable_adaptive_sources needs mix_strategy "round_robin" or "weighted", not "sequential"')
        return auxiliary

    def to_json(self) -> str:
        """Return the preset with every default written out; `parse_preset` reads it back."""
        return self.model_dump_json(by_alias=True, indent=2)

    def without_embedding_norm(self) -> "Preset":
        """Return this as versions read it that had no such norm."""
        return self.model_copy(update={"model": self.model.model_copy(update={"embedding_norm": False})})


def load_preset(path: Path | str) -> Preset:
    """Read and check one preset file. Raises PresetError listing every problem."""
    return parse_preset(read_text(path), str(path))


def parse_preset(text: str, origin: str) -> Preset:
    """Check the JSON text of a preset, named `origin` in messages.

    Raises PresetError listing every problem.
    """
    value, problems = read_json(text, origin)
    hidden = 0
    try:
        preset = Preset.model_validate(value)
    except ValidationError as error:
        lines = causes(error)
        hidden = max(0, len(lines) - MAX_EXPLAINED)
        said = {problem[:2] for problem in problems}
        for problem in explain(lines, Preset, KINDS):
            if problem[:2] not in said:
                said.add(problem[:2])
                problems.append(problem)
    if problems:
        raise preset_error(origin, problems, hidden)
    return preset


def saved_preset(text: str) -> Preset:
    """Return the preset in a checkpoint, which has every default written out: a setting that it lacks is
    newer than its run. Raises PresetError."""
    preset = parse_preset(text, "the checkpoint")
    return preset if "embedding_norm" in preset.model.model_fields_set else preset.without_embedding_norm()


def schema_text() -> str:
    """Return the contents of preset.schema.json."""
    return json.dumps(Preset.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("preset.schema.json").write_text(schema_text(), encoding="utf-8")
