"""The train state: arrays only, born sharded."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from jaxbooth.params import Params, Shapes, with_prefix, without_prefix
from jaxbooth.sharding import shardings_like
from jaxbooth.training.optimizer import averaged_params, needs_averaging

T = TypeVar("T")


class TrainState(NamedTuple):
    """Everything that a step changes, and everything that a checkpoint holds.

    Attributes:
        step: optimizer updates done, int32 scalar.
        params: float32 masters, named `<component>.<parameter>`.
        opt_state: optax's.
        ema: moving average of `params`, or an empty dict.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    ema: Params


def trained_components(text_encoder: bool) -> tuple[str, ...]:
    """Names the components that a run trains."""
    return ("unet", "text_encoder") if text_encoder else ("unet",)


def masters_of(params: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Flattens component -> parameters into one dict of `<component>.<parameter>`."""
    return {name: value for component in params for name, value in with_prefix(component, params[component]).items()}


def build_state(masters: Params, tx: optax.GradientTransformation, keep_ema: bool) -> TrainState:
    """The state at step 0; pure."""
    average = {name: jnp.copy(value) for name, value in masters.items()} if keep_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), masters, tx.init(masters), average)


def abstract_state(
    shapes: dict[str, Shapes], tx: optax.GradientTransformation, keep_ema: bool, mesh: Mesh
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, without its arrays: what a checkpoint is restored into.

    Args:
        shapes: component -> parameter shapes, of the trained components.
    """
    state = jax.eval_shape(lambda masters: build_state(masters, tx, keep_ema), masters_of(shapes))
    shardings = shardings_like(state, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def initial_state(
    params: dict[str, Params], tx: optax.GradientTransformation, keep_ema: bool, mesh: Mesh
) -> TrainState:
    """Returns the state at step 0; each array is created on the devices that the partition rule gives it.

    Args:
        params: component -> float32 parameters of the trained components. They are donated: use the state's after this.
    """
    masters = masters_of(params)
    shardings = shardings_like(jax.eval_shape(lambda values: build_state(values, tx, keep_ema), masters), mesh)
    build = jax.jit(lambda values: build_state(values, tx, keep_ema), out_shardings=shardings, donate_argnums=0)
    return build(masters)


def needed_for_result(state: TrainState) -> dict[str, Any]:
    """Returns the fields of the state that `result_params` reads."""
    if state.ema:
        return {"ema": state.ema}
    if needs_averaging(state.opt_state):
        return {"params": state.params, "opt_state": state.opt_state}
    return {"params": state.params}


def result_params(state: TrainState) -> dict[str, Params]:
    """Returns component -> the parameters to sample and export: the average if one is kept."""
    values = state.ema or averaged_params(state.opt_state, state.params)
    components = dict.fromkeys(name.split(".")[0] for name in values)
    return {component: without_prefix(component, values) for component in components}


@jax.jit
def checksums(masters: Params) -> dict[str, Array]:
    """Returns component -> a uint32 sum over the bits of its float32 parameters: equal only if nothing moved."""

    def bits(value: Array) -> Array:
        words = jax.lax.bitcast_convert_type(value.astype(jnp.float32), jnp.uint32)
        return jnp.sum(words, dtype=jnp.uint32)

    totals: dict[str, Array] = {}
    for name, value in masters.items():
        component = name.split(".")[0]
        totals[component] = totals.get(component, jnp.uint32(0)) + bits(value)
    return totals
