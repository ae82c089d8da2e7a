"""The one place where a seed becomes random numbers: JAX's counter-based keys, and numpy's generators on the host.

All 63 bits of a seed count. A seed below 2^32 gives what `jax.random.key(seed)` and `default_rng([seed, number])` give.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.errors import UserError
from jaxbooth.params import AnyArray

MAX_SEED = 2**63 - 1
IMPLEMENTATION = "threefry2x32"  # whatever JAX's default is


def split_seed(seed: int) -> tuple[int, int]:
    """Returns the upper and the lower 32 bits of a seed.

    Raises:
        UserError: it is not between 0 and MAX_SEED.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed} is out of range; choose one from 0 to {MAX_SEED}.")
    return seed >> 32, seed & 0xFFFFFFFF


def key_data(seed: int) -> np.ndarray:
    """Returns the (2,) uint32 key of a seed on the host: data for a compiled program, which serves every seed.

    `jax.random.key` drops the upper half where 64-bit types are off; with them, it gives this key.

    Raises:
        UserError: the seed is not between 0 and MAX_SEED.
    """
    return np.array(split_seed(seed), np.uint32)


def root_key(data: AnyArray) -> Array:
    """Returns the PRNG key of `key_data`, from which all others are folded and split."""
    return jax.random.wrap_key_data(jnp.asarray(data), impl=IMPLEMENTATION)


def host_generator(seed: int, number: int) -> np.random.Generator:
    """Returns numpy's generator of a seed and a number below 2^32: an epoch's, an image's, a parameter's.

    Raises:
        UserError: the seed is not between 0 and MAX_SEED.
    """
    upper, lower = split_seed(seed)
    return np.random.default_rng([lower, number, upper])  # a trailing 0 changes nothing
