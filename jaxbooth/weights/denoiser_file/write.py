"""A file of a transformer alone, out: the transformer of a diffusers folder and what was trained on it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.params import AnyArray
from jaxbooth.weights.denoiser_file.layout import layout, read_denoiser_config, torch_shapes
from jaxbooth.weights.diffusers_write import ComponentTensors
from jaxbooth.weights.family import Family
from jaxbooth.weights.safetensors_write import write_tensors
from jaxbooth.weights.single_file import SingleFileTensor, to_lazy_tensor


def denoiser_layout(folder: Path, family: Family) -> list[SingleFileTensor]:
    """Returns the tensors of the file of a folder's transformer."""
    assert family.denoiser_file is not None
    source = folder / family.denoiser.component / "config.json"
    config = read_denoiser_config(family.denoiser, source)
    return layout(torch_shapes(family.denoiser, config), family.denoiser_file)


def write_denoiser(
    folder: Path,
    family: Family,
    params: Mapping[str, AnyArray],
    out: Path,
    dtype: np.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes a model's transformer as one safetensors file, which ComfyUI and diffusers read.

    Args:
        folder: the model in diffusers layout.
        params: the transformer's jaxbooth parameters that replace the folder's.
        out: does not exist yet.
        dtype: of the written tensors; None keeps each tensor's own of `folder`.
        metadata: strings for the file's header, beside the ModelSpec ones (https://github.com/Stability-AI/ModelSpec).

    Returns:
        The number of tensors in the file.

    Raises:
        UserError: `out` exists already, or the folder is incomplete.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another name or remove it.")
    component = ComponentTensors(folder / family.denoiser.component, params, dtype)
    tensors = [to_lazy_tensor(component, tensor) for tensor in denoiser_layout(folder, family)]
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.modelspec["flow"],
        "modelspec.title": out.stem,
    }
    write_tensors(out, tensors, header | dict(metadata or {}))
    return len(tensors)
