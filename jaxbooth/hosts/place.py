"""Which process of how many this one is: from flags, or from what launched it."""

import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` asks; there is no public way to it

from jaxbooth.config.schema import DistributedConfig
from jaxbooth.errors import UserError


class Place(NamedTuple):
    """One process among several.

    Attributes:
        coordinator: host and port of process 0.
        processes: how many there are.
        index: of this one.
        local_devices: GPUs of this machine that are this process's own; None: all.
    """

    coordinator: str
    processes: int
    index: int
    local_devices: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """How messages call this process."""
        return f"process {self.index} ({socket.gethostname()})"

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator as sockets want it."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_place(chosen: DistributedConfig) -> Place | None:
    """Returns this process's place, or None where it is the only one, as on a laptop.

    Cloud TPU VMs, GKE, SLURM and Open MPI are recognised as JAX recognises them.

    Raises:
        UserError: the flags do not describe a place.
    """
    given = (chosen.coordinator, chosen.processes, chosen.process)
    if any(value is not None for value in given):
        return place_from_flags(chosen)
    coordinator, processes, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(chosen.timeout)
    )
    if coordinator is None or processes is None or index is None or processes == 1:
        return None
    return Place(coordinator, processes, index, devices)


def place_from_flags(chosen: DistributedConfig) -> Place:
    """Returns the place that the flags describe.

    Raises:
        UserError: one is missing or out of range.
    """
    coordinator, processes, index = chosen.coordinator, chosen.processes, chosen.process
    for name, value in (("coordinator", coordinator), ("processes", processes), ("process", index)):
        if value is None:
            raise UserError(
                f"--distributed.{name} is missing: --distributed.coordinator HOST:PORT, --distributed.processes N and "
                "--distributed.process I go together."
            )
    assert coordinator is not None
    assert processes is not None
    assert index is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(f"--distributed.coordinator {coordinator} is not HOST:PORT, such as 10.0.0.2:8476.")
    if index >= processes:
        raise UserError(
            f"--distributed.process {index} does not exist among --distributed.processes {processes}: "
            f"they are numbered 0 to {processes - 1}."
        )
    return Place(coordinator, processes, index)
