"""Moving arrays between hosts and devices, where the devices may belong to several processes."""

from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxbooth.distributed.run_scope import is_shared


def put(tree: Any, sharding: Sharding) -> Any:
    """Places host arrays that are equal on every process; each hands over only what its own devices hold."""

    def put_array(value: jax.Array | np.ndarray) -> jax.Array:
        if isinstance(value, jax.Array):
            return jax.device_put(value, sharding)
        array = np.asarray(value)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_array, tree)


def broadcast_from_main(values: dict[str, float]) -> dict[str, float]:
    """Returns process 0's numbers on every process, so that all decide alike. Every process must call it."""
    if not is_shared():
        return values
    sent = broadcast_one_to_all(np.array(list(values.values()), np.float32))
    return dict(zip(values, map(float, np.asarray(sent)), strict=True))


def broadcast_arrays(tree: Any) -> Any:
    """Returns process 0's host arrays. Every process must call it, with arrays of the same shapes and dtypes."""
    return jax.tree.map(np.asarray, broadcast_one_to_all(tree)) if is_shared() else tree


def to_host(value: jax.Array | np.ndarray) -> np.ndarray:
    """Returns a whole array on this host. Every process must call it, where the devices are several processes'."""
    if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
        assert isinstance(value.sharding, NamedSharding)
        replicated = NamedSharding(value.sharding.mesh, PartitionSpec())
        value = jax.jit(lambda x: x, out_shardings=replicated)(value)
    return np.asarray(value)
