"""The DreamBooth objective over rows.

A batch holds n instance rows and m prior rows in any order. Row weights of 1/n and lambda/m turn one weighted sum into

    mean over instance rows of w_t ||target - prediction||^2  +  lambda * the same mean over prior rows,

the two terms of Ruiz et al. 2023 (arXiv 2208.12242, section 3.3, equation 2). Both targets come from the row's own
fresh noise, unless the frozen model's prediction is given as the target of prior rows.
The batch is never split, so neither sharding nor unequal counts can put the weight on the wrong images.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxbooth.diffusion.schedule import Latents, NoiseSchedule, PredictionType, convert, lookup, training_target
from jaxbooth.params import AnyArray, Array

SnrWeighting = Literal["min_snr", "debiased", "vlb", "snr"]
FlowWeighting = Literal["sigma_sqrt", "cosmap"]  # of rectified flow alone
Weighting = Literal["uniform", SnrWeighting, FlowWeighting]
LossType = Literal["l2", "huber"]


class LossSpec(NamedTuple):
    """What is done with a row's error; all of it static.

    Attributes:
        prediction_space: where the error is measured.
        weighting: w_t of instance rows.
        prior_weighting: w_t of prior rows; None weighs them like instance rows.
        snr_gamma: gamma of `min_snr`.
        loss_type: the function of one element's error.
        huber_c: error at which `huber` turns from squared to linear, > 0, in units of `prediction_space`.
    """

    prediction_space: PredictionType
    weighting: Weighting = "uniform"
    prior_weighting: Weighting | None = None
    snr_gamma: float = 5.0
    loss_type: LossType = "l2"
    huber_c: float = 0.1


class Batch(NamedTuple):
    """Rows to denoise.

    Attributes:
        latents: scaled x (b, h, w, c) float32.
        noise: eps, of the same shape.
        timesteps: (b,) int32.
        weight: (b,) float32: 1/n for an instance row, lambda/m for a prior row, 0 for padding. A subject's own weight
            multiplies that of its instance rows and of the class rows that go with it.
        is_prior: (b,) bool.
        mask: (b, h, w, 1) float32 in [0, 1], how much each pixel of the latents counts; None counts all alike.
    """

    latents: Latents
    noise: Latents
    timesteps: Int[Array, " b"]
    weight: Float[AnyArray, " b"]
    is_prior: Bool[AnyArray, " b"]
    mask: Float[AnyArray, "b h w 1"] | None = None


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


def example_weights(schedule: NoiseSchedule, batch: Batch, loss: LossSpec) -> Float[Array, " b"]:
    """Returns w_t of each row by the weighting of its kind, (b,) float32."""

    def weight(weighting: Weighting) -> Float[Array, " b"]:
        return timestep_weight(schedule, batch.timesteps, weighting, loss.prediction_space, loss.snr_gamma)

    instance = weight(loss.weighting)
    if loss.prior_weighting in (None, loss.weighting):
        return instance
    return jnp.where(batch.is_prior, weight(loss.prior_weighting), instance)


def element_losses(difference: Latents, loss: LossSpec) -> Latents:
    """Maps prediction - target to each element's loss, of the same shape.

    * l2: e^2.
    * huber: the pseudo-Huber 2 c (sqrt(e^2 + c^2) - c) (Khrapov et al. 2024, arXiv 2403.16728, without its schedule;
      kohya's and diffusers' `conditional_loss`). It is e^2 (1 - O(e^2 / c^2)) for |e| << c and 2 c |e| - 2 c^2 for
      |e| >> c, so that large errors pull with a bounded gradient, at most 2 c. Its weightings mean the same in every
      space only where it is squared.
    """
    squared = jnp.square(difference)
    if loss.loss_type == "l2":
        return squared
    c = loss.huber_c
    return 2 * c * squared / (jnp.sqrt(squared + c * c) + c)  # equal, without the cancellation near e = 0


def mean_over_pixels(values: Latents, mask: Float[AnyArray, "b h w 1"] | None) -> Float[Array, " b"]:
    """Returns the mean over channels and, weighted by the mask, over pixels.

    A row whose mask is zero everywhere has nothing to learn from and is 0.
    """
    if mask is None:
        return jnp.mean(values, axis=(1, 2, 3))
    total = jnp.sum(mask, axis=(1, 2, 3))
    weighted = jnp.sum(mask * jnp.mean(values, axis=3, keepdims=True), axis=(1, 2, 3))
    return weighted / jnp.where(total > 0, total, 1.0)


def per_example_loss(
    output: Latents,
    noisy: Latents,
    batch: Batch,
    schedule: NoiseSchedule,
    loss: LossSpec,
    frozen: Latents | None = None,
) -> Float[Array, " b"]:
    """Returns w_t times each row's mean element loss in `loss.prediction_space`, float32.

    Args:
        output: the network's prediction, of the type that the schedule names.
        noisy: z_t made with `batch.noise`, by which predictions are converted. Under input perturbation this is not
            what the network saw: the added noise is no error of the network, in whatever space it is measured.
        frozen: the frozen model's prediction, like `output` and for the same input; where given, it is the target of
            prior rows (distillation in place of class images' noise). No gradient passes through it.
    """
    alpha, sigma = schedule.alpha(batch.timesteps), schedule.sigma(batch.timesteps)

    def in_space(value: Latents) -> Latents:
        return convert(value, schedule.prediction_type, loss.prediction_space, noisy, alpha, sigma)

    target = training_target(loss.prediction_space, batch.latents, batch.noise, alpha, sigma)
    if frozen is not None:
        is_prior = batch.is_prior[:, None, None, None]
        target = jnp.where(is_prior, jax.lax.stop_gradient(in_space(frozen)), target)
    error = mean_over_pixels(element_losses(in_space(output) - target, loss), batch.mask)
    return example_weights(schedule, batch, loss) * error


class Losses(NamedTuple):
    """Scalars: what is minimised, and its two terms before lambda."""

    total: Array
    instance: Array
    prior: Array


def reduce_losses(losses: Float[Array, " b"], batch: Batch) -> Losses:
    """Sums (b,) row losses into the objective. A kind without rows reports 0.

    The two reported terms are plain means over rows: neither lambda nor a subject's weight enters them.
    """
    is_instance = ~batch.is_prior & (batch.weight > 0)

    def mean_over(mask: AnyArray) -> Array:
        return jnp.sum(losses, where=mask) / jnp.maximum(jnp.sum(mask), 1)

    return Losses(jnp.sum(batch.weight * losses), mean_over(is_instance), mean_over(batch.is_prior))
