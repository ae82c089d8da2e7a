"""Draws of timesteps and additions to the noise, against their definitions. All seeds are fixed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from jaxbooth.diffusion.noise import (
    TimestepSampling,
    mode_position,
    offset_noise,
    perturb,
    sample_timesteps,
    timesteps_at,
    training_schedule,
)
from jaxbooth.diffusion.schedule import read_schedule

COUNT = 20_000
CRITICAL = 1.95  # times 1 / sqrt(n): a Kolmogorov-Smirnov distance that 1 draw in 1000 exceeds


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def share_up_to(values, edges):
    """The empirical distribution function of `values` at `edges`."""
    return np.searchsorted(np.sort(values), edges, side="right") / len(values)


def logit_normal(t, mean, std):
    """The distribution function whose density is equation 19 of Esser et al."""
    return np.array([0.5 * (1 + math.erf((math.log(u / (1 - u)) - mean) / std / math.sqrt(2))) for u in t])


# Timesteps


def test_the_default_is_one_randint_a_key_so_that_resumed_runs_keep_their_rows():
    found = sample_timesteps(keys(64), 1000, TimestepSampling())
    expected = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys(64))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.int32


def test_uniform_covers_its_range_evenly_and_nothing_else():
    found = np.asarray(sample_timesteps(keys(COUNT), 1000, TimestepSampling(low=200, high=210)))
    counts = np.bincount(found - 200, minlength=10)
    assert len(counts) == 10
    assert ((counts - COUNT / 10) ** 2 / (COUNT / 10)).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("high", [900, 108])  # of few timesteps each one counts
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5), (-1.0, 2.0)])
def test_logit_normal_timesteps_follow_equation_19(mean, std, high):
    how = TimestepSampling("logit_normal", mean, std, 100, high)
    found = np.asarray(sample_timesteps(keys(COUNT), 1000, how))
    assert found.dtype == np.int32
    steps = np.arange(100, high - 1)
    expected = logit_normal((steps - 99) / (high - 100), mean, std)
    assert np.abs(share_up_to(found, steps) - expected).max() < CRITICAL / math.sqrt(COUNT)


def test_logit_normal_levels_are_distributed_like_diffusers():
    generator = torch.Generator().manual_seed(0)
    theirs = compute_density_for_timestep_sampling("logit_normal", COUNT, 0.5, 1.2, generator=generator)
    theirs = np.floor(theirs.numpy() * 1000)
    ours = np.asarray(sample_timesteps(keys(COUNT), 1000, TimestepSampling("logit_normal", 0.5, 1.2)))
    steps = np.arange(1000)
    distance = np.abs(share_up_to(ours, steps) - share_up_to(theirs, steps)).max()
    assert distance < CRITICAL * math.sqrt(2 / COUNT)


def test_a_larger_mean_draws_noisier_timesteps():
    clean, noisy = (sample_timesteps(keys(1000), 1000, TimestepSampling("logit_normal", m)) for m in (-2.0, 2.0))
    assert clean.mean() < 200
    assert noisy.mean() > 800


@pytest.mark.parametrize(("mean", "expected"), [(-100.0, 30), (100.0, 59)])
def test_logit_normal_stays_in_range_where_the_sigmoid_rounds(mean, expected):
    found = sample_timesteps(keys(8), 1000, TimestepSampling("logit_normal", mean, low=30, high=60))
    assert (found == expected).all()


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_positions_are_diffusers(scale):
    samples = torch.linspace(0, 1, 1001)
    expected = 1 - samples - scale * (torch.cos(math.pi * samples / 2) ** 2 - 1 + samples)
    found = np.asarray(mode_position(jnp.asarray(samples.numpy()), scale))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.diff(found) < 0).all()  # one position for each sample, all of them in [0, 1]
    np.testing.assert_allclose(found[[0, 500, 1000]], [1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("scale", [-0.8, 1.29])
def test_mode_timesteps_are_distributed_like_diffusers(scale):
    generator = torch.Generator().manual_seed(0)
    theirs = compute_density_for_timestep_sampling("mode", COUNT, mode_scale=scale, generator=generator)
    theirs = 999 - np.floor(theirs.numpy() * 1000)  # their list runs from noisy to clean
    ours = np.asarray(sample_timesteps(keys(COUNT), 1000, TimestepSampling("mode", mode_scale=scale)))
    steps = np.arange(1000)
    distance = np.abs(share_up_to(ours, steps) - share_up_to(theirs, steps)).max()
    assert distance < CRITICAL * math.sqrt(2 / COUNT)


def test_a_larger_mode_scale_prefers_the_middle():
    middle, ends = (sample_timesteps(keys(4000), 1000, TimestepSampling("mode", mode_scale=s)) for s in (1.29, -0.9))
    assert (np.abs(np.asarray(middle) - 500) < 250).mean() > 0.6
    assert (np.abs(np.asarray(ends) - 500) < 250).mean() < 0.4


@pytest.mark.parametrize("raw", [{"shift": 3.0}, {"use_dynamic_shifting": True}], ids=["static", "dynamic"])
def test_a_position_is_the_noise_level_that_diffusers_scripts_train_on(raw):
    theirs = FlowMatchEulerDiscreteScheduler(**raw)
    ours = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"} | raw)
    position = torch.linspace(0.0004, 0.9994, 777)
    indices = (position * 1000).long()  # as their scripts look it up, in a list that runs from noisy to clean
    timesteps = timesteps_at(jnp.asarray(1 - position.numpy()), 0, 1000)
    np.testing.assert_allclose(ours.sigma(timesteps).ravel(), theirs.sigmas[indices], rtol=5e-7)
    np.testing.assert_allclose(ours.network_timesteps(timesteps), theirs.timesteps[indices], rtol=5e-7)


def test_uniform_timesteps_of_a_statically_shifted_table_follow_the_shifted_law():
    schedule = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    levels = schedule.sigmas[np.asarray(sample_timesteps(keys(COUNT), 1000, TimestepSampling()))]
    edges = np.linspace(0.05, 0.95, 19)
    expected = edges / (3 - 2 * edges)  # the inverse of s -> 3 s / (1 + 2 s)
    assert np.abs(share_up_to(levels, edges) - expected).max() < CRITICAL / math.sqrt(COUNT) + 1e-3


def test_the_shift_of_training_is_the_checkpoints_a_given_one_or_that_of_the_images_size():
    schedule = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    half = 499  # s = 0.5 before the shift
    assert training_schedule(schedule, None, 4096) is schedule
    assert training_schedule(schedule, 1.0, 4096).sigmas[half] == pytest.approx(0.5)
    assert training_schedule(schedule, 2.0, 4096).sigmas[half] == pytest.approx(2 / 3)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        shifted = training_schedule(schedule, "resolution", tokens)
        assert shifted.sigmas[half] == pytest.approx(math.exp(mu) / (math.exp(mu) + 1))


def test_a_rows_timestep_does_not_depend_on_the_others():
    how = TimestepSampling("logit_normal")
    rows = keys(8)
    np.testing.assert_array_equal(sample_timesteps(rows, 1000, how)[3:4], sample_timesteps(rows[3:4], 1000, how))


# What is added to the noise


@pytest.mark.parametrize("add", [offset_noise, perturb])
def test_nothing_is_computed_at_strength_zero(add):
    noise = jnp.ones((2, 4, 4, 3))
    assert add(noise, keys(2), 0.0) is noise


@pytest.mark.parametrize("add", [offset_noise, perturb])
def test_a_rows_addition_does_not_depend_on_the_others(add):
    noise = jax.random.normal(jax.random.key(9), (4, 4, 4, 3))
    np.testing.assert_array_equal(add(noise, keys(4), 0.1)[2:3], add(noise[2:3], keys(4)[2:3], 0.1))


def test_offset_noise_shifts_each_channel_of_each_row_by_one_normal_draw():
    noise = jax.random.normal(jax.random.key(9), (2000, 4, 4, 4))
    shift = np.asarray(offset_noise(noise, keys(2000), 0.1) - noise, np.float64)
    per_channel = shift.mean((1, 2))
    np.testing.assert_allclose(shift, np.broadcast_to(per_channel[:, None, None], shift.shape), atol=1e-6)
    draws = per_channel.flatten() / 0.1  # 8000 of them
    assert abs(draws.mean()) < 4 / math.sqrt(8000)
    assert abs(draws.var() - 1) < 4 * math.sqrt(2 / 8000)
    assert abs((draws**4).mean() - 3) < 4 * math.sqrt(96 / 8000)  # the fourth moment of a normal has variance 96
    between = np.corrcoef(per_channel.T)
    assert np.abs(between - np.eye(4)).max() < 4 / math.sqrt(2000)  # channels are independent


def test_perturbation_adds_independent_normal_noise_to_every_element():
    noise = jax.random.normal(jax.random.key(9), (64, 8, 8, 4))
    added = np.asarray(perturb(noise, keys(64), 0.1) - noise, np.float64) / 0.1
    count = added.size
    assert abs(added.mean()) < 4 / math.sqrt(count)
    assert abs(added.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs(np.mean(added * noise)) < 4 / math.sqrt(count)
    assert abs(np.mean(added[:, 1:] * added[:, :-1])) < 4 / math.sqrt(count)  # neighbours differ, unlike an offset's


def test_strength_scales_what_is_added():
    noise = jnp.zeros((2, 4, 4, 3))
    for add in (offset_noise, perturb):
        np.testing.assert_allclose(add(noise, keys(2), 0.3), 3 * add(noise, keys(2), 0.1), rtol=1e-6)
