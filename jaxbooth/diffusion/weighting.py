"""Weights over timesteps, each the same in every space that an error may be measured in."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbooth.diffusion.schedule import NoiseSchedule, PredictionType, lookup
from jaxbooth.params import Array

SnrWeighting = Literal["min_snr", "debiased", "vlb", "snr"]
FlowWeighting = Literal["sigma_sqrt", "cosmap"]  # of rectified flow alone
Weighting = Literal["uniform", SnrWeighting, FlowWeighting]


def timestep_weight(
    schedule: NoiseSchedule, timesteps: Int[Array, " b"], weighting: Weighting, space: PredictionType, gamma: float
) -> Float[Array, " b"]:
    """Returns w_t of (b,) timesteps for a squared error in `space`, (b,) float32.

    Every weighting but `uniform` means the same in every space. It is defined on the error in one of them, and the
    weight in another is smaller by as much as the same error is larger there, see `weight_ratio`.

    * uniform: 1 in the chosen space.
    * min_snr: min(SNR, gamma) on x0 (Hang et al. 2023, arXiv 2303.09556).
    * debiased: 1 / sqrt(SNR) on epsilon (Yu et al. 2023, arXiv 2310.08442) with SNR at most 1000, as in kohya's
      sd-scripts (`apply_debiased_estimation`); in v-space sqrt(SNR) / (SNR + 1). For v networks kohya uses
      1 / (SNR + 1) instead: an unweighted x0 error, another weighting than its own on epsilon.
    * vlb: the variational bound's beta^2 / (2 sigma^2 alpha (1 - abar)) on epsilon with sigma^2 = beta
      (Ho et al. 2020, arXiv 2006.11239, equation 12). Rectified flow has no beta.
    * snr: w_t = alpha^2 / sigma^2 on x0, with which the paper's x-space loss is the epsilon-space loss.
    * sigma_sqrt: 1 / sigma^2 on flow, of rectified flow alone (diffusers' `compute_loss_weighting_for_sd3`).
    * cosmap: 2 / (pi (1 - 2 sigma + 2 sigma^2)) on flow, of rectified flow alone; as a density of sigma it is that of
      Esser et al. 2024 (arXiv 2403.03206, equation 21).
    """
    match weighting:
        case "uniform":
            return jnp.ones(timesteps.shape, jnp.float32)
        case "sigma_sqrt" | "cosmap":
            return flow_weight(schedule, timesteps, weighting) * weight_ratio(schedule, timesteps, "flow", space)
        case _:
            weight = epsilon_weight(schedule, timesteps, weighting, gamma)
            return weight * weight_ratio(schedule, timesteps, "epsilon", space)


def epsilon_weight(
    schedule: NoiseSchedule, timesteps: Int[Array, " b"], weighting: SnrWeighting, gamma: float
) -> Float[Array, " b"]:
    """Returns w_t of a weighting for a squared error on epsilon."""
    snr = schedule.snr(timesteps)
    match weighting:
        case "min_snr":
            return jnp.minimum(1.0, gamma / jnp.maximum(snr, 1e-20))
        case "debiased":
            return 1 / jnp.sqrt(jnp.clip(snr, 1e-20, 1000.0))
        case "vlb":
            return schedule.variational_weight(timesteps)
        case "snr":
            return jnp.ones_like(snr)


def flow_weight(schedule: NoiseSchedule, timesteps: Int[Array, " b"], weighting: FlowWeighting) -> Float[Array, " b"]:
    """Returns w_t of a weighting for a squared error on flow."""
    sigmas = schedule.sigmas
    match weighting:
        case "sigma_sqrt":
            return lookup(sigmas**-2, timesteps)
        case "cosmap":
            return lookup(2 / (np.pi * (1 - 2 * sigmas + 2 * sigmas**2)), timesteps)


def weight_ratio(
    schedule: NoiseSchedule, timesteps: Int[Array, " b"], source: PredictionType, target: PredictionType
) -> Float[Array, " b"]:
    """Returns the weight of a squared error in `target` space over the equal one in `source` space, (b,) float32.

    It is infinite from another space to epsilon where alpha = 0: there every prediction of epsilon is right.
    """
    if source == target:
        return jnp.ones(timesteps.shape, jnp.float32)
    with np.errstate(divide="ignore"):
        return lookup(np.square(error_scale(schedule, source) / error_scale(schedule, target)), timesteps)


def error_scale(schedule: NoiseSchedule, space: PredictionType) -> np.ndarray:
    """Returns how large one prediction's error is in `space` at each timestep, in a unit that all spaces share.

    If x0 is wrong by sigma e, then epsilon is wrong by -alpha e, v by -(alpha^2 + sigma^2) e and flow by
    -(alpha + sigma) e.

    Returns:
        (T,) float64.
    """
    alphas, sigmas = schedule.alphas, schedule.sigmas
    match space:
        case "epsilon":
            return alphas
        case "x0":
            return sigmas
        case "v":
            return np.square(alphas) + np.square(sigmas)
        case "flow":
            return alphas + sigmas
