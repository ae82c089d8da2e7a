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
from jaxbooth.models.config import UNetConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.architectures import family_of
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
    denoiser_config: UNetConfig,
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
    denoiser_config: UNetConfig,
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
    adapters = to_adapters(lora)
    if joins_projections(denoiser_config):
        named = authors_adapters(adapters, denoiser, denoiser_config)
    else:
        named = {adapter.module: adapter for adapter in adapters}
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


def authors_adapters(
    adapters: Sequence[Adapter], denoiser: ModuleDef, denoiser_config: UNetConfig
) -> dict[str, Adapter]:
    """Returns the adapters by the names of the model's authors, with alpha = rank; projections are joined."""
    found = {}
    for name, (module, parts) in grouped(adapters, denoiser, denoiser_config).items():
        fused = fuse(parts, [denoiser.shapes[f"{layer}.kernel"].shape[-1] for layer in module.layers])
        found[name] = swap_halves(fused) if module.is_swapped else fused
    return found


def can_join(lora: LoraWeights, denoiser: ModuleDef, denoiser_config: UNetConfig) -> bool:
    """Whether `write_comfyui` can write a LoRA: not a DoRA of some of the layers that are one in ComfyUI."""
    if not joins_projections(denoiser_config):
        return True
    groups = grouped(to_adapters(lora), denoiser, denoiser_config).values()
    return all(can_fuse(parts) for _, parts in groups)


def grouped(
    adapters: Sequence[Adapter], denoiser: ModuleDef, denoiser_config: UNetConfig
) -> dict[str, tuple[FileModule, list[Adapter | None]]]:
    """Returns the authors' name -> layer and the adapters of its parts, of layers that have any."""
    family = family_of(denoiser_config)
    assert family.denoiser_file is not None
    adapter_of = {adapter.module: adapter for adapter in adapters}
    modules = authors_modules(family.denoiser.component, adaptable_layers(denoiser), family.denoiser_file)
    groups = {}
    for name, module in modules.items():
        parts = [adapter_of.get(layer) for layer in module.layers]
        if any(parts):
            groups[name] = (module, parts)
    return groups


def joins_projections(denoiser_config: UNetConfig) -> bool:
    """Whether ComfyUI knows a transformer's layers by its authors' names alone, projections joined."""
    return family_of(denoiser_config).denoiser.has_ldm_names


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
