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
from jaxbooth.data.latents import LatentCache, gather_latents, gather_text
from jaxbooth.diffusion.loss import Batch, Losses, LossSpec, per_example_loss, reduce_losses
from jaxbooth.diffusion.noise import TimestepSampling, offset_noise, perturb, sample_timesteps
from jaxbooth.diffusion.schedule import Latents
from jaxbooth.params import Params, by_component, cast_matrices, join, precision_of
from jaxbooth.prng import root_key
from jaxbooth.sharding import AnyMesh, batch_sharding, batch_shards, mesh_context, param_shardings
from jaxbooth.training.layout import BatchLayout, SubjectSlices, batch_layout, example_keys, sample_indices
from jaxbooth.training.optimizer import reported_learning_rate
from jaxbooth.training.state import TrainState

Metrics = dict[str, Array]
METRICS = ("loss", "instance_loss", "prior_loss", "grad_norm", "learning_rate")
REFERENCE_UNET = "reference"  # among the frozen components: the UNet before training, where it is trained itself


@dataclass(frozen=True)
class TrainStepSpec:
    """What the step needs besides state, frozen parameters and cache; all of it static.

    Attributes:
        slices: where the subjects' and the classes' images lie in the cache.
        layout: roles of the rows.
    """

    base: BaseModel
    config: Config
    slices: SubjectSlices
    layout: BatchLayout
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


class NoisedBatch(NamedTuple):
    """One micro-batch.

    Attributes:
        seen: the noise that the network's input is made with; `batch.noise` unless it is perturbed.
        caption: (rows,) int32, into the cache's text.
        time_ids: (rows, 6) float32.
    """

    batch: Batch
    seen: Latents
    caption: Array
    time_ids: Array


