"""Typed configurations of the encoders of transformers: CLIP's two encoders, DINO and DINOv2."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.storage.typed import STRICT, Epsilon, Heads, Layers, Square, Width, check_divides

Side = Annotated[int, Square, Field(ge=1, le=2**12)]  # pixels
Tokens = Annotated[int, Field(ge=3, le=2**16)]  # the start, the end, and one between them
Vocabulary = Annotated[int, Field(ge=1, le=2**24)]


@dataclass(frozen=True, config=STRICT)
class TransformerConfig:
    """What every encoder of transformers has."""

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 12
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def check_heads(self) -> "TransformerConfig":
        """Refuses heads that do not divide the width."""
        check_divides("num_attention_heads", self.num_attention_heads, [self.hidden_size])
        return self


@dataclass(frozen=True, config=STRICT)
class ImageEncoderConfig(TransformerConfig):
    """What every encoder of images has."""

    image_size: Side = 224
    patch_size: Side = 16
    num_channels: Width = 3

    @model_validator(mode="after")
    def check_patches(self) -> "ImageEncoderConfig":
        """Refuses patches that are larger than the image."""
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")
        return self


@dataclass(frozen=True, config=STRICT)
class CLIPTextConfig(TransformerConfig):
    """transformers `CLIPTextConfig`."""

    vocab_size: Vocabulary = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_attention_heads: Heads = 8
    max_position_embeddings: Tokens = 77
    hidden_act: str = "quick_gelu"
    projection_dim: Width = 512  # of the pooled feature, in encoders that have one
    eos_token_id: Annotated[int, Field(ge=0, le=2**24)] = 49407


@dataclass(frozen=True, config=STRICT)
class CLIPVisionConfig(ImageEncoderConfig):
    """transformers `CLIPVisionConfig`."""

    intermediate_size: Width = 3072
    patch_size: Side = 32
    hidden_act: str = "quick_gelu"
    projection_dim: Width = 512  # of an encoder on its own; CLIPConfig has that of both


@dataclass(frozen=True, config=STRICT)
class CLIPConfig:
    """transformers `CLIPConfig`: two encoders that end in features of one width."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: Width = 512


@dataclass(frozen=True, config=STRICT)
class ViTConfig(ImageEncoderConfig):
    """transformers `ViTConfig`, which DINO has."""

    intermediate_size: Width = 3072
    layer_norm_eps: Epsilon = 1e-12
    qkv_bias: bool = True


@dataclass(frozen=True, config=STRICT)
class Dinov2Config(ImageEncoderConfig):
    """transformers `Dinov2Config`."""

    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4
    patch_size: Side = 14
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False

    @property
    def intermediate_size(self) -> int:
        """Width inside a perceptron; a gated one has two thirds of it, rounded up to a multiple of 8."""
        inner = int(self.hidden_size * self.mlp_ratio)
        return (int(inner * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else inner
