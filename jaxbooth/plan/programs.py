"""The programs of a run as a compiler takes them: the train step, and the sampling of a grid's images."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.sampling import BATCH_SIZE, ImageSampler, configured_sampling
from jaxbooth.config.run_config import Config
from jaxbooth.params import Params, join
from jaxbooth.plan.abstract_step import AbstractStep, on_mesh, replicate
from jaxbooth.sharding import batch_sharding
from jaxbooth.training.state import result_params
from jaxbooth.training.step import make_dispatch


def trace_train(step: AbstractStep, steps_per_dispatch: int) -> Any:
    """Traces a dispatch of the train step."""
    dispatch = make_dispatch(step.spec, steps_per_dispatch, step.state)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return dispatch.trace(step.state, step.frozen, step.source, step.key, count)


def trace_sampling(config: Config, base: BaseModel, params: dict[str, Params], mesh: Mesh) -> Any:
    """Traces the sampling of one batch of a sample grid, from noise to pixels.

    Args:
        params: see `sampling_params`.
    """
    settings = configured_sampling(config.validation, config.resolution)
    image_sampler = ImageSampler(base, mesh, settings, sampling_batch(config))
    batch = image_sampler.batch_size
    text = replicate(base.text.abstract_embeddings(batch), mesh)
    inputs = replicate(image_sampler.inputs(0), mesh)
    captions = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=batch_sharding(mesh))
    indices = jax.ShapeDtypeStruct((batch,), jnp.uint32, sharding=batch_sharding(mesh))
    return image_sampler.program.trace(params, text, captions, indices, inputs)


def sampling_batch(config: Config) -> int:
    """Returns how many images of a sample grid are generated at once."""
    prompts = len(config.validation.prompts) or 2 * max(1, len(config.data.subjects)) + 1
    images = prompts * config.validation.images_per_prompt
    batches = -(-images // BATCH_SIZE)
    return -(-images // batches)


def sampling_params(base: BaseModel, step: AbstractStep, mesh: Mesh) -> dict[str, Params]:
    """Describes denoiser and VAE as images are generated with them: what was trained, beside what was not."""
    results = jax.eval_shape(result_params, step.state)
    trained = {component: on_mesh(params, mesh) for component, params in results.items()}
    params = join(step.frozen, step.resident, trained)
    return {name: params[name] for name in (base.denoiser_name, "vae")}
