"""From what a step does to how long it takes: the roofline, and what to expect below it.

The roofline is a bound: the slowest of three times, each at the published peak, as if the three overlapped perfectly.
Real steps are slower; EFFICIENCY is an assumption about by how much, not a measurement.
"""

from typing import NamedTuple

from jaxbooth.config.run_config import Config
from jaxbooth.plan.chips import Chip
from jaxbooth.plan.figures import StepCost
from jaxbooth.plan.topology import Topology

EFFICIENCY = 0.5
# Bytes that a device sends over a ring of many devices, for each byte of a collective's result.
SENT = {"all-reduce": 2.0, "all-gather": 1.0, "all-to-all": 1.0, "collective-permute": 1.0}


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
        images_per_second: rows, instance and prior ones, over all devices.
        hours: of `train.steps` steps; class images, compiling, sample grids and checkpoints come on top.
        chip_hours: of the chips that are rented.
    """

    seconds_per_step: float | None
    images_per_second: float | None
    hours: float | None
    chip_hours: float | None


def roofline(figures: StepCost, chip: Chip, fsdp: int) -> Roofline:
    """Divides a step's work by the device's peaks.

    The compute peak is bfloat16's. Collectives are timed on the links of one axis, which is how a ring uses a torus.

    Args:
        fsdp: devices that a reduce-scatter's result is a part of.
    """
    sent = sum(SENT.get(kind, float(fsdp)) * size for kind, size in figures.collectives.items())

    def seconds(amount: float, peak: float | None) -> float | None:
        return None if peak is None else amount / peak

    return Roofline(
        seconds(figures.flops, chip.flops), seconds(figures.bytes_accessed, chip.bandwidth), seconds(sent, chip.link)
    )


def expected_run(config: Config, topology: Topology, bound: Roofline, measured: float | None = None) -> ExpectedRun:
    """Returns the time of a run that reaches EFFICIENCY of its roofline, or whose steps take the `measured` seconds."""
    step = bound.seconds / EFFICIENCY if bound.seconds is not None else measured
    if step is None:
        return ExpectedRun(None, None, None, None)
    hours = config.train.steps * step / 3600
    rows = config.train.batch_size + config.prior_rows
    return ExpectedRun(step, rows / step, hours, hours * topology.chips)
