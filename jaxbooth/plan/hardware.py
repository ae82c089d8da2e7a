"""Accelerators by name, such as `v5e:4x4`, `a100-80gb:8` or `local`: their published peaks and their number."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from jax.sharding import Mesh

from jaxbooth.assets import ASSETS
from jaxbooth.backend import GPU_MEMORY_FRACTION
from jaxbooth.console.numbers import GIB
from jaxbooth.errors import UserError

SINGLE_HOST_SHAPES = ((1, 1), (2, 2), (2, 4))  # larger slices have four chips a host
MAX_GPUS = 4096
ACCELERATOR_TYPE = re.compile(r"(v2|v3|v4|v5p|v5e|v5litepod|v6e|tpu7x)-(\d{1,5})")  # Google's names, such as v5p-16
COUNTED_IN_CHIPS = ("v5e", "v6e", "tpu7x")  # the numbers of other accelerator types count cores, two a chip
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


class Chip(NamedTuple):
    """One JAX device: a whole chip, or one of two cores. Published peaks are bounds that no program reaches.

    Attributes:
        device_kinds: `device_kind` as JAX reports it, or its first words.
        peak_flops: bfloat16 FLOP/s, None where unknown.
        memory: usable bytes, None where it is the host's.
        bandwidth: bytes/s between memory and cores.
        link_bandwidth: bytes/s to the neighbours along one axis of the torus, both ways, or over NVLink or PCIe.
        devices_per_chip: devices of one chip that is rented.
        slice_shapes: of a TPU, such as 2x4.
    """

    name: str
    device_kinds: tuple[str, ...]
    peak_flops: float | None
    memory: float | None
    bandwidth: float | None
    link_bandwidth: float | None
    devices_per_chip: int = 1
    slice_shapes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topology:
    """A set of equal devices.

    Attributes:
        name: as `find_topology` takes it, lower case.
        devices: JAX devices, which are half chips on some TPUs.
        shape: chips along each axis of a TPU slice; empty for everything else.
        platform: tpu, gpu or cpu.
        is_local: whether they are this process's own devices.
    """

    name: str
    chip: Chip
    devices: int
    shape: tuple[int, ...]
    platform: str
    is_local: bool = False

    @property
    def chips(self) -> int:
        """Chips that are rented."""
        return self.devices // self.chip.devices_per_chip

    @property
    def host_bounds(self) -> tuple[int, int, int]:
        """Chips of one host along each axis, in libtpu's form."""
        if self.shape in SINGLE_HOST_SHAPES:
            return (self.shape[0], self.shape[1], 1)
        return (2, 2, 1)


TABLE = yaml.safe_load((ASSETS / "hardware.yaml").read_text(encoding="utf-8"))


def read_chip(name: str, row: dict[str, Any], memory_share: float = 1.0) -> Chip:
    """Reads one row of hardware.yaml."""
    return Chip(
        name=name,
        device_kinds=tuple(row["device_kinds"]),
        peak_flops=row["tflops"] * 1e12,
        memory=row["memory_gib"] * memory_share * GIB,
        bandwidth=row["bandwidth_gb_s"] * 1e9,
        link_bandwidth=row["link_gb_s"] * 1e9,
        devices_per_chip=row.get("devices_per_chip", 1),
        slice_shapes=tuple(TABLE["slices"].get(row.get("slices"), ())),
    )


def device_key(name: str) -> str:
    """Returns a device's name without its maker, brand, spaces and dashes: `rtx4090`, `a10080gb`."""
    words = re.split(r"[\s_-]+", name)
    return "".join(word for word in words if word not in ("nvidia", "geforce", "tesla", "google", "tpu"))


