"""Which of its image's captions a row takes: a function of seed, step and row."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.data.images import ImageFile
from jaxbooth.prng import key_data
from jaxbooth.runs.training_data import caption_tables
from jaxbooth.training.batch import make_batch
from jaxbooth.training.layout import BatchLayout
from jaxbooth.training.step import make_dispatch
from tests.training import PRIORS, Setup, first_micro_batch, setup, several_captions


@pytest.fixture(scope="module")
def made(micro, micro_params, mesh) -> Setup:
    return several_captions(setup(micro, micro_params, mesh, (6, 2)))


def batches(made: Setup, steps: range, layout: BatchLayout | None = None, seed: int = 7):
    """The batch of each step."""
    make = jax.jit(lambda step, layout, key: make_batch(made.spec, made.source, key, step, layout))
    layout = layout or first_micro_batch(made.spec)
    return [make(jnp.int32(step), layout, key_data(seed)) for step in steps]


def test_all_captions_of_an_image_are_met_and_padding_never_is(made):
    captions = np.concatenate([batch.caption for batch in batches(made, range(300))])
    times = Counter(captions.tolist())
    assert set(times) == {0, 1, 2}
    # Of six instance rows, two show each image: 1/2 + 0 + 1/3 of two rows have the first caption.
    assert times[0] / 300 == pytest.approx(2 * (1 / 2 + 1 / 3), abs=0.2)
    assert times[1] / 300 == pytest.approx(2 * (1 / 2 + 1 + 1 / 3), abs=0.2)


def test_the_choice_is_a_function_of_seed_step_and_row(made):
    layout = first_micro_batch(made.spec)
    whole = [batch.caption.tolist() for batch in batches(made, range(8))]
    assert whole == [batch.caption.tolist() for batch in batches(made, range(8))]
    backwards = BatchLayout(*(field[::-1] for field in layout))
    assert whole == [batch.caption.tolist()[::-1] for batch in batches(made, range(8), backwards)]
    assert whole != [batch.caption.tolist() for batch in batches(made, range(8), seed=8)]
    assert len({tuple(captions) for captions in whole}) > 4


def test_several_captions_change_neither_image_nor_noise_nor_timestep(made, micro, micro_params, mesh):
    one = setup(micro, micro_params, mesh, (6, 2))
    for several, single in zip(batches(made, range(3)), batches(one, range(3)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, several.examples, single.examples)
        np.testing.assert_array_equal(several.input_noise, single.input_noise)


def test_a_table_of_equal_captions_trains_as_one_caption_does(made):
    cache = made.source.cache
    same = jnp.repeat(cache.caption[:, :1], 3, axis=1)
    repeated = made.source._replace(cache=cache._replace(caption=same, caption_counts=jnp.full_like(same[:, 0], 3)))
    single = made.source._replace(cache=cache._replace(caption=same[:, :1]))
    found, expected = (batches(made._replace(source=source), range(2)) for source in (repeated, single))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("trains_text", [pytest.param(False, marks=pytest.mark.slow), True])
def test_steps_in_one_dispatch_in_ten_or_after_a_stop_are_the_same(trains_text, micro, micro_params, mesh):
    made = several_captions(setup(micro, micro_params, mesh, (3, 1), text_encoder=trains_text))
    dispatch = make_dispatch(made.spec, 10, made.state)

    def after(counts: list[int]):
        state, losses = jax.tree.map(jnp.copy, made.state), []
        for count in counts:
            state, metrics = dispatch(state, made.frozen, made.source, made.key, np.int32(count))
            losses += metrics["loss"][:count].tolist()
        return losses, state.params

    losses, params = after([10])
    for counts in ([1] * 10, [4, 6]):
        other_losses, other_params = after(counts)
        assert losses == other_losses
        jax.tree.map(np.testing.assert_array_equal, params, other_params)


def test_rows_of_the_text_are_padded_to_the_most_captions():
    files = [ImageFile(Path("a"), "x", 0, ("x", "y", "x")), ImageFile(Path("b"), "z", 1)]
    caption, counts, class_caption = caption_tables(files, ["z", "y", "x"])
    assert caption.tolist() == [[2, 1, 2], [0, 0, 0]]
    assert counts.tolist() == [3, 1]
    assert class_caption is None


def test_rows_of_output_preservation_have_the_class_caption_of_their_instance_rows_variant(micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (3, 3), prior={"method": ["output-preservation"]})
    rows = jnp.array([[0, 1, 0], [1, 0, 0], [0, 1, 0], *[[2, 0, 0]] * PRIORS], jnp.int32)
    cache = made.source.cache._replace(
        caption=rows, class_caption=rows + 2, caption_counts=jnp.array([3, 2, 2, *[1] * PRIORS], jnp.int32)
    )
    made = made._replace(source=made.source._replace(cache=cache))
    seen = set()
    for batch in batches(made, range(12)):
        instance = np.asarray(batch.caption)[:3].tolist()
        assert np.asarray(batch.caption)[3:].tolist() == [row + 2 for row in instance]
        seen |= set(instance)
    assert seen == {0, 1}
