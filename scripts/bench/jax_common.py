"""What the subjects in JAX share: random weights, and facts about the machine. Needs nothing of jaxbooth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SPREAD = 0.02  # of random kernels: activations stay finite in every family
BLOCK = 1_000_003  # a prime, so that rows of kernels are not copies of each other


def random_like(tree: Any) -> Any:
    """Returns a described tree of arrays, filled: ones where a norm scales, zeros for biases and counts, else noise.

    No zeros where a model has none: a GPU multiplies zeros faster than it does real weights. One block of noise serves
    all arrays, since nothing here depends on their being independent.
    """
    draw = np.random.default_rng(0)
    noise = SPREAD * draw.standard_normal(BLOCK, np.float32)
    codes = draw.integers(0, 256, BLOCK, np.uint8)

    def fill(path: tuple, leaf: Any) -> Array:
        name = str(getattr(path[-1], "key", ""))
        if name.endswith(".scale"):
            value = np.ones(leaf.shape, leaf.dtype)
        elif name.endswith(".kernel_scale"):
            value = np.full(leaf.shape, SPREAD / 100, leaf.dtype)
        elif leaf.dtype.itemsize == 1 and jnp.issubdtype(leaf.dtype, jnp.integer):
            value = np.resize(codes.view(leaf.dtype), leaf.shape)
        elif name.endswith(".bias") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            value = np.zeros(leaf.shape, leaf.dtype)
        else:
            value = np.resize(noise.astype(leaf.dtype), leaf.shape)
        return jax.device_put(value, leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, tree)


def machine(**versions: str) -> dict[str, Any]:
    """Returns the device's name and the versions, of JAX and of what else is named."""
    return {"device": jax.devices()[0].device_kind, "versions": {"jax": jax.__version__} | versions}


def peak_bytes() -> int | None:
    """Returns the most memory used on the first device."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
