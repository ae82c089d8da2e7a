"""Steps of docs/mathematics.md that no other test takes: identities and closed forms, in numbers."""

import itertools
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.data.latents import BatchIndices, CachedImages, gather_images, posterior_latents
from jaxbooth.diffusion.loss import Batch, LossSpec, Role, per_example_loss, reduce_losses
from jaxbooth.diffusion.schedule import convert, read_schedule
from jaxbooth.models.config import VAEConfig
from jaxbooth.models.lora import output_norms
from jaxbooth.training.step import ema_update
from jaxbooth.training.weight_anchor import dora_change

SCHEDULE = read_schedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
SPACES = ("epsilon", "x0", "v", "flow")
T = np.array([0, 250, 500, 750, 999])
SNR = SCHEDULE.alphas_cumprod[T] / (1 - SCHEDULE.alphas_cumprod[T])


def class_rows(latents, noise):
    weight, role = np.full(len(T), 1 / len(T), np.float32), np.ones(len(T), np.int32)
    return Batch(jnp.asarray(latents, jnp.float32), jnp.asarray(noise, jnp.float32), T, weight, role)


def losses(rows, output, loss, frozen=None):
    loss = loss._replace(distilled=(Role.CLASS,))  # nothing but a frozen prediction makes a difference of it
    noisy = SCHEDULE.add_noise(rows.latents, rows.noise, T)
    return np.asarray(per_example_loss(output, noisy, rows, SCHEDULE, loss, frozen).inside, np.float64)


def test_the_error_of_one_prediction_differs_between_spaces_by_the_snr(rng):
    rows = class_rows(*rng.normal(size=(2, 5, 8, 8, 4)))
    output = jnp.asarray(rng.normal(size=(5, 8, 8, 4)), jnp.float32)
    on_epsilon, on_x0, on_v, on_flow = (losses(rows, output, LossSpec(space)) for space in SPACES)
    np.testing.assert_allclose(on_epsilon, SNR * on_x0, rtol=1e-4)
    np.testing.assert_allclose(on_v, (SNR + 1) * on_x0, rtol=1e-4)
    np.testing.assert_allclose(on_flow, (np.sqrt(SNR) + 1) ** 2 * on_x0, rtol=1e-4)


def test_fresh_noise_teaches_the_same_as_its_mean_given_the_noisy_latent(rng):
    mean, spread, shape = 0.4, 0.8, (5, 256, 256, 4)
    rows = class_rows(mean + spread * rng.normal(size=shape), rng.normal(size=shape))
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    noisy = SCHEDULE.add_noise(rows.latents, rows.noise, T)
    variance = alpha**2 * spread**2 + sigma**2
    ideal = sigma * (noisy - alpha * mean) / variance  # E[noise | noisy] of normal latents
    one, other, loss = jnp.tanh(noisy), 0.3 * noisy + 0.1, LossSpec("epsilon")
    with_noise = losses(rows, one, loss) - losses(rows, other, loss)
    with_ideal = losses(rows, one, loss, frozen=ideal) - losses(rows, other, loss, frozen=ideal)
    assert np.abs(with_ideal).min() > 0.02
    np.testing.assert_allclose(with_noise, with_ideal, atol=5e-3)  # 262,144 draws a row
    left = np.asarray(alpha**2 * spread**2 / variance).ravel()
    np.testing.assert_allclose(losses(rows, ideal, loss), left, rtol=2e-2)


@pytest.mark.parametrize("shift", [None, 0.1159])
def test_a_rows_latent_is_a_shifted_and_scaled_draw_from_its_images_posterior(shift, rng):
    mean, logvar = rng.normal(size=(2, 3, 2, 4, 4, 4)).astype(np.float32)
    images = CachedImages(mean, logvar, np.zeros((3, 2, 6), np.float32), None)
    noise = rng.normal(size=(2, 4, 4, 4))
    rows, config = BatchIndices(np.array([2, 0]), np.array([1, 0]), np.ones(2)), VAEConfig(shift_factor=shift)
    found = posterior_latents(gather_images(images, rows), jnp.asarray(noise), config)
    for row, (image, augmentation) in enumerate([(2, 1), (0, 0)]):
        draw = mean[image, augmentation] + np.sqrt(np.exp(logvar[image, augmentation])) * noise[row]
        np.testing.assert_allclose(found[row], 0.18215 * (draw - (shift or 0)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(SPACES, 2)))
