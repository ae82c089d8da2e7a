"""The checkpoint's own `scheduler_config.json`, typed: how much noise each timestep adds.

diffusers writes the settings of one sampler there, whatever the model was trained with. Keys that say how the network
is fed or what it predicts are read, or refused by name; keys that only concern how a sampler of diffusers steps pass.
Zero terminal SNR: Lin et al. 2023, arXiv 2305.08891, Algorithm 1.
"""

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.typed import STRICT, JsonList, json_equal, validate

# Scheduler classes of diffusers that sample the same forward process; LCM's and TCD's are of distilled models.
SCHEDULERS = {
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete",
        "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep",
    )
}  # fmt: skip
# Classes whose betas, where a file leaves them out, are Stable Diffusion's and not those of DDPM.
LATENT_DEFAULTS = {
    f"{name}Scheduler": {"beta_start": 0.00085, "beta_end": 0.012}
    for name in ("DPMSolverSDE", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")
}
# What would change how the network is fed, trained or read, where another value than false leaves it alone.
NEUTRAL = {
    "timestep_type": "discrete",  # "continuous" feeds log sigma / 4 in place of the timestep
}
REASONS = {
    "clip_sample": "is for pixel models",
    "thresholding": "is for pixel models",
    "stochastic_sampling": "is for models that are distilled to a few steps",
    "invert_sigmas": "feeds the network 1 - sigma",
}
# Of how one of diffusers' samplers steps, or of what is switched off above. jaxbooth has samplers of its own.
OF_A_SAMPLER = {
    "algorithm_type", "clip_sample_range", "corrector_order", "disable_corrector", "dynamic_thresholding_ratio",
    "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped",
    "lower_order_final", "noise_sampler_seed", "predict_x0", "predictor_order", "sample_max_value",
    "set_alpha_to_zero", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_p", "solver_type",
    "tau_func", "tensor_format", "time_shift_type", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas",
    "use_lu_lambdas",
}  # fmt: skip
MAX_STEPS = 10_000  # of the forward process

Beta = Annotated[float, Field(gt=0, lt=1)]


def make_betas(beta_schedule: str, start: float, end: float, steps: int) -> np.ndarray:
    """Returns the (steps,) float64 betas of a named schedule."""
    if beta_schedule == "linear":
        return np.linspace(start, end, steps)
    if beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    # squaredcos_cap_v2: Nichol and Dhariwal 2021, equation 17
    alphas_cumprod = [math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(steps + 1)]
    return np.array(
        [min(1 - after / before, 0.999) for before, after in zip(alphas_cumprod, alphas_cumprod[1:], strict=False)]
    )


def rescale_to_zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alphas_cumprod) so that its end is zero and its start stays (Lin et al., Algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """The keys of `scheduler_config.json` that describe the process; diffusers `schedulers/scheduling_ddpm.py`."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=MAX_STEPS)] | None = None  # 1000, or as many as trained_betas
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    trained_betas: (
        Annotated[JsonList[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=MAX_STEPS)] | None
    ) = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None  # None: each sampler's own
    steps_offset: Annotated[int, Field(ge=0, lt=MAX_STEPS)] = 0
    set_alpha_to_one: bool = True
    # The logarithm of the small variance is the same variance; learned ones need outputs that latents do not have.
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] | None = None

    @model_validator(mode="after")
    def check(self) -> "ScheduleConfig":
        """Refuses values that do not fit each other; the message names a key."""
        betas, steps = self.trained_betas, self.num_train_timesteps
        if betas and steps and len(betas) != steps:
            raise ValueError(f"trained_betas has {len(betas)} entries for num_train_timesteps {steps}")
        if self.steps_offset >= len(self.betas):
            raise ValueError(f"steps_offset {self.steps_offset} is beyond the {len(self.betas)} timesteps")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError("rescale_betas_zero_snr needs v_prediction: epsilon says nothing at zero SNR")
        levels = self.alphas_cumprod
        ends_in_noise = levels[-1] < np.finfo(np.float32).tiny
        if ends_in_noise and self.prediction_type == "epsilon":
            raise ValueError("its betas end in pure noise, where prediction_type epsilon says nothing")
        if not (np.all(np.diff(levels) < 0) and levels[0] < 1 and levels[-2] >= np.finfo(np.float32).tiny):
            raise ValueError("its betas reach pure noise before the last timestep, or add none")
        return self

    @property
    def betas(self) -> np.ndarray:
        """(T,) float64 shares of noise, before any rescaling."""
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float64)
        return make_betas(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps or 1000)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """(T,) float64, decreasing."""
        levels = np.cumprod(1 - self.betas)
        return rescale_to_zero_terminal_snr(levels) if self.rescale_betas_zero_snr else levels


def read_schedule_config(raw: Mapping[str, Any], source: str) -> ScheduleConfig:
    """Reads a `scheduler_config.json`, whichever of `SCHEDULERS` wrote it.

    Raises:
        UserError: see `jaxbooth.diffusion.schedule.read_schedule`.
    """
    writer = raw.get("_class_name", "DDPMScheduler")
    if not isinstance(writer, str) or writer not in SCHEDULERS:
        name = ascii_repr(writer).strip("'")
        raise UserError(f"{source}: {name} belongs to another kind of diffusion model, which jaxbooth cannot train.")
    check_keys(raw, source, {*ScheduleConfig.__dataclass_fields__, *OF_A_SAMPLER})
    return validate(ScheduleConfig, LATENT_DEFAULTS.get(writer, {}) | dict(raw), source)


def check_keys(raw: Mapping[str, Any], source: str, known: Collection[str]) -> None:
    """Refuses keys that would change how the network is used, and keys that nobody knows unless they are off.

    Raises:
        UserError: the message names the key.
    """
    for key, value in raw.items():
        if key in known or key.startswith("_") or value is None or json_equal(value, NEUTRAL.get(key, False)):
            continue
        reason = REASONS.get(key, "may change what a network is fed")
        name = ascii_repr(key).strip("'")
        raise UserError(f"{source}: {name} = {ascii_repr(value)} is not supported; it {reason}.")
