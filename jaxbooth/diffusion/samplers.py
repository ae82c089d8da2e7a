"""Samplers: one pure function each, all of one signature, all a loop over the steps of a grid.

A sampler sees the network only as a denoiser that maps z_t to its estimate of x, so prediction types and guidance
never reach it. Latents are z = alpha x + sigma eps throughout; Karras et al.'s variable is z / alpha, whose noise level
is sigma / alpha. Reference: the diffusers scheduler named in each docstring.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxbooth.diffusion.schedule import Latents, NoiseSchedule
from jaxbooth.errors import UserError
from jaxbooth.params import Array


class SamplerStep(NamedTuple):
    """Where a step starts and where it ends, float32, and its int32 number."""

    timestep: Array
    alpha: Array
    sigma: Array
    next_alpha: Array
    next_sigma: Array
    index: Array


class TimestepGrid(NamedTuple):
    """Where a sampler goes. All of it is data, so that one compiled program serves every number of steps.

    Attributes:
        steps: a `SamplerStep` of arrays, which have room for as many steps as there can be.
        num_steps: scalar int32, how many of them are taken.
        init_noise_sigma: scalar float32, standard deviation of the first z; alpha times diffusers' of that name, which
            is that of z / alpha.
    """

    steps: SamplerStep
    num_steps: Array
    init_noise_sigma: Array


Denoiser = Callable[[Latents, SamplerStep], Latents]  # (z_t, where the step starts) -> x
Noise = Callable[[Array], Latents]  # step index -> standard normal noise of the latents' shape
Sampler = Callable[[Denoiser, Latents, TimestepGrid, Noise, NoiseSchedule], Latents]
Carry = TypeVar("Carry")
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "euler", "euler_ancestral"]


def scan_steps(update: Callable[[Carry, SamplerStep], Carry], start: Carry, grid: TimestepGrid) -> Carry:
    """Takes the steps of a grid, whose arrays may be the host's, one after another."""

    def body(index: Array, carry: Carry) -> Carry:
        return update(carry, jax.tree.map(lambda field: jnp.asarray(field)[index], grid.steps))

    return jax.lax.fori_loop(0, grid.num_steps, body, start)


def to_epsilon(z: Latents, x0: Latents, step: SamplerStep) -> Latents:
    """Returns the noise in z, given that its clean latents are x0."""
    return (z - step.alpha * x0) / step.sigma


