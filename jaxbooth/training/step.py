"""The train step: which rows, the loss, the update; K of them in one dispatch.

Every random choice of a row comes from fold_in(fold_in(root, step), row), so neither the number of devices nor
accumulation nor the length of a dispatch changes what is trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jaxbooth.config import TrainConfig
from jaxbooth.data.latents import Bank, Rows, gather_latents, gather_text, index_in_epochs
from jaxbooth.diffusion.objective import Batch, Losses, reduce_rows, row_losses
from jaxbooth.params import AnyArray, Params, cast_matrices, precision_of, without_prefix
from jaxbooth.pipeline import Base, encode_text
from jaxbooth.sharding import row_shards, rows_over
from jaxbooth.training.optimizer import learning_rate_schedule
from jaxbooth.training.state import TrainState

Metrics = dict[str, Array]
METRICS = ("loss", "instance_loss", "prior_loss", "grad_norm", "learning_rate")


class RowPlan(NamedTuple):
    """The fixed roles of a step's rows; each field is (micro_batches, rows), or (rows,) of one micro-batch.

    Attributes:
        number: 0 .. n-1 for instance rows, n .. n+m-1 for prior rows; it seeds the row.
        is_prior: bool.
        weight: 1/n, lambda/m, or 0 for padding. Summed over all micro-batches, the rows make the objective.
    """

    number: AnyArray
    is_prior: AnyArray
    weight: AnyArray


def plan_rows(instance: int, prior: int, prior_weight: float, micro_batches: int, shards: int) -> RowPlan:
    """Deals rows out to micro-batches, mixes the two kinds evenly and pads to a multiple of `shards`.

    Mixing puts both kinds on every device. Padding rows repeat the first row and weigh nothing.
    """
    numbers = []
    for part in range(micro_batches):
        kinds = [np.arange(part, instance, micro_batches), np.arange(instance + part, instance + prior, micro_batches)]
        places = np.concatenate([(np.arange(len(kind)) + 0.5) / max(len(kind), 1) for kind in kinds])
        numbers.append(np.concatenate(kinds)[np.argsort(places, kind="stable")])
    width = -(-max(map(len, numbers)) // shards) * shards
    number = np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in numbers])
    is_prior = number >= instance
    weight = np.where(is_prior, prior_weight / max(prior, 1), 1 / instance) * (number >= 0)
    return RowPlan(np.maximum(number, 0).astype(np.int32), is_prior, weight.astype(np.float32))


@dataclass(frozen=True)
class Task:
    """What the step needs besides state and bank; all of it static.

    Attributes:
        instances, priors: images of each kind in the bank.
        plan: roles of the rows.
        seed: the run's.
    """

    base: Base
    config: TrainConfig
    instances: int
    priors: int
    plan: RowPlan
    seed: int
    mesh: Mesh


def pick_rows(task: Task, step: Array, number: AnyArray, is_prior: AnyArray, variants: int) -> Rows:
    """Chooses the image and variant of each row of a step; a pure function of (seed, step, number).

    Args:
        number, is_prior: (rows,), from the plan.
        variants: kept variants of each image.
    """
    root = jax.random.key(task.seed)
    n = task.config.batch_size
    m = int(task.plan.is_prior.sum())
    instance_key, prior_key, variant_key = jax.random.split(jax.random.fold_in(root, 0), 3)
    image = index_in_epochs(instance_key, step * n + jnp.where(is_prior, 0, number), task.instances)
    if m:
        position = step * m + jnp.where(is_prior, number - n, 0)
        image = jnp.where(is_prior, task.instances + index_in_epochs(prior_key, position, task.priors), image)
    keys = row_keys(variant_key, step, number)
    return Rows(image, jax.vmap(lambda key: jax.random.randint(key, (), 0, variants))(keys))


def row_keys(key: Array, step: Array, number: AnyArray) -> Array:
    """Returns one key for each row of a step."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(number)


