"""One device's share of a micro-batch, traced and analyzed."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from jaxbooth.params import is_matrix
from jaxbooth.plan.abstract_step import AbstractStep, shard_bytes
from jaxbooth.plan.jaxpr_memory import JaxprAnalysis
from jaxbooth.plan.jaxpr_values import Buffer, TracedValue, large_buffers, live_bytes, nbytes
from jaxbooth.sharding import tensor_dimension
from jaxbooth.training.layout import BatchLayout
from jaxbooth.training.step import gradients

BLOCK = re.compile(r".*?\.\d+\.")  # of a parameter's name, up to the first number: `unet.down_blocks.0.`


class MemoryTimeline(NamedTuple):
    """Bytes alive at each time of a micro-batch, as arrays.

    Attributes:
        per_example, constant: activations that grow with the batch, and those that do not.
        conv_inputs: what convolutions read, a part of `per_example`.
        param_copies: parameters in the compute dtype, and those that FSDP has gathered.
    """

    per_example: np.ndarray
    constant: np.ndarray
    conv_inputs: np.ndarray
    param_copies: np.ndarray
    gradients: np.ndarray


def analyze_step(step: AbstractStep, mesh: AbstractMesh, platform: str, batch_size: int) -> JaxprAnalysis:
    """Analyzes the losses and gradients of one device's part of a micro-batch.

    Args:
        platform: see `JaxprAnalysis`.
        batch_size: instance and prior examples of the device, padding included.
    """
    analysis = JaxprAnalysis(platform, mesh.shape["tensor"])
    jaxpr, names = trace_gradients(step, mesh, batch_size)
    dtype, has_remat = step.spec.base.dtype, step.spec.remat != "none"
    params = named_leaves(step.state.params) + named_leaves(step.frozen)
    arguments = param_arguments(analysis, params, mesh, dtype, has_remat)
    others = jaxpr.jaxpr.invars[len(arguments) :]
    # The step's number seeds the choice of images, so whatever depends on it grows with the batch.
    arguments += [analysis.argument(var.aval, per_example=var is others[-1]) for var in others]
    results = analysis.run(jaxpr.jaxpr, arguments)
    mark_gradients(results[-len(names) :], names, step, jaxpr.out_avals[-len(names) :])
    analysis.read(results, moves=False)
    return analysis


def param_arguments(
    analysis: JaxprAnalysis, params: Sequence[tuple[str, Any]], mesh: AbstractMesh, dtype: Any, has_remat: bool
) -> list[TracedValue]:
    """Returns the values of a program's parameters, which take memory besides where they are gathered or cast."""
    return [
        analysis.argument(
            leaf,
            size=param_copy_bytes(name, leaf, mesh, dtype, has_remat),
            is_split=tensor_dimension(name, leaf.shape, mesh) is not None,
        )
        for name, leaf in params
    ]


def trace_gradients(step: AbstractStep, mesh: AbstractMesh, batch_size: int) -> tuple[Any, Sequence[str]]:
    """Returns the jaxpr of `gradients` for one device's examples and unsharded parameters, and its gradients' names."""
    spec = step.spec
    layout = BatchLayout(*(field[:1, :batch_size] for field in spec.layout))
    local = replace(spec, layout=layout, mesh=one_device(mesh))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda *arguments: gradients(local, *arguments))(
        *unsharded((step.state.params, step.frozen, step.source, step.key)), number
    )
    return jaxpr, sorted(step.state.params)


def one_device(mesh: AbstractMesh) -> AbstractMesh:
    """Returns the mesh of the same axes over a single device."""
    return AbstractMesh((1,) * len(mesh.axis_names), mesh.axis_names, axis_types=mesh.axis_types)


