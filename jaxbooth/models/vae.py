"""The autoencoder between pixels and latents (diffusers `models/autoencoders/autoencoder_kl.py` and `vae.py`)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.errors import UserError
from jaxbooth.models.attention import Projections
from jaxbooth.models.config import Flux2VAEConfig, VAEConfig
from jaxbooth.models.layers import Downsample2D, Layers, ResnetBlock2D, Upsample2D
from jaxbooth.params import Array

EPS = 1e-6  # of every GroupNorm here
AnyVAEConfig = VAEConfig | Flux2VAEConfig
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers `DiagonalGaussianDistribution` clips to this


class Moments(NamedTuple):
    """Diagonal Gaussian over latents, float32, unscaled."""

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    def sample(self, noise: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns mean + std * noise."""
        return jnp.asarray(self.mean) + jnp.exp(0.5 * self.logvar) * noise


def scale_latents(config: AnyVAEConfig, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns (z - shift) * scale of an autoencoder's latents: what the denoiser sees, of about unit variance."""
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor


def unscale_latents(config: AnyVAEConfig, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of `scale_latents`."""
    return latents / config.scaling_factor + (config.shift_factor or 0.0)


class PixelAttention(Projections):
    """Single-head self-attention over the pixels of a feature map, with its own GroupNorm and skip."""

    def __init__(self, width: int, groups: int, layers: Layers):
        super().__init__(width, heads=1, layers=layers, bias=True)
        self.group_norm = layers.group_norm(width, groups, EPS)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        tokens = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        return x + self.attend(tokens, tokens).reshape(x.shape)


class MidBlock(nnx.Module):
    """`UNetMidBlock2D`: ResNet, optional attention, ResNet."""

    def __init__(self, width: int, config: AnyVAEConfig, layers: Layers):
        groups = config.norm_num_groups
        self.resnets = nnx.List([ResnetBlock2D(width, width, None, groups, EPS, layers) for _ in range(2)])
        has_attention = config.mid_block_add_attention
        self.attentions = nnx.List([PixelAttention(width, groups, layers)]) if has_attention else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c_out"]:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Stage(nnx.Module):
    """ResNets at one resolution, then a resampler under the state dict's name for it (none in the last stage)."""

    def __init__(self, inputs: int, outputs: int, depth: int, resampler: str | None, groups: int, layers: Layers):
        widths = [inputs] + [outputs] * (depth - 1)
        self.resnets = nnx.List([ResnetBlock2D(width, outputs, None, groups, EPS, layers) for width in widths])
        if resampler == "downsamplers":
            self.downsamplers = nnx.List([Downsample2D(outputs, layers, asymmetric=True)])
        elif resampler == "upsamplers":
            self.upsamplers = nnx.List([Upsample2D(outputs, layers)])
        self.resampler = resampler

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c_out"]:
        for resnet in self.resnets:
            x = resnet(x)
        return getattr(self, self.resampler)[0](x) if self.resampler else x


def stages(widths: tuple[int, ...], depth: int, resampler: str, groups: int, layers: Layers) -> nnx.List:
    """Builds one stage for each of `widths`; every stage but the last ends in the resampler."""
    inputs = (widths[0], *widths[:-1])
    last = len(widths) - 1
    return nnx.List(
        [
            Stage(before, after, depth, None if index == last else resampler, groups, layers)
            for index, (before, after) in enumerate(zip(inputs, widths, strict=True))
        ]
    )


class Encoder(nnx.Module):
    """Pixels to moments."""

    def __init__(self, config: AnyVAEConfig, layers: Layers):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = layers.conv(config.in_channels, widths[0])
        self.down_blocks = stages(widths, config.layers_per_block, "downsamplers", groups, layers)
        self.mid_block = MidBlock(widths[-1], config, layers)
        self.conv_norm_out = layers.group_norm(widths[-1], groups, EPS, silu=True)
        self.conv_out = layers.conv(widths[-1], 2 * config.decoded_channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c_out"]:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nnx.Module):
    """Latents to pixels."""

    def __init__(self, config: AnyVAEConfig, layers: Layers):
        widths, groups = config.decoder_widths[::-1], config.norm_num_groups
        self.conv_in = layers.conv(config.decoded_channels, widths[0])
        self.mid_block = MidBlock(widths[0], config, layers)
        self.up_blocks = stages(widths, config.layers_per_block + 1, "upsamplers", groups, layers)
        self.conv_norm_out = layers.group_norm(widths[-1], groups, EPS, silu=True)
        self.conv_out = layers.conv(widths[-1], config.out_channels)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c_out"]:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(nnx.Module):
    """Encoder and decoder around a diagonal Gaussian. Pixels are in [-1, 1]; latents are unscaled.

    Raises:
        UserError: the configuration names a block type other than the Stable Diffusion ones.
    """

    def __init__(self, config: AnyVAEConfig, layers: Layers):
        for block_type in (*config.down_block_types, *config.up_block_types):
            if block_type not in ("DownEncoderBlock2D", "UpDecoderBlock2D"):
                raise UserError(f"vae/config.json: block type {block_type!r} is not supported.")
        latent = config.decoded_channels
        self.encoder = Encoder(config, layers)
        self.decoder = Decoder(config, layers)
        self.quant_conv = layers.conv(2 * latent, 2 * latent, size=1) if config.use_quant_conv else None
        self.post_quant_conv = layers.conv(latent, latent, size=1) if config.use_post_quant_conv else None

    def encode(self, pixels: Float[Array, "b height width 3"]) -> Moments:
        """Maps pixels in [-1, 1] to moments of shape (b, height/f, width/f, latent_channels)."""
        hidden = self.encoder(jnp.asarray(pixels))
        hidden = hidden if self.quant_conv is None else self.quant_conv(hidden)
        mean, logvar = jnp.split(hidden.astype(jnp.float32), 2, axis=-1)
        return Moments(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]:
        """Maps unscaled latents to pixels, about [-1, 1]; height is h*f, width w*f."""
        latents = jnp.asarray(latents)
        latents = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return self.decoder(latents)
