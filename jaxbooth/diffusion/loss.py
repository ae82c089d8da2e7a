"""The DreamBooth objective over rows.

A batch holds n instance rows and m prior rows of each method in any order. Row weights of 1/n and lambda/m turn one
weighted sum into

    mean over instance rows of w_t ||target - prediction||^2  +  lambda * the same mean over the rows of a method + ...

With class rows alone these are the two terms of Ruiz et al. 2023 (arXiv 2208.12242, section 3.3, equation 2). The
target is a row's own fresh noise, or the frozen model's prediction where the row is distilled.
The batch is never split, so neither sharding nor unequal counts can put the weight on the wrong images.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxbooth.diffusion.schedule import Latents, NoiseSchedule, PredictionType, convert, training_target
from jaxbooth.diffusion.weighting import Weighting, timestep_weight
from jaxbooth.params import AnyArray, Array

LossType = Literal["l2", "huber"]


class Role(IntEnum):
    """What a row is for.

    Attributes:
        INSTANCE: an image of a subject under its own caption.
        CLASS: an image of the class under the class prompt.
        OUTPUT_PRESERVATION: the latents of an instance row under the caption without the identifier.
        BLANK_PROMPT: the latents of an instance row under the empty caption.
    """

    INSTANCE = 0
    CLASS = 1
    OUTPUT_PRESERVATION = 2
    BLANK_PROMPT = 3


# role -> name of its loss in the metrics
TERM_NAMES = {
    Role.INSTANCE: "instance_loss",
    Role.CLASS: "prior_loss",
    Role.OUTPUT_PRESERVATION: "output_preservation_loss",
    Role.BLANK_PROMPT: "blank_prompt_loss",
}
OUTSIDE_MASK_LOSS = "outside_mask_loss"
REPORTED = (Role.INSTANCE, Role.CLASS)  # in every run, 0 where there are no such rows


class LossSpec(NamedTuple):
    """What is done with a row's error; all of it static.

    Attributes:
        prediction_space: where the error is measured.
        weighting: w_t of instance rows.
        prior_weighting: w_t of prior rows; None weighs them like instance rows.
        snr_gamma: gamma of `min_snr`.
        loss_type: the function of one element's error.
        huber_c: error at which `huber` turns from squared to linear, > 0, in units of `prediction_space`.
        distilled: roles whose target is the frozen model's prediction.
        outside_mask_weight: weight of the frozen model's prediction where an instance row's mask is not white.
    """

    prediction_space: PredictionType
    weighting: Weighting = "uniform"
    prior_weighting: Weighting | None = None
    snr_gamma: float = 5.0
    loss_type: LossType = "l2"
    huber_c: float = 0.1
    distilled: tuple[Role, ...] = ()
    outside_mask_weight: float = 0.0


class Batch(NamedTuple):
    """Rows to denoise.

    Attributes:
        latents: scaled x (b, h, w, c) float32.
        noise: eps, of the same shape.
        timesteps: (b,) int32.
        weight: (b,) float32: 1/n for an instance row, lambda/m for a prior row, 0 for padding. A subject's own weight
            multiplies that of its instance rows and of the prior rows that go with it.
        role: (b,) int32, see `Role`.
        mask: (b, h, w, 1) float32 in [0, 1], how much each pixel of the latents counts; None counts all alike.
    """

    latents: Latents
    noise: Latents
    timesteps: Int[Array, " b"]
    weight: Float[AnyArray, " b"]
    role: Int[AnyArray, " b"]
    mask: Float[AnyArray, "b h w 1"] | None = None

    @property
    def is_prior(self) -> Bool[AnyArray, " b"]:
        """Which rows are there for what the model knew, (b,)."""
        return self.role != Role.INSTANCE

    def has_role(self, roles: Sequence[Role]) -> Bool[AnyArray, " b"]:
        """Which rows have one of some roles, (b,)."""
        return jnp.isin(jnp.asarray(self.role), jnp.asarray(roles, jnp.int32))


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


class RowLosses(NamedTuple):
    """Loss of each row, (b,) float32.

    Attributes:
        inside: of the pixels that its mask leaves, all where there is none.
        outside: of the others, against the frozen model's prediction; 0 for a row without any, None where that is off.
    """

    inside: Float[Array, " b"]
    outside: Float[Array, " b"] | None = None


def per_example_loss(
    output: Latents,
    noisy: Latents,
    batch: Batch,
    schedule: NoiseSchedule,
    loss: LossSpec,
    frozen: Latents | None = None,
) -> RowLosses:
    """Returns w_t times each row's mean element loss in `loss.prediction_space`, inside its mask and outside of it.

    Args:
        output: the network's prediction, of the type that the schedule names.
        noisy: z_t made with `batch.noise`, by which predictions are converted. Under input perturbation this is not
            what the network saw: the added noise is no error of the network, in whatever space it is measured.
        frozen: the frozen model's prediction, like `output` and for the same input; the target of distilled rows, and
            of instance rows outside their masks. No gradient passes through it. None where nothing needs it.
    """
    alpha, sigma = schedule.alpha(batch.timesteps), schedule.sigma(batch.timesteps)

    def in_space(value: Latents) -> Latents:
        return convert(value, schedule.prediction_type, loss.prediction_space, noisy, alpha, sigma)

    prediction = in_space(output)
    target = training_target(loss.prediction_space, batch.latents, batch.noise, alpha, sigma)
    weight, outside = example_weights(schedule, batch, loss), None
    if frozen is not None:
        frozen_target = jax.lax.stop_gradient(in_space(frozen))
        is_distilled = batch.has_role(loss.distilled)[:, None, None, None]
        target = jnp.where(is_distilled, frozen_target, target)
        if loss.outside_mask_weight and batch.mask is not None:
            change = element_losses(prediction - frozen_target, loss)
            outside = weight * mean_over_pixels(change, 1 - jnp.asarray(batch.mask))
    inside = weight * mean_over_pixels(element_losses(prediction - target, loss), batch.mask)
    return RowLosses(inside, outside)


class Losses(NamedTuple):
    """Scalars.

    Attributes:
        total: what is minimised.
        terms: name of a term -> its mean over rows before its weight, see `TERM_NAMES`.
    """

    total: Array
    terms: dict[str, Array]


def reduce_losses(losses: RowLosses, batch: Batch, loss: LossSpec, roles: Sequence[Role] = REPORTED) -> Losses:
    """Sums (b,) row losses into the objective. A term without rows is 0.

    The terms are plain means over rows: neither lambda nor a subject's weight enters them.

    Args:
        roles: those whose terms are reported.
    """
    is_padding = (batch.role == Role.INSTANCE) & (batch.weight == 0)

    def mean_over(values: Float[Array, " b"], rows: Bool[AnyArray, " b"]) -> Array:
        return jnp.sum(values, where=rows) / jnp.maximum(jnp.sum(rows), 1)

    terms = {TERM_NAMES[role]: mean_over(losses.inside, (batch.role == role) & ~is_padding) for role in roles}
    total = jnp.sum(batch.weight * losses.inside)
    if losses.outside is not None:
        terms[OUTSIDE_MASK_LOSS] = mean_over(losses.outside, (batch.role == Role.INSTANCE) & ~is_padding)
        total += loss.outside_mask_weight * jnp.sum(batch.weight * losses.outside)
    return Losses(total, terms)
