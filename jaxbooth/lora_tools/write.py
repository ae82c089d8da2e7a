"""A LoRA as one file, in the layout that was asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jaxbooth.errors import UserError
from jaxbooth.lora_tools.structure import Structure
from jaxbooth.weights.architectures import family_of
from jaxbooth.weights.diffusers_write import DTYPES
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.write import write_comfyui, write_kohya, write_peft

LoraLayout = Literal["peft", "kohya"]
LoraDtype = Literal["float32", "float16", "bfloat16"]


def check_new_file(out: Path) -> None:
    """Refuses a file that exists, and one that is not called as a safetensors file.

    Raises:
        UserError: the message says what to do.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} is no .safetensors file; name one, such as {out.with_suffix('.safetensors')}.")
    if out.exists():
        raise UserError(f"--out {out} exists already, and no file is overwritten; choose another or remove it.")


def write_lora(
    out: Path,
    lora: LoraWeights,
    structure: Structure,
    layout: LoraLayout,
    dtype: LoraDtype,
    metadata: Mapping[str, str],
) -> int:
    """Writes a LoRA, aside first and then under its name; returns the number of tensors.

    Args:
        layout: peft is what diffusers reads; kohya what ComfyUI and the web UIs do, which for a flow transformer is
            ComfyUI's own layout.

    Raises:
        UserError: the file exists.
    """
    stored, config = DTYPES[dtype], structure.config
    if layout == "peft":
        return write_peft(out, lora, metadata, stored)
    denoiser = family_of(config).denoiser
    if family_of(config).denoiser_file:
        return write_comfyui(out, lora, structure.networks[denoiser.component], config, metadata, stored)
    return write_kohya(out, lora, config, metadata, stored)
