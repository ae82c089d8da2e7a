"""Which timesteps a sampler visits: tables on the host, which a compiled program takes as data."""

from typing import Any, NamedTuple

import numpy as np

from jaxbooth.diffusion.flow import FlowConfig, sampling_sigmas
from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.errors import UserError
from jaxbooth.params import Array


class SamplerStep(NamedTuple):
    """Where a step starts and where it ends, float32, and its int32 number.

    Timesteps are what the network is told. A grid ends at timestep 0 and sigma 0, unless it ends earlier.
    """

    timestep: Array
    alpha: Array
    sigma: Array
    next_timestep: Array
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


class GridSpec(NamedTuple):
    """How diffusers' scheduler of a sampler chooses its timesteps on a variance-preserving schedule.

    Attributes:
        spacing: used when the checkpoint names none.
        has_extra_point: picks steps + 1 points and drops the last, which is where the final step would have started.
        is_fractional: `linspace` timesteps are not rounded.
        divides_by_alpha: a zero terminal SNR is raised, see `NoiseSchedule.interpolate`.
        starts_from_noise: where the first timestep is the last of training (`linspace`, `trailing`), the first z is
            sigma eps, without the variance that x would add.
        may_end_at_first_timestep: the checkpoint's `set_alpha_to_one` counts.
    """

    spacing: str
    has_extra_point: bool = False
    is_fractional: bool = False
    divides_by_alpha: bool = False
    starts_from_noise: bool = False
    may_end_at_first_timestep: bool = False


def check_steps(schedule: NoiseSchedule, steps: int, flag: str = "--steps") -> None:
    """Refuses a number of sampling steps that a schedule does not allow.

    Raises:
        UserError: fewer than one step, or more steps than the schedule has; the message names `flag`.
    """
    total = schedule.num_train_timesteps
    if not 1 <= steps < total:
        raise UserError(f"{flag} {steps} is out of range; the schedule allows 1 to {total - 1} sampling steps.")


def spaced_timesteps(total: int, steps: int, spacing: str, offset: int, spec: GridSpec) -> np.ndarray:
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


def variance_preserving_grid(schedule: NoiseSchedule, spec: GridSpec, steps: int) -> TimestepGrid:
    """Returns the grid of the checkpoint's `timestep_spacing`."""
    total = schedule.num_train_timesteps
    spacing = schedule.timestep_spacing or spec.spacing
    timesteps = spaced_timesteps(total, steps, spacing, schedule.steps_offset, spec)
    alpha, sigma = schedule.interpolate(timesteps, divides_by_alpha=spec.divides_by_alpha)
    ends_at_first_timestep = spec.may_end_at_first_timestep and not schedule.set_alpha_to_one
    end_alpha, end_sigma = (schedule.alphas[0], schedule.sigmas[0]) if ends_at_first_timestep else (1.0, 0.0)
    starts_from_noise = spec.starts_from_noise and spacing != "leading"
    points = np.append(timesteps, 0), np.append(alpha, end_alpha), np.append(sigma, end_sigma)
    return grid_of_points(*points, init_noise_sigma=sigma[0] if starts_from_noise else 1.0, capacity=total)


def flow_grid(config: FlowConfig, steps: int, shift: float) -> TimestepGrid:
    """Returns the grid from pure noise to sigma 0 under a shift."""
    sigma = np.append(sampling_sigmas(config, steps, shift), 0)
    total = config.num_train_timesteps
    return grid_of_points(total * sigma, 1 - sigma, sigma, init_noise_sigma=1.0, capacity=total)


def grid_of_points(
    timestep: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, init_noise_sigma: float, capacity: int
) -> TimestepGrid:
    """Returns the grid whose steps lead from point to point, with room for `capacity` steps.

    Args:
        timestep, alpha, sigma: (steps + 1,) each.
    """
    starts_and_ends = (timestep[:-1], alpha[:-1], sigma[:-1], timestep[1:], alpha[1:], sigma[1:])
    fields = (on_host(np.resize(field, capacity), np.float32) for field in starts_and_ends)
    steps = SamplerStep(*fields, on_host(np.arange(capacity), np.int32))
    return TimestepGrid(steps, on_host(len(timestep) - 1, np.int32), on_host(init_noise_sigma, np.float32))


def on_host(values: Any, dtype: type) -> Any:
    """Returns numpy's array of values; a compiled program takes it where a device's is declared."""
    return np.asarray(values, dtype)
