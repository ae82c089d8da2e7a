"""Samplers: one pure function each, all of one signature, all a loop over the steps of a grid.

A sampler sees the network only as a denoiser that maps z_t to its estimate of x, so prediction types and guidance
never reach it. Latents are z = alpha x + sigma eps throughout, whether variance preserving or rectified flow. alpha may
be 0 where a step starts, which is where rectified flow begins. Reference: the diffusers scheduler named in each
docstring.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxbooth.diffusion.flow import MuLaw, sampling_shift
from jaxbooth.diffusion.schedule import Latents, NoiseSchedule
from jaxbooth.diffusion.timestep_grid import (
    GridSpec,
    SamplerStep,
    TimestepGrid,
    check_steps,
    flow_grid,
    variance_preserving_grid,
)
from jaxbooth.params import Array

Denoiser = Callable[[Latents, SamplerStep], Latents]  # (z_t, where the step starts) -> x
Noise = Callable[[Array], Latents]  # step index -> standard normal noise of the latents' shape
Sampler = Callable[[Denoiser, Latents, TimestepGrid, Noise, NoiseSchedule], Latents]
Carry = TypeVar("Carry")
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "euler", "euler_ancestral", "heun"]


def scan_steps(update: Callable[[Carry, SamplerStep], Carry], start: Carry, grid: TimestepGrid) -> Carry:
    """Takes the steps of a grid, whose arrays may be the host's, one after another."""

    def body(index: Array, carry: Carry) -> Carry:
        return update(carry, jax.tree.map(lambda field: jnp.asarray(field)[index], grid.steps))

    return jax.lax.fori_loop(0, grid.num_steps, body, start)


def to_epsilon(z: Latents, x0: Latents, step: SamplerStep) -> Latents:
    """Returns the noise in z, given that its clean latents are x0."""
    return (z - step.alpha * x0) / step.sigma


def ancestral_parts(z: Latents, x0: Latents, step: SamplerStep) -> tuple[Latents, Array]:
    """Returns the mean of the posterior q(z_s | z_t, x) and the share of new noise (Ho et al. 2020, equations 6 and 7).

    The posterior keeps a share q of the noise that is in z, with q^2 = SNR_t / SNR_s, and its standard deviation is
    sigma_s sqrt(1 - q^2). That of the step from z_s to z_t is sigma_t sqrt(1 - q^2).
    """
    kept = step.alpha * step.next_sigma / (step.next_alpha * step.sigma)
    mean = step.next_alpha * x0 + step.next_sigma * kept * to_epsilon(z, x0, step)
    return mean, jnp.sqrt(1 - jnp.square(kept))


