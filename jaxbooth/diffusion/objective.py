"""The DreamBooth objective over rows.

A batch holds n instance rows and m prior rows in any order. Row weights of 1/n and lambda/m turn one weighted sum into

    mean over instance rows of w_t ||target - prediction||^2  +  lambda * the same mean over prior rows,

the two terms of Ruiz et al. 2023 (arXiv 2208.12242, section 3.2). Both targets come from the row's own fresh noise.
The batch is never split, so neither sharding nor unequal counts can put the weight on the wrong images.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxbooth.diffusion.schedule import Schedule, Space, convert, target_of
from jaxbooth.params import AnyArray

Weighting = Literal["uniform", "min_snr", "vlb", "snr"]


class Batch(NamedTuple):
    """Rows to denoise.

    Attributes:
        latents: scaled x (b, h, w, c) float32.
        noise: eps, of the same shape.
        timesteps: (b,) int32.
        weight: (b,) float32: 1/n for an instance row, lambda/m for a prior row, 0 for padding.
        is_prior: (b,) bool.
    """

    latents: Array
    noise: Array
    timesteps: Array
    weight: AnyArray
    is_prior: AnyArray


def timestep_weight(schedule: Schedule, timesteps: Array, weighting: Weighting, space: Space, gamma: float) -> Array:
    """Returns w_t of (b,) timesteps for a squared error in `space`.

    Every named weighting is one weight on the x0 error, whatever the space the error is measured in. The same error
    is larger by SNR in epsilon-space and by SNR + 1 in v-space, so the weight there is smaller by that factor.

    * uniform: 1 in the chosen space.
    * min_snr: min(SNR, gamma) on x0 (Hang et al. 2023, arXiv 2303.09556).
    * vlb: the variational bound's beta^2 / (2 sigma^2 alpha (1 - abar)) on epsilon with sigma^2 = beta
      (Ho et al. 2020, arXiv 2006.11239, equation 12).
    * snr: w_t = alpha^2 / sigma^2 on x0, with which the paper's x-space loss is the epsilon-space loss.
    """
    if weighting == "uniform":
        return jnp.ones(timesteps.shape, jnp.float32)
    snr = schedule.snr(timesteps)
    on_epsilon = {
        "min_snr": lambda: jnp.minimum(1.0, gamma / jnp.maximum(snr, 1e-20)),
        "vlb": lambda: 0.5 * schedule.beta_over_alpha(timesteps) * (snr + 1),  # 1 / (1 - abar) = SNR + 1
        "snr": lambda: jnp.ones_like(snr),
    }[weighting]()
    return on_epsilon * {"epsilon": 1.0, "x0": snr, "v": snr / (snr + 1)}[space]


def row_losses(
    output: Array, noisy: Array, batch: Batch, schedule: Schedule, space: Space, weighting: Weighting, gamma: float
) -> Array:
    """Returns w_t times each row's mean squared error in `space`, (b,) float32.

    Args:
        output: the network's prediction (b, h, w, c), of the kind that the schedule names.
        noisy: z_t, what the network saw.
    """
    alpha, sigma = schedule.alpha(batch.timesteps), schedule.sigma(batch.timesteps)
    prediction = convert(output, schedule.prediction_type, space, noisy, alpha, sigma)
    target = target_of(space, batch.latents, batch.noise, alpha, sigma)
    error = jnp.mean(jnp.square(prediction - target), axis=(1, 2, 3))
    return timestep_weight(schedule, batch.timesteps, weighting, space, gamma) * error


class Losses(NamedTuple):
    """Scalars: what is minimised, and its two terms before lambda."""

    total: Array
    instance: Array
    prior: Array


def reduce_rows(losses: Array, batch: Batch) -> Losses:
    """Sums (b,) row losses into the objective. A kind without rows reports 0."""
    is_instance = ~batch.is_prior & (batch.weight > 0)

    def mean_over(mask: AnyArray) -> Array:
        return jnp.sum(losses, where=mask) / jnp.maximum(jnp.sum(mask), 1)

    return Losses(jnp.sum(batch.weight * losses), mean_over(is_instance), mean_over(batch.is_prior))
