"""The mesh and the partition rule: the only place that knows axis names.

`data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits the wide dimension of the
transformer's projections. All axes are `Auto`: XLA's partitioner derives every intermediate from these placements.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbooth.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**12  # elements; smaller parameters are cheaper to replicate than to gather

# (parameter name, dimension that `tensor` splits): outputs going in, inputs coming out, so that one reduction suffices.
TENSOR_RULES = (
    (r".*\.(to_q|to_k|to_v|q_proj|k_proj|v_proj|fc1|net\.0\.proj)\.kernel", -1),
    (r".*\.(to_out\.0|out_proj|fc2|net\.2)\.kernel", -2),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices` (default: all of them); `data` -1 takes what the other axes leave.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    count = len(devices or jax.devices())
    sizes = (count // (fsdp * tensor) if data == -1 else data, fsdp, tensor)
    if np.prod(sizes) != count:
        raise UserError(
            f"--mesh.data {data} x --mesh.fsdp {fsdp} x --mesh.tensor {tensor} does not make {count} device(s)."
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def partition(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule: `tensor` on the dimension that TENSOR_RULES names, then `fsdp` on the largest free divisible one."""
    spec: list[str | None] = [None] * len(shape)
    if mesh.shape["tensor"] > 1 and len(shape) == 2:
        for pattern, dimension in TENSOR_RULES:
            if re.fullmatch(pattern, name) and shape[dimension] % mesh.shape["tensor"] == 0:
                spec[dimension] = "tensor"
    if mesh.shape["fsdp"] > 1 and int(np.prod(shape)) >= MIN_SHARDED_SIZE:
        free = [d for d, size in enumerate(shape) if spec[d] is None and size % mesh.shape["fsdp"] == 0]
        if free:
            spec[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def rows_over(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Parts that `rows_over` makes."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def tracing_for(mesh: Mesh) -> AbstractContextManager:
    """While tracing, tells `each_device` which mesh the program will run on; it is part of what `jax.jit` caches by."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def each_device(function: Callable[..., Array], *arrays: Array) -> Array:
    """Applies a function to (batch, length, heads, width) arrays, on every device to its own rows and heads.

    For kernels that XLA's partitioner cannot split. The mesh is the one that `tracing_for` has named; without one, the
    function sees whole arrays. A batch or number of heads that its axes do not divide is worked on as a whole.

    Args:
        function: acts on rows and heads one by one, and returns an array of the first one's shape.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes:
        return function(*arrays)
    batch, _, heads, _ = arrays[0].shape
    rows = BATCH_AXES if batch % row_shards(mesh) == 0 else None
    spec = PartitionSpec(rows, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)
    # The kernels do not say over which axes their results vary, which is what check_vma would compare.
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)


def placement(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Returns the rule as a function from a parameter's name and shape to its sharding."""
    return lambda name, shape: NamedSharding(mesh, partition(name, shape, mesh))


def shardings_like(tree: object, mesh: Mesh) -> object:
    """Returns the sharding of every leaf of an abstract tree of arrays (a train state, an optimizer state).

    A leaf stored under a parameter's name, however deep, is placed as that parameter would be; others by shape alone.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return NamedSharding(mesh, partition(keys[-1] if keys else "", leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)
