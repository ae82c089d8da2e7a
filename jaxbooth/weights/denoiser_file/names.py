"""The names that files of a transformer alone give to its tensors: those of the models' authors, which ComfyUI reads.

Both sides hold the same layers. The files join query, key and value in one matrix, and FLUX.2's have the shift of the
last modulation before its scale. Names go in as diffusers writes them, with or without `.weight` or `.bias`.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from jaxbooth.weights.names import Renames

OTHER_PARTS = r"(?:text_encoders|vae)\..*"  # of a file that ComfyUI's `CheckpointSave` wrote
Z_IMAGE_RULES = (
    (r"^all_(x_embedder|final_layer)\.2-1\b", r"\1"),
    (r"\.attention\.to_[qkv]\b", ".attention.qkv"),
    (r"\.attention\.to_out\.0\b", ".attention.out"),
    (r"\.attention\.norm_([qk])\b", r".attention.\1_norm"),
)
FLUX2_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
FLUX2_DOUBLE_BLOCK = {
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
FLUX2_SINGLE_BLOCK = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
FLUX2_BLOCKS = {"transformer_blocks": ("double_blocks", FLUX2_DOUBLE_BLOCK),
                "single_transformer_blocks": ("single_blocks", FLUX2_SINGLE_BLOCK)}  # fmt: skip
PROJECTION = re.compile(r"\.(?:to_([qkv])|add_([qkv])_proj)\b")


def z_image_name(name: str) -> str:
    """Returns the name in a Z-Image file of a module or a tensor."""
    for pattern, replacement in Z_IMAGE_RULES:
        name = re.sub(pattern, replacement, name)
    return name


def flux2_name(name: str) -> str:
    """Returns the name in a FLUX.2 file of a module or a tensor.

    Raises:
        ValueError: no transformer of FLUX.2 klein has it.
    """
    path, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        path, leaf = name, ""
    block = re.fullmatch(r"(\w+)\.(\d+)\.(.*)", path)
    if block and block[1] in FLUX2_BLOCKS:
        stem, inner = FLUX2_BLOCKS[block[1]]
        module = f"{stem}.{block[2]}.{inner[block[3]]}" if block[3] in inner else None
    else:
        module = FLUX2_ENDS.get(path)
    if module is None:
        raise ValueError(f"{name} is no part of a FLUX.2 klein transformer")
    if not leaf:
        return module
    return f"{module}.scale" if module.endswith("_norm") else f"{module}.{leaf}"


def projection_order(name: str) -> int:
    """Returns the place of a tensor in a matrix of query, key and value; 0 for any other tensor."""
    match = PROJECTION.search(name)
    return "qkv".index(match[1] or match[2]) if match else 0


class DenoiserFile(NamedTuple):
    """How a family's files of a transformer alone are recognised, and what they call its tensors.

    Attributes:
        name: state-dict name of a module or a tensor -> its name in the files.
        text_projection: state-dict name of the matrix that takes the prompt embeddings in. Files that have it are of
            the family, unless they are of one that is refused, and its width tells the family's models apart.
        renames: names in files -> the usual ones; empty for what nothing reads.
        swapped: state-dict names of tensors whose halves change places.
        names_lora: whether ComfyUI knows a LoRA's layers by these names alone, and not by those of diffusers.
    """

    name: Callable[[str], str]
    text_projection: str
    renames: Renames
    swapped: frozenset[str] = frozenset()
    names_lora: bool = False


# ComfyUI saves a whole model with these, and the authors of a model leave them out.
COMFY_PREFIXES = (
    (r"(?:model\.)?diffusion_model\.(.*)", r"\1"),
    (OTHER_PARTS, ""),
)
# `norm_final` is left over from Lumina's code.
Z_IMAGE = DenoiserFile(z_image_name, "cap_embedder.1.weight", (*COMFY_PREFIXES, (r"norm_final\.weight", "")))
FLUX2 = DenoiserFile(
    flux2_name,
    "context_embedder.weight",
    (*COMFY_PREFIXES, (r"(.*\.(?:query|key)_norm)\.weight", r"\1.scale")),
    frozenset({"norm_out.linear.weight"}),
    names_lora=True,
)
