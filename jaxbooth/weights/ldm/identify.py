"""What a single weight file is: one of the families that jaxbooth trains, or something else that has a name."""

import re
from pathlib import Path
from typing import Any

from jaxbooth.errors import UserError
from jaxbooth.weights.architectures import Family
from jaxbooth.weights.ldm.names import UNET_PREFIX

INPUT = f"{UNET_PREFIX}input_blocks.0.0.weight"
LABELS = f"{UNET_PREFIX}label_emb.0.0.weight"
FAMILIES: dict[int, tuple[Family, str]] = {768: ("sd15", "SD 1.x"), 1024: ("sd21", "SD 2.x"), 2048: ("sdxl", "SDXL")}
REFINER = (1280, 2560)  # width of its text, inputs of its label embedding
INPUTS = {9: "inpainting", 8: "instruct-pix2pix", 7: "upscaling", 5: "depth"}
# Names that only other models hold, whatever else is in the file.
OTHER_MODELS = (
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a FLUX model"),
    (r"(model\.diffusion_model\.)?(clip_txt_mapper\.|down_blocks\.\d+\.\d+\.channelwise\.)", "a Stable Cascade model"),
    (r"(model\.diffusion_model\.)?t_block\.1\.", "a PixArt model"),
    (r"edm_(mean|std)$", "Playground v2.5"),
    (r"model\.diffusion_model\..*\.time_stack\.", "a Stable Video Diffusion model"),
)
# What a file without an LDM UNet can be.
PARTS = (
    (r"(lora_(unet|te\d?)_.*|.*\.lora([._](A|B|down|up))\..*)", "a LoRA, not a whole model"),
    (r"(control_model|controlnet_cond_embedding|input_hint_block)\.", "a ControlNet"),
    (r"(down_blocks|mid_block|up_blocks)\.", "the UNet of a diffusers folder alone; pass that folder"),
    (r"(text_model\.)?encoder\.layers\.", "a text encoder alone; pass the folder of the whole model"),
    (r"(first_stage_model\.)?(encoder|decoder)\.(down|up|mid)", "a VAE alone; it goes beside a model"),
    (r"", "not a Stable Diffusion checkpoint"),
)


def refuse(file: Path, kind: str) -> UserError:
    """Returns the refusal of a file that is something else."""
    return UserError(f"{file} is {kind}. A single file must be a Stable Diffusion 1.x, 2.x or SDXL checkpoint.")


def find(table: tuple[tuple[str, str], ...], names: list[str]) -> str | None:
    """Returns the first kind in `table` that one of the names belongs to."""
    return next((kind for pattern, kind in table if any(re.match(pattern, name) for name in names)), None)


def identify(tensors: Any, file: Path) -> int:
    """Returns the width of the text that the file's UNet attends to, which tells the family.

    Args:
        tensors: an open safetensors file or pickle.

    Raises:
        UserError: the file is no text-to-image checkpoint of a Stable Diffusion UNet; the message says what it is.
    """
    names = sorted(tensors.keys())
    kind = find(OTHER_MODELS, names)
    if kind is None and INPUT not in names:
        kind = find(PARTS, names) or "empty"
    if kind:
        raise refuse(file, kind)
    attends = next((name for name in names if re.match(rf"{UNET_PREFIX}.*\.attn2\.to_k\.weight", name)), None)
    if attends is None:
        raise refuse(file, "a diffusion model without text")
    context = tensors.get_slice(attends).get_shape()[1]
    family = FAMILIES[context][1] if context in FAMILIES else "Stable Diffusion"
    labels = tensors.get_slice(LABELS).get_shape()[1] if LABELS in names else 0
    if context == REFINER[0] or labels == REFINER[1]:
        raise refuse(file, "the SDXL refiner")
    if labels and family == "SD 2.x":
        raise refuse(file, "an SD 2.x unCLIP model")
    inputs = tensors.get_slice(INPUT).get_shape()[1]
    if inputs in INPUTS:
        raise refuse(file, f"an {family} {INPUTS[inputs]} model")
    return context


def family_of(context: int, file: Path) -> Family:
    """Returns the family of a UNet that attends to text of this width.

    Raises:
        UserError: no family does.
    """
    if context not in FAMILIES:
        raise refuse(file, f"of an unknown architecture (its text is {context} wide)")
    return FAMILIES[context][0]
