"""Which process of how many this one is: from flags, or from what launched it."""

import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` asks; there is no public way to it

from jaxbooth.errors import UserError


class ProcessInfo(NamedTuple):
    """One process among several.

    Attributes:
        coordinator: host and port of process 0.
        num_processes: how many there are.
        process_id: number of this one, from 0.
        local_device_ids: GPUs of this machine that are this process's own; None: all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """How messages call this process."""
        return f"process {self.process_id} ({socket.gethostname()})"

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's host and port, as sockets take them."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_process(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> ProcessInfo | None:
    """Returns what the flags say about this process, or else its launcher; None where it is the only process.

    Cloud TPU VMs, GKE, SLURM and Open MPI are recognised as JAX recognises them.

    Args:
        timeout: seconds that a launcher's metadata server may take to answer.

    Raises:
        UserError: a flag is missing or out of range.
    """
    if coordinator is not None or num_processes is not None or process_id is not None:
        return process_from_flags(coordinator, num_processes, process_id)
    coordinator, num_processes, process_id, local_device_ids = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(timeout)
    )
    if coordinator is None or num_processes is None or process_id is None or num_processes == 1:
        return None
    return ProcessInfo(coordinator, num_processes, process_id, local_device_ids)


def process_from_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> ProcessInfo:
    """Returns the process that the flags describe.

    Raises:
        UserError: one is missing or out of range.
    """
    if coordinator is None or num_processes is None or process_id is None:
        flags = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
        missing = next(name for name, value in flags.items() if value is None)
        raise UserError(
            f"--distributed.{missing} is missing: --distributed.coordinator HOST:PORT, --distributed.num-processes N "
            "and --distributed.process-id I go together."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(f"--distributed.coordinator {coordinator} is not HOST:PORT, such as 10.0.0.2:8476.")
    if process_id >= num_processes:
        raise UserError(
            f"--distributed.process-id {process_id} does not exist among --distributed.num-processes {num_processes}: "
            f"they are numbered 0 to {num_processes - 1}."
        )
    return ProcessInfo(coordinator, num_processes, process_id)
