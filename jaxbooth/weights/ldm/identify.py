"""What a single weight file is: one of the families that jaxbooth trains, or something else that has a name."""

import re
from pathlib import Path
from typing import Any

from jaxbooth.errors import UserError
from jaxbooth.weights.architectures import FAMILIES, LDM_FAMILIES
from jaxbooth.weights.family import Family
from jaxbooth.weights.ldm.names import UNET_PREFIX
from jaxbooth.weights.single_file import any_matches, find_other_model

INPUT = f"{UNET_PREFIX}input_blocks.0.0.weight"
LABELS = f"{UNET_PREFIX}label_emb.0.0.weight"
REFINER = (1280, 2560)  # width of its text, inputs of its label embedding
INPUTS = {9: "inpainting", 8: "instruct-pix2pix", 7: "upscaling", 5: "depth"}
# What a file without an LDM UNet can be.
PARTS = (
    (r"(lora_(unet|te\d?)_.*|.*\.lora([._](A|B|down|up))\..*)", "a LoRA, not a whole model"),
    (r"(control_model|controlnet_cond_embedding|input_hint_block)\.", "a ControlNet"),
    (r"(down_blocks|mid_block|up_blocks)\.", "the UNet of a diffusers folder alone; pass that folder"),
    (r"(text_model\.)?encoder\.layers\.", "a text encoder alone; pass the folder of the whole model"),
    (r"(first_stage_model\.)?(encoder|decoder)\.(down|up|mid)", "a VAE alone; it goes beside a model"),
    (r"(model\.)?layers\.\d+\.(self_attn|mlp)\.", "a language model alone; pass the folder of the whole model"),
    (r"", "not a checkpoint that jaxbooth knows"),
)


def refuse(file: Path, content: str) -> UserError:
    """Returns the refusal of a file that is something else."""
    return UserError(
        f"{file} is {content}. A single file must be a Stable Diffusion 1.x, 2.x or SDXL checkpoint, or the "
        "transformer of Z-Image or FLUX.2 klein."
    )


def read_text_width(tensors: Any, file: Path) -> int:
    """Returns the width of the prompt embeddings that a single file's UNet attends to, which tells the family.

    Args:
        tensors: an open safetensors file or pickle.

    Raises:
        UserError: the file is no text-to-image checkpoint of a Stable Diffusion UNet; the message says what it is.
    """
    names = sorted(tensors.keys())
    other = find_other_model(names)
    if other:
        raise refuse(file, f"a {other.title} model")
    if INPUT not in names:
        raise refuse(file, next((part for pattern, part in PARTS if any_matches(pattern, names)), "empty"))
    attends = next((name for name in names if re.match(rf"{UNET_PREFIX}.*\.attn2\.to_k\.weight", name)), None)
    if attends is None:
        raise refuse(file, "a diffusion model without text")
    width = tensors.get_slice(attends).get_shape()[1]
    known = find_family(width)
    family = known.title if known else "Stable Diffusion"
    labels = tensors.get_slice(LABELS).get_shape()[1] if LABELS in names else 0
    if width == REFINER[0] or labels == REFINER[1]:
        raise refuse(file, "the SDXL refiner")
    if labels and family == "SD 2.x":
        raise refuse(file, "an SD 2.x unCLIP model")
    inputs = tensors.get_slice(INPUT).get_shape()[1]
    if inputs in INPUTS:
        raise refuse(file, f"an {family} {INPUTS[inputs]} model")
    return width


def family_of_width(width: int, file: Path) -> Family:
    """Returns the family whose published models attend to prompt embeddings of this width.

    Raises:
        UserError: no family does.
    """
    family = find_family(width)
    if family is None:
        raise refuse(file, f"of an unknown architecture (its text is {width} wide)")
    return family


def find_family(width: int) -> Family | None:
    """Returns the family with single files of this layout whose published models take embeddings of this width."""
    families = (FAMILIES[name] for name in LDM_FAMILIES)
    return next((family for family in families if width in family.text_widths), None)
