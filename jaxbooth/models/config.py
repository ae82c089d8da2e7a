"""Model configurations: typed views of the checkpoint's own `config.json`.

A key that jaxbooth does not implement is accepted while it holds its neutral value and refused otherwise, so that a
checkpoint is never run as something that it is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jaxbooth.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class UNetConfig:
    """diffusers `UNet2DConditionModel`. Per-level fields take one value or a list."""

    sample_size: int | None = None  # latent side that the model was trained at
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    upcast_attention: bool = False  # softmax is float32 here whatever this says
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level. `attention_head_dim` holds the head *count*: diffusers' naming accident."""
        return self.per_level(self.num_attention_heads or self.attention_head_dim)

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur: some levels have no attention."""
        kinds = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        crossed = [any(kind.startswith("CrossAttn") for kind in pair) for pair in kinds]
        return {heads for heads, attends in zip(self.heads, crossed, strict=True) if attends} | {self.heads[-1]}

    @property
    def transformer_layers(self) -> tuple[int, ...]:
        """Transformer blocks in each attention of each level."""
        return self.per_level(self.transformer_layers_per_block)

    def per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """Repeats a single value for every level."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


@dataclass(frozen=True)
class VAEConfig:
    """diffusers `AutoencoderKL` (`models/autoencoders/autoencoder_kl.py`)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 32  # informative
    force_upcast: bool = True  # jaxbooth runs the VAE in float32 always
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def factor(self) -> int:
        """Pixels to a latent, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class CLIPTextConfig:
    """transformers `CLIPTextConfig`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512  # of the pooled feature, in towers that have one
    eos_token_id: int = 49407


@dataclass(frozen=True)
class CLIPVisionConfig:
    """transformers `CLIPVisionConfig`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512  # of a tower on its own; CLIPConfig has that of both


@dataclass(frozen=True)
class CLIPConfig:
    """transformers `CLIPConfig`: two towers that end in features of one width."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int = 512


@dataclass(frozen=True)
class ViTConfig:
    """transformers `ViTConfig`, which DINO has."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True


@dataclass(frozen=True)
class Dinov2Config:
    """transformers `Dinov2Config`."""

    hidden_size: int = 768
    mlp_ratio: float = 4
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False

    @property
    def intermediate_size(self) -> int:
        """Width inside a perceptron; a gated one has two thirds of it, rounded up to a multiple of 8."""
        inner = int(self.hidden_size * self.mlp_ratio)
        return (int(inner * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else inner


# Keys that carry no mathematics, or whose listed value is what jaxbooth implements.
NEUTRAL: dict[type, dict[str, Any]] = {
    UNetConfig: {
        "act_fn": "silu",
        "addition_embed_type_num_heads": 64,
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dropout": 0.0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "resnet_out_scale_factor": 1.0,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
    },
    VAEConfig: {"act_fn": "silu"},
    CLIPTextConfig: {"attention_dropout": 0.0, "dropout": 0.0, "model_type": "clip_text_model", "pruned_heads": {}},
    CLIPVisionConfig: {"attention_dropout": 0.0, "dropout": 0.0, "model_type": "clip_vision_model", "pruned_heads": {}},
    ViTConfig: {"model_type": "vit", "pruned_heads": {}},
    Dinov2Config: {"model_type": "dinov2", "pruned_heads": {}},
}
INFORMATIVE = {
    "architectures", "bos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_factor",
    "initializer_range", "transformers_version", "return_dict", "use_cache", "id2label", "label2id",
    "chunk_size_feed_forward", "tie_word_embeddings",
    # of generating text, which old configurations of every model have
    "length_penalty", "max_length", "num_beam_groups", "num_beams", "num_return_sequences", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p",
    # of training a vision transformer, and of heads that jaxbooth leaves out
    "attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "layerscale_value", "use_mask_token",
    "encoder_stride", "pooler_act", "pooler_output_size", "apply_layernorm", "out_features", "out_indices",
    "reshape_hidden_states", "stage_names",
}  # fmt: skip


def read_config(kind: type[T], raw: Mapping[str, Any], source: str) -> T:
    """Builds `kind` from a checkpoint's JSON object.

    Args:
        raw: the parsed `config.json`.
        source: the file's name, for messages.

    Raises:
        UserError: a key that jaxbooth does not implement holds a value other than its neutral one.
    """
    known = {field.name for field in fields(kind)}  # ty: ignore[invalid-argument-type]
    neutral = NEUTRAL[kind]
    for key, value in raw.items():
        if key in known or key in INFORMATIVE or key.startswith("_"):
            continue
        if value not in (neutral.get(key), None, False):
            raise UserError(f"{source}: {key} = {value!r} is not supported; this model needs code that jaxbooth lacks.")
    return kind(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items() if key in known}
    )


def read_clip_config(raw: Mapping[str, Any], source: str) -> CLIPConfig:
    """Reads the `config.json` of a whole CLIP; the width of its features is that of the outermost `projection_dim`.

    Raises:
        UserError: as `read_config`, or a tower's part is no JSON object.
    """

    def tower(kind: type[T], part: str) -> T:
        repeated = raw.get(f"{part}_dict")  # in old files; where it is, transformers takes all values from there
        values = raw.get(part, {}) if repeated is None else repeated
        if not isinstance(values, dict):
            raise UserError(f"{source}: {part} is not a JSON object; download or export the model again.")
        return read_config(kind, values, f"{source}: {part}")

    return CLIPConfig(
        tower(CLIPTextConfig, "text_config"), tower(CLIPVisionConfig, "vision_config"), raw.get("projection_dim", 512)
    )
