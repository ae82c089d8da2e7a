"""The programs of a run as a compiler takes them: the train step, and the step that draws sample pictures."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.config.run_config import Config
from jaxbooth.params import Params, join
from jaxbooth.plan.abstract_step import AbstractStep
from jaxbooth.plan.per_device_step import device_bytes
from jaxbooth.runs.watch import BATCH
from jaxbooth.sharding import batch_sharding, param_shardings, replicated
from jaxbooth.training.state import result_params
from jaxbooth.training.step import make_dispatch


def trace_train(config: Config, step: AbstractStep) -> Any:
    """Traces a dispatch of the train step."""
    dispatch = make_dispatch(step.task, step.tx, config.train.steps_per_dispatch, step.state)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return dispatch.trace(step.state, step.frozen, step.bank, count, count)


def trace_sampling(config: Config, base: BaseModel, params: dict[str, Params], mesh: Mesh) -> Any:
    """Traces the drawing of one batch of a sample grid, from noise to pixels.

    Args:
        params: see `sampling_params`.
    """
    chosen = config.validation
    settings = SamplingConfig(chosen.sampler, chosen.steps, chosen.guidance_scale, config.resolution)
    image_sampler = ImageSampler(base, mesh, settings, sampling_batch(config))
    rows, everywhere = image_sampler.batch_size, replicated(mesh)

    def describe(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree)

    text = describe(abstract_text(base, rows))
    captions, indices = (
        jax.ShapeDtypeStruct((rows,), kind, sharding=batch_sharding(mesh)) for kind in (jnp.int32, jnp.uint32)
    )
    inputs = describe(image_sampler.inputs(0))
    return image_sampler.program.trace(params, text, captions, indices, inputs)


def sampling_batch(config: Config) -> int:
    """Returns how many pictures of a sample grid are drawn at once."""
    prompts = len(config.validation.prompts) or 2 * max(1, len(config.data.subjects)) + 1
    pictures = prompts * config.validation.images_per_prompt
    return -(-pictures // -(-pictures // BATCH))


def abstract_text(base: BaseModel, prompts: int) -> Any:
    """Describes the features of encoded prompts, float32."""
    encoders = {tower.name: tower.module.shapes for tower in base.text.encoders}
    ids: Any = {
        tower.name: jax.ShapeDtypeStruct((prompts, base.text.max_token_chunks, tower.tokenizer.max_length), jnp.int32)
        for tower in base.text.encoders
    }
    text = jax.eval_shape(base.text.encode, encoders, ids)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), text)


def sampling_params(base: BaseModel, step: AbstractStep, mesh: Mesh) -> dict[str, Params]:
    """Describes UNet and VAE as pictures are drawn with them: what was trained, beside what was not."""
    place = param_shardings(mesh)
    trained: Any = {
        component: {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(name, leaf.shape))
            for name, leaf in params.items()
        }
        for component, params in jax.eval_shape(result_params, step.state).items()
    }
    params = join(step.frozen, step.resident, trained)
    return {name: params[name] for name in (base.denoiser_name, "vae")}


def held_bytes(step: AbstractStep) -> dict[str, int]:
    """Returns kind -> bytes that one device holds all through a run; `resident` ones are no arguments of a step."""
    state = step.state
    return {
        "parameters": device_bytes((state.params, state.ema)),
        "optimizer": device_bytes((state.opt_state, state.step)),
        "frozen": device_bytes(step.frozen),
        "resident": device_bytes(step.resident),
        "latents": device_bytes(step.bank),
    }
