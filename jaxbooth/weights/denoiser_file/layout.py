"""Which tensors a file of a transformer alone holds, and which of a diffusers folder's each is made of."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxbooth.models.config import read_config
from jaxbooth.models.layers import Layers
from jaxbooth.params import abstract_module
from jaxbooth.storage.text import read_json
from jaxbooth.weights.denoiser_file.names import DenoiserFile, projection_order
from jaxbooth.weights.family import DenoiserSpec
from jaxbooth.weights.names import torch_name, torch_shape
from jaxbooth.weights.single_file import Shape, SingleFileTensor


def layout(shapes: Mapping[str, Shape], file: DenoiserFile) -> list[SingleFileTensor]:
    """Returns the file's tensors of a transformer.

    Args:
        shapes: state-dict name -> shape in PyTorch's layout.
    """
    sources: dict[str, list[str]] = {}
    for name in sorted(shapes, key=projection_order):
        sources.setdefault(file.name(name), []).append(name)
    return [
        SingleFileTensor(name, stacked(shapes[names[0]], len(names)), tuple(names), is_swapped=names[0] in file.swapped)
        for name, names in sources.items()
    ]


def stacked(shape: Shape, count: int) -> Shape:
    """Returns the shape of `count` tensors of one shape in one, along the first axis."""
    return (count * shape[0], *shape[1:])


def layout_of(names: Iterable[str], shapes: Mapping[str, Shape], file: DenoiserFile) -> list[SingleFileTensor]:
    """Returns the tensors that a file with these names should hold: ComfyUI also reads Z-Image in diffusers' names."""
    as_diffusers = [SingleFileTensor(name, shape, (name,)) for name, shape in shapes.items()]
    return as_diffusers if set(shapes) <= set(names) else layout(shapes, file)


@functools.cache  # a model's structure takes seconds to trace, and export asks for it again when it verifies
def torch_shapes(spec: DenoiserSpec, config: Any) -> dict[str, Shape]:
    """Returns state-dict name -> shape in PyTorch's layout of the denoiser that a configuration describes."""
    module = abstract_module(lambda rngs: spec.module(config, Layers(rngs)))
    return {torch_name(name): torch_shape(name, leaf.shape) for name, leaf in module.shapes.items()}


def read_denoiser_config(spec: DenoiserSpec, source: Path) -> Any:
    """Reads a denoiser's `config.json` into its typed view.

    Raises:
        UserError: it is missing, or of a model that jaxbooth does not support.
    """
    return read_config(spec.config, read_json(source), str(source))
