"""The batch of a step: a pure function of the key and the step, gathered from the latent cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key, UInt32

from jaxbooth.data.latents import LatentCache, gather_latents
from jaxbooth.diffusion.loss import Batch
from jaxbooth.diffusion.noise import offset_noise, perturb, sample_timesteps
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import AnyArray, Array
from jaxbooth.prng import root_key
from jaxbooth.training.layout import BatchLayout, example_keys, sample_indices
from jaxbooth.training.spec import TrainStepSpec

IMAGE_STREAM, NOISE_STREAM = 0, 1  # folded into the run's key: which images a step takes, and how they are noised


class BatchSource(NamedTuple):
    """Where a step takes its rows from.

    Attributes:
        skipped: how many of the run's steps so far took their rows from another cache; int32.
    """

    cache: LatentCache
    skipped: Int[AnyArray, ""]


class NoisedBatch(NamedTuple):
    """One micro-batch.

    Attributes:
        input_noise: the noise that the denoiser's input is made with; `examples.noise` unless it is perturbed.
        caption: row of the cache's text.
        time_ids: SDXL's sizes and crops, in pixels.
    """

    examples: Batch
    input_noise: Latents
    caption: Int[Array, " b"]
    time_ids: Float[Array, "b 6"]


def make_batch(
    spec: TrainStepSpec, source: BatchSource, key: UInt32[Array, "2"], step: Int[Array, ""], layout: BatchLayout
) -> NoisedBatch:
    """Makes one micro-batch: image, caption, posterior sample, noise and timestep of each row.

    Args:
        key: of the run, see `prng.key_data`.
        step: of the run.
        layout: of the micro-batch.
    """
    root, cache = root_key(key), source.cache
    images = cache.images
    image_key = jax.random.fold_in(root, IMAGE_STREAM)
    rows = sample_indices(
        spec.slices, image_key, step - source.skipped, layout, spec.counts, augmentations=images.mean.shape[1]
    )
    row_keys = example_keys(jax.random.fold_in(root, NOISE_STREAM), step, layout.index)
    purposes = jax.vmap(lambda row_key: jax.random.split(row_key, 6))(row_keys)
    posterior, noise, timestep, offset, perturbation, dropout = purposes.T
    schedule, shape = spec.base.schedule, images.mean.shape[2:]
    latents = gather_latents(images, rows, normal(posterior, shape), spec.base.vae_config)
    target_noise = offset_noise(normal(noise, shape), offset, spec.loss.noise_offset)
    examples = Batch(
        latents=latents,
        noise=target_noise,
        timesteps=sample_timesteps(timestep, schedule.num_train_timesteps, spec.timestep_sampling),
        weight=layout.weight * rows.weight,
        is_prior=layout.is_prior,
        mask=None if images.masks is None else jnp.asarray(images.masks)[rows.image, rows.augmentation],
    )
    return NoisedBatch(
        examples,
        input_noise=perturb(target_noise, perturbation, spec.loss.input_perturbation),
        caption=drop_captions(cache, jnp.asarray(cache.caption)[rows.image], dropout, spec.caption_dropout),
        time_ids=jnp.asarray(images.time_ids)[rows.image, rows.augmentation],
    )


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Samples standard normal values, an array of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def drop_captions(
    cache: LatentCache, caption: Int[Array, " b"], keys: Key[Array, " b"], dropout: float
) -> Int[Array, " b"]:
    """Replaces a share of the captions by the empty one, the last of the cache's text."""
    if not dropout:
        return caption
    is_dropped = jax.vmap(jax.random.uniform)(keys) < dropout
    return jnp.where(is_dropped, len(jax.tree.leaves(cache.text)[0]) - 1, caption)
