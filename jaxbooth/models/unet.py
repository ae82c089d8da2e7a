"""The conditional UNet of Stable Diffusion (diffusers `models/unets/unet_2d_condition.py` and `unet_2d_blocks.py`).

SD 1.x, 2.x and XL are configurations of this one module: per-level head counts and transformer depths, convolutional
or linear projections, and XL's text_time conditioning. Attribute names are the state-dict names.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Num

from jaxbooth.errors import UserError
from jaxbooth.models.attention import Transformer2DModel
from jaxbooth.models.config import UNetConfig
from jaxbooth.models.layers import (
    Downsample2D,
    Layers,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    sinusoidal_embedding,
)
from jaxbooth.models.remat import Remat, call
from jaxbooth.params import Array
from jaxbooth.storage.paths import ascii_repr

Features = Float[Array, "b h w c"]
TimeEmbedding = Float[Array, "b time_embed_dim"]
Context = Float[Array, "b s text_width"]


class AddedConditions(NamedTuple):
    """SDXL's extra inputs: pooled text embeddings, and the six size, crop and target numbers."""

    text_embeds: Float[Array, "b d"]
    time_ids: Float[Array, "b 6"]


class Level(NamedTuple):
    """What the blocks of one resolution share."""

    channels: int
    time_embed_dim: int
    heads: int


class Block(nnx.Module):
    """ResNets at one resolution, each followed by cross-attention when the level has it.

    The state dict has no `attentions` for plain blocks, so that the attribute is absent then too.

    Args:
        widths: channels that enter each ResNet.
        depths: transformer blocks after each ResNet; empty where there is no attention.
    """

    def __init__(self, widths: list[int], level: Level, depths: tuple[int, ...], config: UNetConfig, layers: Layers):
        groups, eps = config.norm_num_groups, config.norm_eps
        self.resnets = nnx.List(
            [ResnetBlock2D(width, level.channels, level.time_embed_dim, groups, eps, layers) for width in widths]
        )
        self.attends = bool(depths)
        if self.attends:
            self.attentions = nnx.List([transformer(level, depth, config, layers) for depth in depths])

    def layer(self, index: int, x: Features, time_embedding: TimeEmbedding, context: Context, remat: Remat) -> Array:
        """Runs resnet `index` and its attention."""
        x = call(self.resnets[index], x, time_embedding, remat=remat, is_attention=False)
        if not self.attends:
            return x
        return call(self.attentions[index], x, context, remat=remat, is_attention=True)


def transformer(level: Level, depth: int, config: UNetConfig, layers: Layers) -> Transformer2DModel:
    """Builds a cross-attention stack of `depth` blocks."""
    return Transformer2DModel(
        level.channels,
        level.heads,
        depth,
        config.text_width,
        config.norm_num_groups,
        config.use_linear_projection,
        layers,
    )


class DownBlock(Block):
    """`DownBlock2D` and `CrossAttnDownBlock2D`; the last level has no downsampler."""

    def __init__(
        self, widths: list[int], level: Level, depths: tuple[int, ...], last: bool, config: UNetConfig, layers: Layers
    ):
        super().__init__(widths, level, depths, config, layers)
        self.downsamplers = None if last else nnx.List([Downsample2D(level.channels, layers)])

    def __call__(
        self, x: Features, time_embedding: TimeEmbedding, context: Context, remat: Remat
    ) -> tuple[Array, list[Array]]:
        """Returns the output and every intermediate that the way up concatenates."""
        skips = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time_embedding, context, remat)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class UpBlock(Block):
    """`UpBlock2D` and `CrossAttnUpBlock2D`; the last level has no upsampler."""

    def __init__(
        self, widths: list[int], level: Level, depths: tuple[int, ...], last: bool, config: UNetConfig, layers: Layers
    ):
        super().__init__(widths, level, depths, config, layers)
        self.upsamplers = None if last else nnx.List([Upsample2D(level.channels, layers)])

    def __call__(
        self, x: Features, skips: list[Array], time_embedding: TimeEmbedding, context: Context, remat: Remat
    ) -> Array:
        """Consumes `skips` from its end."""
        for index in range(len(self.resnets)):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.layer(index, x, time_embedding, context, remat)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class MidBlock(nnx.Module):
    """`UNetMidBlock2DCrossAttn`: ResNet, attention, ResNet at the lowest resolution."""

    def __init__(self, level: Level, config: UNetConfig, layers: Layers):
        groups, eps = config.norm_num_groups, config.norm_eps
        resnets = [
            ResnetBlock2D(level.channels, level.channels, level.time_embed_dim, groups, eps, layers) for _ in range(2)
        ]
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List([transformer(level, config.mid_transformers, config, layers)])

    def __call__(self, x: Features, time_embedding: TimeEmbedding, context: Context, remat: Remat) -> Features:
        x = call(self.resnets[0], x, time_embedding, remat=remat, is_attention=False)
        x = call(self.attentions[0], x, context, remat=remat, is_attention=True)
        return call(self.resnets[1], x, time_embedding, remat=remat, is_attention=False)


