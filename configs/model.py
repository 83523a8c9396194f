"""The settings of the language model: its shape, or the model that it starts from and has it from.

A preset with `init_from` may leave its shape to that model's config.json, which is read later
(lm/start_point.py): until then the settings in `ModelConfig.unknown` have no meaning.
"""

from typing import Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticKnownError

from configs.fields import FOLDER_STARTS, LONGEST_PATH, Name, Section, name_in_address

# What the config.json of a model to start from says about its shape.
SHAPE = frozenset(
    ("hidden_size", "num_layers", "head_size", "num_heads", "num_kv_heads", "vocab_size", "mlp_size",
     "tie_embeddings", "rope_theta", "rope_scaling", "qk_norm", "norm_eps")
)  # fmt: skip
REQUIRED: Any = None  # the default of a size that must be given, unless it is read from such a model
UNKNOWN = 0  # a size that is not given, as long as that config.json has not been read


def _shape_or_model(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which keys are required: a shape, or a model that has one."""
    sizes = ["hidden_size", "num_layers", "num_heads"]
    for name in sizes:
        del schema["properties"][name]["default"]
    schema["anyOf"] = [{"required": ["init_from"]}, {"required": sizes}]


class RopeScaling(Section):
    """The rotary embeddings of Llama 3.1 and later: wavelengths that were too long to come round in the length that the
    model was first trained with are stretched for a longer one. With the keys of a config.json."""

    rope_type: Literal["llama3"] = Field(description="How wavelengths are stretched.")
    factor: float = Field(ge=1, le=1000, description="What the longest wavelengths are multiplied by.")
    low_freq_factor: float = Field(
        gt=0, le=1000, description="Wavelengths that fit less often into the first length are stretched by factor."
    )
    high_freq_factor: float = Field(
        gt=0, le=1000, description="Those that fit more often are unchanged; between the two, the change is gradual."
    )
    original_max_position_embeddings: int = Field(ge=8, le=10**9, description="The first length, in tokens.")

    @field_validator("high_freq_factor")
    @classmethod
    def _above_low(cls, high: float, info: ValidationInfo) -> float:
        low = info.data.get("low_freq_factor", 0)
        if high <= low:
            raise ValueError(f"above low_freq_factor, {low}")
        return high


class ModelConfig(Section):
    """The trunk: a decoder in the form of Qwen3, or without qk_norm in that of Llama. With init_from, every key but
    seq_length has the value of that model."""

    model_config = ConfigDict(json_schema_extra=_shape_or_model)

    init_from: str | None = Field(
        default=None,
        max_length=LONGEST_PATH,
        pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*|(/|~|\.\.?/)[^\x00-\x1f]*)$",
        description="Model to start from, Qwen3 (dense) or Llama: owner/name on the Hub, or a folder, beginning with /, ./, "
        "../ or ~/.",
    )
    revision: Name | None = Field(
        default=None, description="Branch, tag or commit of init_from on the Hub; default: the newest commit."
    )
    hidden_size: int = Field(
        default=REQUIRED,
        ge=16,
        le=8192,
        multiple_of=2,
        description="Width of the residual stream, an even number of channels; required without init_from.",
    )
    num_layers: int = Field(
        default=REQUIRED, ge=1, le=128, description="Number of transformer layers; required without init_from."
    )
    head_size: int | None = Field(
        default=None,
        alias="head_dim",
        ge=2,
        le=512,
        multiple_of=2,
        description="Channels of a head, an even number; default hidden_size / num_heads.",
    )
    num_heads: int = Field(
        default=REQUIRED,
        ge=1,
        le=512,
        description="Attention heads a layer; without head_dim, hidden_size / num_heads must be even; required "
        "without init_from.",
    )
    num_kv_heads: int = Field(
        default_factory=lambda known: max(1, known["num_heads"]),
        ge=1,
        le=512,
        description="Heads of keys and values, each for equally many heads of queries; default num_heads.",
    )
    seq_length: int = Field(ge=8, le=8192, description="Tokens the model sees at once, and predicts, in one row.")
    vocab_size: int = Field(
        default_factory=lambda known: 8192 if known["hidden_size"] <= 384 else 16384,
        ge=258,
        le=262_144,
        description="Tokens in the vocabulary, 256 bytes included; default 8192 up to hidden_size 384, above it 16384.",
    )
    mlp_size: int = Field(
        default_factory=lambda known: max(64, -(-8 * known["hidden_size"] // 192) * 64),
        ge=16,
        le=65_536,
        description="Inner width of the SwiGLU, in channels; default 8/3 hidden_size rounded up to a multiple of 64.",
    )
    tie_embeddings: bool = Field(default=False, description="Use one matrix as both input embedding and output layer.")
    embedding_norm: bool = Field(
        default_factory=lambda known: not known["tie_embeddings"] and known["init_from"] is None,
        description="Scale each token's embedding to an rms of 1 before the first layer; exports have it in the embedding "
        "itself; default true, but false with tie_embeddings or init_from.",
    )
    rope_theta: float = Field(
        default=10_000.0, ge=100, le=10**9, description="Base of the rotary position embeddings' wavelengths."
    )
    qk_norm: bool = Field(
        default=True, description="Normalise queries and keys: with it the model is a Qwen3, without it a Llama."
    )
    rope_scaling: RopeScaling | None = Field(
        default=None, description="Rotary embeddings with longer wavelengths, only without qk_norm."
    )
    norm_eps: float = Field(default=1e-6, gt=0, le=0.01, description="Added to the mean square in every norm.")

    @field_validator("init_from", mode="before")
    @classmethod
    def _no_address(cls, model: Any) -> Any:
        """Say what to write for the address of a page that is pasted."""
        if isinstance(model, str) and (name := name_in_address(model, "")):
            raise ValueError(f'write "{name}", the name of the model alone')
        return model

    @field_validator("revision")
    @classmethod
    def _of_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("init_from", "")
        if revision and (source is None or source.startswith(FOLDER_STARTS)):
            raise ValueError("only with init_from, and with a name on the Hub there")
        return revision

    @field_validator("hidden_size", "num_layers", "num_heads", mode="wrap")
    @classmethod
    def _given_or_read(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> int:
        """Require the size, unless it will be read from `init_from`."""
        if value is not None:
            return check(value)
        if info.data.get("init_from", "") is None:
            raise PydanticKnownError("missing")
        return UNKNOWN

    @field_validator("num_heads")
    @classmethod
    def _heads_divide(cls, num_heads: int, info: ValidationInfo) -> int:
        hidden_size = info.data.get("hidden_size")
        if not hidden_size or info.data.get("head_size", "") or info.data.get("init_from"):
            return num_heads
        if hidden_size % num_heads or hidden_size // num_heads % 2:
            fitting = [heads for heads in range(1, 513) if hidden_size % (2 * heads) == 0]
            raise ValueError(f"hidden_size / num_heads must be a whole even number; allowed: {fitting}")
        return num_heads

    @field_validator("embedding_norm")
    @classmethod
    def _of_an_embedding_alone(cls, norm: bool, info: ValidationInfo) -> bool:
        if norm and (info.data.get("tie_embeddings") or info.data.get("init_from")):
            raise ValueError("only without tie_embeddings, whose matrix is the output layer too, and without init_from")
        return norm

    @field_validator("qk_norm")
    @classmethod
    def _exportable(cls, qk_norm: bool, info: ValidationInfo) -> bool:
        hidden_size, num_heads = (info.data.get(name) or 1 for name in ("hidden_size", "num_heads"))
        if not qk_norm and hidden_size % num_heads:
            raise ValueError(
                f"of a Llama, which it then is, transformers opens an export only if hidden_size / num_heads is whole, "
                f"with head_dim too: {hidden_size} / {num_heads} is not"
            )
        return qk_norm

    @field_validator("rope_scaling")
    @classmethod
    def _of_a_llama(cls, scaling: RopeScaling | None, info: ValidationInfo) -> RopeScaling | None:
        if scaling and info.data.get("qk_norm"):
            raise ValueError("only with qk_norm false: llama.cpp computes them in a Llama alone")
        return scaling

    @field_validator("num_kv_heads")
    @classmethod
    def _groups_divide(cls, num_kv_heads: int, info: ValidationInfo) -> int:
        num_heads = info.data.get("num_heads")
        if num_heads and num_heads % num_kv_heads:
            fitting = [heads for heads in range(1, num_heads + 1) if num_heads % heads == 0]
            raise ValueError(f"num_heads / num_kv_heads must be a whole number; allowed: {fitting}")
        return num_kv_heads

    @model_serializer(mode="wrap")
    def _without_unknown(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit what is still to be read from `init_from`."""
        names = {type(self).model_fields[name].alias or name for name in self.unknown}
        return {name: value for name, value in dump(self).items() if name not in names | self.unknown}

    @property
    def unknown(self) -> frozenset[str]:
        """The settings that are still to be read from the config.json of `init_from`."""
        return SHAPE - self.model_fields_set if self.init_from else frozenset()

    def completed(self, shape: "ModelConfig") -> "ModelConfig":
        """Return this with its unknown settings taken from `shape`."""
        return self.model_copy(update={name: getattr(shape, name) for name in self.unknown})

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def heads_qkv(self) -> tuple[int, int, int]:
        """The numbers of heads of queries, keys and values."""
        return self.num_heads, self.num_kv_heads, self.num_kv_heads
