"""The memory of encoding prompts ahead, by a text encoder that is dropped before the denoiser is loaded."""

import jax
from jax.sharding import AbstractMesh

from jaxbooth.base.encoded_prompts import BATCH_SIZE
from jaxbooth.base.model import BaseModel, encode_prompts
from jaxbooth.plan.abstract_step import abstract_params, device_bytes
from jaxbooth.plan.jaxpr_memory import JaxprAnalysis
from jaxbooth.plan.jaxpr_values import live_bytes
from jaxbooth.plan.per_device_step import named_leaves, one_device, param_arguments, unsharded


def encoding_bytes(base: BaseModel, mesh: AbstractMesh, platform: str) -> float:
    """Returns what a device needs while prompts are encoded ahead: parameters and activations of the text encoder.

    0 where the text encoder stays: its memory is then a part of the step's.

    Args:
        platform: see `JaxprAnalysis`.
    """
    if not base.text.runs_once:
        return 0
    params = {name: abstract_params(base, mesh, name) for name in base.text_encoder_names}
    ids = base.text.abstract_ids(BATCH_SIZE)
    jaxpr = jax.make_jaxpr(lambda params, ids: encode_prompts(base, one_device(mesh), params, ids))(
        unsharded(params), ids
    )
    analysis = JaxprAnalysis(platform, mesh.shape["tensor"])
    arguments = param_arguments(analysis, named_leaves(params), mesh, base.dtype, has_remat=False)
    arguments += [analysis.argument(var.aval, per_example=True) for var in jaxpr.jaxpr.invars[len(arguments) :]]
    analysis.read(analysis.run(jaxpr.jaxpr, arguments), moves=False)
    return device_bytes(params) + float(live_bytes(analysis.buffers, analysis.time).max())
