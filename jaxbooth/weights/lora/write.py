"""LoRA files, out: PEFT's layout for diffusers; for ComfyUI and the others kohya's, or that of flow transformers."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.architectures import family_of
from jaxbooth.weights.denoiser_file.names import DenoiserFile
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, to_adapters
from jaxbooth.weights.lora.alpha import METADATA_KEY
from jaxbooth.weights.lora.fused import can_fuse, fuse, swap_halves
from jaxbooth.weights.lora.metadata import kohya_metadata, transformer_metadata
from jaxbooth.weights.lora.names import FileModule, adaptable_layers, authors_modules, kohya_name
from jaxbooth.weights.names import published_path
from jaxbooth.weights.safetensors_write import LazyTensor, write_tensors

ATTENTION_OF_TEXT = re.compile(r"\.(q|k|v|out)_proj$")


def write_peft(path: Path, lora: LoraWeights, metadata: Mapping[str, str], dtype: np.dtype | None = None) -> int:
    """Writes the file that `load_lora_weights` of diffusers reads; returns the number of tensors.

    alpha / rank is multiplied into B, and the head says alpha = rank. Readers that do not know the head (diffusers
    before 0.34) take alpha = rank anyway, so that every reader comes to the same weights. A LoRA whose alpha is its
    rank is written bit for bit.

    Args:
        metadata: further entries of the file's head.
        dtype: of the written tensors; None is float32.

    Raises:
        UserError: the file exists, or only some modules have a DoRA magnitude, which PEFT cannot express.
    """
    adapters = [adapter.with_alpha(adapter.rank) for adapter in to_adapters(lora)]
    tensors, config = {}, {}
    for component in dict.fromkeys(adapter.component for adapter in adapters):
        adapters_of = [adapter for adapter in adapters if adapter.component == component]
        config |= {f"{component}.{key}": value for key, value in peft_config(path, adapters_of).items()}
        down, up = spelling_for_diffusers(component, [adapter.module for adapter in adapters_of])
        for adapter in adapters_of:
            name = f"{component}.{published_path(component, adapter.module)}"
            tensors[f"{name}.{down}"] = adapter.lora_a
            tensors[f"{name}.{up}"] = adapter.lora_b
            if adapter.magnitude is not None:
                # PEFT leaves out `.weight` when it saves, and transformers 5 does not find the tensor without
                leaf = "lora_magnitude_vector" + (".weight" if component.startswith("text_encoder") else "")
                shape = (1, -1, 1, 1) if adapter.lora_a.ndim == 4 else (-1,)
                tensors[f"{name}.{leaf}"] = adapter.magnitude.reshape(shape)
    head = {"format": "pt", METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}
    return write_arrays(path, tensors, dict(metadata) | head, dtype)


def spelling_for_diffusers(component: str, modules: list[str]) -> tuple[str, str]:
    """Returns the ends of the names of A and B.

    diffusers (0.42) tells how a text encoder's adapters are spelled by those of its attention. Where there are none, it
    knows only its own older words, which all its versions read.
    """
    if not component.startswith("text_encoder") or any(ATTENTION_OF_TEXT.search(module) for module in modules):
        return "lora_A.weight", "lora_B.weight"
    return "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"


def peft_config(path: Path, adapters: list[Adapter]) -> dict[str, Any]:
    """Returns the fields of PEFT's `LoraConfig` for one component whose alphas are its ranks."""
    has_magnitude = {adapter.magnitude is not None for adapter in adapters}
    if len(has_magnitude) > 1:
        raise UserError(f"{path}: only some modules have a DoRA magnitude, which PEFT cannot express; write kohya's.")
    rank = Counter(adapter.rank for adapter in adapters).most_common(1)[0][0]
    other = {adapter.module: adapter.rank for adapter in adapters if adapter.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": [adapter.module for adapter in adapters],
        "use_dora": has_magnitude == {True},
        "use_rslora": False,
    }


