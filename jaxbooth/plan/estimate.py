"""What a step needs of each device, from shapes alone: one trace, no compiler, no devices.

Whatever has a place of its own (parameters, optimizer, frozen components, pictures) is summed over the shards of the
partition rule. The rest comes of a walk through the jaxpr of a device's share of one micro-batch; its rows are one
factor, so that other batch sizes need no other trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from jaxbooth.config import Config
from jaxbooth.models.attention_forms import TPUS_WITHOUT_SPLASH
from jaxbooth.pipeline import Base
from jaxbooth.plan.abstract import AbstractStep, abstract_step, described_mesh
from jaxbooth.plan.buffers import Amount, Buffer, Value, large, nbytes, timeline
from jaxbooth.plan.figures import Figures
from jaxbooth.plan.flops import KERNEL
from jaxbooth.plan.topology import Topology
from jaxbooth.plan.walk import Walk
from jaxbooth.sharding import row_shards
from jaxbooth.training.rows import RowPlan
from jaxbooth.training.step import gradients

UPDATE_FLOPS = 20  # of an optimizer, for each parameter
MOST_ROWS = 2**14  # a device, where the search for the largest batch ends


class Moments(NamedTuple):
    """Bytes alive at each moment of a micro-batch, as arrays: of activations by whether they grow with the rows."""

    varying: np.ndarray
    fixed: np.ndarray
    gathered: np.ndarray
    gradients: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A step on one device, at any batch size.

    Attributes:
        held: kind -> bytes that are there all the time.
        resident: bytes among held's "frozen" that only the sample grids read.
        accumulated: bytes of the float32 sums of gradients, 0 with one micro-batch.
        rows: of the trace: a device's share of one micro-batch.
        shards: parts that the rows are dealt to.
        gathers: bytes of parameters that FSDP gathers for one micro-batch.
        scatters: bytes of the gradients that FSDP leaves on a device, and `reduces` of those that all devices sum.
    """

    config: Config
    topology: Topology
    held: dict[str, float]
    resident: float
    accumulated: float
    rows: int
    shards: int
    moments: Moments
    flops: dict[str, Amount]
    traffic: Amount
    partial_sums: Amount
    gathers: float
    scatters: float
    reduces: float

    def rows_of(self, batch_size: int) -> int:
        """Returns a device's rows of one micro-batch; prior rows keep their proportion to instance rows."""
        train, parts = self.config.train, self.config.train.accumulation
        prior = -(-batch_size * self.config.prior_rows // train.batch_size)
        return -(-(-(-batch_size // parts) - -prior // parts) // self.shards)

    def at(self, batch_size: int | None = None) -> Figures:
        """Returns the figures of a step with `batch_size` instance rows over all devices; default: the run's."""
        scale = self.rows_of(batch_size or self.config.train.batch_size) / self.rows
        parts, held = self.config.train.accumulation, self.held
        varying, fixed, gathered, grads = self.moments
        alive = varying * scale + fixed + gathered + grads
        peak = int(alive.argmax())
        memory = held | {
            "parameters": held["parameters"] + float(gathered[peak]),
            "gradients": float(grads[peak]) + self.accumulated,
            "activations": float(varying[peak] * scale + fixed[peak]),
        }
        state = held["parameters"] + held["optimizer"]
        update = UPDATE_FLOPS * held["parameters"] / 4
        return Figures(
            memory,
            parts * sum(amount.at(scale) for amount in self.flops.values()) + update,
            parts * self.traffic.at(scale) + 2 * state + float(grads[-2]) + self.accumulated,
            self.collectives(scale),
        )

    def hidden_flops(self, batch_size: int | None = None) -> float:
        """Returns the FLOPs of a step that are inside of kernels, where a compiler's count does not see them."""
        scale = self.rows_of(batch_size or self.config.train.batch_size) / self.rows
        return self.config.train.accumulation * self.flops[KERNEL].at(scale)

    def collectives(self, scale: float) -> dict[str, float]:
        """Returns kind -> bytes of results in a step."""
        found = {
            "all-gather": self.gathers,
            "reduce-scatter": self.scatters,
            "all-reduce": self.reduces + self.partial_sums.at(scale),
        }
        return {kind: self.config.train.accumulation * size for kind, size in found.items() if size}

    def fits(self, batch_size: int | None = None) -> bool:
        """Whether a step stays within a device's memory; one of unknown size holds everything."""
        limit = self.topology.chip.memory
        return limit is None or self.at(batch_size).hbm_bytes <= limit

    def largest_batch(self) -> int | None:
        """Returns the most instance rows for each part that rows are dealt to, with which a step fits.

        None where the memory is unknown; 0 where not even one row fits.
        """
        if self.topology.chip.memory is None:
            return None
        low, high = 0, MOST_ROWS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle * self.shards) else (low, middle)
        return low


def largest_batch(config: Config, base: Base, topology: Topology) -> int | None:
    """Estimates the most instance rows for each device; see `Estimate.largest_batch`."""
    return estimate(config, base, topology).largest_batch()


def estimate(config: Config, base: Base, topology: Topology) -> Estimate:
    """Traces a device's share of a step and walks through it.

    Args:
        config: with its resolution.
        base: with the run's adapters and new words, and the topology's compute dtype; see `plan_base`.

    Raises:
        UserError: the mesh does not make the topology's devices.
    """
    mesh = described_mesh(config, topology)
    step = abstract_step(config, base, mesh)
    walk = Walk(kernel_platform(topology), mesh.shape["tensor"])
    rows = step.task.plan.number.shape[1] // row_shards(mesh)
    gathered = walk_step(walk, step, mesh, rows)
    params, parts = step.state.params, config.train.accumulation
    sharded = {name: is_sharded(leaf, "fsdp") for name, leaf in params.items()}
    item, spread = base.dtype.itemsize, row_shards(mesh) > 1
    whole = sum(
        size_on_device(leaf) // 4 for name, leaf in params.items() if not sharded[name] or mesh.shape["data"] > 1
    )
    resident = sum(map(size_on_device, jax.tree.leaves(step.resident)))
    held = {
        "parameters": sum(map(size_on_device, jax.tree.leaves((params, step.state.ema)))),
        "optimizer": sum(map(size_on_device, jax.tree.leaves(step.state.opt_state))),
        "frozen": resident + sum(map(size_on_device, jax.tree.leaves(step.frozen))),
        "pictures": sum(map(size_on_device, jax.tree.leaves(step.bank))),
    }
    return Estimate(
        config=config,
        topology=topology,
        held=held,
        resident=resident,
        accumulated=sum(map(size_on_device, params.values())) if parts > 1 else 0,
        rows=rows,
        shards=row_shards(mesh),
        moments=moments_of(walk),
        flops=walk.flops,
        traffic=walk.traffic,
        partial_sums=walk.reduced,
        gathers=gathered,
        scatters=item * sum(size_on_device(leaf) // 4 for name, leaf in params.items() if sharded[name]),
        reduces=item * whole if spread else 0,
    )


def kernel_platform(topology: Topology) -> str:
    """Returns the platform by which branches are chosen; empty for TPUs without attention kernels."""
    if any(kind in TPUS_WITHOUT_SPLASH for kind in topology.chip.kinds):
        return ""
    return "cuda" if topology.platform == "gpu" else topology.platform


def size_on_device(leaf: Any) -> int:
    """Returns the bytes of one device's part of a described array."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def is_sharded(leaf: Any, axis: str) -> bool:
    """Whether a mesh axis splits a described array."""
    return axis in leaf.sharding.spec


def walk_step(walk: Walk, step: AbstractStep, mesh: AbstractMesh, rows: int) -> float:
    """Walks through the losses and gradients of one device's share of a micro-batch.

    Returns:
        Bytes of the parameters that are gathered for it.
    """
    jaxpr, names = trace(step, mesh, rows)
    trained, frozen = jax.tree.leaves(step.state.params), jax.tree.leaves(step.frozen)
    dtype = step.task.base.dtype
    gathers = [gathered_bytes(leaf, mesh, dtype) for leaf in trained] + [
        gathered_bytes(leaf, mesh, leaf.dtype) for leaf in frozen
    ]
    leaves = [*trained, *frozen]
    arguments = [
        walk.argument(leaf, size=size, is_split=is_sharded(leaf, "tensor"))
        for leaf, size in zip(leaves, gathers, strict=True)
    ]
    rest = jaxpr.jaxpr.invars[len(arguments) :]
    arguments += [walk.argument(var.aval, varies=var is rest[-1]) for var in rest]
    results = walk.run(jaxpr.jaxpr, arguments)
    own_gradients(results[-len(names) :], names, step, jaxpr.out_avals[-len(names) :])
    walk.touch(results, moves=False)
    return sum(gathers)


def trace(step: AbstractStep, mesh: AbstractMesh, rows: int) -> tuple[Any, Sequence[str]]:
    """Returns the jaxpr of `gradients` for one device's rows, whole parameters, and the names of its last results."""
    task = step.task
    plan = RowPlan(*(field[:1, :rows] for field in task.plan))
    if row_shards(mesh) > 1:  # several devices compute the frozen model's output on every row
        plan = plan._replace(is_prior=np.ones_like(plan.is_prior))
    one = AbstractMesh((1,) * len(mesh.axis_names), mesh.axis_names, axis_types=mesh.axis_types)
    local: Any = type(task)(task.base, task.config, task.streams, plan, one)

    def bare(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    count = jax.ShapeDtypeStruct((), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda params, frozen, bank, n: gradients(local, params, frozen, bank, n, n))(
        bare(step.state.params), bare(step.frozen), bare(step.bank), count
    )
    return jaxpr, sorted(step.state.params)


def gathered_bytes(leaf: Any, mesh: AbstractMesh, dtype: Any) -> int:
    """Returns the bytes that a device holds of a parameter while it is in use, beyond its own part of it."""
    if not is_sharded(leaf, "fsdp"):
        return 0
    itemsize = np.dtype(dtype).itemsize if len(leaf.shape) > 1 else leaf.dtype.itemsize
    return size_on_device(leaf) // leaf.dtype.itemsize * mesh.shape["fsdp"] * itemsize


def own_gradients(results: Sequence[Value], names: Sequence[str], step: AbstractStep, avals: Sequence[Any]) -> None:
    """Marks the buffers that hold a gradient; under FSDP only a device's part of them stays."""
    for value, name, aval in zip(results, names, avals, strict=True):
        leaf = step.state.params[name]
        for buffer in large(value.roots, nbytes(aval) // 2):
            if not buffer.is_parameter:
                buffer.owner = name
                buffer.size = buffer.size * size_on_device(leaf) // nbytes(leaf)


def moments_of(walk: Walk) -> Moments:
    """Returns what is alive at each moment, by kind."""

    def of(chosen: Any) -> np.ndarray:
        return timeline([buffer for buffer in walk.buffers if chosen(buffer)], walk.now)

    def is_activation(buffer: Buffer) -> bool:
        return buffer.owner is None and not buffer.is_parameter

    return Moments(
        varying=of(lambda buffer: is_activation(buffer) and buffer.varies),
        fixed=of(lambda buffer: is_activation(buffer) and not buffer.varies),
        gathered=of(lambda buffer: buffer.is_parameter),
        gradients=of(lambda buffer: buffer.owner is not None),
    )
