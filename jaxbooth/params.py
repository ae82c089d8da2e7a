"""Parameters are a flat dict of dotted names; modules exist only while a function is traced.

`Params` maps names such as `down_blocks.0.resnets.1.conv1.kernel` to arrays. The same names address a tensor in the
optimizer, the sharding rule, a checkpoint and (by the leaf rule of `jaxbooth.weights.names`) the safetensors file.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
from flax import nnx

from jaxbooth.sharding import gather_param, param_sharding, slot_param_sharding

T = TypeVar("T")
KERNEL_SCALE = "_scale"  # after a quantized kernel's name: its scales, see `jaxbooth.models.quantization`
AnyArray = jax.Array | np.ndarray  # on the devices or on the host
if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = AnyArray  # JAX's operations take numpy's arrays, too, which the checks at run time must know
Params = dict[str, Array]
Shapes = dict[str, jax.ShapeDtypeStruct]


class ShardedParam(nnx.Param):
    """A parameter that knows where it is stored, and is gathered where a layer reads it.

    It does not know its name: blocks that differ in nothing else are the same to `jax.jit`, which traces them once.
    """

    def get_value(self, **index: Any) -> Any:
        """Returns the array as `jaxbooth.sharding.gather_param` does."""
        return gather_param(super().get_value(**index), self.get_metadata("param_sharding"))


def as_sharded(name: str, value: jax.Array) -> ShardedParam:
    """Returns a parameter for the mesh that `jaxbooth.sharding.mesh_context` has named."""
    return ShardedParam(value, param_sharding=param_sharding(name, value.shape))


def as_slots(_name: str, value: jax.Array) -> ShardedParam:
    """Returns parameters of several subjects, along their first axis, for the mesh of `mesh_context`."""
    return ShardedParam(value, param_sharding=slot_param_sharding())


@dataclass(frozen=True)
class ModuleDef:
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
        """Returns a callable module that holds `params` (every name of `shapes`, any float dtype).

        The scales of quantized kernels join their layers.
        """
        flat = [(path, as_sharded(name, params[name])) for name, path in self.paths.items()]
        module = nnx.merge(self.graphdef, nnx.from_flat_state(flat))
        for name in params:
            if name.endswith(f"kernel{KERNEL_SCALE}"):
                *way, _ = self.paths[name.removesuffix(KERNEL_SCALE)]
                functools.reduce(step_into, way, module).kernel_scale = as_sharded(name, params[name])
        return module


def step_into(module: Any, key: str | int) -> Any:
    """Returns a child by attribute name or list index."""
    return module[key] if isinstance(key, int) else getattr(module, key)


class SingleKey(nnx.Rngs):
    """Draws everything from one key, for descriptions: values that are never computed need no stream of keys.

    Under tracing, flax's count of draws asks tracers for a `sharding` that they lack, and jax searches all equations so
    far for that error's message: quadratic in the size of the model (SDXL's UNet took 52 s, and takes 3 s like this).
    """

    def params(self) -> jax.Array:
        """Returns the key."""
        return self.default.key[...]


def abstract_module(build: Callable[[nnx.Rngs], nnx.Module]) -> ModuleDef:
    """Traces `build` without allocating anything and returns the module's structure."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(SingleKey(0))))
    flat = nnx.to_flat_state(state)
    paths = {".".join(map(str, path)): path for path, _ in flat}
    shapes = {".".join(map(str, path)): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat}
    return ModuleDef(graphdef, paths, shapes)


def with_prefix(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `params` with `prefix.` before every name (`unet` + `conv_in.kernel` -> `unet.conv_in.kernel`)."""
    return {f"{prefix}.{name}": value for name, value in params.items()}


def without_prefix(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries under `prefix.`, with the prefix removed: the inverse of `with_prefix`."""
    return {name[len(prefix) + 1 :]: value for name, value in params.items() if name.startswith(f"{prefix}.")}


def by_component(flat: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Splits `<component>.<parameter>` names: component -> parameters."""
    return {component: without_prefix(component, flat) for component in dict.fromkeys(n.split(".")[0] for n in flat)}


def flatten_components(params: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Joins component -> parameters into one dict of `<component>.<parameter>`: the inverse of `by_component`."""
    return {name: value for component in params for name, value in with_prefix(component, params[component]).items()}


def join(*parts: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    """Returns component -> the parameters that all of `parts` have of it; later ones win."""
    joined: dict[str, dict[str, T]] = {}
    for part in parts:
        for component, params in part.items():
            joined[component] = joined.get(component, {}) | dict(params)
    return joined


def cast_matrices(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    """Casts kernels to `dtype` and leaves biases, norm scales and embeddings, whose gradients are sums, as they are.

    Quantized kernels stay as they are too.

    Done once at the head of a step, so that under FSDP the gathers move the compute dtype and not float32 masters.
    """
    return {name: value.astype(dtype) if is_matrix(name, value) else value for name, value in params.items()}


def is_matrix(name: str, value: AnyArray | jax.ShapeDtypeStruct) -> bool:
    """Tells whether a parameter is used in products as it is; embeddings are looked up, and codes are decoded."""
    return value.ndim > 1 and value.dtype.itemsize > 1 and not name.endswith(("embedding", KERNEL_SCALE))


def full_precision() -> AbstractContextManager:
    """While tracing, asks for float32 products; TPUs and recent GPUs round the factors to fewer bits by default."""
    return jax.default_matmul_precision("float32")


def pixel_precision() -> AbstractContextManager:
    """While tracing, asks for products that are good for pixels of 8 bits: TF32 on a GPU, three passes on a TPU."""
    return jax.default_matmul_precision("high")


def precision_of(dtype: jax.typing.DTypeLike) -> AbstractContextManager:
    """`full_precision` for a computation in float32, and nothing for one in bfloat16."""
    return full_precision() if np.dtype(dtype) == np.float32 else nullcontext()
