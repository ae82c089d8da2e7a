"""The forward process z_t = alpha_t x + sigma_t eps and the ways to say what a network predicts.

A schedule is two tables, alpha_t and sigma_t. They are variance preserving, alpha^2 + sigma^2 = 1, or those of
rectified flow, alpha + sigma = 1; few places have to know which. Everything is computed in float64 from the
checkpoint's own `scheduler_config.json` and rounded to float32 where it enters a traced function. Reference: diffusers
`schedulers/scheduling_ddpm.py` and `schedulers/scheduling_flow_match_euler_discrete.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbooth.diffusion.flow import FLOW_SCHEDULERS, FlowConfig, read_flow_config
from jaxbooth.diffusion.schedule_config import read_schedule_config
from jaxbooth.params import Array

PredictionType = Literal["epsilon", "x0", "v", "flow"]
SOURCE = "scheduler/scheduler_config.json"
PREDICTION_TYPE_OF: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
Latents = Float[Array, "b h w c"]
Coefficient = Float[Array, "..."]  # alpha or sigma, broadcast against latents
MAX_NOISE_TO_SIGNAL = (2.0**24 - 1) ** 0.5  # where a sampler divides by alpha; diffusers keep alpha^2 at 2^-24


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete noise schedule.

    Attributes:
        alphas: alpha_t, (T,) float64, decreasing.
        sigmas: sigma_t, (T,) float64, increasing, above 0.
        prediction_type: what the network's output means.
        timestep_spacing: how a sampler picks its timesteps; None leaves each sampler its own default.
        steps_offset: added to the timesteps of the `leading` spacing.
        set_alpha_to_one: DDIM's last step goes to alpha = 1; otherwise to the alpha of timestep 0.
        fixed_large: ancestral DDPM samples with variance beta_t and not with the posterior's.
        flow: of rectified flow, the checkpoint's shifts; None for variance-preserving schedules. The attributes from
            `timestep_spacing` to `fixed_large` are of those alone.
    """

    alphas: np.ndarray
    sigmas: np.ndarray
    prediction_type: PredictionType
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    fixed_large: bool = False
    flow: FlowConfig | None = None

    @classmethod
    def variance_preserving(
        cls, alphas_cumprod: np.ndarray, prediction_type: PredictionType, **sampling: Any
    ) -> "NoiseSchedule":
        """Returns the schedule of alpha^2 = `alphas_cumprod`, (T,) float64, and sigma^2 = 1 - alpha^2.

        Args:
            sampling: the attributes after `prediction_type`.
        """
        return cls(np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod), prediction_type, **sampling)

    @classmethod
    def rectified_flow(cls, config: FlowConfig | None = None) -> "NoiseSchedule":
        """Returns the schedule of sigma = s and alpha = 1 - s, whose last timestep is pure noise (Liu et al. 2022).

        `FlowMatchEulerDiscreteScheduler` calls the same table, from noisy to clean, its sigmas. Where the shift is
        static, it is in the table, so that uniform timesteps are not uniform in s; a dynamic shift is not.

        Args:
            config: default: T = 1000 without a shift.
        """
        flow = config or FlowConfig()
        return cls(1 - flow.table_sigmas, flow.table_sigmas, "flow", flow=flow)

    def shifted(self, shift: float) -> "NoiseSchedule":
        """Returns the schedule of rectified flow whose table has this static shift in place of the checkpoint's."""
        assert self.flow is not None, "only rectified flow is shifted"
        return NoiseSchedule.rectified_flow(replace(self.flow, shift=shift, use_dynamic_shifting=False))

    @property
    def is_flow(self) -> bool:
        """Whether this is rectified flow and not variance preserving."""
        return self.flow is not None

    @property
    def num_train_timesteps(self) -> int:
        """T; timesteps are 0 .. T-1."""
        return len(self.alphas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_t^2, (T,) float64, by diffusers' name."""
        return np.square(self.alphas)

    def alpha(self, timesteps: Int[Array, " b"]) -> Float[Array, "b 1 1 1"]:
        """alpha_t of timesteps, float32, shaped to broadcast over latents."""
        return lookup(self.alphas, timesteps)[:, None, None, None]

    def sigma(self, timesteps: Int[Array, " b"]) -> Float[Array, "b 1 1 1"]:
        """sigma_t of timesteps, float32, shaped to broadcast over latents."""
        return lookup(self.sigmas, timesteps)[:, None, None, None]

    def network_timesteps(self, timesteps: Int[Array, " b"]) -> Int[Array, " b"] | Float[Array, " b"]:
        """Returns what the network is told of timesteps, as diffusers' scheduler numbers them.

        The timesteps themselves, int32; for rectified flow T sigma_t, float32, in 0 .. T.
        """
        if not self.is_flow:
            return timesteps
        return lookup(self.num_train_timesteps * self.sigmas, timesteps)

    def snr(self, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
        """alpha_t^2 / sigma_t^2 of timesteps, float32."""
        return lookup(np.square(self.alphas / self.sigmas), timesteps)

    def variational_weight(self, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
        """beta^2 / (2 sigma^2 alpha (1 - abar)) with sigma^2 = beta (Ho et al. 2020, equation 12); float32.

        It is infinite where the SNR is zero.
        """
        before = np.concatenate([[1.0], self.alphas_cumprod[:-1]])
        with np.errstate(divide="ignore"):
            beta_over_alpha = before / self.alphas_cumprod - 1
        return 0.5 * lookup(beta_over_alpha, timesteps) * (self.snr(timesteps) + 1)  # 1 / (1 - abar) = SNR + 1

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Int[Array, " b"]) -> Latents:
        """z_t = alpha_t x + sigma_t eps, float32."""
        return self.alpha(timesteps) * latents + self.sigma(timesteps) * noise

    def interpolate(self, timesteps: np.ndarray, divides_by_alpha: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns alpha and sigma at timesteps that may lie between whole ones, where both are exact.

        Between them, sigma / alpha is linear, as in diffusers' schedulers, and so is the root of alpha^2 + sigma^2. In
        rectified flow, both are linear themselves.

        Args:
            timesteps: (n,) float64.
            divides_by_alpha: a zero terminal SNR is raised to what MAX_NOISE_TO_SIGNAL leaves.

        Returns:
            Both (n,) float64.
        """
        whole = np.arange(self.num_train_timesteps)
        if self.is_flow:
            return np.interp(timesteps, whole, self.alphas), np.interp(timesteps, whole, self.sigmas)
        limit = MAX_NOISE_TO_SIGNAL if divides_by_alpha else np.inf
        with np.errstate(divide="ignore"):
            noise_to_signal = np.minimum(self.sigmas / self.alphas, limit)
        ratio = np.interp(timesteps, whole, noise_to_signal)
        length = np.interp(timesteps, whole, np.hypot(self.alphas, self.sigmas))
        return length / np.sqrt(1 + ratio**2), length * np.sqrt(1 - 1 / (1 + ratio**2))


def lookup(table: np.ndarray, timesteps: Int[Array, " b"]) -> Float[Array, " b"]:
    """Returns a float64 table's entries of timesteps, as float32."""
    return jnp.asarray(table, jnp.float32)[timesteps]


def convert(
    value: Latents,
    source: PredictionType,
    target: PredictionType,
    noisy: Latents,
    alpha: Coefficient,
    sigma: Coefficient,
) -> Latents:
    """Converts a prediction between epsilon, x0, v and flow.

    v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D) and flow = eps - x0, the velocity of rectified flow.
    Each formula is the direct one, so that no conversion divides by more than it must: v and flow work at alpha = 0.
    None of them assumes how alpha and sigma are related.

    Args:
        value: the prediction in `source` space.
        noisy: z_t.
    """
    power, total = alpha * alpha + sigma * sigma, alpha + sigma
    match source, target:
        case "epsilon", "x0":
            return (noisy - sigma * value) / alpha
        case "epsilon", "v":
            return (power * value - sigma * noisy) / alpha
        case "epsilon", "flow":
            return (total * value - noisy) / alpha
        case "x0", "epsilon":
            return (noisy - alpha * value) / sigma
        case "x0", "v":
            return (alpha * noisy - power * value) / sigma
        case "x0", "flow":
            return (noisy - total * value) / sigma
        case "v", "epsilon":
            return (alpha * value + sigma * noisy) / power
        case "v", "x0":
            return (alpha * noisy - sigma * value) / power
        case "v", "flow":
            return (total * value + (sigma - alpha) * noisy) / power
        case "flow", "epsilon":
            return (noisy + alpha * value) / total
        case "flow", "x0":
            return (noisy - sigma * value) / total
        case "flow", "v":
            return (power * value + (alpha - sigma) * noisy) / total
        case _:
            return value


def training_target(
    space: PredictionType, latents: Latents, noise: Latents, alpha: Coefficient, sigma: Coefficient
) -> Latents:
    """Returns what a perfect network would predict in `space`."""
    match space:
        case "epsilon":
            return noise
        case "x0":
            return latents
        case "v":
            return alpha * noise - sigma * latents
        case "flow":
            return noise - latents


def read_schedule(raw: Mapping[str, Any], source: str = SOURCE) -> NoiseSchedule:
    """Builds the schedule that a `scheduler_config.json` describes, whichever known scheduler wrote it.

    Args:
        source: the file, for messages.

    Raises:
        UserError: the file is of another kind of model (EDM, consistency), asks for something that jaxbooth does not
            do, or holds a value of another type or out of range.
    """
    if raw.get("_class_name") in FLOW_SCHEDULERS:
        return NoiseSchedule.rectified_flow(read_flow_config(raw, source))
    config = read_schedule_config(raw, source)
    return NoiseSchedule.variance_preserving(
        config.alphas_cumprod,
        PREDICTION_TYPE_OF[config.prediction_type],
        timestep_spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
        set_alpha_to_one=config.set_alpha_to_one,
        fixed_large=config.variance_type == "fixed_large",
    )
