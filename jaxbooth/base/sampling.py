"""Drawing pictures: prompts and seeds in, pixels out.

Validation, class pictures and `jaxbooth sample` all come here.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.config.limits import MAX_ENLARGEMENT
from jaxbooth.console.progress import progress
from jaxbooth.diffusion.samplers import SAMPLERS, Denoiser, SamplerName, SamplerStep, TimestepGrid, make_timestep_grid
from jaxbooth.diffusion.schedule import convert
from jaxbooth.errors import UserError
from jaxbooth.params import Params, cast_matrices, pixel_precision, precision_of
from jaxbooth.prng import key_data, root_key
from jaxbooth.sharding import batch_sharding, batch_shards, mesh_context, replicated
from jaxbooth.transfer import put

BATCH_SIZE = 8  # pictures that a command draws at once, at most


@dataclass(frozen=True)
class SamplingConfig:
    """How a picture is drawn. Guidance 1 means none, and costs half. Height and width default to the resolution."""

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
        """What a PNG's text chunk says about it."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
        }


class SamplingInputs(NamedTuple):
    """What a compiled program draws with, and takes as data: any seed, guidance (but 1) and number of steps.

    Attributes:
        root: (2,) uint32, the data of the seed's key.
        guidance_scale: scalar float32.
        grid: of the sampler.
    """

    root: Array
    guidance_scale: Array
    grid: TimestepGrid


def check_resolution(base: BaseModel, resolution: int, flag: str) -> None:
    """Refuses a side that the model's downsampling does not divide, or that is far beyond what it was trained at.

    Raises:
        UserError: the message names a side that would do.
    """
    multiple, largest = base.resolution_multiple, MAX_ENLARGEMENT * base.native_resolution
    if resolution > largest:
        raise UserError(
            f"{flag} {resolution} is far beyond this model's {base.native_resolution} px; {largest} is the most."
        )
    if resolution % multiple:
        nearest = max(multiple, round(resolution / multiple) * multiple)
        raise UserError(f"{flag} {resolution} is not a multiple of {multiple}, which this model needs; try {nearest}.")


def image_keys(root: Array, indices: Array) -> Array:
    """Returns one PRNG key for each picture: a function of (seed, index) alone, not of batches or devices.

    Args:
        root: the seed's key.
        indices: (pictures,) uint32.
    """
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def guided_denoiser(
    base: BaseModel,
    unet: Params,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    size: tuple[int, int],
    guidance: Array | None,
) -> Denoiser:
    """Returns z_t -> x with classifier-free guidance, eps_u + g (eps_c - eps_u) (Ho and Salimans 2022, equation 6).

    Args:
        text: of each row; `negative` has the same shapes.
        size: height and width in pixels.
        guidance: scalar g, or None to run the conditional half alone.
    """
    model = base.unet.bind(cast_matrices(unet, base.dtype))
    rows = len(text.prompt_embeds)
    # A row's two halves stay neighbours, so that a batch split over devices stays split where it is.
    pairs = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1).reshape(2 * rows, *a.shape[1:]), negative, text)
    shown = text if guidance is None else pairs
    whole_picture = jnp.array([*size, 0, 0, *size], jnp.float32)
    context, added = base.denoiser_conditioning(shown, jnp.broadcast_to(whole_picture, (len(shown.prompt_embeds), 6)))

    def denoise(z: Array, point: SamplerStep) -> Array:
        if guidance is None:
            output = model(z, jnp.full(rows, point.timestep), context, added)
        else:
            both = model(jnp.repeat(z, 2, axis=0), jnp.full(2 * rows, point.timestep), context, added)
            free, conditional = both[::2], both[1::2]
            output = free + guidance * (conditional - free)
        return convert(output, base.schedule.prediction_type, "x0", z, point.alpha, point.sigma)

    return denoise


def sample_latents(
    base: BaseModel,
    settings: SamplingConfig,
    unet: Params,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    keys: Array,
    inputs: SamplingInputs,
) -> Array:
    """Runs the sampler from each row's own noise; (b, h, w, c) scaled latents. Pure, for use under `jax.jit`."""
    shape = base.latent_shape(*settings.size)

    def noise(index: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index + 1), shape))(keys)

    scale = None if settings.guidance_scale == 1 else inputs.guidance_scale
    denoise = guided_denoiser(base, unet, text, negative, settings.size, scale)
    first = inputs.grid.init_noise_sigma * noise(jnp.array(-1))
    return SAMPLERS[settings.sampler].run(denoise, first, inputs.grid, noise, base.schedule)


