"""Learned positions of patches, for pictures of another size than they were learned at."""

import jax.numpy as jnp
import numpy as np

from jaxbooth.params import Array

SHARPNESS = -0.75  # a of the cubic convolution kernel (Keys 1981) as torch has it; jax.image.resize has -0.5


def cubic_weights(entries: int, wanted: int) -> np.ndarray:
    """Returns the (wanted, entries) float64 matrix of torch's `interpolate(mode="bicubic", align_corners=False)`.

    Taps beyond either end read the entry at that end, and nothing is smoothed when `wanted` is smaller.
    """
    weights = np.zeros((wanted, entries))
    places = (np.arange(wanted) + 0.5) * entries / wanted - 0.5
    for tap in range(-1, 3):
        sources = np.floor(places) + tap
        distance = np.abs(places - sources)
        near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
        far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
        columns = np.clip(sources, 0, entries - 1).astype(int)
        np.add.at(weights, (np.arange(wanted), columns), np.where(distance <= 1, near, far))
    return weights


def positions_for(table: Array, height: int, width: int) -> Array:
    """Returns the positions of a grid of patches, the class token's first; transformers `interpolate_pos_encoding`.

    Args:
        table: (1 + n * n, d), of the class token and of a square of patches row by row.
        height, width: patches wanted.

    Returns:
        (1 + height * width, d); `table` itself where that is the square it was learned at.
    """
    side = round((len(table) - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table[1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(cubic_weights(side, wanted), table.dtype) for wanted in (height, width))
    resized = jnp.einsum("yi,xj,ijd->yxd", rows, columns, grid)
    return jnp.concatenate([table[:1], resized.reshape(height * width, -1)])
