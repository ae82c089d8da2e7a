"""Parameters are a flat dict of dotted names; modules exist only while a function is traced.

`Params` maps names such as `down_blocks.0.resnets.1.conv1.kernel` to arrays. The same names address a tensor in the
optimizer, the sharding rule, a checkpoint and (by the leaf rule of `jaxbooth.weights.names`) the safetensors file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

Params = dict[str, jax.Array]
AnyArray = jax.Array | np.ndarray  # on the devices or on the host
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Network:
    """The structure of a module without its arrays.

    Attributes:
        graphdef: the static half of the NNX module.
        paths: dotted name -> NNX path. Integer list indices stay integers: as strings they would sort as
            0, 1, 10, 11, 2 and silently permute the layers of anything with more than ten.
        shapes: dotted name -> shape and dtype of the parameter.
    """

    graphdef: Any
    paths: dict[str, tuple]
    shapes: Shapes

    def bind(self, params: Mapping[str, jax.Array]) -> Any:
        """Returns a callable module that holds `params` (every name of `shapes`, any float dtype)."""
        flat = [(path, params[name]) for name, path in self.paths.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))


def describe(build: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Traces `build` without allocating anything and returns the module's structure."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    paths = {".".join(map(str, path)): path for path, _ in flat}
    shapes = {".".join(map(str, path)): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat}
    return Network(graphdef, paths, shapes)


def random_params(build: Callable[[nnx.Rngs], nnx.Module], seed: int) -> Params:
    """Returns freshly initialised float32 parameters of the module that `build` makes."""
    _, state = nnx.split(build(nnx.Rngs(seed)))
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def with_prefix(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `params` with `prefix.` before every name (`unet` + `conv_in.kernel` -> `unet.conv_in.kernel`)."""
    return {f"{prefix}.{name}": value for name, value in params.items()}


def without_prefix(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries under `prefix.`, with the prefix removed: the inverse of `with_prefix`."""
    return {name[len(prefix) + 1 :]: value for name, value in params.items() if name.startswith(f"{prefix}.")}


def select(params: Mapping[str, Any], pattern: str) -> dict[str, Any]:
    """Returns the entries whose whole name matches the regular expression `pattern`."""
    return {name: value for name, value in params.items() if re.fullmatch(pattern, name)}


def cast_matrices(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    """Casts kernels and embeddings to `dtype` and leaves vectors (biases, norm scales) as they are.

    Done once at the head of a step, so that under FSDP the gathers move the compute dtype and not float32 masters.
    """
    return {name: value.astype(dtype) if value.ndim > 1 else value for name, value in params.items()}
