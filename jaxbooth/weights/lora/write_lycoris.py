"""LoHa and LoKr files, out: LyCORIS' names for ComfyUI, the web UIs and LyCORIS, and PEFT's for diffusers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.architectures import family_of
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.lycoris import (
    LycorisAdapter,
    lycoris_adapters,
    stored_tensors,
    swap_output_halves,
)
from jaxbooth.weights.lora.metadata import kohya_metadata, transformer_metadata
from jaxbooth.weights.lora.names import adaptable_layers, authors_modules, kohya_name
from jaxbooth.weights.lora.write import write_arrays


class FileLayer(NamedTuple):
    """How a layer is called in LyCORIS' files.

    Attributes:
        is_swapped: the halves of its outputs lie the other way round.
    """

    name: str
    is_swapped: bool = False


def file_layers(component: str, layers: Sequence[str], config: DenoiserConfig) -> dict[str, FileLayer]:
    """Returns layer -> its name: kohya's for Stable Diffusion, and those that ComfyUI has for a flow transformer.

    Layers that ComfyUI keeps in one matrix it knows by diffusers' names, too; others of FLUX.2 by those of its release.
    """
    file = family_of(config).denoiser_file
    if file is None:
        return {layer: FileLayer(kohya_name(component, layer, config)) for layer in layers}
    if not file.names_lora:
        return {layer: FileLayer(f"diffusion_model.{layer}") for layer in layers}
    found = {}
    for name, module in authors_modules(component, layers, file).items():
        for layer in module.layers:
            is_one = len(module.layers) == 1
            found[layer] = FileLayer(f"diffusion_model.{name}" if is_one else f"transformer.{layer}", module.is_swapped)
    return found


def write_lycoris(
    path: Path,
    lora: LoraWeights,
    networks: Mapping[str, ModuleDef],
    denoiser_config: DenoiserConfig,
    metadata: Mapping[str, str],
    dtype: np.dtype | None = None,
) -> int:
    """Writes the file that ComfyUI, the web UIs and LyCORIS read; returns the number of tensors.

    Args:
        networks: component -> structure of the base model.
        denoiser_config: of the base model; it decides the names.
        metadata: further entries of the file's head; they replace what is known from the adapters themselves.
        dtype: of the written factors; None is float32. Alphas are always float32.

    Raises:
        UserError: the file exists, or a LoKr cannot have the halves of its outputs swapped.
    """
    adapters = lycoris_adapters(lora)
    layers = {name: file_layers(name, adaptable_layers(network), denoiser_config) for name, network in networks.items()}
    tensors = {}
    for adapter in adapters:
        name, is_swapped = layers[adapter.component][adapter.module]
        written = swapped(adapter) if is_swapped else adapter
        for factor, value in stored_tensors(written):
            tensors[f"{name}.{factor}"] = value
        tensors[f"{name}.alpha"] = np.asarray(written.alpha)
    head = {"format": "pt"} | lycoris_metadata(denoiser_config, adapters) | dict(metadata)
    return write_arrays(path, tensors, head, dtype)


def swapped(adapter: LycorisAdapter) -> LycorisAdapter:
    """Returns the adapter of a layer whose outputs' halves ComfyUI has the other way round."""
    result = swap_output_halves(adapter)
    if result is None:
        raise UserError(
            f"ComfyUI has the halves of {adapter.module} the other way round, which a LoKr with an odd number of "
            "groups cannot follow; leave that layer out of --lora.targets."
        )
    return result


def lycoris_metadata(config: DenoiserConfig, adapters: Sequence[LycorisAdapter]) -> dict[str, str]:
    """Returns what a file's head says of the adapters; the algorithm stands where LyCORIS puts it."""
    ranks = [adapter.rank or 1 for adapter in adapters]
    algorithm = {"ss_network_args": json.dumps({"algo": adapters[0].kind})}
    if family_of(config).denoiser_file:
        return transformer_metadata(config, ranks) | algorithm
    return kohya_metadata(config, ranks, adapters[0].alpha, is_lycoris=True) | algorithm
