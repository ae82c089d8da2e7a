"""FLUX.2's transformer (diffusers `models/transformers/transformer_flux2.py`), as klein has it.

Attribute names are the state-dict names. Without what FLUX.2 dev has besides: an embedding of the guidance scale, and
other images to read.
"""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Num

from jaxbooth.errors import UserError
from jaxbooth.models.flux2_blocks import (
    FinalNorm,
    Flux2SingleTransformerBlock,
    Flux2TransformerBlock,
    ModulationLayer,
    TimestepEmbedder,
)
from jaxbooth.models.flux2_config import Flux2Config
from jaxbooth.models.layers import Layers
from jaxbooth.models.remat import Remat, call
from jaxbooth.models.rope import Rotation, neighbour_rotation, rope_angles
from jaxbooth.params import Array


class Flux2Transformer2DModel(nnx.Module):
    """Predicts the velocity eps - x of a rectified flow from noisy latents, timesteps and text.

    Raises:
        UserError: the configuration is that of FLUX.2 dev, which embeds the guidance scale.
    """

    def __init__(self, config: Flux2Config, layers: Layers):
        if config.guidance_embeds:
            raise UserError(
                "transformer/config.json: guidance_embeds = true is FLUX.2 dev's, which is not supported; "
                "use FLUX.2 klein, whose guidance_embeds is false."
            )
        self.config = config
        self.time_guidance_embed = TimestepEmbedder(config, layers)
        self.double_stream_modulation_img = ModulationLayer(config, 2, layers)
        self.double_stream_modulation_txt = ModulationLayer(config, 2, layers)
        self.single_stream_modulation = ModulationLayer(config, 1, layers)
        self.x_embedder = layers.linear(config.in_channels, config.width, bias=False)
        self.context_embedder = layers.linear(config.joint_attention_dim, config.width, bias=False)
        blocks = [Flux2TransformerBlock(config, layers) for _ in range(config.num_layers)]
        self.transformer_blocks = nnx.List(blocks)
        single_blocks = [Flux2SingleTransformerBlock(config, layers) for _ in range(config.num_single_layers)]
        self.single_transformer_blocks = nnx.List(single_blocks)
        self.norm_out = FinalNorm(config, layers)
        self.proj_out = layers.linear(config.width, config.out_channels, bias=False)

    def __call__(
        self,
        sample: Float[Array, "b h w in_channels"],
        timesteps: Num[Array, " b"],
        prompt_embeds: Float[Array, "b s joint_attention_dim"],
        remat: Remat = "none",
    ) -> Float[Array, "b h w out_channels"]:
        """Runs the network.

        Args:
            sample: noisy latents in patches, as `AutoencoderKLFlux2` makes them.
            timesteps: 1000 s, where s is the share of noise; diffusers' class takes s, and its pipeline divides.
            prompt_embeds: of the text; all s of them are seen.
            remat: what the backward pass computes again (gradient checkpointing), see `jaxbooth.models.remat`.

        Returns:
            eps - x in float32.
        """
        block = functools.partial(call, remat=remat, is_attention=True)
        batch, height, width, channels = sample.shape
        length = prompt_embeds.shape[1]
        embedding = self.time_guidance_embed(timesteps.astype(jnp.float32))
        of_image = self.double_stream_modulation_img(embedding)
        of_text = self.double_stream_modulation_txt(embedding)
        (of_both,) = self.single_stream_modulation(embedding)
        rotation = self.rotation(height, width, length)

        image = self.x_embedder(jnp.asarray(sample).reshape(batch, height * width, channels))
        text = self.context_embedder(jnp.asarray(prompt_embeds))
        for layer in self.transformer_blocks:
            image, text = block(layer, image, text, rotation, of_image, of_text)
        tokens = jnp.concatenate([text, image], axis=1)
        for layer in self.single_transformer_blocks:
            tokens = block(layer, tokens, rotation, of_both)
        out = self.proj_out(self.norm_out(tokens[:, length:], embedding))
        return out.reshape(batch, height, width, -1).astype(jnp.float32)

    def rotation(self, height: int, width: int, length: int) -> Rotation:
        """Returns the rotations of the text's tokens and, after them, of the image's.

        Token l of the text is at (0, 0, 0, l), the image's at (0, row, column, 0).
        """
        positions = np.zeros((length + height * width, 4), np.int32)
        positions[:length, 3] = np.arange(length)
        positions[length:, 1:3] = np.indices((height, width)).reshape(2, -1).T
        return neighbour_rotation(rope_angles(positions, self.config.axes_dims_rope, self.config.rope_theta))
