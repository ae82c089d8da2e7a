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
from jaxtyping import Float, Int, Key

from jaxbooth.data.latents import BatchIndices
from jaxbooth.diffusion.loss import Role
from jaxbooth.params import AnyArray, Array


class RowCounts(NamedTuple):
    """How many rows of each role a whole step has, in the order of `Role`."""

    instance: int
    class_images: int = 0
    output_preservation: int = 0
    blank_prompt: int = 0


class RoleWeights(NamedTuple):
    """Weight of the mean over the rows of each prior role."""

    class_images: float = 0.0
    output_preservation: float = 0.0
    blank_prompt: float = 0.0


class BatchLayout(NamedTuple):
    """The fixed roles of a step's rows: those of all micro-batches, or of one.

    Attributes:
        index: seeds the row, see `row_indices`.
        role: see `Role`.
        weight: 1/n, lambda/m, or 0 for padding. Summed over all micro-batches, the rows make the objective.
    """

    index: Int[AnyArray, "*micro_batches rows"]
    role: Int[AnyArray, "*micro_batches rows"]
    weight: Float[AnyArray, "*micro_batches rows"]


def batch_layout(counts: RowCounts, weights: RoleWeights, micro_batches: int, shards: int) -> BatchLayout:
    """Assigns rows to micro-batches and to the `shards` of each: consecutive rows, as `batch_sharding` splits them.

    Rows go round the shards role after role, in the order of `Role`: no shard has more than one row more of a role
    than another, so that each has every role wherever there are enough. Padding fills the shards up to one size; it
    repeats row 0 and weighs nothing.
    """
    ends = np.cumsum(counts)
    starts = ends - counts
    assigned = []
    for part in range(micro_batches):
        parts = [np.arange(start + part, end, micro_batches) for start, end in zip(starts, ends, strict=True)]
        assigned.append(np.concatenate(parts))
    width = -(-max(map(len, assigned)) // shards)
    row = np.full((micro_batches, shards, width), -1)
    for part, rows in enumerate(assigned):
        for shard in range(shards):
            shard_rows = rows[shard::shards]
            row[part, shard, : len(shard_rows)] = shard_rows
    row = row.reshape(micro_batches, -1)
    role = np.searchsorted(ends, np.maximum(row, 0), side="right")
    mean_weights = np.array([1.0, *weights]) / np.maximum(counts, 1)
    weight = np.where(row >= 0, mean_weights[role], 0)
    index = row_indices(counts)[np.maximum(row, 0)]
    return BatchLayout(index.astype(np.int32), role.astype(np.int32), weight.astype(np.float32))


def row_indices(counts: RowCounts) -> Int[np.ndarray, " rows"]:
    """Returns what seeds each row of a step, in the order of `Role`.

    Instance rows have 0 .. n-1, class rows n .. n+m-1. Rows of output preservation and of the blank prompt have those
    of the instance rows: they take the same image, noise and timestep, so that the caption alone tells them apart.
    More of them than instance rows go on after all others.
    """
    total = counts.instance + counts.class_images
    paired = np.arange(counts.instance)
    indices = [np.arange(total)]
    for count in (counts.output_preservation, counts.blank_prompt):
        indices.append(np.concatenate([paired, np.arange(total, total + count)])[:count])
    return np.concatenate(indices)


def unpadded_batch_size(instance: int, methods: int, prior: int, micro_batches: int, shards: int) -> int:
    """Returns the least number of instance rows, at least `instance`, with which no row is padding.

    Args:
        methods: how many methods have as many prior rows as there are instance rows.
        prior: other prior rows; micro-batches divide them as they do `instance`.
    """
    parts = micro_batches * shards
    for size in range(instance, instance + parts):
        rows = size * (1 + methods) + prior
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
    index = jnp.asarray(layout.index)
    is_class = jnp.asarray(layout.role) == Role.CLASS
    subjects = len(slices.instances)
    # Rows that take images of one kind are numbered through all steps, and the subjects take turns along these numbers.
    number = jnp.where(is_class, step * counts.class_images + index - counts.instance, step * counts.instance + index)
    turn = number // subjects
    image, weight = jnp.zeros_like(index), jnp.zeros(index.shape, jnp.float32)
    for subject, images in enumerate(slices.instances):
        is_subject = number % subjects == subject
        subject_key = jax.random.fold_in(instance_key, subject)
        instance_image = images.start + index_in_epochs(subject_key, turn, images.count)
        image = jnp.where(is_subject & ~is_class, instance_image, image)
        weight = jnp.where(is_subject, slices.weights[subject], weight)
        if counts.class_images:
            class_image = sample_class_image(slices, class_key, subject, turn)
            image = jnp.where(is_subject & is_class, class_image, image)
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
