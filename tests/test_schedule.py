"""The forward process against diffusers and against identities."""

import itertools
import math

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from jaxbooth.diffusion.schedule import NoiseSchedule, convert, read_schedule, training_target
from jaxbooth.errors import UserError

SPACES = ("epsilon", "x0", "v", "flow")
OTHERS = ("EDMEuler", "EDMDPMSolverMultistep", "FlowMatchLCM", "LCM", "TCD", "ScoreSdeVe")
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
KINDS = ("linear", "scaled_linear", "squaredcos_cap_v2")


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_alphas_cumprod_equal_diffusers(kind, zero_snr):
    raw = {"beta_schedule": kind, "rescale_betas_zero_snr": zero_snr, "prediction_type": "v_prediction"}
    expected = DDPMScheduler(**raw).alphas_cumprod.numpy()
    found = read_schedule(raw).alphas_cumprod
    # diffusers multiplies a thousand float32 factors: 1e-7 each, growing as the root of their number
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


SCHEDULERS = [kind.name for kind in KarrasDiffusionSchedulers if kind.name != "EDMEulerScheduler"]


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if kind != "DPMSolverSDEScheduler"])  # needs torchsde
@pytest.mark.parametrize("written", [True, False], ids=["whole file", "defaults left out"])
def test_the_schedulers_that_diffusers_exchanges_for_one_another_describe_the_same_process(kind, written):
    theirs = getattr(diffusers, kind)(beta_schedule="scaled_linear")
    raw = dict(theirs.config) | {"clip_sample": False} if written else {"beta_schedule": "scaled_linear"}
    found = read_schedule({"_class_name": kind} | raw).alphas_cumprod
    np.testing.assert_allclose(found, theirs.alphas_cumprod.numpy(), rtol=2e-5)


def test_what_only_another_sampler_reads_changes_nothing():
    others = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "algorithm_type": "sde-dpmsolver++",
              "lambda_min_clipped": -math.inf, "interpolation_type": "log_linear", "skip_prk_steps": True}  # fmt: skip
    assert repr(read_schedule(others)) == repr(read_schedule({}))


def test_zero_terminal_snr_ends_in_pure_noise():
    schedule = read_schedule({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.alphas_cumprod[0] == pytest.approx(read_schedule({}).alphas_cumprod[0])


def test_trained_betas_are_used_as_they_are():
    np.testing.assert_allclose(read_schedule({"trained_betas": [0.1, 0.2]}).alphas_cumprod, [0.9, 0.72])


def test_add_noise_equals_diffusers(rng):
    latents, noise = rng.normal(size=(2, 3, 4, 4, 4)).astype(np.float32)
    timesteps = np.array([0, 500, 999])
    raw = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    expected = DDPMScheduler(**raw).add_noise(*map(torch.tensor, (latents, noise)), torch.tensor(timesteps))
    found = read_schedule(raw).add_noise(latents, noise, timesteps)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_v_target_equals_diffusers(rng):
    latents, noise = rng.normal(size=(2, 3, 4, 4, 4)).astype(np.float32)
    timesteps = np.array([0, 500, 999])
    schedule = read_schedule({})
    expected = DDPMScheduler().get_velocity(*map(torch.tensor, (latents, noise)), torch.tensor(timesteps))
    found = training_target("v", latents, noise, schedule.alpha(timesteps), schedule.sigma(timesteps))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


@pytest.mark.parametrize("raw", [{}, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(SPACES, 2)))
def test_conversions_map_targets_onto_targets(source, target, raw, rng):
    latents, noise = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 4)), jnp.float32)
    schedule, timesteps = read_schedule(raw), np.array([20, 500, 900])
    alpha, sigma = schedule.alpha(timesteps), schedule.sigma(timesteps)
    noisy = schedule.add_noise(latents, noise, timesteps)
    value = training_target(source, latents, noise, alpha, sigma)
    found = convert(value, source, target, noisy, alpha, sigma)
    # the worst case divides by alpha = 0.016 or sigma = 0.06
    np.testing.assert_allclose(found, training_target(target, latents, noise, alpha, sigma), atol=3e-5)