def decode_pixels(base: BaseModel, vae: Params, latents: Array, shards: int) -> Array:
    """Maps scaled latents to (b, H, W, 3) uint8 pixels.

    Each of the `shards` parts of the batch is decoded one picture at a time, to bound the decoder's memory; the parts
    stay where they are.
    """
    model = base.vae.bind(vae)
    parts = (latents / base.vae_config.scaling_factor).reshape(shards, -1, *latents.shape[1:]).swapaxes(0, 1)
    with pixel_precision():
        pixels = jax.lax.map(model.decode, parts).swapaxes(0, 1)
    pixels = pixels.reshape(-1, *pixels.shape[2:])
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


class ImageSampler:
    """Draws pictures with fixed settings; compiled once, whatever the prompts, seeds, steps and weights.

    Args:
        batch: pictures drawn at once, rounded up to fill the mesh.
        quiet: show no progress bar, because the caller has one.

    Attributes:
        program: the jitted (params of unet and vae, text, captions, indices, inputs) -> pixels.
    """

    def __init__(self, base: BaseModel, mesh: Mesh, settings: SamplingConfig, batch: int, quiet: bool = False):
        for side in settings.size:
            check_resolution(base, side, "resolution")
        self.base, self.mesh, self.settings, self.quiet = base, mesh, settings, quiet
        self.batch = -(-batch // batch_shards(mesh)) * batch_shards(mesh)
        self._encode = jax.jit(lambda params, ids: encode_prompts(base, mesh, params, ids))
        self.program = jax.jit(self._trace, out_shardings=replicated(mesh))

    def inputs(self, seed: int) -> SamplingInputs:
        """Returns what the settings and a seed give the program, on the host."""
        chosen = self.settings
        host: Any = (key_data(seed), np.array(chosen.guidance_scale, np.float32))
        return SamplingInputs(*host, make_timestep_grid(self.base.schedule, chosen.sampler, chosen.steps))

    def _trace(
        self, params: dict[str, Params], text: TextEmbeddings, captions: Array, indices: Array, inputs: SamplingInputs
    ) -> Array:
        shown, negative = select_prompts(text, captions), select_prompts(text, jnp.zeros_like(captions))
        keys = image_keys(root_key(inputs.root), indices)
        with mesh_context(self.mesh):
            with precision_of(self.base.dtype):
                latents = sample_latents(self.base, self.settings, params["unet"], shown, negative, keys, inputs)
            return decode_pixels(self.base, params["vae"], latents, batch_shards(self.mesh))

    def generate(
        self, params: dict[str, Params], prompts: Sequence[str], seed: int, indices: Sequence[int]
    ) -> np.ndarray:
        """Draws one picture for each prompt.

        Args:
            params: of all components.
            indices: number of each picture; with `seed` it decides the picture's noise.

        Returns:
            (len(prompts), H, W, 3) uint8 on the host.
        """
        with nullcontext() if self.quiet else progress("sample", len(prompts), transient=True) as bar:
            pictures = []
            for drawn in self.batches(params, prompts, seed, indices):
                pictures.append(drawn)
                if bar:
                    bar.advance(len(drawn))
        return np.concatenate(pictures)

    def batches(
        self, params: dict[str, Params], prompts: Sequence[str], seed: int, indices: Sequence[int]
    ) -> Iterator[np.ndarray]:
        """Yields the pictures of `generate` as they are drawn, a batch at a time."""
        distinct = list(dict.fromkeys([self.settings.negative_prompt, *prompts]))
        filled = distinct + distinct[:1] * (padded_count(len(distinct)) - len(distinct))
        encoders = {name: params[name] for name in self.base.text_encoder_names}
        text = self._encode(encoders, self.base.text.tokenize(filled))
        captions = np.array([distinct.index(prompt) for prompt in prompts], np.int32)
        numbers, inputs = np.array(indices, np.uint32), put(self.inputs(seed), replicated(self.mesh))
        used = {name: params[name] for name in ("unet", "vae")}
        for start in range(0, len(prompts), self.batch):
            rows = np.minimum(np.arange(start, start + self.batch), len(prompts) - 1)  # the last batch is padded
            batch = put((captions[rows], numbers[rows]), batch_sharding(self.mesh))
            drawn = self.program(used, text, *batch, inputs)
            yield jax.device_get(drawn)[: len(prompts) - start]


def padded_count(prompts: int) -> int:
    """Returns the next power of two from 2 on: how many prompts are encoded, so that few counts are compiled."""
    return max(2, 1 << (prompts - 1).bit_length())


def encode_prompts(base: BaseModel, mesh: Mesh, params: dict[str, Params], ids: TokenIds) -> TextEmbeddings:
    """Runs the text encoders once, ahead of everything that uses the features; float32. Pure."""
    with precision_of(base.dtype), mesh_context(mesh):
        return base.text.encode(params, ids)


def select_prompts(text: TextEmbeddings, rows: Array) -> TextEmbeddings:
    """Returns the text of (rows,) prompts."""
    return jax.tree.map(lambda x: x[rows], text)
