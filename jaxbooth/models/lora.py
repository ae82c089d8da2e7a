"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) and DoRA (Liu et al. 2024, arXiv 2402.09353).

An adapter of a linear layer or convolution with kernel W is `lora_A` (fan-in to rank) and `lora_B` (rank to fan-out):
the layer computes (W + scale A B) x without forming the sum (DoRA forms it for its norms). Adapters are a second flat
dict, named after the layer as PEFT names them (`<layer>.lora_A.kernel`), so that the leaf rule exports them too. They
join a module where it is bound; sampling in float32 from a finished run adds them to the kernels once instead.

Adapters with one more axis in front are those of several subjects, whose rows follow one another in the batch: the
layer itself sees all rows as one batch, and each subject's adapter its own.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxbooth.distributed.arrays import to_host
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
from jaxbooth.storage.patterns import first_matches

LORA_A, LORA_B, MAGNITUDE = "lora_A.kernel", "lora_B.kernel", "lora_magnitude_vector.scale"

# UNet; CLIP; Z-Image; FLUX.2, whose single blocks have attention and feed-forward in the same two layers
ATTENTION = "|".join(
    (
        r"attn\d\.to_[qkv]|attn\d\.to_out\.0",
        r"self_attn\.[qkv]_proj|self_attn\.out_proj",
        r"attention\.to_[qkv]|attention\.to_out\.0",
        r"attn\.to_[qkv]|attn\.to_out\.0|attn\.add_[qkv]_proj|attn\.to_add_out",
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    )
)
FEED_FORWARD = "|".join(
    (
        r"ff\.net\.0\.proj|ff\.net\.2|attentions\.\d+\.proj_(in|out)",
        r"mlp\.fc[12]",
        r"feed_forward\.w[123]",
        r"ff(_context)?\.linear_(in|out)",
    )
)
CONVOLUTION = r"conv[12]|conv_shortcut|(down|up)samplers\.0\.conv"  # of the UNet; transformers have none
PRESETS = {
    "attention": rf".*\.({ATTENTION})",
    "attention+ff": rf".*\.({ATTENTION}|{FEED_FORWARD})",
    "attention+ff+conv": rf".*\.({ATTENTION}|{FEED_FORWARD}|{CONVOLUTION})",
}


class LoraSpec(NamedTuple):
    """What all adapters of a run share.

    Attributes:
        rank: width between A and B.
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        dora: each output's magnitude is learned apart from its direction.
    """

    rank: int
    scale: float
    dora: bool = False


def lora_spec(rank: int, alpha: float | None, rslora: bool, dora: bool) -> LoraSpec:
    """Returns the shared settings; alpha defaults to the rank (rsLoRA: Kalajdzievski 2023, arXiv 2312.03732)."""
    return LoraSpec(rank, (alpha or rank) / (rank**0.5 if rslora else rank), dora)


def target_layers(network: ModuleDef, component: str, targets: str) -> list[str]:
    """Returns the layers of a component that get an adapter, in name order.

    Args:
        targets: one of PRESETS, or a regular expression that must match all of `<component>.<layer>`.

    Raises:
        UserError: it is not a regular expression, or takes too long to match.
    """
    layers = sorted(name.removesuffix(".kernel") for name in network.shapes if name.endswith(".kernel"))
    names = tuple(f"{component}.{layer}" for layer in layers)
    if targets in PRESETS:
        return [layer for layer, name in zip(layers, names, strict=True) if re.fullmatch(PRESETS[targets], name)]
    matches = first_matches((targets,), names, f"--lora.targets (no preset: {', '.join(PRESETS)})")
    return [layer for layer, match in zip(layers, matches, strict=True) if match is not None]


def lora_shapes(network: ModuleDef, layers: list[str], lora: LoraSpec) -> Shapes:
    """Returns the adapters' names and float32 shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        *window, fan_in, fan_out = network.shapes[f"{layer}.kernel"].shape
        shapes[f"{layer}.{LORA_A}"] = (*window, fan_in, lora.rank)
        shapes[f"{layer}.{LORA_B}"] = (*(1 for _ in window), lora.rank, fan_out)
        if lora.dora:
            shapes[f"{layer}.{MAGNITUDE}"] = (fan_out,)
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def init_lora(params: Mapping[str, AnyArray], shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Returns adapters that change nothing yet: A uniform as in PEFT, B zero, magnitudes those of the kernels.

    Args:
        params: the component's own parameters, of which DoRA reads the kernels.
    """
    adapters = {}
    for index, (name, leaf) in enumerate(sorted(shapes.items())):
        if name.endswith(LORA_A):
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            adapters[name] = host_generator(seed, index).uniform(-bound, bound, leaf.shape).astype(np.float32)
        elif name.endswith(LORA_B):
            adapters[name] = np.zeros(leaf.shape, np.float32)
        else:
            kernel = name.replace(MAGNITUDE, "kernel")
            adapters[name] = to_host(kernel_norms(params[kernel], params.get(kernel + KERNEL_SCALE)))
    return adapters


