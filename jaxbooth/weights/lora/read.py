"""LoRA files, in: whatever diffusers, ComfyUI, the web UIs and other trainers write."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.diffusers_read import list_names, open_tensors
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, from_adapters
from jaxbooth.weights.lora.alpha import Alphas, read_alphas
from jaxbooth.weights.lora.fused import split, swap_halves
from jaxbooth.weights.lora.identify import suggest_family
from jaxbooth.weights.lora.names import FileModule, group_names, modules_by_name
from jaxbooth.weights.values import finite, weight_dtype

ALPHAS = 1e-30, 1e30  # nearer to 0 or infinity, alpha / rank is that in float32


def read_lora(path: Path, networks: Mapping[str, ModuleDef], denoiser_config: DenoiserConfig) -> LoraWeights:
    """Reads a LoRA file in the layout of PEFT, diffusers, kohya's tools, ComfyUI, ai-toolkit or OneTrainer.

    An `.alpha` tensor comes before diffusers' metadata, and without either alpha is the rank. Where the file has one
    adapter for several layers, each gets its own.

    Args:
        networks: component -> structure of the base model that the LoRA is for.

    Raises:
        UserError: the file is damaged, no LoRA or of an unsupported kind (LoHa, LoKr, ...), or does not fit the base.
    """
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
        parts_of = {
            name: {part: read_tensor(path, file, tensor) for part, tensor in parts.items()}
            for name, parts in group_names(path, list(file.keys())).items()
        }
    hint = suggest_family({name: parts["down"].shape for name, parts in parts_of.items()})
    known = modules_by_name(networks, denoiser_config)
    unknown = sorted(name for name in parts_of if name not in known)
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of its {len(parts_of)} modules are not in this base model "
            f"({list_names(unknown)}){hint}."
        )
    silent: dict[str, list[str]] = {component: [] for component in networks}  # modules without an alpha of their own
    for module in (known[name] for name, parts in parts_of.items() if "alpha" not in parts):
        silent[module.component].append(module.layers[0])
    alphas = {component: read_alphas(path, metadata, component, modules) for component, modules in silent.items()}
    adapters: dict[tuple[str, str], Adapter] = {}
    for name, parts in parts_of.items():
        module = known[name]
        kernels = [networks[module.component].shapes[f"{layer}.kernel"].shape for layer in module.layers]
        fused = read_adapter(f"{path}: {name}", parts, module, kernels, alphas[module.component], hint)
        for adapter in separate(fused, module, [kernel[-1] for kernel in kernels]):
            if (adapter.component, adapter.module) in adapters:
                raise UserError(
                    f"{path} holds {adapter.component}.{adapter.module} twice, under two names; fetch another copy."
                )
            adapters[adapter.component, adapter.module] = adapter
    return from_adapters(adapters[key] for key in sorted(adapters))


def read_adapter(
    source: str,
    parts: Mapping[str, np.ndarray],
    module: FileModule,
    kernels: Sequence[tuple[int, ...]],
    alphas: Alphas,
    hint: str,
) -> Adapter:
    """Returns the adapter of a module of the file, checked against the kernels of the base model's layers.

    Args:
        kernels: shape of each layer's kernel; the layers of a module differ in their outputs only.
        alphas: of modules without an alpha of their own.
    """
    layer = module.layers[0]
    kernel = (*kernels[0][:-1], sum(shape[-1] for shape in kernels))
    down, up, magnitude = read_matrices(source, parts, kernel, hint)
    if "alpha" in parts:
        alpha = fitted(source, "alpha", parts["alpha"], (), hint).item()
    else:
        alpha = alphas.alpha(layer, len(down))
    if not ALPHAS[0] <= abs(alpha) <= ALPHAS[1]:
        raise UserError(f"{source}: its alpha is {alpha:g}; expected a number that float32 can hold, and not 0.")
    return Adapter(module.component, layer, down, up, magnitude, alpha)


def separate(adapter: Adapter, module: FileModule, widths: Sequence[int]) -> list[Adapter]:
    """Returns the adapters of a module's layers, their outputs in the base model's order.

    Args:
        widths: outputs of each layer.
    """
    if len(widths) > 1:
        return split(adapter, module.layers, widths)
    return [swap_halves(adapter) if module.is_swapped else adapter]


def read_tensor(path: Path, file: Any, name: str) -> np.ndarray:
    """Reads one tensor as float32.

    Raises:
        UserError: it holds something else than finite floats.
    """
    weight_dtype(file.get_slice(name).get_dtype(), name, path)
    return finite(np.asarray(file.get_tensor(name)).astype(np.float32), name, path)


def fitted(source: str, part: str, value: np.ndarray, shape: tuple[int, ...], hint: str) -> np.ndarray:
    """Returns a tensor in the shape that the base model asks for, or raises a `UserError`."""
    # 1 x 1 kernels are found with and without their last two axes
    if value.size != math.prod(shape) or value.shape[: len(shape)][:2] != shape[:2]:
        raise UserError(f"{source}: its {part} has shape {value.shape}, but this base model asks for {shape}{hint}.")
    return value.reshape(shape)


def read_matrices(
    source: str, parts: Mapping[str, np.ndarray], kernel: tuple[int, ...], hint: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns a module's down and up matrix and its magnitude, checked against the base model's kernel."""
    outputs, inputs, *window = kernel[-1], kernel[-2], *kernel[:-2]
    rank = parts["down"].shape[0] if parts["down"].ndim else 1
    down = fitted(source, "A", parts["down"], (rank, inputs, *window), hint)
    up = fitted(source, "B", parts["up"], (outputs, rank, *(1 for _ in window)), hint)
    if "magnitude" in parts:  # PEFT: (out,), in convolutions (1, out, 1, 1)
        shape = (1, outputs, 1, 1) if window else (outputs,)
        return down, up, fitted(source, "magnitude", parts["magnitude"], shape, hint).ravel()
    if "dora_scale" not in parts:
        return down, up, None
    # LyCORIS: (out, 1, ...), or (1, in, ...) when it normalizes inputs
    if parts["dora_scale"].shape[:2] == (1, inputs):
        raise UserError(f"{source}: DoRA over inputs (LyCORIS' wd_on_output=False) is not supported.")
    return down, up, fitted(source, "dora_scale", parts["dora_scale"], (outputs,), hint)
