"""Typed configurations of the autoencoders between pixels and latents."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.models.unet_config import BlockTypes, LevelWidths, ResnetCount
from jaxbooth.storage.typed import STRICT, Epsilon, JsonList, Square, Width, check_divides, check_lengths

Side = Annotated[int, Field(ge=1, le=2**12)]  # pixels
PatchSide = Annotated[int, Square, Field(ge=1, le=16)]


@dataclass(frozen=True, config=STRICT)
class AutoencoderConfig:
    """What the configurations of all autoencoders have in common: the convolutional encoder and decoder."""

    in_channels: Width = 3
    out_channels: Width = 3
    down_block_types: BlockTypes = ("DownEncoderBlock2D",)
    up_block_types: BlockTypes = ("UpDecoderBlock2D",)
    block_out_channels: LevelWidths = (64,)
    layers_per_block: ResnetCount = 1
    norm_num_groups: Width = 32
    sample_size: Side | JsonList[Side] | None = None  # flow transformers know no size of their own
    force_upcast: Any = True  # jaxbooth runs the VAE in float32 always
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @model_validator(mode="after")
    def check(self) -> "AutoencoderConfig":
        """Refuses values that do not fit each other; the message names a key."""
        levels = len(self.block_out_channels)
        check_lengths(levels, down_block_types=self.down_block_types, up_block_types=self.up_block_types)
        check_divides("norm_num_groups", self.norm_num_groups, self.block_out_channels)
        return self

    @property
    def factor(self) -> int:
        """Pixels to a latent, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's levels, highest resolution first."""
        return self.block_out_channels


@dataclass(frozen=True, config=STRICT)
class VAEConfig(AutoencoderConfig):
    """diffusers `AutoencoderKL` (`models/autoencoders/autoencoder_kl.py`)."""

    latent_channels: Width = 4
    scaling_factor: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.18215
    shift_factor: Annotated[float, Field(ge=-1e3, le=1e3)] | None = None

    @property
    def decoded_channels(self) -> int:
        """Channels between encoder and decoder."""
        return self.latent_channels


@dataclass(frozen=True, config=STRICT)
class Flux2VAEConfig(AutoencoderConfig):
    """diffusers `AutoencoderKLFlux2` (`models/autoencoders/autoencoder_kl_flux2.py`).

    Its latents are patches of what lies between encoder and decoder, side by side as channels, and normalised by the
    statistics of a BatchNorm, so that nothing is left to scale.
    """

    scaling_factor: ClassVar[float] = 1.0
    shift_factor: ClassVar[float] = 0.0

    down_block_types: BlockTypes = ("DownEncoderBlock2D",) * 4
    up_block_types: BlockTypes = ("UpDecoderBlock2D",) * 4
    block_out_channels: LevelWidths = (128, 256, 512, 512)
    decoder_block_out_channels: LevelWidths | None = None
    layers_per_block: ResnetCount = 2
    decoded_channels: Annotated[Width, Field(alias="latent_channels")] = 32  # between encoder and decoder
    sample_size: Side | JsonList[Side] | None = 1024
    batch_norm_eps: Epsilon = 1e-4
    batch_norm_momentum: Any = 0.1  # of training the autoencoder itself
    patch_size: PatchSide = 2

    @model_validator(mode="after")
    def check_decoder(self) -> "Flux2VAEConfig":
        """Refuses a decoder of another number of levels than the encoder; the message names a key."""
        check_lengths(len(self.block_out_channels), decoder_block_out_channels=self.decoder_block_out_channels)
        check_divides("norm_num_groups", self.norm_num_groups, self.decoder_widths)
        return self

    @property
    def latent_channels(self) -> int:
        """Channels of a patch, as the denoiser sees it."""
        return self.decoded_channels * self.patch_size**2

    @property
    def factor(self) -> int:
        """Pixels to a patch, along one side."""
        return super().factor * self.patch_size

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's levels, highest resolution first."""
        return self.decoder_block_out_channels or self.block_out_channels
