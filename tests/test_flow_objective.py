"""The objective on rectified flow, against diffusers' training scripts and against PyTorch in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3

from jaxbooth.diffusion.loss import Batch, LossSpec, Role, RowLosses, per_example_loss, reduce_losses
from jaxbooth.diffusion.schedule import read_schedule
from jaxbooth.diffusion.weighting import timestep_weight, weight_ratio
from tests.torch_parity import relative_error

SCHEDULE = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
T = np.array([0, 250, 500, 750, 998])
ALPHA, SIGMA = SCHEDULE.alphas[T], SCHEDULE.sigmas[T]
SNR = (ALPHA / SIGMA) ** 2
IS_PRIOR = np.array([False, True, False, True, True])
SPACES = ("flow", "x0", "epsilon", "v")
WEIGHTINGS = ("uniform", "min_snr", "debiased", "snr", "sigma_sqrt", "cosmap")


def weight(weighting, space="flow", timesteps=T):
    return np.asarray(timestep_weight(SCHEDULE, timesteps, weighting, space, gamma=5.0), np.float64)


def batch(rng, timesteps=T, mask=None):
    latents, noise = jnp.asarray(rng.normal(size=(2, len(timesteps), 4, 4, 4)), jnp.float32)
    return Batch(latents, noise, timesteps, jnp.where(IS_PRIOR, 0.3, 0.5), jnp.asarray(IS_PRIOR, jnp.int32), mask)


def normal(rng):
    return jnp.asarray(rng.normal(size=(len(T), 4, 4, 4)), jnp.float32)


def losses(rows, output, loss, frozen=None, schedule=SCHEDULE):
    noisy = schedule.add_noise(rows.latents, rows.noise, rows.timesteps)
    loss = loss._replace(distilled=(Role.CLASS,))  # nothing but a frozen prediction makes a difference of it
    return per_example_loss(output, noisy, rows, schedule, loss, frozen).inside


def total(output, rows, loss, frozen=None, schedule=SCHEDULE):
    return reduce_losses(RowLosses(losses(rows, output, loss, frozen, schedule)), rows, loss).total


# Weightings


@pytest.mark.parametrize("name", ["sigma_sqrt", "cosmap"])
def test_flow_weightings_are_diffusers(name):
    expected = compute_loss_weighting_for_sd3(name, torch.from_numpy(SIGMA)).numpy()
    np.testing.assert_allclose(weight(name), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["none", "sigma_sqrt", "cosmap"])
def test_the_loss_is_that_of_diffusers_scripts(name, rng):
    rows, output = batch(rng), normal(rng)
    sigmas = torch.from_numpy(SIGMA)[:, None, None, None]
    difference = torch.from_numpy(np.asarray(output - (rows.noise - rows.latents), np.float64))
    expected = (compute_loss_weighting_for_sd3(name, sigmas) * difference**2).reshape(len(T), -1).mean(1)
    found = losses(rows, output, LossSpec("flow", "uniform" if name == "none" else name))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_snr_weightings_on_flow_are_their_weight_on_x0_times_sigma_squared():
    np.testing.assert_allclose(weight("min_snr"), np.minimum(SNR, 5) * SIGMA**2, rtol=2e-6)
    np.testing.assert_allclose(weight("snr"), (1 - SIGMA) ** 2, rtol=2e-6)
    np.testing.assert_allclose(weight("debiased")[1:], np.sqrt(SNR[1:]) * SIGMA[1:] ** 2, rtol=2e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_a_weighting_means_the_same_in_every_space(weighting, rng):
    rows, output = batch(rng), normal(rng)
    reference = losses(rows, output, LossSpec("flow", weighting))
    for space in SPACES[1:]:
        # at sigma 0.9997 the error on epsilon is the difference of two numbers 3000 times as large
        np.testing.assert_allclose(losses(rows, output, LossSpec(space, weighting)), reference, rtol=2e-3)


def test_the_errors_of_one_prediction_differ_by_alpha_and_sigma_squared(rng):
    rows, output = batch(rng), normal(rng)
    on_flow, on_x0, on_epsilon = (np.asarray(losses(rows, output, LossSpec(space))) for space in SPACES[:3])
    np.testing.assert_allclose(on_x0, SIGMA**2 * on_flow, rtol=1e-4)
    np.testing.assert_allclose(on_epsilon, (1 - SIGMA) ** 2 * on_flow, rtol=2e-3)
    np.testing.assert_allclose(weight_ratio(SCHEDULE, T, "x0", "flow"), SIGMA**2, rtol=1e-6)
    np.testing.assert_allclose(weight_ratio(SCHEDULE, T, "epsilon", "flow"), (1 - SIGMA) ** 2, rtol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("space", ["flow", "x0"])
def test_pure_noise_has_a_finite_loss_and_gradient(space, weighting, rng):
    rows, output = batch(rng, np.array([0, 1, 998, 999, 999])), normal(rng)
    value, grad = jax.value_and_grad(total)(output, rows, LossSpec(space, weighting, loss_type="huber"))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    vanishes = weighting in ("min_snr", "debiased", "snr")  # of a weight that follows the SNR, which is 0
    assert (np.abs(grad[-1]).max() == 0) == vanishes


def test_a_perfect_prediction_costs_nothing(rng):
    rows = batch(rng)
    for space in SPACES:
        assert np.max(losses(rows, rows.noise - rows.latents, LossSpec(space))) < 1e-9


# All of it against PyTorch

COEFFICIENTS = {  # of x and eps in what is predicted
    "epsilon": lambda alpha, sigma: (0, 1),
    "x0": lambda alpha, sigma: (1, 0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1, 1),
}


def torch_total(output, rows, kind, space, frozen):
    """The objective in float64, each prediction taken through the x and eps that solve for it and z."""
    alpha, sigma = (
        torch.from_numpy(table[rows.timesteps])[:, None, None, None] for table in (SCHEDULE.alphas, SCHEDULE.sigmas)
    )
    latents, noise, mask = (torch.tensor(np.asarray(x, np.float64)) for x in (rows.latents, rows.noise, rows.mask))
    z = alpha * latents + sigma * noise

    def combine(coefficients, x0, eps):
        return coefficients[0] * x0 + coefficients[1] * eps

    def in_space(value):
        of_x, of_eps = COEFFICIENTS[kind](alpha, sigma)
        determinant = alpha * of_eps - sigma * of_x  # of z = alpha x + sigma eps, value = of_x x + of_eps eps
        x0, eps = (of_eps * z - sigma * value) / determinant, (alpha * value - of_x * z) / determinant
        return combine(COEFFICIENTS[space](alpha, sigma), x0, eps)

    is_prior = torch.from_numpy(IS_PRIOR)
    own = combine(COEFFICIENTS[space](alpha, sigma), latents, noise)
    target = torch.where(is_prior[:, None, None, None], in_space(frozen), own)
    element = 2 * 0.5 * (torch.sqrt((in_space(output) - target) ** 2 + 0.5**2) - 0.5)
    error = (mask * element).sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3)))
    alpha, sigma = alpha.flatten(), sigma.flatten()
    x0_error = {"epsilon": sigma / alpha, "x0": 1, "v": sigma / (alpha**2 + sigma**2), "flow": sigma}[space]
    on_flow = torch.where(is_prior, 2 / (torch.pi * (1 - 2 * sigma + 2 * sigma**2)), sigma**-2)
    weight = torch.tensor(np.asarray(rows.weight, np.float64))
    return (weight * on_flow / sigma**2 * x0_error**2 * error).sum()


KINDS = [*(("flow", space) for space in SPACES), ("x0", "flow"), ("epsilon", "flow")]


@pytest.mark.parametrize(("kind", "space"), KINDS)
def test_value_and_gradient_equal_pytorchs(kind, space, rng):
    schedule = dataclasses.replace(SCHEDULE, prediction_type=kind)
    rows = batch(rng, np.array([200, 250, 500, 750, 900]), rng.uniform(size=(5, 4, 4, 1)).astype(np.float32))
    output, frozen = normal(rng), normal(rng)
    loss = LossSpec(space, "sigma_sqrt", "cosmap", loss_type="huber", huber_c=0.5)
    value, grad = jax.value_and_grad(total)(output, rows, loss, frozen, schedule)
    leaf = torch.tensor(np.asarray(output, np.float64), requires_grad=True)
    expected = torch_total(leaf, rows, kind, space, torch.tensor(np.asarray(frozen, np.float64)))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
    reference = leaf.grad.numpy()
    for row in range(len(T)):  # one by one, since their sizes differ by the weights
        assert relative_error(grad[row], reference[row]) < 1e-4
