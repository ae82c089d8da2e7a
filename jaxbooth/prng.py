"""Seeds become random numbers here only: as JAX's counter-based keys, and as numpy's generators on the host.

All 63 bits of a seed count. A seed below 2^32 gives what `jax.random.key(seed)` and `default_rng([seed, index])` give.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbooth.errors import UserError
from jaxbooth.params import AnyArray

MAX_SEED = 2**63 - 1
IMPLEMENTATION = "threefry2x32"  # not JAX's default, which a user may set


def split_seed(seed: int) -> tuple[int, int]:
    """Returns the upper and the lower 32 bits of a seed.

    Raises:
        UserError: it is not between 0 and MAX_SEED.
    """
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed} is out of range; choose one from 0 to {MAX_SEED}.")
    return seed >> 32, seed & 0xFFFFFFFF


def key_data(seed: int) -> np.ndarray:
    """Returns a seed's key as (2,) uint32 on the host: input of a compiled program, which then serves every seed.

    `jax.random.key` drops the upper half where 64-bit types are off; with them, it gives this key.

    Raises:
        UserError: the seed is not between 0 and MAX_SEED.
    """
    return np.array(split_seed(seed), np.uint32)


def root_key(data: AnyArray) -> Array:
    """Returns the PRNG key for `key_data`; all other keys are derived from it with `fold_in` and `split`."""
    return jax.random.wrap_key_data(jnp.asarray(data), impl=IMPLEMENTATION)


def host_generator(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """Returns a numpy generator for a seed and an index below 2^32: that of an epoch, an image or a parameter.

    Args:
        stream: below 2^32; tells apart what is drawn for the same index.

    Raises:
        UserError: the seed is not between 0 and MAX_SEED.
    """
    upper, lower = split_seed(seed)
    return np.random.default_rng([lower, index, upper, stream])  # trailing zeros change nothing
