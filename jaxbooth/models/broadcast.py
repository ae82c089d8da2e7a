"""Broadcasts whose gradients are summed in float32.

The gradient of a broadcast is a sum: that of a bias is one over rows and pixels. JAX takes it in the dtype of what was
broadcast, and bfloat16 holds eight bits of a number: beyond 256 equal terms, a sum in it no longer grows.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxbooth.params import Array


def broadcast(values: Float[Array, "..."], shape: Sequence[int], dtype: jax.typing.DTypeLike) -> Float[Array, "..."]:
    """Returns `values` in a shape and dtype. The sums of its gradient are float32, rounded once to that of `values`."""
    return jnp.broadcast_to(values.astype(jnp.float32), shape).astype(dtype)


def add_broadcast(x: Float[Array, "*shape"], values: Float[Array, "..."]) -> Float[Array, "*shape"]:
    """Returns x + `values`, in the shape and dtype of `x`; see `broadcast`."""
    return x + broadcast(values, x.shape, x.dtype)
