"""Tells by the names and sizes in a LoRA file which model it looks made for."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxbooth.weights.architectures import FAMILIES
from jaxbooth.weights.family import Family, TextEncoderSpec

FileShapes = Mapping[str, tuple[int, ...]]

TEXT_READER = re.compile(r"attn2[._](processor\.)?to_[kv]$")
FLUX2_OF_WIDTH = {3072: "FLUX.2 klein 4B", 4096: "FLUX.2 klein 9B", 6144: "FLUX.2 dev"}
JOINT_ATTENTION_OF_WIDTH = FLUX2_OF_WIDTH | {
    1536: "Stable Diffusion 3.5 medium or 3 medium", 2432: "Stable Diffusion 3.5 large", 3072: "FLUX.1 or Qwen-Image",
}  # fmt: skip
LAYERS_OF_WIDTH = {3840: "Z-Image", 2304: "Lumina 2"}


class Evidence(NamedTuple):
    """What tells a transformer's LoRA.

    Attributes:
        pattern: found in the name of a layer, underscores in the place of dots.
        title: the model, or a function of the layers with such names -> the model.
    """

    pattern: str
    title: str | Callable[[FileShapes], str]


def by_width(titles: Mapping[int, str], otherwise: str) -> Callable[[FileShapes], str]:
    """Returns a function that names a model by the inputs of its layers, where only the right size has that many."""

    def title(shapes: FileShapes) -> str:
        widths = {shape[1] for shape in shapes.values() if len(shape) > 1}
        return next((name for width, name in titles.items() if width in widths), otherwise)

    return title


def flux_release(shapes: FileShapes) -> str:
    """Returns which FLUX has layers in the release's names: FLUX.1 and FLUX.2 klein 4B are as wide, not as deep."""
    block = r"(double|single)_blocks_(\d+)"
    depth = {"double": 0, "single": 0}
    for name in shapes:
        match = re.search(block, underscores(name))
        assert match is not None
        depth[match[1]] = max(depth[match[1]], int(match[2]) + 1)
    title = by_width(FLUX2_OF_WIDTH, "FLUX")(shapes)
    return "FLUX.1" if title == FLUX2_OF_WIDTH[3072] and (depth["double"] > 5 or depth["single"] > 20) else title


# The first that is found; other names of FLUX.1 and Qwen-Image come before those that they share with FLUX.2.
TRANSFORMERS = (
    Evidence(r"single_transformer_blocks_\d+_attn_to_qkv_mlp_proj", by_width(FLUX2_OF_WIDTH, "FLUX.2")),
    Evidence(r"transformer_blocks_\d+_ff(_context)?_linear_in", by_width(FLUX2_OF_WIDTH, "FLUX.2")),
    Evidence(r"single_transformer_blocks_\d+_(proj_|attn_to_[qkv]|norm_linear)", "FLUX.1"),
    Evidence(r"(double_blocks_\d+_(img|txt)_mod|single_blocks_\d+_modulation)_lin", "FLUX.1"),
    Evidence(r"(double|single)_blocks_\d+", flux_release),
    Evidence(r"transformer_blocks_\d+_(img|txt)_m(lp|od)", "Qwen-Image"),
    Evidence(r"joint_blocks", "Stable Diffusion 3"),
    Evidence(r"transformer_blocks_\d+_attn_(add_[qkv]_proj|to_add_out)",
             by_width(JOINT_ATTENTION_OF_WIDTH, "Stable Diffusion 3, FLUX or Qwen-Image")),
    Evidence(r"layers_\d+_attn_to_[qkv]", "Lumina 2"),
    Evidence(r"(layers|refiner)_\d+_(attention_(to_[qkv]|qkv|out|to_out_0)|feed_forward_w\d)$",
             by_width(LAYERS_OF_WIDTH, "Z-Image or Lumina 2")),
    Evidence(r"(^|_)blocks_\d+_(self|cross)_attn_[qkvo]$", "Wan"),
)  # fmt: skip


def suggest_family(shapes: FileShapes) -> str:
    """Returns what to add to a message about a LoRA that does not fit: which model it looks made for.

    Args:
        shapes: name in the file -> shape of its down matrix, (rank, in, ...).
    """
    for evidence in TRANSFORMERS:
        matching = {name: shape for name, shape in shapes.items() if re.search(evidence.pattern, underscores(name))}
        if matching:
            title = evidence.title if isinstance(evidence.title, str) else evidence.title(matching)
            return f"; it looks like a LoRA for {title}"
    widths = {shape[1] for name, shape in shapes.items() if TEXT_READER.search(name) and len(shape) > 1}
    for family in reversed(FAMILIES.values()):
        if widths.intersection(family.text_widths) or any(name.startswith(name_prefixes(family)) for name in shapes):
            return f"; it looks like a LoRA for {family.title}"
    return "; it was made for another base model"


def underscores(name: str) -> str:
    """Returns a name with underscores in the place of dots, as kohya's files have all of them."""
    return name.replace(".", "_")


def name_prefixes(family: Family) -> tuple[str, ...]:
    """Returns the beginnings of names in LoRA files that belong to this family alone; none may be."""
    others = [encoder for other in FAMILIES.values() if other is not family for encoder in other.text_encoders]
    shared = {prefix for encoder in others for prefix in lora_prefixes(encoder)}
    prefixes = [prefix for encoder in family.text_encoders for prefix in lora_prefixes(encoder)]
    return tuple(prefix for prefix in prefixes if prefix not in shared)


def lora_prefixes(encoder: TextEncoderSpec) -> tuple[str, str]:
    """Returns how the names of a text encoder's modules begin, in PEFT's and in kohya's files."""
    return f"{encoder.component}.", f"{encoder.kohya_prefix}_"
