"""Names, binding and selection of parameters."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbooth.models.layers import Layers
from jaxbooth.params import abstract_module, cast_matrices, with_prefix, without_prefix


class Stack(nnx.Module):
    """Twelve layers that do not commute."""

    def __init__(self, layers: Layers):
        self.layers = nnx.List([layers.linear(1, 1) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def build(rngs):
    return Stack(Layers(rngs))


def test_layers_keep_their_order_beyond_ten():
    network = abstract_module(build)
    params = {}
    for index in range(12):
        params[f"layers.{index}.kernel"] = jnp.full((1, 1), 2.0)
        params[f"layers.{index}.bias"] = jnp.full(1, float(index))
    value = 1.0
    for index in range(12):
        value = 2 * value + index
    assert network.bind(params)(jnp.ones((1, 1))) == value


def test_describing_allocates_names_and_shapes_only():
    network = abstract_module(build)
    assert network.shapes["layers.11.kernel"].shape == (1, 1)
    assert len(network.shapes) == 24


def test_prefixes_are_inverse():
    params = {"a.kernel": 1, "b.bias": 2}
    assert without_prefix("unet", with_prefix("unet", params)) == params


def test_only_matrices_are_cast():
    cast = cast_matrices({"k": jnp.ones((2, 2)), "b": jnp.ones(2)}, jnp.bfloat16)
    assert (cast["k"].dtype, cast["b"].dtype) == (jnp.bfloat16, np.float32)
