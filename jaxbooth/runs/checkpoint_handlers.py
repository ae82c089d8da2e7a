"""Orbax's handlers, for the processes that write a checkpoint: all of them together, or each one of its own.

Orbax takes every checkpoint for one of all processes, and refuses an array that only one of them has. Its mode for
local disks, in which each process writes what it holds, takes arrays that all processes have a copy of, and does not
look whether the copies are equal.
"""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbooth.distributed.run_scope import is_shared


def writes_alone() -> bool:
    """Whether this process writes checkpoints of its own, beside other processes."""
    return jax.process_count() > 1 and not is_shared()


def saving_processes() -> ocp.options.MultiprocessingOptions:
    """Returns which processes save together."""
    if not writes_alone():
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(own, {own}, f"process-{own}")


def saving_threads() -> ocp.AsyncOptions:
    """Returns what happens in the background: folders are created there, too, unless this process saves alone.

    Orbax says that folders are there by a key of JAX's key-value store, which all processes share. The key holds the
    number of the save, which is the same in each of them: a process that saves alone would wait for another's folders,
    and in vain if the other has deleted the key meanwhile.
    """
    return ocp.AsyncOptions(create_directories_asynchronously=not writes_alone())


def state_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what saves and reads a train state; see `as_copies`."""
    if not writes_alone():
        return ocp.PyTreeCheckpointHandler()
    local = ocp.type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, local))
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=saving_processes(), type_handler_registry=registry)


def json_handler() -> ocp.JsonCheckpointHandler:
    """Returns what saves and reads JSON."""
    return ocp.JsonCheckpointHandler(multiprocessing_options=saving_processes())


def as_copies(tree: Any) -> Any:
    """Returns the arrays as `state_handler` saves them: alone, as copies of global ones."""
    if not writes_alone():
        return tree
    first = {device.process_index: device for device in reversed(jax.devices())}
    own, mesh = first[jax.process_index()], Mesh([first[index] for index in sorted(first)], ("processes",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def as_copy(value: jax.Array | np.ndarray) -> jax.Array:
        local = jax.device_put(jax.device_get(value), own)
        return jax.make_array_from_single_device_arrays(local.shape, everywhere, [local])

    return jax.tree.map(as_copy, tree)
