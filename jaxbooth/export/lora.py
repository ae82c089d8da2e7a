"""A LoRA, written twice: for diffusers (PEFT's layout), and for ComfyUI, the web UIs and kohya's tools.

The second file is in kohya's layout, and for a flow transformer in the one that ComfyUI reads.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.errors import UserError
from jaxbooth.export.format import Export, ExportFormat, ReadBack
from jaxbooth.models.adapter_kinds import AdapterKindName, LoraSpec
from jaxbooth.models.lora import lora_layers
from jaxbooth.models.low_rank import LORA_B
from jaxbooth.params import AnyArray, ModuleDef, by_component, flatten_components
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.diffusers_write import DTYPES
from jaxbooth.weights.family import Family
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.read import read_lora
from jaxbooth.weights.lora.write import can_join, write_comfyui, write_kohya, write_peft

PEFT_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
# What float32 arithmetic may lose where a part of alpha / rank is multiplied into B, relative to the largest value.
SCALE_ERROR = 1e-6
OUT, MLP = "out_proj", ("fc1", "fc2")  # a text encoder's output projection of attention, and its perceptron


class LoraFormat(ExportFormat):
    """Adapters, to be used with the base model."""

    name = "lora"
    help = "adapters for all of them"
    introduction = "A LoRA for"
    hub_tags = ("lora", "template:sd-lora")
    torch_packages = ("torch", "diffusers", "peft")

    def check(self, base: BaseModel) -> None:
        """Refuses a run that trained whole components."""
        check_kind(base, self.name, ("lora", "dora"))

    def weights_file(self, name: str) -> str:
        """Returns diffusers' file."""
        return PEFT_FILE

    def write(self, export: Export, folder: Path) -> None:
        """Writes both files."""
        lora, dtype = trained_lora(export), DTYPES[export.dtype]
        write_peft(folder / PEFT_FILE, lora, export.metadata, dtype=dtype)
        other = other_file(export)
        if other is None:
            return
        base = export.base
        if base.family.denoiser_file:
            write_comfyui(folder / other, lora, base.denoiser, base.denoiser_config, export.metadata, dtype=dtype)
        else:
            write_kohya(folder / other, lora, base.denoiser_config, export.metadata, dtype=dtype)

    def read_back(self, export: Export) -> Iterator[ReadBack]:
        """Reads the files as `--lora.init` does, then what only other programs see: dtypes, and alphas."""
        trained, dtype = trained_lora(export), DTYPES[export.dtype] or np.dtype(np.float32)
        other = other_file(export)
        for file in (PEFT_FILE, *([other] if other else [])):
            written = read_adapters(export, export.out / file)
            for name, value in trained.adapters.items():
                found = written.adapters.pop(name, None)
                scale = 1.0
                if name.endswith(LORA_B) and found is not None:
                    layer = name.removesuffix(f".{LORA_B}")
                    scale = trained.alphas[layer] / written.alphas[layer]
                found = None if found is None else found.astype(dtype)
                if math.isclose(scale, 1, rel_tol=1e-6):  # alphas are stored in float32
                    yield ReadBack(f"{file}: {name}", found, value.astype(dtype))
                else:
                    expected = (value.astype(np.float64) * scale).astype(dtype)
                    yield ReadBack(f"{file}: {name}", found, expected, SCALE_ERROR)
            for name, surplus in sorted(written.adapters.items()):
                yield ReadBack(f"{file}: {name}", surplus, None)
            yield from stored_dtypes(export.out / file, dtype)

    def load_in_torch(self, pipe: Any, export: Export) -> None:
        """Adds diffusers' file to the pipeline."""
        pipe.load_lora_weights(export.out, weight_name=PEFT_FILE)

    def written_adapters(self, export: Export) -> dict[str, dict[str, AnyArray]]:
        """Returns component -> adapters, rounded as they were written."""
        written, trained = read_adapters(export, export.out / PEFT_FILE), trained_lora(export)
        for name in written.adapters:
            if name.endswith(LORA_B):
                layer = name.removesuffix(f".{LORA_B}")
                scale = np.float32(written.alphas[layer] / trained.alphas[layer])
                written.adapters[name] = written.adapters[name] * scale
        return by_component(written.adapters)

    def notes(self, export: Export) -> list[str]:
        """Returns which file is for whom, where that matters: diffusers misreads some LoRAs in the second."""
        other = other_file(export)
        if other is None:
            return [
                "there is no file for ComfyUI, which has query, key and value in one layer: a DoRA of some of them "
                "cannot say what the others' magnitudes are"
            ]
        advice = f"give diffusers {PEFT_FILE}, and {other} to everything else: diffusers "
        if spec_of(export).dora:
            return [advice + "leaves a DoRA's magnitudes out of the latter and computes something else"]
        misread = misread_parts(export)
        if misread:
            return [f"{advice}misreads the latter's {' and '.join(misread)}"]
        return [f"{PEFT_FILE} is for diffusers, {other} for ComfyUI"] if export.base.family.denoiser_file else []

    def loading_code(self, repo: str, family: Family, tokens: Sequence[str], files: Sequence[str]) -> list[str]:
        """Returns the line of Python that adds the LoRA to `pipe`."""
        return [f"pipe.load_lora_weights({repo!r}, weight_name={PEFT_FILE!r})"]


