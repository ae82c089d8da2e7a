"""Many subjects in one step: each slot is a run of its own, and all of them share the frozen base model.

Adapters, optimizer states and batches have a leading axis of slots. Only the adapters' own products are made slot by
slot; the base model sees the rows of all slots as one batch, and reads its weights once. What differs between the
subjects is data: their rows, keys, steps and learning rates. So a subject takes the place of another without a new
compilation, and trains as it would alone, up to the rounding of products with another number of rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int, UInt32

from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.config.rates import Group
from jaxbooth.data.latents import RowImages
from jaxbooth.diffusion.loss import Losses, reduce_losses
from jaxbooth.params import AnyArray, Array, Params, by_component, cast_matrices, join, precision_of
from jaxbooth.sharding import batch_sharding, mesh_context
from jaxbooth.training.batch import NoisedBatch, noise_rows
from jaxbooth.training.layout import BatchLayout
from jaxbooth.training.spec import TrainStepSpec
from jaxbooth.training.state import TrainState
from jaxbooth.training.step import Metrics, apply_gradients, denoising_losses, metric_names, with_weight_anchor

Rates = Mapping[Group, Float[AnyArray, "*steps slots"]]
OptimizerOf = Callable[[Any], optax.GradientTransformation]  # of the rates of one slot's step


class SlotText(NamedTuple):
    """The captions of each slot's subject, (slots, captions, ...); see `LatentCache`."""

    text: TextEmbeddings | TokenIds
    frozen_text: TextEmbeddings | None


class SlotRows(NamedTuple):
    """What a step is given: (slots, ...), or (steps, slots, ...) for those of a dispatch.

    Attributes:
        images: the augmentation that each row takes, (slots, rows, ...).
        caption: row of the slot's text.
        rates: learning rate of each group of parameters, (slots,).
        active: whether a slot trains; others stay as they are.
    """

    images: RowImages
    caption: Int[AnyArray, "*steps slots rows"]
    rates: Rates
    active: Bool[AnyArray, "*steps slots"]


def slot_gradients(
    spec: TrainStepSpec,
    state: TrainState,
    frozen: dict[str, Params],
    text: SlotText,
    rows: SlotRows,
    keys: UInt32[AnyArray, "slots 2"],
) -> tuple[Losses, Params]:
    """Returns the losses of every slot, (slots,), and float32 gradients of its adapters, (slots, ...)."""
    layout = BatchLayout(*(jnp.asarray(field[0]) for field in spec.layout))
    slots, on_slots = spec.slots, batch_sharding(spec.mesh)

    def noised(images: RowImages, caption: Array, key: Array, step: Array) -> NoisedBatch:
        return noise_rows(spec, images, jnp.ones(len(caption)), caption, key, step, layout)

    batches = jax.vmap(noised)(rows.images, jnp.asarray(rows.caption), jnp.asarray(keys), state.step)
    row_text, frozen_text = jax.vmap(lambda tree, caption: jax.tree.map(lambda column: column[caption], tree))(
        (text.text, text.frozen_text if spec.needs_frozen_prediction else None), batches.caption
    )
    together = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (batches, row_text, frozen_text))
    batch, row_text, frozen_text = jax.lax.with_sharding_constraint(together, on_slots)

    def objective(cast: Params) -> tuple[Float[Array, ""], Losses]:
        params = join(frozen, by_component(cast))
        embeddings = spec.base.text.encode(params, row_text) if spec.trains_text else row_text
        of_frozen = frozen_text if spec.trains_text else row_text
        asked = of_frozen if spec.needs_frozen_prediction else None
        row_losses = denoising_losses(spec, params, frozen, embeddings, asked, batch, groups=slots)
        by_slot = jax.tree.map(lambda leaf: leaf.reshape(slots, -1), row_losses)
        reduce = jax.vmap(lambda row_losses, rows: reduce_losses(row_losses, rows, spec.loss_spec, spec.reported_roles))
        losses = reduce(by_slot, batches.examples)
        return jnp.sum(losses.total), losses  # a slot's adapters change its own losses alone

    with precision_of(spec.base.dtype), mesh_context(spec.mesh):
        grads, losses = jax.grad(objective, has_aux=True)(cast_matrices(state.params, spec.base.dtype))
    float32 = {name: grad.astype(jnp.float32) for name, grad in grads.items()}
    return losses, jax.lax.with_sharding_constraint(float32, on_slots)


def slot_step(
    spec: TrainStepSpec,
    optimizer_of: OptimizerOf,
    state: TrainState,
    frozen: dict[str, Params],
    text: SlotText,
    rows: SlotRows,
    keys: UInt32[AnyArray, "slots 2"],
) -> tuple[TrainState, Metrics]:
    """Makes one optimizer update of every active slot; pure.

    Args:
        state: of every slot, (slots, ...).

    Returns:
        The state, and metrics (slots,).
    """
    losses, grads = slot_gradients(spec, state, frozen, text, rows, keys)

    def update(state: TrainState, losses: Losses, grads: Params, rates: Any) -> tuple[TrainState, Metrics]:
        if spec.weight_anchor:
            losses, grads = with_weight_anchor(spec, losses, grads, state.params, frozen)
        return apply_gradients(spec, optimizer_of(rates), rates["denoiser"], state, losses, grads)

    updated, metrics = jax.vmap(update)(state, losses, grads, rows.rates)

    def keep_resting(new: Array, old: Array) -> Array:
        active = jnp.asarray(rows.active)
        return jnp.where(active.reshape(-1, *(1 for _ in old.shape[1:])), new, old)

    return jax.tree.map(keep_resting, updated, state), metrics


def make_slot_dispatch(spec: TrainStepSpec, optimizer_of: OptimizerOf, max_steps: int) -> Any:
    """Returns the jitted (state, frozen, text, rows, keys, count) -> (state, metrics) of `count` <= `max_steps` steps.

    Rows are those of `max_steps` steps, metrics (max_steps, slots); the first `count` are used. `state` is donated.
    """
    names = metric_names(spec)

    def run_steps(
        state: TrainState,
        frozen: dict[str, Params],
        text: SlotText,
        rows: SlotRows,
        keys: UInt32[Array, "slots 2"],
        count: Int[Array, ""],
    ) -> tuple[TrainState, Metrics]:
        def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            step_rows = jax.tree.map(lambda leaf: leaf[index], rows)
            state, new = slot_step(spec, optimizer_of, state, frozen, text, step_rows, keys)
            return state, {name: metrics[name].at[index].set(new[name]) for name in names}

        empty = {name: jnp.zeros((max_steps, spec.slots), jnp.float32) for name in names}
        state, metrics = jax.lax.fori_loop(0, count, body, (state, empty))
        return jax.lax.with_sharding_constraint(state, batch_sharding(spec.mesh)), metrics

    return jax.jit(run_steps, donate_argnums=0)