def test_guidance_is_the_same_in_every_space(source, target, rng):
    free, conditional, noisy = jnp.asarray(rng.normal(size=(3, 1, 8, 8, 4)), jnp.float32)
    alpha, sigma, guidance = jnp.float32(0.6), jnp.float32(0.8), 7.5

    def moved(value):
        return convert(value, source, target, noisy, alpha, sigma)

    guided = moved(free + guidance * (conditional - free))
    apart = moved(free) + guidance * (moved(conditional) - moved(free))
    np.testing.assert_allclose(guided, apart, atol=1e-5 * float(jnp.abs(apart).max()))


@pytest.mark.parametrize(("decay", "expected"), [(0.9999, 1 / comb(19, 9)), (0.5, 1 / comb(17, 9) * 0.5**2)])
def test_the_average_forgets_the_base_model_as_the_closed_form_says(decay, expected):
    average, trained = {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}
    step = jax.jit(lambda average, step: ema_update(average, trained, step, decay))
    for index in range(10):  # with 0.5, the warm-up rules the first eight
        average = step(average, jnp.int32(index))
    np.testing.assert_allclose(average["w"], [expected], rtol=1e-4)


def test_a_frozen_prediction_pulls_along_what_the_output_depends_on_and_nothing_else(rng):
    rows, caption = class_rows(*rng.normal(size=(2, 5, 8, 8, 4))), rng.normal(size=(5, 1, 1, 1))
    noisy = SCHEDULE.add_noise(rows.latents, rows.noise, T)
    weights = jnp.asarray(rng.normal(size=5), jnp.float32)  # one for each channel, and that of the identifier
    change = jnp.asarray(1e-3 * rng.normal(size=5), jnp.float32)

    def predict(weights, identifier):
        return jnp.tanh(noisy * weights[:4] + weights[4] * identifier)

    def pull(change, identifier):
        moved, frozen = predict(weights + change, identifier), predict(weights, identifier)
        return losses(rows, moved, LossSpec("epsilon", "min_snr"), frozen)

    _, slope = jax.jvp(lambda weights: predict(weights, 0.0), (weights,), (change,))
    quadratic = np.minimum(SNR, 5) / SNR * np.square(np.asarray(slope, np.float64)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(pull(change, 0.0), quadratic, rtol=2e-2)
    of_identifier = change.at[:4].set(0.0)
    assert pull(of_identifier, 0.0).max() == 0  # another caption's weight is free
    assert pull(of_identifier, caption).min() > 0


def test_inside_and_outside_of_a_mask_are_two_means_each_over_its_own_area(rng):
    latents, noise, output, frozen = jnp.asarray(rng.normal(size=(4, 5, 8, 8, 4)), jnp.float32)
    mask, weight = rng.uniform(size=(5, 8, 8, 1)), np.full(5, 0.2, np.float32)
    rows = Batch(latents, noise, T, weight, np.zeros(5, np.int32), jnp.asarray(mask, jnp.float32))
    spec = LossSpec("epsilon", outside_mask_weight=0.3)
    row_losses = per_example_loss(output, SCHEDULE.add_noise(latents, noise, T), rows, SCHEDULE, spec, frozen)

    def masked_mean(target, weights):
        squares = np.square(np.asarray(output, np.float64) - np.asarray(target, np.float64)).mean(axis=3)
        return (weights[..., 0] * squares).sum(axis=(1, 2)) / weights.sum(axis=(1, 2, 3))

    inside, outside = masked_mean(noise, mask), masked_mean(frozen, 1 - mask)
    np.testing.assert_allclose(row_losses.inside, inside, rtol=1e-5)
    np.testing.assert_allclose(row_losses.outside, outside, rtol=1e-5)
    total = reduce_losses(row_losses, rows, spec).total
    np.testing.assert_allclose(total, inside.mean() + 0.3 * outside.mean(), rtol=1e-5)


def test_a_small_change_of_a_dora_is_not_lost_in_the_size_of_its_kernel(rng):
    kernel, down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((64, 16), (64, 2), (2, 16)))
    up, scale = 1e-4 * up, 0.7
    magnitude = np.asarray(output_norms(jnp.asarray(kernel))) * np.float32(1 + 1e-4)
    columns = kernel.astype(np.float64) + scale * down.astype(np.float64) @ up.astype(np.float64)
    merged = magnitude.astype(np.float64) * columns / np.sqrt(np.square(columns).sum(axis=0))
    change = np.square(merged - kernel).sum()
    assert change / np.square(kernel).sum() < 1e-7  # less than float32 can tell of the kernel's own square
    found = dora_change(*map(jnp.asarray, (kernel, down, up, magnitude)), scale)
    np.testing.assert_allclose(found, change, rtol=1e-2)
