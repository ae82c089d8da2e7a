"""The train step: the loss of a batch, its gradients, the update; several steps in one dispatch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int, UInt32

from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.data.latents import LatentCache, gather_text
from jaxbooth.diffusion.loss import Losses, RowLosses, per_example_loss, reduce_losses
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import AnyArray, Array, Params, by_component, cast_matrices, join, precision_of
from jaxbooth.sharding import AnyMesh, batch_sharding, batch_shards, mesh_context, param_shardings
from jaxbooth.training.batch import BatchSource, NoisedBatch, make_batch
from jaxbooth.training.layout import BatchLayout
from jaxbooth.training.reference import REFERENCE_DENOISER
from jaxbooth.training.spec import TrainStepSpec
from jaxbooth.training.state import TrainState
from jaxbooth.training.weight_anchor import WEIGHT_ANCHOR, squared_change

Metrics = dict[str, Array]


def microbatch_loss(
    spec: TrainStepSpec, cast: Params, frozen: dict[str, Params], cache: LatentCache, batch: NoisedBatch
) -> tuple[Float[Array, ""], Losses]:
    """Returns the micro-batch's share of the objective, and its losses.

    Args:
        cast: trained parameters in the compute dtype.
    """
    params = join(frozen, by_component(cast))
    shards = batch_shards(spec.mesh)
    encode = (lambda ids: spec.base.text.encode(params, ids)) if spec.trains_text else None
    text = gather_text(cache.text, batch.caption, encode, shards)
    frozen_text = None
    if spec.needs_frozen_prediction:
        frozen_text = text if cache.frozen_text is None else gather_text(cache.frozen_text, batch.caption, None)
    row_losses = denoising_losses(spec, params, frozen, text, frozen_text, batch, shards)
    losses = reduce_losses(row_losses, batch.examples, spec.loss_spec, spec.reported_roles)
    return losses.total, losses


def denoising_losses(
    spec: TrainStepSpec,
    params: dict[str, Params],
    frozen: dict[str, Params],
    text: TextEmbeddings,
    frozen_text: TextEmbeddings | None,
    batch: NoisedBatch,
    groups: int,
) -> RowLosses:
    """Returns the loss of each row.

    Args:
        params: component -> parameters, of which the denoiser's are read.
        text: of each row; `frozen_text` as the frozen model sees it, where it is asked for its prediction.
        groups: see `frozen_prediction`.
    """
    base, examples = spec.base, batch.examples
    conditions = base.denoiser_conditioning(text, batch.time_ids)
    noisy = base.schedule.add_noise(examples.latents, examples.noise, examples.timesteps)
    denoiser_input = base.schedule.add_noise(examples.latents, batch.input_noise, examples.timesteps)
    denoiser = base.denoiser.bind(params[base.denoiser_name])
    timesteps = base.schedule.network_timesteps(examples.timesteps)
    output = denoiser(denoiser_input, timesteps, *conditions, remat=spec.remat)
    target = None
    if frozen_text is not None:
        target = frozen_prediction(spec, frozen, frozen_text, batch, denoiser_input, groups)
    return per_example_loss(output, noisy, examples, base.schedule, spec.loss_spec, target)


def frozen_prediction(
    spec: TrainStepSpec,
    frozen: dict[str, Params],
    text: TextEmbeddings,
    batch: NoisedBatch,
    denoiser_input: Latents,
    groups: int,
) -> Latents:
    """Returns the untrained model's output on the rows that need it, and zeros or its output on the others.

    Args:
        groups: consecutive parts of the batch, of one layout. Every one begins with the rows that do not need it; the
            model sees what comes after as many as all groups have.
    """
    base = spec.base
    conditions = base.denoiser_conditioning(text, batch.time_ids)
    denoiser = base.denoiser.bind(frozen.get(REFERENCE_DENOISER) or frozen[base.denoiser_name])
    first = first_distilled_row(spec)

    def by_group(rows: Array) -> Array:
        return rows.reshape(groups, -1, *rows.shape[1:])

    def distilled_part(rows: Array) -> Array:
        return by_group(rows)[:, first:].reshape(-1, *rows.shape[1:])

    inputs = (denoiser_input, base.schedule.network_timesteps(batch.examples.timesteps), *conditions)
    output = denoiser(*jax.tree.map(distilled_part, inputs))
    zeros = jnp.zeros_like(by_group(denoiser_input)[:, :first])
    return jnp.concatenate([zeros, by_group(output)], axis=1).reshape(denoiser_input.shape)


def first_distilled_row(spec: TrainStepSpec) -> int:
    """Returns how many rows at the beginning of every shard of the layout need no prediction of the frozen model."""
    if spec.outside_mask_weight:  # instance rows come first, and they need it
        return 0
    is_distilled = np.isin(spec.layout.role, spec.distilled).any(axis=0)
    return int(is_distilled.reshape(spec.layout_shards, -1).any(axis=0).argmax())


def gradients(
    spec: TrainStepSpec,
    params: Params,
    frozen: dict[str, Params],
    source: BatchSource,
    key: UInt32[Array, "2"],
    step: Int[Array, ""],
) -> tuple[Losses, Params]:
    """Returns losses and float32 gradients of a whole step, summed over its micro-batches."""
    cast = cast_matrices(params, spec.base.dtype)

    def microbatch_gradients(layout: BatchLayout) -> tuple[Losses, Params]:
        batch = make_batch(spec, source, key, step, layout)
        batch = jax.lax.with_sharding_constraint(batch, batch_sharding(spec.mesh))
        gradient = jax.grad(lambda values: microbatch_loss(spec, values, frozen, source.cache, batch), has_aux=True)
        with precision_of(spec.base.dtype), mesh_context(spec.mesh):
            grads, losses = gradient(cast)
        return losses, shard_gradients(grads, spec.mesh)

    layouts = BatchLayout(*map(jnp.asarray, spec.layout))
    micro_batches = len(spec.layout.index)
    if micro_batches == 1:
        return microbatch_gradients(BatchLayout(*(field[0] for field in layouts)))

    def add(total: Any, layout: BatchLayout) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, microbatch_gradients(layout)), None

    no_losses = Losses(jnp.zeros(()), dict.fromkeys(spec.row_terms, jnp.zeros(())))
    zeros = jax.tree.map(jnp.zeros_like, (no_losses, params))
    (losses, grads), _ = jax.lax.scan(add, zeros, layouts)
    # The total is a sum over rows; the reported terms are means, over as many rows in every micro-batch.
    return Losses(losses.total, {name: value / micro_batches for name, value in losses.terms.items()}), grads


def with_weight_anchor(
    spec: TrainStepSpec, losses: Losses, grads: Params, params: Params, frozen: dict[str, Params]
) -> tuple[Losses, Params]:
    """Adds the pull to the base model's weights to the losses and gradients of a step."""
    change, pull = jax.value_and_grad(lambda values: squared_change(values, frozen, spec.base.lora))(params)
    weight = spec.weight_anchor
    pulled = {name: grad + weight * pull[name] for name, grad in grads.items()}
    return Losses(losses.total + weight * change, losses.terms | {WEIGHT_ANCHOR: change}), pulled


