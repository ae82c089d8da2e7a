"""The objective against its closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.diffusion.objective import Batch, reduce_rows, row_losses, timestep_weight
from jaxbooth.diffusion.schedule import convert, read_schedule

SCHEDULE = read_schedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
T = np.array([0, 250, 500, 750, 999])
SNR = SCHEDULE.alphas_cumprod[T] / (1 - SCHEDULE.alphas_cumprod[T])


def weight(weighting, space):
    return np.asarray(timestep_weight(SCHEDULE, T, weighting, space, gamma=5.0), np.float64)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("epsilon", np.minimum(SNR, 5) / SNR),
        ("x0", np.minimum(SNR, 5)),
        ("v", np.minimum(SNR, 5) / (SNR + 1)),
    ],
)
def test_min_snr_weights_are_the_published_ones(space, expected):
    np.testing.assert_allclose(weight("min_snr", space), expected, rtol=2e-6)


def test_the_variational_weight_is_equation_12_of_ddpm():
    bar = SCHEDULE.alphas_cumprod
    before = np.concatenate([[1.0], bar[:-1]])
    alpha = bar[T] / before[T]
    beta = 1 - alpha
    np.testing.assert_allclose(weight("vlb", "epsilon"), beta**2 / (2 * beta * alpha * (1 - bar[T])), rtol=2e-4)


def test_uniform_weighs_every_timestep_alike():
    assert (weight("uniform", "v") == 1).all()


def batch(rng, weights, is_prior):
    latents, noise = jnp.asarray(rng.normal(size=(2, len(T), 4, 4, 4)), jnp.float32)
    return Batch(latents, noise, T, jnp.asarray(weights, jnp.float32), jnp.asarray(is_prior))


def losses(rows, output, space, weighting):
    noisy = SCHEDULE.add_noise(rows.latents, rows.noise, rows.timesteps)
    return np.asarray(row_losses(output, noisy, rows, SCHEDULE, space, weighting, 5.0), np.float64)


def test_the_papers_weighted_x_space_loss_is_the_epsilon_space_loss(rng):
    rows = batch(rng, [0.2] * 5, [False] * 5)
    output = rows.noise + 0.1
    np.testing.assert_allclose(losses(rows, output, "x0", "snr"), losses(rows, output, "epsilon", "uniform"), rtol=2e-4)


@pytest.mark.parametrize("weighting", ["min_snr", "vlb", "snr"])
def test_a_weighting_means_the_same_in_every_space(weighting, rng):
    rows = batch(rng, [0.2] * 5, [False] * 5)
    output = rows.noise + 0.1
    reference = losses(rows, output, "epsilon", weighting)
    for space in ("x0", "v"):
        np.testing.assert_allclose(losses(rows, output, space, weighting), reference, rtol=2e-4)


def test_a_perfect_prediction_of_any_kind_costs_nothing(rng):
    rows = batch(rng, [0.2] * 5, [False] * 5)
    noisy = SCHEDULE.add_noise(rows.latents, rows.noise, rows.timesteps)
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    for kind in ("epsilon", "v", "x0"):
        schedule = read_schedule({"prediction_type": {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[kind]})
        schedule = type(schedule)(SCHEDULE.alphas_cumprod, kind)
        output = convert(rows.noise, "epsilon", kind, noisy, alpha, sigma)
        assert row_losses(output, noisy, rows, schedule, kind, "uniform", 5.0).max() < 1e-4


@pytest.mark.parametrize("prior_weight", [0.0, 0.3, 1.0])
def test_the_weighted_sum_is_the_two_means(prior_weight, rng):
    is_prior = np.array([False, True, False, True, True])
    rows = batch(rng, np.where(is_prior, prior_weight / 3, 1 / 2), is_prior)
    values = rng.uniform(size=5)
    reduced = reduce_rows(jnp.asarray(values, jnp.float32), rows)
    instance, prior = values[~is_prior].mean(), values[is_prior].mean()
    np.testing.assert_allclose(reduced, [instance + prior_weight * prior, instance, prior], rtol=1e-6)


def test_padding_rows_count_for_nothing(rng):
    rows = batch(rng, [0.5, 0.5, 0, 0, 0], [False] * 5)
    reduced = reduce_rows(jnp.asarray([1.0, 3.0, 100.0, 100.0, 100.0]), rows)
    assert tuple(map(float, reduced)) == (2.0, 2.0, 0.0)
