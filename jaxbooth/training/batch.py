"""The batch of a step: a pure function of the key and the step, gathered from the latent cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key, UInt32

from jaxbooth.data.latents import BatchIndices, CachedImages, LatentCache, gather_latents
from jaxbooth.diffusion.loss import Batch, Role
from jaxbooth.diffusion.noise import offset_noise, perturb, sample_timesteps
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import AnyArray, Array
from jaxbooth.prng import root_key
from jaxbooth.training.layout import BatchLayout, example_keys, sample_indices
from jaxbooth.training.spec import TrainStepSpec

IMAGE_STREAM, NOISE_STREAM = 0, 1  # folded into the run's key: which images a step takes, and how they are noised
CAPTION_STREAM = 2  # which of its image's captions a row takes


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
        role=layout.role,
        mask=row_masks(images, rows, layout.role),
    )
    variant = choose_variants(cache, jax.random.fold_in(root, CAPTION_STREAM), step, layout.index, rows)
    return NoisedBatch(
        examples,
        input_noise=perturb(target_noise, perturbation, spec.loss.input_perturbation),
        caption=row_captions(cache, rows, variant, layout.role, dropout, spec.caption_dropout),
        time_ids=jnp.asarray(images.time_ids)[rows.image, rows.augmentation],
    )


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Samples standard normal values, an array of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def row_masks(images: CachedImages, rows: BatchIndices, role: Int[AnyArray, " b"]) -> Float[Array, "b h w 1"] | None:
    """Returns the masks of instance and class rows; rows that distil an instance's latents count everywhere."""
    if images.masks is None:
        return None
    masks = jnp.asarray(images.masks)[rows.image, rows.augmentation]
    is_masked = jnp.asarray(role) <= Role.CLASS
    return jnp.where(is_masked[:, None, None, None], masks, 1.0)


def choose_variants(
    cache: LatentCache, key: Key[Array, ""], step: Int[Array, ""], index: Int[AnyArray, " b"], rows: BatchIndices
) -> Int[Array, " b"]:
    """Chooses one of the captions of each row's image, all with equal chance; a pure function of (key, step, index).

    Args:
        step: of the run.
        index: seeds the rows, see `BatchLayout`.
    """
    if cache.caption.shape[1] == 1:
        return jnp.zeros_like(rows.image)
    counts = jnp.asarray(cache.caption_counts)[rows.image]
    choose = jax.vmap(lambda row_key, count: jax.random.randint(row_key, (), 0, count))
    return choose(example_keys(key, step, index), counts)


def row_captions(
    cache: LatentCache,
    rows: BatchIndices,
    variant: Int[Array, " b"],
    role: Int[AnyArray, " b"],
    keys: Key[Array, " b"],
    dropout: float,
) -> Int[Array, " b"]:
    """Returns each row's caption, a row of the cache's text: that of its image, or what its role puts there instead.

    Args:
        variant: which of its image's captions.
        dropout: share of instance and class rows that have the empty caption, the last of the cache's text.
    """
    role, empty = jnp.asarray(role), len(jax.tree.leaves(cache.text)[0]) - 1
    caption = jnp.asarray(cache.caption)[rows.image, variant]
    if dropout:
        is_dropped = jax.vmap(jax.random.uniform)(keys) < dropout
        caption = jnp.where(is_dropped, empty, caption)
    if cache.class_caption is not None:
        class_caption = jnp.asarray(cache.class_caption)[rows.image, variant]
        caption = jnp.where(role == Role.OUTPUT_PRESERVATION, class_caption, caption)
    return jnp.where(role == Role.BLANK_PROMPT, empty, caption)
