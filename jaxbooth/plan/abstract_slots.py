"""The step of many subjects as shapes; see `training.slots`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import trained_shapes, unused_parameters
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.data.latents import RowImages
from jaxbooth.params import Params
from jaxbooth.plan.abstract_step import abstract_step, device_bytes
from jaxbooth.sharding import BATCH_AXES, AnyMesh, batch_sharding
from jaxbooth.training.optimizer import make_slot_optimizer, rate_groups
from jaxbooth.training.slots import SlotRows, SlotText, make_slot_dispatch
from jaxbooth.training.spec import TrainStepSpec, make_train_step_spec
from jaxbooth.training.state import TrainState

CAPTIONS = 4  # of a subject: its own, its class's, the empty one, and room


class AbstractSlots(NamedTuple):
    """Everything that a dispatch of slots takes, as `jax.ShapeDtypeStruct`s with shardings.

    Attributes:
        frozen, resident: see `AbstractStep`.
    """

    spec: TrainStepSpec
    state: TrainState
    frozen: dict[str, Params]
    resident: dict[str, Params]
    text: SlotText
    rows: SlotRows
    keys: Any


def abstract_slots(config: Config, base: BaseModel, mesh: AnyMesh, slots: int) -> AbstractSlots:
    """Describes the step of so many subjects on a mesh; see `abstract_step`."""
    alone, rates, side = abstract_step(config, base, mesh), learning_rates(config), config.resolution
    spec = make_train_step_spec(
        base, mesh, alone.spec.slices, alone.spec.optimizer, config.train, config.loss, config.prior, config.text,
        rates, (side, side), slots,
    )  # fmt: skip
    on_slots, on_rows = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    steps, rows = config.train.steps_per_dispatch, spec.layout.index.shape[1]

    def with_slots(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((slots, *leaf.shape), leaf.dtype, sharding=on_slots)

    def of_rows(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((steps, slots, *shape), dtype, sharding=on_rows)

    latents = (rows, *base.latent_shape(side, side))
    images = RowImages(
        of_rows(*latents), of_rows(*latents), of_rows(rows, 6), of_rows(*latents[:-1], 1) if config.data.masks else None
    )
    embeddings = jax.tree.map(with_slots, base.text.abstract_embeddings(CAPTIONS))
    ids = jax.tree.map(with_slots, base.text.abstract_ids(CAPTIONS))
    text = SlotText(
        ids if config.trains_text else embeddings, embeddings if config.trains_text and config.needs_reference else None
    )
    return AbstractSlots(
        spec=spec,
        state=jax.tree.map(with_slots, alone.state),
        frozen=alone.frozen,
        resident=alone.resident,
        text=text,
        rows=SlotRows(
            images,
            of_rows(rows, dtype=jnp.int32),
            {group: of_rows() for group in rate_groups(rates)},
            of_rows(dtype=jnp.bool_),
        ),
        keys=jax.ShapeDtypeStruct((slots, 2), jnp.uint32, sharding=on_slots),
    )


def trace_slots(config: Config, base: BaseModel, step: AbstractSlots) -> Any:
    """Traces a dispatch."""
    no_gradient = unused_parameters(base, trained_shapes(base, config))
    optimizer_of = functools.partial(
        make_slot_optimizer, config.train, no_gradient=no_gradient, b_ratio=config.lora.b_rate_ratio
    )
    dispatch = make_slot_dispatch(step.spec, optimizer_of, config.train.steps_per_dispatch)
    count: Any = jax.ShapeDtypeStruct((), np.int32)
    return dispatch.trace(step.state, step.frozen, step.text, step.rows, step.keys, count)


def slot_bytes(step: AbstractSlots) -> dict[str, int]:
    """Returns kind -> bytes that one device holds; see `persistent_bytes`."""
    return {
        "parameters": device_bytes((step.state.params, step.state.ema)),
        "optimizer": device_bytes(step.state.opt_state),
        "frozen": device_bytes(step.frozen),
        "resident": device_bytes(step.resident),
        "latents": device_bytes((step.text, step.rows)),
    }
