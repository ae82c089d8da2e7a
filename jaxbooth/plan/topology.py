"""Names of hardware, such as `v5e:4x4`, `a100-80gb:8` or `local`, and the devices behind them."""

import os
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.plan.chips import CPU, GPUS, TPUS, Chip, chip_of

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # of v2, v3 (less 1x1), v5e, v6e
CUBE = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip
CUBIC = ("v4", "v5p", "tpu7x")
SINGLE_HOST = ("1x1", "2x2", "2x4")  # of v5e and v6e; larger slices have four chips a host
MAX_GPUS = 4096


@dataclass(frozen=True)
class Topology:
    """A set of equal devices.

    Attributes:
        name: as it was asked for.
        devices: JAX devices, which are half chips on some TPUs.
        shape: chips along each axis of a TPU slice; empty for everything else.
        platform: tpu, gpu or cpu.
        is_here: whether they are this process's own devices.
    """

    name: str
    chip: Chip
    devices: int
    shape: tuple[int, ...]
    platform: str
    is_here: bool = False

    @property
    def chips(self) -> int:
        """What is rented."""
        return self.devices // self.chip.cores

    @property
    def host_bounds(self) -> tuple[int, int, int]:
        """Chips of one host along each axis, as libtpu wants to hear it."""
        if "x".join(map(str, self.shape)) in SINGLE_HOST and len(self.shape) == 2:
            return (self.shape[0], self.shape[1], 1)
        return (2, 2, 1)


def known_names() -> str:
    """Lists what `find_topology` takes."""
    flat = ", ".join(chip.name for chip in TPUS if chip.name not in CUBIC)
    gpus = ", ".join(chip.name for chip in GPUS)
    return (
        f"{flat} with :{' :'.join(FLAT)}; {', '.join(CUBIC)} with :{' :'.join(CUBE)}; {gpus} with :N devices; "
        "cpu, cpu:N, gpu or local"
    )


def find_topology(name: str) -> Topology:
    """Returns the devices of a name.

    Raises:
        UserError: there is no such topology; the message lists those that exist.
    """
    kind, _, size = name.strip().lower().partition(":")
    unknown = UserError(f"--topology {name} does not exist; known are {known_names()}.")
    if kind in ("local", "gpu") or name == "cpu":
        if size:
            raise unknown
        return local_topology(name, kind)
    for chip in TPUS:
        if chip.name == kind and size in (CUBE if kind in CUBIC else FLAT):
            shape = tuple(map(int, size.split("x")))
            return Topology(name, chip, int(np.prod(shape)) * chip.cores, shape, "tpu")
    for chip in (*GPUS, CPU):
        if chip.name == kind and size.isdecimal() and 0 < int(size) <= MAX_GPUS:
            return Topology(name, sized(chip, int(size)), int(size), (), "cpu" if chip is CPU else "gpu")
    raise unknown


def local_topology(name: str, kind: str) -> Topology:
    """Describes this process's own devices.

    Raises:
        UserError: JAX has none of the kind.
    """
    try:
        devices = jax.devices(None if kind == "local" else kind)
    except RuntimeError:
        raise UserError(f"--topology {name}: JAX finds no {kind} here; name one, such as a100-80gb:1.") from None
    first = devices[0]
    chip = chip_of(first.device_kind) or Chip(first.device_kind, (), None, None, None, None)
    limit = device_memory(first)
    chip = chip._replace(memory=limit) if limit else sized(chip, len(devices))
    return Topology(name, chip, len(devices), (), first.platform, is_here=True)


def device_memory(device: Any) -> int | None:
    """Returns the bytes that JAX may use on a device of this process, or None where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit")


def sized(chip: Chip, devices: int) -> Chip:
    """Fills in a CPU device's share of this machine's memory."""
    if chip.memory is not None or not hasattr(os, "sysconf"):
        return chip
    return chip._replace(memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / devices)


def as_one(topology: Topology) -> Topology:
    """Returns a single device of a topology."""
    return replace(topology, devices=1)
