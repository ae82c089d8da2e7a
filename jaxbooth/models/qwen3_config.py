"""The typed configuration of Qwen3, the language model whose hidden states condition Z-Image and FLUX.2."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.errors import short_repr
from jaxbooth.storage.typed import STRICT, Epsilon, Heads, JsonList, Layers, Width

Theta = Annotated[float, Field(ge=1, le=1e12)]
ROPE_TYPE_KEYS = ("rope_type", "type")  # older files say `type`


@dataclass(frozen=True, config=STRICT)
class Qwen3Config:
    """transformers `Qwen3Config`.

    Attributes:
        num_key_value_heads: each serves as many neighbouring query heads; None: as many as those.
        head_dim: channels of a head, whatever the width is.
        rope_theta: base of the rotary positions' frequencies; transformers 5 writes it into `rope_parameters`.
        rope_scaling: as older files have `rope_parameters`.
        layer_types: one for each layer.
    """

    vocab_size: Annotated[int, Field(ge=1, le=2**24)] = 151936
    hidden_size: Width = 4096
    intermediate_size: Annotated[int, Field(ge=1, le=2**20)] = 22016
    num_hidden_layers: Layers = 32
    num_attention_heads: Heads = 32
    num_key_value_heads: Heads | None = 32
    head_dim: Annotated[int, Field(ge=2, le=2**12, multiple_of=2)] = 128
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**24)] = 32768
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    layer_types: JsonList[Literal["full_attention"]] | None = None

    @model_validator(mode="after")
    def check_heads(self) -> "Qwen3Config":
        """Refuses key-value heads that do not divide the query heads, and types of more or fewer layers."""
        if self.num_attention_heads % self.key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        return self

    @model_validator(mode="after")
    def check_rope(self) -> "Qwen3Config":
        """Refuses rotary positions that are stretched (YaRN and others), or have no valid base."""
        for key in ("rope_scaling", "rope_parameters"):
            for name, value in (getattr(self, key) or {}).items():
                is_default = name in ROPE_TYPE_KEYS and value == "default"
                is_theta = name == "rope_theta" and not isinstance(value, bool) and isinstance(value, int | float)
                if not (is_default or (is_theta and 1 <= value <= 1e12)):
                    raise ValueError(
                        f"{key} has {short_repr(name)}: {short_repr(value)}, and only unscaled rotary positions are "
                        "supported"
                    )
        return self

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def rope_base(self) -> float:
        """The base of the rotary positions' frequencies, wherever the file has it."""
        parameters = self.rope_parameters or self.rope_scaling or {}
        return float(parameters.get("rope_theta", self.rope_theta))
