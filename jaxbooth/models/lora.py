"""Adapters beside the layers of a network: their shapes, their start, how they are bound and merged.

An adapter of a linear layer or convolution with kernel W holds the factors of a change of W: the layer computes
(W + scale change) x without forming the sum (DoRA, Liu et al. 2024, arXiv 2402.09353, forms it for its norms). What the
factors mean is in `jaxbooth.models.adapter_kinds`. Adapters are a second flat dict, named after the layer as PEFT and
LyCORIS name them (`<layer>.lora_A.kernel`, `<layer>.lokr_w1.kernel`), so that the leaf rule exports them too. They join
a module where it is bound; sampling in float32 from a finished run adds them to the kernels once instead.

Adapters with one more axis in front are those of several subjects, whose rows follow one another in the batch: the
layer itself sees all rows as one batch, and each subject's adapter its own.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxbooth.distributed.arrays import to_host
from jaxbooth.models.adapter_kinds import MAGNITUDE, PARTS, LoraSpec, adapted_layer, is_adapter
from jaxbooth.models.broadcast import broadcast
from jaxbooth.models.conv import Conv, conv2d
from jaxbooth.models.layers import Linear
from jaxbooth.models.quantization import full_kernel
from jaxbooth.params import (
    KERNEL_SCALE,
    AnyArray,
    Array,
    ModuleDef,
    Params,
    Shapes,
    ShardedParam,
    as_sharded,
    as_slots,
    step_into,
)
from jaxbooth.prng import host_generator


def lora_shapes(network: ModuleDef, layers: list[str], lora: LoraSpec) -> Shapes:
    """Returns the adapters' names and float32 shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        kernel = network.shapes[f"{layer}.kernel"].shape
        for part, shape in lora.formulas.shapes(kernel, lora.rank, lora.factor).items():
            shapes[f"{layer}.{part}"] = shape
        if lora.dora:
            shapes[f"{layer}.{MAGNITUDE}"] = (kernel[-1],)
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def init_lora(params: Mapping[str, AnyArray], shapes: Shapes, seed: int, lora: LoraSpec) -> dict[str, np.ndarray]:
    """Returns adapters that change nothing yet; magnitudes are those of the kernels.

    Args:
        params: the component's own parameters, of which DoRA reads the kernels.
    """
    adapters = {}
    for index, (name, leaf) in enumerate(sorted(shapes.items())):
        layer = adapted_layer(name)
        part = name.removeprefix(f"{layer}.")
        if part == MAGNITUDE:
            kernel = f"{layer}.kernel"
            adapters[name] = to_host(kernel_norms(params[kernel], params.get(kernel + KERNEL_SCALE)))
        else:
            adapters[name] = lora.formulas.initial(part, leaf.shape, host_generator(seed, index))
    return adapters


