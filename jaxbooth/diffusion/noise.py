"""How a row is noised: which timestep, and what is added to its noise.

Every function takes one key a row, so that a row's noise does not depend on the rows beside it. The keys of two
functions must differ, and differ from those that made the noise. A strength of 0 computes nothing.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxbooth.diffusion.flow import resolution_shift
from jaxbooth.diffusion.schedule import Latents, NoiseSchedule
from jaxbooth.params import Array

Keys = Key[Array, " b"]
TimestepDistribution = Literal["uniform", "logit_normal", "mode"]
TimestepShift = float | Literal["resolution"]


class TimestepSampling(NamedTuple):
    """The distribution of training timesteps over low .. high-1; static.

    Attributes:
        distribution: uniform; logit_normal, the sigmoid of a normal sample (Esser et al. 2024, arXiv 2403.03206,
            equation 19); or mode (their equation 20), which is symmetric about the middle.
        mean, std: of the normal; a larger mean trains on more noise.
        low: the least timestep, >= 0.
        high: exclusive; None is the schedule's length. low < high <= that length is for the caller to check.
        mode_scale: of mode, in [-1, 2 / (pi - 2)]; 0 is uniform.
    """

    distribution: TimestepDistribution = "uniform"
    mean: float = 0.0
    std: float = 1.0
    low: int = 0
    high: int | None = None
    mode_scale: float = 1.29


def sample_timesteps(keys: Keys, total: int, sampling: TimestepSampling) -> Int[Array, " b"]:
    """Samples int32 timesteps of a schedule of `total` steps.

    diffusers' scripts look the logit-normal sample up in a list that runs from noisy to clean, so their mean is the
    negative of this one and of the paper's.
    """
    high = total if sampling.high is None else sampling.high
    match sampling.distribution:
        case "uniform":
            return jax.vmap(lambda key: jax.random.randint(key, (), sampling.low, high))(keys)
        case "logit_normal":
            position = jax.nn.sigmoid(sampling.mean + sampling.std * jax.vmap(jax.random.normal)(keys))
        case "mode":
            position = mode_position(jax.vmap(jax.random.uniform)(keys), sampling.mode_scale)
    return timesteps_at(position, sampling.low, high)


def mode_position(uniform: Float[Array, " b"], scale: float) -> Float[Array, " b"]:
    """Maps uniform samples to the positions of `mode`, in [0, 1] (Esser et al. 2024, equation 20)."""
    return 1 - uniform - scale * (jnp.square(jnp.cos(jnp.pi / 2 * uniform)) - 1 + uniform)


def timesteps_at(position: Float[Array, " b"], low: int, high: int) -> Int[Array, " b"]:
    """Returns the int32 timesteps of low .. high-1 at positions from 0, clean, to 1, noisy."""
    steps = jnp.floor(position * (high - low)).astype(jnp.int32)
    return low + jnp.clip(steps, 0, high - low - 1)  # a position may round to 1


def training_schedule(schedule: NoiseSchedule, shift: TimestepShift | None, image_tokens: int) -> NoiseSchedule:
    """Returns the schedule that images of a size are trained on.

    Args:
        shift: of rectified flow, in place of the checkpoint's static one; `resolution` computes it from `image_tokens`;
            None leaves the schedule as it is.
        image_tokens: how many the network makes of the image.
    """
    if shift is None or schedule.flow is None:
        return schedule
    return schedule.shifted(resolution_shift(schedule.flow, image_tokens) if shift == "resolution" else shift)


def offset_noise(noise: Latents, keys: Keys, strength: float) -> Latents:
    """Shifts each row's channels by strength * N(0, 1), the same for all of its pixels (`noise_offset` in diffusers).

    With it the mean of an image is learnt too (Guttenberg 2023, "Diffusion with offset noise"). The result takes the
    place of the noise altogether: z_t is made of it and it is the target.
    """
    if not strength:
        return noise
    channels = (1, 1, noise.shape[-1])
    return noise + strength * jax.vmap(lambda key: jax.random.normal(key, channels, noise.dtype))(keys)


def perturb(noise: Latents, keys: Keys, gamma: float) -> Latents:
    """Returns noise + gamma * N(0, 1), which z_t is made with while `noise` remains the target.

    The network then meets inputs that are off as they are in sampling (Ning et al. 2023, arXiv 2301.11706;
    `input_perturbation` in diffusers).
    """
    if not gamma:
        return noise
    return noise + gamma * jax.vmap(lambda key: jax.random.normal(key, noise.shape[1:], noise.dtype))(keys)
