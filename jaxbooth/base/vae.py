"""The VAE at work: images to latent moments, and latents to images, one image of every device at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.distributed.arrays import put
from jaxbooth.models.vae import Moments, unscale_latents
from jaxbooth.params import AnyArray, Params, full_precision, pixel_precision
from jaxbooth.sharding import batch_sharding, batch_shards, mesh_context, replicated


class ImageEncoder:
    """The VAE's encoder, in float32. Every part of the mesh that has images of its own encodes one at a time.

    Args:
        params: of the VAE.

    Attributes:
        batch_size: images that are encoded at once.
    """

    def __init__(self, base: BaseModel, params: Params, mesh: Mesh):
        self.params = params
        self.mesh = mesh
        self.batch_size = batch_shards(mesh)

        def encode(params: Params, images: Array) -> Moments:
            model = base.vae.bind(params)
            by_augmentation = images.swapaxes(0, 1)
            with full_precision(), mesh_context(mesh):  # one augmentation at a time bounds the encoder's memory
                moments = jax.lax.map(lambda pixels: model.encode(pixels / 127.5 - 1.0), by_augmentation)
            return jax.tree.map(lambda part: part.swapaxes(0, 1), moments)

        self._encode = jax.jit(encode, out_shardings=replicated(mesh))

    def __call__(self, images: np.ndarray) -> Moments:
        """Maps the augmentations of up to `batch_size` images, (b, a, h, w, 3) uint8, to (b, a, ...) host moments."""
        count = len(images)
        padded = np.resize(images, (self.batch_size, *images.shape[1:])).astype(np.float32)
        moments = self._encode(self.params, put(padded, batch_sharding(self.mesh)))
        return jax.tree.map(lambda part: part[:count], jax.device_get(moments))


def decode_images(base: BaseModel, params: Params, latents: AnyArray, shards: int) -> Array:
    """Maps (b, h, w, c) scaled latents to (b, H, W, 3) uint8 pixels.

    Each of the `shards` parts of the batch is decoded one image at a time, to bound the decoder's memory; the parts
    stay where they are.

    Args:
        params: of the VAE.
    """
    model = base.vae.bind(params)
    unscaled = unscale_latents(base.vae_config, jnp.asarray(latents))
    parts = unscaled.reshape(shards, -1, *latents.shape[1:]).swapaxes(0, 1)
    with pixel_precision():
        pixels = jax.lax.map(model.decode, parts).swapaxes(0, 1)
    pixels = pixels.reshape(-1, *pixels.shape[2:])
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
