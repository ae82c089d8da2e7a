"""LoRA files, in: whatever diffusers, ComfyUI, the web UIs and other trainers write."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import KINDS
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.diffusers_read import list_names, open_tensors
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, from_adapters
from jaxbooth.weights.lora.alpha import Alphas, read_alphas
from jaxbooth.weights.lora.fused import split, swap_halves
from jaxbooth.weights.lora.identify import suggest_family
from jaxbooth.weights.lora.lycoris import (
    LycorisAdapter,
    add_lycoris,
    file_shape,
    has_factors,
    read_lycoris,
    split_rows,
    swap_output_halves,
)
from jaxbooth.weights.lora.names import FileModule, group_names, modules_by_name
from jaxbooth.weights.values import finite, weight_dtype

ALPHAS = 1e-30, 1e30  # nearer to 0 or infinity, alpha / rank is that in float32


def read_lora(path: Path, networks: Mapping[str, ModuleDef], denoiser_config: DenoiserConfig) -> LoraWeights:
    """Reads a LoRA, LoHa or LoKr in the layout of PEFT, diffusers, kohya's tools, LyCORIS, ComfyUI or OneTrainer.

    An `.alpha` tensor comes before diffusers' metadata, and without either alpha is the rank. Where the file has one
    adapter for several layers, each gets its own.

    Args:
        networks: component -> structure of the base model that the LoRA is for.

    Raises:
        UserError: the file is damaged, no LoRA or of an unsupported kind (OFT, ...), or does not fit the base.
    """
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
        parts_of = {
            name: {part: read_tensor(path, file, tensor) for part, tensor in parts.items()}
            for name, parts in group_names(path, list(file.keys())).items()
        }
    hint = suggest_family({name: first_shape(parts) for name, parts in parts_of.items()})
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
    adapters: dict[tuple[str, str], Adapter | LycorisAdapter] = {}
    for name, parts in parts_of.items():
        module = known[name]
        kernels = [networks[module.component].shapes[f"{layer}.kernel"].shape for layer in module.layers]
        read = read_factors if has_factors(parts) else read_adapter
        for adapter in read(f"{path}: {name}", parts, module, kernels, alphas[module.component], hint):
            if (adapter.component, adapter.module) in adapters:
                raise UserError(
                    f"{path} holds {adapter.component}.{adapter.module} twice, under two names; fetch another copy."
                )
            adapters[adapter.component, adapter.module] = adapter
    return join_kinds(path, [adapters[key] for key in sorted(adapters)])


def join_kinds(path: Path, adapters: Sequence[Adapter | LycorisAdapter]) -> LoraWeights:
    """Joins the adapters of a file, which must be of one kind."""
    kinds = sorted({"LoRA" if isinstance(adapter, Adapter) else KINDS[adapter.kind].title for adapter in adapters})
    if len(kinds) > 1:
        raise UserError(f"{path} holds {' and '.join(kinds)} together; files of one kind are supported.")
    lora = from_adapters(adapter for adapter in adapters if isinstance(adapter, Adapter))
    for adapter in adapters:
        if isinstance(adapter, LycorisAdapter):
            add_lycoris(lora, adapter)
    return lora


def first_shape(parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Returns (rank, inputs, ...) of a module's first matrix."""
    return file_shape(parts) if has_factors(parts) else parts["down"].shape


def joined_kernel(kernels: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of the kernel that holds the outputs of several layers."""
    return (*kernels[0][:-1], sum(shape[-1] for shape in kernels))


def read_factors(
    source: str,
    parts: Mapping[str, np.ndarray],
    module: FileModule,
    kernels: Sequence[tuple[int, ...]],
    _alphas: Alphas,
    hint: str,
) -> list[LycorisAdapter]:
    """Returns the LoHa or LoKr of a module's layers; see `read_adapter`. Without an alpha it is the rank."""
    kind, factors = read_lycoris(source, parts, joined_kernel(kernels), hint)
    fused = LycorisAdapter(module.component, module.layers[0], kind, factors, 1.0)
    alpha = fitted(source, "alpha", parts["alpha"], (), hint).item() if "alpha" in parts else fused.rank or 1.0
    check_alpha(source, alpha)
    fused = fused._replace(alpha=float(alpha))
    if len(kernels) > 1:
        layers = split_rows(fused, module.layers, [kernel[-1] for kernel in kernels])
    else:
        swapped = swap_output_halves(fused) if module.is_swapped else fused
        layers = swapped and [swapped]
    if not layers:
        raise UserError(
            f"{source}: the groups of its LoKr go across {' and '.join(module.layers)}, which are layers of their own "
            "here; only a LoKr of the separate layers can be read."
        )
    return layers


def read_adapter(
    source: str,
    parts: Mapping[str, np.ndarray],
    module: FileModule,
    kernels: Sequence[tuple[int, ...]],
    alphas: Alphas,
    hint: str,
) -> list[Adapter]:
    """Returns the adapters of a module's layers, checked against the kernels of the base model's.

    Args:
        kernels: shape of each layer's kernel; the layers of a module differ in their outputs only.
        alphas: of modules without an alpha of their own.
    """
    layer = module.layers[0]
    down, up, magnitude = read_matrices(source, parts, joined_kernel(kernels), hint)
    if "alpha" in parts:
        alpha = fitted(source, "alpha", parts["alpha"], (), hint).item()
    else:
        alpha = alphas.alpha(layer, len(down))
    check_alpha(source, alpha)
    fused = Adapter(module.component, layer, down, up, magnitude, alpha)
    return separate(fused, module, [kernel[-1] for kernel in kernels])


def check_alpha(source: str, alpha: float) -> None:
    """Refuses an alpha by which nothing can be scaled."""
    if not ALPHAS[0] <= abs(alpha) <= ALPHAS[1]:
        raise UserError(f"{source}: its alpha is {alpha:g}; expected a number that float32 can hold, and not 0.")


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
