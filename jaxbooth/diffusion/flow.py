"""Rectified flow: z = (1 - s) x + s eps with s from 1 to 0, and how s is shifted towards noise.

A shift k maps s to k s / (1 + (k - 1) s) (Esser et al. 2024, arXiv 2403.03206, equation 23). A checkpoint's k is a
constant, with which its table of training noise levels is shifted already, or exp(mu), where mu follows from the size
of the image and the table is not shifted. Reference: diffusers `schedulers/scheduling_flow_match_euler_discrete.py`.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from scipy.special import betaincinv

from jaxbooth.diffusion.schedule_config import MAX_STEPS, OF_A_SAMPLER, check_keys
from jaxbooth.storage.typed import STRICT, validate

# Scheduler classes of diffusers that sample the process of rectified flow; LCM's are of distilled models.
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
MuLaw = Literal["linear", "empirical"]  # how a pipeline of diffusers computes mu

Shift = Annotated[float, Field(gt=0, le=1000)]
Mu = Annotated[float, Field(ge=-20, le=20)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]


@dataclass(frozen=True, config=STRICT)
class FlowConfig:
    """The keys of `scheduler_config.json` that describe rectified flow; the defaults are those of diffusers."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=MAX_STEPS)] = 1000
    prediction_type: Literal["flow_prediction"] = "flow_prediction"
    shift: Shift = 1.0
    use_dynamic_shifting: bool = False
    base_shift: Mu = 0.5
    max_shift: Mu = 1.15
    base_image_seq_len: Tokens = 256
    max_image_seq_len: Tokens = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    shift_terminal: Annotated[float, Field(gt=0, lt=1)] | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    @model_validator(mode="after")
    def check(self) -> "FlowConfig":
        """Refuses values that do not fit each other; the message names a key."""
        if self.base_image_seq_len == self.max_image_seq_len:
            raise ValueError(f"base_image_seq_len and max_image_seq_len are both {self.max_image_seq_len}")
        if self.use_karras_sigmas + self.use_exponential_sigmas + self.use_beta_sigmas > 1:
            raise ValueError("only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas can be true")
        if self.time_shift_type == "linear" and linear_mu(self, image_tokens=1) <= 0:
            raise ValueError("time_shift_type linear needs a base_shift that leaves small images a shift above 0")
        return self

    @property
    def table_sigmas(self) -> np.ndarray:
        """s of every training timestep, (T,) float64, increasing to 1; a dynamic shift is not in it."""
        levels = np.arange(1, self.num_train_timesteps + 1) / self.num_train_timesteps
        return levels if self.use_dynamic_shifting else shift_sigmas(levels, self.shift)


def read_flow_config(raw: Mapping[str, Any], source: str) -> FlowConfig:
    """Reads a `scheduler_config.json` that one of `FLOW_SCHEDULERS` wrote.

    Raises:
        UserError: see `jaxbooth.diffusion.schedule.read_schedule`.
    """
    check_keys(raw, source, {*FlowConfig.__dataclass_fields__, *OF_A_SAMPLER})
    return validate(FlowConfig, {key: value for key, value in raw.items() if value is not None}, source)


def shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Returns k s / (1 + (k - 1) s) of (n,) float64 noise levels in (0, 1]; 1 stays exactly 1."""
    return shift / (shift + (1 / sigmas - 1))


def linear_mu(config: FlowConfig, image_tokens: int) -> float:
    """Returns mu on the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift).

    It is `calculate_shift` of diffusers' pipelines of FLUX.1 and Z-Image.
    """
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (image_tokens - config.base_image_seq_len)


def empirical_mu(image_tokens: int, steps: int) -> float:
    """Returns mu of FLUX.2: linear in the image tokens at 10 and at 200 steps, and linear in the steps between them.

    The constants were fitted by Black Forest Labs; `compute_empirical_mu` of diffusers' pipelines of FLUX.2.
    """
    at_200_steps = 0.00016927 * image_tokens + 0.45666666
    if image_tokens > 4300:
        return at_200_steps
    at_10_steps = 8.73809524e-05 * image_tokens + 1.89833333
    return at_200_steps + (at_200_steps - at_10_steps) / 190 * (steps - 200)


def dynamic_shift(config: FlowConfig, mu: float) -> float:
    """Returns the shift k that mu stands for under the checkpoint's `time_shift_type`."""
    return math.exp(mu) if config.time_shift_type == "exponential" else mu


def resolution_shift(config: FlowConfig, image_tokens: int) -> float:
    """Returns the shift k of an image's size by the checkpoint's base and max shift, for training."""
    return dynamic_shift(config, linear_mu(config, image_tokens))


def sampling_shift(config: FlowConfig, mu_law: MuLaw, image_tokens: int | None, steps: int) -> float:
    """Returns the shift k with which an image of a size is sampled in a number of steps.

    Args:
        image_tokens: None where the checkpoint's shift is static.
    """
    if not config.use_dynamic_shifting:
        return config.shift
    if image_tokens is None:
        raise ValueError("a dynamic shift needs the number of image tokens")
    mu = linear_mu(config, image_tokens) if mu_law == "linear" else empirical_mu(image_tokens, steps)
    return dynamic_shift(config, mu)


def sampling_sigmas(config: FlowConfig, steps: int, shift: float) -> np.ndarray:
    """Returns the noise levels at which the network is evaluated, (steps,) float64, from 1 down; 0 follows them.

    They are `set_timesteps(sigmas=linspace(1, 1 / steps, steps))` of diffusers, as its pipelines call it.
    """
    sigmas = shift_sigmas(np.linspace(1, 1 / steps, steps), shift)
    if config.shift_terminal is not None and steps > 1:
        sigmas = 1 - (1 - sigmas) * (1 - config.shift_terminal) / (1 - sigmas[-1])
    ramp, last = np.linspace(0, 1, steps), sigmas[-1]
    if config.use_karras_sigmas:  # Karras et al. 2022, equation 5, from 1 to the last level
        return (1 + ramp * (last ** (1 / 7) - 1)) ** 7
    if config.use_exponential_sigmas:
        return last**ramp
    if config.use_beta_sigmas:  # quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv 2407.12173)
        return 1 - (1 - last) * (1 - betaincinv(0.6, 0.6, 1 - ramp))
    return sigmas
