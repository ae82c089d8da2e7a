"""Compiled train steps, and what they exchange between devices."""

import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable, fully_trained, trained_shapes
from jaxbooth.sharding import make_mesh, param_shardings, partition_spec, replicated
from jaxbooth.training.batch import BatchSource
from jaxbooth.training.reference import REFERENCE_DENOISER
from jaxbooth.training.state import abstract_state
from jaxbooth.training.step import make_dispatch
from tests.training import configure, make_cache, make_spec

OPERATION = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)
ARRAY = re.compile(r"\w+\[([\d,]*)\]")


class Step(NamedTuple):
    """A lowered dispatch, and the shapes of what it trains and reads."""

    lowered: Any
    parameters: dict[str, tuple[int, ...]]


def lower_step(base: BaseModel, mesh: Mesh, rows: tuple[int, int], **settings: Any) -> Step:
    """Lowers a dispatch of up to four steps; the mesh's devices may be described ones."""
    config = configure(rows, **settings)
    base, everywhere, place = add_trainable(base, config), replicated(mesh), param_shardings(mesh)
    shapes = trained_shapes(base, config)
    spec = make_spec(base, config, mesh)
    state = abstract_state(shapes, spec.optimizer, config.train.ema_decay is not None, mesh)
    whole = fully_trained(base, shapes)
    reads = ["unet", *(base.text_encoder_names if config.trains_text else ())]
    frozen = {name: name for name in reads if name not in whole}
    if "unet" in whole and config.needs_reference:
        frozen[REFERENCE_DENOISER] = "unet"

    def described(component: str) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, base.dtype, sharding=place(name, leaf.shape))
            for name, leaf in base.module(component).shapes.items()
        }

    fixed = {name: described(component) for name, component in frozen.items()}
    cache = make_cache(base, make_mesh(devices=jax.devices()[:1]), config.trains_text, masked=config.data.masks)
    cache = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), cache)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=everywhere)
    lowered = make_dispatch(spec, 4, state).lower(state, fixed, BatchSource(cache, count), key, count)
    parameters = {name: leaf.shape for name, leaf in state.params.items()}
    parameters |= {f"{name}.{leaf}": value.shape for name, values in fixed.items() for leaf, value in values.items()}
    return Step(lowered, parameters)


def exchanges(program: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns kind and shape of every array that a collective of a compiled program returns."""
    return [
        (kind, tuple(int(n) for n in dimensions.split(",") if n))
        for result, kind in OPERATION.findall(program)
        for dimensions in ARRAY.findall(result)
    ]


def kinds(program: str) -> Counter[str]:
    """Counts the collectives of a compiled program by kind."""
    return Counter(kind for _, kind in OPERATION.findall(program))


def sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns what is left of a shape when it is transposed and sides of 1 come and go."""
    return tuple(sorted(side for side in shape if side > 1))


def used_shapes(step: Step, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Returns the parameters' shapes on one device while they are used: `tensor` alone is divided out."""
    return {name: shape_on_device(name, shape, mesh, ("tensor",)) for name, shape in step.parameters.items()}


def stored_shapes(step: Step, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Returns the parameters' shapes on one device where they are stored."""
    return {name: shape_on_device(name, shape, mesh, mesh.axis_names) for name, shape in step.parameters.items()}


def in_use(name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the shapes that a parameter is used in: a gate's projection as two halves."""
    return [(*shape[:-1], shape[-1] // 2)] * 2 if ".net.0.proj." in name else [shape]


def shape_on_device(name: str, shape: tuple[int, ...], mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Divides a parameter's sides by those `axes` that its placement names."""
    spec = partition_spec(name, shape, mesh)
    return tuple(side // (mesh.shape[axis] if axis in axes else 1) for side, axis in zip(shape, spec, strict=True))
