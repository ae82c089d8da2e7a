"""The denoising loss of images that are not trained on, at fixed timesteps and with fixed noise.

Every value is a function of the parameters, the image and constants. Neither the run's seed nor its timestep sampling,
weighting or noise options enter, so that values compare over steps, runs and methods.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings, select_prompts
from jaxbooth.diffusion.loss import Batch, LossSpec, Role, per_example_loss
from jaxbooth.diffusion.schedule import PredictionType
from jaxbooth.params import AnyArray, Array, Params, cast_matrices, precision_of
from jaxbooth.prng import key_data, root_key
from jaxbooth.sharding import AnyMesh, batch_sharding, mesh_context
from jaxbooth.training.batch import normal

SEED = 0  # of the noise, in every run
MAX_BINS = 4
TIMESTEPS_PER_BIN = 4
MAX_ROWS = 8  # that a device computes at once
LATENTS_AT_ONCE = 2**14  # positions of latents, over the rows of a device; images of 1024 pixels go one by one


class HeldOutImages(NamedTuple):
    """Images of one shape: all of them, or that of each row of a batch.

    Attributes:
        latents: scaled means of their posteriors.
        time_ids: SDXL's sizes and crops, in pixels.
        caption: row of the text.
        identity: three numbers that are folded into the key of its noise: the kind of image, the number of its subject
            or class, and its own.
    """

    latents: Float[AnyArray, "images h w c"]
    time_ids: Float[AnyArray, "images 6"]
    caption: Int[AnyArray, " images"]
    identity: Int[AnyArray, "images 3"]


@dataclass(frozen=True)
class HeldOutSpec:
    """What the program is compiled for; all of it static.

    Attributes:
        base: with the schedule that images of the shape are trained on.
        space: of the squared error.
    """

    base: BaseModel
    mesh: AnyMesh
    space: PredictionType


def bin_edges(total: int) -> np.ndarray:
    """Returns the (bins + 1,) first timesteps of equal parts of a schedule of `total` steps, and its end."""
    return np.linspace(0, total, min(MAX_BINS, total) + 1).astype(np.int32)


def bin_timesteps(total: int) -> np.ndarray:
    """Returns the fixed timesteps of each bin, (bins, TIMESTEPS_PER_BIN) int32: the middles of its equal parts."""
    edges = bin_edges(total)
    places = (np.arange(TIMESTEPS_PER_BIN) + 0.5) / TIMESTEPS_PER_BIN
    return np.floor(edges[:-1, None] + places * np.diff(edges)[:, None]).astype(np.int32)


def device_rows(height: int, width: int) -> int:
    """Returns how many rows a device computes at once, given the latents' size.

    It does not depend on the mesh: the last bit of a product may depend on how many rows it has.
    """
    return int(np.clip(LATENTS_AT_ONCE // (height * width), 1, MAX_ROWS))


def fixed_noise(images: HeldOutImages, timesteps: Int[Array, " images"]) -> Float[Array, "images h w c"]:
    """Returns each image's noise at a timestep: a function of SEED, the image's identity and the timestep."""

    def noise(identity: Array, timestep: Array) -> Array:
        key = root_key(key_data(SEED))
        for number in (*identity, timestep):
            key = jax.random.fold_in(key, number)
        return normal(key[None], images.latents.shape[1:])[0]

    return jax.vmap(noise)(jnp.asarray(images.identity), timesteps)


def held_out_losses(
    spec: HeldOutSpec, params: Params, text: TextEmbeddings, images: HeldOutImages, timesteps: Int[Array, " images"]
) -> Float[Array, " images"]:
    """Returns the mean squared error of the prediction for each image at its timestep; pure, for use under `jax.jit`.

    Args:
        params: of the denoiser.
        text: of all captions.
        images: a batch, as many on each device as `device_rows` says; an image may occur at several timesteps.
    """
    base, schedule = spec.base, spec.base.schedule
    latents, count = jnp.asarray(images.latents), len(timesteps)
    weight, role = jnp.ones(count, jnp.float32), jnp.full(count, Role.INSTANCE, jnp.int32)
    batch = Batch(latents, fixed_noise(images, timesteps), timesteps, weight, role)
    captions = select_prompts(text, jnp.asarray(images.caption))
    batch, captions = jax.lax.with_sharding_constraint((batch, captions), batch_sharding(spec.mesh))
    noisy = schedule.add_noise(latents, batch.noise, timesteps)
    conditions = base.denoiser_conditioning(captions, jnp.asarray(images.time_ids))
    with precision_of(base.dtype), mesh_context(spec.mesh):
        denoiser = base.denoiser.bind(cast_matrices(params, base.dtype))
        output = denoiser(noisy, schedule.network_timesteps(timesteps), *conditions)
    return per_example_loss(output, noisy, batch, schedule, LossSpec(spec.space)).inside
