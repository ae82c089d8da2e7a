"""LoRA files, in: PEFT's layout (diffusers), diffusers' older one and kohya's (ComfyUI, the web UIs)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.diffusers_read import list_names, open_tensors
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, from_adapters
from jaxbooth.weights.lora.alpha import read_alphas
from jaxbooth.weights.lora.names import group_names, modules_by_name, suggest_family
from jaxbooth.weights.values import finite, weight_dtype

ALPHAS = 1e-30, 1e30  # nearer to 0 or infinity, alpha / rank is that in float32


def read_lora(path: Path, networks: Mapping[str, ModuleDef], denoiser_config: UNetConfig) -> LoraWeights:
    """Reads a LoRA file in PEFT's, diffusers' older or kohya's layout.

    An `.alpha` tensor comes before diffusers' metadata, and without either alpha is the rank.

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
    for component, module in (known[name] for name, parts in parts_of.items() if "alpha" not in parts):
        silent[component].append(module)
    alphas = {component: read_alphas(path, metadata, component, modules) for component, modules in silent.items()}
    adapters: dict[tuple[str, str], Adapter] = {}
    for name, parts in parts_of.items():
        component, module = known[name]
        if known[name] in adapters:
            raise UserError(f"{path} holds {component}.{module} twice, under two names; fetch another copy.")
        kernel = networks[component].shapes[f"{module}.kernel"].shape
        matrices = read_matrices(f"{path}: {name}", parts, kernel, hint)
        if "alpha" in parts:
            alpha = fitted(f"{path}: {name}", "alpha", parts["alpha"], (), hint).item()
        else:
            alpha = alphas[component].alpha(module, len(matrices[0]))
        if not ALPHAS[0] <= abs(alpha) <= ALPHAS[1]:
            raise UserError(
                f"{path}: the alpha of {name} is {alpha:g}; expected a number that float32 can hold, and not 0."
            )
        adapters[known[name]] = Adapter(component, module, *matrices, alpha)
    return from_adapters(adapters[key] for key in sorted(adapters))


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