def make_batch(
    spec: TrainStepSpec, cache: LatentCache, step: Array, cache_step: Array, part: BatchLayout
) -> NoisedBatch:
    """Draws one micro-batch: image, caption, posterior sample, noise and timestep of each row.

    Args:
        step: of the run; it seeds the noise.
        cache_step: earlier steps that took rows from this cache; it seeds the choice of images.
    """
    config, images, root = spec.config, cache.images, root_key(cache.seed)
    counts = (config.train.batch_size, config.prior_rows)
    rows = sample_indices(
        spec.slices, jax.random.fold_in(root, 0), cache_step, part, counts, augmentations=images.mean.shape[1]
    )
    keys = example_keys(jax.random.fold_in(root, 1), step, part.index)
    posterior, plain, time, offset, extra, drop = jax.vmap(lambda key: jax.random.split(key, 6))(keys).T
    shape = images.mean.shape[2:]

    def normal(keys: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    noise = offset_noise(normal(plain), offset, config.loss.noise_offset)
    timesteps = sample_timesteps(time, spec.base.schedule.num_train_timesteps, spec.timesteps)
    latents = gather_latents(images, rows, normal(posterior), spec.base.vae_config.scaling_factor)
    mask = None if images.masks is None else jnp.asarray(images.masks)[rows.image, rows.augmentation]
    batch = Batch(latents, noise, timesteps, part.weight * rows.weight, part.is_prior, mask)
    caption, time_ids = (
        jnp.asarray(cache.caption)[rows.image],
        jnp.asarray(images.time_ids)[rows.image, rows.augmentation],
    )
    if config.text.caption_dropout:
        dropped = jax.vmap(jax.random.uniform)(drop) < config.text.caption_dropout
        caption = jnp.where(dropped, len(jax.tree.leaves(cache.text)[0]) - 1, caption)
    return NoisedBatch(batch, perturb(noise, extra, config.loss.input_perturbation), caption, time_ids)


def microbatch_loss(
    spec: TrainStepSpec, cast: Params, frozen: dict[str, Params], cache: LatentCache, drawn: NoisedBatch
) -> tuple[Array, Losses]:
    """Returns the micro-batch's share of the objective, and its losses.

    Args:
        cast: trained parameters in the compute dtype.
    """
    base, batch, config = spec.base, drawn.batch, spec.config
    params = join(frozen, by_component(cast))
    encode = (lambda ids: base.text.encode(params, ids)) if config.trains_text else None
    text = gather_text(cache.text, drawn.caption, encode, batch_shards(spec.mesh))
    conditions = base.denoiser_conditioning(text, drawn.time_ids)
    noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    seen = base.schedule.add_noise(batch.latents, drawn.seen, batch.timesteps)
    denoiser = base.denoiser.bind(params[base.denoiser_name])
    output = denoiser(seen, batch.timesteps, *conditions, remat=config.train.remat_policy)
    target = None
    if config.loss.prior_target == "frozen" and config.prior_rows:
        target = frozen_prediction(spec, frozen, cache, drawn, seen)
    reduced = reduce_losses(per_example_loss(output, noisy, batch, base.schedule, spec.loss, target), batch)
    return reduced.total, reduced


def frozen_prediction(
    spec: TrainStepSpec, frozen: dict[str, Params], cache: LatentCache, drawn: NoisedBatch, seen: Latents
) -> Array:
    """Returns the untrained model's output on prior rows, and zeros or its output on the others.

    Every shard of the batch begins with instance rows; it computes what comes after as many as all of them have.
    """
    text = cache.text if cache.frozen_text is None else cache.frozen_text
    assert isinstance(text, TextEmbeddings)
    conditions = spec.base.denoiser_conditioning(gather_text(text, drawn.caption, None), drawn.time_ids)
    model = spec.base.denoiser.bind(frozen.get(REFERENCE_UNET) or frozen[spec.base.denoiser_name])
    shards = batch_shards(spec.mesh)
    first = int(spec.layout.is_prior.any(axis=0).reshape(shards, -1).any(axis=0).argmax())

    def apart(x: Array) -> Array:
        return x.reshape(shards, -1, *x.shape[1:])

    def later(x: Array) -> Array:
        return apart(x)[:, first:].reshape(-1, *x.shape[1:])

    output = model(*jax.tree.map(later, (seen, drawn.batch.timesteps, *conditions)))
    return jnp.concatenate([jnp.zeros_like(apart(seen)[:, :first]), apart(output)], axis=1).reshape(seen.shape)


def gradients(
    spec: TrainStepSpec, params: Params, frozen: dict[str, Params], cache: LatentCache, step: Array, cache_step: Array
) -> tuple[Losses, Params]:
    """Returns losses and float32 gradients of a whole step, summed over its micro-batches."""
    cast = cast_matrices(params, spec.base.dtype)

    def one(part: BatchLayout) -> tuple[Losses, Params]:
        drawn = make_batch(spec, cache, step, cache_step, part)
        drawn = jax.lax.with_sharding_constraint(drawn, batch_sharding(spec.mesh))
        gradient = jax.grad(lambda values: microbatch_loss(spec, values, frozen, cache, drawn), has_aux=True)
        with precision_of(spec.base.dtype), mesh_context(spec.mesh):
            grads, losses = gradient(cast)
        return losses, shard_gradients(grads, spec.mesh)

    plan = BatchLayout(*map(jnp.asarray, spec.layout))
    parts = len(spec.layout.index)
    if parts == 1:
        return one(BatchLayout(*(field[0] for field in plan)))

    def add(total: Any, part: BatchLayout) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    zeros = jax.tree.map(jnp.zeros_like, (Losses(*[jnp.zeros(())] * 3), params))
    (losses, grads), _ = jax.lax.scan(add, zeros, plan)
    # The total is a sum over rows; the two reported terms are means, equal in size in every micro-batch.
    return Losses(losses.total, losses.instance / parts, losses.prior / parts), grads


def shard_gradients(grads: Params, mesh: AnyMesh) -> Params:
    """Returns float32 gradients where their parameters are."""
    place = param_shardings(mesh)
    return {
        name: jax.lax.with_sharding_constraint(grad.astype(jnp.float32), place(name, grad.shape))
        for name, grad in grads.items()
    }


def ema_update(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Moves the average; its decay warms up as (1 + step) / (10 + step), so that it forgets the base model early."""
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: value + share * (params[name] - value) for name, value in average.items()}


def train_step(
    spec: TrainStepSpec,
    tx: optax.GradientTransformation,
    state: TrainState,
    frozen: dict[str, Params],
    cache: LatentCache,
    cache_step: Array,
) -> tuple[TrainState, Metrics]:
    """One optimizer update; pure."""
    losses, grads = gradients(spec, state.params, frozen, cache, state.step, cache_step)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    decay = spec.config.train.ema_decay
    ema = ema_update(state.ema, params, state.step, decay) if decay else state.ema
    rate = reported_learning_rate(spec.config)(state.step)
    values = (losses.total, losses.instance, losses.prior, optax.tree.norm(grads), rate)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in zip(METRICS, values, strict=True)}
    return TrainState(state.step + 1, params, opt_state, ema), metrics


Dispatch = Callable[[TrainState, dict[str, Params], LatentCache, np.integer, np.integer], tuple[TrainState, Metrics]]


def make_dispatch(spec: TrainStepSpec, tx: optax.GradientTransformation, longest: int, state: TrainState) -> Any:
    """Returns the jitted (state, frozen, cache, count, shift) -> (state, metrics) that runs `count` <= `longest` steps.

    `count` and `shift` are run-time values, so one program serves every dispatch, the short ones before a checkpoint
    included. Metrics are (longest,) arrays of which the first `count` entries are filled. `state` is donated.
    `shift` is how many of the steps before took their rows from another cache.
    """

    def run(
        state: TrainState, frozen: dict[str, Params], cache: LatentCache, count: Array, shift: Array
    ) -> tuple[TrainState, Metrics]:
        def body(index: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = train_step(spec, tx, state, frozen, cache, state.step - shift)
            return state, {name: metrics[name].at[index].set(new[name]) for name in METRICS}

        empty = {name: jnp.zeros(longest, jnp.float32) for name in METRICS}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, None))


def make_train_step_spec(base: BaseModel, config: Config, slices: SubjectSlices, mesh: AnyMesh) -> TrainStepSpec:
    """Plans the rows of a run."""
    train = config.train
    plan = batch_layout(
        train.batch_size, config.prior_rows, train.prior_weight, train.gradient_accumulation_steps, batch_shards(mesh)
    )
    return TrainStepSpec(base, config, slices, plan, mesh)
