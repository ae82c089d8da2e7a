"""The forward process z_t = alpha_t x + sigma_t eps and the three ways to say what a network predicts.

alpha_t^2 is `alphas_cumprod[t]` and sigma_t^2 = 1 - alpha_t^2 (variance preserving). Everything is computed in float64
from the checkpoint's own `scheduler_config.json` and rounded to float32 where it enters a traced function.
Reference: diffusers `schedulers/scheduling_ddpm.py`; zero terminal SNR: Lin et al. 2023, arXiv 2305.08891, Algorithm 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.errors import UserError

Space = Literal["epsilon", "x0", "v"]
# Scheduler classes of diffusers that sample the same forward process; LCM's and TCD's are of distilled models.
SCHEDULERS = {
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete",
        "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep",
    )
}  # fmt: skip
PREDICTION_TYPES: dict[str, Space] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Schedule:
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
    prediction_type: Space
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
        return per_row(np.sqrt(self.alphas_cumprod), timesteps)

    def sigma(self, timesteps: Array) -> Array:
        """sigma_t of (b,) timesteps, as (b, 1, 1, 1) float32."""
        return per_row(np.sqrt(1 - self.alphas_cumprod), timesteps)

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


def per_row(table: np.ndarray, timesteps: Array) -> Array:
    """Looks (b,) timesteps up in a float64 table and shapes them to broadcast over (b, h, w, c)."""
    return jnp.asarray(table, jnp.float32)[timesteps][:, None, None, None]


def convert(value: Array, source: Space, target: Space, noisy: Array, alpha: Array, sigma: Array) -> Array:
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


def target_of(space: Space, latents: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """What a perfect network would predict in `space`."""
    return {"epsilon": noise, "x0": latents, "v": alpha * noise - sigma * latents}[space]


def betas_of(kind: str, start: float, end: float, steps: int) -> np.ndarray:
    """Returns the (steps,) float64 betas of a named schedule.

    Raises:
        UserError: the name is unknown.
    """
    if kind == "linear":
        return np.linspace(start, end, steps)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, equation 17
        bar = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
        return np.array([min(1 - after / before, 0.999) for before, after in zip(bar, bar[1:], strict=False)])
    raise UserError(
        f"scheduler/scheduler_config.json: beta_schedule {kind!r} is not supported; "
        "known are linear, scaled_linear and squaredcos_cap_v2."
    )


def rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alphas_cumprod) so that its end is zero and its start stays (Lin et al., Algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def read_schedule(raw: Mapping[str, Any]) -> Schedule:
    """Builds the schedule that a `scheduler_config.json` describes, whichever of `SCHEDULERS` wrote it.

    Raises:
        UserError: the file is of another kind of model (EDM, flow matching, consistency), asks for something that
            latents do not need (clipping, thresholding), or is unknown.
    """
    source = "scheduler/scheduler_config.json"
    writer = raw.get("_class_name", "DDPMScheduler")
    if writer not in SCHEDULERS:
        raise UserError(f"{source}: {writer} belongs to another kind of diffusion model, which jaxbooth cannot train.")
    for key in ("clip_sample", "thresholding"):
        if raw.get(key):
            raise UserError(f"{source}: {key} = true is for pixel models and is not supported.")
    prediction_type = raw.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"{source}: prediction_type {prediction_type!r} is not supported; known are {', '.join(PREDICTION_TYPES)}."
        )
    steps = raw.get("num_train_timesteps", 1000)
    if raw.get("trained_betas") is not None:
        betas = np.asarray(raw["trained_betas"], np.float64)
    else:
        kind = raw.get("beta_schedule", "linear")
        betas = betas_of(kind, raw.get("beta_start", 1e-4), raw.get("beta_end", 0.02), steps)
    alphas_cumprod = np.cumprod(1 - betas)
    if raw.get("rescale_betas_zero_snr"):
        if prediction_type == "epsilon":
            raise UserError(f"{source}: rescale_betas_zero_snr needs v_prediction; epsilon says nothing at zero SNR.")
        alphas_cumprod = rescale_to_zero_terminal_snr(alphas_cumprod)
    return Schedule(
        alphas_cumprod,
        PREDICTION_TYPES[prediction_type],
        raw.get("timestep_spacing"),
        raw.get("steps_offset", 0),
        raw.get("set_alpha_to_one", True),
        raw.get("variance_type", "fixed_small") == "fixed_large",
    )