TPUS = tuple(read_chip(name, row) for name, row in TABLE["tpu"].items())
GPUS = tuple(read_chip(name, row, GPU_MEMORY_FRACTION) for name, row in TABLE["gpu"].items())
CPU = Chip("cpu", ("cpu",), None, None, None, None)
CHIPS = {device_key(chip.name): chip for chip in (*TPUS, *GPUS, CPU)}
ALIASES = {
    device_key(alias): CHIPS[device_key(name)]
    for name, row in (TABLE["tpu"] | TABLE["gpu"]).items()
    for alias in row.get("aliases", ())
} | {device_key(chip.name).removeprefix("rtx"): chip for chip in GPUS if chip.name.startswith("rtx")}
KNOWN = CHIPS | ALIASES


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip behind a device that JAX has, or None for an unknown one.

    The longest match counts: "TPU v5 lite" is not a "TPU v5". A match ends with a word: an A100 is no "NVIDIA A10".
    """
    matches = [
        (len(kind), chip)
        for chip in CHIPS.values()
        for kind in chip.device_kinds
        if device_kind.startswith(kind) and not device_kind[len(kind) : len(kind) + 1].isalnum()
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def find_topology(name: str) -> Topology:
    """Returns the devices of a name, in any case: `v5e:2x4`, `v5e:8` or `v5litepod-8`, `a100-80gb:8`, `RTX 4090`.

    Raises:
        UserError: there is no such topology; the message names near ones.
    """
    kind, _, size = name.strip().lower().partition(":")
    if kind in ("local", "gpu") or (kind == "cpu" and not size):
        if size:
            raise UserError(
                f"--topology {name}: {kind} means the devices of this machine and takes no number; leave :{size} out."
            )
        return local_topology(name, kind)
    accelerator_type = ACCELERATOR_TYPE.fullmatch(kind)
    if accelerator_type and not size:
        return accelerator_type_topology(name, accelerator_type[1].replace("litepod", "e"), int(accelerator_type[2]))
    chip = KNOWN.get(device_key(kind))
    if chip is None:
        raise UserError(f"--topology {name} is not known; {suggest_names(kind)}")
    if chip in TPUS:
        return tpu_topology(name, chip, size)
    number = size or "1"
    if not number.isdecimal() or len(number) > len(str(MAX_GPUS)) or not 0 < int(number) <= MAX_GPUS:
        raise UserError(
            f"--topology {name}: write a number from 1 to {MAX_GPUS} after {chip.name}:, such as {chip.name}:8."
        )
    devices, platform = int(number), "cpu" if chip is CPU else "gpu"
    return Topology(f"{chip.name}:{devices}", with_host_memory(chip, devices), devices, (), platform)


def tpu_topology(name: str, chip: Chip, size: str) -> Topology:
    """Describes a TPU slice by its shape, or by its number of chips.

    Raises:
        UserError: there is no slice of that shape or number.
    """
    size = {str(count): shape for count, shape in shapes_by_chips(chip).items()}.get(size, size)
    if size not in chip.slice_shapes:
        known = ", ".join(f":{shape}" for shape in chip.slice_shapes)
        raise UserError(f"--topology {name}: {chip.name} comes as {known}.")
    shape = tuple(map(int, size.split("x")))
    return Topology(f"{chip.name}:{size}", chip, int(np.prod(shape)) * chip.devices_per_chip, shape, "tpu")


def accelerator_type_topology(name: str, kind: str, number: int) -> Topology:
    """Describes a slice by Google's accelerator type, such as v5litepod-16 or v4-8.

    Raises:
        UserError: there is no slice of that number.
    """
    chip = CHIPS[kind]
    each = 1 if kind in COUNTED_IN_CHIPS else 2
    sizes = {each * count: shape for count, shape in shapes_by_chips(chip).items()}
    if number not in sizes:
        raise UserError(f"--topology {name}: {kind} comes as {', '.join(f'{kind}-{known}' for known in sizes)}.")
    return tpu_topology(name, chip, sizes[number])


def shapes_by_chips(chip: Chip) -> dict[int, str]:
    """Returns number of chips -> the shape of the slice that has as many; no two have the same number."""
    return {int(np.prod([int(side) for side in shape.split("x")])): shape for shape in chip.slice_shapes}


def suggest_names(kind: str) -> str:
    """Says which names are close to one that is not known, and where all are listed."""
    near = [chip.name for chip in KNOWN.values() if kind and chip.name.startswith(kind)]
    near += [KNOWN[key].name for key in get_close_matches(device_key(kind), KNOWN, n=8, cutoff=0.5)]
    meant = " or ".join(list(dict.fromkeys(near))[:3])
    return (f"did you mean {meant}? " if meant else "") + "`jaxbooth plan --help` lists all names."


def local_topology(name: str, kind: str) -> Topology:
    """Describes this process's own devices, with the memory that is built into them.

    Raises:
        UserError: JAX has none of the kind.
    """
    try:
        devices = jax.devices(None if kind == "local" else kind)
    except RuntimeError:
        raise UserError(f"--topology {name}: JAX finds no {kind} here; name one, such as a100-80gb:1.") from None
    chip = with_host_memory(local_chip(devices[0]), len(devices))
    return Topology(name, chip, len(devices), (), devices[0].platform, is_local=True)


def mesh_topology(mesh: Mesh) -> Topology:
    """Describes the devices of a mesh; those of a CPU share the memory that nothing else uses now."""
    first, local_devices = mesh.local_devices[0], len(mesh.local_devices)
    chip = local_chip(first)
    if first.platform == "cpu":
        available = available_host_memory()
        chip = chip._replace(memory=available / local_devices) if available else with_host_memory(chip, local_devices)
    return Topology(first.device_kind, chip, mesh.size, (), first.platform, is_local=True)


def local_chip(device: jax.Device) -> Chip:
    """Describes a device of this process, with the memory that JAX may use of it where it says so."""
    chip = find_chip(device.device_kind) or Chip(device.device_kind, (), None, None, None, None)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return chip._replace(memory=limit) if limit else chip


def with_host_memory(chip: Chip, devices: int) -> Chip:
    """Gives a CPU device its share of this machine's memory."""
    if chip.memory is not None or not hasattr(os, "sysconf"):
        return chip
    return chip._replace(memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / devices)


def available_host_memory() -> int | None:
    """Returns the bytes that nothing uses on this machine or in this container, or None where neither says so."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text()) if MEMINFO.exists() else None
    found = [int(available[1]) * 1024] if available else []
    return min(found + available_in_container(), default=None)


def available_in_container() -> list[int]:
    """Returns the bytes that are left of a container's limit, if there is one; files in memory make room."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        files = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or one without a limit, which is "max"
        return []
    return [max(0, limit - used + (int(files[1]) if files else 0))]
