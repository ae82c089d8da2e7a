"""What a step needs of each device, from shapes alone: one trace, no compiler, no devices.

Whatever stays in place (parameters, optimizer, frozen components, cached latents) is summed over the shards of the
partition rule. The rest comes from the jaxpr of a device's share of one micro-batch; costs that grow with the batch are
kept apart, so that other batch sizes need no other trace.
"""

from dataclasses import dataclass

import numpy as np
from jax.sharding import AbstractMesh

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.models.attention_kernels import TPUS_WITHOUT_SPLASH
from jaxbooth.plan.abstract_step import AbstractStep, abstract_mesh, abstract_step, device_bytes, persistent_bytes
from jaxbooth.plan.encoding import encoding_bytes
from jaxbooth.plan.flops import KERNEL
from jaxbooth.plan.hardware import Topology
from jaxbooth.plan.jaxpr_memory import JaxprAnalysis
from jaxbooth.plan.jaxpr_values import Cost
from jaxbooth.plan.per_device_step import (
    MemoryTimeline,
    analyze_step,
    compute_bytes,
    gathered_bytes,
    gatherings,
    gathers_twice,
    is_sharded,
    least_param_copies,
    memory_timeline,
    named_leaves,
)
from jaxbooth.plan.roofline import StepCost
from jaxbooth.sharding import batch_shards

UPDATE_FLOPS = 20  # of an optimizer, for each parameter
# Of TPUs, measured in compiled steps with 2 to 16 examples a device. A step copies the latents into a layout of its
# own. With fewer than FULL_BATCH examples, convolutions split their inputs along the width to fill the chip; they and
# the norms around them then also store float32 copies with the overlap. The program itself lies in the same memory.
LATENT_COPIES = 2
FULL_BATCH = 8
CONV_INPUT_COPIES = 5
PROGRAM_BYTES = 22_000  # for each equation of the jaxpr
# XLA gathers the parameters of a block that is computed again twice, and early as long as there is room: up to this
# share of a device's memory, in a compiled step of Z-Image.
GATHERING_SHARE = 0.85
MAX_BATCH = 2**14  # a device, where the search for the largest batch ends


