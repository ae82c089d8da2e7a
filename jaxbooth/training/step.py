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
from jaxbooth.diffusion.loss import Losses, per_example_loss, reduce_losses
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import AnyArray, Array, Params, by_component, cast_matrices, join, precision_of
from jaxbooth.sharding import AnyMesh, batch_sharding, batch_shards, mesh_context, param_shardings
from jaxbooth.training.batch import BatchSource, NoisedBatch, make_batch
from jaxbooth.training.layout import BatchLayout
from jaxbooth.training.spec import TrainStepSpec
from jaxbooth.training.state import TrainState

Metrics = dict[str, Array]
METRICS = ("loss", "instance_loss", "prior_loss", "grad_norm", "learning_rate")
REFERENCE_DENOISER = "reference_denoiser"  # a frozen component: the denoiser before training, where it is trained


def microbatch_loss(
    spec: TrainStepSpec, cast: Params, frozen: dict[str, Params], cache: LatentCache, batch: NoisedBatch
) -> tuple[Float[Array, ""], Losses]:
    """Returns the micro-batch's share of the objective, and its losses.

    Args:
        cast: trained parameters in the compute dtype.
    """
    base, examples = spec.base, batch.examples
    params = join(frozen, by_component(cast))
    encode = (lambda ids: base.text.encode(params, ids)) if spec.trains_text else None
    text = gather_text(cache.text, batch.caption, encode, batch_shards(spec.mesh))
    conditions = base.denoiser_conditioning(text, batch.time_ids)
    noisy = base.schedule.add_noise(examples.latents, examples.noise, examples.timesteps)
    denoiser_input = base.schedule.add_noise(examples.latents, batch.input_noise, examples.timesteps)
    denoiser = base.denoiser.bind(params[base.denoiser_name])
    timesteps = base.schedule.network_timesteps(examples.timesteps)
    output = denoiser(denoiser_input, timesteps, *conditions, remat=spec.remat)
    target = frozen_prediction(spec, frozen, cache, batch, denoiser_input) if spec.distills_prior else None
    losses = reduce_losses(per_example_loss(output, noisy, examples, base.schedule, spec.loss_spec, target), examples)
    return losses.total, losses


def frozen_prediction(
    spec: TrainStepSpec, frozen: dict[str, Params], cache: LatentCache, batch: NoisedBatch, denoiser_input: Latents
) -> Latents:
    """Returns the untrained model's output on prior rows, and zeros or its output on the others.

    Every shard of the batch begins with instance rows; the model sees what comes after as many as all of them have.
    """
    base = spec.base
    text = cache.text if cache.frozen_text is None else cache.frozen_text
    assert isinstance(text, TextEmbeddings)
    conditions = base.denoiser_conditioning(gather_text(text, batch.caption, None), batch.time_ids)
    denoiser = base.denoiser.bind(frozen.get(REFERENCE_DENOISER) or frozen[base.denoiser_name])
    shards = batch_shards(spec.mesh)
    first_prior = int(spec.layout.is_prior.any(axis=0).reshape(shards, -1).any(axis=0).argmax())

    def by_shard(rows: Array) -> Array:
        return rows.reshape(shards, -1, *rows.shape[1:])

    def prior_part(rows: Array) -> Array:
        return by_shard(rows)[:, first_prior:].reshape(-1, *rows.shape[1:])

    inputs = (denoiser_input, base.schedule.network_timesteps(batch.examples.timesteps), *conditions)
    output = denoiser(*jax.tree.map(prior_part, inputs))
    zeros = jnp.zeros_like(by_shard(denoiser_input)[:, :first_prior])
    return jnp.concatenate([zeros, by_shard(output)], axis=1).reshape(denoiser_input.shape)


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

    zeros = jax.tree.map(jnp.zeros_like, (Losses(*[jnp.zeros(())] * 3), params))
    (losses, grads), _ = jax.lax.scan(add, zeros, layouts)
    # The total is a sum over rows; the two reported terms are means, equal in size in every micro-batch.
    return Losses(losses.total, losses.instance / micro_batches, losses.prior / micro_batches), grads


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
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    ema = ema_update(state.ema, params, state.step, spec.ema_decay) if spec.ema_decay else state.ema
    values = {
        "loss": losses.total,
        "instance_loss": losses.instance,
        "prior_loss": losses.prior,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": spec.learning_rate(state.step),
    }
    metrics = {name: jnp.asarray(values[name], jnp.float32) for name in METRICS}
    return TrainState(state.step + 1, params, opt_state, ema), metrics


Dispatch = Callable[[TrainState, dict[str, Params], BatchSource, AnyArray, np.integer], tuple[TrainState, Metrics]]


def make_dispatch(spec: TrainStepSpec, max_steps: int, state: TrainState) -> Any:
    """Returns the jitted (state, frozen, source, key, count) -> (state, metrics) of `count` <= `max_steps` steps.

    `count` is a run-time value, so one program serves every dispatch, the short ones before a checkpoint included.
    Metrics are (max_steps,) arrays of which the first `count` entries are filled. `state` is donated.
    """

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
            return state, {name: metrics[name].at[index].set(new[name]) for name in METRICS}

        empty = {name: jnp.zeros(max_steps, jnp.float32) for name in METRICS}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(run_steps, donate_argnums=0, out_shardings=(shardings, None))
