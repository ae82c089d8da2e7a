"""Samplers against diffusers' schedulers, step by step from the same latents."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.diffusion.samplers import SAMPLERS, make_timestep_grid
from jaxbooth.diffusion.schedule import convert, read_schedule
from jaxbooth.errors import UserError

CLASSES = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
}
RAW = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
KARRAS = {"euler", "euler_ancestral", "heun"}  # diffusers runs these on z / alpha
STEPS = 20
SHAPE = (2, 4, 4, 4)


def network(z, timestep):
    """Stands for a network: smooth, nonlinear, different at every timestep; torch and jax alike."""
    return 0.7 * z + 0.2 * z * z / (1 + z * z) + 1e-4 * timestep


def reference_path(name: str, raw: dict, latents: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
    scheduler = CLASSES[name].from_config(raw)
    scheduler.set_timesteps(STEPS)
    z = torch.tensor(latents, dtype=torch.float64) * float(scheduler.init_noise_sigma)
    path = []
    for index, timestep in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(z, timestep), timestep)
        draws = iter([torch.tensor(noise[index % STEPS], dtype=torch.float64)])
        z = step_with_noise(scheduler, output, timestep, z, draws)
        level = scheduler.sigmas[index + 1].double() if name in KARRAS else 0
        if name == "heun" and not scheduler.state_in_first_order and index < 2 * STEPS - 2:
            continue  # the first of two halves of a step
        path.append((z / (level**2 + 1) ** 0.5).numpy() if name in KARRAS else z.numpy())
    return path


def step_with_noise(scheduler, output, timestep, z, draws):
    """Runs one scheduler step whose random draw, if any, comes from `draws`."""
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if not hasattr(module, "randn_tensor"):
        return scheduler.step(output, timestep, z).prev_sample
    original = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: next(draws)
    try:
        return scheduler.step(output, timestep, z).prev_sample
    finally:
        module.randn_tensor = original


def our_path(name: str, raw: dict, latents: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
    schedule = read_schedule(raw)
    grid, drawn = make_timestep_grid(schedule, name, STEPS), jnp.asarray(noise, jnp.float32)

    def denoise(z, point):
        output = network(z, point.timestep)
        return convert(output, schedule.prediction_type, "x0", z, point.alpha, point.sigma)

    @jax.jit
    def run(count):
        part, first = grid._replace(num_steps=count), grid.init_noise_sigma * jnp.asarray(latents, jnp.float32)
        return SAMPLERS[name].run(denoise, first, part, lambda i: drawn[i], schedule)

    return [np.asarray(run(np.int32(count))) for count in range(1, STEPS + 1)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_step_equals_diffusers(name, spacing, prediction_type, rng):
    raw = RAW | {"timestep_spacing": spacing, "prediction_type": prediction_type, "steps_offset": 1}
    latents, noise = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    expected = reference_path(name, raw, latents, noise)
    scale = max(np.abs(z).max() for z in expected)
    for index, (ours, theirs) in enumerate(zip(our_path(name, raw, latents, noise), expected, strict=True)):
        # both hold the schedule in float32; ours also the latents, and each step adds its rounding
        assert np.abs(ours - theirs).max() / scale < 2e-5, f"step {index}"


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler", "euler_ancestral", "heun"])
def test_the_default_spacing_is_that_of_diffusers(name, rng):
    latents, noise = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    expected = reference_path(name, RAW, latents, noise)[-1]
    np.testing.assert_allclose(our_path(name, RAW, latents, noise)[-1], expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("total", [1000, 250])
def test_the_grid_of_every_number_of_steps_is_that_of_diffusers(name, spacing, total):
    raw = RAW | {"timestep_spacing": spacing, "steps_offset": 1, "num_train_timesteps": total}
    scheduler, schedule = CLASSES[name].from_config(raw), read_schedule(raw)
    too_long = 0
    for steps in range(1, total):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.numpy()[:: 2 if name == "heun" else 1]
        if spacing == "trailing" and len(expected) > steps:  # a timestep before the first one
            assert expected[-1] == -1
            expected, too_long = expected[:-1], too_long + 1
        expected = np.minimum(expected, total - 1)  # an offset can lead beyond the last one
        points = make_timestep_grid(schedule, name, steps).steps
        np.testing.assert_allclose(points.timestep[:steps], expected, rtol=1e-6, err_msg=f"{steps} steps")
        level = points.sigma[:steps] / points.alpha[:steps]
        np.testing.assert_allclose(level, levels_of(scheduler, expected), rtol=1e-4, err_msg=f"{steps} steps")
        assert points.next_sigma[steps - 1] == 0
    assert (too_long > 0) == (spacing == "trailing")


def levels_of(scheduler, timesteps: np.ndarray) -> np.ndarray:
    """sigma / alpha where diffusers evaluates the network."""
    if hasattr(scheduler, "sigmas"):
        evaluated = scheduler.sigmas[:-1]
        if isinstance(scheduler, diffusers.HeunDiscreteScheduler):  # 0, 1, 1, 2, 2, ...
            evaluated = evaluated[[0, *range(1, len(evaluated), 2)]]
        return evaluated[: len(timesteps)].double().numpy()
    bar = scheduler.alphas_cumprod[timesteps].double().numpy()
    return np.sqrt((1 - bar) / bar)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", None])
@pytest.mark.parametrize("steps", [3, 20, 61])
def test_the_first_noise_has_the_scale_of_diffusers(name, spacing, steps):
    raw = RAW | {"steps_offset": 1} | ({"timestep_spacing": spacing} if spacing else {})
    scheduler, grid = CLASSES[name].from_config(raw), make_timestep_grid(read_schedule(raw), name, steps)
    scheduler.set_timesteps(steps)
    to_z = float(grid.steps.alpha[0]) if name in KARRAS else 1
    assert float(grid.init_noise_sigma) == pytest.approx(to_z * float(scheduler.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 7), ("trailing", 30), ("linspace", 20)])
def test_a_ddim_step_ends_where_the_next_one_starts(spacing, steps):
    schedule = read_schedule(RAW | {"timestep_spacing": spacing})
    points = make_timestep_grid(schedule, "ddim", steps).steps
    np.testing.assert_array_equal(points.next_alpha[: steps - 1], points.alpha[1:steps])
    ends_of_diffusers = np.maximum(points.timestep[:steps] - 1000 // steps, 0)
    assert (ends_of_diffusers[: steps - 1] != points.timestep[1:steps]).any()


def test_a_step_of_no_length_does_no_harm(rng):
    schedule = read_schedule(RAW | {"timestep_spacing": "leading", "steps_offset": 1})
    grid, answer = make_timestep_grid(schedule, "dpmpp_2m", 999), jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    assert grid.steps.timestep[0] == grid.steps.timestep[1] == 999
    start = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)

    def denoise(z, point):
        return answer + 1e-3 * (z + point.index)  # another answer at the same point

    found = SAMPLERS["dpmpp_2m"].run(denoise, start, grid, lambda i: start, schedule)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_pure_noise_at_the_first_step_is_handled(name, rng):
    raw = RAW | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    latents, noise = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    expected = reference_path(name, raw, latents, noise)[-1]
    np.testing.assert_allclose(our_path(name, raw, latents, noise)[-1], expected, atol=5e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_denoiser_that_knows_the_answer_is_followed_to_it(name, rng):
    answer = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    schedule = read_schedule(RAW)
    noise = jnp.asarray(rng.normal(size=(STEPS, *SHAPE)), jnp.float32)
    grid = make_timestep_grid(schedule, name, STEPS)
    found = SAMPLERS[name].run(lambda z, point: answer, noise[0], grid, lambda i: noise[i], schedule)
    np.testing.assert_allclose(found, answer, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1000])
def test_step_counts_out_of_range_are_refused(steps):
    with pytest.raises(UserError, match=f"--steps {steps} is out of range"):
        make_timestep_grid(read_schedule(RAW), "ddim", steps)
