"""Projections to several parts side by side, and from several: one product, also where devices share it.

Tensor parallelism gives each device a piece of a kernel's columns (or rows). Of [query | key | value], one device would
hold queries and another one values. So the kernel is reordered before it is cut: the piece of each device holds its
share of every part, and no activation has to travel.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from jaxbooth.models.adapter_kinds import GIVING_OUT, TAKING_IN
from jaxbooth.models.quantization import is_blockwise
from jaxbooth.params import Array
from jaxbooth.sharding import tensor_axis_size


def pieces_of(widths: Sequence[int], unit: int = 1) -> int:
    """Returns into how many pieces of whole units each part is cut: 1 where `tensor` does not divide all of them."""
    size = tensor_axis_size()
    return 1 if any(width % (size * unit) for width in widths) else size


def input_unit(layer: Any, inputs: int) -> int:
    """Returns how many inputs of a layer stay together: those of a block where its kernel is quantized in blocks."""
    scale = getattr(layer, "layer", layer).kernel_scale
    return inputs // scale.shape[-2] if scale is not None and is_blockwise(scale) else 1


def reordered(values: Array, widths: Sequence[int], pieces: int, axis: int) -> Array:
    """Returns what stands part by part along an axis piece by piece, with a share of every part in each."""
    parts = jnp.split(values, np.cumsum(widths)[:-1], axis)
    return joined([jnp.moveaxis(part, axis, -1) for part in parts], pieces, axis)


def joined(parts: Sequence[Shaped[Array, "*batch _"]], pieces: int, axis: int = -1) -> Array:
    """Joins parts, whose channels come last, piece by piece; the channels of the result are at `axis`."""
    cut = [part.reshape(*part.shape[:-1], pieces, -1) for part in parts]
    together = jnp.concatenate(cut, axis=-1)
    return jnp.moveaxis(together.reshape(*together.shape[:-2], -1), -1, axis)


def taken_apart(values: Float[Array, "*batch total"], widths: Sequence[int], pieces: int) -> list[Array]:
    """Returns the parts of what stands piece by piece: the inverse of `joined`."""
    cut = values.reshape(*values.shape[:-1], pieces, -1)
    shares = np.cumsum(widths)[:-1] // pieces
    return [part.reshape(*part.shape[:-2], -1) for part in jnp.split(cut, shares, axis=-1)]


def reordered_layer(layer: Any, widths: Sequence[int], pieces: int, axis: int, unless: frozenset[str]) -> Any:
    """Returns a layer, with its adapter if it has one, whose inputs or outputs stand piece by piece.

    Of a kernel that is quantized in blocks, a row of codes stands for two inputs, and one of scales for a block.

    Args:
        axis: of a kernel: -2 for inputs, -1 for outputs.
        unless: names of the adapter's parameters that have no such axis.
    """
    if pieces == 1:
        return layer

    def reorder(path: tuple, value: Array) -> Array:
        names = {getattr(key, "name", "") for key in path}
        if names & unless or value.ndim < -axis:
            return value
        share = sum(widths) // value.shape[axis] if names & {"kernel", "kernel_scale"} else 1
        rows = [width // share for width in widths]
        return reordered(value, rows, pieces, axis) if value.shape[axis] == sum(rows) else value

    return jax.tree_util.tree_map_with_path(reorder, layer)


def project_to_parts(layer: Any, x: Float[Array, "*batch c"], widths: Sequence[int]) -> list[Array]:
    """Returns the parts of a layer's outputs, of `widths` channels."""
    pieces = pieces_of(widths)
    outputs = reordered_layer(layer, widths, pieces, axis=-1, unless=TAKING_IN)(x)
    return taken_apart(outputs, widths, pieces)


def project_from_parts(layer: Any, parts: Sequence[Float[Array, "*batch _"]]) -> Float[Array, "*batch c"]:
    """Returns a layer's outputs from the parts of its inputs."""
    widths = [part.shape[-1] for part in parts]
    pieces = pieces_of(widths, input_unit(layer, sum(widths)))
    return reordered_layer(layer, widths, pieces, axis=-2, unless=GIVING_OUT)(joined(parts, pieces))
