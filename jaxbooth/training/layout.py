"""Which rows a step has: their fixed roles, and the images that they take.

Every random choice of a row comes from fold_in(fold_in(root, step), row), so neither the number of devices nor
accumulation nor the length of a dispatch changes what is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.data.latents import BatchIndices, index_in_epochs
from jaxbooth.params import AnyArray


class BatchLayout(NamedTuple):
    """The fixed roles of a step's rows; each field is (micro_batches, rows), or (rows,) of one micro-batch.

    Attributes:
        index: 0 .. n-1 for instance rows, n .. n+m-1 for prior rows; it seeds the row.
        is_prior: bool.
        weight: 1/n, lambda/m, or 0 for padding. Summed over all micro-batches, the rows make the objective.
    """

    index: AnyArray
    is_prior: AnyArray
    weight: AnyArray


def batch_layout(instance: int, prior: int, prior_weight: float, micro_batches: int, shards: int) -> BatchLayout:
    """Deals rows out to micro-batches and to the `shards` of each: consecutive rows, as `rows_over` splits them.

    Instance rows go round the shards first, then prior rows: no shard has more than one row more of a kind than
    another, so that each has both kinds wherever there are enough. Padding fills them up; it repeats row 0 and weighs
    nothing.
    """
    dealt = []
    for part in range(micro_batches):
        kinds = [np.arange(part, instance, micro_batches), np.arange(instance + part, instance + prior, micro_batches)]
        dealt.append(np.concatenate(kinds))
    width = -(-max(map(len, dealt)) // shards)
    number = np.full((micro_batches, shards, width), -1)
    for part, numbers in enumerate(dealt):
        for shard in range(shards):
            own = numbers[shard::shards]
            number[part, shard, : len(own)] = own
    number = number.reshape(micro_batches, -1)
    is_prior = number >= instance
    weight = np.where(is_prior, prior_weight / max(prior, 1), 1 / instance) * (number >= 0)
    return BatchLayout(np.maximum(number, 0).astype(np.int32), is_prior, weight.astype(np.float32))


def unpadded_batch_size(instance: int, own_prior: int | None, micro_batches: int, shards: int) -> int:
    """Returns the least number of instance rows, at least `instance`, with which no row is padding.

    Args:
        own_prior: prior rows, or None for as many as instance rows; micro-batches divide them as they do `instance`.
    """
    sizes = range(instance, instance + micro_batches * shards)
    full = (n for n in sizes if (n + (n if own_prior is None else own_prior)) % (micro_batches * shards) == 0)
    return next(n for n in full if n % micro_batches == 0)


class ImageSlice(NamedTuple):
    """Consecutive images of a cache."""

    start: int
    count: int


@dataclass(frozen=True)
class SubjectSlices:
    """Where the images of each subject and each class lie in a cache. Subjects take turns, row after row.

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
    ends = np.cumsum([*instances, *classes])
    spans = [ImageSlice(int(end - count), count) for end, count in zip(ends, [*instances, *classes], strict=True)]
    present = [subject for subject, count in enumerate(instances) if count]
    return SubjectSlices(
        instances=tuple(spans[subject] for subject in present),
        classes=tuple(spans[len(instances) :]),
        class_of=tuple(class_of[subject] for subject in present),
        weights=tuple(weights[subject] for subject in present),
    )


def sample_indices(
    slices: SubjectSlices, key: Array, step: Array, part: BatchLayout, counts: tuple[int, int], augmentations: int
) -> BatchIndices:
    """Chooses the image and augmentation of each row of a step; a pure function of (key, step, row number).

    Args:
        step: of this cache: the steps before that took rows from it.
        counts: instance and prior rows of a whole step.
        augmentations: kept augmentations of each image.
    """
    (n, m), subjects = counts, len(slices.instances)
    instance_key, class_key, variant_key = jax.random.split(key, 3)
    number, is_prior = jnp.asarray(part.index), jnp.asarray(part.is_prior)
    position = jnp.where(is_prior, step * m + number - n, step * n + number)
    turn = position // subjects
    image, weight = jnp.zeros_like(number), jnp.zeros(number.shape, jnp.float32)
    for subject, piece in enumerate(slices.instances):
        mine = position % subjects == subject
        chosen = piece.start + index_in_epochs(jax.random.fold_in(instance_key, subject), turn, piece.count)
        image = jnp.where(mine & ~is_prior, chosen, image)
        weight = jnp.where(mine, slices.weights[subject], weight)
        if m:
            number_of_class = slices.class_of[subject]
            sharing = [other for other, c in enumerate(slices.class_of) if c == number_of_class]
            place = turn * len(sharing) + sharing.index(subject)  # in the class's own stream
            images = slices.classes[number_of_class]
            chosen = images.start + index_in_epochs(jax.random.fold_in(class_key, number_of_class), place, images.count)
            image = jnp.where(mine & is_prior, chosen, image)
    keys = example_keys(variant_key, step, number)
    augmentation = jax.vmap(lambda row_key: jax.random.randint(row_key, (), 0, augmentations))(keys)
    return BatchIndices(image, augmentation, weight)


def example_keys(key: Array, step: Array, number: AnyArray) -> Array:
    """Returns one key for each row of a step."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(number)
