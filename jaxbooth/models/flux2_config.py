"""Typed configuration of FLUX.2's transformer."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.storage.typed import STRICT, Epsilon, Heads, JsonList, Width

RopeWidths = Annotated[
    JsonList[Annotated[int, Field(ge=2, le=2**10, multiple_of=2)]], Field(min_length=4, max_length=4)
]
NATIVE_SIZE = 64  # latents of 16 pixels a side: 1024 px


@dataclass(frozen=True, config=STRICT)
class Flux2Config:
    """diffusers `Flux2Transformer2DModel`."""

    in_channels: Width = 128
    predicted_channels: Annotated[Width | None, Field(alias="out_channels")] = None  # None: as many as go in
    num_layers: Annotated[int, Field(ge=0, le=128)] = 8
    num_single_layers: Annotated[int, Field(ge=0, le=128)] = 48
    attention_head_dim: Width = 128
    num_attention_heads: Heads = 48
    joint_attention_dim: Width = 15360
    timestep_guidance_channels: Annotated[int, Field(ge=2, le=2**16, multiple_of=2)] = 256
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 3.0
    axes_dims_rope: RopeWidths = (32, 32, 32, 32)  # channels of a head that turn with time, row, column and text
    rope_theta: Annotated[float, Field(gt=1, le=1e9)] = 2000
    eps: Epsilon = 1e-6
    guidance_embeds: bool = True

    @model_validator(mode="after")
    def check(self) -> "Flux2Config":
        """Refuses values that do not fit each other; the message names a key."""
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope {list(self.axes_dims_rope)} do not sum up to attention_head_dim "
                f"{self.attention_head_dim}"
            )
        return self

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        """Channels inside of a feed-forward network."""
        return int(self.width * self.mlp_ratio)

    @property
    def out_channels(self) -> int:
        """Latent channels of the prediction."""
        return self.predicted_channels or self.in_channels

    @property
    def text_width(self) -> int:
        """Width of the prompt embeddings."""
        return self.joint_attention_dim

    @property
    def text_width_key(self) -> str:
        """The key that the width of the text stands under."""
        return "joint_attention_dim"

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur."""
        return {self.num_attention_heads}

    @property
    def downsampling(self) -> int:
        """Latents to a token, along one side: the autoencoder has made the patches already."""
        return 1

    @property
    def sample_size(self) -> None:
        """The class knows of no size that it was trained at."""

    @property
    def native_size(self) -> int:
        """Side in latents that published models were trained at."""
        return NATIVE_SIZE