def output_norms(kernel: Float[Array, "*fan_in fan_out"]) -> Float[Array, " fan_out"]:
    """Returns the float32 norm of the weights of each output."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=tuple(range(kernel.ndim - 1))))


@jax.jit
def kernel_norms(kernel: Array, scale: Array | None) -> Float[Array, " fan_out"]:
    """Returns `output_norms` of a kernel that may be quantized; see `full_kernel`."""
    return output_norms(full_kernel(kernel, scale))


def low_rank_kernel(
    down: Float[Array, "*window fan_in rank"], up: Float[Array, "*ones rank fan_out"]
) -> Float[Array, "*window fan_in fan_out"]:
    """Returns A B in the kernel's shape, float32."""
    up = up.reshape(up.shape[-2:]).astype(jnp.float32)
    return jnp.matmul(down.astype(jnp.float32), up, precision="highest")


class LoraLayer(nnx.Module):
    """A layer with its adapter beside it."""

    def __init__(self, layer: Linear | Conv, params: Mapping[str, ShardedParam], lora: LoraSpec):
        self.layer, self.scale = layer, lora.scale
        self.lora_A, self.lora_B = params[LORA_A], params[LORA_B]
        self.magnitude = params[MAGNITUDE] if lora.dora else None

    def __call__(self, x: Array) -> Array:
        """As the layer's own call."""
        base = self.layer(x)
        delta = self.scale * self.low_rank(x.astype(base.dtype)).astype(base.dtype)
        if self.magnitude is None:
            return base + delta
        bias = 0 if self.layer.bias is None else self.layer.bias[...].astype(base.dtype)
        # The small change is what is rounded to the compute dtype, and not the ratio near 1, which would swallow it.
        return base + delta + broadcast(self.ratio() - 1, base.shape, base.dtype) * (base - bias + delta)

    def low_rank(self, x: Array) -> Array:
        """Applies A, then B, in the dtype of `x`."""
        down, up = self.lora_A[...].astype(x.dtype), self.lora_B[...].astype(x.dtype)
        if down.ndim == self.layer.kernel.ndim:
            return self.apply(x, down, up)
        slots = x.reshape(len(down), -1, *x.shape[1:])
        applied = jax.vmap(self.apply)(slots, down, up)
        return applied.reshape(len(x), *applied.shape[2:])

    def apply(self, x: Array, down: Array, up: Array) -> Array:
        """Applies one subject's A, then its B."""
        if isinstance(self.layer, Conv) and self.layer.kernel.shape[0] > 1:
            return conv2d(x, down, self.layer.stride, self.layer.padding) @ up[0, 0]
        return x @ down.reshape(down.shape[-2:]) @ up.reshape(up.shape[-2:])

    def ratio(self) -> Array:
        """DoRA's learned magnitude over the norm of W + scale A B, which carries no gradient (its section 4.3)."""
        assert self.magnitude is not None
        change = self.scale * low_rank_kernel(self.lora_A[...], self.lora_B[...])
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
            names = {leaf: f"{layer}.{leaf}" for leaf in (LORA_A, LORA_B, MAGNITUDE) if f"{layer}.{leaf}" in params}
            is_slotted = params[f"{layer}.{LORA_A}"].ndim > len(self.shapes[f"{layer}.kernel"].shape)
            place = as_slots if is_slotted else as_sharded
            leaves = {leaf: place(name, params[name]) for leaf, name in names.items()}
            adapted = LoraLayer(step_into(parent, last), leaves, self.lora)
            if isinstance(last, int):
                parent[last] = adapted
            else:
                setattr(parent, last, adapted)
        return module


def lora_layers(params: Mapping[str, Any]) -> list[str]:
    """Returns the layers whose adapters are among `params`."""
    return [name.removesuffix(f".{LORA_A}") for name in params if name.endswith(f".{LORA_A}")]


def with_adapters(network: ModuleDef, lora: LoraSpec) -> LoraModuleDef:
    """Returns the network that takes adapters."""
    return LoraModuleDef(network.graphdef, network.paths, network.shapes, lora)


def merge(params: Params, lora: LoraSpec) -> Params:
    """Adds a component's adapters to its kernels, in float32, and returns it without them. Pure."""
    merged = {name: value for name, value in params.items() if ".lora_" not in name}
    for layer in lora_layers(params):
        kernel = params[f"{layer}.kernel"]
        total = kernel.astype(jnp.float32)
        total += lora.scale * low_rank_kernel(params[f"{layer}.{LORA_A}"], params[f"{layer}.{LORA_B}"])
        if lora.dora:
            total *= params[f"{layer}.{MAGNITUDE}"] / output_norms(total)
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
    weights = {name: value for name, value in params.items() if ".lora_" not in name}
    adapters = {name: value for name, value in params.items() if ".lora_" in name}
    shardings = {name: value.sharding for name, value in weights.items()}
    run = jax.jit(lambda weights, adapters: merge(weights | adapters, lora), donate_argnums=0, out_shardings=shardings)
    return run(weights, adapters)
