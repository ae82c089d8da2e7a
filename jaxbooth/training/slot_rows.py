"""What the slots of a step are given, made on the host: each subject's rows, captions and rates of the next steps."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbooth.config.rates import Group, LearningRates
from jaxbooth.config.schema import TrainConfig
from jaxbooth.data.latents import CachedImages, CaptionTables, RowImages
from jaxbooth.params import AnyArray
from jaxbooth.training.batch import RowChoice, choose_rows
from jaxbooth.training.layout import BatchLayout, RowCounts, SubjectSlices
from jaxbooth.training.optimizer import learning_rate_schedule, rate_groups
from jaxbooth.training.slots import SlotRows
from jaxbooth.training.spec import TrainStepSpec

CHUNK = 64  # steps whose rows are chosen at once, so that one program serves runs of all lengths


@dataclass(frozen=True)
class SubjectRows:
    """The rows of one subject's whole run; all of it on the host.

    Attributes:
        images: of the subject, then of its class.
        choice: of every step, (steps, rows).
        rates: learning rate of each group of parameters at every step, (steps,).
    """

    images: CachedImages
    choice: RowChoice
    rates: Mapping[Group, Float[np.ndarray, " steps"]]

    def take(self, step: int, count: int) -> tuple[RowImages, Int[np.ndarray, "count rows"], dict[Group, np.ndarray]]:
        """Returns images, captions and rates of `count` steps from `step` on."""
        part = slice(step, step + count)
        image, augmentation = self.choice.images.image[part], self.choice.images.augmentation[part]
        images = jax.tree.map(lambda column: column[image, augmentation], self.images)
        rates = {group: values[part] for group, values in self.rates.items()}
        return RowImages(*images), np.asarray(self.choice.caption[part]), rates


def subject_rows(
    spec: TrainStepSpec,
    slices: SubjectSlices,
    images: CachedImages,
    captions: CaptionTables,
    key: AnyArray,
    train: TrainConfig,
    rates: LearningRates,
) -> SubjectRows:
    """Chooses the rows of all steps of a subject.

    Args:
        slices: where the images of the subject and its class lie among `images`.
        key: of the subject's seed, see `prng.key_data`.
        train: with the subject's own number of steps and learning rate.
    """
    layout = BatchLayout(*(field[0] for field in spec.layout))
    augmentations = images.mean.shape[1]
    parts = [
        choose_steps(slices, spec.counts, spec.caption_dropout, augmentations, captions, key, layout, np.int32(start))
        for start in range(0, train.steps, CHUNK)
    ]
    choice = jax.tree.map(lambda *chunks: np.concatenate(chunks)[: train.steps], *jax.device_get(parts))
    return SubjectRows(images, choice, rate_table(train, rates))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def choose_steps(
    slices: SubjectSlices,
    counts: RowCounts,
    dropout: float,
    augmentations: int,
    captions: CaptionTables,
    key: AnyArray,
    layout: BatchLayout,
    start: Any,
) -> RowChoice:
    """Returns the rows of CHUNK steps, (CHUNK, rows)."""

    def choose(step: jax.Array) -> RowChoice:
        return choose_rows(slices, counts, dropout, captions, augmentations, jnp.asarray(key), step, step, layout)

    return jax.vmap(choose)(start + jnp.arange(CHUNK))


def rate_table(train: TrainConfig, rates: LearningRates) -> dict[Group, Float[np.ndarray, " steps"]]:
    """Returns the learning rate of each group of parameters at every step of a run."""
    steps = np.arange(train.steps)
    table = {}
    for group in rate_groups(rates):
        schedule = learning_rate_schedule(train, rates, group)
        table[group] = np.broadcast_to(np.asarray(schedule(steps), np.float32), steps.shape)
    return table


def stack_rows(
    subjects: Sequence[SubjectRows | None], steps: Sequence[int], counts: Sequence[int], max_steps: int
) -> SlotRows:
    """Returns what a dispatch of at most `max_steps` steps is given.

    Args:
        subjects: in each slot; None in an empty one.
        steps: that each subject has done.
        counts: how many more each is to do in this dispatch; it rests after them.
    """
    example = next(subject for subject in subjects if subject).take(0, 1)
    zeros = jax.tree.map(lambda leaf: np.zeros((max_steps, len(subjects), *leaf.shape[1:]), leaf.dtype), example)
    active = np.zeros((max_steps, len(subjects)), bool)
    for slot, (subject, step, count) in enumerate(zip(subjects, steps, counts, strict=True)):
        if subject is None or not count:
            continue
        active[:count, slot] = True
        fill = functools.partial(fill_slot, slot=slot, count=count)
        jax.tree.map(fill, zeros, subject.take(step, count))
    images, caption, rates = zeros
    return SlotRows(images, caption, rates, active)


def fill_slot(whole: np.ndarray, part: np.ndarray, slot: int, count: int) -> None:
    """Puts a subject's first steps in its place."""
    whole[:count, slot] = part
