"""The train step: the batch, the loss, the update; K of them in one dispatch.

What a row trains on is a pure function of (seed, step, row); see `jaxbooth.training.layout`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.config.run_config import Config
from jaxbooth.data.latents import Bank, gather_latents, gather_text
from jaxbooth.diffusion.loss import Batch, Losses, LossSpec, reduce_rows, row_losses
from jaxbooth.diffusion.noise import TimestepSampling, offset_noise, perturb, sample_timesteps
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import Params, by_component, cast_matrices, join, precision_of
from jaxbooth.prng import root_key
from jaxbooth.sharding import AnyMesh, batch_sharding, batch_shards, mesh_context, param_shardings
from jaxbooth.training.layout import RowPlan, Streams, pick_rows, plan_rows, row_keys
from jaxbooth.training.optimizer import reported_rate
from jaxbooth.training.state import TrainState

Metrics = dict[str, Array]
METRICS = ("loss", "instance_loss", "prior_loss", "grad_norm", "learning_rate")
REFERENCE = "reference"  # among the frozen components: the UNet before training, where it is trained itself


@dataclass(frozen=True)
class Task:
    """What the step needs besides state, frozen parameters and bank; all of it static.

    Attributes:
        streams: where the subjects' and the classes' images lie in the bank.
        plan: roles of the rows.
    """

    base: BaseModel
    config: Config
    streams: Streams
    plan: RowPlan
    mesh: AnyMesh

    @property
    def loss(self) -> LossSpec:
        """The objective's settings."""
        chosen = self.config.loss
        space = chosen.prediction_space or self.base.schedule.prediction_type
        return LossSpec(
            space, chosen.weighting, chosen.prior_weighting, chosen.snr_gamma, chosen.loss_type, chosen.huber_c
        )

    @property
    def timesteps(self) -> TimestepSampling:
        """How timesteps are drawn."""
        chosen = self.config.loss
        high = None if chosen.max_timestep is None else chosen.max_timestep + 1
        return TimestepSampling(
            chosen.timestep_sampling, chosen.timestep_mean, chosen.timestep_std, chosen.min_timestep, high
        )


class Drawn(NamedTuple):
    """One micro-batch.

    Attributes:
        seen: the noise that the network's input is made with; `batch.noise` unless it is perturbed.
        caption: (rows,) int32, into the bank's text.
        time_ids: (rows, 6) float32.
    """

    batch: Batch
    seen: Latents
    caption: Array
    time_ids: Array