def ddpm(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """Ancestral sampling (Ho et al. 2020, algorithm 2); `DDPMScheduler`."""

    def update(z: Latents, step: SamplerStep) -> Latents:
        mean, new_share = ancestral_parts(z, denoise(z, step), step)
        deviation = new_share * (step.sigma if schedule.fixed_large else step.next_sigma)
        adds_noise = step.next_sigma > 0
        return mean + jnp.where(adds_noise, deviation, 0) * noise(step.index)

    return scan_steps(update, latents, grid)


def ddim(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """The deterministic map (Song et al. 2021, equation 12 with eta = 0); `DDIMScheduler`.

    A step ends where the next one starts. diffusers ends it at t - T // n instead, which is the same timestep under
    `leading`. Under `linspace`, and under `trailing` with a number of steps n that does not divide T, it is another
    one, and diffusers goes on from there as if it were the next grid step.
    """

    def update(z: Latents, step: SamplerStep) -> Latents:
        x0 = denoise(z, step)
        return step.next_alpha * x0 + step.next_sigma * to_epsilon(z, x0, step)

    return scan_steps(update, latents, grid)


def dpmpp_2m(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, arXiv 2211.01095, Algorithm 2); `DPMSolverMultistepScheduler`.

    The first step and the one that lands on sigma = 0 are of first order, and so is one after a step of no length.
    """

    def log_snr(alpha: Array, sigma: Array) -> Array:
        return jnp.log(alpha) - jnp.log(sigma)

    def update(carry: tuple[Latents, Latents, Array], step: SamplerStep) -> tuple[Latents, Latents, Array]:
        z, previous_x0, previous_half_log_snr = carry
        x0 = denoise(z, step)
        here = log_snr(step.alpha, step.sigma)
        h = log_snr(step.next_alpha, step.next_sigma) - here
        correction = 0.5 * h / (here - previous_half_log_snr) * (x0 - previous_x0)
        is_second_order = (step.index > 0) & (step.next_sigma > 0) & (here > previous_half_log_snr)
        slope = x0 + jnp.where(is_second_order, correction, 0)
        z = step.next_sigma / step.sigma * z - step.next_alpha * jnp.expm1(-h) * slope
        return z, x0, here

    start = (latents, jnp.zeros_like(latents), jnp.zeros((), latents.dtype))
    return scan_steps(update, start, grid)[0]


def ode_scale(alpha: Array, schedule: NoiseSchedule) -> Array:
    """Returns c such that the sampling ODE is solved in z / c against the noise level sigma / c.

    c = alpha for variance-preserving schedules (Karras et al. 2022), whose slope there is epsilon. For rectified flow
    c = alpha + sigma = 1, and the slope is the velocity eps - x. Either is ((z / c) - x) / (sigma / c).
    """
    return jnp.ones_like(alpha) if schedule.is_flow else alpha


def ode_slope(z: Latents, x0: Latents, alpha: Array, sigma: Array, schedule: NoiseSchedule) -> Latents:
    """Returns the slope of z / c, see `ode_scale`, at a point whose clean latents are x0."""
    return (z - ode_scale(alpha, schedule) * x0) / sigma


def ode_step(z: Latents, slope: Latents, step: SamplerStep, schedule: NoiseSchedule) -> Latents:
    """Moves z along a slope from the step's start to its end."""
    scale, next_scale = ode_scale(step.alpha, schedule), ode_scale(step.next_alpha, schedule)
    change = step.next_sigma / next_scale - step.sigma / scale
    return next_scale * (z / scale + change * slope)


def euler(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """Euler's steps on the sampling ODE (Karras et al. 2022); the map of `ddim`, on another grid.

    `EulerDiscreteScheduler`, `FlowMatchEulerDiscreteScheduler`.
    """

    def update(z: Latents, step: SamplerStep) -> Latents:
        slope = ode_slope(z, denoise(z, step), step.alpha, step.sigma, schedule)
        return ode_step(z, slope, step, schedule)

    return scan_steps(update, latents, grid)


def heun(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """Heun's steps on the sampling ODE (Karras et al. 2022, Algorithm 1), of second order; two evaluations a step.

    The step that lands on sigma = 0 is Euler's. `HeunDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`.
    """

    def update(z: Latents, step: SamplerStep) -> Latents:
        slope = ode_slope(z, denoise(z, step), step.alpha, step.sigma, schedule)
        predicted = ode_step(z, slope, step, schedule)
        end = step._replace(timestep=step.next_timestep, alpha=step.next_alpha, sigma=step.next_sigma)
        end_slope = ode_slope(predicted, denoise(predicted, end), end.alpha, end.sigma, schedule)
        corrected = ode_step(z, (slope + end_slope) / 2, step, schedule)
        return jnp.where(step.next_sigma > 0, corrected, predicted)

    return scan_steps(update, latents, grid)


def euler_ancestral(
    denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule
) -> Latents:
    """An Euler step down to less noise than the step ends with, then fresh noise; `EulerAncestralDiscreteScheduler`.

    It is the map of `ddpm`, on another grid.
    """

    def update(z: Latents, step: SamplerStep) -> Latents:
        mean, new_share = ancestral_parts(z, denoise(z, step), step)
        return mean + new_share * step.next_sigma * noise(step.index)

    return scan_steps(update, latents, grid)


class SamplerSpec(NamedTuple):
    """A sampler, and how diffusers' scheduler of it chooses its timesteps."""

    run: Sampler
    grid: GridSpec


KARRAS = GridSpec("linspace", is_fractional=True, divides_by_alpha=True, starts_from_noise=True)
SAMPLERS: dict[str, SamplerSpec] = {
    "ddpm": SamplerSpec(ddpm, GridSpec("leading")),
    "ddim": SamplerSpec(ddim, GridSpec("leading", may_end_at_first_timestep=True)),
    "dpmpp_2m": SamplerSpec(dpmpp_2m, GridSpec("linspace", has_extra_point=True, divides_by_alpha=True)),
    "euler": SamplerSpec(euler, KARRAS),
    "euler_ancestral": SamplerSpec(euler_ancestral, KARRAS),
    "heun": SamplerSpec(heun, KARRAS),
}


def make_timestep_grid(
    schedule: NoiseSchedule,
    name: SamplerName,
    steps: int,
    image_tokens: int | None = None,
    mu_law: MuLaw = "linear",
) -> TimestepGrid:
    """Returns the grid that sampler `name` follows in a number of steps, on the host.

    On rectified flow it is the same for every sampler: that of diffusers' pipelines with the checkpoint's scheduler.

    Args:
        image_tokens: how many the network makes of the image; needed where the checkpoint's shift is dynamic.
        mu_law: how that shift follows from them.

    Raises:
        UserError: see `check_steps`.
    """
    check_steps(schedule, steps)
    if schedule.flow is None:
        return variance_preserving_grid(schedule, SAMPLERS[name].grid, steps)
    return flow_grid(schedule.flow, steps, sampling_shift(schedule.flow, mu_law, image_tokens, steps))