class UNet2DConditionModel(nnx.Module):
    """Predicts epsilon, v or x0 (the schedule says which) from noisy latents, timesteps and text.

    Raises:
        UserError: the configuration names a block type other than the Stable Diffusion ones.
    """

    def __init__(self, config: UNetConfig, layers: Layers):
        channels = config.block_out_channels
        time_embed_dim = 4 * channels[0]
        levels = [Level(width, time_embed_dim, heads) for width, heads in zip(channels, config.heads, strict=True)]
        self.config = config
        self.conv_in = layers.conv(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(channels[0], time_embed_dim, layers)
        if config.addition_embed_type == "text_time":
            width = config.projection_class_embeddings_input_dim or 0
            self.add_embedding = TimestepEmbedding(width, time_embed_dim, layers)
        self.down_blocks = nnx.List(down_blocks(config, levels, layers))
        self.mid_block = MidBlock(levels[-1], config, layers)
        self.up_blocks = nnx.List(up_blocks(config, levels, layers))
        self.conv_norm_out = layers.group_norm(channels[0], config.norm_num_groups, config.norm_eps, silu=True)
        self.conv_out = layers.conv(channels[0], config.out_channels)

    def __call__(
        self,
        sample: Float[Array, "b h w in_channels"],
        timesteps: Num[Array, " b"],
        encoder_hidden_states: Float[Array, "b s text_width"],
        added: AddedConditions | None = None,
        remat: Remat = "none",
    ) -> Float[Array, "b h w out_channels"]:
        """Runs the network.

        Args:
            sample: noisy latents; h and w are multiples of 2 ** (levels - 1).
            timesteps: integer or float.
            encoder_hidden_states: of the text.
            added: SDXL's extra conditions, when the configuration asks for them.
            remat: what the backward pass computes again (gradient checkpointing), see `jaxbooth.models.remat`.

        Returns:
            The prediction in float32.
        """
        embedding = self.embed_conditions(timesteps, added)
        context = jnp.asarray(encoder_hidden_states)
        x = self.conv_in(jnp.asarray(sample))
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, embedding, context, remat)
            skips += more
        x = self.mid_block(x, embedding, context, remat)
        for block in self.up_blocks:
            x = block(x, skips, embedding, context, remat)
        return self.conv_out(self.conv_norm_out(x)).astype(jnp.float32)

    def embed_conditions(self, timesteps: Num[Array, " b"], added: AddedConditions | None) -> TimeEmbedding:
        """Returns the embedding of the timesteps and, for SDXL, of the added conditions."""
        config = self.config

        def sinusoids(values: Num[Array, " n"], width: int) -> Float[Array, "n width"]:
            return sinusoidal_embedding(values, width, config.flip_sin_to_cos, config.freq_shift)

        embedding = self.time_embedding(sinusoids(timesteps, config.block_out_channels[0])).astype(jnp.float32)
        if config.addition_embed_type is None:
            return embedding
        if added is None:
            raise ValueError("this UNet has text_time conditioning and needs `added`")
        sizes = sinusoids(added.time_ids.reshape(-1), config.addition_time_embed_dim or 0)
        features = jnp.concatenate([added.text_embeds, sizes.reshape(len(added.time_ids), -1)], axis=-1)
        return embedding + self.add_embedding(features)


def check_block_type(block_type: str, resnet_type: str) -> None:
    """Refuses another block type than `resnet_type` and the same with cross-attention.

    Raises:
        UserError: the message names it.
    """
    if block_type not in (resnet_type, f"CrossAttn{resnet_type}"):
        raise UserError(
            f"unet/config.json: block type {ascii_repr(block_type)} is not supported; "
            f"known are {resnet_type} and CrossAttn{resnet_type}."
        )


def down_blocks(config: UNetConfig, levels: list[Level], layers: Layers) -> list[DownBlock]:
    """Builds the way down, highest resolution first."""
    blocks, width = [], levels[0].channels
    for index, (block_type, level) in enumerate(zip(config.down_block_types, levels, strict=True)):
        check_block_type(block_type, "DownBlock2D")
        widths = [width] + [level.channels] * (config.layers[index] - 1)
        depths, last = config.down_transformers[index], index == len(levels) - 1
        blocks.append(DownBlock(widths, level, depths, last, config, layers))
        width = level.channels
    return blocks


def up_blocks(config: UNetConfig, levels: list[Level], layers: Layers) -> list[UpBlock]:
    """Builds the way up, lowest resolution first. A resnet's input is the previous output beside its skip."""
    blocks, width = [], levels[-1].channels
    for index, (block_type, level) in enumerate(zip(config.up_block_types, reversed(levels), strict=True)):
        check_block_type(block_type, "UpBlock2D")
        outer = levels[max(len(levels) - 2 - index, 0)].channels  # of the next level up, whose output enters last here
        count = config.layers[::-1][index]
        inputs = [width] + [level.channels] * count
        skips = [level.channels] * count + [outer]
        widths = [a + b for a, b in zip(inputs, skips, strict=True)]
        depths, last = config.up_transformers[index], index == len(levels) - 1
        blocks.append(UpBlock(widths, level, depths, last, config, layers))
        width = level.channels
    return blocks
