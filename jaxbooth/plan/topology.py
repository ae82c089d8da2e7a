"""Names of hardware, such as `v5e:4x4`, `a100-80gb:8` or `local`, and the devices behind them."""

import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import jax
import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.plan.chips import CPU, GPUS, TPUS, Chip, find_chip

SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # of v2, v3 (less 1x1), v5e, v6e
SHAPES_3D = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip
CHIPS_3D = ("v4", "v5p", "tpu7x")
SINGLE_HOST_SHAPES = ("1x1", "2x2", "2x4")  # of v5e and v6e; larger slices have four chips a host
MAX_GPUS = 4096
ACCELERATOR_TYPE = re.compile(
    r"(v2|v3|v4|v5p|v5e|v5litepod|v6e|tpu7x)-(\d{1,5})"
)  # an accelerator type, such as v5litepod-8
ACCELERATOR_TYPE_CHIPS = {"v5litepod": "v5e"}


@dataclass(frozen=True)
class Topology:
    """A set of equal devices.

    Attributes:
        name: the name of the devices that `find_topology` takes, lower case.
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
        if "x".join(map(str, self.shape)) in SINGLE_HOST_SHAPES and len(self.shape) == 2:
            return (self.shape[0], self.shape[1], 1)
        return (2, 2, 1)


def find_topology(name: str) -> Topology:
    """Returns the devices of a name, in any case: `v5e:2x4`, its Google name `v5litepod-8`, `a100-80gb:8`, `RTX 4090`.

    Raises:
        UserError: there is no such topology; the message names near ones.
    """
    kind, _, size = name.strip().lower().partition(":")
    if kind in ("local", "gpu") or (kind == "cpu" and not size):
        if size:
            raise UserError(f"--topology {name}: {kind} is what this machine has, without a number; leave :{size} out.")
        return local_topology(name, kind)
    google = ACCELERATOR_TYPE.fullmatch(kind)
    if google and not size:
        return accelerator_type_topology(name, ACCELERATOR_TYPE_CHIPS.get(google[1], google[1]), int(google[2]))
    devices = DEVICES.get(device_key(kind))
    if devices is None:
        raise UserError(f"--topology {name} is not known; {suggest_names(kind)}")
    if devices in TPUS:
        return tpu_topology(name, devices, size)
    number = size or "1"
    if not number.isdecimal() or len(number) > len(str(MAX_GPUS)) or not 0 < int(number) <= MAX_GPUS:
        raise UserError(f"--topology {name}: a number from 1 to {MAX_GPUS} follows {devices.name}:, such as :8.")
    platform = "cpu" if devices is CPU else "gpu"
    return Topology(f"{devices.name}:{int(number)}", with_host_memory(devices, int(number)), int(number), (), platform)


def device_key(kind: str) -> str:
    """Returns what is left of a device's name without its maker, brand, spaces and dashes: `rtx4090`, `a10080gb`."""
    words = [word for word in re.split(r"[\s_-]+", kind) if word not in ("nvidia", "geforce", "tesla", "google", "tpu")]
    return "".join(words)


DEVICES = {device_key(chip.name): chip for chip in (*TPUS, *GPUS, CPU)}
# The other names that cards are sold or rented under.
DEVICES |= {
    other: DEVICES[name]
    for name, others in {
        "v100": ("v10016gb",),
        "h100": ("h10080gb", "h100sxm", "h100sxm5"),
        "a10040gb": ("a100sxm440gb", "a100pcie40gb"),
        "a10080gb": ("a100sxm480gb", "a100pcie80gb"),
        "h200": ("h200sxm", "h200141gb"),
        "a6000": ("rtxa6000",),
        "tpu7x": ("v7x",),
    }.items()
    for other in others
} | {device_key(chip.name).removeprefix("rtx"): chip for chip in GPUS if chip.name.startswith("rtx")}


def tpu_topology(name: str, chip: Chip, size: str) -> Topology:
    """Describes a TPU slice by its shape.

    Raises:
        UserError: there is no slice of that shape.
    """
    sizes = slice_shapes(chip.name)
    if size not in sizes:
        raise UserError(f"--topology {name}: {chip.name} comes as {', '.join(f':{known}' for known in sizes)}.")
    shape = tuple(map(int, size.split("x")))
    return Topology(f"{chip.name}:{size}", chip, int(np.prod(shape)) * chip.cores, shape, "tpu")


def accelerator_type_topology(name: str, kind: str, number: int) -> Topology:
    """Describes a slice by Google's accelerator type, whose number counts chips of v5e, v6e and tpu7x, and else cores.

    Raises:
        UserError: there is no slice of that number.
    """
    chips_each = 1 if kind in ("v5e", "v6e", "tpu7x") else 2
    sizes = {chips_each * int(np.prod([int(side) for side in size.split("x")])): size for size in slice_shapes(kind)}
    if number not in sizes:
        raise UserError(f"--topology {name}: {kind} comes as {', '.join(f'{kind}-{known}' for known in sizes)}.")
    return tpu_topology(name, DEVICES[device_key(kind)], sizes[number])


def slice_shapes(kind: str) -> tuple[str, ...]:
    """Returns the shapes of a TPU's slices."""
    return SHAPES_3D if kind in CHIPS_3D else SHAPES_2D


def suggest_names(kind: str) -> str:
    """Says which names are close to one that is not known, and where all are listed."""
    near = [chip.name for chip in DEVICES.values() if kind and chip.name.startswith(kind)]
    near += [DEVICES[key].name for key in get_close_matches(device_key(kind), DEVICES, n=8, cutoff=0.5)]
    meant = " or ".join(list(dict.fromkeys(near))[:3])
    return (f"did you mean {meant}? " if meant else "") + "`jaxbooth plan --help` lists all names."


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
    chip = find_chip(first.device_kind) or Chip(first.device_kind, (), None, None, None, None)
    limit = device_memory(first)
    chip = chip._replace(memory=limit) if limit else with_host_memory(chip, len(devices))
    return Topology(name, chip, len(devices), (), first.platform, is_here=True)


def device_memory(device: Any) -> int | None:
    """Returns the bytes that JAX may use on a device of this process, or None where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit")


def with_host_memory(chip: Chip, devices: int) -> Chip:
    """Fills in a CPU device's share of this machine's memory."""
    if chip.memory is not None or not hasattr(os, "sysconf"):
        return chip
    return chip._replace(memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / devices)


def as_one(topology: Topology) -> Topology:
    """Returns a single device of a topology."""
    return replace(topology, devices=1)