def ddpm(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """Ancestral sampling with the posterior q(z_s | z_t, x) (Ho et al. 2020, equations 6 and 7); `DDPMScheduler`."""

    def update(z: Latents, step: SamplerStep) -> Latents:
        x0 = denoise(z, step)
        alpha_step = step.alpha / step.next_alpha  # sqrt(1 - beta) of the step
        # 1 - alpha_step^2, without the cancellation near alpha = 1
        beta = (jnp.square(step.sigma) - jnp.square(step.next_sigma)) / jnp.square(step.next_alpha)
        share = jnp.square(step.next_sigma / step.sigma)
        mean = step.next_alpha * beta / jnp.square(step.sigma) * x0 + alpha_step * share * z
        variance = beta if schedule.fixed_large else beta * share
        adds_noise = step.next_sigma > 0
        return mean + jnp.where(adds_noise, jnp.sqrt(variance), 0) * noise(step.index)

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


def euler(denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule) -> Latents:
    """Euler steps on the ODE in z / alpha (Karras et al. 2022, Algorithm 1); `EulerDiscreteScheduler`."""

    def update(z: Latents, step: SamplerStep) -> Latents:
        x0 = denoise(z, step)
        change = step.next_sigma / step.next_alpha - step.sigma / step.alpha
        return step.next_alpha * (z / step.alpha + change * to_epsilon(z, x0, step))

    return scan_steps(update, latents, grid)


def euler_ancestral(
    denoise: Denoiser, latents: Latents, grid: TimestepGrid, noise: Noise, schedule: NoiseSchedule
) -> Latents:
    """An Euler step down to sigma_down, then fresh noise of sigma_up; `EulerAncestralDiscreteScheduler`."""

    def update(z: Latents, step: SamplerStep) -> Latents:
        x0 = denoise(z, step)
        start, end = step.sigma / step.alpha, step.next_sigma / step.next_alpha
        sigma_up = end * jnp.sqrt(start**2 - end**2) / start
        sigma_down = jnp.sqrt(end**2 - sigma_up**2)
        moved = z / step.alpha + (sigma_down - start) * to_epsilon(z, x0, step)
        return step.next_alpha * (moved + sigma_up * noise(step.index))

    return scan_steps(update, latents, grid)


class SamplerSpec(NamedTuple):
    """A sampler, and how diffusers' scheduler of it chooses its timesteps.

    Attributes:
        run: the sampler.
        spacing: used when the checkpoint names none.
        has_extra_point: picks steps + 1 points and drops the last, which is where the final step would have started.
        is_fractional: `linspace` timesteps are not rounded.
        divides_by_alpha: a zero terminal SNR is raised, see `NoiseSchedule.interpolate`.
        starts_from_noise: where the first timestep is the last of training (`linspace`, `trailing`), the first z is
            sigma eps, without the variance that x would add.
        may_end_at_first_timestep: the checkpoint's `set_alpha_to_one` counts.
    """

    run: Sampler
    spacing: str
    has_extra_point: bool = False
    is_fractional: bool = False
    divides_by_alpha: bool = False
    starts_from_noise: bool = False
    may_end_at_first_timestep: bool = False


KARRAS: Any = {"is_fractional": True, "divides_by_alpha": True, "starts_from_noise": True}
SAMPLERS: dict[str, SamplerSpec] = {
    "ddpm": SamplerSpec(ddpm, "leading"),
    "ddim": SamplerSpec(ddim, "leading", may_end_at_first_timestep=True),
    "dpmpp_2m": SamplerSpec(dpmpp_2m, "linspace", has_extra_point=True, divides_by_alpha=True),
    "euler": SamplerSpec(euler, "linspace", **KARRAS),
    "euler_ancestral": SamplerSpec(euler_ancestral, "linspace", **KARRAS),
}


def spaced_timesteps(total: int, steps: int, spacing: str, offset: int, spec: SamplerSpec) -> np.ndarray:
    """Picks (steps,) decreasing timesteps out of 0 .. total-1 (Lin et al. 2023, table 2), as diffusers does.

    Under `trailing`, rounding makes diffusers' range one longer for some numbers of steps (61, 103, 121, ...): a last
    timestep -1, which no network was trained on, and which is left out here.
    """
    points = steps + 1 if spec.has_extra_point else steps
    if spacing == "linspace":
        line = np.linspace(0, total - 1, points)[::-1][:steps]
        return line if spec.is_fractional else line.round()
    if spacing == "leading":
        return np.minimum(np.arange(points)[::-1][:steps] * (total // points) + offset, total - 1).astype(np.float64)
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
    raise UserError(
        f"scheduler/scheduler_config.json: timestep_spacing {spacing!r} is not supported; "
        "known are leading, linspace and trailing."
    )


def on_host(values: Any, dtype: type) -> Any:
    """Returns numpy's array of values; a compiled program takes it where a device's is declared."""
    return np.asarray(values, dtype)


def make_timestep_grid(schedule: NoiseSchedule, name: SamplerName, steps: int, flag: str = "--steps") -> TimestepGrid:
    """Returns the grid that sampler `name` follows in `steps` network evaluations, on the host.

    Args:
        flag: named in the error.

    Raises:
        UserError: fewer than one step, or more steps than the schedule has.
    """
    spec, total = SAMPLERS[name], schedule.num_train_timesteps
    if not 1 <= steps < total:
        raise UserError(f"{flag} {steps} is out of range; the schedule allows 1 to {total - 1} sampling steps.")
    spacing = schedule.timestep_spacing or spec.spacing
    timesteps = spaced_timesteps(total, steps, spacing, schedule.steps_offset, spec)
    alpha, sigma = schedule.interpolate(timesteps, divides_by_alpha=spec.divides_by_alpha)
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    if spec.may_end_at_first_timestep and not schedule.set_alpha_to_one:
        next_alpha[-1], next_sigma[-1] = schedule.alphas[0], schedule.sigmas[0]

    fields = (np.resize(field, total) for field in (timesteps, alpha, sigma, next_alpha, next_sigma))
    all_steps = SamplerStep(*(on_host(field, np.float32) for field in fields), on_host(np.arange(total), np.int32))
    starts_from_noise = spec.starts_from_noise and spacing != "leading"
    init_noise_sigma = sigma[0] if starts_from_noise else 1
    return TimestepGrid(all_steps, on_host(steps, np.int32), on_host(init_noise_sigma, np.float32))