def output_norms(kernel: Float[Array, "*fan_in fan_out"]) -> Float[Array, " fan_out"]:
    """Returns the float32 norm of the weights of each output."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=tuple(range(kernel.ndim - 1))))


@jax.jit
def kernel_norms(kernel: Array, scale: Array | None) -> Float[Array, " fan_out"]:
    """Returns `output_norms` of a kernel that may be quantized; see `full_kernel`."""
    return output_norms(full_kernel(kernel, scale))


class LoraLayer(nnx.Module):
    """A layer with its adapter beside it.

    Attributes:
        half: which half of the outputs is asked for, where the layer itself was cut in two but its adapter spans all.
    """

    def __init__(self, layer: Linear | Conv, params: Mapping[str, ShardedParam], lora: LoraSpec, has_slots: bool):
        self.layer, self.lora, self.has_slots = layer, lora, has_slots
        self.scale, self.half = lora.scale_of(params), 0
        self.parts = tuple(part for part in params if part != MAGNITUDE)
        for part in self.parts:
            setattr(self, part.removesuffix(".kernel"), params[part])
        self.magnitude = params[MAGNITUDE] if lora.dora else None

    def __call__(self, x: Array) -> Array:
        """As the layer's own call."""
        base = self.layer(x)
        change = self.scale * self.change(x.astype(base.dtype)).astype(base.dtype)
        if change.shape[-1] != base.shape[-1]:
            change = jnp.split(change, change.shape[-1] // base.shape[-1], axis=-1)[self.half]
        if self.magnitude is None:
            return base + change
        bias = 0 if self.layer.bias is None else self.layer.bias[...].astype(base.dtype)
        # The small change is what is rounded to the compute dtype, and not the ratio near 1, which would swallow it.
        return base + change + broadcast(self.ratio() - 1, base.shape, base.dtype) * (base - bias + change)

    def factors(self) -> dict[str, Array]:
        """Returns part -> its values."""
        return {part: getattr(self, part.removesuffix(".kernel"))[...] for part in self.parts}

    def change(self, x: Array) -> Array:
        """Applies the adapter alone, unscaled, in the dtype of `x`."""
        factors = {part: value.astype(x.dtype) for part, value in self.factors().items()}
        if not self.has_slots:
            return self.lora.formulas.apply(factors, x, self.product)
        count = len(next(iter(factors.values())))
        rows = x.reshape(count, -1, *x.shape[1:])
        applied = jax.vmap(lambda factors, x: self.lora.formulas.apply(factors, x, self.product))(factors, rows)
        return applied.reshape(len(x), *applied.shape[2:])

    def product(self, x: Array, kernel: Array) -> Array:
        """Applies a kernel in the place of the layer's own; one without a window needs neither stride nor padding."""
        if isinstance(self.layer, Conv) and kernel.shape[0] > 1:
            return conv2d(x, kernel, self.layer.stride, self.layer.padding)
        return x @ kernel.reshape(kernel.shape[-2:])

    def ratio(self) -> Array:
        """DoRA's learned magnitude over the norm of W + scale A B, which carries no gradient (its section 4.3)."""
        assert self.magnitude is not None
        change = self.scale * self.lora.formulas.kernel(self.factors())
        norms = output_norms(self.layer.full_kernel() + change)
        return self.magnitude[...].astype(jnp.float32) / jax.lax.stop_gradient(norms)


@dataclass(frozen=True)
class LoraModuleDef(ModuleDef):
    """A network that also takes the parameters of adapters; without any of them it is the plain one."""

    lora: LoraSpec | None = None

    def bind(self, params: Mapping[str, Array]) -> Any:
        """Returns the callable module, adapters in place."""
        module = super().bind(params)
        assert self.lora is not None
        for layer in lora_layers(params):
            *way, last = self.paths[f"{layer}.kernel"][:-1]
            parent = functools.reduce(step_into, way, module)
            parts = layer_parts(params, layer)
            has_slots = parts[self.lora.formulas.parts[0]].ndim % 2 == 1  # else a factor has two axes, or four
            place = as_slots if has_slots else as_sharded
            leaves = {part: place(f"{layer}.{part}", value) for part, value in parts.items()}
            adapted = LoraLayer(step_into(parent, last), leaves, self.lora, has_slots)
            if isinstance(last, int):
                parent[last] = adapted
            else:
                setattr(parent, last, adapted)
        return module


def lora_layers(params: Mapping[str, Any]) -> list[str]:
    """Returns the layers whose adapters are among `params`."""
    layers = (adapted_layer(name) for name in params)
    return list(dict.fromkeys(layer for layer in layers if layer is not None))


def layer_parts(params: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """Returns part -> value of a layer's adapter."""
    names = (f"{layer}.{part}" for part in sorted(PARTS))
    return {name.removeprefix(f"{layer}."): params[name] for name in names if name in params}


def with_adapters(network: ModuleDef, lora: LoraSpec) -> LoraModuleDef:
    """Returns the network that takes adapters."""
    return LoraModuleDef(network.graphdef, network.paths, network.shapes, lora)


def merge(params: Params, lora: LoraSpec) -> Params:
    """Adds a component's adapters to its kernels, in float32, and returns it without them. Pure."""
    merged = {name: value for name, value in params.items() if not is_adapter(name)}
    for layer in lora_layers(params):
        kernel, parts = params[f"{layer}.kernel"], layer_parts(params, layer)
        total = kernel.astype(jnp.float32)
        total += lora.scale_of(parts) * lora.formulas.kernel(parts)
        if lora.dora:
            total *= parts[MAGNITUDE] / output_norms(total)
        merged[f"{layer}.kernel"] = total.astype(kernel.dtype)
    return merged


def merge_on_devices(params: dict[str, Params], lora: LoraSpec | None) -> dict[str, Params]:
    """Merges the adapters of every component, in the place of the kernels; other parameters pass through.

    Args:
        params: component -> parameters. Those of components with adapters are donated, the adapters are not.
    """
    return {
        name: merge_component(weights, lora) if lora and lora_layers(weights) else weights
        for name, weights in params.items()
    }


def merge_component(params: Params, lora: LoraSpec) -> Params:
    """`merge` on the devices; kernels are donated."""
    weights = {name: value for name, value in params.items() if not is_adapter(name)}
    adapters = {name: value for name, value in params.items() if is_adapter(name)}
    shardings = {name: value.sharding for name, value in weights.items()}
    run = jax.jit(lambda weights, adapters: merge(weights | adapters, lora), donate_argnums=0, out_shardings=shardings)
    return run(weights, adapters)
