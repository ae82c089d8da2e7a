"""Typed configuration of Z-Image's transformer."""

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.storage.typed import STRICT, Epsilon, Heads, JsonList, Layers, Width

PatchSizes = Annotated[JsonList[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)]
Axes = Annotated[JsonList[Width], Field(min_length=3, max_length=3)]
NATIVE_SIZE = 128  # latents a side: 1024 px
MODULATION_WIDTH = 256  # at most


@dataclass(frozen=True, config=STRICT)
class ZImageConfig:
    """diffusers `ZImageTransformer2DModel` without SigLIP, which its omni mode alone uses."""

    all_patch_size: PatchSizes = (2,)
    all_f_patch_size: PatchSizes = (1,)  # along frames; an image has one
    in_channels: Width = 16
    dim: Width = 3840
    n_layers: Layers = 30
    n_refiner_layers: Annotated[int, Field(ge=0, le=128)] = 2
    n_heads: Heads = 30
    n_kv_heads: Heads = 30  # informative: diffusers' class has `n_heads` key heads whatever this says
    norm_eps: Epsilon = 1e-5
    qk_norm: bool = True
    cap_feat_dim: Width = 2560
    rope_theta: Annotated[float, Field(gt=1, le=1e9)] = 256.0
    t_scale: Annotated[float, Field(gt=0, le=1e6)] = 1000.0
    axes_dims: Axes = (32, 48, 48)  # channels of a head that turn with the place in the text, the row and the column
    axes_lens: Axes = (1024, 512, 512)

    @model_validator(mode="after")
    def check(self) -> "ZImageConfig":
        """Refuses values that do not fit each other; the message names a key."""
        if len(self.all_patch_size) != len(self.all_f_patch_size):
            raise ValueError(
                f"all_f_patch_size has {len(self.all_f_patch_size)} entries for the {len(self.all_patch_size)} of "
                "all_patch_size"
            )
        if 1 not in self.all_f_patch_size:
            raise ValueError(f"all_f_patch_size {list(self.all_f_patch_size)} has no 1, which an image needs")
        if self.head_width != sum(self.axes_dims):
            raise ValueError(
                f"axes_dims {list(self.axes_dims)} do not add up to a head's {self.head_width} channels (dim / n_heads)"
            )
        if any(width % 2 for width in self.axes_dims):
            raise ValueError(f"axes_dims {list(self.axes_dims)} are not all even, and channels turn in pairs")
        return self

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return self.dim // self.n_heads

    @property
    def modulation_width(self) -> int:
        """Channels of the timestep's embedding."""
        return min(self.dim, MODULATION_WIDTH)

    @property
    def patch_sizes(self) -> tuple[tuple[int, int], ...]:
        """Distinct sizes of patches along an image's side and along frames; each has an embedder and a final layer."""
        return tuple(dict.fromkeys(zip(self.all_patch_size, self.all_f_patch_size, strict=True)))

    @property
    def patch_size(self) -> int:
        """The size that images are cut by: 2, as diffusers' pipeline has it, or else the first for single frames."""
        sizes = [size for size, frames in self.patch_sizes if frames == 1]
        return 2 if 2 in sizes else sizes[0]

    @property
    def out_channels(self) -> int:
        """Latent channels of the prediction."""
        return self.in_channels

    @property
    def text_width(self) -> int:
        """Width of the prompt embeddings."""
        return self.cap_feat_dim

    @property
    def text_width_key(self) -> str:
        """The key that the width of the text stands under."""
        return "cap_feat_dim"

    @property
    def attention_heads(self) -> set[int]:
        """Head counts that occur."""
        return {self.n_heads}

    @property
    def downsampling(self) -> int:
        """Latents to a token, along one side."""
        return self.patch_size

    @property
    def sample_size(self) -> None:
        """The class knows of no size that it was trained at."""

    @property
    def native_size(self) -> int:
        """Side in latents of the images that published models were trained at."""
        return NATIVE_SIZE
