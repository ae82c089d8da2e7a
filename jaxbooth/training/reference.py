"""Copies of what is trained as it was before training: what prior terms compare the model with.

A LoRA needs none, for the base model's own weights stay beside it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxbooth.base.model import BaseModel
from jaxbooth.params import Params, cast_matrices, flatten_components

REFERENCE_DENOISER = "reference_denoiser"  # a frozen component: the denoiser in the compute dtype
ANCHOR = "anchor"  # a frozen component: float32 values of everything trained itself, named as in the train state


def make_references(
    base: BaseModel, params: Mapping[str, Params], is_distilled: bool, is_anchored: bool
) -> dict[str, Params]:
    """Returns frozen components for the step; pure.

    Args:
        params: component -> parameters of components that are trained as a whole.
        is_distilled: the frozen model's predictions are targets.
        is_anchored: the weights are pulled back to where they started.
    """
    references: dict[str, Params] = {}
    if is_distilled and base.denoiser_name in params:
        references[REFERENCE_DENOISER] = cast_matrices(params[base.denoiser_name], base.dtype)
    if is_anchored and params:
        references[ANCHOR] = flatten_components(dict(params))
    return references


def copy_references(
    base: BaseModel, params: Mapping[str, Params], is_distilled: bool, is_anchored: bool
) -> dict[str, Params]:
    """Copies them on the devices, for the train state takes over `params`."""

    def copy(params: Mapping[str, Params]) -> dict[str, Params]:
        return jax.tree.map(jnp.copy, make_references(base, params, is_distilled, is_anchored))

    return jax.jit(copy)(dict(params))
