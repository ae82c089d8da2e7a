"""How many subjects train side by side in one step, and how many that makes in an hour; see `training.slots`.

A step of K slots has the rows of K runs, their adapters and optimizer states, and one copy of the frozen base model.
"""

from dataclasses import dataclass

import jax
import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.plan.abstract_slots import CAPTIONS
from jaxbooth.plan.abstract_step import abstract_mesh, abstract_step
from jaxbooth.plan.compile import compile_slots
from jaxbooth.plan.estimate import Estimate
from jaxbooth.plan.roofline import EFFICIENCY, Roofline, StepCost, roofline

DISPATCHES = 2  # whose rows lie on a device: those that are trained on, and the next ones
MAX_SLOTS = 4096  # of a device, where the search ends
DEFAULT_SLOTS = 8  # where the device's memory is unknown


@dataclass(frozen=True)
class SlotEstimate:
    """A step of any number of slots, on one device.

    Attributes:
        estimate: of a run of one subject.
        parameters, optimizer: bytes of one subject's adapters, and of their optimizer state.
        rows: bytes of what one subject's slot is given: images of the steps of its dispatches, and its captions.
    """

    estimate: Estimate
    parameters: float
    optimizer: float
    rows: float

    def at(self, slots: int) -> StepCost:
        """Returns the cost of a step of so many slots over all devices."""
        whole, mine = self.estimate, -(-slots // self.estimate.shards)
        cost = whole.at(slots * whole.config.train.batch_size)
        state = {"parameters": mine * self.parameters, "optimizer": mine * self.optimizer, "latents": mine * self.rows}
        gradients = cost.memory["gradients"] + (mine - 1) * self.parameters
        more = 2 * (mine - 1) * (self.parameters + self.optimizer)  # an update reads and writes every state
        return StepCost(
            memory=cost.memory | state | {"gradients": gradients},
            flops=cost.flops,
            bytes_accessed=cost.bytes_accessed + more,
            collectives=self.collectives(slots),
        )

    def collectives(self, slots: int) -> dict[str, float]:
        """Returns kind -> bytes of results in a step.

        A subject's rows and adapters lie on one device: the base model is gathered, and what `tensor` splits is summed.
        """
        whole = self.estimate
        examples = whole.per_device_batch_of(slots * whole.config.train.batch_size)
        partial_sums = whole.partial_sums.at(examples / whole.per_device_batch)
        sizes = {"all-gather": whole.sent["all-gather"], "all-reduce": partial_sums}
        return {kind: size for kind, size in sizes.items() if size}

    def fits(self, slots: int) -> bool:
        """Whether a step stays within a device's memory; one of unknown size holds everything."""
        limit = self.estimate.topology.chip.memory
        return limit is None or self.at(slots).hbm_bytes <= limit

    def largest(self, subjects: int) -> int:
        """Returns the most slots that fit and that so many subjects fill, a multiple of the devices; 0 if none do."""
        shards = self.estimate.shards
        most = min(MAX_SLOTS, -(-subjects // shards))
        if self.estimate.topology.chip.memory is None:
            return min(most, -(-DEFAULT_SLOTS // shards)) * shards
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle * shards) else (low, middle)
        return low * shards


@dataclass(frozen=True)
class SubjectsPlan:
    """What many subjects need.

    Attributes:
        slots: subjects that train side by side; 0: not even one on each device fits.
        cost: of a step of all slots.
        seconds_per_step: at EFFICIENCY of the roofline, or as long as that many measured steps of one subject take.
        hours: of all subjects' steps; preparing, sampling and exporting come on top.
    """

    subjects: int
    slots: int
    cost: StepCost
    bound: Roofline
    seconds_per_step: float | None
    hours: float | None
    chip_hours: float | None

    @property
    def per_hour(self) -> float | None:
        """Subjects in an hour."""
        return self.subjects / self.hours if self.hours else None


def slot_estimate(config: Config, base: BaseModel, estimate: Estimate) -> SlotEstimate:
    """Returns the estimate of steps of many slots, from that of a run."""
    step = abstract_step(config, base, abstract_mesh(config.mesh, estimate.topology))
    text = base.text.abstract_embeddings(1)
    latents = 2 * 4 * int(np.prod(base.latent_shape(config.resolution, config.resolution)))
    rows = DISPATCHES * config.train.steps_per_dispatch * config.rows * latents
    return SlotEstimate(
        estimate,
        parameters=whole_bytes((step.state.params, step.state.ema)),
        optimizer=whole_bytes(step.state.opt_state),
        rows=rows + CAPTIONS * whole_bytes(text),
    )


def whole_bytes(tree: object) -> float:
    """Returns the bytes of abstract arrays, wherever they lie."""
    return float(sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def plan_subjects(
    config: Config,
    base: BaseModel,
    estimate: Estimate,
    subjects: int,
    slots: int | None = None,
    measured: float | None = None,
    compiles: bool = False,
) -> SubjectsPlan:
    """Returns how many slots fit, and how long so many subjects take.

    Args:
        slots: default: the most that fit.
        compiles: ask XLA's compiler for the cost of a step.
        measured: seconds of a step of one subject, where the devices' peaks are unknown.
    """
    slots_of = slot_estimate(config, base, estimate)
    slots = slots_of.largest(subjects) if slots is None else slots
    cost = slots_of.at(max(slots, estimate.shards))
    if compiles and slots:
        cost = compile_slots(config, estimate.topology, cost, slots)
    bound = roofline(cost, estimate.topology.chip, config.mesh.fsdp)
    seconds = bound.seconds / EFFICIENCY if bound.seconds is not None else None
    if seconds is None and measured is not None:
        seconds = measured * slots
    hours = -(-subjects // slots) * config.train.steps * seconds / 3600 if seconds is not None and slots else None
    chip_hours = None if hours is None else hours * estimate.topology.chips
    return SubjectsPlan(subjects, slots, cost, bound, seconds, hours, chip_hours)
