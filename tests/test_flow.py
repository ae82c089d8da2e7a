"""Rectified flow's schedule and its shifts against diffusers' schedulers and pipelines."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift

from jaxbooth.diffusion.flow import FlowConfig, empirical_mu, linear_mu, resolution_shift
from jaxbooth.diffusion.schedule import NoiseSchedule, read_schedule
from jaxbooth.errors import UserError

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
HEUN = {"_class_name": "FlowMatchHeunDiscreteScheduler"}
FLOAT32 = {"rtol": 5e-7, "atol": 1e-7}  # diffusers computes in float32, with a few operations

# The table


TABLES = [
    {},
    {"shift": 3.0},
    {"shift": 6.0, "num_train_timesteps": 250},
    {"shift": 3.0, "use_dynamic_shifting": True},
]


@pytest.mark.parametrize("raw", TABLES)
def test_the_table_is_that_of_diffusers_from_clean_to_noisy(raw):
    theirs, ours = FlowMatchEulerDiscreteScheduler(**raw), read_schedule(EULER | raw)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy()[::-1], **FLOAT32)
    np.testing.assert_allclose(ours.alphas, 1 - theirs.sigmas.numpy()[::-1], **FLOAT32)
    steps = np.arange(ours.num_train_timesteps)
    np.testing.assert_allclose(ours.network_timesteps(steps), theirs.timesteps.numpy()[::-1], **FLOAT32)
    assert ours.is_flow
    assert ours.prediction_type == "flow"


def test_a_static_shift_is_in_the_table_and_a_dynamic_one_is_not():
    static, dynamic = (read_schedule(EULER | {"shift": 3.0, "use_dynamic_shifting": it}) for it in (False, True))
    assert static.sigmas[499] == pytest.approx(0.75)  # half of the timesteps are noisier than s = 0.75
    assert dynamic.sigmas[499] == pytest.approx(0.5)


def test_the_file_of_the_heun_scheduler_describes_the_same_table():
    theirs = FlowMatchHeunDiscreteScheduler(shift=3.0)
    ours = read_schedule(HEUN | dict(theirs.config))
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy()[::-1], **FLOAT32)


def test_the_last_timestep_is_pure_noise_and_the_first_is_not_clean():
    for shift in (1.0, 1.1, 3.0, 6.0, 1 / 3):
        schedule = NoiseSchedule.rectified_flow(FlowConfig(shift=shift))
        assert schedule.alphas[-1] == 0
        assert schedule.sigmas[-1] == 1
        assert schedule.sigmas[0] > 0
        assert (np.diff(schedule.sigmas) > 0).all()


def test_noisy_latents_equal_diffusers(rng):
    latents, noise = rng.normal(size=(2, 3, 4, 4, 4)).astype(np.float32)
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), read_schedule(EULER | {"shift": 3.0})
    timesteps = np.array([0, 500, 999])
    expected = theirs.scale_noise(torch.tensor(latents), theirs.timesteps.flip(0)[timesteps], torch.tensor(noise))
    np.testing.assert_allclose(ours.add_noise(latents, noise, timesteps), expected.numpy(), atol=1e-6)


def test_variance_preserving_networks_are_told_the_timestep_itself():
    schedule, timesteps = read_schedule({}), np.array([0, 7, 999])
    assert schedule.network_timesteps(timesteps) is timesteps
    assert not schedule.is_flow


def test_a_schedule_is_linear_between_timesteps():
    schedule = NoiseSchedule.rectified_flow()
    alpha, sigma = schedule.interpolate(np.array([998.5, 999.0]), divides_by_alpha=True)
    np.testing.assert_allclose(sigma, [0.9995, 1.0])
    np.testing.assert_allclose(alpha, [0.0005, 0.0], atol=1e-12)


def test_a_static_shift_can_take_the_place_of_the_checkpoints():
    for raw in ({"shift": 3.0}, {"use_dynamic_shifting": True}):
        shifted = read_schedule(EULER | raw).shifted(2.0)
        np.testing.assert_array_equal(shifted.sigmas, read_schedule(EULER | {"shift": 2.0}).sigmas)


# How mu follows from the size of the image


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 5000])
def test_the_linear_mu_is_that_of_the_z_image_pipeline(tokens):
    config = FlowConfig(base_shift=0.6, max_shift=1.3, base_image_seq_len=200, max_image_seq_len=4000)
    assert linear_mu(config, tokens) == pytest.approx(calculate_shift(tokens, 200, 4000, 0.6, 1.3), rel=1e-12)
    assert linear_mu(FlowConfig(), tokens) == pytest.approx(calculate_shift(tokens), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 28, 50, 200])
@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 16384])
def test_the_empirical_mu_is_that_of_the_klein_pipeline(tokens, steps):
    assert empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("exponential", math.exp(1.15)), ("linear", 1.15)])
def test_the_shift_of_a_resolution_follows_the_checkpoints_law(kind, expected):
    assert resolution_shift(FlowConfig(time_shift_type=kind), 4096) == pytest.approx(expected)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    sigmas = np.linspace(0.1, 1, 10)
    ours = NoiseSchedule.rectified_flow(FlowConfig(num_train_timesteps=10)).shifted(expected)
    np.testing.assert_allclose(ours.sigmas, theirs.time_shift(1.15, 1.0, sigmas), rtol=1e-12)


# What is not supported


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
        ({"prediction_type": "epsilon"}, "prediction_type"),
        ({"time_shift_type": "cosine"}, "time_shift_type"),
        ({"time_shift_type": "linear", "base_shift": -1.0}, "time_shift_type linear"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas"),
        ({"base_image_seq_len": 4096}, "base_image_seq_len"),
        ({"a_key_from_the_future": 1}, "a_key_from_the_future"),
        *(({"shift": value}, "shift") for value in (0, -1.0, math.nan, math.inf, "3", True)),
        *(({"shift_terminal": value}, "shift_terminal") for value in (0.0, 1.0, "0.1")),
        *(({"num_train_timesteps": value}, "num_train_timesteps") for value in (1, 10**9, 1000.0)),
        *(({"use_dynamic_shifting": value}, "use_dynamic_shifting") for value in (1, "true")),
    ],
)
@pytest.mark.parametrize("writer", [EULER, HEUN], ids=["euler", "heun"])
def test_what_is_not_supported_is_named(writer, raw, named):
    with pytest.raises(UserError, match=named) as raised:
        read_schedule(writer | raw)
    assert str(raised.value).startswith("scheduler/scheduler_config.json: ")


def test_a_whole_file_of_diffusers_is_read():
    raw = EULER | dict(FlowMatchEulerDiscreteScheduler(shift=6.0, base_shift=None, max_shift=None).config)
    assert read_schedule(raw).flow == dataclasses.replace(FlowConfig(), shift=6.0)
