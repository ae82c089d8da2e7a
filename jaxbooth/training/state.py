"""The train state: arrays only, born sharded."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int, Shaped, UInt32

from jaxbooth.params import Params, Shapes, by_component, flatten_components
from jaxbooth.sharding import AnyMesh, shardings_like
from jaxbooth.training.optimizer import averaged_params, needs_averaging

LEAF_FACTOR = 2654435761  # odd, so that multiplying by it loses no bit


class TrainState(NamedTuple):
    """Everything that a step changes, and everything that a checkpoint holds.

    Attributes:
        step: optimizer updates done, int32 scalar.
        params: float32 masters, named `<component>.<parameter>`.
        opt_state: optax's.
        ema: moving average of `params`, or an empty dict.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params


def build_state(masters: Params, optimizer: optax.GradientTransformation, keep_ema: bool) -> TrainState:
    """Returns the state at step 0; pure."""
    average = {name: jnp.copy(value) for name, value in masters.items()} if keep_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), masters, optimizer.init(masters), average)


def abstract_state(
    shapes: dict[str, Shapes], optimizer: optax.GradientTransformation, keep_ema: bool, mesh: AnyMesh
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without its arrays: what a checkpoint is restored into.

    Args:
        shapes: component -> names and shapes of what is trained.
    """
    state = jax.eval_shape(lambda masters: build_state(masters, optimizer, keep_ema), flatten_components(shapes))
    shardings = shardings_like(state, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def initial_state(
    params: dict[str, Params], optimizer: optax.GradientTransformation, keep_ema: bool, mesh: Mesh
) -> TrainState:
    """Returns the state at step 0; each array is created on the devices that the partition rule gives it.

    Args:
        params: component -> float32 trained parameters. They are donated: use the state's after this.
    """
    masters = flatten_components(params)
    shardings = shardings_like(jax.eval_shape(lambda values: build_state(values, optimizer, keep_ema), masters), mesh)
    build = jax.jit(lambda values: build_state(values, optimizer, keep_ema), out_shardings=shardings, donate_argnums=0)
    return build(masters)


def result_fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields of the state that `result_params` reads."""
    if state.ema:
        return {"ema": state.ema}
    if needs_averaging(state.opt_state):
        return {"params": state.params, "opt_state": state.opt_state}
    return {"params": state.params}


def result_params(state: TrainState) -> dict[str, Params]:
    """Returns component -> the trained parameters to sample and export: the average if one is kept."""
    return by_component(state.ema or averaged_params(state.opt_state, state.params))


def tree_bytes(tree: object) -> int:
    """Returns the size of all arrays of a tree, over all devices."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@jax.jit
def checksums(masters: Params) -> dict[str, UInt32[Array, ""]]:
    """Returns component -> a uint32 sum over the bits of its float32 parameters: equal only if nothing moved."""
    totals: dict[str, Array] = {}
    for name, value in masters.items():
        component = name.split(".")[0]
        totals[component] = totals.get(component, jnp.uint32(0)) + bit_sum(value.astype(jnp.float32))
    return totals


@jax.jit
def field_sums(fields: dict[str, Any]) -> dict[str, UInt32[Array, ""]]:
    """Returns field of a train state -> a uint32 sum over all its bits, the same on every mesh.

    One flipped bit changes it, and so do arrays that changed places.
    """
    totals = {}
    for name, tree in fields.items():
        total = jnp.uint32(0)
        for leaf in jax.tree.leaves(tree):
            total = total * jnp.uint32(LEAF_FACTOR) + bit_sum(leaf)
        totals[name] = total
    return totals


def bit_sum(value: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Returns the uint32 sum over the words of an array, which are as long as its elements."""
    words = value if value.dtype == bool else jax.lax.bitcast_convert_type(value, f"uint{8 * value.dtype.itemsize}")
    return jnp.sum(words, dtype=jnp.uint32)
