"""The autoencoder of FLUX.2 (diffusers `models/autoencoders/autoencoder_kl_flux2.py` and `pipelines/flux2`)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.config import Flux2VAEConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.vae import AutoencoderKL, Moments
from jaxbooth.params import Array


class BatchNormStatistics(nnx.Module):
    """What a torch `BatchNorm2d` without weights has learned: mean and variance of every channel."""

    def __init__(self, channels: int, eps: float):
        self.eps = eps
        self.running_mean = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.running_var = nnx.Param(jnp.ones(channels, jnp.float32))

    def std(self) -> Float[Array, " c"]:
        """Returns the standard deviation of every channel, as the pipeline takes it."""
        return jnp.sqrt(self.running_var[...] + self.eps)

    def normalise(self, moments: Moments) -> Moments:
        """Returns the moments of normalised latents."""
        mean = (moments.mean - self.running_mean[...]) / self.std()
        return Moments(mean, moments.logvar - jnp.log(self.running_var[...] + self.eps))

    def denormalise(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns latents as they were before they were normalised."""
        return latents * self.std() + self.running_mean[...]


def patchify(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h_patches w_patches c_patch"]:
    """Puts the latents of each patch of `size` x `size` side by side as channels: of one channel by row, then column.

    Reference: `Flux2KleinPipeline._patchify_latents`.
    """
    b, h, w, c = x.shape
    patches = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(b, h // size, w // size, c * size * size)


def unpatchify(x: Float[Array, "b h_patches w_patches c_patch"], size: int) -> Float[Array, "b h w c"]:
    """The inverse of `patchify`."""
    b, h, w, c = x.shape
    patches = x.reshape(b, h, w, c // size**2, size, size).transpose(0, 1, 4, 2, 5, 3)
    return patches.reshape(b, h * size, w * size, c // size**2)


class AutoencoderKLFlux2(AutoencoderKL):
    """The encoder and decoder of Stable Diffusion around latents in patches, normalised channel by channel.

    diffusers leaves patches and statistics to the pipeline; here they belong to `encode` and `decode`, so that whoever
    calls them sees what the denoiser sees: `config.latent_channels` channels (128), `config.factor` pixels apart (16).
    """

    def __init__(self, config: Flux2VAEConfig, layers: Layers):
        super().__init__(config, layers)
        self.patch_size = config.patch_size
        self.bn = BatchNormStatistics(config.latent_channels, config.batch_norm_eps)

    def encode(self, pixels: Float[Array, "b height width 3"]) -> Moments:
        """Maps pixels in [-1, 1] to moments of shape (b, height/factor, width/factor, latent_channels)."""
        mean, logvar = super().encode(pixels)
        return self.bn.normalise(Moments(patchify(mean, self.patch_size), patchify(logvar, self.patch_size)))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]:
        """Maps normalised latents to pixels, about [-1, 1]; height is h*factor, width w*factor."""
        return super().decode(unpatchify(self.bn.denormalise(jnp.asarray(latents)), self.patch_size))
