"""The forward process z_t = alpha_t x + sigma_t eps and the three ways to say what a network predicts.

alpha_t^2 is `alphas_cumprod[t]` and sigma_t^2 = 1 - alpha_t^2 (variance preserving). Everything is computed in float64
from the checkpoint's own `scheduler_config.json` and rounded to float32 where it enters a traced function.
Reference: diffusers `schedulers/scheduling_ddpm.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.diffusion.schedule_config import read_schedule_config

PredictionType = Literal["epsilon", "x0", "v"]
SOURCE = "scheduler/scheduler_config.json"
PREDICTION_TYPE_OF: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete noise schedule.

    Attributes:
        alphas_cumprod: (T,) float64, decreasing.
        prediction_type: what the network's output means.
        timestep_spacing: how a sampler picks its timesteps; None leaves each sampler its own default.
        steps_offset: added to the timesteps of the `leading` spacing.
        set_alpha_to_one: DDIM's last step goes to alpha = 1; otherwise to `alphas_cumprod[0]`.
        fixed_large: ancestral DDPM draws with variance beta_t and not with the posterior's.
    """

    alphas_cumprod: np.ndarray
    prediction_type: PredictionType
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    fixed_large: bool = False

    @property
    def num_train_timesteps(self) -> int:
        """T; timesteps are 0 .. T-1."""
        return len(self.alphas_cumprod)

    def alpha(self, timesteps: Array) -> Array:
        """alpha_t of (b,) timesteps, as (b, 1, 1, 1) float32."""
        return lookup(np.sqrt(self.alphas_cumprod), timesteps)

    def sigma(self, timesteps: Array) -> Array:
        """sigma_t of (b,) timesteps, as (b, 1, 1, 1) float32."""
        return lookup(np.sqrt(1 - self.alphas_cumprod), timesteps)

    def snr(self, timesteps: Array) -> Array:
        """alpha_t^2 / sigma_t^2 of (b,) timesteps, as (b,) float32."""
        return jnp.asarray(self.alphas_cumprod / (1 - self.alphas_cumprod), jnp.float32)[timesteps]

    def beta_over_alpha(self, timesteps: Array) -> Array:
        """beta_t / (1 - beta_t) of (b,) timesteps, as (b,) float32; infinite where SNR is zero."""
        before = np.concatenate([[1.0], self.alphas_cumprod[:-1]])
        with np.errstate(divide="ignore"):
            ratio = before / self.alphas_cumprod - 1
        return jnp.asarray(ratio, jnp.float32)[timesteps]

    def add_noise(self, latents: Array, noise: Array, timesteps: Array) -> Array:
        """z_t = alpha_t x + sigma_t eps, (b, h, w, c) float32."""
        return self.alpha(timesteps) * latents + self.sigma(timesteps) * noise


def lookup(table: np.ndarray, timesteps: Array) -> Array:
    """Looks (b,) timesteps up in a float64 table and shapes them to broadcast over (b, h, w, c)."""
    return jnp.asarray(table, jnp.float32)[timesteps][:, None, None, None]


def convert(
    value: Array, source: PredictionType, target: PredictionType, noisy: Array, alpha: Array, sigma: Array
) -> Array:
    """Converts a prediction between epsilon, x0 and v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D).

    Each formula is the direct one, so that no conversion divides by more than it must: v works at alpha = 0.

    Args:
        value: the prediction in `source` space.
        noisy: z_t; `alpha` and `sigma` broadcast against it.
    """
    if source == target:
        return value
    formulas = {
        ("epsilon", "x0"): lambda: (noisy - sigma * value) / alpha,
        ("v", "x0"): lambda: alpha * noisy - sigma * value,
        ("x0", "epsilon"): lambda: (noisy - alpha * value) / sigma,
        ("v", "epsilon"): lambda: alpha * value + sigma * noisy,
        ("epsilon", "v"): lambda: (value - sigma * noisy) / alpha,
        ("x0", "v"): lambda: (alpha * noisy - value) / sigma,
    }
    return formulas[source, target]()


def training_target(space: PredictionType, latents: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """What a perfect network would predict in `space`."""
    return {"epsilon": noise, "x0": latents, "v": alpha * noise - sigma * latents}[space]


def read_schedule(raw: Mapping[str, Any], source: str = SOURCE) -> NoiseSchedule:
    """Builds the schedule that a `scheduler_config.json` describes, whichever of `SCHEDULERS` wrote it.

    Args:
        source: the file, for messages.

    Raises:
        UserError: the file is of another kind of model (EDM, flow matching, consistency), asks for something that
            jaxbooth does not do, or holds a value of another type or out of range.
    """
    config = read_schedule_config(raw, source)
    return NoiseSchedule(
        config.alphas_cumprod,
        PREDICTION_TYPE_OF[config.prediction_type],
        config.timestep_spacing,
        config.steps_offset,
        config.set_alpha_to_one,
        config.variance_type == "fixed_large",
    )