def shard_gradients(grads: Params, mesh: AnyMesh) -> Params:
    """Returns float32 gradients, sharded like their parameters."""
    sharding_of = param_shardings(mesh)
    return {
        name: jax.lax.with_sharding_constraint(grad.astype(jnp.float32), sharding_of(name, grad.shape))
        for name, grad in grads.items()
    }


def ema_update(average: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """Moves the average; its decay warms up as (1 + step) / (10 + step), so that it forgets the base model early."""
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: value + share * (params[name] - value) for name, value in average.items()}


def train_step(
    spec: TrainStepSpec, state: TrainState, frozen: dict[str, Params], source: BatchSource, key: UInt32[Array, "2"]
) -> tuple[TrainState, Metrics]:
    """Makes one optimizer update; pure."""
    losses, grads = gradients(spec, state.params, frozen, source, key, state.step)
    if spec.weight_anchor:
        losses, grads = with_weight_anchor(spec, losses, grads, state.params, frozen)
        grads = shard_gradients(grads, spec.mesh)
    return apply_gradients(spec, spec.optimizer, spec.learning_rate(state.step), state, losses, grads)


def apply_gradients(
    spec: TrainStepSpec,
    optimizer: optax.GradientTransformation,
    learning_rate: Any,
    state: TrainState,
    losses: Losses,
    grads: Params,
) -> tuple[TrainState, Metrics]:
    """Makes the update of one step by its gradients.

    Args:
        learning_rate: to report.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, state.step, spec.ema_decay) if spec.ema_decay else state.ema
    values = {
        "loss": losses.total,
        **losses.terms,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate,
    }
    metrics = {name: jnp.asarray(values[name], jnp.float32) for name in metric_names(spec)}
    return TrainState(state.step + 1, params, opt_state, ema), metrics


def metric_names(spec: TrainStepSpec) -> tuple[str, ...]:
    """Returns the metrics of a step, in the order in which they are written."""
    anchor = (WEIGHT_ANCHOR,) if spec.weight_anchor else ()
    return ("loss", *spec.row_terms, *anchor, "grad_norm", "learning_rate")


Dispatch = Callable[[TrainState, dict[str, Params], BatchSource, AnyArray, np.integer], tuple[TrainState, Metrics]]


def make_dispatch(spec: TrainStepSpec, max_steps: int, state: TrainState) -> Any:
    """Returns the jitted (state, frozen, source, key, count) -> (state, metrics) of `count` <= `max_steps` steps.

    `count` is a run-time value, so one program serves every dispatch, the short ones before a checkpoint included.
    Metrics are (max_steps,) arrays of which the first `count` entries are filled. `state` is donated.
    """

    names = metric_names(spec)

    def run_steps(
        state: TrainState,
        frozen: dict[str, Params],
        source: BatchSource,
        key: UInt32[Array, "2"],
        count: Int[Array, ""],
    ) -> tuple[TrainState, Metrics]:
        def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = train_step(spec, state, frozen, source, key)
            return state, {name: metrics[name].at[index].set(new[name]) for name in names}

        empty = {name: jnp.zeros(max_steps, jnp.float32) for name in names}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(run_steps, donate_argnums=0, out_shardings=(shardings, None))