def write_kohya(
    path: Path,
    lora: LoraWeights,
    denoiser_config: DenoiserConfig,
    metadata: Mapping[str, str],
    dtype: np.dtype | None = None,
) -> int:
    """Writes the file that ComfyUI, the web UIs and kohya's tools read; returns the number of tensors.

    All modules get the most common alpha, and where a module's own is another, the difference goes into B: diffusers
    0.42 reads this layout too, but loses track of whose alpha is whose when they differ. Of a DoRA it leaves the
    magnitudes out, and adds the bare A B instead, which is another model; `write_peft` is the file for it.

    Args:
        denoiser_config: of the base model; it decides the spelling.
        metadata: further entries of the file's head; they replace what is known from the LoRA itself.
        dtype: of the written matrices; None is float32. Alphas are always float32.

    Raises:
        UserError: the file exists.
    """
    adapters = to_adapters(lora)
    alpha = Counter(adapter.alpha for adapter in adapters).most_common(1)[0][0]
    tensors = {}
    for adapter in (adapter.with_alpha(alpha) for adapter in adapters):
        name = kohya_name(adapter.component, adapter.module, denoiser_config)
        tensors[f"{name}.lora_down.weight"] = adapter.lora_a
        tensors[f"{name}.lora_up.weight"] = adapter.lora_b
        tensors[f"{name}.alpha"] = np.asarray(alpha)
        if adapter.magnitude is not None:
            tensors[f"{name}.dora_scale"] = adapter.magnitude.reshape(-1, *(1 for _ in adapter.lora_a.shape[1:]))
    is_dora = any(adapter.magnitude is not None for adapter in adapters)
    head = kohya_metadata(denoiser_config, [adapter.rank for adapter in adapters], alpha, is_dora)
    return write_arrays(path, tensors, {"format": "pt"} | head | dict(metadata), dtype)


def write_comfyui(
    path: Path,
    lora: LoraWeights,
    denoiser: ModuleDef,
    denoiser_config: DenoiserConfig,
    metadata: Mapping[str, str],
    dtype: np.dtype | None = None,
) -> int:
    """Writes the file of a flow transformer's LoRA that ComfyUI reads; returns the number of tensors.

    ComfyUI knows Z-Image's layers by diffusers' names, and FLUX.2's by those of its release, whose fused layers get an
    adapter of the summed rank (`fused.fuse`).

    Args:
        denoiser: structure of the base model's.
        denoiser_config: of the base model; it decides the names.
        metadata: further entries of the file's head; they replace what is known from the LoRA itself.
        dtype: of the written matrices; None is float32. Alphas are always float32.

    Raises:
        UserError: the file exists.
    """
    adapters, file = to_adapters(lora), family_of(denoiser_config).denoiser_file
    assert file is not None
    named = {adapter.module: adapter for adapter in adapters}
    if file.names_lora:
        named = join_adapters(adapters, denoiser, file)
    tensors = {}
    for module, adapter in named.items():
        name = f"diffusion_model.{module}"
        tensors[f"{name}.lora_A.weight"] = adapter.lora_a
        tensors[f"{name}.lora_B.weight"] = adapter.lora_b
        if adapter.alpha != adapter.rank:  # diffusers refuses alphas beside FLUX.2's own names
            tensors[f"{name}.alpha"] = np.asarray(adapter.alpha)
        if adapter.magnitude is not None:
            tensors[f"{name}.dora_scale"] = adapter.magnitude.reshape(-1, 1)
    head = transformer_metadata(denoiser_config, [adapter.rank for adapter in named.values()])
    return write_arrays(path, tensors, {"format": "pt"} | head | dict(metadata), dtype)


def join_adapters(adapters: Sequence[Adapter], denoiser: ModuleDef, file: DenoiserFile) -> dict[str, Adapter]:
    """Returns the adapters of the layers that the file has, by their names there, with alpha = rank."""
    joined = {}
    for name, (module, parts) in parts_by_name(adapters, denoiser, file).items():
        adapter = fuse(parts, [denoiser.shapes[f"{layer}.kernel"].shape[-1] for layer in module.layers])
        joined[name] = swap_halves(adapter) if module.is_swapped else adapter
    return joined


def can_join(lora: LoraWeights, denoiser: ModuleDef, file: DenoiserFile) -> bool:
    """Whether `write_comfyui` can write a LoRA: not a DoRA of some of the layers that are one in ComfyUI."""
    if not file.names_lora:
        return True
    return all(can_fuse(parts) for _, parts in parts_by_name(to_adapters(lora), denoiser, file).values())


def parts_by_name(
    adapters: Sequence[Adapter], denoiser: ModuleDef, file: DenoiserFile
) -> dict[str, tuple[FileModule, list[Adapter | None]]]:
    """Returns the name of each layer that the file has -> the layer and its parts' adapters, if there are any."""
    adapter_of = {adapter.module: adapter for adapter in adapters}
    found = {}
    for name, module in authors_modules("", adaptable_layers(denoiser), file).items():
        parts = [adapter_of.get(layer) for layer in module.layers]
        if any(parts):
            found[name] = (module, parts)
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str], dtype: np.dtype | None) -> int:
    """Writes a safetensors file that was not there; returns the number of tensors.

    Args:
        dtype: of the written matrices and vectors; None is float32. Single numbers are always float32.
    """
    if path.exists():
        raise UserError(f"{path} exists already; choose another --out or remove it.")
    tensors = []
    for name, value in arrays.items():
        kept = np.dtype(dtype or np.float32 if value.ndim else np.float32)
        tensors.append(LazyTensor(name, kept, value.shape, partial(np.asarray, value, kept)))
    write_tensors(path, tensors, metadata)
    return len(tensors)
