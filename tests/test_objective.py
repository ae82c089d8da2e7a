"""The objective against its closed forms, and against PyTorch in float64."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

from jaxbooth.diffusion.loss import Batch, LossSpec, Role, RowLosses, per_example_loss, reduce_losses
from jaxbooth.diffusion.schedule import convert, read_schedule
from jaxbooth.diffusion.weighting import timestep_weight
from tests.torch_parity import relative_error

SCHEDULE = read_schedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
T = np.array([0, 250, 500, 750, 999])
SNR = SCHEDULE.alphas_cumprod[T] / (1 - SCHEDULE.alphas_cumprod[T])
MIXED = np.array([False, True, False, True, True])
KINDS = ("epsilon", "v", "x0")


def weight(weighting, space, schedule=SCHEDULE):
    return np.asarray(timestep_weight(schedule, T, weighting, space, gamma=5.0), np.float64)


def schedule_of(kind):
    return dataclasses.replace(SCHEDULE, prediction_type=kind)


def batch(rng, is_prior=(False,) * 5, weights=(0.2,) * 5, mask=None):
    latents, noise = jnp.asarray(rng.normal(size=(2, len(T), 4, 4, 4)), jnp.float32)
    return Batch(latents, noise, T, jnp.asarray(weights, jnp.float32), jnp.asarray(is_prior, jnp.int32), mask)


def normal(rng):
    return jnp.asarray(rng.normal(size=(len(T), 4, 4, 4)), jnp.float32)


def losses(rows, output, loss, schedule=SCHEDULE, frozen=None):
    noisy = schedule.add_noise(rows.latents, rows.noise, rows.timesteps)
    loss = loss._replace(distilled=(Role.CLASS,))  # nothing but a frozen prediction makes a difference of it
    return np.asarray(per_example_loss(output, noisy, rows, schedule, loss, frozen).inside, np.float64)


# Weightings


@pytest.mark.parametrize(
    ("space", "expected"),
    [("epsilon", np.minimum(SNR, 5) / SNR), ("x0", np.minimum(SNR, 5)), ("v", np.minimum(SNR, 5) / (SNR + 1))],
)
def test_min_snr_weights_are_the_published_ones(space, expected):
    np.testing.assert_allclose(weight("min_snr", space), expected, rtol=2e-6)


def test_the_debiased_weight_is_kohyas_on_epsilon():
    scheduler = diffusers.DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")
    snr = compute_snr(scheduler, torch.from_numpy(T)).clamp(max=1000)
    assert SNR[0] > 1000  # the clip is met
    np.testing.assert_allclose(weight("debiased", "epsilon"), 1 / torch.sqrt(snr), rtol=1e-4)


def test_the_debiased_weight_in_v_space_is_root_snr_over_snr_plus_one():
    np.testing.assert_allclose(weight("debiased", "v")[1:], np.sqrt(SNR[1:]) / (SNR[1:] + 1), rtol=2e-6)


def test_the_variational_weight_is_equation_12_of_ddpm():
    bar = SCHEDULE.alphas_cumprod
    before = np.concatenate([[1.0], bar[:-1]])
    alpha = bar[T] / before[T]
    beta = 1 - alpha
    np.testing.assert_allclose(weight("vlb", "epsilon"), beta**2 / (2 * beta * alpha * (1 - bar[T])), rtol=2e-4)


def test_uniform_weighs_every_timestep_alike():
    assert (weight("uniform", "v") == 1).all()


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "snr"])
def test_weights_of_a_v_network_vanish_at_zero_terminal_snr(weighting):
    zero = read_schedule({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert zero.alphas_cumprod[-1] == 0
    weights = weight(weighting, "v", zero)
    assert weights[-1] == 0
    assert (weights[:-1] > 0).all()


def test_the_papers_weighted_x_space_loss_is_the_epsilon_space_loss(rng):
    rows = batch(rng)
    output = rows.noise + 0.1
    found = losses(rows, output, LossSpec("x0", "snr"))
    np.testing.assert_allclose(found, losses(rows, output, LossSpec("epsilon")), rtol=2e-4)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "vlb", "snr"])
def test_a_weighting_means_the_same_in_every_space(weighting, rng):
    rows = batch(rng)
    output = rows.noise + 0.1
    reference = losses(rows, output, LossSpec("epsilon", weighting))
    for space in ("x0", "v"):
        np.testing.assert_allclose(losses(rows, output, LossSpec(space, weighting)), reference, rtol=2e-4)


def test_each_kind_of_row_has_its_own_weighting(rng):
    rows = batch(rng, MIXED)
    output = rows.noise + 0.1
    found = losses(rows, output, LossSpec("epsilon", "min_snr", prior_weighting="uniform"))
    np.testing.assert_allclose(found, 0.01 * np.where(MIXED, 1, np.minimum(SNR, 5) / SNR), rtol=1e-5)


def test_prior_rows_follow_the_instance_weighting_unless_told_otherwise(rng):
    rows = batch(rng, MIXED)
    found = losses(rows, rows.noise + 0.1, LossSpec("epsilon", "min_snr"))
    np.testing.assert_allclose(found, 0.01 * np.minimum(SNR, 5) / SNR, rtol=1e-5)


# The error of an element


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_huber_is_the_published_pseudo_huber(c, rng):
    rows = batch(rng)
    difference = normal(rng) * 10.0 ** -np.arange(5)[:, None, None, None]  # from large to small against c
    output = rows.noise + difference
    error = torch.from_numpy(np.asarray(output - rows.noise, np.float64))
    expected = (2 * c * (torch.sqrt(error**2 + c**2) - c)).mean((1, 2, 3))
    np.testing.assert_allclose(
        losses(rows, output, LossSpec("epsilon", loss_type="huber", huber_c=c)), expected, rtol=1e-5
    )


def test_huber_is_squared_for_small_errors_and_linear_for_large_ones(rng):
    rows = batch(rng)._replace(noise=jnp.zeros((5, 4, 4, 4)))
    loss = LossSpec("epsilon", loss_type="huber", huber_c=0.1)
    np.testing.assert_allclose(losses(rows, rows.noise + 1e-4, loss), 1e-8, rtol=1e-5)
    np.testing.assert_allclose(losses(rows, rows.noise + 1e3, loss), 2 * 0.1 * 1e3 - 2 * 0.1**2, rtol=1e-5)


def test_a_perfect_prediction_of_any_kind_costs_nothing(rng):
    rows = batch(rng)
    noisy = SCHEDULE.add_noise(rows.latents, rows.noise, T)
    for kind in KINDS:
        output = convert(rows.noise, "epsilon", kind, noisy, SCHEDULE.alpha(T), SCHEDULE.sigma(T))
        assert losses(rows, output, LossSpec(kind), schedule_of(kind)).max() < 1e-4


# Masks


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_a_masked_loss_is_the_loss_of_the_cropped_region(kind, rng):
    inside = (slice(None), slice(1, 3), slice(0, 3))
    mask = np.zeros((5, 4, 4, 1), np.float32)
    mask[inside] = 1
    rows, output = batch(rng, mask=mask), normal(rng)
    cropped = rows._replace(latents=rows.latents[inside], noise=rows.noise[inside], mask=None)
    loss = LossSpec("x0", "min_snr", loss_type=kind)
    np.testing.assert_allclose(losses(rows, output, loss), losses(cropped, output[inside], loss), rtol=1e-5)


def test_a_soft_mask_is_a_weighted_mean_over_pixels(rng):
    mask = rng.uniform(size=(5, 4, 4, 1)).astype(np.float32)
    rows, output = batch(rng, mask=mask), normal(rng)
    error = np.asarray(output - rows.noise, np.float64) ** 2
    expected = (mask[..., 0] * error.mean(-1)).sum((1, 2)) / mask.sum((1, 2, 3))
    np.testing.assert_allclose(losses(rows, output, LossSpec("epsilon")), expected, rtol=1e-5)


def test_a_mask_of_ones_changes_nothing(rng):
    rows, output = batch(rng), normal(rng)
    masked = rows._replace(mask=np.ones((5, 4, 4, 1), np.float32))
    np.testing.assert_allclose(losses(masked, output, LossSpec("v")), losses(rows, output, LossSpec("v")), rtol=1e-6)


def test_an_empty_mask_costs_nothing_and_has_no_gradient(rng):
    mask = np.ones((5, 4, 4, 1), np.float32)
    mask[2] = 0
    rows, output = batch(rng, mask=mask), normal(rng)
    value, grad = jax.value_and_grad(total)(output, rows, LossSpec("epsilon", loss_type="huber"))
    assert np.isfinite(value)
    assert losses(rows, output, LossSpec("epsilon"))[2] == 0
    assert (grad[2] == 0).all()
    assert (grad[3] != 0).all()


# The frozen model's prediction as the prior's target


def total(output, rows, loss, schedule=SCHEDULE, frozen=None):
    noisy = schedule.add_noise(rows.latents, rows.noise, rows.timesteps)
    loss = loss._replace(distilled=(Role.CLASS,))
    return reduce_losses(per_example_loss(output, noisy, rows, schedule, loss, frozen), rows, loss).total


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_prediction_in_the_networks_own_space_is_a_plain_target(kind, rng):
    rows, output, frozen = batch(rng, MIXED), normal(rng), normal(rng)
    expected = np.mean(np.square(np.asarray(output, np.float64) - np.asarray(frozen, np.float64)), axis=(1, 2, 3))
    found = losses(rows, output, LossSpec(kind), schedule_of(kind), frozen)
    np.testing.assert_allclose(found[MIXED], expected[MIXED], rtol=1e-5)


def test_a_frozen_prediction_does_not_touch_instance_rows(rng):
    rows, output, frozen = batch(rng, MIXED), normal(rng), normal(rng)
    found, plain = losses(rows, output, LossSpec("x0"), frozen=frozen), losses(rows, output, LossSpec("x0"))
    np.testing.assert_array_equal(found[~MIXED], plain[~MIXED])
    assert (found[MIXED] != plain[MIXED]).all()


def test_no_gradient_passes_through_the_frozen_prediction(rng):
    rows, output, frozen = batch(rng, MIXED), normal(rng), normal(rng)
    by_output, by_frozen = jax.grad(lambda a, b: total(a, rows, LossSpec("v"), SCHEDULE, b), argnums=(0, 1))(
        output, frozen
    )
    assert (by_frozen == 0).all()
    assert (by_output != 0).all()


def test_a_prior_row_where_the_frozen_model_stands_is_at_rest(rng):
    rows, output = batch(rng, MIXED), normal(rng)
    grad = jax.grad(total)(output, rows, LossSpec("v"), SCHEDULE, output)
    assert (grad[MIXED] == 0).all()
    assert (grad[~MIXED] != 0).all()


# All of it against PyTorch


def torch_total(output, rows, kind, space, frozen):
    """The objective in float64, each prediction taken through the x and eps that it implies."""
    bar = torch.from_numpy(SCHEDULE.alphas_cumprod[T])[:, None, None, None]
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    latents, noise, mask = (torch.tensor(np.asarray(x, np.float64)) for x in (rows.latents, rows.noise, rows.mask))
    z = alpha * latents + sigma * noise

    def in_space(value):
        if kind == "epsilon":
            x0, eps = (z - sigma * value) / alpha, value
        elif kind == "x0":
            x0, eps = value, (z - alpha * value) / sigma
        else:
            x0, eps = alpha * z - sigma * value, alpha * value + sigma * z
        return {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0}[space]

    own = {"epsilon": noise, "x0": latents, "v": alpha * noise - sigma * latents}[space]
    is_prior = torch.from_numpy(MIXED)
    target = torch.where(is_prior[:, None, None, None], in_space(frozen), own)
    element = 2 * 0.5 * (torch.sqrt((in_space(output) - target) ** 2 + 0.5**2) - 0.5)
    error = (mask * element).sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3)))
    snr = (bar / (1 - bar)).flatten()
    per_space = {"epsilon": 1 / snr, "x0": torch.ones(5), "v": 1 / (snr + 1)}[space]
    on_x0 = torch.where(is_prior, snr / snr.clamp(max=1000).sqrt(), snr.clamp(max=5))
    return (torch.tensor(np.asarray(rows.weight, np.float64)) * per_space * on_x0 * error).sum()


@pytest.mark.parametrize("space", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_equal_pytorchs(kind, space, rng):
    rows = batch(rng, MIXED, np.where(MIXED, 0.3, 0.5), rng.uniform(size=(5, 4, 4, 1)).astype(np.float32))
    output, frozen = normal(rng), normal(rng)
    loss = LossSpec(space, "min_snr", "debiased", snr_gamma=5.0, loss_type="huber", huber_c=0.5)
    value, grad = jax.value_and_grad(total)(output, rows, loss, schedule_of(kind), frozen)
    leaf = torch.tensor(np.asarray(output, np.float64), requires_grad=True)
    expected = torch_total(leaf, rows, kind, space, torch.tensor(np.asarray(frozen, np.float64)))
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
    reference = leaf.grad.numpy()
    for row in range(len(T)):  # one by one, since their sizes differ by the weights
        assert relative_error(grad[row], reference[row]) < 1e-4


# Sums over rows


def reduced(values, rows):
    """The total, the instance term and the class term."""
    losses = reduce_losses(RowLosses(jnp.asarray(values, jnp.float32)), rows, LossSpec("epsilon"))
    return [float(losses.total), float(losses.terms["instance_loss"]), float(losses.terms["prior_loss"])]


@pytest.mark.parametrize("prior_weight", [0.0, 0.3, 1.0])
def test_the_weighted_sum_is_the_two_means(prior_weight, rng):
    rows = batch(rng, MIXED, np.where(MIXED, prior_weight / 3, 1 / 2))
    values = rng.uniform(size=5)
    instance, prior = values[~MIXED].mean(), values[MIXED].mean()
    np.testing.assert_allclose(reduced(values, rows), [instance + prior_weight * prior, instance, prior], rtol=1e-6)


def test_a_subjects_weight_enters_what_is_minimised_and_not_what_is_reported(rng):
    rows = batch(rng, [False, False, True, True, True], [1.5 / 2, 0.5 / 2, 0.1, 0.1, 0.1])
    expected = [0.75 * 1 + 0.25 * 3 + 0.1 * 15, 2.0, 5.0]
    np.testing.assert_allclose(reduced([1.0, 3.0, 4.0, 5.0, 6.0], rows), expected, rtol=1e-6)


def test_padding_rows_count_for_nothing(rng):
    rows = batch(rng, weights=[0.5, 0.5, 0, 0, 0])
    assert reduced([1.0, 3.0, 100.0, 100.0, 100.0], rows) == [2.0, 2.0, 0.0]
