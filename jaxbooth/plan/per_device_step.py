"""A device's share of one micro-batch, traced and walked through."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from jaxbooth.params import is_matrix
from jaxbooth.plan.abstract_step import AbstractStep
from jaxbooth.plan.jaxpr_memory import JaxprAnalysis
from jaxbooth.plan.jaxpr_values import Buffer, TracedValue, large, nbytes, timeline
from jaxbooth.sharding import tensor_dimension
from jaxbooth.training.layout import RowPlan
from jaxbooth.training.step import gradients


class MemoryTimeline(NamedTuple):
    """Bytes alive at each moment of a micro-batch, as arrays.

    Attributes:
        varying, fixed: activations that grow with the rows, and those that do not.
        pictures: what convolutions read, a part of `varying`.
        copies: parameters in the compute dtype, and those that FSDP has gathered.
    """

    varying: np.ndarray
    fixed: np.ndarray
    pictures: np.ndarray
    copies: np.ndarray
    gradients: np.ndarray


def shard_bytes(leaf: Any) -> int:
    """Returns the bytes of one device's part of a described array."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def device_bytes(tree: Any) -> int:
    """Returns the bytes of one device's parts of described arrays."""
    return sum(map(shard_bytes, jax.tree.leaves(tree)))


def is_sharded(leaf: Any, axis: str) -> bool:
    """Whether a mesh axis splits a described array."""
    return axis in leaf.sharding.spec


def analyze_step(step: AbstractStep, mesh: AbstractMesh, platform: str, rows: int) -> JaxprAnalysis:
    """Walks through the losses and gradients of one device's rows of a micro-batch.

    Args:
        platform: as `JaxprAnalysis` wants it.
    """
    walk, (jaxpr, names) = JaxprAnalysis(platform, mesh.shape["tensor"]), trace(step, mesh, rows)
    dtype, remat = step.task.base.dtype, step.task.config.train.remat_policy != "none"
    params = named_leaves(step.state.params) + named_leaves(step.frozen)
    arguments = [
        walk.argument(
            leaf, size=param_copy_bytes(name, leaf, mesh, dtype, remat), is_split=is_tensor_split(name, leaf, mesh)
        )
        for name, leaf in params
    ]
    rest = jaxpr.jaxpr.invars[len(arguments) :]
    arguments += [walk.argument(var.aval, varies=var is rest[-1]) for var in rest]
    results = walk.run(jaxpr.jaxpr, arguments)
    mark_gradients(results[-len(names) :], names, step, jaxpr.out_avals[-len(names) :])
    walk.touch(results, moves=False)
    return walk


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns every leaf with its innermost name, in the order of a traced function's arguments."""
    return [(path[-1].key, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def is_tensor_split(name: str, leaf: Any, mesh: AbstractMesh) -> bool:
    """Whether the `tensor` axis splits a parameter while it is used."""
    return tensor_dimension(name, leaf.shape, mesh) is not None


def trace(step: AbstractStep, mesh: AbstractMesh, rows: int) -> tuple[Any, Sequence[str]]:
    """Returns the jaxpr of `gradients` for one device's rows, whole parameters, and the names of its last results."""
    task = step.task
    plan = RowPlan(*(field[:1, :rows] for field in task.plan))
    one = AbstractMesh((1,) * len(mesh.axis_names), mesh.axis_names, axis_types=mesh.axis_types)
    local: Any = type(task)(task.base, task.config, task.streams, plan, one)

    def bare(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    count = jax.ShapeDtypeStruct((), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda params, frozen, bank, n: gradients(local, params, frozen, bank, n, n))(
        bare(step.state.params), bare(step.frozen), bare(step.bank), count
    )
    return jaxpr, sorted(step.state.params)


def used_bytes(name: str, leaf: Any, dtype: Any) -> int:
    """Returns the bytes of a device's part of a parameter in the dtype in which it is used."""
    itemsize = np.dtype(dtype).itemsize if is_matrix(name, leaf) else leaf.dtype.itemsize
    return shard_bytes(leaf) // leaf.dtype.itemsize * min(itemsize, leaf.dtype.itemsize)


def gathered_bytes(name: str, leaf: Any, mesh: AbstractMesh, dtype: Any) -> int:
    """Returns the bytes of a parameter that FSDP gathers, and 0 for one that is whole."""
    return used_bytes(name, leaf, dtype) * mesh.shape["fsdp"] if is_sharded(leaf, "fsdp") else 0


def param_copy_bytes(name: str, leaf: Any, mesh: AbstractMesh, dtype: Any, remat: bool) -> int:
    """Returns the bytes that a parameter takes between its first and its last use, beside its place in the state.

    A cast is stored where it is sent or used in two passes, and else made by what reads it. XLA gathers early, and
    keeps what the backward pass will need again.
    """
    is_cast = leaf.dtype != dtype and is_matrix(name, leaf) and (remat or is_sharded(leaf, "fsdp"))
    return gathered_bytes(name, leaf, mesh, dtype) + is_cast * used_bytes(name, leaf, dtype)


def mark_gradients(
    results: Sequence[TracedValue], names: Sequence[str], step: AbstractStep, avals: Sequence[Any]
) -> None:
    """Marks the buffers that hold a gradient; under FSDP only a device's part of them stays."""
    for value, name, aval in zip(results, names, avals, strict=True):
        leaf = step.state.params[name]
        for buffer in large(value.roots, nbytes(aval) // 2):
            if not buffer.is_parameter:
                buffer.owner = name
                buffer.size = buffer.size * shard_bytes(leaf) // nbytes(leaf)


def memory_timeline(walk: JaxprAnalysis) -> MemoryTimeline:
    """Returns what is alive at each moment, by kind."""

    def of(chosen: Callable[[Buffer], bool]) -> np.ndarray:
        return timeline([buffer for buffer in walk.buffers if chosen(buffer)], walk.now)

    def is_activation(buffer: Buffer) -> bool:
        return buffer.owner is None and not buffer.is_parameter

    return MemoryTimeline(
        varying=of(lambda buffer: is_activation(buffer) and buffer.varies),
        fixed=of(lambda buffer: is_activation(buffer) and not buffer.varies),
        pictures=of(lambda buffer: is_activation(buffer) and buffer.is_picture),
        copies=of(lambda buffer: buffer.is_parameter),
        gradients=of(lambda buffer: buffer.owner is not None),
    )
