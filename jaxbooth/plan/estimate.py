"""What a step needs of each device, from shapes alone: one trace, no compiler, no devices.

Whatever has a place of its own (parameters, optimizer, frozen components, pictures) is summed over the shards of the
partition rule. The rest comes of a walk through the jaxpr of a device's share of one micro-batch; its rows are one
factor, so that other batch sizes need no other trace.
"""

from dataclasses import dataclass

import numpy as np
from jax.sharding import AbstractMesh

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.models.attention_kernels import TPUS_WITHOUT_SPLASH
from jaxbooth.plan.abstract_step import AbstractStep, abstract_mesh, abstract_step
from jaxbooth.plan.figures import StepCost
from jaxbooth.plan.flops import KERNEL
from jaxbooth.plan.jaxpr_values import Cost
from jaxbooth.plan.per_device_step import (
    MemoryTimeline,
    analyze_step,
    device_bytes,
    gathered_bytes,
    is_sharded,
    memory_timeline,
    named_leaves,
    used_bytes,
)
from jaxbooth.plan.topology import Topology
from jaxbooth.sharding import batch_shards

UPDATE_FLOPS = 20  # of an optimizer, for each parameter
# Of TPUs, read off compiled steps with 2 to 16 rows a device. A step copies the pictures' latents into a layout of its
# own. With less than FULL_ROWS rows, convolutions cut their pictures along the width to make up for it; they and the
# norms around them then also store float32 copies with the overlap. The program itself lies in the same memory.
BANK_COPIES = 2
FULL_ROWS = 8
PICTURE_COPIES = 5
PROGRAM_BYTES = 22_000  # for each equation of the jaxpr
MOST_ROWS = 2**14  # a device, where the search for the largest batch ends


