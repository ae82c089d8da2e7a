"""How a row is noised: which timestep, and what is added to its noise.

Every function takes one key a row, so that a row's noise does not depend on the rows beside it. The keys of two
functions must differ, and differ from those that made the noise. A strength of 0 computes nothing.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int, Key

from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import Array

Keys = Key[Array, " b"]


class TimestepSampling(NamedTuple):
    """The distribution of training timesteps over low .. high-1; static.

    Attributes:
        distribution: uniform; or logit_normal, the sigmoid of a normal sample (Esser et al. 2024, arXiv 2403.03206,
            equation 19).
        mean, std: of the normal; a larger mean trains on more noise.
        low: the least timestep, >= 0.
        high: exclusive; None is the schedule's length. low < high <= that length is for the caller to check.
    """

    distribution: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    low: int = 0
    high: int | None = None


def sample_timesteps(keys: Keys, total: int, sampling: TimestepSampling) -> Int[Array, " b"]:
    """Samples int32 timesteps of a schedule of `total` steps.

    diffusers' scripts look the logit-normal sample up in a list that runs from noisy to clean, so their mean is the
    negative of this one and of the paper's.
    """
    high = total if sampling.high is None else sampling.high
    if sampling.distribution == "uniform":
        return jax.vmap(lambda key: jax.random.randint(key, (), sampling.low, high))(keys)
    level = jax.nn.sigmoid(sampling.mean + sampling.std * jax.vmap(jax.random.normal)(keys))
    steps = jnp.floor(level * (high - sampling.low)).astype(jnp.int32)
    return sampling.low + jnp.minimum(steps, high - sampling.low - 1)  # the sigmoid may round to 1


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
