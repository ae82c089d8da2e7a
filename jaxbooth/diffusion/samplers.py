"""Samplers: one pure function each, all of one signature, all a loop over the points of a grid.

A sampler sees the network only as a denoiser that maps z_t to its estimate of x, so prediction types and guidance
never reach it. Latents are the variance-preserving z = alpha x + sigma eps throughout; Karras et al.'s variable is
z / alpha, whose noise level is sigma / alpha. Reference: the diffusers scheduler named in each docstring.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.diffusion.schedule import Schedule
from jaxbooth.errors import UserError


class Point(NamedTuple):
    """Where a step starts and where it ends, float32, and its int32 number."""

    timestep: Array
    alpha: Array
    sigma: Array
    next_alpha: Array
    next_sigma: Array
    index: Array


class Grid(NamedTuple):
    """Where a sampler goes. All of it is data, so that one compiled program serves every number of steps.

    Attributes:
        points: a `Point` of arrays, which have room for as many steps as there can be.
        steps: scalar int32, how many of them are visited.
        init_noise_sigma: scalar float32, standard deviation of the first z; alpha times diffusers' of that name, which
            is that of z / alpha.
    """

    points: Point
    steps: Array
    init_noise_sigma: Array


Denoiser = Callable[[Array, Point], Array]  # (z_t, where the step starts) -> x
Noise = Callable[[Array], Array]  # step index -> standard normal noise of the latents' shape
Sampler = Callable[[Denoiser, Array, Grid, Noise, Schedule], Array]
Carry = TypeVar("Carry")
SamplerName = Literal["ddpm", "ddim", "dpmpp_2m", "euler", "euler_ancestral"]


def follow(step: Callable[[Carry, Point], Carry], start: Carry, grid: Grid) -> Carry:
    """Takes the steps of a grid, whose arrays may be the host's, one after another."""

    def body(index: Array, carry: Carry) -> Carry:
        return step(carry, jax.tree.map(lambda field: jnp.asarray(field)[index], grid.points))

    return jax.lax.fori_loop(0, grid.steps, body, start)


def epsilon_of(z: Array, x0: Array, point: Point) -> Array:
    """The noise that z holds if x0 is what it hides."""
    return (z - point.alpha * x0) / point.sigma


def ddpm(denoise: Denoiser, latents: Array, grid: Grid, noise: Noise, schedule: Schedule) -> Array:
    """Ancestral sampling with the posterior q(z_s | z_t, x) (Ho et al. 2020, equations 6 and 7); `DDPMScheduler`."""

    def step(z: Array, point: Point) -> Array:
        x0 = denoise(z, point)
        alpha_step = point.alpha / point.next_alpha  # sqrt(1 - beta) of the step
        # 1 - alpha_step^2, without the cancellation near alpha = 1
        beta = (jnp.square(point.sigma) - jnp.square(point.next_sigma)) / jnp.square(point.next_alpha)
        share = jnp.square(point.next_sigma / point.sigma)
        mean = point.next_alpha * beta / jnp.square(point.sigma) * x0 + alpha_step * share * z
        variance = beta if schedule.fixed_large else beta * share
        draws = point.next_sigma > 0
        return mean + jnp.where(draws, jnp.sqrt(variance), 0) * noise(point.index)

    return follow(step, latents, grid)


def ddim(denoise: Denoiser, latents: Array, grid: Grid, noise: Noise, schedule: Schedule) -> Array:
    """The deterministic map (Song et al. 2021, equation 12 with eta = 0); `DDIMScheduler`.

    A step ends where the next one starts. diffusers ends it at t - T // n instead, which is the same timestep under
    `leading`. Under `linspace`, and under `trailing` with a number of steps n that does not divide T, it is another
    one, and diffusers goes on from there as if it were the next grid point.
    """

    def step(z: Array, point: Point) -> Array:
        x0 = denoise(z, point)
        return point.next_alpha * x0 + point.next_sigma * epsilon_of(z, x0, point)

    return follow(step, latents, grid)


