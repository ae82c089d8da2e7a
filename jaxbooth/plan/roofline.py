"""From what a step does to how long it takes: the roofline, and what to expect below it.

The roofline is a bound: the slowest of three times, each at the published peak, as if the three overlapped perfectly.
Real steps are slower; EFFICIENCY is an assumption about by how much, not a measurement.
"""

from typing import NamedTuple

from jaxbooth.plan.hardware import Chip, Topology

EFFICIENCY = 0.5
# Bytes that a device sends over a ring of many devices, for each byte of a collective's result.
SENT = {"all-reduce": 2.0, "all-gather": 1.0, "all-to-all": 1.0, "collective-permute": 1.0}


class StepCost(NamedTuple):
    """One device's share of one optimizer step, estimated or compiled.

    Attributes:
        memory: kind -> bytes at the moment of the peak: parameters, optimizer, frozen, latents (everything that is
            cached about the images), gradients, activations (with the copies of parameters that a step makes) and, on a
            TPU, the program. A compiler does not separate gradients from activations: there, `activations` holds both.
        flops: floating-point operations, those inside of kernels that XLA cannot see included.
        bytes_accessed: bytes moved between memory and cores.
        collectives: kind of collective -> bytes of its results.
    """

    memory: dict[str, float]
    flops: float
    bytes_accessed: float
    collectives: dict[str, float]

    @property
    def hbm_bytes(self) -> float:
        """Memory that a device needs."""
        return sum(self.memory.values())


class Roofline(NamedTuple):
    """Seconds of a step at the peak of each resource; None where the device's peak is unknown."""

    compute: float | None
    memory: float | None
    interconnect: float | None

    @property
    def bound(self) -> str | None:
        """The resource that takes longest."""
        known = {name: seconds for name, seconds in self._asdict().items() if seconds is not None}
        return max(known, key=known.__getitem__) if known else None

    @property
    def seconds(self) -> float | None:
        """The least that a step can take."""
        bound = self.bound
        return getattr(self, bound) if bound else None


class ExpectedRun(NamedTuple):
    """What to expect of a run, at EFFICIENCY or as measured; None where nothing is known of the device.

    Attributes:
        images_per_second: instance and prior images, over all devices.
        hours: of all steps; class images, compiling, sample grids and checkpoints come on top.
        chip_hours: of the chips that are rented.
    """

    seconds_per_step: float | None
    images_per_second: float | None
    hours: float | None
    chip_hours: float | None


def roofline(cost: StepCost, chip: Chip, fsdp: int) -> Roofline:
    """Divides a step's work by the device's peaks.

    The compute peak is bfloat16's. Collectives are timed on the links of one axis, which is how a ring uses a torus.

    Args:
        fsdp: devices among which a reduce-scatter splits its result.
    """
    sent = sum(SENT.get(kind, float(fsdp)) * size for kind, size in cost.collectives.items())

    def seconds(amount: float, peak: float | None) -> float | None:
        return None if peak is None else amount / peak

    return Roofline(
        compute=seconds(cost.flops, chip.peak_flops),
        memory=seconds(cost.bytes_accessed, chip.bandwidth),
        interconnect=seconds(sent, chip.link_bandwidth),
    )


def expected_run(
    steps: int, batch_size: int, topology: Topology, bound: Roofline, measured: float | None = None
) -> ExpectedRun:
    """Returns the time of a run that reaches EFFICIENCY of its roofline, or whose steps take the `measured` seconds.

    Args:
        batch_size: instance and prior images of a step, over all devices.
    """
    step = bound.seconds / EFFICIENCY if bound.seconds is not None else measured
    if step is None:
        return ExpectedRun(None, None, None, None)
    hours = steps * step / 3600
    return ExpectedRun(step, batch_size / step, hours, hours * topology.chips)
