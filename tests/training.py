"""A small training spec on the embedded model, for tests of the step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.base.trainable import (
    add_trainable,
    fully_trained,
    init_trainable,
    shard_params,
    trained_shapes,
    unused_parameters,
)
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.data.latents import CachedImages, LatentCache
from jaxbooth.params import Params
from jaxbooth.prng import key_data
from jaxbooth.sharding import AnyMesh, param_shardings, replicated
from jaxbooth.training.batch import BatchSource
from jaxbooth.training.layout import BatchLayout, subject_slices
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.reference import copy_references
from jaxbooth.training.spec import TrainStepSpec, make_train_step_spec
from jaxbooth.training.state import TrainState, initial_state
from jaxbooth.training.step import make_dispatch

INSTANCES, PRIORS = 3, 5
SEED = 7
CHAT_LENGTH = 32  # tokens of a prompt that a language model reads
CAPTIONS = ["an emoji of a sks cat", "a sks cat, crying", "an emoji of a cat", ""]
CLASS_CAPTION = 2  # the one without the identifier


class Setup(NamedTuple):
    """Everything that a dispatch needs."""

    spec: TrainStepSpec
    state: TrainState
    frozen: dict[str, Params]
    source: BatchSource
    key: np.ndarray


def make_cache(
    base: BaseModel,
    mesh: Mesh,
    trains_text: bool = False,
    augmentations: int = 2,
    masked: bool = False,
    own_captions: bool = False,
) -> LatentCache:
    """Random moments and captions; image i's latents are near i, and its caption's text holds its number."""
    rng = np.random.default_rng(1)
    images = INSTANCES + PRIORS
    mean = rng.normal(size=(images, augmentations, *base.latent_shape(64, 64))).astype(np.float32)
    time_ids = rng.integers(0, 64, (images, augmentations, 6)).astype(np.float32)
    masks = rng.uniform(size=(*mean.shape[:-1], 1)).astype(np.float32) if masked else None
    encoded = CachedImages(mean, np.full_like(mean, -4.0), time_ids, masks)
    caption, counts = np.array([0, 0, 1, 2, 2, 2, 2, 2], np.int32)[:, None], np.ones(images, np.int32)
    text = random_text(base, rng)
    captions = base.text.tokenize(CAPTIONS) if trains_text else text
    class_caption = np.full_like(caption, CLASS_CAPTION) if own_captions else None
    cache = LatentCache(encoded, caption, counts, captions, text if trains_text else None, class_caption)
    return jax.device_put(cache, replicated(mesh))


def random_text(base: BaseModel, rng: np.random.Generator) -> TextEmbeddings:
    """Features of all CAPTIONS; of a language model, with and without padding where there can be any."""
    if base.text.runs_once:
        context = rng.normal(size=(len(CAPTIONS), CHAT_LENGTH, base.text.width)).astype(np.float32)
        has_lengths = base.family.name == "zimage"
        return TextEmbeddings(context, lengths=np.array([CHAT_LENGTH, 7, 1, 31], np.int32) if has_lengths else None)
    encoder = base.text.encoders[-1]
    context = rng.normal(size=(len(CAPTIONS), encoder.tokenizer.max_length, base.text.width)).astype(np.float32)
    pooled = rng.normal(size=(len(CAPTIONS), encoder.config.projection_dim)).astype(np.float32)
    return TextEmbeddings(context, pooled if base.text.conditioning.has_pooled else None)


def configure(rows: tuple[int, int], **settings) -> Config:
    """Returns a configuration; keys without a section belong to `train`."""
    sections = {name: settings.pop(name) for name in ("loss", "lora", "text", "data", "seed") if name in settings}
    weight = {"weight": settings.pop("prior_weight")} if "prior_weight" in settings else {}
    prior = {"rows": rows[1]} | weight | settings.pop("prior", {})
    train = {"batch_size": rows[0], "learning_rate": 1e-4, "steps": 100} | settings
    data = {"instance_dir": "cats", "instance_prompt": "a <sks> cat", "class_prompt": "a cat"}
    return Config.model_validate(
        {"seed": SEED, "train": train, "prior": prior, "data": data | sections.pop("data", {})} | sections
    )


def setup(base: BaseModel, params: dict, mesh: Mesh, rows: tuple[int, int], **settings) -> Setup:
    """Returns a spec, its fresh state, frozen parameters and cache, for (instance, prior) rows."""
    config = configure(rows, **settings)
    base, place = add_trainable(base, config), param_shardings(mesh)
    shapes = trained_shapes(base, config)
    whole = fully_trained(base, shapes)
    placed = {
        name: {key: jax.device_put(value, place(key, value.shape)) for key, value in values.items()}
        for name, values in params.items()
    }
    values = shard_params(init_trainable(base, config, shapes, placed), mesh)
    references = copy_references(
        base, {name: placed[name] for name in whole}, config.needs_reference, config.is_anchored
    )
    frozen = {name: values for name, values in placed.items() if name not in whole and name != "vae"}
    if not config.trains_text:
        frozen = {name: values for name, values in frozen.items() if name == base.denoiser_name}
    spec = make_spec(base, config, mesh)
    state = initial_state(values, spec.optimizer, config.train.ema_decay is not None, mesh)
    cache = make_cache(
        base, mesh, config.trains_text, masked=config.data.masks, own_captions=config.prior.has_own_captions
    )
    return Setup(spec, state, frozen | references, BatchSource(cache, np.int32(0)), key_data(config.seed))


def make_spec(base: BaseModel, config: Config, mesh: AnyMesh, slots: int = 0) -> TrainStepSpec:
    """Returns what the steps of a configuration are compiled for."""
    rates = learning_rates(config)
    optimizer = make_optimizer(config.train, rates, unused_parameters(base, trained_shapes(base, config)))
    slices = subject_slices([INSTANCES], [PRIORS], [0], [1.0])
    return make_train_step_spec(
        base, mesh, slices, optimizer, config.train, config.loss, config.prior, config.text, rates, (64, 64), slots
    )


def run(
    spec: TrainStepSpec,
    state: TrainState,
    frozen: dict[str, Params],
    source: BatchSource,
    key: np.ndarray,
    counts: list[int],
    max_steps: int = 4,
    dispatch: Callable | None = None,
):
    """Dispatches `counts` steps, one dispatch for each; returns the last state and all metrics by name.

    `dispatch` is one that was compiled before, for the same spec; by default it is made here, for up to `max_steps`.
    """
    dispatch = dispatch or make_dispatch(spec, max_steps, state)
    columns: dict[str, list[np.ndarray]] = {}
    for count in counts:
        state, metrics = dispatch(state, frozen, source, key, np.int32(count))
        for name, column in metrics.items():
            columns.setdefault(name, []).append(np.asarray(column)[:count])
    return state, {name: np.concatenate(parts) for name, parts in columns.items()}


def first_micro_batch(spec: TrainStepSpec) -> BatchLayout:
    """Returns the layout of a step's only or first micro-batch."""
    return BatchLayout(*(field[0] for field in spec.layout))


def several_captions(made: Setup) -> Setup:
    """The same images with captions: two, one and three of the three instance images, one of each class image."""
    rows = np.zeros((INSTANCES + PRIORS, 3), np.int32)
    rows[:INSTANCES] = [[0, 1, -1], [1, -1, -1], [0, 1, 2]]
    rows[INSTANCES:] = [2, -1, -1]
    counts = np.array([2, 1, 3, *[1] * PRIORS], np.int32)
    cache = made.source.cache
    class_caption = None if cache.class_caption is None else jnp.full_like(rows, CLASS_CAPTION)
    cache = cache._replace(caption=jnp.asarray(rows), caption_counts=jnp.asarray(counts), class_caption=class_caption)
    return made._replace(source=made.source._replace(cache=cache))
