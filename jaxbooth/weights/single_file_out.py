"""Single-file checkpoints, out: a diffusers folder and what was trained on it become one file with LDM names."""

import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxbooth.errors import UserError
from jaxbooth.files import write_text
from jaxbooth.models.config import CLIPTextConfig, UNetConfig
from jaxbooth.params import AnyArray
from jaxbooth.weights.diffusers_dir import open_tensors, read_json, weight_files
from jaxbooth.weights.inference_yaml import inference_config
from jaxbooth.weights.ldm_layout import Entry, Shape, component_config, components, family, layout
from jaxbooth.weights.names import canonical, export_array, parameter_names
from jaxbooth.weights.prediction import V_MARKER, ZERO_SNR_MARKER
from jaxbooth.weights.stream import Tensor, stored_dtype, write_tensors

LOGIT_SCALE = np.log(100.0)  # where CLIP's training clips it, and where it ends
MODELSPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
ARCHITECTURES = {
    ("sd15", "epsilon"): "stable-diffusion-v1",
    ("sd15", "v"): "stable-diffusion-v1",
    ("sd21", "epsilon"): "stable-diffusion-v2-512",
    ("sd21", "v"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v"): "stable-diffusion-xl-v1-base",
}


class Component:
    """One component's tensors by today's state-dict names: what was trained, and else what the folder holds."""

    def __init__(self, folder: Path, params: Mapping[str, AnyArray], dtype: np.dtype | None):
        self.params, self.dtype, self.folder = params, dtype, folder
        self.names = parameter_names(params)
        self.places = {}
        for file, stored in weight_files(folder).items():
            tensors = open_tensors(folder / file)
            self.places |= {canonical(name): (tensors, name, folder / file) for name in stored}

    def place(self, name: str) -> tuple[Any, str, Path]:
        """Returns the open file that holds a tensor, its name there, and the file's path.

        Raises:
            UserError: the folder lacks it.
        """
        if name not in self.places:
            raise UserError(f"{self.folder}: the tensor {name} is missing; fetch the model again.")
        return self.places[name]

    def dtype_of(self, name: str) -> np.dtype:
        """Returns the dtype that a tensor is written in."""
        return self.dtype or stored_dtype(*self.place(name))

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in PyTorch's layout."""
        if name in self.names:
            key = self.names[name]
            return export_array(key, np.asarray(self.params[key])).astype(self.dtype_of(name))
        tensors, stored, _ = self.place(name)
        return tensors.get_tensor(stored).astype(self.dtype_of(name))

    def tensor(self, entry: Entry) -> Tensor:
        """Returns an entry of the single file, to be read when its turn comes."""
        first = entry.sources[0] if entry.sources else next(iter(self.places))
        read = partial(self.join, entry) if entry.sources else partial(constant, entry.shape, self.dtype_of(first))
        return Tensor(entry.name, self.dtype_of(first), entry.shape, read)

    def join(self, entry: Entry) -> np.ndarray:
        """Reads an entry."""
        return entry.join([self.read(source) for source in entry.sources])


def constant(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Returns the content of an entry that no folder holds: a projection that changes nothing, or the logit scale."""
    return np.eye(*shape, dtype=dtype) if shape else np.asarray(LOGIT_SCALE, dtype)


def pack(
    folder: Path,
    params: Mapping[str, Mapping[str, AnyArray]],
    out: Path,
    dtype: np.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes a model as one safetensors file that A1111, Forge, ComfyUI, kohya's tools and diffusers read.

    SD 2.x models that predict v get an inference configuration `<stem>.yaml` beside the file, which older web UIs
    need; SDXL ones get marker tensors.

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
    kind, prediction = family(folder), modelspec_prediction(folder)
    sidecar = out.with_suffix(".yaml") if (kind, prediction) == ("sd21", "v") else None
    for path in (out, sidecar):
        if path and path.exists():
            raise UserError(f"{path} exists already; choose another name or remove it.")
    tensors = []
    for name in components(folder):
        component = Component(folder / name, params.get(name, {}), dtype)
        tensors += [component.tensor(entry) for entry in layout(folder, name)]
    empty = np.zeros(0, np.float32)
    tensors += [Tensor(name, empty.dtype, (0,), lambda: empty) for name in markers(folder)]
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[kind, prediction],
        "modelspec.prediction_type": prediction,
        "modelspec.title": out.stem,
    }
    write_aside(out, tensors, header | dict(metadata or {}))
    if sidecar:
        write_sidecar(folder, sidecar)
    return len(tensors)


def write_aside(out: Path, tensors: list[Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file that appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    try:
        write_tensors(Path(aside), tensors, metadata)
        os.chmod(aside, 0o644)
        os.replace(aside, out)
    except BaseException:
        os.unlink(aside)
        raise


def write_sidecar(folder: Path, path: Path) -> None:
    """Writes the inference configuration of an SD 2.x model."""
    unet, text = component_config(folder, "unet"), component_config(folder, "text_encoder")
    assert isinstance(unet, UNetConfig)
    assert isinstance(text, CLIPTextConfig)
    write_text(path, yaml.safe_dump(inference_config(unet, text), sort_keys=False))


def expected_names(folder: Path) -> dict[str, Shape]:
    """Returns name -> shape of every tensor that `pack` writes for a folder; its weights are not read."""
    entries = [entry for component in components(folder) for entry in layout(folder, component)]
    return {entry.name: entry.shape for entry in entries} | dict.fromkeys(markers(folder), (0,))


def modelspec_prediction(folder: Path) -> str:
    """Returns ModelSpec's word for what a model predicts.

    Raises:
        UserError: there is none, and readers of single files would take it for something else.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    found = read_json(path).get("prediction_type", "epsilon")
    if found not in MODELSPEC_PREDICTIONS:
        raise UserError(
            f"{path}: prediction_type {found!r} cannot be told in a single file; export a diffusers folder."
        )
    return MODELSPEC_PREDICTIONS[found]


def markers(folder: Path) -> list[str]:
    """Returns the names of the empty tensors that tell readers of an SDXL file how to sample it."""
    if family(folder) != "sdxl" or modelspec_prediction(folder) != "v":
        return []
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return [V_MARKER, ZERO_SNR_MARKER] if scheduler.get("rescale_betas_zero_snr") else [V_MARKER]
