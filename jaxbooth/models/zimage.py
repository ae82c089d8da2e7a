"""Z-Image's transformer (diffusers `models/transformers/transformer_z_image.py`): one stream of image and text tokens.

Refiners see image or text alone; the layers after them see both. Attribute names are the state-dict names. Only the
mode in which one image is denoised is here: omni, which reads other images too, needs SigLIP.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Num

from jaxbooth.errors import UserError
from jaxbooth.models.attention import Tokens
from jaxbooth.models.broadcast import broadcast
from jaxbooth.models.layers import Layers
from jaxbooth.models.remat import Remat, call
from jaxbooth.models.rope import Rotation, at_positions, neighbour_rotation, rope_angles
from jaxbooth.models.zimage_blocks import FinalLayer, TimestepEmbedder, ZImageTransformerBlock
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.params import Array

TOKEN_MULTIPLE = 32  # to which the tokens of images and of captions are filled up with learned ones
TIMESTEPS = 1000.0  # the largest


def padded(count: int) -> int:
    """Returns a number of tokens with those that fill it up."""
    return count + -count % TOKEN_MULTIPLE


class ZImageTransformer2DModel(nnx.Module):
    """Predicts the velocity eps - x of a rectified flow from noisy latents, timesteps and text.

    diffusers' class is told 1 - s and returns x - eps; its pipeline turns both around, and here the module does.
    """

    def __init__(self, config: ZImageConfig, layers: Layers):
        def per_patch_size(build: Callable[[int], nnx.Module]) -> nnx.Dict:
            """Builds a module from the values of a patch, for every size of patches."""
            return nnx.Dict(
                {
                    f"{size}-{frames}": build(size * size * frames * config.in_channels)
                    for size, frames in config.patch_sizes
                }
            )

        def blocks(count: int, modulation: bool = True) -> nnx.List:
            return nnx.List([ZImageTransformerBlock(config, layers, modulation) for _ in range(count)])

        self.config = config
        self.all_x_embedder = per_patch_size(lambda values: layers.linear(values, config.dim))
        self.all_final_layer = per_patch_size(lambda values: FinalLayer(config, values, layers))
        self.noise_refiner = blocks(config.n_refiner_layers)
        self.context_refiner = blocks(config.n_refiner_layers, modulation=False)
        self.t_embedder = TimestepEmbedder(config, layers)
        caption_norm = layers.rms_norm(config.cap_feat_dim, config.norm_eps)
        self.cap_embedder = nnx.List([caption_norm, layers.linear(config.cap_feat_dim, config.dim)])
        self.x_pad_token = nnx.Param(jnp.zeros((1, config.dim), jnp.float32))
        self.cap_pad_token = nnx.Param(jnp.zeros((1, config.dim), jnp.float32))
        self.layers = blocks(config.n_layers)

    def __call__(
        self,
        sample: Float[Array, "b h w in_channels"],
        timesteps: Num[Array, " b"],
        prompt_embeds: Float[Array, "b s cap_feat_dim"],
        prompt_lengths: Int[Array, " b"],
        remat: Remat = "none",
    ) -> Float[Array, "b h w in_channels"]:
        """Runs the network.

        Args:
            sample: noisy latents; h and w are multiples of the patch size.
            timesteps: 1000 s, where s is the share of noise.
            prompt_embeds: of the text, real tokens in front; what comes after them is not read.
            prompt_lengths: real tokens of each row, 1 or more.
            remat: what the backward pass computes again (gradient checkpointing), see `jaxbooth.models.remat`.

        Returns:
            eps - x in float32.

        Raises:
            UserError: the image or the caption has more tokens than `axes_lens` allows.
        """
        config = self.config
        height, width = (side // config.patch_size for side in sample.shape[1:3])
        self.check_positions(height, width, padded(prompt_embeds.shape[1]))
        block = functools.partial(call, remat=remat, is_attention=True)
        embedding = self.t_embedder((TIMESTEPS - timesteps.astype(jnp.float32)) / TIMESTEPS * config.t_scale)

        image = self.embed_image(sample)
        caption = self.embed_caption(prompt_embeds, prompt_lengths)
        # A row sees the tokens that fill its own caption up, and not those that fill it up to the longest one's.
        caption_lengths = prompt_lengths + -prompt_lengths % TOKEN_MULTIPLE
        is_uneven = caption.shape[1] > TOKEN_MULTIPLE
        count = image.shape[1]
        rotation = self.rotation(height, width, caption.shape[1], caption_lengths)

        image_rotation = Rotation(rotation.cos[:, :count], rotation.sin[:, :count])
        for layer in self.noise_refiner:
            image = block(layer, image, image_rotation, None, embedding)
        caption_rotation = Rotation(rotation.cos[:, count:], rotation.sin[:, count:])
        for layer in self.context_refiner:
            caption = block(layer, caption, caption_rotation, caption_lengths if is_uneven else None)

        tokens = jnp.concatenate([image, caption], axis=1)
        for layer in self.layers:
            tokens = block(layer, tokens, rotation, count + caption_lengths if is_uneven else None, embedding)
        patches = self.all_final_layer[f"{config.patch_size}-1"](tokens[:, : height * width], embedding)
        return -from_patches(patches.astype(jnp.float32), height, width, config.patch_size)

    def check_positions(self, height: int, width: int, caption: int) -> None:
        """Refuses more tokens than there are positions.

        Args:
            height, width: of the image in tokens.
            caption: tokens, with those that fill it up.

        Raises:
            UserError: the message says which side or whether the caption is too long.
        """
        longest, highest, widest = self.config.axes_lens
        keys = "transformer/config.json: axes_lens"
        if height > highest or width > widest:
            latents = " x ".join(str(side * self.config.patch_size) for side in (height, width))
            raise UserError(
                f"{keys} {list(self.config.axes_lens)} allows images of {highest} x {widest} tokens, and {latents} "
                f"latents are {height} x {width}; choose a smaller size."
            )
        if caption + 2 > longest:  # the caption begins at 1, and the image comes after it
            raise UserError(
                f"{keys} {list(self.config.axes_lens)} allows captions of {longest - 2} tokens, and this one has "
                f"{caption} when filled up to a multiple of {TOKEN_MULTIPLE}; shorten it."
            )

    def embed_caption(self, prompt_embeds: Float[Array, "b s cap_feat_dim"], lengths: Int[Array, " b"]) -> Tokens:
        """Returns the caption's tokens, filled up to a multiple of 32 by the learned one."""
        missing = -prompt_embeds.shape[1] % TOKEN_MULTIPLE
        embeds = jnp.pad(prompt_embeds, ((0, 0), (0, missing), (0, 0)))
        tokens = self.cap_embedder[1](self.cap_embedder[0](embeds))
        is_real = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return jnp.where(is_real[..., None], tokens, broadcast(self.cap_pad_token[...], tokens.shape, tokens.dtype))

    def embed_image(self, sample: Float[Array, "b h w in_channels"]) -> Tokens:
        """Returns the image's tokens row by row, filled up to a multiple of 32 by the learned one."""
        config = self.config
        tokens = self.all_x_embedder[f"{config.patch_size}-1"](to_patches(sample, config.patch_size))
        batch, count, dim = tokens.shape
        filling = broadcast(self.x_pad_token[...], (batch, padded(count) - count, dim), tokens.dtype)
        return jnp.concatenate([tokens, filling], axis=1)

    def rotation(self, height: int, width: int, caption: int, caption_lengths: Int[Array, " b"]) -> Rotation:
        """Returns the rotations of the image's tokens and, after them, of the caption's.

        A caption is at (1, 0, 0), (2, 0, 0), ...; the image follows at (length + 1, row, column), and what fills it up
        is at (0, 0, 0).

        Args:
            height, width: of the image in tokens.
            caption: tokens, with those that fill it up.
            caption_lengths: of each row, with those that fill up its own.
        """
        config, count = self.config, height * width
        positions = np.zeros((padded(count) + caption, 3), np.int32)
        positions[:count, 1:] = np.indices((height, width)).reshape(2, -1).T
        positions[-caption:, 0] = np.arange(1, caption + 1)
        is_image = (np.arange(len(positions)) < count)[:, None] & (np.arange(3) == 0)
        starts = (caption_lengths + 1)[:, None, None]
        tables = [
            neighbour_rotation(rope_angles(np.arange(end)[:, None], [channels], config.rope_theta).astype(np.float32))
            for end, channels in zip(config.axes_lens, config.axes_dims, strict=True)
        ]
        return at_positions(tables, jnp.where(is_image, starts, positions))


def to_patches(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b t values"]:
    """Returns the patches row by row, the values of each in the order row, column, channel."""
    b, h, w, c = x.shape
    patches = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return patches.reshape(b, -1, size * size * c)


def from_patches(patches: Float[Array, "b t values"], height: int, width: int, size: int) -> Float[Array, "b h w c"]:
    """Puts patches together: the inverse of `to_patches`.

    Args:
        height, width: in patches.
    """
    grid = patches.reshape(len(patches), height, width, size, size, -1).swapaxes(2, 3)
    return grid.reshape(len(patches), height * size, width * size, -1)
