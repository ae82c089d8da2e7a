"""Rotary position embeddings (RoPE): channels are rotated in pairs, by angles that grow with a token's position.

Z-Image and FLUX.2 pair neighbours (0, 1), (2, 3), ...; Qwen3 pairs a channel of the first half with the same one of the
second. Tables of angles are made on the host, with numpy, in the precision that the reference makes them in.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbooth.params import Array

HostArray = np.ndarray
Heads = Float[Array, "b t heads d"]  # queries or keys


class Rotation(NamedTuple):
    """What each channel is rotated with, float32: x cos + partner sin, where `sin` has the partner's sign."""

    cos: Float[Array | HostArray, "*b t d"]
    sin: Float[Array | HostArray, "*b t d"]


def rope_angles(
    positions: Int[HostArray, "t axes"], widths: Sequence[int], theta: float, dtype: type[np.floating] = np.float64
) -> Float[HostArray, "t half_d"]:
    """Returns the angles position / theta^(2 i / width), i < width / 2, of every axis, side by side.

    Args:
        positions: of tokens along one or more axes.
        widths: channels that each axis rotates, even numbers.
        dtype: computed in. transformers takes float32, diffusers float64.
    """
    axes = []
    for axis, width in enumerate(widths):
        exponents = np.arange(0, width, 2).astype(dtype) / dtype(width)
        frequencies = dtype(1) / dtype(theta) ** exponents
        axes.append(positions[:, axis, None].astype(dtype) * frequencies)
    return np.concatenate(axes, axis=-1)


def neighbour_rotation(angles: Float[HostArray, "t half_d"]) -> Rotation:
    """Returns the rotation of neighbouring channels; cosines are taken in the dtype of `angles`."""
    cos, sin = np.cos(angles), np.sin(angles)
    signed = np.stack([-sin, sin], axis=-1).reshape(len(sin), -1)
    return Rotation(np.repeat(cos, 2, axis=-1).astype(np.float32), signed.astype(np.float32))


def half_rotation(angles: Float[HostArray, "t half_d"]) -> Rotation:
    """Returns the rotation of each channel with the one half the width away; cosines as in `neighbour_rotation`."""
    cos, sin = np.cos(angles), np.sin(angles)
    return Rotation(
        np.concatenate([cos, cos], axis=-1).astype(np.float32), np.concatenate([-sin, sin], axis=-1).astype(np.float32)
    )


def rotate_neighbours(x: Heads, rotation: Rotation) -> Heads:
    """Rotates channels (0, 1), (2, 3), ... in float32; the dtype stays. diffusers `apply_rotary_emb`."""
    return rotate_pairs(x, *rotation)


@jax.custom_vjp
def rotate_pairs(x: Heads, cos: Array | HostArray, sin: Array | HostArray) -> Heads:
    """Returns `rotate_neighbours`; angles have no gradient.

    Left to itself, JAX would shift float32 gradients, which a TPU stores, a gigabyte of them in FLUX.2 at 1024 px.
    """
    values, partners = (part.astype(jnp.float32) for part in (x, neighbours(x)))
    return rotated(values, partners, Rotation(cos, sin)).astype(x.dtype)


def rotate_pairs_forward(x: Heads, cos: Array | HostArray, sin: Array | HostArray) -> tuple[Heads, tuple[Any, Any]]:
    """Keeps the angles."""
    return rotate_pairs(x, cos, sin), (cos, sin)


def rotate_pairs_backward(angles: tuple[Any, Any], grad: Heads) -> tuple[Heads, None, None]:
    """Rotates the gradient back: a partner's sine is the negative of one's own."""
    cos, sin = angles
    return rotate_pairs(grad, cos, -sin), None, None


rotate_pairs.defvjp(rotate_pairs_forward, rotate_pairs_backward)


def neighbours(x: Heads) -> Heads:
    """Returns channels 1, 0, 3, 2, ..., which a TPU neither shifts nor stores as parts of a matrix product."""
    return jax.lax.platform_dependent(x, tpu=swapped_by_product, default=swapped_by_shifts)


def swapped_by_product(x: Heads) -> Heads:
    """Returns `neighbours` as a product with zeros and ones, which is exact."""
    width = x.shape[-1]
    swap = np.eye(width)[np.arange(width) ^ 1]
    return jnp.matmul(x, jnp.asarray(swap, x.dtype), precision=jax.lax.Precision.HIGHEST)


def swapped_by_shifts(x: Heads) -> Heads:
    """Returns `neighbours` as two shifts and a choice between them."""
    is_even = jnp.arange(x.shape[-1]) % 2 == 0
    return jnp.where(is_even, jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))


def rotate_halves(x: Heads, rotation: Rotation) -> Heads:
    """Rotates channels (0, d/2), (1, d/2 + 1), ... in float32; the dtype stays. transformers `apply_rotary_pos_emb`."""
    values = x.astype(jnp.float32)
    return rotated(values, jnp.roll(values, x.shape[-1] // 2, axis=-1), rotation).astype(x.dtype)


def rotated(values: Heads, partners: Heads, rotation: Rotation) -> Heads:
    """Applies a rotation to every head."""
    cos, sin = (jnp.expand_dims(jnp.asarray(table), -2) for table in rotation)
    return values * cos + partners * sin


def at_positions(tables: Sequence[Rotation], positions: Int[Array, "*b t axes"]) -> Rotation:
    """Looks up the rotations of traced positions, side by side.

    Args:
        tables: of every axis, the rotation of each position from 0 on. A position beyond its end is not noticed.
    """
    axes = [[jnp.asarray(part)[positions[..., axis]] for part in table] for axis, table in enumerate(tables)]
    cosines, sines = zip(*axes, strict=True)
    return Rotation(jnp.concatenate(cosines, axis=-1), jnp.concatenate(sines, axis=-1))
