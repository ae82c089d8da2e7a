"""Single-file checkpoints, out: a diffusers folder and what was trained on it become one file with LDM names."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from jaxbooth.errors import UserError
from jaxbooth.models.config import CLIPTextConfig, UNetConfig
from jaxbooth.params import AnyArray
from jaxbooth.storage.files import write_text
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_write import ComponentTensors
from jaxbooth.weights.ldm.inference_yaml import inference_config
from jaxbooth.weights.ldm.layout import component_config, components, layout, read_family
from jaxbooth.weights.ldm.prediction import V_MARKER, ZERO_SNR_MARKER
from jaxbooth.weights.safetensors_write import LazyTensor, write_tensors
from jaxbooth.weights.single_file import Shape, SingleFileTensor, to_lazy_tensor

LOGIT_SCALE = np.log(100.0)  # where CLIP's training clips it, and where it ends
MODELSPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def lazy_tensor(component: ComponentTensors, tensor: SingleFileTensor) -> LazyTensor:
    """Returns a tensor of the single file, made of the folder's when its turn comes, or a constant."""
    if tensor.sources:
        return to_lazy_tensor(component, tensor)
    dtype = component.dtype_of(next(iter(component.stored)))
    return LazyTensor(tensor.name, dtype, tensor.shape, partial(placeholder_value, tensor.shape, dtype))


def placeholder_value(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Returns the content of a tensor that no folder holds: a projection that changes nothing, or the logit scale."""
    return np.eye(*shape, dtype=dtype) if shape else np.asarray(LOGIT_SCALE, dtype)


def write_single_file(
    folder: Path,
    params: Mapping[str, Mapping[str, AnyArray]],
    out: Path,
    dtype: np.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes a model as one safetensors file that A1111, Forge, ComfyUI, kohya's tools and diffusers read.

    SD 1.x and 2.x models that predict v get an inference configuration `<stem>.yaml` beside the file, which older web
    UIs need; SDXL ones get a marker tensor, and models of zero terminal SNR another one.

    Args:
        folder: the model in diffusers layout.
        params: component -> jaxbooth parameters that replace the folder's.
        out: does not exist yet.
        dtype: of the written tensors; None keeps each tensor's own of `folder`.
        metadata: strings for the file's header, beside the ModelSpec ones (https://github.com/Stability-AI/ModelSpec).

    Returns:
        The number of tensors in the file.

    Raises:
        UserError: `out` exists already, the folder is incomplete, or it predicts what single files cannot say.
    """
    family, prediction = read_family(folder), modelspec_prediction(folder)
    sidecar = out.with_suffix(".yaml") if family.has_inference_yaml and prediction == "v" else None
    for path in (out, sidecar):
        if path and path.exists():
            raise UserError(f"{path} exists already; choose another name or remove it.")
    tensors = []
    for name in components(folder):
        component = ComponentTensors(folder / name, params.get(name, {}), dtype)
        tensors += [lazy_tensor(component, tensor) for tensor in layout(folder, name)]
    empty = np.zeros(0, np.float32)
    tensors += [LazyTensor(name, empty.dtype, (0,), lambda: empty) for name in markers(folder)]
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.modelspec[prediction],
        "modelspec.prediction_type": prediction,
        "modelspec.title": out.stem,
    }
    write_tensors(out, tensors, header | dict(metadata or {}))
    if sidecar:
        write_sidecar(folder, sidecar)
    return len(tensors)


def write_sidecar(folder: Path, path: Path) -> None:
    """Writes the inference configuration of an SD 1.x or 2.x model."""
    unet, text = component_config(folder, "unet"), component_config(folder, "text_encoder")
    assert isinstance(unet, UNetConfig)
    assert isinstance(text, CLIPTextConfig)
    write_text(path, yaml.safe_dump(inference_config(unet, text), sort_keys=False))


def single_file_shapes(folder: Path) -> dict[str, Shape]:
    """Returns name -> shape of every tensor that `write_single_file` writes for a folder; its weights are not read."""
    tensors = [tensor for component in components(folder) for tensor in layout(folder, component)]
    return {tensor.name: tensor.shape for tensor in tensors} | dict.fromkeys(markers(folder), (0,))


def modelspec_prediction(folder: Path) -> str:
    """Returns ModelSpec's word for what a model predicts.

    Raises:
        UserError: there is none, and readers of single files would take it for something else.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    prediction_type = read_json(path).get("prediction_type", "epsilon")
    if prediction_type not in MODELSPEC_PREDICTIONS:
        raise UserError(
            f"{path}: prediction_type {prediction_type!r} cannot be told in a single file; export a diffusers folder."
        )
    return MODELSPEC_PREDICTIONS[prediction_type]


def markers(folder: Path) -> list[str]:
    """Returns the names of the empty tensors that tell readers how to sample a model that predicts v."""
    if modelspec_prediction(folder) != "v":
        return []
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    is_zero = scheduler.get("rescale_betas_zero_snr")
    return [V_MARKER] * (not read_family(folder).has_inference_yaml) + [ZERO_SNR_MARKER] * bool(is_zero)