def unsharded(tree: Any) -> Any:
    """Returns abstract arrays without their shardings."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def mark_gradients(
    results: Sequence[TracedValue], names: Sequence[str], step: AbstractStep, avals: Sequence[Any]
) -> None:
    """Marks the buffers that hold a gradient; under FSDP only a device's part of them stays."""
    for value, name, aval in zip(results, names, avals, strict=True):
        leaf = step.state.params[name]
        for buffer in large_buffers(value.buffers, nbytes(aval) // 2):
            if not buffer.is_parameter:
                buffer.gradient_of = name
                buffer.size = buffer.size * shard_bytes(leaf) // nbytes(leaf)


def memory_timeline(analysis: JaxprAnalysis) -> MemoryTimeline:
    """Returns what is alive at each time, by kind."""

    def bytes_where(is_counted: Callable[[Buffer], bool]) -> np.ndarray:
        return live_bytes([buffer for buffer in analysis.buffers if is_counted(buffer)], analysis.time)

    def is_activation(buffer: Buffer) -> bool:
        return buffer.gradient_of is None and not buffer.is_parameter

    return MemoryTimeline(
        per_example=bytes_where(lambda buffer: is_activation(buffer) and buffer.per_example),
        constant=bytes_where(lambda buffer: is_activation(buffer) and not buffer.per_example),
        conv_inputs=bytes_where(lambda buffer: is_activation(buffer) and buffer.is_conv_input),
        param_copies=bytes_where(lambda buffer: buffer.is_parameter),
        gradients=bytes_where(lambda buffer: buffer.gradient_of is not None),
    )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns every leaf with its innermost name, in the order of a traced function's arguments."""
    return [(path[-1].key, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def is_sharded(leaf: Any, axis: str) -> bool:
    """Whether a mesh axis splits an abstract array."""
    return axis in leaf.sharding.spec


def compute_bytes(name: str, leaf: Any, dtype: Any) -> int:
    """Returns the bytes of a device's part of a parameter in the dtype in which it is used."""
    itemsize = np.dtype(dtype).itemsize if is_matrix(name, leaf) else leaf.dtype.itemsize
    return shard_bytes(leaf) // leaf.dtype.itemsize * min(itemsize, leaf.dtype.itemsize)


def gathered_bytes(name: str, leaf: Any, mesh: AbstractMesh, dtype: Any) -> int:
    """Returns the bytes of a parameter that FSDP gathers, and 0 for one that is whole."""
    return compute_bytes(name, leaf, dtype) * mesh.shape["fsdp"] if is_sharded(leaf, "fsdp") else 0


def gathers_twice(step: AbstractStep) -> bool:
    """Whether blocks are computed again in the backward pass, and their parameters gathered again with them."""
    return step.spec.remat != "none"


def gatherings(name: str, step: AbstractStep) -> int:
    """Returns how often a step gathers a parameter: once, or once in each pass for a block that is computed again."""
    if not gathers_twice(step) or not BLOCK.match(name):
        return 1
    return 1 if step.spec.remat == "attention" and ".resnets." in name else 2


def least_param_copies(step: AbstractStep, mesh: AbstractMesh) -> float:
    """Returns the bytes of the two largest blocks' gathered parameters and of all casts: the least that XLA can hold.

    Two, because one block's are gathered while another is computed.
    """
    dtype, casts = step.spec.base.dtype, 0
    gathered: dict[str, int] = {}
    for name, leaf in named_leaves(step.state.params) + named_leaves(step.frozen):
        block = BLOCK.match(name)
        key = block[0] if block else name
        size = gathered_bytes(name, leaf, mesh, dtype)
        gathered[key] = gathered.get(key, 0) + size
        casts += param_copy_bytes(name, leaf, mesh, dtype, has_remat=True) - size
    return float(sum(sorted(gathered.values())[-2:]) + casts)


def param_copy_bytes(name: str, leaf: Any, mesh: AbstractMesh, dtype: Any, has_remat: bool) -> int:
    """Returns the bytes that a parameter takes between its first and its last use, beside its place in the state.

    A cast is stored where it is sent or used in two passes, and otherwise made by what reads it. XLA gathers early, and
    keeps what the backward pass will need again.
    """
    is_cast = leaf.dtype != dtype and is_matrix(name, leaf) and (has_remat or is_sharded(leaf, "fsdp"))
    cast = compute_bytes(name, leaf, dtype) if is_cast else 0
    return gathered_bytes(name, leaf, mesh, dtype) + cast