def dpmpp_2m(denoise: Denoiser, latents: Array, grid: Grid, noise: Noise, schedule: Schedule) -> Array:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, arXiv 2211.01095, Algorithm 2); `DPMSolverMultistepScheduler`.

    The first step and the one that lands on sigma = 0 are of first order, and so is one after a step of no length.
    """

    def log_snr(alpha: Array, sigma: Array) -> Array:
        return jnp.log(alpha) - jnp.log(sigma)

    def step(carry: tuple[Array, Array, Array], point: Point) -> tuple[Array, Array, Array]:
        z, previous_x0, previous_half_log_snr = carry
        x0 = denoise(z, point)
        here = log_snr(point.alpha, point.sigma)
        h = log_snr(point.next_alpha, point.next_sigma) - here
        correction = 0.5 * h / (here - previous_half_log_snr) * (x0 - previous_x0)
        is_second_order = (point.index > 0) & (point.next_sigma > 0) & (here > previous_half_log_snr)
        slope = x0 + jnp.where(is_second_order, correction, 0)
        z = point.next_sigma / point.sigma * z - point.next_alpha * jnp.expm1(-h) * slope
        return z, x0, here

    start = (latents, jnp.zeros_like(latents), jnp.zeros((), latents.dtype))
    return follow(step, start, grid)[0]


def euler(denoise: Denoiser, latents: Array, grid: Grid, noise: Noise, schedule: Schedule) -> Array:
    """Euler steps on the ODE in z / alpha (Karras et al. 2022, Algorithm 1); `EulerDiscreteScheduler`."""

    def step(z: Array, point: Point) -> Array:
        x0 = denoise(z, point)
        change = point.next_sigma / point.next_alpha - point.sigma / point.alpha
        return point.next_alpha * (z / point.alpha + change * epsilon_of(z, x0, point))

    return follow(step, latents, grid)


def euler_ancestral(denoise: Denoiser, latents: Array, grid: Grid, noise: Noise, schedule: Schedule) -> Array:
    """An Euler step down to sigma_down, then fresh noise of sigma_up; `EulerAncestralDiscreteScheduler`."""

    def step(z: Array, point: Point) -> Array:
        x0 = denoise(z, point)
        start, end = point.sigma / point.alpha, point.next_sigma / point.next_alpha
        sigma_up = end * jnp.sqrt(start**2 - end**2) / start
        sigma_down = jnp.sqrt(end**2 - sigma_up**2)
        moved = z / point.alpha + (sigma_down - start) * epsilon_of(z, x0, point)
        return point.next_alpha * (moved + sigma_up * noise(point.index))

    return follow(step, latents, grid)


class Rule(NamedTuple):
    """How diffusers' scheduler of a sampler chooses its timesteps.

    Attributes:
        run: the sampler.
        spacing: used when the checkpoint names none.
        spare: picks steps + 1 points and drops the last, which is where the final step would have started.
        fractional: `linspace` timesteps are not rounded.
        log_snr: needs alpha > 0, so that a zero terminal SNR is raised to 2^-24.
        noise_alone: where the first timestep is the last of training (`linspace`, `trailing`), the first z is
            sigma eps, without the variance that x would add.
    """

    run: Sampler
    spacing: str
    spare: bool = False
    fractional: bool = False
    log_snr: bool = False
    noise_alone: bool = False


SAMPLERS: dict[str, Rule] = {
    "ddpm": Rule(ddpm, "leading"),
    "ddim": Rule(ddim, "leading"),
    "dpmpp_2m": Rule(dpmpp_2m, "linspace", spare=True, log_snr=True),
    "euler": Rule(euler, "linspace", fractional=True, log_snr=True, noise_alone=True),
    "euler_ancestral": Rule(euler_ancestral, "linspace", fractional=True, log_snr=True, noise_alone=True),
}


def spaced_timesteps(total: int, steps: int, spacing: str, offset: int, rule: Rule) -> np.ndarray:
    """Picks (steps,) decreasing timesteps out of 0 .. total-1 (Lin et al. 2023, table 2), as diffusers does.

    Under `trailing`, rounding makes diffusers' range one longer for some numbers of steps (61, 103, 121, ...): a last
    timestep -1, which no network was trained on, and which is left out here.
    """
    points = steps + 1 if rule.spare else steps
    if spacing == "linspace":
        line = np.linspace(0, total - 1, points)[::-1][:steps]
        return line if rule.fractional else line.round()
    if spacing == "leading":
        return np.minimum(np.arange(points)[::-1][:steps] * (total // points) + offset, total - 1).astype(np.float64)
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
    raise UserError(
        f"scheduler/scheduler_config.json: timestep_spacing {spacing!r} is not supported; "
        "known are leading, linspace and trailing."
    )


def make_grid(schedule: Schedule, name: SamplerName, steps: int, flag: str = "--steps") -> Grid:
    """Returns the grid that sampler `name` follows in `steps` network evaluations, on the host.

    Args:
        flag: named in the error.

    Raises:
        UserError: fewer than one step, or more steps than the schedule has.
    """
    rule, total = SAMPLERS[name], schedule.num_train_timesteps
    if not 1 <= steps < total:
        raise UserError(f"{flag} {steps} is out of range; the schedule allows 1 to {total - 1} sampling steps.")
    spacing = schedule.timestep_spacing or rule.spacing
    timesteps = spaced_timesteps(total, steps, spacing, schedule.steps_offset, rule)
    bar = np.maximum(schedule.alphas_cumprod, 2.0**-24) if rule.log_snr else schedule.alphas_cumprod
    with np.errstate(divide="ignore"):
        levels = np.sqrt((1 - bar) / bar)
    level = np.interp(timesteps, np.arange(total), levels)  # exact at whole timesteps
    alpha, sigma = 1 / np.sqrt(1 + level**2), np.sqrt(1 - 1 / (1 + level**2))
    last = 1.0 if schedule.set_alpha_to_one or name != "ddim" else float(schedule.alphas_cumprod[0])
    fields = (
        timesteps, alpha, sigma, np.append(alpha[1:], np.sqrt(last)), np.append(sigma[1:], np.sqrt(1 - last)),
    )  # fmt: skip
    filled: Any = (*(np.resize(field, total).astype(np.float32) for field in fields), np.arange(total, dtype=np.int32))
    starts_as_noise = rule.noise_alone and spacing != "leading"
    scalars: Any = np.array(steps, np.int32), np.array(sigma[0] if starts_as_noise else 1, np.float32)
    return Grid(Point(*filled), *scalars)
