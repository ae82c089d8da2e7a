"""The train step: which rows, paired with what, and what must not matter."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.data.latents import BatchIndices, gather_images, gather_text, posterior_latents
from jaxbooth.diffusion.loss import Role
from jaxbooth.models.config import VAEConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import abstract_module
from jaxbooth.sharding import make_mesh
from jaxbooth.training.batch import make_batch
from jaxbooth.training.layout import (
    RoleWeights,
    RowCounts,
    batch_layout,
    index_in_epochs,
    sample_indices,
    unpadded_batch_size,
)
from jaxbooth.training.state import result_params
from jaxbooth.training.step import gradients, make_dispatch
from tests.training import INSTANCES, PRIORS, first_micro_batch, make_cache, run, setup


def test_rows_weigh_as_two_means():
    layout = batch_layout(RowCounts(4, 2), RoleWeights(0.5), micro_batches=1, shards=1)
    assert layout.role[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert layout.index[0].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(layout.weight[0], [0.25, 0.25, 0.25, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(("instance", "prior"), [(8, 8), (16, 8), (8, 24), (10, 12), (26, 16), (4, 2)])
def test_every_device_has_its_share_of_both_kinds(instance, prior, micro_batches):
    layout = batch_layout(RowCounts(instance, prior), RoleWeights(1.0), micro_batches, shards=4)
    for is_prior, weight in zip(layout.role == Role.CLASS, layout.weight, strict=True):
        of_prior = is_prior.reshape(4, -1).sum(axis=1)
        of_instance = (~is_prior & (weight > 0)).reshape(4, -1).sum(axis=1)
        for shares, rows in ((of_prior, prior), (of_instance, instance)):
            assert shares.sum() == rows // micro_batches
            assert shares.max() - shares.min() <= 1
        assert (of_prior + of_instance).max() - (of_prior + of_instance).min() <= 1


@pytest.mark.parametrize(
    ("rows", "prior", "micro_batches", "shards", "expected"),
    [(3, 2, 1, 4, 6), (4, None, 1, 8, 4), (3, None, 1, 4, 4), (5, 0, 1, 8, 8), (6, 2, 2, 4, 6), (2, 2, 2, 4, 6)],
)
def test_the_batch_size_that_fills_the_devices_leaves_no_padding(rows, prior, micro_batches, shards, expected):
    found = unpadded_batch_size(rows, int(prior is None), prior or 0, micro_batches, shards)
    assert found == expected
    layout = batch_layout(RowCounts(found, found if prior is None else prior), RoleWeights(1.0), micro_batches, shards)
    assert (layout.weight > 0).all()


def test_padding_fills_the_devices_and_weighs_nothing():
    layout = batch_layout(RowCounts(3, 2), RoleWeights(1.0), micro_batches=1, shards=4)
    assert layout.index.shape == (1, 8)
    assert (layout.weight[0] > 0).sum() == 5
    assert layout.weight.sum() == pytest.approx(2.0)


def test_micro_batches_have_every_row_once():
    layout = batch_layout(RowCounts(6, 4), RoleWeights(1.0), micro_batches=2, shards=1)
    assert sorted(layout.index.ravel()) == list(range(10))
    np.testing.assert_allclose(layout.weight.sum(axis=1), [1.0, 1.0])


def test_an_epoch_shows_every_image_once():
    found = np.asarray(index_in_epochs(jax.random.key(0), jnp.arange(21), 7)).reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in found.tolist())
    assert len({tuple(epoch) for epoch in found.tolist()}) == 3


def test_instance_rows_take_instance_images_and_prior_rows_class_images(micro, micro_params, mesh):
    spec = setup(micro, micro_params, mesh, (4, 2)).spec
    layout = first_micro_batch(spec)
    seen = {True: set(), False: set()}
    for step in range(20):
        rows = sample_indices(spec.slices, jax.random.key(0), jnp.int32(step), layout, spec.counts, augmentations=2)
        for prior, image, augmentation in zip(layout.role == Role.CLASS, rows.image, rows.augmentation, strict=True):
            seen[bool(prior)].add(int(image))
            assert 0 <= augmentation < 2
    assert seen[False] == set(range(INSTANCES))
    assert seen[True] == set(range(INSTANCES, INSTANCES + PRIORS))


def test_a_row_has_its_images_latents_and_its_images_caption(micro, mesh):
    cache = make_cache(micro, mesh)
    rows = BatchIndices(np.array([2, 0, 7, 3]), np.array([1, 0, 0, 1]), np.ones(4))
    mean = cache.images.mean
    images = gather_images(cache.images, rows)
    latents = posterior_latents(images, jnp.zeros((4, *mean.shape[2:])), VAEConfig(scaling_factor=0.5))
    text = gather_text(cache.text, cache.caption[rows.image, 0], None)
    for row, (image, augmentation) in enumerate(zip(rows.image, rows.augmentation, strict=True)):
        np.testing.assert_array_equal(latents[row], mean[image, augmentation] * np.float32(0.5))
        np.testing.assert_array_equal(text.prompt_embeds[row], cache.text.prompt_embeds[cache.caption[image, 0]])


def test_captions_are_encoded_alike_by_caption_and_by_row(micro, mesh):
    cache = make_cache(micro, mesh, trains_text=True)
    encode = lambda ids: TextEmbeddings(ids["text_encoder"].astype(jnp.float32)[..., None])  # noqa: E731
    many, few = np.array([2, 0, 7, 3, 1]), np.array([2, 7])  # more and fewer rows than captions
    for image in (many, few):
        caption = cache.caption[image, 0]
        expected = cache.text["text_encoder"][caption].astype(jnp.float32)[..., None]
        np.testing.assert_array_equal(gather_text(cache.text, caption, encode).prompt_embeds, expected)


def test_rows_with_the_same_image_have_their_own_noise(micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (8, 0), prior_weight=0)  # eight rows of three images
    examples = make_batch(made.spec, made.source, made.key, jnp.int32(0), first_micro_batch(made.spec)).examples
    assert len(np.unique(np.asarray(examples.noise)[:, 0, 0, 0])) == 8
    assert len(np.unique(np.asarray(examples.latents)[:, 0, 0, 0])) == 8


def losses_and_gradients(micro, micro_params, mesh, rows, **settings):
    spec, state, frozen, source, key = setup(micro, micro_params, mesh, rows, **settings)
    arguments = (state.params, frozen, source, key, jnp.int32(3))
    losses, grads = jax.jit(lambda *arguments: gradients(spec, *arguments))(*arguments)
    return np.array([losses.total, *losses.terms.values()]), {name: np.asarray(value) for name, value in grads.items()}


def assert_close(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)
    scale = max(np.abs(value).max() for value in expected[1].values())
    for name, value in expected[1].items():
        # float32 sums over rows in another order
        np.testing.assert_allclose(found[1][name], value, atol=2e-6 * scale, err_msg=name)


@pytest.fixture(scope="module")
def plain(micro, micro_params, mesh):
    """A step of (4, 2) rows on one device, with nothing out of the ordinary."""
    return losses_and_gradients(micro, micro_params, mesh, (4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("prior_weight", [0.3, 0.0, 1.0])
@pytest.mark.parametrize("sizes", [(4, 2, 1), (1, 2, 1)])
def test_the_layout_over_devices_does_not_matter(sizes, prior_weight, micro, micro_params, mesh):
    rows = (4, 4) if prior_weight else (4, 0)
    one = losses_and_gradients(micro, micro_params, mesh, rows, prior_weight=prior_weight)
    many = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    assert_close(losses_and_gradients(micro, micro_params, many, rows, prior_weight=prior_weight), one)


def test_all_axes_together_equal_one_device(plain, micro, micro_params):
    many = make_mesh(data=2, fsdp=2, tensor=2, devices=jax.devices())
    assert_close(losses_and_gradients(micro, micro_params, many, (4, 2)), plain)


def test_accumulation_does_not_matter(plain, micro, micro_params, mesh):
    assert_close(losses_and_gradients(micro, micro_params, mesh, (4, 2), gradient_accumulation_steps=2), plain)


def test_remat_does_not_matter(plain, micro, micro_params, mesh):
    assert_close(losses_and_gradients(micro, micro_params, mesh, (4, 2), remat="blocks"), plain)


@pytest.fixture(scope="module")
def run_from_start(micro, micro_params, mesh):
    """Returns what dispatches counts of steps from the start; the step of the tests that use it is compiled once."""
    begin = functools.partial(setup, micro, micro_params, mesh, (2, 2), prior_weight=0.3, ema_decay=0.75)
    made = begin()
    dispatch = make_dispatch(made.spec, 4, made.state)
    return lambda counts: run(*begin(), counts, dispatch=dispatch)


def test_the_length_of_a_dispatch_does_not_matter(run_from_start):
    results = []
    for counts in ([1, 1, 1, 1], [4]):
        state, metrics = run_from_start(counts)
        results.append((jax.device_get(state), metrics))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_both_losses_are_reported_and_add_up(run_from_start):
    _, metrics = run_from_start([3])
    assert (metrics["prior_loss"] > 0).all()
    np.testing.assert_allclose(metrics["loss"], metrics["instance_loss"] + 0.3 * metrics["prior_loss"], rtol=1e-6)


def test_the_average_follows_slowly(micro_params, run_from_start):
    state, _ = run_from_start([1])
    name = "unet.conv_in.bias"
    start, now = micro_params["unet"]["conv_in.bias"], np.asarray(state.params[name])
    np.testing.assert_allclose(state.ema[name], 0.1 * start + 0.9 * now, atol=1e-7)  # the decay of step 0 is 1 / 10


def test_the_text_encoder_trains_only_when_asked(micro, micro_params, mesh):
    _, grads = losses_and_gradients(micro, micro_params, mesh, (2, 2), text_encoder=True)
    assert np.abs(grads["text_encoder.encoder.layers.0.mlp.fc1.kernel"]).max() > 1e-5
    assert not any(key.startswith("text_encoder.") for key in setup(micro, micro_params, mesh, (2, 2)).state.params)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adafactor", "schedule_free_adamw", "lion", "prodigy"])
def test_every_optimizer_lowers_the_loss_of_a_fixed_step(optimizer, micro, micro_params, mesh):
    rate = {"prodigy": 1.0, "lion": 2e-5}.get(optimizer, 1e-4)
    spec, state, frozen, source, key = setup(
        micro, micro_params, mesh, (4, 2), optimizer=optimizer, learning_rate=rate, weight_decay=0
    )
    loss = jax.jit(lambda params: gradients(spec, params, frozen, source, key, jnp.int32(0))[0].total)
    before = loss(state.params)
    state, _ = run(spec, state, frozen, source, key, [4, 4])
    assert loss(state.params) < before


def test_schedule_free_is_evaluated_at_its_average(micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (4, 2), optimizer="schedule_free_adamw", weight_decay=0)
    state, _ = run(*made, [3])
    name = "conv_in.kernel"
    evaluated, trained = result_params(state)["unet"][name], state.params[f"unet.{name}"]
    start = micro_params["unet"][name]
    assert 0 < np.abs(evaluated - start).max() < np.abs(trained - start).max() * 1.01
    assert np.abs(evaluated - trained).max() > 1e-6


def test_bfloat16_compute_stays_near_float32(plain, micro, micro_params, mesh):
    unet = abstract_module(lambda rngs: UNet2DConditionModel(micro.denoiser_config, Layers(rngs, jnp.bfloat16)))
    half = dataclasses.replace(micro, denoiser=unet, dtype=jnp.dtype("bfloat16"))
    losses, grads = losses_and_gradients(half, micro_params, mesh, (4, 2))
    expected, expected_grads = plain
    np.testing.assert_allclose(losses, expected, rtol=1e-2)
    assert all(value.dtype == np.float32 for value in grads.values())
    norm = np.sqrt(sum(np.square(value).sum() for value in expected_grads.values()))
    difference = np.sqrt(sum(np.square(grads[name] - value).sum() for name, value in expected_grads.items()))
    assert difference < 5e-2 * norm