def make_batch(task: Task, bank: Bank, step: Array, part: RowPlan) -> tuple[Batch, Rows]:
    """Draws one micro-batch: posterior sample, noise and timestep of each row."""
    rows = pick_rows(task, step, part.number, part.is_prior, bank.mean.shape[1])
    keys = row_keys(jax.random.fold_in(jax.random.key(task.seed), 1), step, part.number)
    posterior_keys, noise_keys, time_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    shape = bank.mean.shape[2:]

    def normal(keys: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    total = task.base.schedule.num_train_timesteps
    timesteps = jax.vmap(lambda key: jax.random.randint(key, (), 0, total))(time_keys)
    latents = gather_latents(bank, rows, normal(posterior_keys), task.base.vae_config.scaling_factor)
    return Batch(latents, normal(noise_keys), timesteps, part.weight, part.is_prior), rows


def micro_loss(task: Task, cast: Params, bank: Bank, batch: Batch, rows: Rows) -> tuple[Array, Losses]:
    """Returns the micro-batch's share of the objective, and its losses.

    Args:
        cast: parameters in the compute dtype.
    """
    base, config = task.base, task.config
    encode: Callable[[Array], Array] | None = None
    if config.text_encoder:
        text_params = without_prefix("text_encoder", cast)
        encode = lambda ids: encode_text(base, text_params, ids)  # noqa: E731
    text = gather_text(bank, rows, encode)
    noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    unet = base.unet.bind(without_prefix("unet", cast))
    output = unet(noisy, batch.timesteps, text, remat=config.remat)
    space = config.loss_space or base.schedule.prediction_type
    losses = row_losses(output, noisy, batch, base.schedule, space, config.weighting, config.snr_gamma)
    reduced = reduce_rows(losses, batch)
    return reduced.total, reduced


def gradients(task: Task, params: Params, bank: Bank, step: Array) -> tuple[Losses, Params]:
    """Returns losses and float32 gradients of a whole step, summed over its micro-batches."""
    cast = cast_matrices(params, task.base.dtype)

    def one(part: RowPlan) -> tuple[Losses, Params]:
        batch, rows = make_batch(task, bank, step, part)
        batch, rows = jax.lax.with_sharding_constraint((batch, rows), rows_over(task.mesh))
        gradient = jax.grad(lambda values: micro_loss(task, values, bank, batch, rows), has_aux=True)
        with precision_of(task.base.dtype):
            grads, losses = gradient(cast)
        return losses, {name: grad.astype(jnp.float32) for name, grad in grads.items()}

    plan = RowPlan(*map(jnp.asarray, task.plan))
    parts = len(task.plan.number)
    if parts == 1:
        return one(RowPlan(*(field[0] for field in plan)))

    def add(total: Any, part: RowPlan) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    zeros = jax.tree.map(jnp.zeros_like, (Losses(*[jnp.zeros(())] * 3), params))
    (losses, grads), _ = jax.lax.scan(add, zeros, plan)
    # The total is a sum over rows; the two reported terms are means, equal in size in every micro-batch.
    return Losses(losses.total, losses.instance / parts, losses.prior / parts), grads


def follow(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Moves the average; its decay warms up as (1 + step) / (10 + step), so that it forgets the base model early."""
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: value + share * (params[name] - value) for name, value in average.items()}


def train_step(
    task: Task, tx: optax.GradientTransformation, state: TrainState, bank: Bank
) -> tuple[TrainState, Metrics]:
    """One optimizer update; pure."""
    losses, grads = gradients(task, state.params, bank, state.step)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    decay = task.config.ema_decay
    ema = follow(state.ema, params, state.step, decay) if decay else state.ema
    rate = learning_rate_schedule(task.config)(state.step)
    values = (losses.total, losses.instance, losses.prior, optax.tree.norm(grads), rate)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in zip(METRICS, values, strict=True)}
    return TrainState(state.step + 1, params, opt_state, ema), metrics


Dispatch = Callable[[TrainState, Bank, Array], tuple[TrainState, Metrics]]


def make_dispatch(task: Task, tx: optax.GradientTransformation, longest: int, state: TrainState) -> Dispatch:
    """Returns the compiled (state, bank, count) -> (state, metrics) that runs `count` <= `longest` steps.

    `count` is a run-time value, so one program serves every dispatch, the short ones before a checkpoint included.
    Metrics are (longest,) arrays of which the first `count` entries are filled. `state` is donated.
    """

    def run(state: TrainState, bank: Bank, count: Array) -> tuple[TrainState, Metrics]:
        def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = train_step(task, tx, state, bank)
            return state, {name: metrics[name].at[index].set(new[name]) for name in METRICS}

        empty = {name: jnp.zeros(longest, jnp.float32) for name in METRICS}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, None))


def make_task(
    base: Base, config: TrainConfig, prior_rows: int, instances: int, priors: int, seed: int, mesh: Mesh
) -> Task:
    """Plans the rows of a run."""
    plan = plan_rows(config.batch_size, prior_rows, config.prior_weight, config.accumulation, row_shards(mesh))
    return Task(base, config, instances, priors, plan, seed, mesh)
