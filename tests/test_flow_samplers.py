"""Samplers on rectified flow against diffusers' schedulers and pipelines, and against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

from jaxbooth.diffusion.samplers import SAMPLERS, make_timestep_grid
from jaxbooth.diffusion.schedule import NoiseSchedule, convert, read_schedule
from jaxbooth.errors import UserError

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}
FILES = {
    "no shift": {},
    "static": {"shift": 3.0},
    "dynamic": DYNAMIC,
    "dynamic, linear": DYNAMIC | {"time_shift_type": "linear"},
    "karras": {"shift": 3.0, "use_karras_sigmas": True},
    "dynamic, exponential": DYNAMIC | {"use_exponential_sigmas": True},
    "beta": {"shift": 2.0, "use_beta_sigmas": True},
    "dynamic, terminal": DYNAMIC | {"shift_terminal": 0.1},
}
STEPS, TOKENS = 12, 1024
SHAPE = (2, 4, 4, 4)


def network(z, timestep):
    """Stands for a network: smooth, nonlinear, different at every timestep; torch and jax alike."""
    return 0.7 * z + 0.2 * z * z / (1 + z * z) + 1e-3 * timestep


def z_image_scheduler(raw: dict, steps: int, tokens: int = TOKENS) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler as diffusers' pipeline of Z-Image sets it up."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(raw)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps), mu=calculate_shift(tokens))
    return scheduler


def our_path(name: str, raw: dict, latents: np.ndarray) -> list[np.ndarray]:
    schedule = read_schedule(EULER | raw)
    grid = make_timestep_grid(schedule, name, STEPS, TOKENS)

    def denoise(z, step):
        return convert(network(z, step.timestep), "flow", "x0", z, step.alpha, step.sigma)

    @jax.jit
    def run(count):
        start = grid.init_noise_sigma * jnp.asarray(latents, jnp.float32)
        return SAMPLERS[name].run(denoise, start, grid._replace(num_steps=count), lambda i: start, schedule)

    return [np.asarray(run(np.int32(count))) for count in range(1, STEPS + 1)]


def assert_equal_paths(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    scale = max(np.abs(z).max() for z in theirs)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        # both hold sigmas in float32, ours also the latents, and each step adds its rounding
        assert np.abs(one - other).max() / scale < 5e-6, f"step {index}"


# Grids


@pytest.mark.parametrize("raw", FILES.values(), ids=FILES)
def test_the_sigmas_of_every_number_of_steps_are_those_of_the_z_image_pipeline(raw):
    schedule = read_schedule(EULER | raw)
    for steps in (*range(2 if "shift_terminal" in raw else 1, 61), 250):
        for tokens in (64, 1024, 4096):
            expected = z_image_scheduler(raw, steps, tokens)
            grid = make_timestep_grid(schedule, "euler", steps, tokens)
            assert_same_grid(grid, expected, steps)


def test_the_sigmas_of_every_number_of_steps_are_those_of_the_klein_pipeline():
    schedule = read_schedule(EULER | DYNAMIC)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(DYNAMIC)
    for steps in (1, 4, 28, 50, 200):
        for tokens in (256, 1024, 4096, 5000):
            sigmas = np.linspace(1.0, 1 / steps, steps)
            scheduler.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(image_seq_len=tokens, num_steps=steps))
            grid = make_timestep_grid(schedule, "euler", steps, tokens, "empirical")
            assert_same_grid(grid, scheduler, steps)


def assert_same_grid(grid, scheduler, steps: int) -> None:
    sigmas, timesteps = scheduler.sigmas.numpy(), scheduler.timesteps.numpy()
    # diffusers rounds to float32 before the shift, whose slope at small sigmas is the shift itself
    exact = {"rtol": 1e-6, "atol": 2e-7}
    np.testing.assert_allclose(grid.steps.sigma[:steps], sigmas[:-1], **exact)
    np.testing.assert_allclose(grid.steps.next_sigma[:steps], sigmas[1:], **exact)
    np.testing.assert_allclose(grid.steps.timestep[:steps], timesteps, rtol=1e-6, atol=2e-4)
    np.testing.assert_allclose(grid.steps.alpha[:steps], 1 - sigmas[:-1], atol=3e-7)
    assert grid.num_steps == steps


@pytest.mark.parametrize("raw", FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_from_pure_noise_of_variance_one_to_no_noise(name, raw):
    for steps in (1, 2, 7, 50):
        grid = make_timestep_grid(read_schedule(EULER | raw), name, steps, TOKENS)
        assert grid.init_noise_sigma == 1
        assert grid.steps.alpha[0] == 0
        assert grid.steps.sigma[0] == 1
        assert grid.steps.timestep[0] == 1000
        assert grid.steps.next_sigma[steps - 1] == 0
        assert grid.steps.next_timestep[steps - 1] == 0
        assert (np.diff(grid.steps.sigma[:steps]) < 0).all()


def test_a_dynamic_shift_needs_the_size_of_the_image():
    with pytest.raises(ValueError, match="image tokens"):
        make_timestep_grid(read_schedule(EULER | DYNAMIC), "euler", 10)


@pytest.mark.parametrize("steps", [0, 1000])
def test_step_counts_out_of_range_are_refused(steps):
    with pytest.raises(UserError, match=f"--steps {steps} is out of range"):
        make_timestep_grid(NoiseSchedule.rectified_flow(), "euler", steps)


# Steps


@pytest.mark.parametrize("name", ["euler", "ddim"])
@pytest.mark.parametrize("raw", FILES.values(), ids=FILES)
def test_every_euler_step_equals_diffusers(raw, name, rng):
    latents, scheduler = rng.normal(size=SHAPE), z_image_scheduler(raw, STEPS)
    z, path = torch.tensor(latents, dtype=torch.float64), []
    for timestep in scheduler.timesteps:
        z = scheduler.step(network(z, timestep), timestep, z).prev_sample
        path.append(z.numpy())
    assert_equal_paths(our_path(name, raw, latents), path)


@pytest.mark.parametrize("raw", [{}, {"shift": 3.0}, DYNAMIC], ids=["no shift", "static", "dynamic"])
def test_every_heun_step_equals_diffusers(raw, rng):
    latents, scheduler = rng.normal(size=SHAPE), FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    euler = z_image_scheduler(raw, STEPS)  # the pipelines' sigmas, which the Heun scheduler does not take
    each, last = euler.sigmas[:-1], euler.sigmas[-1:]
    scheduler.sigmas = torch.cat([each[:1], each[1:].repeat_interleave(2), last])
    scheduler.timesteps = torch.cat([euler.timesteps[:1], euler.timesteps[1:].repeat_interleave(2)])
    z, path = torch.tensor(latents, dtype=torch.float64), []
    for index, timestep in enumerate(scheduler.timesteps):
        z = scheduler.step(network(z, timestep), timestep, z).prev_sample
        if scheduler.state_in_first_order or index == 2 * STEPS - 2:
            path.append(z.numpy())
    assert_equal_paths(our_path("heun", raw, latents), path)


@pytest.mark.parametrize("raw", [{}, {"shift": 3.0}, DYNAMIC], ids=["no shift", "static", "dynamic"])
def test_every_dpmpp_2m_step_equals_diffusers(raw, rng):
    latents, euler = rng.normal(size=SHAPE), z_image_scheduler(raw, STEPS)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas, scheduler.timesteps = euler.sigmas.double(), euler.timesteps  # theirs start at 0.999
    z, path = torch.tensor(latents, dtype=torch.float64), []
    for timestep in scheduler.timesteps:
        z = scheduler.step(network(z, timestep), timestep, z).prev_sample
        path.append(z.numpy())
    assert_equal_paths(our_path("dpmpp_2m", raw, latents), path)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_denoiser_that_knows_the_answer_is_followed_to_it(name, rng):
    answer, noise = jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32)
    schedule = read_schedule(EULER | {"shift": 3.0})
    grid = make_timestep_grid(schedule, name, STEPS)
    found = SAMPLERS[name].run(lambda z, step: answer, noise, grid, lambda i: noise, schedule)
    np.testing.assert_allclose(found, answer, atol=1e-5)


# Normal latents, whose ideal denoiser is known

MEAN, SPREAD = 0.4, 0.8


def ideal_denoiser(z, step):
    variance = step.alpha**2 * SPREAD**2 + step.sigma**2
    return MEAN + step.alpha * SPREAD**2 * (z - step.alpha * MEAN) / variance


def sampled(name: str, steps: int, start: jax.Array, steps_taken: int | None = None) -> np.ndarray:
    schedule = read_schedule(EULER | {"shift": 2.0})
    grid = make_timestep_grid(schedule, name, steps)._replace(num_steps=np.int32(steps_taken or steps))

    def noise(index):
        return jax.random.normal(jax.random.fold_in(jax.random.key(7), index), start.shape)

    return np.asarray(SAMPLERS[name].run(ideal_denoiser, start, grid, noise, schedule))


@pytest.mark.parametrize(
    ("name", "order", "error"), [("euler", 1, 0.06), ("ddim", 1, 0.06), ("heun", 2, 2e-3), ("dpmpp_2m", 1.5, 6e-3)]
)
def test_the_error_falls_with_the_order_of_the_sampler(name, order, error, rng):
    start = jnp.asarray(rng.normal(size=(1, 8, 8, 4)), jnp.float32)
    exact = MEAN + SPREAD * np.asarray(start)  # the ODE keeps (z - alpha m) / sqrt(alpha^2 d^2 + sigma^2)
    errors = [np.abs(sampled(name, steps, start) - exact).max() for steps in (40, 80)]
    assert errors[1] < error
    assert math.log2(errors[0] / errors[1]) > order - 0.1  # the first and the last step of dpmpp_2m are of order 1


@pytest.mark.parametrize("steps_taken", [25, 75, 100])
@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral"])
def test_ancestral_samples_have_the_variance_of_the_process_at_every_noise_level(name, steps_taken, rng):
    start = jnp.asarray(rng.normal(size=(1, 64, 64, 4)), jnp.float32)
    found = sampled(name, 100, start, steps_taken)
    end = make_timestep_grid(read_schedule(EULER | {"shift": 2.0}), name, 100).steps
    alpha, sigma = float(end.next_alpha[steps_taken - 1]), float(end.next_sigma[steps_taken - 1])
    # 16,384 samples: 4 standard errors are 3 % of a standard deviation and 4.4 % of a variance; 100 steps are 2 % off
    assert found.mean() == pytest.approx(alpha * MEAN, abs=0.03)
    assert found.var() == pytest.approx(alpha**2 * SPREAD**2 + sigma**2, rel=0.065)


def test_ancestral_steps_share_as_much_noise_as_the_process_does(rng):
    start, schedule = jnp.asarray(rng.normal(size=(1, 64, 64, 4)), jnp.float32), NoiseSchedule.rectified_flow()
    grid = make_timestep_grid(schedule, "ddpm", 4)  # sigma 1, 0.75, 0.5, 0.25, 0

    def after(steps: int) -> np.ndarray:
        """z after some steps towards x = 0, which is noise alone."""
        keys = [jax.random.key(index) for index in range(4)]
        noise = jnp.stack([jax.random.normal(key, start.shape) for key in keys])
        part = grid._replace(num_steps=np.int32(steps))
        return np.asarray(SAMPLERS["ddpm"].run(lambda z, _: 0 * z, start, part, lambda index: noise[index], schedule))

    first, second, third = after(1), after(2), after(3)
    for values, sigma in ((first, 0.75), (second, 0.5), (third, 0.25)):
        assert values.std() == pytest.approx(sigma, rel=0.022)  # 4 standard errors
    # z_t = (alpha_t / alpha_s) z_s + fresh noise: their covariance is (alpha_t / alpha_s) sigma_s^2
    assert np.mean(first * start) == pytest.approx(0, abs=0.024)
    assert np.mean(second * first) == pytest.approx(0.25 / 0.5 * 0.5**2, abs=0.012)
    assert np.mean(third * second) == pytest.approx(0.5 / 0.75 * 0.25**2, abs=0.006)
