"""The batch of a slot is that of its subject alone: its images, masks, captions, noise and timesteps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.config.rates import learning_rates
from jaxbooth.data.latents import RowImages
from jaxbooth.prng import key_data
from jaxbooth.training.batch import NoisedBatch, make_batch, noise_rows
from jaxbooth.training.layout import subject_slices
from jaxbooth.training.slot_rows import CHUNK, SubjectRows, stack_rows, subject_rows
from tests.training import INSTANCES, PRIORS, Setup, configure, first_micro_batch, setup, several_captions

ROWS, SEEDS = (3, 2), (7, 2**40)
LENGTH = CHUNK + 5
MASKS = {"data": {"masks": True}}
DROPOUT = {"text": {"caption_dropout": 0.3}}
PRESERVED = DROPOUT | {"prior": {"method": ("class-images", "output-preservation", "blank-prompt")}}


def choose_slot_rows(made: Setup, seed: int, **settings) -> SubjectRows:
    """The rows of a run of `made`'s images with a seed of its own."""
    config, cache = configure(ROWS, steps=LENGTH, **settings), jax.device_get(made.source.cache)
    slices = subject_slices([INSTANCES], [PRIORS], [0], [1.0])
    key, rates = key_data(seed), learning_rates(config)
    return subject_rows(made.spec, slices, cache.images, cache.captions, key, config.train, rates)


def check_same_batch(found: NoisedBatch, expected: NoisedBatch) -> None:
    """Latents are the sum of two products, which a program may round once or twice."""
    np.testing.assert_allclose(found.examples.latents, expected.examples.latents, rtol=1e-6, atol=1e-6)
    exact = found._replace(examples=found.examples._replace(latents=expected.examples.latents))
    jax.tree.map(np.testing.assert_array_equal, exact, expected)


@pytest.mark.parametrize("captions", ["one", "several"])
@pytest.mark.parametrize("settings", [MASKS, DROPOUT, PRESERVED], ids=["masks", "dropout", "preserved"])
def test_a_slot_has_the_batch_of_its_subject_alone(micro, micro_params, mesh, settings, captions):
    made = setup(micro, micro_params, mesh, ROWS, **settings)
    made = several_captions(made) if captions == "several" else made
    layout = first_micro_batch(made.spec)

    @jax.jit
    def alone(key: jax.Array, step: jax.Array) -> NoisedBatch:
        return make_batch(made.spec, made.source, key, step, layout)

    @jax.jit
    def in_slot(images: RowImages, caption: jax.Array, key: jax.Array, step: jax.Array) -> NoisedBatch:
        return noise_rows(made.spec, images, jnp.ones(len(caption)), caption, key, step, layout)

    start, count = CHUNK - 2, LENGTH - CHUNK + 2
    subjects = [choose_slot_rows(made, seed, **settings) for seed in SEEDS]
    feed = stack_rows(subjects, [start, 0], [count, count], count)
    assert (feed.images.masks is not None) == (settings is MASKS)
    seen = set()
    for slot, (seed, first) in enumerate(zip(SEEDS, (start, 0), strict=True)):
        for index in range(count):
            step, key = np.int32(first + index), key_data(seed)
            images, caption = jax.tree.map(lambda column, at=(index, slot): column[at], (feed.images, feed.caption))
            batch = in_slot(images, caption, key, step)
            check_same_batch(batch, alone(key, step))
            seen.update(caption.tolist())
    dropped = {len(made.source.cache.text.prompt_embeds) - 1} if settings is not MASKS else set()
    assert seen == {0, 1, 2} | dropped