@pytest.mark.parametrize("order", [order for n in (2, 3, 4) for order in itertools.permutations(SPACES, n)])
def test_conversions_close_their_cycles(order, rng):
    value, noisy = jnp.asarray(rng.normal(size=(2, 1, 4, 4, 4)), jnp.float32)
    for alpha, sigma in ((0.6, 0.8), (0.3, 0.7), (0.5, 1.4)):  # variance preserving, rectified flow, neither
        around = value
        for source, target in zip(order, (*order[1:], order[0]), strict=True):
            around = convert(around, source, target, noisy, jnp.float32(alpha), jnp.float32(sigma))
        np.testing.assert_allclose(around, value, atol=5e-6)


@pytest.mark.parametrize("target", SPACES)
@pytest.mark.parametrize("source", ["v", "flow"])
def test_at_pure_noise_nothing_divides_by_alpha(source, target, rng):
    latents, noise = jnp.asarray(rng.normal(size=(2, 1, 4, 4, 4)), jnp.float32)
    alpha, sigma = jnp.float32(0), jnp.float32(1)
    value = training_target(source, latents, noise, alpha, sigma)
    found = convert(value, source, target, noise, alpha, sigma)
    np.testing.assert_allclose(found, training_target(target, latents, noise, alpha, sigma), atol=1e-6)


def test_snr_is_alpha_squared_over_sigma_squared():
    schedule = NoiseSchedule.variance_preserving(np.array([0.8, 0.5, 0.2]), "epsilon")
    np.testing.assert_allclose(schedule.snr(np.arange(3)), [4.0, 1.0, 0.25], rtol=1e-6)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        *(
            ({"_class_name": f"{kind}Scheduler"}, f"{kind}Scheduler belongs to another kind of diffusion model")
            for kind in OTHERS
        ),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"prediction_type": "flow"}, "flow"),
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"timestep_type": "continuous", "prediction_type": "v_prediction"}, "timestep_type"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"variance_type": "learned_range"}, "variance_type"),
        ({"variance_type": "fixed_large_log"}, "variance_type"),  # diffusers takes the root of a logarithm
        ({"clip_sample": 0}, "clip_sample"),
        ({"a_key_from_the_future": 0}, "a_key_from_the_future"),
        *(({"num_train_timesteps": value}, "num_train_timesteps") for value in (0, -1, 1, 10**9, 1000.0, "1000", True)),
        *(({"beta_end": value}, "beta_end") for value in (0, -0.1, 1, math.nan, math.inf, "0.01", [0.01])),
        *(
            ({"trained_betas": value}, "trained_betas")
            for value in ([], [0.1], [0.1, math.nan], [[0.1], [0.1, 0.2]], [0.1, 1.1], [0.1, "0.2"], 0.1, "ab")
        ),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 1000}, "trained_betas has 2 entries for num_train"),
        ({"trained_betas": [0.1, 1]}, "pure noise"),
        ({"trained_betas": [0.1, 1, 0.1], "prediction_type": "v_prediction"}, "pure noise before the last timestep"),
        ({"trained_betas": [1e-300, 0.1]}, "or add none"),
        ({"beta_start": 0.9, "beta_end": 0.9}, "pure noise"),
        ({"steps_offset": 1000}, "steps_offset"),
        ({"timestep_spacing": "log"}, "timestep_spacing"),
        ({"timestep_spacing": 1}, "timestep_spacing"),
        ({"set_alpha_to_one": "false"}, "set_alpha_to_one"),
        ({"_class_name": ["DDPMScheduler"]}, "DDPMScheduler"),
    ],
)
def test_what_is_not_supported_is_named(raw, named):
    with pytest.raises(UserError, match=named) as raised:
        read_schedule(raw)
    assert str(raised.value).startswith("scheduler/scheduler_config.json: ")
    assert len(str(raised.value)) < 500
