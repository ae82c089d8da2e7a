"""LoRA files, in and out: PEFT's layout (diffusers) and kohya's (ComfyUI, the web UIs).

The scale of B A is alpha / rank for every module. A rank-stabilised LoRA (alpha / sqrt(rank)) is the same thing with an
alpha that is sqrt(rank) times larger, and is held, read and written so: no reader needs to know of it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.config import UNetConfig
from jaxbooth.models.lora import LORA_A, LORA_B, MAGNITUDE, lora_layers
from jaxbooth.params import ModuleDef
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.lora.alpha import METADATA_KEY, read_alphas
from jaxbooth.weights.lora.names import (
    advice,
    group_names,
    kohya_metadata,
    kohya_name,
    modules_by_name,
    published_path,
    some,
)
from jaxbooth.weights.names import export_array, import_axes
from jaxbooth.weights.safetensors_write import LazyTensor, write_tensors
from jaxbooth.weights.values import finite, weight_dtype

ALPHAS = 1e-30, 1e30  # nearer to 0 or infinity, alpha / rank is that in float32
ATTENTION_OF_TEXT = re.compile(r"\.(q|k|v|out)_proj$")


class LoraWeights(NamedTuple):
    """A LoRA as jaxbooth trains it.

    Attributes:
        adapters: `<component>.<module>.lora_A.kernel`, `.lora_B.kernel` and, for DoRA,
            `.lora_magnitude_vector.scale` -> float32 array, kernels (in, out) or HWIO.
        alphas: `<component>.<module>` -> alpha; the module's weight is W + alpha / rank * A B.
    """

    adapters: dict[str, np.ndarray]
    alphas: dict[str, float]


class Adapter(NamedTuple):
    """One module's adapter in torch's layout: down (r, in, ...), up (out, r, ...), magnitude (out,)."""

    component: str
    module: str
    down: np.ndarray
    up: np.ndarray
    magnitude: np.ndarray | None
    alpha: float

    @property
    def rank(self) -> int:
        """Columns of the bottleneck."""
        return self.down.shape[0]

    def with_alpha(self, alpha: float) -> "Adapter":
        """Returns the same update under another alpha; the difference goes into `up`."""
        return self._replace(up=self.up * np.float32(self.alpha / alpha), alpha=alpha)


def to_adapters(lora: LoraWeights) -> list[Adapter]:
    """Splits a LoRA into its modules, in the order of their names."""
    adapters = []
    for key in sorted(lora_layers(lora.adapters)):
        down, up = (export_array(leaf, np.asarray(lora.adapters[f"{key}.{leaf}"])) for leaf in (LORA_A, LORA_B))
        component, _, module = key.partition(".")
        adapters.append(Adapter(component, module, down, up, lora.adapters.get(f"{key}.{MAGNITUDE}"), lora.alphas[key]))
    return adapters


def from_adapters(adapters: Iterable[Adapter]) -> LoraWeights:
    """Joins modules: the inverse of `to_adapters`."""
    lora = LoraWeights({}, {})
    for adapter in adapters:
        key = f"{adapter.component}.{adapter.module}"
        for leaf, value in ((LORA_A, adapter.down), (LORA_B, adapter.up)):
            lora.adapters[f"{key}.{leaf}"] = np.ascontiguousarray(value.transpose(import_axes(leaf, value.ndim)))
        if adapter.magnitude is not None:
            lora.adapters[f"{key}.{MAGNITUDE}"] = adapter.magnitude
        lora.alphas[key] = adapter.alpha
    return lora


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
        found = {
            name: {part: read_tensor(path, file, tensor) for part, tensor in parts.items()}
            for name, parts in group_names(path, list(file.keys())).items()
        }
    hint = advice({name: parts["down"].shape for name, parts in found.items()})
    known = modules_by_name(networks, denoiser_config)
    unknown = sorted(name for name in found if name not in known)
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of its {len(found)} modules are not in this base model ({some(unknown)}){hint}."
        )
    silent: dict[str, list[str]] = {component: [] for component in networks}  # modules without an alpha of their own
    for component, module in (known[name] for name, parts in found.items() if "alpha" not in parts):
        silent[component].append(module)
    alphas = {component: read_alphas(path, metadata, component, modules) for component, modules in silent.items()}
    adapters: dict[tuple[str, str], Adapter] = {}
    for name, parts in found.items():
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
        own = [adapter for adapter in adapters if adapter.component == component]
        config |= {f"{component}.{key}": value for key, value in peft_config(path, own).items()}
        down, up = spelling_for_diffusers(component, [adapter.module for adapter in own])
        for adapter in own:
            name = f"{component}.{published_path(component, adapter.module)}"
            tensors[f"{name}.{down}"] = adapter.down
            tensors[f"{name}.{up}"] = adapter.up
            if adapter.magnitude is not None:
                # PEFT leaves out `.weight` when it saves, and transformers 5 does not find the tensor without
                leaf = "lora_magnitude_vector" + (".weight" if component != "unet" else "")
                shape = (1, -1, 1, 1) if adapter.down.ndim == 4 else (-1,)
                tensors[f"{name}.{leaf}"] = adapter.magnitude.reshape(shape)
    head = {"format": "pt", METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}
    return write_arrays(path, tensors, dict(metadata) | head, dtype)


def spelling_for_diffusers(component: str, modules: list[str]) -> tuple[str, str]:
    """Returns the ends of the names of A and B.

    diffusers (0.42) tells how a text encoder's adapters are spelled by those of its attention. Where there are none, it
    knows only its own older words, which all its versions read.
    """
    if component == "unet" or any(ATTENTION_OF_TEXT.search(module) for module in modules):
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
        tensors[f"{name}.lora_down.weight"] = adapter.down
        tensors[f"{name}.lora_up.weight"] = adapter.up
        tensors[f"{name}.alpha"] = np.asarray(alpha)
        if adapter.magnitude is not None:
            tensors[f"{name}.dora_scale"] = adapter.magnitude.reshape(-1, *(1 for _ in adapter.down.shape[1:]))
    is_dora = any(adapter.magnitude is not None for adapter in adapters)
    head = kohya_metadata(denoiser_config, [adapter.rank for adapter in adapters], alpha, is_dora)
    return write_arrays(path, tensors, {"format": "pt"} | head | dict(metadata), dtype)


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