def make_batch(task: Task, bank: Bank, step: Array, bank_step: Array, part: RowPlan) -> Drawn:
    """Draws one micro-batch: image, caption, posterior sample, noise and timestep of each row.

    Args:
        step: of the run; it seeds the noise.
        bank_step: earlier steps that took rows from this bank; it seeds the choice of images.
    """
    config, images, root = task.config, bank.images, root_key(bank.seed)
    counts = (config.train.batch_size, config.prior_rows)
    rows = pick_rows(task.streams, jax.random.fold_in(root, 0), bank_step, part, counts, variants=images.mean.shape[1])
    keys = row_keys(jax.random.fold_in(root, 1), step, part.number)
    posterior, plain, time, offset, extra, drop = jax.vmap(lambda key: jax.random.split(key, 6))(keys).T
    shape = images.mean.shape[2:]

    def normal(keys: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    noise = offset_noise(normal(plain), offset, config.loss.noise_offset)
    timesteps = sample_timesteps(time, task.base.schedule.num_train_timesteps, task.timesteps)
    latents = gather_latents(images, rows, normal(posterior), task.base.vae_config.scaling_factor)
    mask = None if images.masks is None else jnp.asarray(images.masks)[rows.image, rows.variant]
    batch = Batch(latents, noise, timesteps, part.weight * rows.weight, part.is_prior, mask)
    caption, time_ids = jnp.asarray(bank.caption)[rows.image], jnp.asarray(images.time_ids)[rows.image, rows.variant]
    if config.text.caption_dropout:
        dropped = jax.vmap(jax.random.uniform)(drop) < config.text.caption_dropout
        caption = jnp.where(dropped, len(jax.tree.leaves(bank.text)[0]) - 1, caption)
    return Drawn(batch, perturb(noise, extra, config.loss.input_perturbation), caption, time_ids)


def micro_loss(task: Task, cast: Params, frozen: dict[str, Params], bank: Bank, drawn: Drawn) -> tuple[Array, Losses]:
    """Returns the micro-batch's share of the objective, and its losses.

    Args:
        cast: trained parameters in the compute dtype.
    """
    base, batch, config = task.base, drawn.batch, task.config
    params = join(frozen, by_component(cast))
    encode = (lambda ids: base.text.encode(params, ids)) if config.trains_text else None
    text = gather_text(bank.text, drawn.caption, encode, batch_shards(task.mesh))
    context, added = base.denoiser_conditioning(text, drawn.time_ids)
    noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    seen = base.schedule.add_noise(batch.latents, drawn.seen, batch.timesteps)
    denoiser = base.denoiser.bind(params[base.denoiser_name])
    output = denoiser(seen, batch.timesteps, context, added, config.train.remat_policy)
    target = None
    if config.loss.prior_target == "frozen" and config.prior_rows:
        target = frozen_prediction(task, frozen, bank, drawn, seen)
    reduced = reduce_rows(row_losses(output, noisy, batch, base.schedule, task.loss, target), batch)
    return reduced.total, reduced


def frozen_prediction(task: Task, frozen: dict[str, Params], bank: Bank, drawn: Drawn, seen: Latents) -> Array:
    """Returns the untrained model's output on prior rows, and zeros or its output on the others.

    Every shard of the batch begins with instance rows; it computes what comes after as many as all of them have.
    """
    text = bank.text if bank.frozen_text is None else bank.frozen_text
    assert isinstance(text, TextEmbeddings)
    context, added = task.base.denoiser_conditioning(gather_text(text, drawn.caption, None), drawn.time_ids)
    model = task.base.denoiser.bind(frozen.get(REFERENCE) or frozen[task.base.denoiser_name])
    shards = batch_shards(task.mesh)
    first = int(task.plan.is_prior.any(axis=0).reshape(shards, -1).any(axis=0).argmax())

    def apart(x: Latents) -> Latents:
        return x.reshape(shards, -1, *x.shape[1:])

    def later(x: Latents) -> Latents:
        return apart(x)[:, first:].reshape(-1, *x.shape[1:])

    output = model(*jax.tree.map(later, (seen, drawn.batch.timesteps, context, added)))
    return jnp.concatenate([jnp.zeros_like(apart(seen)[:, :first]), apart(output)], axis=1).reshape(seen.shape)


def gradients(
    task: Task, params: Params, frozen: dict[str, Params], bank: Bank, step: Array, bank_step: Array
) -> tuple[Losses, Params]:
    """Returns losses and float32 gradients of a whole step, summed over its micro-batches."""
    cast = cast_matrices(params, task.base.dtype)

    def one(part: RowPlan) -> tuple[Losses, Params]:
        drawn = make_batch(task, bank, step, bank_step, part)
        drawn = jax.lax.with_sharding_constraint(drawn, batch_sharding(task.mesh))
        gradient = jax.grad(lambda values: micro_loss(task, values, frozen, bank, drawn), has_aux=True)
        with precision_of(task.base.dtype), mesh_context(task.mesh):
            grads, losses = gradient(cast)
        return losses, placed(grads, task.mesh)

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


def placed(grads: Params, mesh: AnyMesh) -> Params:
    """Returns float32 gradients where their parameters are."""
    place = param_shardings(mesh)
    return {
        name: jax.lax.with_sharding_constraint(grad.astype(jnp.float32), place(name, grad.shape))
        for name, grad in grads.items()
    }


def follow(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Moves the average; its decay warms up as (1 + step) / (10 + step), so that it forgets the base model early."""
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: value + share * (params[name] - value) for name, value in average.items()}


def train_step(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    frozen: dict[str, Params],
    bank: Bank,
    bank_step: Array,
) -> tuple[TrainState, Metrics]:
    """One optimizer update; pure."""
    losses, grads = gradients(task, state.params, frozen, bank, state.step, bank_step)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    decay = task.config.train.ema_decay
    ema = follow(state.ema, params, state.step, decay) if decay else state.ema
    rate = reported_rate(task.config)(state.step)
    values = (losses.total, losses.instance, losses.prior, optax.tree.norm(grads), rate)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in zip(METRICS, values, strict=True)}
    return TrainState(state.step + 1, params, opt_state, ema), metrics


Dispatch = Callable[[TrainState, dict[str, Params], Bank, np.integer, np.integer], tuple[TrainState, Metrics]]


def make_dispatch(task: Task, tx: optax.GradientTransformation, longest: int, state: TrainState) -> Any:
    """Returns the jitted (state, frozen, bank, count, shift) -> (state, metrics) that runs `count` <= `longest` steps.

    `count` and `shift` are run-time values, so one program serves every dispatch, the short ones before a checkpoint
    included. Metrics are (longest,) arrays of which the first `count` entries are filled. `state` is donated.
    `shift` is how many of the steps before took their rows from another bank.
    """

    def run(
        state: TrainState, frozen: dict[str, Params], bank: Bank, count: Array, shift: Array
    ) -> tuple[TrainState, Metrics]:
        def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = train_step(task, tx, state, frozen, bank, state.step - shift)
            return state, {name: metrics[name].at[index].set(new[name]) for name in METRICS}

        empty = {name: jnp.zeros(longest, jnp.float32) for name in METRICS}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, None))


def make_task(base: BaseModel, config: Config, streams: Streams, mesh: AnyMesh) -> Task:
    """Plans the rows of a run."""
    train = config.train
    plan = plan_rows(
        train.batch_size, config.prior_rows, train.prior_weight, train.gradient_accumulation_steps, batch_shards(mesh)
    )
    return Task(base, config, streams, plan, mesh)