def check_kind(base: BaseModel, format: str, kinds: Sequence[str]) -> None:
    """Refuses a run whose adapters are of other kinds than a format holds, or that has none.

    Raises:
        UserError: the message names the format to use.
    """
    if base.lora is None:
        raise UserError(
            f"--format {format} needs a run with --lora.rank; this one trained whole components, use diffusers."
        )
    if base.lora.kind not in kinds:
        title, other = base.lora.formulas.title, adapter_format(base.lora.kind)
        raise UserError(f"--format {format} cannot hold a {title}, which this run trained; use {other} or diffusers.")


def adapter_format(kind: AdapterKindName) -> str:
    """Returns the name of the format that holds adapters of a kind."""
    return "lora" if kind == "dora" else kind


def other_file(export: Export) -> str | None:
    """Returns the file for everything but diffusers; None: its only reader, ComfyUI, cannot have this LoRA."""
    file = export.base.family.denoiser_file
    if file is None:
        return kohya_file(export.out.name)
    is_possible = can_join(trained_lora(export), export.base.denoiser, file)
    return f"{export.out.name}_comfyui.safetensors" if is_possible else None


def kohya_file(name: str) -> str:
    """Returns the file for ComfyUI, the web UIs and kohya's tools, of an export of that name."""
    return f"{name}_kohya.safetensors"


def misread_parts(export: Export) -> list[str]:
    """Returns what diffusers 0.42 reads from the second file as something else, in words."""
    trained, base = export.weights(), export.base
    if base.family.denoiser_file:
        layers = [f"{layer}.weight" for layer in lora_layers(trained[base.denoiser_name])]
        swapped = sorted(base.family.denoiser_file.swapped.intersection(layers))
        return [f"{name.removesuffix('.weight')}, whose halves ComfyUI has the other way round" for name in swapped]
    return [
        f"{name}, which has no adapter on {OUT}"
        for name in base.text_encoder_names
        if name in trained and not kohya_is_read(lora_layers(trained[name]))
    ]


def spec_of(export: Export) -> LoraSpec:
    """Returns what the adapters of a run with a LoRA share."""
    assert export.base.lora is not None
    return export.base.lora


def trained_lora(export: Export) -> LoraWeights:
    """Returns the trained adapters in float32; all have one alpha."""
    flat = flatten_components(export.weights())
    adapters = {name: np.asarray(jax.device_get(value), np.float32) for name, value in flat.items()}
    alpha = spec_of(export).scale * spec_of(export).rank
    return LoraWeights(adapters, dict.fromkeys(lora_layers(adapters), alpha))


def read_adapters(export: Export, file: Path) -> LoraWeights:
    """Reads one of the files."""
    return read_lora(file, trainable_modules(export.base), export.base.denoiser_config)


def trainable_modules(base: BaseModel) -> dict[str, ModuleDef]:
    """Returns the structure of the components that may have adapters."""
    return {name: base.module(name) for name in base.trainable_components()}


def stored_dtypes(path: Path, dtype: np.dtype) -> Iterator[ReadBack]:
    """Reads the matrices that are stored in another dtype than asked for, and all alphas, which are float32."""
    with open_tensors(path) as file:
        for name in sorted(file.keys()):
            stored = file.get_tensor(name)
            expected = np.dtype(np.float32) if name.endswith(".alpha") else dtype
            if name.endswith(".alpha") or stored.dtype != expected:
                yield ReadBack(f"{path.name}: {name}", stored, stored.astype(expected))


def kohya_is_read(layers: list[str]) -> bool:
    """Whether diffusers 0.42 reads a text encoder's adapters right from kohya's layout.

    It tells the spelling by `out_proj`, and without it takes everything for the perceptron's.
    """
    kinds = {layer.rpartition(".")[2] for layer in layers}
    return OUT in kinds or kinds <= set(MLP)
