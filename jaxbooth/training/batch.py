"""The batch of a step: a pure function of the key and the step, gathered from the latent cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key, UInt32

from jaxbooth.data.latents import (
    BatchIndices,
    CaptionTables,
    LatentCache,
    RowImages,
    gather_images,
    posterior_latents,
)
from jaxbooth.diffusion.loss import Batch, Role
from jaxbooth.diffusion.noise import offset_noise, perturb, sample_timesteps
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import AnyArray, Array
from jaxbooth.prng import root_key
from jaxbooth.training.layout import BatchLayout, RowCounts, SubjectSlices, example_keys, sample_indices
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


class RowChoice(NamedTuple):
    """What each row of a micro-batch takes from the cache.

    Attributes:
        caption: row of the cache's text.
    """

    images: BatchIndices
    caption: Int[Array, " b"]


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
    cache = source.cache
    augmentations = cache.images.mean.shape[1]
    choice = choose_rows(
        spec.slices,
        spec.counts,
        spec.caption_dropout,
        cache.captions,
        augmentations,
        key,
        step,
        step - source.skipped,
        layout,
    )
    images = gather_images(cache.images, choice.images)
    return noise_rows(spec, images, choice.images.weight, choice.caption, key, step, layout)


def choose_rows(
    slices: SubjectSlices,
    counts: RowCounts,
    dropout: float,
    captions: CaptionTables,
    augmentations: int,
    key: UInt32[Array, "2"],
    step: Int[Array, ""],
    visit: Int[Array, ""],
    layout: BatchLayout,
) -> RowChoice:
    """Chooses image, augmentation and caption of each row of a micro-batch; see `make_batch`.

    Args:
        dropout: share of instance and class rows that have the empty caption.
        augmentations: of each image in the cache.
        visit: how many of the run's steps before this one took their rows from this cache.
    """
    root = root_key(key)
    image_key = jax.random.fold_in(root, IMAGE_STREAM)
    rows = sample_indices(slices, image_key, visit, layout, counts, augmentations)
    variant = choose_variants(captions, jax.random.fold_in(root, CAPTION_STREAM), step, layout.index, rows)
    dropout_keys = row_purposes(key, step, layout)[-1]
    return RowChoice(rows, row_captions(captions, rows, variant, layout.role, dropout_keys, dropout))


def noise_rows(
    spec: TrainStepSpec,
    images: RowImages,
    weight: Float[Array, " b"],
    caption: Int[Array, " b"],
    key: UInt32[Array, "2"],
    step: Int[Array, ""],
    layout: BatchLayout,
) -> NoisedBatch:
    """Samples the rows' latents, and the noise and the timestep of each; see `make_batch`.

    Args:
        weight: of each row's subject.
        caption: row of the cache's text.
    """
    posterior, noise, timestep, offset, perturbation, _ = row_purposes(key, step, layout)
    schedule, shape = spec.base.schedule, images.mean.shape[1:]
    latents = posterior_latents(images, normal(posterior, shape), spec.base.vae_config)
    target_noise = offset_noise(normal(noise, shape), offset, spec.loss.noise_offset)
    examples = Batch(
        latents=latents,
        noise=target_noise,
        timesteps=sample_timesteps(timestep, schedule.num_train_timesteps, spec.timestep_sampling),
        weight=layout.weight * weight,
        role=layout.role,
        mask=row_masks(images, layout.role),
    )
    return NoisedBatch(
        examples,
        input_noise=perturb(target_noise, perturbation, spec.loss.input_perturbation),
        caption=caption,
        time_ids=jnp.asarray(images.time_ids),
    )


def row_purposes(key: UInt32[Array, "2"], step: Int[Array, ""], layout: BatchLayout) -> Key[Array, "6 b"]:
    """Returns the keys of each row for the posterior sample, noise, timestep, offset, perturbation and dropout."""
    row_keys = example_keys(jax.random.fold_in(root_key(key), NOISE_STREAM), step, layout.index)
    return jax.vmap(lambda row_key: jax.random.split(row_key, 6))(row_keys).T


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Samples standard normal values, an array of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def row_masks(images: RowImages, role: Int[AnyArray, " b"]) -> Float[Array, "b h w 1"] | None:
    """Returns the masks of instance and class rows; rows that distil an instance's latents count everywhere."""
    if images.masks is None:
        return None
    is_masked = jnp.asarray(role) <= Role.CLASS
    return jnp.where(is_masked[:, None, None, None], images.masks, 1.0)


def choose_variants(
    captions: CaptionTables, key: Key[Array, ""], step: Int[Array, ""], index: Int[AnyArray, " b"], rows: BatchIndices
) -> Int[Array, " b"]:
    """Chooses one of the captions of each row's image, all with equal chance; a pure function of (key, step, index).

    Args:
        step: of the run.
        index: seeds the rows, see `BatchLayout`.
    """
    if captions.caption.shape[1] == 1:
        return jnp.zeros_like(rows.image)
    counts = jnp.asarray(captions.counts)[rows.image]
    choose = jax.vmap(lambda row_key, count: jax.random.randint(row_key, (), 0, count))
    return choose(example_keys(key, step, index), counts)


def row_captions(
    captions: CaptionTables,
    rows: BatchIndices,
    variant: Int[Array, " b"],
    role: Int[AnyArray, " b"],
    keys: Key[Array, " b"],
    dropout: float,
) -> Int[Array, " b"]:
    """Returns each row's caption, a row of the cache's text: that of its image, or what its role puts there instead.

    Args:
        variant: which of its image's captions.
        dropout: share of instance and class rows that have the empty caption.
    """
    role, empty = jnp.asarray(role), captions.empty
    caption = jnp.asarray(captions.caption)[rows.image, variant]
    if dropout:
        is_dropped = jax.vmap(jax.random.uniform)(keys) < dropout
        caption = jnp.where(is_dropped, empty, caption)
    if captions.class_caption is not None:
        class_caption = jnp.asarray(captions.class_caption)[rows.image, variant]
        caption = jnp.where(role == Role.OUTPUT_PRESERVATION, class_caption, caption)
    return jnp.where(role == Role.BLANK_PROMPT, empty, caption)
