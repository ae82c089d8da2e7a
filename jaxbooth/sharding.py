"""The mesh and the partition rules: the only place that says what an axis splits.

`data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits the wide dimension of the
transformer's projections. All axes are `Auto`: XLA's partitioner derives every intermediate from where the batch and
each parameter are placed. Rows stay on their device; it is the parameters that travel, see `gather_param`.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbooth.errors import UserError

AnyMesh = Mesh | AbstractMesh  # of devices, or of described ones
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**12  # elements; smaller parameters are cheaper to replicate than to gather

# Projections into attention and feed-forward, and out of them. The VAE's attention has one head and is not split.
GOING_IN = (
    r"(attn\d?\.to_[qkv]|attention\.to_[qkv]|[qkv]_proj|gate_proj|up_proj|fc1|net\.0\.proj|feed_forward\.w[13]|"
    r"linear_in|to_qkv_mlp_proj)"
)
COMING_OUT = (
    r"(attn\d?\.to_out(\.0)?|attention\.to_out\.0|o_proj|out_proj|down_proj|fc2|net\.2|feed_forward\.w2|"
    r"linear_out|to_add_out)"
)
# (parameter name, dimensions that it has, the one that `tensor` splits): outputs going in, inputs coming out, so that
# one reduction suffices.
TENSOR_RULES = (
    (rf".*{GOING_IN}(\.(lora_B|hada_w[12]_a))?\.kernel(_scale)?", 2, -1),
    (rf".*{GOING_IN}\.(bias|kernel_scale|lora_magnitude_vector\.scale)", 1, -1),
    (rf".*{COMING_OUT}(\.(lora_A|hada_w[12]_b))?\.kernel(_scale)?", 2, -2),
)
# Of projections to several parts the outputs, and from several parts the inputs, are stored in one piece: each device
# computes with its share of every part, see `jaxbooth.models.fused`.
TO_PARTS = r".*\.(net\.0\.proj|linear_in|to_qkv_mlp_proj)\..*"
FROM_PARTS = r".*single_transformer_blocks\.\d+\.attn\.to_out\..*"
EMBEDDING = r".*embedding"  # looked up, and lengthened by placeholder tokens, along the first dimension


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over `devices` (default: all of them); `data` -1 takes what the other axes leave.

    Raises:
        UserError: the axes do not multiply to the number of devices, or `fsdp` and `tensor` do not fit into one of
            several TPU slices.
    """
    devices = list(devices or jax.devices())
    sizes = axis_sizes(data, fsdp, tensor, len(devices))
    return Mesh(arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(data: int, fsdp: int, tensor: int, count: int) -> tuple[int, int, int]:
    """Returns the sizes of the axes over `count` devices.

    Raises:
        UserError: they do not multiply to it; the message says which numbers would.
    """
    devices = f"{count} device(s)"
    if count % tensor:
        raise UserError(f"--mesh.tensor {tensor} does not divide {devices}; {divisors(count)} would.")
    if count // tensor % fsdp:
        beside = f" in {tensor} parts" if tensor > 1 else ""
        raise UserError(f"--mesh.fsdp {fsdp} does not divide {devices}{beside}; {divisors(count // tensor)} would.")
    left = count // tensor // fsdp
    if data not in (-1, left):
        raise UserError(
            f"--mesh.data {data} x --mesh.fsdp {fsdp} x --mesh.tensor {tensor} does not make {devices}; "
            f"--mesh.data {left} would."
        )
    return left, fsdp, tensor


def arrange(devices: Sequence[jax.Device], sizes: tuple[int, int, int]) -> np.ndarray:
    """Lays devices out so that neighbours along the last axes are close; `data` alone reaches from slice to slice.

    A slice is what a fast network connects; between TPU slices, and between hosts of GPUs, it is a slow one. TPU slices
    are arranged by their torus, other devices host after host.

    Args:
        sizes: of `data`, `fsdp` and `tensor`, which multiply to the number of devices.

    Raises:
        UserError: a TPU slice does not hold a whole number of copies of the model.
    """
    ordered = sorted(devices, key=lambda device: (slice_of(device), device.process_index, device.id))
    slices = [list(part) for _, part in itertools.groupby(ordered, slice_of)]
    (data, fsdp, tensor), smallest = sizes, min(map(len, slices))
    if smallest * len(slices) != len(ordered):
        raise UserError(
            f"the {len(slices)} TPU slices have {', '.join(str(len(s)) for s in slices)} devices; use equal ones."
        )
    if smallest % (fsdp * tensor):
        raise UserError(
            f"--mesh.fsdp {fsdp} x --mesh.tensor {tensor} does not divide the {smallest} devices of each of "
            f"{len(slices)} slices, so that --mesh.data {data} does not go over them; a product of "
            f"{divisors(smallest)} would."
        )
    within = (data // len(slices), fsdp, tensor)
    return np.concatenate(
        [mesh_utils.create_device_mesh(within, part, allow_split_physical_axes=True) for part in slices]
    )


def slice_of(device: jax.Device) -> int:
    """Returns the number of a TPU's slice. JAX calls every host of GPUs a slice, but `fsdp` may span those."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def check_heads(tensor: int, heads: Iterable[int]) -> None:
    """Refuses to cut attention heads into pieces: their activations would travel between devices in every layer.

    Args:
        heads: attention heads of every layer that `tensor` splits.

    Raises:
        UserError: `tensor` does not divide all of them.
    """
    counts = sorted(set(heads))
    if any(count % tensor for count in counts):
        common = int(np.gcd.reduce(counts))
        listed = ", ".join(map(str, counts))
        raise UserError(
            f"--mesh.tensor {tensor} does not divide the model's attention heads ({listed}); {divisors(common)} would."
        )


def divisors(number: int) -> str:
    """Lists what divides a number: "1, 2, 4 or 8"."""
    sizes = [str(size) for size in range(1, number + 1) if number % size == 0]
    return f"{', '.join(sizes[:-1])} or {sizes[-1]}" if len(sizes) > 1 else sizes[0]


def tensor_dimension(name: str, shape: tuple[int, ...], mesh: AnyMesh) -> int | None:
    """Returns the dimension of a parameter that `tensor` splits while it is used, from its end."""
    for pattern, dimensions, dimension in TENSOR_RULES if mesh.shape["tensor"] > 1 else ():
        if len(shape) == dimensions and shape[dimension] % mesh.shape["tensor"] == 0 and re.fullmatch(pattern, name):
            return dimension
    return None


def partition_spec(name: str, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """The rule of storage: `tensor` where TENSOR_RULES say, then `fsdp` on the largest free divisible dimension."""
    spec: list[str | None] = [None] * len(shape)
    whole = whole_dimensions(name, shape)
    wide = tensor_dimension(name, shape, mesh)
    if wide is not None and len(shape) + wide not in whole:
        spec[wide] = "tensor"
    if mesh.shape["fsdp"] > 1 and int(np.prod(shape)) >= MIN_SHARDED_SIZE:
        splits = [d for d, size in enumerate(shape) if spec[d] is None and size % mesh.shape["fsdp"] == 0]
        free = [d for d in splits if d not in whole]
        if free:
            spec[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*spec)


def whole_dimensions(name: str, shape: tuple[int, ...]) -> set[int]:
    """Returns the dimensions of a parameter that are stored in one piece."""
    if re.fullmatch(TO_PARTS, name):
        return {len(shape) - 1}
    return {0} if re.fullmatch(f"{EMBEDDING}|{FROM_PARTS}", name) else set()


class ParamSharding(NamedTuple):
    """How a parameter is cut where it is stored, and where a layer computes with it."""

    stored: PartitionSpec
    compute: PartitionSpec


def param_sharding(name: str, shape: tuple[int, ...]) -> ParamSharding | None:
    """Returns a parameter's sharding over the mesh of `mesh_context`: None without one, or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes or mesh.size == 1:
        return None
    compute: list[str | None] = [None] * len(shape)
    wide = tensor_dimension(name, shape, mesh)
    if wide is not None:
        compute[wide] = "tensor"
    return ParamSharding(partition_spec(name, shape, mesh), PartitionSpec(*compute))


def slot_param_sharding() -> ParamSharding | None:
    """Returns the sharding of parameters of several subjects, which stay on the devices that their rows are on."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes or mesh.size == 1:
        return None
    return ParamSharding(PartitionSpec(BATCH_AXES), PartitionSpec(BATCH_AXES))


def gather_param(value: Array, sharding: ParamSharding | None) -> Array:
    """Returns a parameter as a layer uses it: in one piece, but for what `tensor` splits. Its gradient is cut as it is.

    Left to itself, the partitioner may rather cut activations up to match the pieces of a kernel. Where this is called
    inside of a rematerialised block, the pieces are gathered again for the backward pass.
    """
    if sharding is None:
        return value
    mesh = jax.sharding.get_abstract_mesh()
    return reshard(value, NamedSharding(mesh, sharding.stored), NamedSharding(mesh, sharding.compute))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def reshard(value: Array, here: NamedSharding, there: NamedSharding) -> Array:
    """Moves a value from here to there, and its gradient back.

    Every stop is named. The partitioner would carry the placement of one end on into whatever is at the other, and
    exchange axes by an all-to-all. For a gradient it means: summed where it arises, then cut.
    """
    common = [one if one == other else None for one, other in zip(here.spec, there.spec, strict=True)]
    for stop in (here, NamedSharding(here.mesh, PartitionSpec(*common)), there):
        value = jax.lax.with_sharding_constraint(value, stop)
    return value


reshard.defvjp(
    lambda value, here, there: (reshard(value, here, there), None),
    lambda here, there, _, gradient: (reshard(gradient, there, here),),
)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The leading axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: AnyMesh) -> int:
    """Parts that `batch_sharding` makes."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def tensor_axis_size() -> int:
    """Returns the size of the `tensor` axis of the mesh that `mesh_context` has named; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get("tensor", 1)


def mesh_context(mesh: AnyMesh) -> AbstractContextManager:
    """While tracing, tells `shard_map_heads` which mesh the program runs on, which `jax.jit` caches by, too."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def shard_map_heads(function: Callable[..., Array], *arrays: Array) -> Array:
    """Applies a function to (batch, length, heads, width) and (batch,) arrays, on every device to its rows and heads.

    For kernels that XLA's partitioner cannot split. The mesh is the one that `mesh_context` has named; without one, the
    function sees whole arrays. A batch or numbers of heads that its axes do not divide are worked on as a whole.

    Args:
        function: acts on rows and heads one by one, and returns an array of the first one's shape.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes:
        return function(*arrays)
    rows = BATCH_AXES if len(arrays[0]) % batch_shards(mesh) == 0 else None
    head_counts = {array.shape[2] for array in arrays if array.ndim == 4}
    heads = "tensor" if all(count % mesh.shape["tensor"] == 0 for count in head_counts) else None
    specs = [PartitionSpec(rows, None, heads) if array.ndim == 4 else PartitionSpec(rows) for array in arrays]
    # The kernels do not say over which axes their results vary, which is what check_vma would compare.
    return jax.shard_map(function, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(*arrays)


def param_shardings(mesh: AnyMesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Returns the rule as a function from a parameter's name and shape to its sharding."""
    return lambda name, shape: NamedSharding(mesh, partition_spec(name, shape, mesh))


def shardings_like(tree: object, mesh: AnyMesh) -> object:
    """Returns the sharding of every leaf of an abstract tree of arrays (a train state, an optimizer state).

    A leaf stored under a parameter's name, however deep, is placed as that parameter would be; others by shape alone.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return NamedSharding(mesh, partition_spec(keys[-1] if keys else "", leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)