@dataclass(frozen=True)
class Estimate:
    """A step on one device, at any batch size.

    Attributes:
        persistent: kind -> bytes that are there all the time.
        resident: bytes among persistent's "frozen" that only the sample grids read.
        accumulator: bytes of the float32 sums of gradients, 0 with one micro-batch.
        least_copies: bytes of gathered and cast parameters if each is gathered as late as it can be; None where the
            backward pass keeps what the forward pass gathered.
        latent_copies: bytes.
        per_device_batch: examples of a device in one micro-batch, instance and prior ones, as traced.
        shards: parts that a batch is split into.
        halo_flops: what few examples cost a TPU on top of `flops`.
        sent: kind of collective -> bytes of parameters and gradients in one micro-batch.
        encoding: bytes that a device needs before, while prompts are encoded ahead; 0 where they are not.
    """

    config: Config
    topology: Topology
    persistent: dict[str, float]
    resident: float
    accumulator: float
    least_copies: float | None
    latent_copies: float
    per_device_batch: int
    shards: int
    timeline: MemoryTimeline
    flops: dict[str, Cost]
    halo_flops: Cost
    bytes_accessed: Cost
    partial_sums: Cost
    sent: dict[str, float]
    encoding: float

    def per_device_batch_of(self, batch_size: int) -> int:
        """Returns a device's examples of one micro-batch; prior examples keep their proportion to instance ones."""
        train, parts = self.config.train, self.config.train.gradient_accumulation_steps
        prior = -(-batch_size * self.config.prior_rows // train.batch_size)
        micro_batch = -(-batch_size // parts) + -(-prior // parts)
        return -(-micro_batch // self.shards)

    def at(self, batch_size: int | None = None) -> StepCost:
        """Returns the cost of a step with `batch_size` instance examples over all devices; default: the run's."""
        examples = self.per_device_batch_of(batch_size or self.config.train.batch_size)
        scale, parts = examples / self.per_device_batch, self.config.train.gradient_accumulation_steps
        splits_convs = self.topology.platform == "tpu" and examples < FULL_BATCH
        per_example, constant, conv_inputs, param_copies, gradients = self.timeline
        if splits_convs:
            per_example = per_example + CONV_INPUT_COPIES * conv_inputs
        activations = per_example * scale + constant
        if self.topology.platform == "cpu":  # it leaves the gradients of kernels to the end
            gradients = np.full_like(gradients, gradients[-2])
        param_copies = self.limited_copies(activations + gradients, param_copies)
        peak = int((activations + param_copies + gradients).argmax())
        memory = self.persistent | {
            "gradients": float(gradients[peak]) + self.accumulator,
            "activations": float(activations[peak] + param_copies[peak]) + self.latent_copies,
        }
        state = self.persistent["parameters"] + self.persistent["optimizer"]
        flops = sum(cost.at(scale) for cost in self.flops.values())
        if splits_convs:
            flops += self.halo_flops.at(scale)
        update_bytes = 2 * state + float(gradients[-2]) + self.accumulator
        return StepCost(
            memory=memory,
            flops=parts * flops + UPDATE_FLOPS * self.persistent["parameters"] / 4,
            bytes_accessed=parts * self.bytes_accessed.at(scale) + update_bytes,
            collectives=self.collectives(scale),
        )

    def limited_copies(self, others: np.ndarray, param_copies: np.ndarray) -> np.ndarray:
        """Returns the bytes of gathered parameters at each time, given those of everything else in the step.

        Where they are gathered for each pass, XLA waits with gathering when memory is short.
        """
        limit = self.topology.chip.memory
        if self.least_copies is None or limit is None:
            return param_copies
        room = GATHERING_SHARE * limit - sum(self.persistent.values()) - self.accumulator - self.latent_copies - others
        return np.minimum(param_copies, np.maximum(room, self.least_copies))

    def kernel_flops(self, batch_size: int | None = None) -> float:
        """Returns the FLOPs of a step that are inside of kernels, where a compiler's count does not see them."""
        examples = self.per_device_batch_of(batch_size or self.config.train.batch_size)
        return self.config.train.gradient_accumulation_steps * self.flops[KERNEL].at(examples / self.per_device_batch)

    def collectives(self, scale: float) -> dict[str, float]:
        """Returns kind -> bytes of results in a step."""
        sizes = self.sent | {"all-reduce": self.sent["all-reduce"] + self.partial_sums.at(scale)}
        return {kind: self.config.train.gradient_accumulation_steps * size for kind, size in sizes.items() if size}

    def needed(self, batch_size: int | None = None) -> float:
        """Returns the bytes that a device needs for a step, or before it for encoding the prompts."""
        return max(self.at(batch_size).hbm_bytes, self.encoding)

    def fits(self, batch_size: int | None = None) -> bool:
        """Whether a run stays within a device's memory; one of unknown size holds everything."""
        limit = self.topology.chip.memory
        return limit is None or self.needed(batch_size) <= limit

    def largest_batch(self) -> int | None:
        """Returns the most instance examples for each part of a split batch with which a step fits.

        None where the memory is unknown; 0 where not even one example fits.
        """
        if self.topology.chip.memory is None:
            return None
        low, high = 0, MAX_BATCH
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(middle * self.shards):
                low = middle
            else:
                high = middle
        return low


def estimate(config: Config, base: BaseModel, topology: Topology) -> Estimate:
    """Traces a device's share of a step and analyzes it.

    Args:
        config: with its resolution.
        base: with the run's adapters and placeholder tokens, and the topology's compute dtype; see `abstract_base`.

    Raises:
        UserError: the mesh does not make the topology's devices.
    """
    mesh = abstract_mesh(config.mesh, topology)
    step = abstract_step(config, base, mesh)
    shards, is_tpu = batch_shards(mesh), topology.platform == "tpu"
    per_device_batch = step.spec.layout.index.shape[1] // shards
    analysis = analyze_step(step, mesh, kernel_platform(topology), per_device_batch)
    persistent: dict[str, float] = dict(persistent_bytes(step))
    resident = persistent.pop("resident")
    persistent["frozen"] += resident
    if is_tpu:
        persistent["program"] = PROGRAM_BYTES * analysis.equations
    return Estimate(
        config=config,
        topology=topology,
        persistent=persistent,
        resident=resident,
        accumulator=device_bytes(step.state.params) if config.train.gradient_accumulation_steps > 1 else 0,
        least_copies=least_param_copies(step, mesh) if gathers_twice(step) else None,
        latent_copies=LATENT_COPIES * persistent["latents"] if is_tpu else 0,
        per_device_batch=per_device_batch,
        shards=shards,
        timeline=memory_timeline(without_remat(config, base, topology) or analysis),
        flops=analysis.flops,
        halo_flops=analysis.halo_flops,
        bytes_accessed=analysis.bytes_accessed,
        partial_sums=analysis.partial_sums,
        sent=sent_bytes(step, mesh),
        encoding=encoding_bytes(base, mesh, kernel_platform(topology)),
    )


def without_remat(config: Config, base: BaseModel, topology: Topology) -> JaxprAnalysis | None:
    """Analyzes the step that a CPU's memory is for, if it is another one: its compiler keeps what remat would drop."""
    if topology.platform != "cpu" or config.train.remat_policy == "none":
        return None
    config = config.model_copy(update={"train": config.train.model_copy(update={"remat": "none"})})
    mesh = abstract_mesh(config.mesh, topology)
    step = abstract_step(config, base, mesh)
    return analyze_step(step, mesh, topology.platform, step.spec.layout.index.shape[1] // batch_shards(mesh))


def sent_bytes(step: AbstractStep, mesh: AbstractMesh) -> dict[str, float]:
    """Returns kind of collective -> bytes of its results in one micro-batch: of parameters and their gradients.

    Gradients travel as the parameters do: those of kernels in the compute dtype. FSDP leaves each device its part of
    them; what is whole, or what several copies of the model have, is summed.
    """
    trained, dtype = named_leaves(step.state.params), step.spec.base.dtype
    scattered = [(name, leaf) for name, leaf in trained if is_sharded(leaf, "fsdp")]
    summed = [(name, leaf) for name, leaf in trained if not is_sharded(leaf, "fsdp") or mesh.shape["data"] > 1]
    if batch_shards(mesh) == 1:
        summed = []
    read = trained + named_leaves(step.frozen)
    return {
        "all-gather": float(
            sum(gatherings(name, step) * gathered_bytes(name, leaf, mesh, dtype) for name, leaf in read)
        ),
        "reduce-scatter": float(sum(compute_bytes(name, leaf, dtype) for name, leaf in scattered)),
        "all-reduce": float(sum(compute_bytes(name, leaf, dtype) for name, leaf in summed)),
    }


def kernel_platform(topology: Topology) -> str:
    """Returns the platform by which branches are chosen; empty for TPUs without attention kernels."""
    if any(kind in TPUS_WITHOUT_SPLASH for kind in topology.chip.device_kinds):
        return ""
    return "cuda" if topology.platform == "gpu" else topology.platform
