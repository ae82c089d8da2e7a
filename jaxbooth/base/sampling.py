"""Generates images: prompts and seeds in, pixels out. Validation, class images and `jaxbooth sample` all use it."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.model import BaseModel, check_resolution, encode_prompts
from jaxbooth.base.text_encoder import TextEmbeddings, select_prompts
from jaxbooth.base.vae import decode_images
from jaxbooth.config.prior import PriorConfig
from jaxbooth.config.schema import ValidationConfig
from jaxbooth.console.progress import progress
from jaxbooth.diffusion.samplers import SAMPLERS, Denoiser, SamplerName, make_timestep_grid
from jaxbooth.diffusion.schedule import Latents, convert
from jaxbooth.diffusion.timestep_grid import SamplerStep, TimestepGrid
from jaxbooth.distributed.arrays import put
from jaxbooth.params import Params, cast_matrices, precision_of
from jaxbooth.prng import key_data, root_key
from jaxbooth.sharding import batch_sharding, batch_shards, mesh_context, replicated

BATCH_SIZE = 8  # images that a command generates at once, at most


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled.

    Attributes:
        guidance_scale: of classifier-free guidance; 1 means none, and costs half.
        resolution: side in pixels, unless a height or a width is given.
    """

    sampler: SamplerName
    steps: int
    guidance_scale: float
    resolution: int
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height or self.resolution, self.width or self.resolution

    def metadata(self) -> dict[str, Any]:
        """Returns what a PNG's text chunks say of it."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
        }


def configured_sampling(section: PriorConfig | ValidationConfig, resolution: int) -> SamplingConfig:
    """Returns how a section of a run's configuration wants images to be sampled.

    Args:
        section: with the base model's defaults filled in.
    """
    assert section.sampler is not None
    assert section.guidance_scale is not None
    return SamplingConfig(section.sampler, section.steps, section.guidance_scale, resolution)


class SamplingInputs(NamedTuple):
    """What a compiled sampling program takes as data, so that it serves every seed, guidance but 1 and step count.

    Attributes:
        root: (2,) uint32, the seed's key; see `jaxbooth.prng.key_data`.
        guidance_scale: scalar float32.
        grid: of the sampler.
    """

    root: Array
    guidance_scale: Array
    grid: TimestepGrid


def image_keys(root: Array, indices: Array) -> Array:
    """Returns one PRNG key for each image: a function of (seed, index) alone, not of batches or devices.

    Args:
        root: the seed's key.
        indices: (images,) uint32.
    """
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def guided_denoiser(
    base: BaseModel,
    params: Params,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    size: tuple[int, int],
    guidance_scale: Array | None,
) -> Denoiser:
    """Returns z_t -> x with classifier-free guidance, eps_u + g (eps_c - eps_u) (Ho and Salimans 2022, equation 6).

    Args:
        params: of the denoiser.
        text: of each image; `negative` has the same shapes.
        size: height and width in pixels.
        guidance_scale: scalar g, or None to run the conditional half alone.
    """
    model = base.denoiser.bind(cast_matrices(params, base.dtype))
    images = len(text.prompt_embeds)
    # An image's two halves stay neighbours, so that a batch split over devices stays split where it is.
    pairs = jax.tree.map(lambda u, c: jnp.stack([u, c], axis=1).reshape(2 * images, *c.shape[1:]), negative, text)
    inputs = text if guidance_scale is None else pairs
    uncropped = jnp.array([*size, 0, 0, *size], jnp.float32)
    time_ids = jnp.broadcast_to(uncropped, (len(inputs.prompt_embeds), 6))
    conditions = base.denoiser_conditioning(inputs, time_ids)

    def denoise(z: Latents, step: SamplerStep) -> Latents:
        if guidance_scale is None:
            output = model(z, jnp.full(images, step.timestep), *conditions)
        else:
            both = model(jnp.repeat(z, 2, axis=0), jnp.full(2 * images, step.timestep), *conditions)
            unconditional, conditional = both[::2], both[1::2]
            output = unconditional + guidance_scale * (conditional - unconditional)
        return convert(output, base.schedule.prediction_type, "x0", z, step.alpha, step.sigma)

    return denoise


def sample_latents(
    base: BaseModel,
    config: SamplingConfig,
    params: Params,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    keys: Array,
    inputs: SamplingInputs,
) -> Latents:
    """Runs the sampler from each image's own noise; (b, h, w, c) scaled latents. Pure, for use under `jax.jit`.

    Args:
        params: of the denoiser.
        keys: (b,) of the images.
    """
    shape = base.latent_shape(*config.size)

    def noise(index: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index + 1), shape))(keys)

    guidance_scale = None if config.guidance_scale == 1 else inputs.guidance_scale
    denoise = guided_denoiser(base, params, text, negative, config.size, guidance_scale)
    start = inputs.grid.init_noise_sigma * noise(jnp.array(-1))
    return SAMPLERS[config.sampler].run(denoise, start, inputs.grid, noise, base.schedule)


class ImageSampler:
    """Generates images of one configuration; compiled once, whatever the prompts, seeds, steps and weights.

    Args:
        batch_size: images generated at once, rounded up to fill the mesh.
        quiet: show no progress bar, because the caller has one.
        encoded: embeddings of all prompts that will be asked for, where the text encoder is not among the parameters.

    Attributes:
        program: the jitted (params of denoiser and VAE, text, prompt of each image, indices, inputs) -> pixels.

    Raises:
        UserError: the model's downsampling does not divide the height or the width.
    """

    def __init__(
        self,
        base: BaseModel,
        mesh: Mesh,
        config: SamplingConfig,
        batch_size: int,
        quiet: bool = False,
        encoded: EncodedPrompts | None = None,
    ):
        for side in config.size:
            check_resolution(base, side, "resolution")
        self.base = base
        self.mesh = mesh
        self.config = config
        self.quiet = quiet
        self.encoded = encoded
        self.batch_size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
        self.program = jax.jit(self._trace, out_shardings=replicated(mesh))
        self._encode = jax.jit(lambda params, ids: encode_prompts(base, mesh, params, ids))

    def with_encoded(self, encoded: EncodedPrompts) -> "ImageSampler":
        """Returns the same sampler, with its compiled programs, of other prompts."""
        sampler = copy(self)
        sampler.encoded = encoded
        return sampler

    def inputs(self, seed: int) -> SamplingInputs:
        """Returns what the configuration and a seed give the program, on the host."""
        guidance_scale: Any = np.array(self.config.guidance_scale, np.float32)
        root: Any = key_data(seed)
        image_tokens = self.base.image_tokens(*self.config.size)
        mu_law = self.base.family.sampling.mu_law
        grid = make_timestep_grid(self.base.schedule, self.config.sampler, self.config.steps, image_tokens, mu_law)
        return SamplingInputs(root, guidance_scale, grid)

    def _trace(
        self,
        params: dict[str, Params],
        text: TextEmbeddings,
        prompt_indices: Array,
        indices: Array,
        inputs: SamplingInputs,
    ) -> Array:
        positive = select_prompts(text, prompt_indices)
        negative = select_prompts(text, jnp.zeros_like(prompt_indices))
        keys = image_keys(root_key(inputs.root), indices)
        with mesh_context(self.mesh):
            with precision_of(self.base.dtype):
                latents = sample_latents(
                    self.base, self.config, params[self.base.denoiser_name], positive, negative, keys, inputs
                )
            return decode_images(self.base, params["vae"], latents, batch_shards(self.mesh))

    def generate(
        self,
        params: dict[str, Params],
        prompts: Sequence[str],
        seed: int,
        indices: Sequence[int],
        encoded_prompts: int = 1,
    ) -> np.ndarray:
        """Generates one image of each prompt.

        Args:
            params: of all components.
            indices: number of each image; with `seed` it decides the image's noise.
            encoded_prompts: distinct prompts to encode, at least; as many as another call has need no other program.

        Returns:
            (len(prompts), H, W, 3) uint8 on the host.
        """
        batches = []
        with nullcontext() if self.quiet else progress("sample", len(prompts), transient=True) as bar:
            for batch in self.batches(params, prompts, seed, indices, encoded_prompts):
                batches.append(batch)
                if bar:
                    bar.advance(len(batch))
        return np.concatenate(batches)

    def encode(self, params: dict[str, Params], prompts: Sequence[str]) -> TextEmbeddings:
        """Returns the embeddings of prompts."""
        if self.encoded:
            return self.encoded.select(prompts)
        encoders = {name: params[name] for name in self.base.text_encoder_names}
        return self._encode(encoders, self.base.text.tokenize(prompts))

    def batches(
        self,
        params: dict[str, Params],
        prompts: Sequence[str],
        seed: int,
        indices: Sequence[int],
        encoded_prompts: int = 1,
    ) -> Iterator[np.ndarray]:
        """Yields the images of `generate` a batch at a time, each (at most batch_size, H, W, 3) uint8."""
        distinct = list(dict.fromkeys([self.config.negative_prompt, *prompts]))
        padding = distinct[:1] * (padded_count(max(len(distinct), encoded_prompts)) - len(distinct))
        text = self.encode(params, distinct + padding)
        prompt_indices = np.array([distinct.index(prompt) for prompt in prompts], np.int32)
        image_indices = np.array(indices, np.uint32)
        inputs = put(self.inputs(seed), replicated(self.mesh))
        used = {name: params[name] for name in (self.base.denoiser_name, "vae")}
        for start in range(0, len(prompts), self.batch_size):
            rows = np.arange(start, start + self.batch_size)
            rows = np.minimum(rows, len(prompts) - 1)  # the last batch is padded with its last image
            batch = put((prompt_indices[rows], image_indices[rows]), batch_sharding(self.mesh))
            pixels = self.program(used, text, *batch, inputs)
            yield jax.device_get(pixels)[: len(prompts) - start]


def padded_count(prompts: int) -> int:
    """Returns the next power of two from 2 on: how many prompts are encoded, so that few counts are compiled."""
    return max(2, 1 << (prompts - 1).bit_length())
