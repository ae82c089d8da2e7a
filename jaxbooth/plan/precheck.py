"""Before `train` makes a class picture: does the step fit this machine's devices?"""

import re
from pathlib import Path

import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info
from jaxbooth.errors import UserError
from jaxbooth.models.remat import REMATS
from jaxbooth.plan.advise import suggest
from jaxbooth.plan.chips import GIB, Chip, find_chip
from jaxbooth.plan.estimate import Estimate
from jaxbooth.plan.settle import resolve_remat
from jaxbooth.plan.topology import Topology, device_memory, with_host_memory

MEMINFO = Path("/proc/meminfo")


def check_memory(config: Config, base: BaseModel, mesh: Mesh) -> Config:
    """Estimates a run's step on the devices that it will use, and settles what the backward pass computes again.

    Args:
        config: with its resolution.
        base: with the run's adapters and placeholder tokens.

    Returns:
        The run with a named `--train.remat`, the same on all processes.

    Raises:
        UserError: it does not fit, and `--force` was not given; the message names the cheapest change that does.
    """
    topology = mesh_topology(mesh)
    limit = topology.chip.memory
    if limit is None:
        return config
    settled, estimated = resolve_remat(config, base, topology)
    needed = estimated.at().hbm_bytes
    if needed > limit and not config.force:
        raise out_of_memory_error(settled, base, estimated)
    policy = REMATS[int(broadcast_one_to_all(np.int32(REMATS.index(settled.train.remat_policy))))]
    if policy != config.train.remat_policy:
        info(f"--train.remat {policy}: a step needs {needed / GIB:.1f} GiB with it, the device has {limit / GIB:.1f}")
    return config.model_copy(update={"train": config.train.model_copy(update={"remat": policy})})


def out_of_memory_error(config: Config, base: BaseModel, estimated: Estimate) -> UserError:
    """Returns the error of a step that does not fit."""
    topology, needed = estimated.topology, estimated.at().hbm_bytes
    limit = topology.chip.memory or 0
    advice = suggest(config, base, topology, estimated)
    others = f" (or {' or '.join(advice[1:])})" if advice[1:] else ""
    change = f"the cheapest change that fits: {advice[0]}{others}" if advice else "no change of settings makes it fit"
    return UserError(
        f"a step needs {needed / GIB:.1f} GiB, the device has {limit / GIB:.1f}; {change}; --force trains all the same."
    )


def mesh_topology(mesh: Mesh) -> Topology:
    """Describes the devices of a mesh, with the memory that this process's own ones have."""
    first = mesh.local_devices[0]
    chip = find_chip(first.device_kind) or Chip(first.device_kind, (), None, None, None, None)
    limit = device_memory(first) or chip.memory
    if first.platform == "cpu":
        limit = available_host_memory(chip, len(mesh.local_devices))
    return Topology(first.device_kind, chip._replace(memory=limit), mesh.size, (), first.platform, is_here=True)


def available_host_memory(chip: Chip, devices: int) -> float | None:
    """Returns a CPU device's share of the memory that nothing uses, or of all of it where that is not told."""
    told = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text()) if MEMINFO.exists() else None
    return int(told[1]) * 1024 / devices if told else with_host_memory(chip, devices).memory