@dataclass(frozen=True)
class Estimate:
    """A step on one device, at any batch size.

    Attributes:
        held: kind -> bytes that are there all the time.
        resident: bytes among held's "frozen" that only the sample grids read.
        accumulated: bytes of the float32 sums of gradients, 0 with one micro-batch.
        workspace: bytes of copies of the pictures.
        rows: of the trace: a device's share of one micro-batch.
        shards: parts that the rows are dealt to.
        halos: FLOPs that come on top of `flops` with few rows on a TPU.
        sent: kind of collective -> bytes of parameters and gradients in one micro-batch.
    """

    config: Config
    topology: Topology
    held: dict[str, float]
    resident: float
    accumulated: float
    workspace: float
    rows: int
    shards: int
    moments: MemoryTimeline
    flops: dict[str, Cost]
    halos: Cost
    traffic: Cost
    partial_sums: Cost
    sent: dict[str, float]

    def rows_of(self, batch_size: int) -> int:
        """Returns a device's rows of one micro-batch; prior rows keep their proportion to instance rows."""
        train, parts = self.config.train, self.config.train.gradient_accumulation_steps
        prior = -(-batch_size * self.config.prior_rows // train.batch_size)
        return -(-(-(-batch_size // parts) - -prior // parts) // self.shards)

    def at(self, batch_size: int | None = None) -> StepCost:
        """Returns the figures of a step with `batch_size` instance rows over all devices; default: the run's."""
        rows = self.rows_of(batch_size or self.config.train.batch_size)
        scale, parts, held = rows / self.rows, self.config.train.gradient_accumulation_steps, self.held
        is_cut = self.topology.platform == "tpu" and rows < FULL_ROWS
        varying, fixed, pictures, copies, grads = self.moments
        activations = (varying + is_cut * PICTURE_COPIES * pictures) * scale + fixed
        if self.topology.platform == "cpu":  # it leaves the gradients of kernels to the end
            grads = np.full_like(grads, grads[-2])
        peak = int((activations + copies + grads).argmax())
        memory = held | {
            "gradients": float(grads[peak]) + self.accumulated,
            "activations": float(activations[peak] + copies[peak]) + self.workspace,
        }
        state = held["parameters"] + held["optimizer"]
        work = sum(amount.at(scale) for amount in (*self.flops.values(), *([self.halos] if is_cut else [])))
        return StepCost(
            memory,
            parts * work + UPDATE_FLOPS * held["parameters"] / 4,
            parts * self.traffic.at(scale) + 2 * state + float(grads[-2]) + self.accumulated,
            self.collectives(scale),
        )

    def hidden_flops(self, batch_size: int | None = None) -> float:
        """Returns the FLOPs of a step that are inside of kernels, where a compiler's count does not see them."""
        scale = self.rows_of(batch_size or self.config.train.batch_size) / self.rows
        return self.config.train.gradient_accumulation_steps * self.flops[KERNEL].at(scale)

    def collectives(self, scale: float) -> dict[str, float]:
        """Returns kind -> bytes of results in a step."""
        found = self.sent | {"all-reduce": self.sent["all-reduce"] + self.partial_sums.at(scale)}
        return {kind: self.config.train.gradient_accumulation_steps * size for kind, size in found.items() if size}

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


def largest_batch(config: Config, base: BaseModel, topology: Topology) -> int | None:
    """Estimates the most instance rows for each device; see `Estimate.largest_batch`."""
    return estimate(config, base, topology).largest_batch()


def estimate(config: Config, base: BaseModel, topology: Topology) -> Estimate:
    """Traces a device's share of a step and walks through it.

    Args:
        config: with its resolution.
        base: with the run's adapters and placeholder tokens, and the topology's compute dtype; see `plan_base`.

    Raises:
        UserError: the mesh does not make the topology's devices.
    """
    mesh = abstract_mesh(config, topology)
    step = abstract_step(config, base, mesh)
    platform = kernel_platform(topology)
    rows = step.task.plan.number.shape[1] // batch_shards(mesh)
    walk = kept = analyze_step(step, mesh, platform, rows)
    if topology.platform == "cpu" and config.train.remat_policy != "none":  # its compiler keeps what remat would drop
        plain = config.model_copy(update={"train": config.train.model_copy(update={"remat": "none"})})
        kept = analyze_step(abstract_step(plain, base, mesh), mesh, platform, rows)
    held, params = held_bytes(step), step.state.params
    is_tpu = topology.platform == "tpu"
    return Estimate(
        config=config,
        topology=topology,
        held=held | ({"program": PROGRAM_BYTES * walk.equations} if is_tpu else {}),
        resident=device_bytes(step.resident),
        accumulated=device_bytes(params) if config.train.gradient_accumulation_steps > 1 else 0,
        workspace=BANK_COPIES * held["latents"] if is_tpu else 0,
        rows=rows,
        shards=batch_shards(mesh),
        moments=memory_timeline(kept),
        flops=walk.flops,
        halos=walk.halos,
        traffic=walk.traffic,
        partial_sums=walk.reduced,
        sent=sent_bytes(step, mesh),
    )


def held_bytes(step: AbstractStep) -> dict[str, float]:
    """Returns kind -> bytes that one device holds all through a run."""
    return {
        "parameters": device_bytes((step.state.params, step.state.ema)),
        "optimizer": device_bytes(step.state.opt_state),
        "frozen": device_bytes((step.frozen, step.resident)),
        "latents": device_bytes(step.bank),
    }


def sent_bytes(step: AbstractStep, mesh: AbstractMesh) -> dict[str, float]:
    """Returns kind of collective -> bytes of its results in one micro-batch: of parameters and their gradients.

    Gradients travel as the parameters do: those of kernels in the compute dtype. FSDP leaves each device its part of
    them; what is whole, or what several copies of the model have, is summed.
    """
    trained, dtype = named_leaves(step.state.params), step.task.base.dtype
    cut = [(name, leaf) for name, leaf in trained if is_sharded(leaf, "fsdp")]
    whole = [(name, leaf) for name, leaf in trained if not is_sharded(leaf, "fsdp") or mesh.shape["data"] > 1]
    leaves = trained + named_leaves(step.frozen)
    return {
        "all-gather": float(sum(gathered_bytes(name, leaf, mesh, dtype) for name, leaf in leaves)),
        "reduce-scatter": float(sum(used_bytes(name, leaf, dtype) for name, leaf in cut)),
        "all-reduce": float(sum(used_bytes(name, leaf, dtype) for name, leaf in whole))
        if batch_shards(mesh) > 1
        else 0.0,
    }


def kernel_platform(topology: Topology) -> str:
    """Returns the platform by which branches are chosen; empty for TPUs without attention kernels."""
    if any(kind in TPUS_WITHOUT_SPLASH for kind in topology.chip.kinds):
        return ""
    return "cuda" if topology.platform == "gpu" else topology.platform
