"""The layout of a step's batch: which role each row has, and which cached image it takes. A row is one example.

Every random choice of a row comes from fold_in(fold_in(key, step), row), so neither the number of devices nor gradient
accumulation nor the length of a dispatch changes what is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from jaxbooth.data.latents import BatchIndices
from jaxbooth.params import AnyArray, Array


class RowCounts(NamedTuple):
    """How many rows of each kind a whole step has."""

    instance: int
    prior: int


class BatchLayout(NamedTuple):
    """The fixed roles of a step's rows: those of all micro-batches, or of one.

    Attributes:
        index: 0 .. n-1 for instance rows, n .. n+m-1 for prior rows; it seeds the row.
        is_prior: whether it is a prior row.
        weight: 1/n, lambda/m, or 0 for padding. Summed over all micro-batches, the rows make the objective.
    """

    index: Int[AnyArray, "*micro_batches rows"]
    is_prior: Bool[AnyArray, "*micro_batches rows"]
    weight: Float[AnyArray, "*micro_batches rows"]


def batch_layout(counts: RowCounts, prior_weight: float, micro_batches: int, shards: int) -> BatchLayout:
    """Assigns rows to micro-batches and to the `shards` of each: consecutive rows, as `batch_sharding` splits them.

    Instance rows go round the shards first, then prior rows: no shard has more than one row more of a kind than
    another, so that each has both kinds wherever there are enough. Padding fills the shards up to one size; it repeats
    row 0 and weighs nothing.
    """
    assigned = []
    for part in range(micro_batches):
        instance = np.arange(part, counts.instance, micro_batches)
        prior = np.arange(counts.instance + part, counts.instance + counts.prior, micro_batches)
        assigned.append(np.concatenate([instance, prior]))
    width = -(-max(map(len, assigned)) // shards)
    index = np.full((micro_batches, shards, width), -1)
    for part, indices in enumerate(assigned):
        for shard in range(shards):
            shard_indices = indices[shard::shards]
            index[part, shard, : len(shard_indices)] = shard_indices
    index = index.reshape(micro_batches, -1)
    is_prior = index >= counts.instance
    weight = np.where(is_prior, prior_weight / max(counts.prior, 1), 1 / counts.instance) * (index >= 0)
    return BatchLayout(np.maximum(index, 0).astype(np.int32), is_prior, weight.astype(np.float32))


def unpadded_batch_size(instance: int, prior: int | None, micro_batches: int, shards: int) -> int:
    """Returns the least number of instance rows, at least `instance`, with which no row is padding.

    Args:
        prior: prior rows, or None for as many as instance rows; micro-batches divide them as they do `instance`.
    """
    parts = micro_batches * shards
    for size in range(instance, instance + parts):
        rows = size + (size if prior is None else prior)
        if rows % parts == 0 and size % micro_batches == 0:
            return size
    raise ValueError(f"{micro_batches} micro-batches do not divide {prior} prior rows")


class ImageSlice(NamedTuple):
    """Consecutive images of a latent cache."""

    start: int
    count: int


@dataclass(frozen=True)
class SubjectSlices:
    """Where the images of each subject and each class lie in a latent cache. Subjects take turns, row after row.

    Attributes:
        instances: images of each subject, none of them empty.
        classes: images of each class; empty without a prior term.
        class_of: the class of each subject; subjects may share one.
        weights: factor on the rows of each subject and on the class rows that go with it.
    """

    instances: tuple[ImageSlice, ...]
    classes: tuple[ImageSlice, ...]
    class_of: tuple[int, ...]
    weights: tuple[float, ...]


def subject_slices(
    instances: Sequence[int], classes: Sequence[int], class_of: Sequence[int], weights: Sequence[float]
) -> SubjectSlices:
    """Lays out numbers of images: subjects first, then classes. Subjects without images are left out."""
    counts = [*instances, *classes]
    ends = np.cumsum(counts)
    slices = [ImageSlice(int(end - count), count) for end, count in zip(ends, counts, strict=True)]
    present = [subject for subject, count in enumerate(instances) if count]
    return SubjectSlices(
        instances=tuple(slices[subject] for subject in present),
        classes=tuple(slices[len(instances) :]),
        class_of=tuple(class_of[subject] for subject in present),
        weights=tuple(weights[subject] for subject in present),
    )


def sample_indices(
    slices: SubjectSlices,
    key: Key[Array, ""],
    step: Int[Array, ""],
    layout: BatchLayout,
    counts: RowCounts,
    augmentations: int,
) -> BatchIndices:
    """Chooses the image and augmentation of each row of a micro-batch; a pure function of (key, step, row index).

    Args:
        step: how many steps before this one took their rows from this cache.
        layout: of the micro-batch.
        augmentations: of each image in the cache.
    """
    instance_key, class_key, augmentation_key = jax.random.split(key, 3)
    index, is_prior = jnp.asarray(layout.index), jnp.asarray(layout.is_prior)
    subjects = len(slices.instances)
    # Rows of one kind are numbered through all steps, and the subjects take turns along these numbers.
    number = jnp.where(is_prior, step * counts.prior + index - counts.instance, step * counts.instance + index)
    turn = number // subjects
    image, weight = jnp.zeros_like(index), jnp.zeros(index.shape, jnp.float32)
    for subject, images in enumerate(slices.instances):
        is_subject = number % subjects == subject
        subject_key = jax.random.fold_in(instance_key, subject)
        instance_image = images.start + index_in_epochs(subject_key, turn, images.count)
        image = jnp.where(is_subject & ~is_prior, instance_image, image)
        weight = jnp.where(is_subject, slices.weights[subject], weight)
        if counts.prior:
            class_image = sample_class_image(slices, class_key, subject, turn)
            image = jnp.where(is_subject & is_prior, class_image, image)
    keys = example_keys(augmentation_key, step, index)
    augmentation = jax.vmap(lambda row_key: jax.random.randint(row_key, (), 0, augmentations))(keys)
    return BatchIndices(image, augmentation, weight)


def sample_class_image(
    slices: SubjectSlices, key: Key[Array, ""], subject: int, turn: Int[Array, " rows"]
) -> Int[Array, " rows"]:
    """Chooses the class image that goes with each turn of a subject; subjects of one class share its order."""
    class_index = slices.class_of[subject]
    sharing = [other for other, of in enumerate(slices.class_of) if of == class_index]
    class_turn = turn * len(sharing) + sharing.index(subject)
    images = slices.classes[class_index]
    return images.start + index_in_epochs(jax.random.fold_in(key, class_index), class_turn, images.count)


def index_in_epochs(key: Key[Array, ""], positions: Int[Array, " rows"], count: int) -> Int[Array, " rows"]:
    """Maps positions of an endless sequence to image indices: a fresh permutation of all `count` in every epoch."""

    def pick(position: Array) -> Array:
        permutation = jax.random.permutation(jax.random.fold_in(key, position // count), count)
        return permutation[position % count]

    return jax.vmap(pick)(positions)


def example_keys(key: Key[Array, ""], step: Int[Array, ""], index: Int[AnyArray, " rows"]) -> Key[Array, " rows"]:
    """Returns one key for each row of a step."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(index)
